package desired

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vragent/agent/internal/drop"
)

var clock = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// unitOf makes a unit as it lies in the drop directory: a network from "net NAME YAML", a VM from
// "vm NAME YAML".
func unitOf(kind drop.Kind, name, yaml string) drop.Content {
	c := drop.Content{Unit: drop.Unit{Kind: kind, Name: name}, Exists: true, Files: map[string]drop.File{}}
	file := "vm.yaml"
	if kind == drop.Network {
		file = name + ".yaml"
	}
	c.Files[file] = drop.File{Name: file, Data: []byte(yaml)}
	return c
}

func network(name, device, gateway string) drop.Content {
	return unitOf(drop.Network, name, fmt.Sprintf("interface: %s\ngateway: %s\n", device, gateway))
}

// machine makes a VM with NICs like "guest-1 02:00:00:00:00:01 10.1.1.5".
func machine(name string, nics ...string) drop.Content {
	var b strings.Builder
	b.WriteString("nics:\n")
	for _, n := range nics {
		f := strings.Fields(n)
		fmt.Fprintf(&b, "- {network: %s, mac: %q, ipv4: %s}\n", f[0], f[1], f[2])
	}
	return unitOf(drop.VM, name, b.String())
}

func gone(kind drop.Kind, name string) drop.Content {
	return drop.Content{Unit: drop.Unit{Kind: kind, Name: name}}
}

// step drops contents at once and brings into force what can be.
func step(m *Model, contents ...drop.Content) []Move {
	var changes []Change
	for _, c := range contents {
		content, faults := Parse(c, Powers{NetAdmin: true})
		changes = append(changes, Change{Unit: c.Unit, Content: content, Faults: faults})
	}
	moves := m.Judge(changes, clock)
	m.Accept(moves, clock)
	return moves
}

