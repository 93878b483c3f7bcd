package cloudstack

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// Change is what becomes of one unit of the drop directory.
type Change struct {
	Unit string // networks/10.1.1.0-24.yaml, vms/10.1.1.0-24_10.1.1.34
	// From is the unit that this one takes the place of: files of it that Files does not name come
	// along. It is removed by a change of its own.
	From string
	// Remove takes the whole unit away; Files is nil then.
	Remove bool
	// Files are new contents by base name; nil removes a file. Others stay.
	Files map[string][]byte
}

// Step is what an event, or several of them, makes of the drop directory and of the memory.
type Step struct {
	memory *Memory
	router *router // nil: as it was
	guests map[netip.Addr]*guest
	byMAC  map[string]netip.Addr // the zero address: nobody's any more

	changes map[string]*Change
	order   []string // of units, as they were first named

	nets     []network // as they follow from router
	netsSeen bool

	anew []string // units that become another VM's without having been removed
}

// Fold returns what events make of the drop directory. The memory stays as it is until Accept.
func (m *Memory) Fold(events ...Event) *Step {
	s := &Step{
		memory: m, guests: make(map[netip.Addr]*guest), byMAC: make(map[string]netip.Addr),
		changes: make(map[string]*Change),
	}
	for i := range events {
		s.fold(events[i].body)
	}
	return s
}

// Accept makes the step part of the memory. The step must be the newest of its memory.
func (m *Memory) Accept(s *Step) {
	if s.router != nil {
		m.router = *s.router
	}
	for ip, g := range s.guests {
		m.set(ip, g)
	}
}

// Changes returns the changes of units, networks first, each unit once.
func (s *Step) Changes() []Change {
	out := make([]Change, 0, len(s.order))
	for _, networks := range []bool{true, false} {
		for _, unit := range s.order {
			if (unit[0] == 'n') == networks {
				out = append(out, *s.changes[unit])
			}
		}
	}
	return out
}

// guest returns a copy of what is known of an address, or nil.
func (s *Step) guest(ip netip.Addr) *guest {
	g, ok := s.guests[ip]
	if !ok {
		g = s.memory.guests[ip]
	}
	if g == nil {
		return nil
	}
	c := *g
	return &c
}

func (s *Step) setGuest(ip netip.Addr, g *guest) {
	if old := s.guest(ip); old.serves() && s.holder(old.MAC) == ip {
		s.byMAC[old.MAC] = netip.Addr{}
	}
	s.guests[ip] = g
	if g.serves() {
		s.byMAC[g.MAC] = ip
	}
}

// holder returns the address that a MAC has.
func (s *Step) holder(mac string) netip.Addr {
	if ip, ok := s.byMAC[mac]; ok {
		return ip
	}
	return s.memory.byMAC[mac]
}

func (s *Step) currentRouter() *router {
	if s.router != nil {
		return s.router
	}
	return &s.memory.router
}

func (s *Step) networks() []network {
	if !s.netsSeen {
		s.nets, s.netsSeen = s.currentRouter().networks(), true
	}
	return s.nets
}

// change returns the change of a unit, which further events add to.
func (s *Step) change(unit string) *Change {
	c := s.changes[unit]
	if c == nil {
		c = &Change{Unit: unit}
		s.changes[unit] = c
		s.order = append(s.order, unit)
	}
	return c
}

func (s *Step) put(unit string, files map[string][]byte) {
	c := s.change(unit)
	if c.Remove {
		// Whatever was in the folder does not come back with it.
		c.Remove, c.Files = false, map[string][]byte{}
		if unit[0] == 'v' {
			for _, name := range []string{vmFile, metaFile, userFile, vendorFile, passwordFile} {
				c.Files[name] = nil
			}
		}
	}
	if c.Files == nil {
		c.Files = make(map[string][]byte)
	}
	maps.Copy(c.Files, files)
}

func (s *Step) remove(unit string) {
	*s.change(unit) = Change{Unit: unit, Remove: true}
}

// everything is every file of a VM's folder but vm.yaml, removed: nothing of an old VM stays for a
// new one.
func everything() map[string][]byte {
	return map[string][]byte{metaFile: nil, userFile: nil, vendorFile: nil, passwordFile: nil}
}

func (s *Step) fold(body any) {
	switch b := body.(type) {
	case lease:
		s.foldLease(b)
	case vmData:
		s.foldData(b)
	case vmPassword:
		s.foldPassword(b)
	case vmPart:
		s.foldPart(b)
	case nicOptions:
		s.foldOptions(b)
	case ended:
		s.foldEnd()
	case nothing:
	default:
		s.foldRouter(b)
	}
}

