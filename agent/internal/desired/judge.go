package desired

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"vragent/agent/internal/drop"
	"vragent/agent/internal/strict"
	"vragent/dhcp"
)

// resolution is a set of moves that leaves no conflict, and why the others must wait.
type resolution struct {
	m       *Model
	overlay map[*unit]*Content   // contents that are only asked about
	turns   map[*unit]uint64     // of the overlay
	moving  map[*unit]struct{}   // go from have to wanted
	open    map[*unit]struct{}   // those of moving that may yet be taken back
	blocked map[*unit][]Fault    // stay, and why
	byIP    map[ipKey][]*unit    // of the overlay
	byMAC   map[dhcp.MAC][]*unit // of the overlay
	extra   map[string]*unit     // networks of the overlay that the model does not know
	part    map[*unit]struct{}   // all that is looked at
}

// resolve finds the largest set of moves, as far as the rules of precedence allow, among the
// touched units and those unsettled ones that share something with them: an address, a MAC or a
// network. Everything else stays as it is, which keeps the cost of a change independent of the
// number of units.
//
// It starts with all of them moving, so that two VMs can swap addresses, and takes moves back: first
// those that run into something that is settled, then, of two in conflict, the one with the weaker
// claim. A taken-back move leaves its old content in force, which may block others in turn.
func (m *Model) resolve(touched []*unit, left, overlay map[*unit]*Content, turns map[*unit]uint64) *resolution {
	r := &resolution{
		m: m, overlay: overlay, turns: turns,
		moving:  make(map[*unit]struct{}),
		open:    make(map[*unit]struct{}),
		blocked: make(map[*unit][]Fault),
		part:    make(map[*unit]struct{}),
	}
	r.indexOverlay()
	r.spread(touched, left)
	for u := range r.part {
		if r.wanted(u) != u.have {
			r.open[u] = struct{}{}
		}
	}
	// What was taken back early may be free to move after all, alone or together with others, once
	// what stood in its way was taken back too. So those that are left try again beside those that
	// have made it, until neither a round nor a try one by one brings any forward.
	for len(r.open) > 0 {
		maps.Copy(r.moving, r.open)
		clear(r.blocked)
		for r.takeBackBlocked() || r.takeBackWeaker() {
		}
		if len(r.open) == 0 && !r.letOneMove() {
			break
		}
		clear(r.open)
		for u := range r.blocked {
			r.open[u] = struct{}{}
		}
	}
	return r
}

// wanted returns the newest content of u, which in a question may be another one than the model's.
func (r *resolution) wanted(u *unit) *Content {
	if c, ok := r.overlay[u]; ok {
		return c
	}
	return u.want
}

// assumed returns the content that u would have in force after the moves.
func (r *resolution) assumed(u *unit) *Content {
	if _, ok := r.moving[u]; ok {
		return r.wanted(u)
	}
	return u.have
}

func (r *resolution) indexOverlay() {
	if len(r.overlay) == 0 {
		return
	}
	r.byIP = make(map[ipKey][]*unit)
	r.byMAC = make(map[dhcp.MAC][]*unit)
	r.extra = make(map[string]*unit)
	for u, c := range r.overlay {
		for nic := range nics(c) {
			k := ipKey{nic.Network, nic.IPv4}
			r.byIP[k] = append(r.byIP[k], u)
			if nic.MAC != nil {
				r.byMAC[*nic.MAC] = append(r.byMAC[*nic.MAC], u)
			}
		}
		if u.id.Kind == drop.Network && r.m.networks[u.id.Name] == nil {
			r.extra[u.id.Name] = u
		}
	}
}

func (r *resolution) network(name string) *unit {
	if u := r.m.networks[name]; u != nil {
		return u
	}
	return r.extra[name]
}

// spread collects the touched units and the unsettled ones that are connected with them by what they
// want, have, or wanted before.
func (r *resolution) spread(touched []*unit, left map[*unit]*Content) {
	queue := slices.Clone(touched)
	for _, u := range touched {
		r.part[u] = struct{}{}
	}
	add := func(u *unit) {
		if u == nil {
			return
		}
		if _, seen := r.part[u]; seen {
			return
		}
		if _, unsettled := r.m.unsettled[u]; unsettled {
			r.part[u] = struct{}{}
			queue = append(queue, u)
		}
	}
	for len(queue) > 0 {
		u := queue[0]
		queue = queue[1:]
		for _, c := range []*Content{r.wanted(u), left[u], u.want, u.have} {
			for nic := range nics(c) {
				add(r.network(nic.Network))
				for other := range r.m.wantIP[ipKey{nic.Network, nic.IPv4}] {
					add(other)
				}
				if nic.MAC != nil {
					for other := range r.m.wantMAC[*nic.MAC] {
						add(other)
					}
					for _, other := range r.m.networks {
						if other.rehung() {
							add(other) // any MAC may be what keeps it from its new device
						}
					}
				}
			}
		}
		if u.id.Kind == drop.Network {
			// A network in motion concerns every VM that waits, on it or on one it shares a device with.
			for other := range r.m.unsettled {
				add(other)
			}
		}
	}
}

