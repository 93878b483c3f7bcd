package dhcp

import (
	"container/heap"
	"container/list"
	"net/netip"
	"sync"
	"time"
)

const (
	offerHold       = 15 * time.Second    // how long an offered address waits for its REQUEST
	quarantine      = time.Hour           // of an address that was declined or answered a probe
	probeGood       = 10 * time.Minute    // how long an address counts as unused after its probe
	probeAgain      = probeGood / 2       // when a probed address that nobody took is probed anew
	reserveSize     = 1024                // free addresses that are probed ahead of need
	forgetAfter     = 30 * 24 * time.Hour // a lease that ended, with its client's claim to the address
	leastQuarantine = 1                   // addresses that are quarantined whatever the size of the pool
)

// slotState is what a pool knows of one of its addresses.
type slotState uint8

const (
	slotFree     slotState = iota // for anybody, its last client first
	slotOffered                   // until end, or until the client takes it
	slotBound                     // until end
	slotDeclined                  // until end
	slotProbing                   // free, if nobody answers
)

// slot is one address of a pool that has been in use, or has been probed. Addresses without a slot were
// never touched.
type slot struct {
	addr     uint32
	mac      MAC // of its client, the last one where it is free; zero is none
	clientID []byte
	hostname string
	state    slotState
	start    time.Time
	end      time.Time // of the state; the zero time is never
	ended    bool      // free because a lease ran out, not because it was released
	seen     time.Time
	probed   time.Time // when nobody answered for it; the zero time is not known

	wanted     bool   // a client waits for its probe
	generation uint64 // changes with every change of the state
	undo       *slotUndo

	inHeap int           // place in timers, -1 is none
	elem   *list.Element // in list
	list   *list.List
}

// slotUndo is what a slot was before a lease that is not on stable storage yet.
type slotUndo struct {
	mac        MAC
	clientID   []byte
	hostname   string
	state      slotState
	start, end time.Time
}

// pool is the state of a network's pool: who has which address, and which comes next. It outlives
// changes of the range and of the network. What counts is judged when it is used: an address that a
// host was given, or that fell out of the range, is nobody's from then on.
type pool struct {
	mu      sync.Mutex
	name    string
	scope   *scope
	journal *journal

	on       bool
	first    uint32
	last     uint32
	probe    bool
	excluded [2]uint32 // the gateway and the server
	next     uint64    // first address that may have no slot; beyond last when all have
	byIP     map[uint32]*slot
	byMAC    map[MAC]*slot
	free     *list.List           // of free slots, the one that is free for longest first
	ready    *list.List           // of free slots that were probed
	declined *list.List           // of quarantined slots, the oldest first
	wanted   []*slot              // free slots that a client waits for, to be probed first
	timers   slotHeap             // slots whose state ends
	count    [slotProbing + 1]int // of slots by state
	changes  uint64
}

func newPool(s *scope, j *journal) *pool {
	return &pool{
		name: s.name, scope: s, journal: j, byIP: make(map[uint32]*slot), byMAC: make(map[MAC]*slot),
		free: list.New(), ready: list.New(), declined: list.New(),
	}
}

// configure takes the range of a network that is set. Leases stay; those outside the range are not
// renewed any more.
func (p *pool) configure(n *network) {
	p.mu.Lock()
	defer p.mu.Unlock()
	config := n.Pool
	if config == nil {
		p.on = false
		return
	}
	first, last := addrNumber(config.From), addrNumber(config.To)
	excluded := [2]uint32{addrNumber(n.ServerID), addrNumber(n.ServerID)}
	if n.Gateway.Is4() {
		excluded[1] = addrNumber(n.Gateway)
	}
	probe := config.Probe && !n.Relay // ARP does not pass a relay
	if p.on && first == p.first && last == p.last && probe == p.probe && excluded == p.excluded {
		return
	}
	p.on, p.first, p.last, p.probe, p.excluded, p.next = true, first, last, probe, excluded, uint64(first)
	p.free.Init()
	p.ready.Init()
	for _, s := range p.byIP {
		if s.state == slotFree {
			s.elem, s.list = nil, nil
			p.line(s, time.Time{})
		}
	}
}