func (s *Step) foldLease(l lease) {
	if l.Remove {
		ip := l.IP
		if !ip.IsValid() {
			ip = s.holder(l.MAC)
		}
		// The address may be another VM's by now, which this must not touch.
		if g := s.guest(ip); g.serves() && g.MAC == l.MAC {
			s.end(ip, g)
		}
		return
	}
	if old := s.holder(l.MAC); old.IsValid() && old != l.IP {
		s.end(old, s.guest(old))
	}
	g := s.guest(l.IP)
	switch {
	case g == nil || g.Gone,
		g.MAC != "" && g.MAC != l.MAC, // another VM than the one that has it
		g.Held && g.Expect != l.MAC:   // another VM than the one that was removed
		network := s.clear(l.IP, g)
		g = &guest{Network: network}
	default: // the same VM, or the half of it that was missing
		g.Held, g.Expect = false, ""
	}
	g.MAC, g.Hostname, g.Gateway, g.Default, g.Seconds = l.MAC, l.Hostname, l.Gateway, l.Default, l.Seconds
	if len(l.NIC) > 0 {
		g.NIC = l.NIC
	}
	s.setGuest(l.IP, g)
	s.learnGateway(l)
	s.write(l.IP, nil)
}

func (s *Step) foldData(d vmData) {
	g := s.guest(d.IP)
	switch {
	case g != nil && g.Gone && d.VMID != "" && g.VMID == d.VMID:
		network := s.clear(d.IP, g)
		g = &guest{Network: network, VMID: g.VMID, Held: true, Expect: g.MAC}
	case g == nil || g.Gone, d.VMID != "" && g.VMID != "" && g.VMID != d.VMID:
		network := s.clear(d.IP, g)
		g = &guest{Network: network, VMID: d.VMID}
	case d.VMID != "":
		g.VMID = d.VMID
	}
	g.HasData, g.Rows = true, pack(d.Rows)
	s.setGuest(d.IP, g)
	files := map[string][]byte{metaFile: metaYAML(d.Meta), userFile: d.User}
	s.write(d.IP, files)
}

func (s *Step) foldPassword(p vmPassword) {
	g := s.guest(p.IP)
	if g == nil || g.Gone {
		// The old VM, if there was one, has been removed: this is of the one that comes.
		network := s.clear(p.IP, g)
		g = &guest{Network: network}
	}
	s.setGuest(p.IP, g)
	file := []byte(p.Password + "\n")
	if p.Password == "" {
		file = nil
	}
	s.write(p.IP, map[string][]byte{passwordFile: file})
}

// clear makes room for a new VM on an address and returns the network of its unit.
func (s *Step) clear(ip netip.Addr, old *guest) string {
	name := s.home(place(s.networks(), ip))
	unit := guestUnit(name, ip)
	switch {
	case old == nil || old.Gone:
	case old.Network != name:
		s.remove(guestUnit(old.Network, ip))
	default:
		s.anew = append(s.anew, unit)
	}
	s.put(unit, everything())
	return name
}

// home is the name that units of a network's addresses begin with; in is nil where it is unknown.
func (s *Step) home(in *network) string {
	switch {
	case in != nil:
		return in.Name
	case s.currentRouter().Scope != "":
		return s.currentRouter().Scope + "-" + unplaced
	}
	return unplaced
}

// end takes a VM off an address. What it was is remembered, to tell it from the next one.
func (s *Step) end(ip netip.Addr, g *guest) {
	s.remove(guestUnit(g.Network, ip))
	s.setGuest(ip, &guest{Network: g.Network, MAC: g.MAC, VMID: g.VMID, Gone: true})
}

// write puts files of a guest, and its vm.yaml, which says all that is known of its NIC. The unit
// moves where its network has become another one.
func (s *Step) write(ip netip.Addr, files map[string][]byte) {
	g := s.guest(ip)
	in := place(s.networks(), ip)
	name := s.home(in)
	unit := guestUnit(name, ip)
	if g.Network != name {
		old := guestUnit(g.Network, ip)
		before := s.changes[old]
		s.put(unit, nil)
		c := s.change(unit)
		c.From = old
		if before != nil {
			// What this step had to say of the old unit it says of the new one.
			if before.From != "" {
				c.From = before.From
			}
			maps.Copy(c.Files, before.Files)
		}
		s.remove(old)
		g.Network = name
		s.setGuest(ip, g)
	}
	s.put(unit, files)
	if g.Held {
		s.put(unit, map[string][]byte{vmFile: nil})
		return
	}
	s.put(unit, map[string][]byte{vmFile: g.vm(ip, in)})
}

// learnGateway takes a guest's gateway for that of a range which nobody has named one for.
func (s *Step) learnGateway(l lease) {
	if !l.Gateway.IsValid() {
		return
	}
	for ip, a := range s.currentRouter().Ranges {
		if p := netip.PrefixFrom(ip, a.Bits).Masked(); a.Gateway.IsValid() || !p.Contains(l.IP) || !p.Contains(l.Gateway) {
			continue
		}
		if _, named := s.currentRouter().Gateways[ip]; named {
			continue
		}
		s.changeRouter(func(r *router) {
			a.Gateway = l.Gateway
			r.Ranges[ip] = a
		}, false)
		return
	}
}

