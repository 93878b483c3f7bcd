package desired

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"vragent/agent/internal/drop"
	"vragent/agent/internal/strict"
	"vragent/dhcp"
)

// unit is what the model knows of a unit.
type unit struct {
	id     drop.Unit
	want   *Content // newest valid content; nil: none, or gone
	have   *Content // in force
	turn   uint64   // when want was put forward; earlier goes first
	faults []Fault  // why the newest content on disk is not valid, or why want is not in force
	notes  []string
	since  time.Time
}

func (u *unit) settled() bool { return u.want == u.have }

// Model holds all units. It is for one goroutine at a time.
type Model struct {
	units map[drop.Unit]*unit
	turn  uint64

	networks  map[string]*unit             // of kind network
	unsettled map[*unit]struct{}           // want differs from have
	holdIP    map[ipKey]*unit              // by contents in force, which never conflict
	holdMAC   map[macKey]*unit             // "
	wantIP    map[ipKey]map[*unit]struct{} // by wanted contents of unsettled units
	wantMAC   map[dhcp.MAC]map[*unit]struct{}
}

type ipKey struct {
	network string
	ip      netip.Addr
}

type macKey struct {
	network string
	mac     dhcp.MAC
}

// NewModel returns an empty model.
func NewModel() *Model {
	return &Model{
		units:     make(map[drop.Unit]*unit),
		networks:  make(map[string]*unit),
		unsettled: make(map[*unit]struct{}),
		holdIP:    make(map[ipKey]*unit),
		holdMAC:   make(map[macKey]*unit),
		wantIP:    make(map[ipKey]map[*unit]struct{}),
		wantMAC:   make(map[dhcp.MAC]map[*unit]struct{}),
	}
}

// Change is news of one unit: its newest content is Content, or is invalid for Faults, or, with
// neither, is gone.
type Change struct {
	Unit    drop.Unit
	Content *Content
	Faults  []Fault
	Notes   []string
}

// Move is a unit's step from one content in force to another; nil stands for none.
type Move struct {
	Unit drop.Unit
	Old  *Content
	New  *Content
}

// Judge takes changes in as the newest contents and returns the moves that bring all into force
// that can be. It changes nothing that is in force: Accept does, once the moves are on disk.
// Changes of one call count as simultaneous; between those that nothing in force decides, the
// unit's path does.
func (m *Model) Judge(changes []Change, now time.Time) []Move {
	m.turn++
	touched := make([]*unit, 0, len(changes))
	before := make(map[*unit]string, len(changes))
	left := make(map[*unit]*Content, len(changes)) // wanted until now; others may wait for it to go
	for _, c := range changes {
		u := m.units[c.Unit]
		if u == nil {
			if c.Content == nil && len(c.Faults) == 0 {
				continue // gone before it was ever seen
			}
			u = &unit{id: c.Unit, since: now}
			m.units[c.Unit] = u
			if c.Unit.Kind == drop.Network {
				m.networks[c.Unit.Name] = u
			}
		}
		before[u] = verdict(u)
		touched = append(touched, u)
		left[u] = u.want
		u.notes = c.Notes
		if len(c.Faults) > 0 {
			// The newest valid content stays wanted; what was waiting for a place goes on waiting
			// only if it is in force.
			m.setWant(u, u.have)
			u.faults = c.Faults
			continue
		}
		u.faults = nil
		m.setWant(u, c.Content)
	}
	r := m.resolve(touched, left, nil, nil)
	var moves []Move
	for u := range r.moving {
		if _, seen := before[u]; !seen {
			before[u] = verdict(u)
		}
		moves = append(moves, Move{Unit: u.id, Old: u.have, New: u.want})
		u.faults = nil
	}
	for u, faults := range r.blocked {
		if _, seen := before[u]; !seen {
			before[u] = verdict(u)
		}
		u.faults = faults
	}
	for u, was := range before {
		if verdict(u) != was {
			u.since = now
		}
		m.forget(u)
	}
	slices.SortFunc(moves, func(a, b Move) int { return compareUnits(a.Unit, b.Unit) })
	return moves
}

func verdict(u *unit) string { return fmt.Sprint(len(u.faults) > 0, u.have != nil) }