// usable reports whether the pool may give an address.
func (p *pool) usable(addr uint32) bool {
	return p.on && p.first <= addr && addr <= p.last && addr != p.excluded[0] && addr != p.excluded[1] &&
		!p.scope.reserved(addr)
}

// slotAt returns the slot of an address, a free one where there is none.
func (p *pool) slotAt(addr uint32) *slot {
	s := p.byIP[addr]
	if s == nil {
		s = &slot{addr: addr, inHeap: -1}
		p.byIP[addr] = s
		p.count[slotFree]++
	}
	return s
}

// set moves a slot into a state that lasts until end.
func (p *pool) set(s *slot, state slotState, end time.Time) {
	p.count[s.state]--
	p.count[state]++
	if s.list != nil {
		s.list.Remove(s.elem)
		s.elem, s.list = nil, nil
	}
	p.changes++
	s.state, s.end, s.generation, s.ended = state, end, p.changes, false
	switch {
	case end.IsZero() && s.inHeap >= 0:
		heap.Remove(&p.timers, s.inHeap)
	case end.IsZero():
	case s.inHeap >= 0:
		heap.Fix(&p.timers, s.inHeap)
	default:
		heap.Push(&p.timers, s)
	}
	if state == slotDeclined {
		s.list, s.elem = p.declined, p.declined.PushBack(s)
	}
}

// release makes a slot free; its client keeps the first claim.
func (p *pool) release(s *slot, now time.Time) {
	p.set(s, slotFree, time.Time{})
	p.line(s, now)
}

// line puts a free slot at the end of the list that it belongs to.
func (p *pool) line(s *slot, now time.Time) {
	if s.list != nil || !p.usable(s.addr) {
		return
	}
	s.list = p.free
	if p.probe && p.vouched(s, now) {
		s.list = p.ready
	}
	s.elem = s.list.PushBack(s)
}

// vouched reports whether a probe of the slot is recent enough to count.
func (p *pool) vouched(s *slot, now time.Time) bool {
	return !s.probed.IsZero() && now.Sub(s.probed) < probeGood
}

// forget makes a slot free for anybody.
func (p *pool) forget(s *slot, now time.Time) {
	if p.byMAC[s.mac] == s {
		delete(p.byMAC, s.mac)
	}
	s.mac, s.clientID, s.hostname, s.undo = MAC{}, nil, "", nil
	p.release(s, now)
}

// expire ends the states whose time has come.
func (p *pool) expire(now time.Time) {
	for len(p.timers) > 0 && !p.timers[0].end.After(now) {
		s := p.timers[0]
		switch s.state {
		case slotDeclined:
			p.forget(s, now)
		case slotBound:
			s.probed = time.Time{} // nobody knows whether it is in use still
			p.release(s, now)
			s.ended = true
		default:
			p.release(s, now)
		}
	}
}

// take returns the next free address, or the reason why there is none now.
func (p *pool) take(now time.Time) (*slot, error) {
	if p.probe {
		for elem := p.ready.Front(); elem != nil; elem = p.ready.Front() {
			s := elem.Value.(*slot)
			p.ready.Remove(elem)
			s.elem, s.list = nil, nil
			switch {
			case !p.usable(s.addr): // comes back when its host goes
			case !p.vouched(s, now):
				p.line(s, now)
			default:
				return s, nil
			}
		}
		if p.free.Len() > 0 || p.count[slotProbing] > 0 || p.untouched() {
			return nil, ErrProbing
		}
		return nil, ErrExhausted
	}
	if s := p.takeUnprobed(); s != nil {
		return s, nil
	}
	return nil, ErrExhausted
}

// untouched reports whether some address of the range has no slot yet, and moves next there.
func (p *pool) untouched() bool {
	for ; p.next <= uint64(p.last); p.next++ {
		if addr := uint32(p.next); p.byIP[addr] == nil && p.usable(addr) {
			return true
		}
	}
	return false
}

