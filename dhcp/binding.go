package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sort"
	"time"
)

// Binding is an address and who has it, for people to look at.
type Binding struct {
	Network  string
	IP       netip.Addr
	MAC      MAC
	VM       string // of a host
	Hostname string // of a host its own, else what the client calls itself
	Pool     bool   // from the pool
	// State of a host: bound, expired (its last lease ran out), declined or reserved (no lease). State of
	// a pool address: offered, bound, expired, released or declined (by its client, or in use by MAC
	// without a lease).
	State  string
	Start  time.Time // of a pool lease
	Expiry time.Time // zero where the state has no end; with a shared store, when that lets the address go
	Seen   time.Time // when the client was last heard of; zero is not since the start
}

// PoolUse is how a pool is used.
type PoolUse struct {
	Total    int // addresses that the pool may give, hosts' addresses inside the range left out
	Bound    int
	Offered  int
	Declined int
}

// Bindings returns the hosts and the pool addresses that are or were in use, of one network or, for "",
// of all, by network and address.
func (t *Table) Bindings(network string) []Binding {
	now := t.now()
	var bindings []Binding
	for _, s := range t.chosen(network) {
		for _, h := range s.hosts.Load().byMAC.all {
			bindings = append(bindings, t.binding(s, h, now))
		}
		bindings = append(bindings, s.pool.bindings(now)...)
	}
	sort.Slice(bindings, func(i, j int) bool {
		a, b := &bindings[i], &bindings[j]
		if a.Network != b.Network {
			return a.Network < b.Network
		}
		return a.IP.Less(b.IP)
	})
	return bindings
}

// Count tells how many bindings there are in each state, of hosts and of pools. It looks at each of them,
// as what has no timer changes its state by the clock alone, but makes none.
func (t *Table) Count() (hosts, pool map[string]int) {
	now := t.now()
	hosts, pool = make(map[string]int), make(map[string]int)
	for _, s := range t.chosen("") {
		for _, h := range s.hosts.Load().byMAC.all {
			hosts[t.binding(s, h, now).State]++
		}
		s.pool.each(now, func(_ *slot, state string) { pool[state]++ })
	}
	return hosts, pool
}

// chosen returns the scope of a network, or all for "".
func (t *Table) chosen(network string) []*scope {
	if network != "" {
		if s := t.scope(network); s != nil {
			return []*scope{s}
		}
		return nil
	}
	var scopes []*scope
	for _, s := range t.scopes.Load().all {
		scopes = append(scopes, s)
	}
	return scopes
}

func (t *Table) binding(s *scope, h *host, now time.Time) Binding {
	b := Binding{Network: s.name, IP: h.IP, MAC: h.MAC, VM: h.VM, Hostname: h.Hostname, State: "reserved"}
	seen := t.seen(h)
	b.Seen, b.Expiry = seen.At, seen.Expiry
	switch {
	case t.lasts(&h.declined, now):
		b.State, b.Expiry = "declined", onClock(t.epoch.Add(time.Duration(h.declined.Load())), now)
	case seen.Infinite, !seen.Expiry.IsZero() && seen.Expiry.After(now):
		b.State = "bound"
	case !seen.Expiry.IsZero():
		b.State = "expired"
	}
	return b
}

func (p *pool) bindings(now time.Time) []Binding {
	var bindings []Binding
	p.each(now, func(s *slot, state string) {
		bindings = append(bindings, Binding{Network: p.name, IP: numberAddr(s.addr), MAC: s.mac, Hostname: s.hostname, Pool: true,
			State: state, Start: s.start, Expiry: onClock(s.end, now), Seen: onClock(s.seen, now)})
	})
	return bindings
}

// each calls fn with every address that is or was in use, and its state. fn runs under the pool's lock.
func (p *pool) each(now time.Time, fn func(s *slot, state string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expire(now)
	for _, s := range p.byIP {
		switch {
		case s.state == slotOffered:
			fn(s, "offered")
		case s.state == slotBound:
			fn(s, "bound")
		case s.state == slotDeclined:
			fn(s, "declined")
		case s.mac == MAC{} || s.start.IsZero():
		case s.ended:
			fn(s, "expired")
		default:
			fn(s, "released")
		}
	}
}

// PoolUse returns how a network's pool is used, and false where it has none.
func (t *Table) PoolUse(network string) (PoolUse, bool) {
	s := t.scope(network)
	if s == nil {
		return PoolUse{}, false
	}
	n := s.network.Load()
	if n == nil || n.Pool == nil {
		return PoolUse{}, false
	}
	first, last := addrNumber(n.Pool.From), addrNumber(n.Pool.To)
	taken := map[uint32]bool{}
	for _, own := range []netip.Addr{n.ServerID, n.Gateway} {
		if own.Is4() {
			taken[addrNumber(own)] = true
		}
	}
	for ip := range s.hosts.Load().byIP.all {
		taken[ip] = true
	}
	total := int(uint64(last) - uint64(first) + 1)
	for addr := range taken {
		if first <= addr && addr <= last {
			total--
		}
	}
	now := t.now()
	p := s.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expire(now)
	return PoolUse{Total: total, Bound: p.count[slotBound], Offered: p.count[slotOffered], Declined: p.count[slotDeclined]}, true
}

// ErrNoLease is returned by ReleaseLease for an address that nobody has a lease of.
var ErrNoLease = errors.New("no pool lease of this address")

// ReleaseLease ends the pool lease of an address in a network, or in whichever network has one for "".
// The client loses its claim and is refused at its next word. ReleaseLease returns when that is stored;
// an error that is not ErrNoLease says that the lease ended for now but may be back after a restart.
func (s *Server) ReleaseLease(ctx context.Context, network string, address netip.Addr) error {
	if !address.Is4() {
		return ErrNoLease
	}
	for _, scope := range s.table.chosen(network) {
		lease := scope.pool.endLease(address, s.now())
		if lease == nil {
			continue
		}
		done := make(chan error, 1)
		s.table.queue.push(entry{lease: lease, then: func(err error) { done <- err }})
		select {
		case err := <-done:
			if err != nil {
				return fmt.Errorf("lease of %s ended, but that is not stored: %w", address, err)
			}
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return ErrNoLease
}
