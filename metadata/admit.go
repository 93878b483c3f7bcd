package metadata

import (
	"net/netip"
	"sync"
	"time"
)

// admission is what becomes of a new connection.
type admission int

const (
	admitted  admission = iota
	overLimit           // it may be told so
	dropped             // it may not even be told so
	gone                // the entry has left the table: look the source up again
)

// admit counts a connection in, if the guest may have it. Beyond limit as many again are let in
// only to be refused, so that a client hears why.
func (e *entry) admit(c *conn, limit int) admission {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := len(e.conns)
	switch {
	case e.retired:
		return gone
	case limit > 0 && n >= 2*limit:
		return dropped
	}
	if e.conns == nil {
		e.conns = make(map[*conn]struct{})
	}
	e.conns[c] = struct{}{}
	if limit > 0 && n >= limit {
		return overLimit
	}
	return admitted
}

// waiters are the requests that wait for a change on the guest's connections.
func (e *entry) waiters() []*waiter {
	e.mu.Lock()
	defer e.mu.Unlock()
	var waiters []*waiter
	for c := range e.conns {
		if w := c.waiter.Load(); w != nil {
			waiters = append(waiters, w)
		}
	}
	return waiters
}

// open counts the guest's connections.
func (e *entry) open() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.conns)
}

// release counts a connection out.
func (e *entry) release(c *conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.conns, c)
	if len(e.conns) == 0 {
		e.conns = nil
	}
}

// retire closes the connections of an entry that has left the table. It admits none after.
func (e *entry) retire() {
	e.mu.Lock()
	e.retired = true
	conns := e.conns
	e.conns = nil
	e.mu.Unlock()
	for c := range conns {
		c.abort()
	}
}

// strangers are the sources of a listener that are no guests. They share one guest's limit.
type strangers struct {
	mu     sync.Mutex
	conns  int
	logged map[netip.Addr]*onceAMinute
}

// maxStrangersLogged bounds the sources that are remembered as logged.
const maxStrangersLogged = 256

func (s *strangers) admit(limit int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if limit > 0 && s.conns >= limit {
		return false
	}
	s.conns++
	return true
}

func (s *strangers) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns--
}

// logNow says whether a source may be logged: once a minute each, and not more sources in a minute
// than can be remembered.
func (s *strangers) logNow(source netip.Addr, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	once := s.logged[source]
	if once == nil {
		if len(s.logged) >= maxStrangersLogged {
			for a, o := range s.logged {
				if now.UnixNano()-o.last.Load() >= int64(time.Minute) {
					delete(s.logged, a)
				}
			}
			if len(s.logged) >= maxStrangersLogged {
				return false
			}
		}
		if s.logged == nil {
			s.logged = make(map[netip.Addr]*onceAMinute)
		}
		once = new(onceAMinute)
		s.logged[source] = once
	}
	return once.now(now)
}