// takeUnprobed returns the address that is free for longest, out of all lists; nil is none.
func (p *pool) takeUnprobed() *slot {
	if p.untouched() {
		p.next++
		return p.slotAt(uint32(p.next - 1))
	}
	for elem := p.free.Front(); elem != nil; elem = p.free.Front() {
		s := elem.Value.(*slot)
		p.free.Remove(elem)
		s.elem, s.list = nil, nil
		if p.usable(s.addr) {
			return s
		}
	}
	return nil
}

// client is who asks a pool.
type client struct {
	mac      MAC
	clientID []byte // views of the packet
	hostname []byte
}

// assign makes a slot the client's. One that it was offered or had before is free for anybody; one that
// it is bound to stays so until the new lease is stored, since its client goes on using it if that fails.
func (p *pool) assign(s *slot, c *client, now time.Time) {
	if old := p.byMAC[c.mac]; old != nil && old != s && old.state != slotBound {
		old.mac, old.clientID, old.hostname = MAC{}, nil, ""
		if old.state == slotOffered {
			p.release(old, now)
		}
	}
	if s.mac != c.mac && p.byMAC[s.mac] == s {
		delete(p.byMAC, s.mac)
	}
	s.mac = c.mac
	p.byMAC[c.mac] = s
	s.seen = now
	if string(s.clientID) != string(c.clientID) {
		s.clientID = append([]byte(nil), c.clientID...)
	}
	if s.hostname != string(c.hostname) {
		s.hostname = string(c.hostname)
	}
}

// offer finds the address for a client: the one that it has or had, the one that it wishes, or the one
// that is free for longest (RFC 2131, section 4.3.1), and holds it for a while. ErrProbing says that an
// answer is possible once a probe is done.
func (p *pool) offer(c *client, wish netip.Addr, now time.Time) (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expire(now)
	s := p.byMAC[c.mac]
	if s != nil && !p.usable(s.addr) {
		s = nil
	}
	if s != nil {
		switch s.state {
		case slotBound:
			s.seen = now
			return numberAddr(s.addr), nil
		case slotOffered:
			p.set(s, slotOffered, now.Add(offerHold))
			s.seen = now
			return numberAddr(s.addr), nil
		case slotProbing:
			return netip.Addr{}, ErrProbing
		case slotDeclined:
			s = nil
		case slotFree:
			if p.probe && !p.vouched(s, now) {
				if !s.wanted {
					s.wanted = true
					p.wanted = append(p.wanted, s)
				}
				return netip.Addr{}, ErrProbing
			}
		}
	}
	if s == nil && wish.Is4() {
		if addr := addrNumber(wish); p.usable(addr) {
			at := p.byIP[addr]
			switch {
			case at == nil && !p.probe:
				s = p.slotAt(addr)
			case at != nil && at.state == slotFree && (!p.probe || p.vouched(at, now)):
				s = at
			}
		}
	}
	if s == nil {
		var err error
		if s, err = p.take(now); err != nil {
			return netip.Addr{}, err
		}
	}
	p.assign(s, c, now)
	p.set(s, slotOffered, now.Add(offerHold))
	return numberAddr(s.addr), nil
}

// bind gives a client the address that it asks for, if that is its own, and returns the lease that is
// to be committed; it keeps the address for as long as keep. A client that selects us may take a free address that nobody else has a claim to:
// its offer was made before a restart.
func (p *pool) bind(c *client, address netip.Addr, selecting bool, keep time.Duration, now time.Time) (*Lease, *claim, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expire(now)
	addr := addrNumber(address)
	if !p.usable(addr) {
		return nil, nil, errWrongAddress
	}
	s := p.byIP[addr]
	switch {
	case s != nil && s.mac == c.mac && s.state != slotDeclined:
	case selecting && (s == nil || s.mac == MAC{} && (s.state == slotFree || s.state == slotProbing)):
		s = p.slotAt(addr)
	case s != nil && s.mac != MAC{}:
		return nil, nil, errWrongAddress
	default:
		return nil, nil, errLeaseGone
	}
	undo := &slotUndo{s.mac, s.clientID, s.hostname, s.state, s.start, s.end}
	if s.state == slotProbing {
		undo.state = slotFree
	}
	former := p.byMAC[c.mac]
	p.assign(s, c, now)
	var end time.Time
	if keep != Infinite {
		end = now.Add(keep)
	}
	p.set(s, slotBound, end)
	s.start, s.undo = now, undo
	if former == s || former != nil && former.state != slotBound {
		former = nil
	}
	return p.record(s, LeaseBound, now), &claim{p, s, former, c.mac, s.generation}, nil
}