// show lists what is in force and what is wrong, one line a unit.
func show(m *Model) []string {
	var lines []string
	for v := range m.Views() {
		line := v.Unit.Path()
		if v.Have != nil {
			for nic := range nics(v.Have) {
				line += " " + nic.IPv4.String()
			}
			if v.Have.Network != nil {
				line += " " + v.Have.Network.Gateway.String()
			}
		} else {
			line += " -"
		}
		for _, f := range v.Faults {
			line += " | " + f.What
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

func TestConflicts(t *testing.T) {
	const m1, m2, m3 = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"
	net := network("g", "eth0", "10.1.1.1/24")
	a5 := machine("a", "g "+m1+" 10.1.1.5")
	b6 := machine("b", "g "+m2+" 10.1.1.6")
	for name, test := range map[string]struct {
		steps [][]drop.Content
		want  []string
	}{
		"first scan: the path decides": {
			[][]drop.Content{{net, machine("b", "g "+m2+" 10.1.1.5"), a5}},
			[]string{"networks/g.yaml 10.1.1.1/24", "vms/a 10.1.1.5", "vms/b - | nics[0].ipv4: 10.1.1.5 in network g belongs to vms/a"},
		},
		"who is in force keeps the address": {
			[][]drop.Content{{net, b6}, {machine("a", "g "+m1+" 10.1.1.6")}},
			[]string{"networks/g.yaml 10.1.1.1/24", "vms/a - | nics[0].ipv4: 10.1.1.6 in network g belongs to vms/b", "vms/b 10.1.1.6"},
		},
		"the one that waits gets it when it is free": {
			[][]drop.Content{{net, b6}, {machine("a", "g "+m1+" 10.1.1.6")}, {gone(drop.VM, "b")}},
			[]string{"networks/g.yaml 10.1.1.1/24", "vms/a 10.1.1.6"},
		},
		"of two that wait the first goes first": {
			[][]drop.Content{{net, b6}, {machine("z", "g "+m1+" 10.1.1.6")}, {machine("c", "g "+m3+" 10.1.1.6")}, {gone(drop.VM, "b")}},
			[]string{"networks/g.yaml 10.1.1.1/24", "vms/c - | nics[0].ipv4: 10.1.1.6 in network g belongs to vms/z", "vms/z 10.1.1.6"},
		},
		"swap in two steps": {
			[][]drop.Content{{net, a5, b6}, {machine("a", "g "+m1+" 10.1.1.6")}, {machine("b", "g "+m2+" 10.1.1.5")}},
			[]string{"networks/g.yaml 10.1.1.1/24", "vms/a 10.1.1.6", "vms/b 10.1.1.5"},
		},
		"swap in the other order": {
			[][]drop.Content{{net, a5, b6}, {machine("b", "g "+m2+" 10.1.1.5")}, {machine("a", "g "+m1+" 10.1.1.6")}},
			[]string{"networks/g.yaml 10.1.1.1/24", "vms/a 10.1.1.6", "vms/b 10.1.1.5"},
		},
		"half a swap changes nothing": {
			[][]drop.Content{{net, a5, b6}, {machine("a", "g "+m1+" 10.1.1.6")}},
			[]string{"networks/g.yaml 10.1.1.1/24", "vms/a 10.1.1.5 | nics[0].ipv4: 10.1.1.6 in network g belongs to vms/b", "vms/b 10.1.1.6"},
		},
		"a ring of three": {
			[][]drop.Content{{net, a5, b6, machine("c", "g "+m3+" 10.1.1.7")},
				{machine("a", "g "+m1+" 10.1.1.6")}, {machine("b", "g "+m2+" 10.1.1.7")}, {machine("c", "g "+m3+" 10.1.1.5")}},
			[]string{"networks/g.yaml 10.1.1.1/24", "vms/a 10.1.1.6", "vms/b 10.1.1.7", "vms/c 10.1.1.5"},
		},
		"a rejected one holds its old address": {
			[][]drop.Content{{net, a5, b6}, {machine("a", "g "+m1+" 10.1.1.6")}, {machine("c", "g "+m3+" 10.1.1.5")}},
			[]string{"networks/g.yaml 10.1.1.1/24", "vms/a 10.1.1.5 | nics[0].ipv4: 10.1.1.6 in network g belongs to vms/b",
				"vms/b 10.1.1.6", "vms/c - | nics[0].ipv4: 10.1.1.5 in network g belongs to vms/a"},
		},
		"an invalid content holds the last good one's address": {
			[][]drop.Content{{net, a5}, {unitOf(drop.VM, "a", "nics: 3\n")}, {machine("c", "g "+m3+" 10.1.1.5")}},
			[]string{"networks/g.yaml 10.1.1.1/24", "vms/a 10.1.1.5 | nics: is a number; it must be a list ([a, b])",
				"vms/c - | nics[0].ipv4: 10.1.1.5 in network g belongs to vms/a"},
		},
		"same MAC": {
			[][]drop.Content{{net, a5}, {machine("b", "g "+m1+" 10.1.1.6")}},
			[]string{"networks/g.yaml 10.1.1.1/24", "vms/a 10.1.1.5", "vms/b - | nics[0].mac: 02:00:00:00:00:01 in network g belongs to vms/a"},
		},
		"one MAC may be in two networks on two devices": {
			[][]drop.Content{{net, network("h", "eth1", "10.1.1.1/24"), a5, machine("b", "h "+m1+" 10.1.1.5")}},
			[]string{"networks/g.yaml 10.1.1.1/24", "networks/h.yaml 10.1.1.1/24", "vms/a 10.1.1.5", "vms/b 10.1.1.5"},
		},
		"but not on one device": {
			[][]drop.Content{{net, network("h", "eth0", "10.2.2.1/24"), a5, machine("b", "h "+m1+" 10.2.2.5")}},
			[]string{"networks/g.yaml 10.1.1.1/24", "networks/h.yaml 10.2.2.1/24", "vms/a 10.1.1.5",
				"vms/b - | nics[0].mac: 02:00:00:00:00:01 in network g, on the same device, belongs to vms/a"},
		},
		"nor may a network move there": {
			[][]drop.Content{{net, network("h", "eth1", "10.2.2.1/24"), a5, machine("b", "h "+m1+" 10.2.2.5")}, {network("h", "eth0", "10.2.2.1/24")}},
			[]string{"networks/g.yaml 10.1.1.1/24",
				"networks/h.yaml 10.2.2.1/24 | interface: 02:00:00:00:00:01 of vms/b is in network g on the same device too", "vms/a 10.1.1.5", "vms/b 10.2.2.5"},
		},
		"outside the network, and the gateway's own": {
			[][]drop.Content{{net, machine("a", "g "+m1+" 10.1.2.5"), machine("b", "g "+m2+" 10.1.1.1"), machine("c", "g "+m3+" 10.1.1.255")}},
			[]string{"networks/g.yaml 10.1.1.1/24",
				"vms/a - | nics[0].ipv4: 10.1.2.5 is outside 10.1.1.0/24, the network of networks/g.yaml",
				"vms/b - | nics[0].ipv4: 10.1.1.1 is the gateway's address in networks/g.yaml",
				"vms/c - | nics[0].ipv4: 10.1.1.255 is the broadcast address of 10.1.1.0/24, the network of networks/g.yaml"},
		},
		"a network does not move away under a VM": {
			[][]drop.Content{{net, a5}, {network("g", "eth0", "10.2.2.1/24")}},
			[]string{"networks/g.yaml 10.1.1.1/24 | gateway: 10.1.1.5 of vms/a is outside 10.2.2.0/24, the network of networks/g.yaml", "vms/a 10.1.1.5"},
		},
		"network and VMs move together, file by file": {
			[][]drop.Content{{net, a5, b6}, {network("g", "eth0", "10.2.2.1/24")}, {machine("a", "g "+m1+" 10.2.2.5")}, {machine("b", "g "+m2+" 10.2.2.6")}},
			[]string{"networks/g.yaml 10.2.2.1/24", "vms/a 10.2.2.5", "vms/b 10.2.2.6"},
		},
		"the network last": {
			[][]drop.Content{{net, a5, b6}, {machine("a", "g "+m1+" 10.2.2.5")}, {machine("b", "g "+m2+" 10.2.2.6")}, {network("g", "eth0", "10.2.2.1/24")}},
			[]string{"networks/g.yaml 10.2.2.1/24", "vms/a 10.2.2.5", "vms/b 10.2.2.6"},
		},
		"a VM that only waits for its network does not hold it up": {
			[][]drop.Content{{machine("a", "g "+m1+" 10.9.9.9")}, {net}},
			[]string{"networks/g.yaml 10.1.1.1/24", "vms/a 10.9.9.9"},
		},
		"overlapping networks on one device": {
			[][]drop.Content{{net}, {network("h", "eth0", "10.1.0.1/16")}},
			[]string{"networks/g.yaml 10.1.1.1/24", "networks/h.yaml - | gateway: 10.1.0.0/16 overlaps 10.1.1.0/24 of networks/g.yaml on the same device"},
		},
		"the device is free again": {
			[][]drop.Content{{net}, {network("h", "eth0", "10.1.0.1/16")}, {gone(drop.Network, "g")}},
			[]string{"networks/h.yaml 10.1.0.1/16"},
		},
		"a blocked claim does not block others": {
			// a wants what c holds and what b wants; b must not lose against a claim that fails anyway.
			[][]drop.Content{{net, machine("c", "g "+m3+" 10.1.1.9")}, {machine("a", "g "+m1+" 10.1.1.9", "g 02:00:00:00:00:09 10.1.1.6"), b6}},
			[]string{"networks/g.yaml 10.1.1.1/24", "vms/a - | nics[0].ipv4: 10.1.1.9 in network g belongs to vms/c | nics[1].ipv4: 10.1.1.6 in network g belongs to vms/b", "vms/b 10.1.1.6", "vms/c 10.1.1.9"},
		},
		"rename of a folder": {
			[][]drop.Content{{net, a5}, {gone(drop.VM, "a"), machine("z", "g "+m1+" 10.1.1.5")}},
			[]string{"networks/g.yaml 10.1.1.1/24", "vms/z 10.1.1.5"},
		},
		"gone and nothing left": {[][]drop.Content{{net, a5}, {gone(drop.VM, "a"), gone(drop.Network, "g")}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			m := NewModel()
			for _, s := range test.steps {
				step(m, s...)
			}
			if diff := cmp.Diff(test.want, show(m)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestFaultOfAConflictNamesThePlace(t *testing.T) {
	m := NewModel()
	step(m, network("g", "eth0", "10.1.1.1/24"), machine("a", "g 02:00:00:00:00:01 10.1.1.5"), machine("b", "g 02:00:00:00:00:02 10.1.1.5"))
	v, _ := m.View(drop.Unit{Kind: drop.VM, Name: "b"})
	if len(v.Faults) != 1 || v.Faults[0].Error() != "vms/b/vm.yaml:2:48: nics[0].ipv4: 10.1.1.5 in network g belongs to vms/a" {
		t.Errorf("faults = %v", v.Faults)
	}
}

func TestProbeTellsWithoutChangingAnything(t *testing.T) {
	m := NewModel()
	step(m, network("g", "eth0", "10.1.1.1/24"), machine("a", "g 02:00:00:00:00:01 10.1.1.5"))
	before := show(m)
	ask := func(c drop.Content) map[drop.Unit][]Fault {
		content, faults := Parse(c, Powers{})
		return m.Probe([]Change{{Unit: c.Unit, Content: content, Faults: faults}})
	}
	if r := ask(machine("b", "g 02:00:00:00:00:02 10.1.1.5")); len(r) != 1 {
		t.Errorf("a taken address was not refused: %v", r)
	}
	if r := ask(machine("b", "g 02:00:00:00:00:02 10.1.1.6")); len(r) != 0 {
		t.Errorf("a free address was refused: %v", r)
	}
	if r := ask(machine("b", "later 02:00:00:00:00:02 10.1.1.6")); len(r) != 0 {
		t.Errorf("a VM whose network is to come was refused: %v", r)
	}
	if diff := cmp.Diff(before, show(m)); diff != "" {
		t.Errorf("asking changed something:\n%s", diff)
	}
}

func TestRefusedMovesAreTriedAgain(t *testing.T) {
	m := NewModel()
	content, _ := Parse(network("g", "eth0", "10.1.1.1/24"), Powers{})
	moves := m.Judge([]Change{{Unit: content.Unit, Content: content}}, clock)
	m.Refuse(moves, fmt.Errorf("no space left on device"), clock)
	if v, _ := m.View(content.Unit); v.Have != nil || len(v.Faults) != 1 {
		t.Fatalf("after a refusal: %+v", v)
	}
	m.Accept(m.Judge(m.Retry(), clock), clock)
	if v, _ := m.View(content.Unit); v.Have == nil || len(v.Faults) != 0 {
		t.Errorf("after the retry: %+v", v)
	}
}

// TestRandomHistories drops random contents over few addresses and checks after each step what must
// always hold.
func TestRandomHistories(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		m := NewModel()
		disk := map[drop.Unit]drop.Content{}
		for range 40 {
			var batch []drop.Content
			for range 1 + rnd.IntN(3) {
				c := randomUnit(rnd)
				if !slices.ContainsFunc(batch, func(o drop.Content) bool { return o.Unit == c.Unit }) {
					batch = append(batch, c)
				}
			}
			before := map[drop.Unit]*Content{}
			for v := range m.Views() {
				if v.Settled {
					before[v.Unit] = v.Have
				}
			}
			for _, c := range batch {
				delete(before, c.Unit)
				disk[c.Unit] = c
			}
			step(m, batch...)
			checkNoConflict(t, m)
			for id, have := range before {
				if v, ok := m.View(id); !ok || v.Have != have {
					t.Fatalf("seed %d: %v was in force, undisputed and untouched, and lost its place", seed, id)
				}
			}
			for id, c := range disk {
				v, ok := m.View(id)
				if !ok {
					if c.Exists {
						t.Fatalf("seed %d: %v is on disk and unknown", seed, id)
					}
					continue
				}
				if !v.Settled && len(v.Faults) == 0 {
					t.Fatalf("seed %d: %v is not in force and nobody says why", seed, id)
				}
				if !c.Exists && v.Have != nil {
					t.Fatalf("seed %d: %v is gone and in force", seed, id)
				}
			}
			// What waits must have something in its way: judging again moves nothing.
			if moves := m.Judge(m.Retry(), clock); len(moves) > 0 {
				t.Fatalf("seed %d: %v could have moved at once", seed, moves[0].Unit)
			}
			if len(m.wantIP) > 0 && len(m.unsettled) == 0 {
				t.Fatalf("seed %d: an index outlived its units", seed)
			}
		}
		// With all VMs gone nothing may be left over.
		var all []drop.Content
		for id := range disk {
			all = append(all, drop.Content{Unit: id})
		}
		step(m, all...)
		if n := len(m.units) + len(m.holdIP) + len(m.holdMAC) + len(m.wantIP) + len(m.wantMAC) + len(m.unsettled) + len(m.networks); n > 0 {
			t.Fatalf("seed %d: %d things are left of nothing: %v", seed, n, slices.Collect(maps.Keys(m.units)))
		}
	}
}

func randomUnit(rnd *rand.Rand) drop.Content {
	if rnd.IntN(6) == 0 {
		name := string(rune('m' + rnd.IntN(3)))
		if rnd.IntN(4) == 0 {
			return gone(drop.Network, name)
		}
		return network(name, fmt.Sprintf("eth%d", rnd.IntN(2)), []string{"10.1.1.1/24", "10.1.1.1/29", "10.2.2.1/24"}[rnd.IntN(3)])
	}
	name := string(rune('a' + rnd.IntN(6)))
	switch rnd.IntN(8) {
	case 0:
		return gone(drop.VM, name)
	case 1:
		return unitOf(drop.VM, name, "nics: x\n")
	}
	var list []string
	for range 1 + rnd.IntN(2) {
		list = append(list, fmt.Sprintf("%c 02:00:00:00:00:%02x 10.%d.%[3]d.%[4]d", 'm'+rnd.IntN(3), rnd.IntN(6), 1+rnd.IntN(2), 2+rnd.IntN(9)))
	}
	return machine(name, list...)
}

// checkNoConflict is the slow and simple statement of what must never be served at once.
func checkNoConflict(t *testing.T, m *Model) {
	t.Helper()
	type claim struct {
		unit drop.Unit
		nic  *NIC
	}
	var claims []claim
	for v := range m.Views() {
		for nic := range nics(v.Have) {
			if f, rejected := m.Obstacle(v.Unit.Name, nic); f.What == "" && !rejected {
				claims = append(claims, claim{v.Unit, nic})
			}
		}
	}
	for i, a := range claims {
		for _, b := range claims[:i] {
			if a.nic.Network == b.nic.Network && a.nic.IPv4 == b.nic.IPv4 {
				t.Fatalf("%v and %v both have %s in %s", a.unit, b.unit, a.nic.IPv4, a.nic.Network)
			}
			na, nb := m.Network(a.nic.Network), m.Network(b.nic.Network)
			same := a.nic.Network == b.nic.Network || na != nil && nb != nil && na.sameDevice(nb)
			if a.unit != b.unit && same && *a.nic.MAC == *b.nic.MAC {
				t.Fatalf("%v and %v both have %s", a.unit, b.unit, a.nic.MAC)
			}
		}
	}
	var nets []*Network
	for n := range m.Networks() {
		for _, o := range nets {
			if n.sameDevice(o) && n.Subnet().Overlaps(o.Subnet()) {
				t.Fatalf("networks %s and %s overlap on one device", n.Name, o.Name)
			}
		}
		nets = append(nets, n)
	}
}

func BenchmarkJudgeOneVM(b *testing.B) {
	for _, n := range []int{100, 10_000, 50_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m := NewModel()
			all := []drop.Content{network("g", "eth0", "10.0.0.1/8")}
			for i := range n {
				all = append(all, machine(fmt.Sprintf("v%d", i), fmt.Sprintf("g 02:00:00:%02x:%02x:%02x 10.%d.%d.%d", i>>16, i>>8&255, i&255, 1+i>>16, i>>8&255, i&255)))
			}
			step(m, all...)
			one, _ := Parse(machine("one", "g 02:00:01:00:00:01 10.200.1.1"), Powers{})
			b.ReportAllocs()
			for b.Loop() {
				m.Accept(m.Judge([]Change{{Unit: one.Unit, Content: one}}, clock), clock)
				m.Accept(m.Judge([]Change{{Unit: one.Unit}}, clock), clock)
			}
		})
	}
}