// Probe tells what Judge would reject the changes for, one after the other, and changes nothing. Units
// that it does not name would come into force or be pending.
func (m *Model) Probe(changes []Change) map[drop.Unit][]Fault {
	overlay := make(map[*unit]*Content, len(changes))
	turns := make(map[*unit]uint64, len(changes))
	rejected := make(map[drop.Unit][]Fault)
	var touched []*unit
	for i, c := range changes {
		if len(c.Faults) > 0 {
			rejected[c.Unit] = c.Faults
			continue
		}
		u := m.units[c.Unit]
		if u == nil {
			u = &unit{id: c.Unit}
		}
		overlay[u] = c.Content
		turns[u] = m.turn + 1 + uint64(i)
		touched = append(touched, u)
	}
	r := m.resolve(touched, nil, overlay, turns)
	for u, faults := range r.blocked {
		if _, named := overlay[u]; named {
			rejected[u.id] = faults
		}
	}
	return rejected
}

// Accept puts moves that Judge returned in force.
func (m *Model) Accept(moves []Move, now time.Time) {
	for _, mv := range moves {
		if u := m.units[mv.Unit]; u != nil {
			m.drop(u, u.have)
		}
	}
	for _, mv := range moves {
		u := m.units[mv.Unit]
		if u == nil {
			continue
		}
		u.have = mv.New
		m.hold(u, u.have)
		m.setWant(u, u.want) // settled now, perhaps
		u.since = now
		m.forget(u)
	}
}

// Restore puts contents in force that were so before a restart, in the order given, which is the
// one that they were accepted in. One that conflicts with an earlier one is left out and returned.
func (m *Model) Restore(contents []*Content, now time.Time) (left []*Content) {
	for _, c := range contents {
		moves := m.Judge([]Change{{Unit: c.Unit, Content: c, Notes: c.Notes}}, now)
		if len(moves) == 0 {
			left = append(left, c)
			m.Judge([]Change{{Unit: c.Unit}}, now)
			continue
		}
		m.Accept(moves, now)
	}
	return left
}

// Refuse records why moves could not be put in force; the units stay as they are, and a later Judge
// that names them tries again.
func (m *Model) Refuse(moves []Move, why error, now time.Time) {
	for _, mv := range moves {
		if u := m.units[mv.Unit]; u != nil {
			u.faults = []Fault{{File: mv.Unit.Path(), Fault: strict.Fault{What: why.Error()}}}
			u.since = now
		}
	}
}

// Retry names again what Refuse held back, for another Judge.
func (m *Model) Retry() []Change {
	var changes []Change
	for u := range m.unsettled {
		changes = append(changes, Change{Unit: u.id, Content: u.want, Notes: u.notes})
	}
	return changes
}

// forget removes a unit that nothing is left of.
func (m *Model) forget(u *unit) {
	if u.want == nil && u.have == nil && len(u.faults) == 0 {
		delete(m.units, u.id)
		if u.id.Kind == drop.Network && m.networks[u.id.Name] == u {
			delete(m.networks, u.id.Name)
		}
	}
}

// setWant makes c the newest content of u and keeps the indexes of the unsettled.
func (m *Model) setWant(u *unit, c *Content) {
	if _, ok := m.unsettled[u]; ok {
		delete(m.unsettled, u)
		for nic := range nics(u.want) {
			unindex(m.wantIP, ipKey{nic.Network, nic.IPv4}, u)
			if nic.MAC != nil {
				unindex(m.wantMAC, *nic.MAC, u)
			}
		}
	}
	if !reflect.DeepEqual(u.want, c) {
		u.want, u.turn = c, m.turn // what says the same again keeps its turn
	}
	if u.settled() {
		return
	}
	m.unsettled[u] = struct{}{}
	for nic := range nics(u.want) {
		index(m.wantIP, ipKey{nic.Network, nic.IPv4}, u)
		if nic.MAC != nil {
			index(m.wantMAC, *nic.MAC, u)
		}
	}
}

func (m *Model) hold(u *unit, c *Content) {
	for nic := range nics(c) {
		m.holdIP[ipKey{nic.Network, nic.IPv4}] = u
		if nic.MAC != nil {
			m.holdMAC[macKey{nic.Network, *nic.MAC}] = u
		}
	}
}

func (m *Model) drop(u *unit, c *Content) {
	for nic := range nics(c) {
		delete(m.holdIP, ipKey{nic.Network, nic.IPv4})
		if nic.MAC != nil {
			delete(m.holdMAC, macKey{nic.Network, *nic.MAC})
		}
	}
}

func index[K comparable](idx map[K]map[*unit]struct{}, key K, u *unit) {
	if idx[key] == nil {
		idx[key] = make(map[*unit]struct{}, 1)
	}
	idx[key][u] = struct{}{}
}

func unindex[K comparable](idx map[K]map[*unit]struct{}, key K, u *unit) {
	delete(idx[key], u)
	if len(idx[key]) == 0 {
		delete(idx, key)
	}
}

