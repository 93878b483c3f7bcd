package dhcp

import (
	"context"
	"errors"
	"time"
)

// keep is how long the store keeps an address for a client that is told a lease time.
func (t *Table) keep(lease time.Duration) time.Duration {
	if !t.shared || lease == Infinite || lease > Infinite/2 {
		return lease
	}
	// A client renews at half of its time (RFC 2131, section 4.4.5), so without the store it can be
	// given the whole of it once more.
	return lease + lease/2
}

// cutOff reports whether the store that servers share cannot be reached.
func (t *Table) cutOff(now time.Time) bool {
	return t.shared && (!t.current.Load() || t.lasts(&t.storeDown, now))
}

// lostAgain is how long a new reason why the shared store is lost waits until it is logged.
const lostAgain = time.Minute

var errUnfollowed = errors.New("the shared store ended without a reason")

// runFollow takes what others write to the shared store until ctx ends.
func (s *Server) runFollow(ctx context.Context) {
	for {
		err := s.shared.Follow(ctx, func(l Lease) { s.table.load(l, s.now()) }, s.followed)
		s.table.current.Store(false)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errUnfollowed
		}
		s.lost(err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryAfter):
		}
	}
}

// followed notes that the server knows all that the shared store holds.
func (s *Server) followed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.followErr != nil || s.storeErr != nil {
		s.log.Info("pool leases are shared again")
	}
	s.followErr, s.storeErr = nil, nil
	s.table.storeDown.Store(0)
	s.table.current.Store(true)
	s.table.leasesKnown.Store(true)
}

// lost notes that the shared store cannot be followed.
func (s *Server) lost(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	first := s.followErr == nil
	if first {
		s.followFrom = now
	}
	// Reasons may name a port that is another one each time.
	if first || s.followErr.Error() != err.Error() && now.Sub(s.followTold) >= lostAgain {
		s.followTold = now
		s.log.Error("pool leases cannot be shared: they are renewed within the time that is stored, no new ones; known hosts are served", "reason", err)
	}
	s.followErr = err
}