func (s *Step) foldRouter(body any) {
	_, quiet := body.(links)
	s.changeRouter(func(r *router) {
		switch b := body.(type) {
		case links:
			r.MTUs = b.mtus()
		case subnet:
			r.foldSubnet(b)
		case cmdLine:
			r.CmdLine = b
		case tier:
			r.foldTier(b)
		case associations:
			for _, a := range b {
				r.foldAddress(a)
			}
		case aliases:
			for _, a := range b {
				r.foldRange(a, s)
			}
		case dhcpConfig:
			maps.Copy(r.Gateways, b)
		default:
			panic(fmt.Sprintf("cloudstack: event of type %T", body))
		}
	}, !quiet)
}

// foldTier plugs a tier in, or out. A removal that is of another one than what is on the device
// came late; a tier that is plugged in on another device has left the one before.
func (r *router) foldTier(t tier) {
	if t.Add {
		subnet := netip.PrefixFrom(t.Gateway, t.Bits)
		maps.DeleteFunc(r.Tiers, func(_ string, old tier) bool {
			return t.MAC != "" && old.MAC == t.MAC || subnet.Overlaps(netip.PrefixFrom(old.Gateway, old.Bits))
		})
		r.Tiers[t.Device] = t
		return
	}
	old, ok := r.Tiers[t.Device]
	if ok && (t.MAC == "" || old.MAC == "" || t.MAC == old.MAC) && (!t.IP.IsValid() || t.IP == old.IP) {
		delete(r.Tiers, t.Device)
	}
}

func (r *router) foldAddress(a address) {
	if !a.Public {
		if !a.Add {
			delete(r.Ranges, a.IP)
			return
		}
		r.Ranges[a.IP] = a
		return
	}
	if !a.Add {
		delete(r.Public, a.IP)
		return
	}
	r.Public[a.IP] = a
}

// foldRange takes an alias in. Guests may be there before it, and one of them may know the gateway.
func (r *router) foldRange(a address, s *Step) {
	if !a.Add {
		delete(r.Ranges, a.IP)
		return
	}
	if old, ok := r.Ranges[a.IP]; ok && old.Bits == a.Bits {
		a.Gateway = old.Gateway
	}
	p := netip.PrefixFrom(a.IP, a.Bits).Masked()
	for _, ip := range s.known() {
		if g := s.guest(ip); !a.Gateway.IsValid() && g.serves() && p.Contains(ip) && g.Gateway.IsValid() && p.Contains(g.Gateway) {
			a.Gateway = g.Gateway
		}
	}
	r.Ranges[a.IP] = a
}

// known returns all addresses that something is known of, in order.
func (s *Step) known() []netip.Addr {
	set := make(map[netip.Addr]struct{}, len(s.memory.guests)+len(s.guests))
	for ip := range s.memory.guests {
		set[ip] = struct{}{}
	}
	for ip := range s.guests {
		set[ip] = struct{}{}
	}
	return slices.SortedFunc(maps.Keys(set), netip.Addr.Compare)
}

// changeRouter changes what is known of the router and brings networks, and the guests in them,
// into line with it. always puts the networks' files also where they say the same as before.
func (s *Step) changeRouter(change func(*router), always bool) {
	before := slices.Clone(s.networks())
	old := s.currentRouter()
	r := router{
		CmdLine: old.CmdLine, Tiers: clone(old.Tiers), Ranges: clone(old.Ranges),
		Gateways: clone(old.Gateways), Public: clone(old.Public), MTUs: old.MTUs,
		Scope: old.Scope, Subnets: clone(old.Subnets),
	}
	change(&r)
	s.router, s.netsSeen = &r, false
	after := s.networks()

	was := make(map[string][]byte, len(before))
	for i := range before {
		was[before[i].Name] = before[i].file()
	}
	same := true
	for i := range after {
		file, old := after[i].file(), was[after[i].Name]
		delete(was, after[i].Name)
		changed := !bytes.Equal(file, old)
		if changed || always {
			s.put(networkUnit(after[i].Name), map[string][]byte{after[i].Name + ".yaml": file})
		}
		same = same && !changed
	}
	for name := range was {
		same = false
		s.remove(networkUnit(name))
	}
	if same {
		return
	}
	for _, ip := range s.known() {
		g := s.guest(ip)
		if g == nil || g.Gone {
			continue
		}
		then, now := place(before, ip), place(after, ip)
		// A guest of a network that is gone waits in its unit for the network to come back.
		if now == nil || g.Network == now.Name && then != nil && bytes.Equal(g.vm(ip, then), g.vm(ip, now)) {
			continue
		}
		s.write(ip, nil)
	}
}

func clone[K comparable, V any](m map[K]V) map[K]V {
	c := make(map[K]V, len(m)+1)
	maps.Copy(c, m)
	return c
}