// nics yields the NICs of a VM's content.
func nics(c *Content) iter.Seq[*NIC] {
	return func(yield func(*NIC) bool) {
		if c == nil || c.VM == nil {
			return
		}
		for i := range c.VM.NICs {
			if !yield(&c.VM.NICs[i]) {
				return
			}
		}
	}
}

func compareUnits(a, b drop.Unit) int {
	// As paths sort: networks before vms, then by name.
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
}

// View is what is known of one unit.
type View struct {
	Unit    drop.Unit
	Have    *Content // in force
	Want    *Content // newest valid one
	Faults  []Fault  // why the newest content is not in force
	Notes   []string
	Since   time.Time
	Settled bool // the newest content on disk is the one in force
}

// View returns what is known of a unit.
func (m *Model) View(id drop.Unit) (View, bool) {
	u := m.units[id]
	if u == nil {
		return View{}, false
	}
	return u.view(), true
}

func (u *unit) view() View {
	return View{Unit: u.id, Have: u.have, Want: u.want, Faults: u.faults, Notes: u.notes, Since: u.since,
		Settled: u.settled() && len(u.faults) == 0}
}

// Views yields all units, in no order.
func (m *Model) Views() iter.Seq[View] {
	return func(yield func(View) bool) {
		for _, u := range m.units {
			if !yield(u.view()) {
				return
			}
		}
	}
}

// Network returns the content in force of a network.
func (m *Model) Network(name string) *Network {
	if u := m.networks[name]; u != nil && u.have != nil {
		return u.have.Network
	}
	return nil
}

// Networks yields the networks in force, in no order.
func (m *Model) Networks() iter.Seq[*Network] {
	return func(yield func(*Network) bool) {
		for _, u := range m.networks {
			if u.have != nil && !yield(u.have.Network) {
				return
			}
		}
	}
}

// Holder returns the VM in force that an address of a network belongs to.
func (m *Model) Holder(network string, ip netip.Addr) *VM {
	if u := m.holdIP[ipKey{network, ip}]; u != nil {
		return u.have.VM
	}
	return nil
}

// earlier tells whether a's content was accepted before b's.
func earlier(a, b *unit) bool {
	return cmp.Or(cmp.Compare(a.turn, b.turn), compareUnits(a.id, b.id)) < 0
}

// HolderOfMAC returns the VM in force that a MAC in a network belongs to.
func (m *Model) HolderOfMAC(network string, mac dhcp.MAC) *VM {
	if u := m.holdMAC[macKey{network, mac}]; u != nil {
		return u.have.VM
	}
	return nil
}

// Users yields the VMs in force that have a NIC in a network, in no order. It looks at all VMs.
func (m *Model) Users(network string) iter.Seq[*Content] {
	return func(yield func(*Content) bool) {
		for _, u := range m.units {
			for nic := range nics(u.have) {
				if nic.Network == network {
					if !yield(u.have) {
						return
					}
					break
				}
			}
		}
	}
}

// Obstacle tells what keeps a NIC of a VM in force from being served, as far as the files go. Its
// network is not there: that passes by itself, and rejected is false. Or the network came later than
// the VM and the NIC does not fit into it, or brought its MAC together with another VM's on one
// device: the VM was accepted while nothing spoke against it, and rejected is true.
func (m *Model) Obstacle(vm string, nic *NIC) (f Fault, rejected bool) {
	id := drop.Unit{Kind: drop.VM, Name: vm}
	fault := func(p strict.Pos, format string, args ...any) Fault {
		return Fault{File: id.Path() + "/vm.yaml", Fault: strict.Fault{Line: p.Line, Column: p.Column, What: fmt.Sprintf(format, args...)}}
	}
	net := m.Network(nic.Network)
	if net == nil {
		path := drop.Unit{Kind: drop.Network, Name: nic.Network}.Path()
		return fault(nic.At, "waits for its network: %s is not there or not in force yet", path), false
	}
	if why := misfit(net, nic); why != "" {
		return fault(nic.IPv4At, "%s %s", nic.IPv4, why), true
	}
	if nic.MAC == nil {
		return Fault{}, false
	}
	for name, u := range m.networks {
		if name == nic.Network || u.have == nil || !u.have.Network.sameDevice(net) {
			continue
		}
		if other := m.holdMAC[macKey{name, *nic.MAC}]; other != nil && other.id != id && earlier(other, m.units[id]) {
			return fault(nic.MACAt, "%s in network %s, on the same device, belongs to %s", nic.MAC, name, other.id.Path()), true
		}
	}
	return Fault{}, false
}