// rehung tells whether a network in force wants to be on another device.
func (u *unit) rehung() bool {
	return u.have != nil && u.want != nil && u.want.Network != nil && !u.have.Network.sameDevice(u.want.Network)
}

// takeBackBlocked takes back every move that runs into a content that stays.
func (r *resolution) takeBackBlocked() bool {
	taken := make(map[*unit][]Fault)
	for u := range r.open {
		if faults := r.conflicts(u, func(other *unit) bool { _, open := r.open[other]; return !open }); len(faults) > 0 {
			taken[u] = faults
		}
	}
	for u, faults := range taken {
		r.takeBack(u, faults)
	}
	return len(taken) > 0
}

// takeBackWeaker takes back the moves that lose against another mover, except those whose winner
// loses itself: that one goes first, and may leave the place free.
func (r *resolution) takeBackWeaker() bool {
	type loss struct {
		faults  []Fault
		winners map[*unit]struct{}
	}
	losses := make(map[*unit]*loss)
	for u := range r.open {
		winners := make(map[*unit]struct{})
		faults := r.conflicts(u, func(other *unit) bool {
			if _, open := r.open[other]; open && r.stronger(other, u) {
				winners[other] = struct{}{}
				return true
			}
			return false
		})
		if len(faults) > 0 {
			losses[u] = &loss{faults, winners}
		}
	}
	taken := false
	for u, l := range losses {
		first := true
		for w := range l.winners {
			if losses[w] != nil {
				first = false
			}
		}
		if first {
			r.takeBack(u, l.faults)
			taken = true
		}
	}
	if !taken && len(losses) > 0 {
		// Claims that beat each other in a ring: the last of them gives way.
		u := slices.MaxFunc(slices.Collect(maps.Keys(losses)), r.compareClaims)
		r.takeBack(u, losses[u].faults)
		taken = true
	}
	return taken
}

// takeBack leaves u with what it has in force.
func (r *resolution) takeBack(u *unit, why []Fault) {
	delete(r.moving, u)
	delete(r.open, u)
	r.blocked[u] = why
}

// letOneMove lets the first of the blocked move that nothing is in the way of if it goes alone.
func (r *resolution) letOneMove() bool {
	for _, u := range slices.SortedFunc(maps.Keys(r.blocked), r.compareClaims) {
		r.moving[u] = struct{}{}
		if len(r.conflicts(u, func(*unit) bool { return true })) == 0 {
			delete(r.blocked, u)
			return true
		}
		delete(r.moving, u)
	}
	return false
}

// stronger tells whether a's claim goes before b's. What is in force keeps its place; else who came
// first; else the path decides.
func (r *resolution) stronger(a, b *unit) bool {
	if ha, hb := r.holdsAgainst(a, b), r.holdsAgainst(b, a); ha != hb {
		return ha
	}
	return r.compareClaims(a, b) < 0
}

// holdsAgainst tells whether a has in force already what its wanted content disputes with b's.
func (r *resolution) holdsAgainst(a, b *unit) bool {
	if a.have == nil {
		return false
	}
	wa, wb := r.wanted(a), r.wanted(b)
	if wa == nil || wb == nil {
		return false
	}
	switch {
	case wa.Network != nil && wb.Network != nil:
		return wa.Network.Gateway == a.have.Network.Gateway && wa.Network.sameDevice(a.have.Network)
	case wa.Network != nil:
		return wa.Network.Gateway == a.have.Network.Gateway && wa.Network.ServeAs == a.have.Network.ServeAs
	case wb.Network != nil:
		for nic := range nics(wa) {
			if nic.Network == b.id.Name && !hasIP(a.have, nic) {
				return false
			}
		}
		return true
	}
	// Two VMs: what they dispute is an address or a MAC, and a holds it if a had it before.
	for nic := range nics(wa) {
		for other := range nics(wb) {
			if nic.Network == other.Network && nic.IPv4 == other.IPv4 && hasIP(a.have, nic) {
				return true
			}
			if nic.MAC != nil && other.MAC != nil && *nic.MAC == *other.MAC && hasMAC(a.have, nic) {
				return true
			}
		}
	}
	return false
}

