package e2e

import (
	"os"
	"strings"
	"testing"

	"vragent/agent/internal/api"
	"vragent/netcfg/nstest"
)

const network = "interface: eth0\ngateway: 10.1.1.1/24\n"

func TestConflictsNameBothUnitsAndResolveByThemselves(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	a, b := r.guest(t, "a", "va", macA), r.guest(t, "b", "vb", macB)
	r.Bridge(t, "eth0", "va", "vb")
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	r.start(t)
	r.put(t, "networks/guest-1.yaml", network)
	r.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	r.put(t, "vms/b/vm.yaml", vm("b", "guest-1", macB, "10.1.1.35"))
	r.applied(t)

	for name, test := range map[string]struct{ file, want string }{
		"same address":        {vm("c", "guest-1", "02:00:4c:5f:00:0c", "10.1.1.34"), "vms/c/vm.yaml:3:54: nics[0].ipv4: 10.1.1.34 in network guest-1 belongs to vms/a"},
		"same MAC":            {vm("c", "guest-1", macA, "10.1.1.36"), "vms/c/vm.yaml:3:27: nics[0].mac: 02:00:4c:5f:00:0a in network guest-1 belongs to vms/a"},
		"outside the network": {vm("c", "guest-1", "02:00:4c:5f:00:0c", "10.1.2.34"), "vms/c/vm.yaml:3:54: nics[0].ipv4: 10.1.2.34 is outside 10.1.1.0/24, the network of networks/guest-1.yaml"},
		"the gateway's":       {vm("c", "guest-1", "02:00:4c:5f:00:0c", "10.1.1.1"), "vms/c/vm.yaml:3:54: nics[0].ipv4: 10.1.1.1 is the gateway's address in networks/guest-1.yaml"},
	} {
		r.put(t, "vms/c/vm.yaml", test.file)
		if got := r.rejected(t, "vms/c"); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
	r.remove(t, "vms/c")
	r.applied(t)

	// Two VMs swap addresses by two files; half of it changes nothing for anybody.
	r.put(t, "vms/b/vm.yaml", vm("b", "guest-1", macB, "10.1.1.34"))
	r.rejected(t, "vms/b")
	lease(t, a, "10.1.1.34")
	lease(t, b, "10.1.1.35")
	r.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.35"))
	r.applied(t)
	lease(t, a, "10.1.1.35")
	lease(t, b, "10.1.1.34")
	for g, want := range map[*nstest.Host]string{a: "a", b: "b"} {
		if got, err := curl(t, g, "http://10.1.1.1/latest/local-hostname"); got != want {
			t.Errorf("guest %s reads local-hostname %q, %v", want, got, err)
		}
	}
}

// lease lets udhcpc get a lease for a guest's eth0, puts the address on it and checks which it is.
func lease(t *testing.T, g *nstest.Host, want string) {
	t.Helper()
	const script = "/run/udhcpc.script"
	g.WriteFile(t, script, "#!/bin/sh\n[ $1 != bound ] || ip addr add $ip/$mask dev $interface\n")
	g.Run(t, "chmod", "755", script)
	g.Run(t, "ip", "addr", "flush", "dev", "eth0")
	if out, err := g.Output(t, "timeout", "20", "udhcpc", "-q", "-n", "-i", "eth0", "-s", script); err != nil || !strings.Contains(out, want+" obtained") {
		t.Fatalf("udhcpc got no %s: %v\n%s", want, err, out)
	}
}

func TestUnitsThatCannotBeTakenAreRejectedWithTheirReason(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	r.guest(t, "a", "eth0", macA)
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	r.start(t)
	r.put(t, "networks/guest-1.yaml", network)
	good := vm("a", "guest-1", macA, "10.1.1.34")
	for name, test := range map[string]struct {
		make func(folder string) error
		want string
	}{
		"symbolic link": {func(f string) error { return os.Symlink("/etc/hostname", f+"/user-data") }, "symbolic link"},
		"pipe": {func(f string) error {
			return run("mkfifo", f+"/meta-data.yaml")
		}, "pipe"},
		"too much user data": {func(f string) error { return os.WriteFile(f+"/user-data", make([]byte, 1<<20+1), 0o660) }, "1048576"},
		"too much metadata":  {func(f string) error { return os.WriteFile(f+"/meta-data.yaml", make([]byte, 64<<10+1), 0o660) }, "65536"},
		"two documents":      {func(f string) error { return os.WriteFile(f+"/meta-data.yaml", []byte("a: b\n---\n"), 0o660) }, "meta-data.yaml:2:1: a second document"},
		"reserved name":      {func(f string) error { return os.WriteFile(f+"/meta-data.yaml", []byte("user-data: b\n"), 0o660) }, "meta-data.yaml:1:1: name \"user-data\" is not free"},
	} {
		t.Run(name, func(t *testing.T) {
			r.remove(t, "vms/x")
			if err := os.MkdirAll(r.drop+"/vms/.x", 0o770); err != nil {
				t.Fatal(err)
			}
			if err := test.make(r.drop + "/vms/.x"); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(r.drop+"/vms/.x/vm.yaml", []byte(good), 0o660); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(r.drop+"/vms/.x", r.drop+"/vms/x"); err != nil {
				t.Fatal(err)
			}
			if got := r.rejected(t, "vms/x"); !strings.Contains(got, test.want) {
				t.Errorf("reason %q, want %q in it", got, test.want)
			}
			status, err := r.client.Status(t.Context())
			if err != nil || status.VMs[api.Rejected] != 1 || len(status.Units) == 0 {
				t.Errorf("status: %+v, %v", status, err)
			}
		})
	}
	r.remove(t, "vms/x")
	r.applied(t)
}

func TestPendingUnitsTakeEffectByThemselves(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	r.start(t)
	r.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	if got := r.wait(t, "vms/a"); got.State != api.Pending || !strings.Contains(got.Units[0].Reasons[0].What, "networks/guest-1.yaml") {
		t.Fatalf("without its network: %+v", got)
	}
	r.put(t, "networks/guest-1.yaml", network)
	if got := r.wait(t); got.State != api.Pending || !strings.Contains(got.Units[0].Reasons[0].What, "there is no eth0") {
		t.Fatalf("without its device: %+v", got)
	}
	g := r.guest(t, "a", "eth0", macA)
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	nstest.Poll(t, waitTime, "all applied", func() bool { return r.wait(t).State == api.Applied })
	lease(t, g, "10.1.1.34")
	r.remove(t, "networks/guest-1.yaml")
	if got := r.wait(t); got.State != api.Pending {
		t.Errorf("with the network removed: %+v", got)
	}
	if _, err := curl(t, g, "http://10.1.1.1/latest/local-hostname"); err == nil {
		t.Error("a guest of a removed network is served")
	}
	r.put(t, "networks/guest-1.yaml", network)
	r.applied(t)
	if got, err := curl(t, g, "http://10.1.1.1/latest/local-hostname"); got != "a" {
		t.Errorf("with the network back: %q, %v", got, err)
	}
}

func TestExplainSaysWhatStandsInTheWay(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	g := r.guest(t, "a", "eth0", macA)
	r.start(t)
	r.put(t, "networks/guest-1.yaml", network)
	r.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	r.put(t, "vms/a/meta-data.yaml", "instance-id: i-1\n")
	r.applied(t) // a network that stands by is applied
	explain := func(subject string) api.Explanation {
		t.Helper()
		x, err := r.client.Explain(t.Context(), subject)
		if err != nil {
			t.Fatalf("explain %s: %v", subject, err)
		}
		return x
	}
	if x := explain("a"); !strings.Contains(strings.Join(x.Obstacles, "\n"), "its serving address 10.1.1.1 is not on eth0") || x.Next == "" {
		t.Errorf("standby: %+v", x)
	}
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	nstest.Poll(t, waitTime, "the NIC to be served", func() bool { return explain("a").VM.NICs[0].Served })
	lease(t, g, "10.1.1.34")
	if _, err := curl(t, g, "http://10.1.1.1/latest/instance-id"); err != nil {
		t.Error(err)
	}
	for _, subject := range []string{"a", macA, "10.1.1.34"} {
		x := explain(subject)
		if len(x.DHCP) == 0 || x.DHCP[0].Answer != "ACK" || len(x.Requests) == 0 || x.Requests[0].Path != "/latest/instance-id" ||
			len(x.Files) != 3 || len(x.Obstacles) > 0 || len(x.Networks) != 1 || x.Networks[0].Guests != 1 {
			t.Errorf("explain %s: %+v", subject, x)
		}
	}
	if _, err := r.client.Explain(t.Context(), "nobody"); err == nil {
		t.Error("nobody is known")
	}
	// A stranger on the link: silence, and the reason.
	stranger := "02:00:4c:5f:00:99"
	g.SetMAC(t, "eth0", stranger)
	g.Up(t, "eth0")
	if out, err := g.Output(t, "timeout", "3", "udhcpc", "-n", "-q", "-t", "1", "-T", "1", "-i", "eth0", "-s", "/bin/true"); err == nil {
		t.Errorf("a stranger got an address:\n%s", out)
	}
	if x := explain(stranger); len(x.DHCP) == 0 || x.DHCP[0].Answer != "none" || x.DHCP[0].Why == "" {
		t.Errorf("explain of a stranger: %+v", x)
	}
}
