package e2e

import (
	"testing"

	"vragent/agent/internal/api"
	"vragent/netcfg/nstest"
)

// TestFaultDeviceComesBackUnderAnotherName: a network that is told by the MAC of the router's card follows
// it, whatever its name; one that is told by name waits for the name. Nobody tells the daemon anything.
func TestFaultDeviceComesBackUnderAnotherName(t *testing.T) {
	binary := fault(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "prlimit", "udhcpc")
	const card = "02:00:4c:5f:01:00"
	r := newRouter(t)
	r.configure(t, "")
	a := nstest.NewHost(t, "a")
	b := nstest.NewHost(t, "b")
	// plug connects a guest to a new device of the router.
	plug := func(g *nstest.Host, device, mac, gateway string) {
		t.Helper()
		nstest.Pair(t, r.Host, device, g, "eth0")
		g.SetMAC(t, "eth0", mac)
		if gateway != "" {
			r.AddAddr(t, device, gateway)
		}
	}
	plug(a, "eth0", macA, "")
	r.SetMAC(t, "eth0", card)
	plug(b, "eth1", macB, "10.1.2.1/24")
	p := r.boot(t, binary)
	r.put(t, "networks/card.yaml", "mac: "+card+"\ngateway: 10.1.1.1/24\nmanage_address: true\npool: {from: 10.1.1.100, to: 10.1.1.110, probe: true}\n")
	r.put(t, "networks/name.yaml", "interface: eth1\ngateway: 10.1.2.1/24\n")
	r.put(t, "vms/a/user-data", "mine")
	r.put(t, "vms/a/vm.yaml", vm("a", "card", macA, "10.1.1.34"))
	r.put(t, "vms/b/vm.yaml", vm("b", "name", macB, "10.1.2.35"))
	r.applied(t)

	works := func() {
		t.Helper()
		nstest.Poll(t, waitTime, "both networks to be served", func() bool {
			networks, err := r.client.Networks(t.Context())
			return err == nil && len(networks) == 2 && networks[0].State == api.Applied && !networks[0].Standby && networks[1].State == api.Applied && !networks[1].Standby
		})
		lease(t, a, "10.1.1.34")
		lease(t, b, "10.1.2.35")
		if got, err := curl(t, a, "http://10.1.1.1/latest/user-data"); err != nil || got != "mine" {
			t.Errorf("user-data = %q, %v", got, err)
		}
		if got, err := curl(t, b, "http://10.1.2.1/latest/local-hostname"); err != nil || got != "b" {
			t.Errorf("local-hostname = %q, %v", got, err)
		}
		if faults := r.faultsOf(t); faults != "" {
			t.Errorf("faults: %s", faults)
		}
	}
	becomes := func(network string, want api.State) {
		t.Helper()
		nstest.Poll(t, waitTime, network+" to be "+string(want), func() bool { return r.wait(t, "networks/"+network+".yaml").State == want })
	}
	works()
	open := descriptors(t, p)

	// Unplugged and plugged in again, a slot further on.
	for _, device := range []string{"eth7", "eth0", "ens3"} {
		r.Delete(t, map[string]string{"eth7": "eth0", "eth0": "eth7", "ens3": "eth0"}[device])
		becomes("card", api.Pending)
		plug(a, device, macA, "")
		r.SetMAC(t, device, card)
		works()
	}
	// Renamed while it is up, which modern kernels allow, or down.
	r.Down(t, "ens3")
	r.Rename(t, "ens3", "lan0")
	r.Up(t, "lan0")
	works()

	// By name: another card under another name is not it.
	r.Delete(t, "eth1")
	becomes("name", api.Pending)
	plug(b, "eth2", macB, "10.1.2.1/24")
	if result := r.wait(t, "networks/name.yaml"); result.State != api.Pending {
		t.Errorf("a network of eth1 is %s though there is eth2 only", result.State)
	}
	r.Down(t, "eth2")
	r.Rename(t, "eth2", "eth1")
	r.Up(t, "eth1")
	r.Run(t, "ip", "address", "replace", "10.1.2.1/24", "dev", "eth1") // which it may have lost while it was down
	works()
	// Two cards swap their names.
	r.Down(t, "lan0")
	r.Down(t, "eth1")
	r.Rename(t, "eth1", "tmp")
	r.Rename(t, "lan0", "eth1")
	r.Up(t, "eth1")
	r.Up(t, "tmp")
	becomes("card", api.Applied)
	r.Down(t, "tmp")
	r.Down(t, "eth1")
	r.Rename(t, "eth1", "lan0")
	r.Rename(t, "tmp", "eth1")
	r.Up(t, "lan0")
	r.Up(t, "eth1")
	works()
	// Sockets of devices that are gone are gone.
	nstest.Poll(t, waitTime, "descriptors of what is gone to be closed", func() bool { return descriptors(t, p) <= open+2 })
	end(t, p)
}
