package netcfg_test

import (
	"net/netip"
	"testing"

	"vragent/netcfg"
)

func TestSnapshotFindsLinks(t *testing.T) {
	mac := parseMAC(t, "02:00:00:00:00:01")
	s := netcfg.NewSnapshot([]netcfg.Link{
		{Index: 7, Name: "eth0.10", MAC: mac},
		{Index: 2, Name: "eth0", MAC: mac, Master: 5},
		{Index: 5, Name: "br0", MAC: mac},
		{Index: 1, Name: "lo"},
		{Index: 3, Name: "eth1", MAC: parseMAC(t, "02:00:00:00:00:02"), Master: 5},
	})
	if l, ok := s.ByMAC(mac); !ok || l.Name != "br0" {
		t.Errorf("ByMAC() of a bridge, its port and its VLAN = %q, want br0", l.Name)
	}
	if l, ok := s.ByMAC(parseMAC(t, "02:00:00:00:00:02")); !ok || l.Name != "eth1" {
		t.Errorf("ByMAC() of a port alone = %q, want eth1", l.Name)
	}
	if l, ok := s.ByMAC(nil); ok {
		t.Errorf("ByMAC(nil) = %q, want none", l.Name)
	}
	if l, ok := s.ByIndex(5); !ok || l.Name != "br0" {
		t.Errorf("ByIndex(5) = %q, want br0", l.Name)
	}
	if _, ok := s.ByIndex(4); ok {
		t.Error("ByIndex(4) found a link")
	}
	if l, ok := s.ByName("eth0.10"); !ok || l.Index != 7 {
		t.Errorf("ByName(eth0.10) = %d, want 7", l.Index)
	}
	if _, ok := new(netcfg.Snapshot).ByName("eth0"); ok {
		t.Error("the zero Snapshot has links")
	}
}

func TestSnapshotFindsAddresses(t *testing.T) {
	local := link(2, "eth0", "10.1.1.1/24", "203.0.113.9/24")
	local.Addrs[0].Global = false
	s := netcfg.NewSnapshot([]netcfg.Link{local, link(3, "eth1", "10.1.1.1/16"), link(4, "eth2")})
	if got := s.FirstGlobalIPv4("eth0"); got != netip.MustParseAddr("203.0.113.9") {
		t.Errorf("FirstGlobalIPv4(eth0) = %s", got)
	}
	for _, name := range []string{"eth2", "eth9"} {
		if got := s.FirstGlobalIPv4(name); got.IsValid() {
			t.Errorf("FirstGlobalIPv4(%s) = %s, want none", name, got)
		}
	}
	if got := s.Holding(netip.MustParseAddr("10.1.1.1")); len(got) != 2 || got[0].Name != "eth0" || got[1].Name != "eth1" {
		t.Errorf("Holding() = %v, want eth0 and eth1", got)
	}
}
