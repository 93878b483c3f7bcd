package netcfg_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"vragent/netcfg"
	"vragent/netcfg/nstest"
)

const (
	mac1 = "02:00:00:00:00:01"
	mac2 = "02:00:00:00:00:02"
)

func pin(t *testing.T, k *netcfg.Kernel, device, ip, mac string) {
	t.Helper()
	k.SetNeighbor(netcfg.Neighbor{Device: device, IP: netip.MustParseAddr(ip), MAC: parseMAC(t, mac)})
}

// settle waits until the kernel has been told all.
func settle(t *testing.T, k *netcfg.Kernel) {
	t.Helper()
	if err := k.SettleNeighbors(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// shown returns the entry for ip on device as ip(8) shows it, "02:00:00:00:00:01 PERMANENT"; "" for none.
func shown(t *testing.T, h *nstest.Host, device, ip string) string {
	t.Helper()
	fields := strings.Fields(h.Run(t, "ip", "neigh", "show", "to", ip, "dev", device, "nud", "all"))
	if len(fields) < 4 || fields[1] != "lladdr" {
		return ""
	}
	return fields[2] + " " + fields[3]
}

func wantShown(t *testing.T, h *nstest.Host, device, ip, want string) {
	t.Helper()
	if got := shown(t, h, device, ip); got != want {
		t.Errorf("neighbor %s on %s = %q, want %q", ip, device, got, want)
	}
}

func TestNeighborsAreSetAndRemoved(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	device(t, router, "eth0")
	router.AddAddr(t, "eth0", "10.1.1.1/24")
	k := open(t, netcfg.Options{})
	pin(t, k, "eth0", "10.1.1.34", mac1)
	settle(t, k)
	wantShown(t, router, "eth0", "10.1.1.34", mac1+" PERMANENT")

	sent := k.Sent()
	pin(t, k, "eth0", "10.1.1.34", mac1)
	settle(t, k)
	if got := k.Sent() - sent; got != 0 {
		t.Errorf("the same neighbor again sent %d messages, want 0", got)
	}

	pin(t, k, "eth0", "10.1.1.34", mac2)
	settle(t, k)
	wantShown(t, router, "eth0", "10.1.1.34", mac2+" PERMANENT")

	k.RemoveNeighbor("eth0", netip.MustParseAddr("10.1.1.34"))
	settle(t, k)
	wantShown(t, router, "eth0", "10.1.1.34", "")
	if faults := k.NeighborFaults(); len(faults) != 0 {
		t.Errorf("faults = %v", faults)
	}
}

func TestNeighborReplacesWhatTheKernelLearned(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	device(t, router, "eth0")
	router.AddAddr(t, "eth0", "10.1.1.1/24")
	router.Run(t, "ip", "neigh", "add", "10.1.1.34", "lladdr", mac2, "nud", "reachable", "dev", "eth0")
	k := open(t, netcfg.Options{})
	pin(t, k, "eth0", "10.1.1.34", mac1)
	settle(t, k)
	wantShown(t, router, "eth0", "10.1.1.34", mac1+" PERMANENT")
}

func TestNeighborsOfOthersAreLeftAlone(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	device(t, router, "eth0")
	router.AddAddr(t, "eth0", "10.1.1.1/24")
	router.Run(t, "ip", "neigh", "add", "10.1.1.34", "lladdr", mac2, "nud", "permanent", "dev", "eth0")
	k := open(t, netcfg.Options{})
	pin(t, k, "eth0", "10.1.1.34", mac1)
	settle(t, k)
	wantShown(t, router, "eth0", "10.1.1.34", mac2+" PERMANENT")
	faults := k.NeighborFaults()
	if len(faults) != 1 || !errors.Is(faults[0].Err, netcfg.ErrForeignNeighbor) || faults[0].MAC.String() != mac1 {
		t.Errorf("faults = %v, want the foreign entry", faults)
	}
	k.RemoveNeighbor("eth0", netip.MustParseAddr("10.1.1.34"))
	k.PruneNeighbors()
	settle(t, k)
	wantShown(t, router, "eth0", "10.1.1.34", mac2+" PERMANENT")
	if faults := k.NeighborFaults(); len(faults) != 0 {
		t.Errorf("faults = %v, want none any more", faults)
	}
}

func TestNeighborsThatCannotBeMarkedAreRefused(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	k := open(t, netcfg.Unmarked(netcfg.Options{}))
	pin(t, k, "eth0", "10.1.1.34", mac1)
	settle(t, k)
	device(t, router, "eth0")
	await(t, k, "eth0 is there", func(s *netcfg.Snapshot) bool { _, ok := s.ByName("eth0"); return ok })
	pin(t, k, "eth0", "10.1.1.35", mac2)
	settle(t, k)
	wantShown(t, router, "eth0", "10.1.1.34", "")
	faults := k.NeighborFaults()
	if len(faults) != 2 || !errors.Is(faults[0].Err, netcfg.ErrUnmarkedNeighbor) || !errors.Is(faults[1].Err, netcfg.ErrUnmarkedNeighbor) {
		t.Errorf("faults = %v, want both", faults)
	}
}

func TestNeighborsOfAnEarlierRunArePruned(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	device(t, router, "eth0")
	router.AddAddr(t, "eth0", "10.1.1.1/24")
	first, stop := start(t, netcfg.Options{})
	defer stop()
	pin(t, first, "eth0", "10.1.1.34", mac1)
	pin(t, first, "eth0", "10.1.1.35", mac2)
	settle(t, first)
	stop()

	second := open(t, netcfg.Options{})
	pin(t, second, "eth0", "10.1.1.35", mac2)
	settle(t, second)
	wantShown(t, router, "eth0", "10.1.1.34", mac1+" PERMANENT") // nobody is unpinned by a restart
	second.PruneNeighbors()
	settle(t, second)
	wantShown(t, router, "eth0", "10.1.1.34", "")
	wantShown(t, router, "eth0", "10.1.1.35", mac2+" PERMANENT")
}

// TestNeighborsComeBack does to a link all that makes the kernel drop its entries.
func TestNeighborsComeBack(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	tests := []struct {
		name string
		harm func(t *testing.T)
	}{
		{"link replaced", func(t *testing.T) {
			router.Delete(t, "eth0")
			device(t, router, "eth0")
			router.AddAddr(t, "eth0", "10.1.1.1/24")
		}},
		{"link down and up", func(t *testing.T) {
			router.Down(t, "eth0")
			router.Up(t, "eth0")
		}},
		{"hardware address exchanged", func(t *testing.T) {
			router.SetMAC(t, "eth0", "02:00:00:00:01:01")
			router.SetMAC(t, "eth0", "02:00:00:00:01:02")
		}},
		{"last address moved away and back", func(t *testing.T) {
			router.DelAddr(t, "eth0", "10.1.1.1/24")
			router.AddAddr(t, "eth0", "10.1.1.1/24")
		}},
		{"link renamed away and back", func(t *testing.T) {
			router.Down(t, "eth0")
			router.Rename(t, "eth0", "other0")
			router.Rename(t, "other0", "eth0")
			router.Up(t, "eth0")
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			device(t, router, "eth0")
			router.AddAddr(t, "eth0", "10.1.1.1/24")
			k, stop := start(t, netcfg.Options{})
			defer stop()
			defer router.Delete(t, "eth0")
			pin(t, k, "eth0", "10.1.1.34", mac1)
			settle(t, k)
			test.harm(t)
			poll(t, router, "eth0", "10.1.1.34", mac1+" PERMANENT")
		})
	}
}

func TestNeighborsAreSetOnALinkThatIsDownOrHasNoAddress(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	device(t, router, "eth0")
	device(t, router, "eth1")
	router.Down(t, "eth0")
	k := open(t, netcfg.Options{})
	pin(t, k, "eth0", "10.1.1.34", mac1)
	pin(t, k, "eth1", "10.1.1.34", mac2)
	settle(t, k)
	router.Up(t, "eth0")
	poll(t, router, "eth0", "10.1.1.34", mac1+" PERMANENT")
	poll(t, router, "eth1", "10.1.1.34", mac2+" PERMANENT")
	if faults := k.NeighborFaults(); len(faults) != 0 {
		t.Errorf("faults = %v", faults)
	}
}

// poll waits until ip shows the entry: nothing announces when the kernel has been told again.
func poll(t *testing.T, h *nstest.Host, device, ip, want string) {
	t.Helper()
	nstest.Poll(t, pollLimit, fmt.Sprintf("neighbor %s on %s = %q", ip, device, want), func() bool {
		return shown(t, h, device, ip) == want
	})
}

func TestNeighborsFollowTheDeviceName(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	k := open(t, netcfg.Options{})
	k.PruneNeighbors()
	pin(t, k, "eth0", "10.1.1.34", mac1)
	settle(t, k) // the device is missing, which is no fault
	if faults := k.NeighborFaults(); len(faults) != 0 {
		t.Errorf("faults = %v", faults)
	}
	device(t, router, "eth0")
	poll(t, router, "eth0", "10.1.1.34", mac1+" PERMANENT")
	router.Run(t, "ip", "link", "property", "add", "dev", "eth0", "altname", "guests") // no name of ours
	router.Down(t, "eth0")
	router.Rename(t, "eth0", "guest0")
	router.Up(t, "guest0")
	poll(t, router, "guest0", "10.1.1.34", "")
}

func TestManyNeighbors(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	const count = 2000
	router := nstest.Here(t)
	device(t, router, "eth0")
	router.AddAddr(t, "eth0", "10.1.0.1/16")
	k := open(t, netcfg.Options{})
	mac := parseMAC(t, mac1)
	each := func(do func(netip.Addr)) {
		for i := range count {
			var ip [4]byte
			binary.BigEndian.PutUint32(ip[:], 0x0A010100+uint32(i))
			do(netip.AddrFrom4(ip))
		}
	}
	permanent := func() int {
		return strings.Count(router.Run(t, "ip", "neigh", "show", "dev", "eth0", "nud", "permanent"), "lladdr "+mac1)
	}
	each(func(ip netip.Addr) { k.SetNeighbor(netcfg.Neighbor{Device: "eth0", IP: ip, MAC: mac}) })
	settle(t, k)
	if got := permanent(); got != count {
		t.Errorf("%d entries, want %d", got, count)
	}
	router.Down(t, "eth0")
	router.Up(t, "eth0")
	nstest.Poll(t, pollLimit, "all entries are back", func() bool { return permanent() == count })

	// One change costs the same beside so many.
	settle(t, k)
	sent := k.Sent()
	pin(t, k, "eth0", "10.1.1.0", mac2)
	settle(t, k)
	if got := k.Sent() - sent; got > 2 {
		t.Errorf("one change sent %d messages, want 2", got)
	}
	each(func(ip netip.Addr) { k.RemoveNeighbor("eth0", ip) })
	settle(t, k)
	if got := permanent(); got != 0 {
		t.Errorf("%d entries, want none", got)
	}
}
