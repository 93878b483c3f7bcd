package e2e

import (
	"context"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"vragent/netcfg/nstest"
)

// waitTime bounds every wait for something that happens within milliseconds on an idle machine.
const waitTime = 20 * time.Second

func run(program string, args ...string) error { return exec.Command(program, args...).Run() }

// serves waits until a guest's request is answered with want.
func serves(t *testing.T, g *nstest.Host, url, want string) {
	t.Helper()
	nstest.Poll(t, waitTime, url+" to answer "+want, func() bool {
		got, err := g.Output(t, "curl", "-sSf", "--max-time", "1", "--noproxy", "*", url)
		return err == nil && got == want
	})
}

// silent waits until nothing answers on the port any more.
func silent(t *testing.T, g *nstest.Host, address string) {
	t.Helper()
	nstest.Poll(t, waitTime, address+" to be silent", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		conn, err := g.Dial(ctx, nil, "tcp", address)
		if err != nil {
			return true
		}
		conn.Close()
		return false
	})
}

func TestNetworksFollowDevicesAndAddresses(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	other := r.guest(t, "other", "eth9", macB)
	r.AddAddr(t, "eth9", "10.9.9.1/24")
	other.AddAddr(t, "eth0", "10.9.9.34/24")
	r.start(t)
	r.put(t, "networks/other.yaml", "interface: eth9\ngateway: 10.9.9.1/24\n")
	r.put(t, "vms/other/vm.yaml", vm("other", "other", macB, "10.9.9.34"))
	r.put(t, "networks/guest-1.yaml", network)
	r.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	serves(t, other, "http://10.9.9.1/latest/local-hostname", "other")

	// Whatever happens to eth0, the other network's guest must not notice.
	stop := undisturbed(t, other, "http://10.9.9.1/latest/local-hostname")

	g := r.guest(t, "a", "eth0", macA) // the device appears after its file
	g.AddAddr(t, "eth0", "10.1.1.34/24")
	silent(t, g, "10.1.1.1:80")
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	serves(t, g, "http://10.1.1.1/latest/local-hostname", "a")
	lease(t, g, "10.1.1.34")

	r.DelAddr(t, "eth0", "10.1.1.1/24")
	silent(t, g, "10.1.1.1:80")
	if out, err := g.Output(t, "timeout", "3", "udhcpc", "-n", "-q", "-t", "1", "-T", "1", "-i", "eth0", "-s", "/bin/true"); err == nil {
		t.Errorf("a standby router answers DHCP:\n%s", out)
	}
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	serves(t, g, "http://10.1.1.1/latest/local-hostname", "a")

	r.Rename(t, "eth0", "old0") // renamed away and back
	silent(t, g, "10.1.1.1:80")
	r.Rename(t, "old0", "eth0")
	serves(t, g, "http://10.1.1.1/latest/local-hostname", "a")

	r.Delete(t, "eth0") // gone, and back under its name as another device
	g2 := r.guest(t, "a2", "eth0", macA)
	g2.AddAddr(t, "eth0", "10.1.1.34/24")
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	serves(t, g2, "http://10.1.1.1/latest/local-hostname", "a")
	lease(t, g2, "10.1.1.34")

	// The file names another device: service moves there.
	g3 := r.guest(t, "a3", "eth5", macA)
	g3.AddAddr(t, "eth0", "10.1.1.34/24")
	r.DelAddr(t, "eth0", "10.1.1.1/24")
	r.AddAddr(t, "eth5", "10.1.1.1/24")
	r.put(t, "networks/guest-1.yaml", strings.Replace(network, "eth0", "eth5", 1))
	serves(t, g3, "http://10.1.1.1/latest/local-hostname", "a")
	stop()
}

// undisturbed reads a URL again and again until the returned function is called, which fails the
// test if any of it did.
func undisturbed(t *testing.T, g *nstest.Host, url string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			out, err := g.Command(context.Background(), "curl", "-sSf", "--max-time", "5", "--noproxy", "*", url).CombinedOutput()
			if err != nil {
				t.Errorf("request %d of an undisturbed guest: %v: %s", n, err, out)
				return
			}
		}
	})
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop) // for a test that fails before it gets there
	return stop
}

func TestManagedAddressesComeAndGoWithTheirFile(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	g := r.guest(t, "a", "eth0", macA)
	g.AddAddr(t, "eth0", "10.1.1.34/24")
	r.AddAddr(t, "eth0", "192.0.2.1/24") // somebody else's
	r.start(t)
	r.put(t, "networks/guest-1.yaml", network+"manage_address: true\nlink_local_metadata: true\n")
	r.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	serves(t, g, "http://10.1.1.1/latest/local-hostname", "a")
	g.AddRoute(t, "169.254.169.254/32", "10.1.1.1")
	serves(t, g, "http://169.254.169.254/latest/local-hostname", "a")

	r.Run(t, "ip", "addr", "del", "10.1.1.1/24", "dev", "eth0") // taken away by another program: put back
	serves(t, g, "http://10.1.1.1/latest/local-hostname", "a")

	r.stop() // a stop is no reason to take the address from running guests
	if out := r.Run(t, "ip", "-4", "addr", "show", "dev", "eth0"); !strings.Contains(out, "10.1.1.1/24") {
		t.Errorf("the address went with the daemon:\n%s", out)
	}
	r.start(t)
	r.remove(t, "networks/guest-1.yaml")
	nstest.Poll(t, waitTime, "the agent's addresses to go", func() bool {
		out := r.Run(t, "ip", "-4", "addr", "show", "dev", "eth0")
		return !strings.Contains(out, "10.1.1.1") && !strings.Contains(out, "169.254.169.254")
	})
	if out := r.Run(t, "ip", "-4", "addr", "show", "dev", "eth0"); !strings.Contains(out, "192.0.2.1/24") {
		t.Errorf("somebody else's address is gone:\n%s", out)
	}
}

func TestPublicAddressIsFollowedLive(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	g := r.guest(t, "a", "eth0", macA)
	world := nstest.NewHost(t, "world")
	nstest.Pair(t, r.Host, "eth2", world, "eth0")
	g.AddAddr(t, "eth0", "10.1.1.34/24")
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	r.start(t)
	r.put(t, "networks/guest-1.yaml", network)
	r.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	serves(t, g, "http://10.1.1.1/latest/public-ipv4", "")
	r.AddAddr(t, "eth2", "203.0.113.24/24")
	serves(t, g, "http://10.1.1.1/latest/public-ipv4", "203.0.113.24")
	r.DelAddr(t, "eth2", "203.0.113.24/24")
	r.AddAddr(t, "eth2", "203.0.113.99/24")
	serves(t, g, "http://10.1.1.1/latest/public-hostname", "203.0.113.99")

	// Nothing of it is reachable from there.
	world.AddAddr(t, "eth0", "203.0.113.1/24")
	world.AddRoute(t, "10.1.1.0/24", "203.0.113.99")
	silent(t, world, "203.0.113.99:80")
	silent(t, world, "10.1.1.1:80")
}