// extend grants a client what is left, up to term, of the time that the store keeps its address; 0 is
// nothing. Nothing has to be committed for that.
func (p *pool) extend(mac MAC, address netip.Addr, term time.Duration, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expire(now)
	addr := addrNumber(address)
	s := p.byIP[addr]
	if s == nil || s.mac != mac || s.state != slotBound || !p.usable(addr) {
		return 0
	}
	end := s.end
	if s.undo != nil { // being committed, which may fail
		if s.undo.mac != mac || s.undo.state != slotBound {
			return 0
		}
		end = s.undo.end
	}
	s.seen = now
	if end.IsZero() {
		return term
	}
	return max(0, min(term, end.Sub(now).Truncate(time.Second)))
}

// claim ties a lease that is being committed to its slot.
type claim struct {
	pool       *pool
	slot       *slot
	former     *slot // that the client was bound to before; nil is none
	mac        MAC
	generation uint64
}

// record is the lease of a slot as it is to be stored.
func (p *pool) record(s *slot, state LeaseState, now time.Time) *Lease {
	return &Lease{Network: p.name, IP: numberAddr(s.addr), MAC: s.mac, ClientID: s.clientID, Hostname: s.hostname,
		State: state, Start: now, Expiry: s.end}
}

// stored says that the lease is on stable storage, and reports whether it still holds: its address may
// have become a host's meanwhile.
func (c *claim) stored(now time.Time) bool {
	p, s := c.pool, c.slot
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.generation == c.generation {
		s.undo = nil
	}
	state := LeaseReleased
	switch {
	case s.state == slotBound && s.mac == c.mac && p.usable(s.addr):
		if f := c.former; f != nil && f.state == slotBound && f.mac == c.mac && p.byMAC[c.mac] == s {
			f.probed = time.Time{}
			p.forget(f, now)
			p.journal.add(p.record(f, LeaseForgotten, now))
		}
		return true
	case s.state == slotBound && s.mac != c.mac:
		return false // another lease of the address follows
	case s.state == slotDeclined:
		state = LeaseDeclined
	case s.mac == MAC{}:
		state = LeaseForgotten
	}
	// What was stored is wrong by now, and the last record is the one that counts.
	p.journal.add(p.record(s, state, now))
	return false
}

// unstored takes back a lease that could not be committed.
func (c *claim) unstored(now time.Time) {
	p, s := c.pool, c.slot
	p.mu.Lock()
	defer p.mu.Unlock()
	undo := s.undo
	if s.generation != c.generation || undo == nil {
		return
	}
	s.undo = nil
	if s.mac != undo.mac && p.byMAC[s.mac] == s {
		delete(p.byMAC, s.mac)
	}
	s.mac, s.clientID, s.hostname, s.start = undo.mac, undo.clientID, undo.hostname, undo.start
	if _, ok := p.byMAC[s.mac]; !ok && s.mac != (MAC{}) {
		p.byMAC[s.mac] = s
	}
	if f := c.former; f != nil && f.state == slotBound && f.mac == c.mac {
		p.byMAC[c.mac] = f
	}
	if undo.state == slotFree {
		p.release(s, now)
		return
	}
	p.set(s, undo.state, undo.end)
}

// withdraw drops the offer to a client that chose another server.
func (p *pool) withdraw(mac MAC, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.byMAC[mac]; s != nil && s.state == slotOffered {
		p.release(s, now)
	}
}

// holds reports whether an address is a client's now.
func (p *pool) holds(mac MAC, address netip.Addr) *slot {
	if !address.Is4() {
		return nil
	}
	s := p.byIP[addrNumber(address)]
	if s == nil || s.mac != mac || s.state != slotBound && s.state != slotOffered {
		return nil
	}
	return s
}