func hasIP(c *Content, nic *NIC) bool {
	for n := range nics(c) {
		if n.Network == nic.Network && n.IPv4 == nic.IPv4 {
			return true
		}
	}
	return false
}

func hasMAC(c *Content, nic *NIC) bool {
	for n := range nics(c) {
		if n.Network == nic.Network && n.MAC != nil && *n.MAC == *nic.MAC {
			return true
		}
	}
	return false
}

// compareClaims puts whose content was put forward earlier first.
func (r *resolution) compareClaims(a, b *unit) int {
	return cmp.Or(cmp.Compare(r.turn(a), r.turn(b)), compareUnits(a.id, b.id))
}

func (r *resolution) turn(u *unit) uint64 {
	if turn, ok := r.turns[u]; ok {
		return turn
	}
	return u.turn
}

// conflicts tells what is between u's wanted content and the assumed contents of those units that
// against admits.
func (r *resolution) conflicts(u *unit, against func(*unit) bool) []Fault {
	c := r.wanted(u)
	switch {
	case c == nil:
		return nil // who leaves is in nobody's way
	case c.Network != nil:
		return r.networkConflicts(u, c.Network, against)
	}
	return r.vmConflicts(u, c.VM, against)
}

func (r *resolution) vmConflicts(u *unit, vm *VM, against func(*unit) bool) []Fault {
	var faults []Fault
	file := u.id.Path() + "/vm.yaml"
	fault := func(p strict.Pos, format string, args ...any) {
		faults = append(faults, Fault{File: file, Fault: strict.Fault{Line: p.Line, Column: p.Column, What: fmt.Sprintf(format, args...)}})
	}
	for i := range vm.NICs {
		nic := &vm.NICs[i]
		nu := r.network(nic.Network)
		var net *Network
		if nu != nil {
			if c := r.assumed(nu); c != nil {
				net = c.Network
			}
		}
		if net != nil && against(nu) {
			if why := misfit(net, nic); why != "" {
				fault(nic.IPv4At, "nics[%d].ipv4: %s %s", i, nic.IPv4, why)
			}
		}
		for other := range r.claimants(ipKey{nic.Network, nic.IPv4}) {
			if other != u && against(other) && hasIP(r.assumed(other), nic) {
				fault(nic.IPv4At, "nics[%d].ipv4: %s in network %s belongs to %s", i, nic.IPv4, nic.Network, other.id.Path())
			}
		}
		if nic.MAC == nil {
			continue
		}
		for other := range r.macClaimants(*nic.MAC, nic.Network) {
			if other == u || !against(other) {
				continue
			}
			for o := range nics(r.assumed(other)) {
				if o.MAC != nil && *o.MAC == *nic.MAC && r.sameLink(nic.Network, o.Network) {
					where := "network " + nic.Network
					if o.Network != nic.Network {
						where = fmt.Sprintf("network %s, on the same device,", o.Network)
					}
					fault(nic.MACAt, "nics[%d].mac: %s in %s belongs to %s", i, nic.MAC, where, other.id.Path())
				}
			}
		}
		for j := range vm.NICs[:i] {
			o := &vm.NICs[j]
			if o.MAC != nil && *o.MAC == *nic.MAC && o.Network != nic.Network && r.sameLink(nic.Network, o.Network) && (nu == nil || against(nu)) {
				fault(nic.MACAt, "nics[%d].mac: %s is that of nics[%d], whose network %s is on the same device", i, nic.MAC, j, o.Network)
			}
		}
	}
	return faults
}

// misfit tells why nic cannot be in net, or "".
func misfit(net *Network, nic *NIC) string {
	path := drop.Unit{Kind: drop.Network, Name: net.Name}.Path()
	switch {
	case nic.IPv4 == net.Gateway.Addr():
		return fmt.Sprintf("is the gateway's address in %s", path)
	case nic.IPv4 == net.ServeAs:
		return fmt.Sprintf("is the router's own address (serve_as) in %s", path)
	}
	if why := notAHost(net.Subnet(), nic.IPv4); why != "" {
		return fmt.Sprintf("%s, the network of %s", why, path)
	}
	return ""
}

// claimants yields the units that have or want an address.
func (r *resolution) claimants(k ipKey) map[*unit]struct{} {
	set := make(map[*unit]struct{}, 2)
	if u := r.m.holdIP[k]; u != nil {
		set[u] = struct{}{}
	}
	for u := range r.m.wantIP[k] {
		set[u] = struct{}{}
	}
	for _, u := range r.byIP[k] {
		set[u] = struct{}{}
	}
	return set
}

