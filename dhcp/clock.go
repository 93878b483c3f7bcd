package dhcp

import "time"

// clockTolerance is how far the wall clock may move away from the monotonic one before the records of
// leases are written anew.
const clockTolerance = time.Minute

// clock notices when somebody sets the wall clock. While the server runs, leases end by the monotonic
// clock and never mind; but their records tell the end by the wall clock, and so does what people are
// shown.
type clock struct{ base time.Time }

// stepped reports whether the wall clock was set since the last call that reported it.
func (c *clock) stepped(now time.Time) bool {
	wall, ran := now.Round(0).Sub(c.base.Round(0)), now.Sub(c.base)
	if (wall - ran).Abs() < clockTolerance {
		return false
	}
	c.base = now
	return true
}

// onClock returns the same moment of the monotonic clock as the wall clock tells it now. The zero time
// stays.
func onClock(at, now time.Time) time.Time {
	if at.IsZero() {
		return at
	}
	return now.Add(at.Sub(now))
}

// restate queues the records of all leases again, with their ends by the wall clock of now. A lease whose
// first record is still under way is left to it.
func (p *pool) restate(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expire(now)
	for _, s := range p.byIP {
		state := LeaseBound
		switch {
		case s.undo != nil || s.end.IsZero():
			continue
		case s.state == slotDeclined:
			state = LeaseDeclined
		case s.state != slotBound:
			continue
		}
		s.end = onClock(s.end, now)
		p.journal.add(p.record(s, state, now))
	}
}

// followClock writes the records of leases anew where the wall clock was set. A shared store has a
// clock of its own to go by.
func (s *Server) followClock(c *clock) {
	now := s.now()
	if s.shared != nil || !c.stepped(now) {
		return
	}
	s.log.Warn("the clock was set; pool leases go on and are recorded by the new time", "now", now.Round(0))
	for _, scope := range s.table.chosen("") {
		scope.pool.restate(now)
	}
}