// decline quarantines an address that its client found in use, and returns the record of that. Half of
// a pool at most is in quarantine: then the oldest address is given a second chance.
func (p *pool) decline(mac MAC, address netip.Addr, now time.Time) (*Lease, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expire(now)
	s := p.holds(mac, address)
	if s == nil {
		return nil, ErrNotHolder
	}
	p.ban(s, now)
	for limit := p.quarantineLimit(); p.declined.Len() > limit; {
		p.forget(p.declined.Front().Value.(*slot), now)
	}
	return p.record(s, LeaseDeclined, now), nil
}

// quarantineLimit is how many addresses clients can have quarantined: half of the pool.
func (p *pool) quarantineLimit() int {
	return max(leastQuarantine, int((uint64(p.last)-uint64(p.first)+1)/2))
}

func (p *pool) ban(s *slot, now time.Time) {
	if p.byMAC[s.mac] == s {
		delete(p.byMAC, s.mac)
	}
	s.undo = nil
	s.probed = time.Time{}
	p.set(s, slotDeclined, now.Add(quarantine))
}

// giveUp ends a lease by its client's RELEASE.
func (p *pool) giveUp(mac MAC, address netip.Addr, now time.Time) (*Lease, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expire(now)
	s := p.holds(mac, address)
	if s == nil {
		return nil, ErrNotHolder
	}
	s.undo, s.seen, s.probed = nil, now, time.Time{}
	p.release(s, now)
	return p.record(s, LeaseReleased, now), nil
}

// endLease ends a lease by the operator's word: its client has no claim left. It returns the record of
// that, nil where nothing is known of the address.
func (p *pool) endLease(address netip.Addr, now time.Time) *Lease {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expire(now)
	s := p.byIP[addrNumber(address)]
	if s == nil || s.state == slotFree || s.state == slotProbing {
		return nil
	}
	s.probed = time.Time{}
	p.forget(s, now)
	return p.record(s, LeaseForgotten, now)
}

// evict ends what a host takes the place of: leases of its address and of its MAC.
func (p *pool) evict(address netip.Addr, mac MAC, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range []*slot{p.byIP[addrNumber(address)], p.byMAC[mac]} {
		if s == nil {
			continue
		}
		known := s.mac != MAC{} || s.state == slotDeclined
		p.forget(s, now)
		if s.list != nil && !p.usable(s.addr) {
			s.list.Remove(s.elem)
			s.list, s.elem = nil, nil
		}
		if known {
			p.journal.add(p.record(s, LeaseForgotten, now))
		}
	}
}

// vacated takes an address back that was a host's.
func (p *pool) vacated(address netip.Addr, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	addr := addrNumber(address)
	if !p.usable(addr) || p.byIP[addr] == nil && uint64(addr) >= p.next {
		return
	}
	if s := p.slotAt(addr); s.state == slotFree {
		s.probed = time.Time{}
		p.line(s, now)
	}
}