// macClaimants yields the units that have or want a MAC on network's link.
func (r *resolution) macClaimants(mac dhcp.MAC, network string) map[*unit]struct{} {
	set := make(map[*unit]struct{}, 2)
	for _, name := range r.onLink(network) {
		if u := r.m.holdMAC[macKey{name, mac}]; u != nil {
			set[u] = struct{}{}
		}
	}
	for u := range r.m.wantMAC[mac] {
		set[u] = struct{}{}
	}
	for _, u := range r.byMAC[mac] {
		set[u] = struct{}{}
	}
	return set
}

// onLink returns the network and those on the same device.
func (r *resolution) onLink(network string) []string {
	names := []string{network}
	for name := range r.m.networks {
		if name != network && r.sameLink(network, name) {
			names = append(names, name)
		}
	}
	return names
}

// sameLink tells whether two networks are one or share a device, after the moves.
func (r *resolution) sameLink(a, b string) bool {
	if a == b {
		return true
	}
	ua, ub := r.network(a), r.network(b)
	if ua == nil || ub == nil {
		return false
	}
	ca, cb := r.assumed(ua), r.assumed(ub)
	return ca != nil && cb != nil && ca.Network.sameDevice(cb.Network)
}

func (r *resolution) networkConflicts(u *unit, net *Network, against func(*unit) bool) []Fault {
	var faults []Fault
	file := u.id.Path()
	fault := func(format string, args ...any) {
		faults = append(faults, Fault{File: file, Fault: strict.Fault{What: fmt.Sprintf(format, args...)}})
	}
	others := func(yield func(*unit)) {
		for _, other := range r.m.networks {
			yield(other)
		}
		for _, other := range r.extra {
			yield(other)
		}
	}
	others(func(other *unit) {
		if other == u || !against(other) {
			return
		}
		c := r.assumed(other)
		if c == nil {
			return
		}
		o := c.Network
		switch {
		case net.sameDevice(o) && net.Subnet().Overlaps(o.Subnet()):
			fault("gateway: %s overlaps %s of %s on the same device", net.Subnet(), o.Subnet(), other.id.Path())
		case net.sameDevice(o) && net.Pool != nil && o.Pool != nil:
			fault("pool: %s has a pool on the same device already; an unknown MAC could not be told to belong here", other.id.Path())
		case net.Relay && o.Relay && net.ServeAs == o.ServeAs && net.Subnet().Overlaps(o.Subnet()):
			fault("gateway: %s overlaps %s of %s, which is relayed to the same address; their guests could not be told apart", net.Subnet(), o.Subnet(), other.id.Path())
		}
	})
	// The network's ground moves under VMs in force: each must still fit. A network that was not in
	// force has none: a VM that waited for it and does not fit is at fault itself. These two checks
	// are the only ones whose cost grows with the number of VMs, and a network's change pays it.
	if len(faults) > 0 || u.have == nil {
		return faults
	}
	moved := u.have.Network.Gateway != net.Gateway || u.have.Network.ServeAs != net.ServeAs
	rehung := !u.have.Network.sameDevice(net)
	if !moved && !rehung {
		return faults
	}
	const enough = 5
	bad := 0
	count := func(format string, args ...any) {
		if bad++; bad <= enough {
			fault(format, args...)
		}
	}
	for _, other := range r.m.units {
		if other.id.Kind != drop.VM || !against(other) {
			continue
		}
		for nic := range nics(r.assumed(other)) {
			if nic.Network != net.Name {
				continue
			}
			if why := misfit(net, nic); moved && why != "" && misfit(u.have.Network, nic) == "" {
				count("gateway: %s of %s %s", nic.IPv4, other.id.Path(), why)
			}
			if !rehung || nic.MAC == nil {
				continue
			}
			for twin := range r.macClaimants(*nic.MAC, net.Name) {
				for o := range nics(r.assumed(twin)) {
					if o.Network != net.Name && o.MAC != nil && *o.MAC == *nic.MAC && r.sameLink(net.Name, o.Network) {
						count("interface: %s of %s is in network %s on the same device too", nic.MAC, other.id.Path(), o.Network)
					}
				}
			}
		}
	}
	if bad > enough {
		fault("and %d more in force that do not fit", bad-enough)
	}
	slices.SortFunc(faults, func(a, b Fault) int { return cmp.Compare(a.What, b.What) })
	return faults
}
