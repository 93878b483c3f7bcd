package e2e

import (
	"strings"
	"testing"

	"vragent/netcfg/nstest"
)

const dataURL = "http://10.1.1.1/latest/user-data"

// neighbors makes guests a and b on one bridge of a router that serves both, each with user data of
// its own and its own address.
func neighbors(t *testing.T) (r *router, a, b *nstest.Host) {
	t.Helper()
	r = newRouter(t)
	a, b = r.guest(t, "a", "va", macA), r.guest(t, "b", "vb", macB)
	r.Bridge(t, "eth0", "va", "vb")
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	a.AddAddr(t, "eth0", "10.1.1.34/24")
	b.AddAddr(t, "eth0", "10.1.1.35/24")
	r.start(t)
	r.put(t, "networks/guest-1.yaml", network)
	r.put(t, "vms/a/user-data", "data of a")
	r.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	r.put(t, "vms/b/user-data", "data of b")
	r.put(t, "vms/b/vm.yaml", vm("b", "guest-1", macB, "10.1.1.35"))
	r.applied(t)
	return r, a, b
}

// entry waits until the router's neighbor entry for an address is a permanent one that leads to mac,
// or, where mac is empty, until there is no permanent one.
func (r *router) entry(t *testing.T, ip, mac string) {
	t.Helper()
	var got string
	nstest.Poll(t, waitTime, "neighbor entry of "+ip+" to lead to "+mac, func() bool {
		got = r.Run(t, "ip", "neigh", "show", "to", ip, "dev", "eth0")
		if mac == "" {
			return !strings.Contains(got, "PERMANENT")
		}
		return strings.Contains(got, "lladdr "+mac+" ") && strings.Contains(got, "PERMANENT")
	})
}

// claim announces that the guest has an address: gratuitous ARP, as request and as answer.
func claim(t *testing.T, g *nstest.Host, ip string) {
	t.Helper()
	for _, kind := range []string{"-U", "-A"} {
		// It ends with an error, since nobody answers.
		out, _ := g.Output(t, "timeout", "5", "busybox", "arping", kind, "-c", "1", "-w", "1", "-I", "eth0", ip)
		if !strings.Contains(out, "Sent 1 probe") {
			t.Fatalf("arping %s: %s", kind, out)
		}
	}
}

// try reads user data within a time in which it would come if it came at all.
func try(t *testing.T, g *nstest.Host) (string, error) {
	t.Helper()
	return g.Output(t, "curl", "-sSf", "--max-time", "1.5", "--noproxy", "*", dataURL)
}

func TestGuestWithAnotherGuestsAddressReadsNothing(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r, a, b := neighbors(t)
	serves(t, a, dataURL, "data of a")
	serves(t, b, dataURL, "data of b")

	// b takes the address of a, which is switched off and defends nothing.
	a.Down(t, "eth0")
	b.DelAddr(t, "eth0", "10.1.1.35/24")
	b.AddAddr(t, "eth0", "10.1.1.34/24")

	// Without pinned neighbors that is all it needs: the attack is a real one.
	r.put(t, "networks/guest-1.yaml", network+"pin_neighbors: false\n")
	r.applied(t, "networks/guest-1.yaml")
	r.entry(t, "10.1.1.34", "")
	claim(t, b, "10.1.1.34")
	if got, err := try(t, b); err != nil || got != "data of a" {
		t.Errorf("an unpinned network serves %q, %v: this test's attack does not work", got, err)
	}

	// With them it gets no answer, whatever the router had learned and is told.
	r.put(t, "networks/guest-1.yaml", network)
	r.applied(t, "networks/guest-1.yaml")
	r.entry(t, "10.1.1.34", macA)
	if got, err := try(t, b); err == nil || strings.Contains(got, "data") {
		t.Errorf("b reads %q with the address of a", got)
	}
	claim(t, b, "10.1.1.34")
	r.entry(t, "10.1.1.34", macA)
	if got, err := try(t, b); err == nil || strings.Contains(got, "data") {
		t.Errorf("b reads %q with the address of a after gratuitous ARP", got)
	}

	// Nor while the agent is not there to look after it, nor from one that has just started.
	r.stop()
	claim(t, b, "10.1.1.34")
	r.entry(t, "10.1.1.34", macA)
	r.start(t)
	if got, err := try(t, b); err == nil || strings.Contains(got, "data") {
		t.Errorf("b reads %q with the address of a after a restart", got)
	}

	// With both addresses b is itself only by its own.
	b.AddAddr(t, "eth0", "10.1.1.35/24")
	if got, err := b.Output(t, "curl", "-sSf", "--max-time", "5", "--interface", "10.1.1.35", dataURL); err != nil || got != "data of b" {
		t.Errorf("b with its own address beside that of a reads %q, %v", got, err)
	}
	b.DelAddr(t, "eth0", "10.1.1.34/24") // the second one goes with the first
	b.AddAddr(t, "eth0", "10.1.1.35/24")
	a.Up(t, "eth0")
	serves(t, a, dataURL, "data of a")
	serves(t, b, dataURL, "data of b")
}

func TestNeighborEntriesFollowTheFiles(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r, a, b := neighbors(t)
	r.entry(t, "10.1.1.34", macA)
	r.entry(t, "10.1.1.35", macB)

	// Entries that another program made permanent: for nobody of ours, and for an address that a VM
	// has from now on.
	const foreign = "02:00:4c:5f:00:fe"
	for _, ip := range []string{"10.1.1.77", "10.1.1.36"} {
		r.Run(t, "ip", "neigh", "add", ip, "lladdr", foreign, "nud", "permanent", "dev", "eth0")
	}
	r.put(t, "vms/c/vm.yaml", vm("c", "guest-1", "02:00:4c:5f:00:0c", "10.1.1.36"))
	r.applied(t)

	// The addresses change hands: the entry leads to the new holder, who reads nothing of the old one's.
	a.DelAddr(t, "eth0", "10.1.1.34/24")
	b.DelAddr(t, "eth0", "10.1.1.35/24")
	b.AddAddr(t, "eth0", "10.1.1.34/24")
	r.remove(t, "vms/a")
	r.put(t, "vms/b/vm.yaml", vm("b", "guest-1", macB, "10.1.1.34"))
	r.applied(t)
	r.entry(t, "10.1.1.34", macB)
	r.entry(t, "10.1.1.35", "")
	serves(t, b, dataURL, "data of b")

	r.remove(t, "vms/b")
	r.remove(t, "vms/c")
	r.applied(t)
	r.entry(t, "10.1.1.34", "")
	for _, step := range []func(){
		func() {},
		func() { r.stop(); r.start(t) },
		func() { r.remove(t, "networks/guest-1.yaml"); r.applied(t) },
	} {
		step()
		for _, ip := range []string{"10.1.1.77", "10.1.1.36"} {
			r.entry(t, ip, foreign)
		}
	}
}