// load takes a record from the store, unless it knows something newer. Where several servers write,
// the store knows best: their clocks are not one.
func (p *pool) load(l Lease, now time.Time, shared bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !l.IP.Is4() {
		return
	}
	addr := addrNumber(l.IP)
	if s := p.byIP[addr]; s != nil && s.start.After(l.Start) && !shared {
		return
	}
	var end time.Time
	ended := false
	if !l.Expiry.IsZero() {
		end = now.Add(l.Expiry.Sub(now.Round(0))) // from the wall clock to the one that runs
		ended = !end.After(now)
	}
	gone := l.State == LeaseReleased || l.State == LeaseForgotten || ended
	last := l.Start
	if ended && end.After(last) {
		last = l.Expiry
	}
	if gone && now.Sub(last) > forgetAfter {
		if l.State != LeaseForgotten {
			l.State = LeaseForgotten
			p.journal.add(&l)
		}
		return
	}
	s := p.slotAt(addr)
	s.start, s.undo, s.probed = l.Start, nil, time.Time{}
	if p.byMAC[s.mac] == s {
		delete(p.byMAC, s.mac)
	}
	s.mac, s.clientID, s.hostname = l.MAC, l.ClientID, l.Hostname
	if _, known := p.scope.hosts.Load().byMAC.get(l.MAC); known || p.scope.reserved(addr) {
		p.forget(s, now)
		if !shared { // another server may know of a change of hosts that this one does not
			p.journal.add(p.record(s, LeaseForgotten, now))
		}
		return
	}
	switch {
	case l.State == LeaseDeclined && !gone:
		p.set(s, slotDeclined, end)
		return
	case l.State == LeaseDeclined, l.State == LeaseForgotten:
		p.forget(s, now)
		return
	case gone:
		p.release(s, now)
		s.ended = ended
	default:
		p.set(s, slotBound, end)
	}
	// Of several addresses, the client's own is the one that it has, or had last.
	old := p.byMAC[s.mac]
	if old == nil || old.state != slotBound && (s.state == slotBound || s.start.After(old.start)) ||
		old.state == slotBound && s.state == slotBound && s.start.After(old.start) {
		p.byMAC[s.mac] = s
	}
}

// empty reports whether nothing is lost when the pool is forgotten.
func (p *pool) empty() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count[slotBound] == 0 && p.count[slotOffered] == 0 && p.count[slotDeclined] == 0
}

// probing reports whether the pool's addresses are to be probed.
func (p *pool) probing() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.on && p.probe
}

// probeTarget is an address to be probed, and the client that may answer for it.
type probeTarget struct {
	addr uint32
	mac  MAC
}

// probes returns addresses to be probed now: those that clients wait for, then as many as keep the
// reserve full. They are nobody's until probed is called for each.
func (p *pool) probes(limit int, now time.Time) []probeTarget {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.on || !p.probe {
		return nil
	}
	p.expire(now)
	var targets []probeTarget
	add := func(s *slot) {
		p.set(s, slotProbing, time.Time{})
		targets = append(targets, probeTarget{s.addr, s.mac})
	}
	for _, s := range p.wanted {
		s.wanted = false
		if s.state == slotFree && p.usable(s.addr) && len(targets) < limit {
			add(s)
		}
	}
	p.wanted = nil
	for elem := p.ready.Front(); elem != nil && len(targets) < limit; elem = p.ready.Front() {
		s := elem.Value.(*slot)
		if now.Sub(s.probed) < probeAgain {
			break
		}
		add(s)
	}
	for len(targets) < limit && p.ready.Len()+len(targets) < reserveSize {
		s := p.takeUnprobed()
		if s == nil {
			break
		}
		add(s)
	}
	return targets
}

// probed takes the outcome of a probe: answered is who has the address, the zero MAC is nobody. It
// reports whether the address had to be quarantined.
func (p *pool) probed(addr uint32, answered MAC, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.byIP[addr]
	if s == nil || s.state != slotProbing {
		return false // it was taken meanwhile, by its own client or by a host
	}
	if answered != (MAC{}) && answered != s.mac {
		p.ban(s, now)
		s.mac, s.clientID, s.hostname = answered, nil, ""
		return true
	}
	s.probed = now
	p.release(s, now)
	return false
}

// unprobed takes back addresses whose probe could not be made.
func (p *pool) unprobed(targets []probeTarget, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, target := range targets {
		if s := p.byIP[target.addr]; s != nil && s.state == slotProbing {
			p.release(s, now)
		}
	}
}

// slotHeap orders slots by the end of their state.
type slotHeap []*slot

func (h slotHeap) Len() int           { return len(h) }
func (h slotHeap) Less(i, j int) bool { return h[i].end.Before(h[j].end) }
func (h slotHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].inHeap, h[j].inHeap = i, j
}
func (h *slotHeap) Push(x any) {
	s := x.(*slot)
	s.inHeap = len(*h)
	*h = append(*h, s)
}
func (h *slotHeap) Pop() any {
	old := *h
	s := old[len(old)-1]
	old[len(old)-1] = nil
	s.inHeap = -1
	*h = old[:len(old)-1]
	return s
}
