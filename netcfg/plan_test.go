package netcfg_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"vragent/netcfg"
)

// link returns a link that holds addresses: "+10.1.1.1/24" is ours, "10.1.1.1/24" somebody else's.
func link(index int, name string, addresses ...string) netcfg.Link {
	l := netcfg.Link{Index: index, Name: name, Up: true, MTU: 1500}
	for _, a := range addresses {
		own := a[0] == '+'
		if own {
			a = a[1:]
		}
		l.Addrs = append(l.Addrs, netcfg.Addr{Prefix: netip.MustParsePrefix(a), Global: true, Own: own})
	}
	return l
}

func TestDiff(t *testing.T) {
	tests := []struct {
		name        string
		links       []netcfg.Link
		plan        []netcfg.Address
		add, remove []netcfg.Address
	}{
		{name: "nothing wanted, nothing there"},
		{
			name:  "adds what is lacking, in the plan's order, once",
			links: []netcfg.Link{link(2, "eth0", "10.9.9.9/24")},
			plan:  []netcfg.Address{address("eth0", "10.2.2.1/24"), address("eth0", "10.1.1.1/24"), address("eth0", "10.2.2.1/24")},
			add:   []netcfg.Address{address("eth0", "10.2.2.1/24"), address("eth0", "10.1.1.1/24")},
		},
		{
			name:  "leaves what is there, whoever added it",
			links: []netcfg.Link{link(2, "eth0", "10.1.1.1/24", "+10.2.2.1/24")},
			plan:  []netcfg.Address{address("eth0", "10.1.1.1/24"), address("eth0", "10.2.2.1/24")},
		},
		{
			name:   "removes only what is ours",
			links:  []netcfg.Link{link(2, "eth0", "10.1.1.1/24", "+10.2.2.1/24")},
			remove: []netcfg.Address{address("eth0", "10.2.2.1/24")},
		},
		{
			name:  "waits for a missing device",
			links: []netcfg.Link{link(2, "eth0")},
			plan:  []netcfg.Address{address("eth1", "10.1.1.1/24")},
		},
		{
			name:   "moves between devices",
			links:  []netcfg.Link{link(2, "eth0", "+10.1.1.1/24"), link(3, "eth1")},
			plan:   []netcfg.Address{address("eth1", "10.1.1.1/24")},
			add:    []netcfg.Address{address("eth1", "10.1.1.1/24")},
			remove: []netcfg.Address{address("eth0", "10.1.1.1/24")},
		},
		{
			name:   "another prefix length is another address",
			links:  []netcfg.Link{link(2, "eth0", "+10.1.1.1/24")},
			plan:   []netcfg.Address{address("eth0", "10.1.1.1/16")},
			add:    []netcfg.Address{address("eth0", "10.1.1.1/16")},
			remove: []netcfg.Address{address("eth0", "10.1.1.1/24")},
		},
		{
			name:  "passes over what is no IPv4 address",
			links: []netcfg.Link{link(2, "eth0")},
			plan:  []netcfg.Address{{Device: "eth0"}, address("eth0", "2001:db8::1/64"), {Prefix: netip.MustParsePrefix("10.1.1.1/24")}},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			add, remove := netcfg.Diff(netcfg.NewSnapshot(test.links), plan(test.plan...))
			if !slices.Equal(add, test.add) {
				t.Errorf("add = %v, want %v", add, test.add)
			}
			if !slices.Equal(remove, test.remove) {
				t.Errorf("remove = %v, want %v", remove, test.remove)
			}
		})
	}
}

// FuzzDiff checks what must hold for any state and plan: carrying the difference out gives a state that
// holds the plan, all foreign addresses and nothing else, and from which nothing is left to do.
func FuzzDiff(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(seed, uint8(seed%7), uint8(seed*3))
	}
	f.Fuzz(func(t *testing.T, seed uint64, devices, addresses uint8) {
		random := rand.New(rand.NewPCG(seed, 0))
		pick := func() netcfg.Address {
			ip := netip.AddrFrom4([4]byte{10, 1, byte(random.IntN(2)), byte(random.IntN(8))})
			return netcfg.Address{Device: fmt.Sprintf("eth%d", random.IntN(5)), Prefix: netip.PrefixFrom(ip, 24+random.IntN(2))}
		}
		state := map[netcfg.Address]bool{} // true: ours
		for range addresses {
			state[pick()] = random.IntN(2) == 0
		}
		var wanted netcfg.Plan
		for range random.IntN(1 + int(addresses)) {
			wanted.Addresses = append(wanted.Addresses, pick())
		}
		exists := func(device string) bool { return device < fmt.Sprintf("eth%d", devices%6) }
		snapshot := func() *netcfg.Snapshot {
			var links []netcfg.Link
			for i := range devices % 6 {
				l := netcfg.Link{Index: int(i) + 1, Name: fmt.Sprintf("eth%d", i)}
				for a, own := range state {
					if a.Device == l.Name {
						l.Addrs = append(l.Addrs, netcfg.Addr{Prefix: a.Prefix, Own: own})
					}
				}
				links = append(links, l)
			}
			return netcfg.NewSnapshot(links)
		}

		before := len(state)
		add, remove := netcfg.Diff(snapshot(), wanted)
		for _, a := range add {
			if _, ok := state[a]; ok || !exists(a.Device) {
				t.Errorf("adds %s, which is there or has no device", a)
			}
			state[a] = true
		}
		for _, a := range remove {
			if own := state[a]; !own || slices.Contains(wanted.Addresses, a) {
				t.Errorf("removes %s, which is not ours or is wanted", a)
			}
			delete(state, a)
		}
		if len(state) != before+len(add)-len(remove) {
			t.Errorf("adds or removes twice: %v, %v", add, remove)
		}
		for _, a := range wanted.Addresses {
			if _, ok := state[a]; !ok && exists(a.Device) {
				t.Errorf("lacks %s", a)
			}
		}
		if add, remove := netcfg.Diff(snapshot(), wanted); len(add)+len(remove) > 0 {
			t.Errorf("is not done after one round: %v, %v", add, remove)
		}
	})
}
