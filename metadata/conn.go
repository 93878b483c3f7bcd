package metadata

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// conn is a connection of a guest, or of a source that is none.
type conn struct {
	*net.TCPConn
	listener *listener
	source   netip.Addr

	entry   *entry // whose connection it is counted as; nil: a stranger's
	refused bool   // over the guest's limit: there to say so

	// handOver has another goroutine accept connections, as long as the one that serves this
	// connection still does so. Only that goroutine uses it.
	handOver func()

	waiter   atomic.Pointer[waiter] // its request, where that waits for a change
	stopping atomic.Bool
}

// mayWait is called by the goroutine that serves the connection before it does what can take long.
func (c *conn) mayWait() {
	if c.handOver != nil {
		c.handOver()
		c.handOver = nil
	}
}

// Read reads what is there. Before it waits for more it lets another goroutine accept connections.
func (c *conn) Read(b []byte) (int, error) {
	if c.handOver != nil {
		if n, err := c.readNow(b); err != syscall.EAGAIN {
			return n, err
		}
		c.mayWait()
	}
	return c.TCPConn.Read(b)
}

// readNow reads without waiting: it fails with EAGAIN where there is nothing to read.
func (c *conn) readNow(b []byte) (n int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		n, failed = syscall.Read(int(fd), b)
		return true
	})
	switch {
	case err != nil:
		return 0, err
	case failed != nil:
		return 0, failed
	case n == 0 && len(b) > 0:
		return 0, io.EOF
	}
	return n, nil
}

// SetReadDeadline sets the time until which the next request may take. On a connection that is to
// end after its present request there is no next one.
func (c *conn) SetReadDeadline(t time.Time) error {
	if err := c.TCPConn.SetReadDeadline(t); err != nil {
		return err
	}
	if c.stopping.Load() { // after the call above: stop may have come between
		return c.TCPConn.SetReadDeadline(time.Unix(1, 0))
	}
	return nil
}

// stop ends the connection once the request in progress, if there is one, is answered.
func (c *conn) stop() {
	c.stopping.Store(true)
	c.TCPConn.SetReadDeadline(time.Unix(1, 0))
}

// abort ends the connection at once, and what is not sent yet is not sent any more.
func (c *conn) abort() {
	c.SetLinger(0)
	c.Close()
}

// limitHops sets the IP hop limit of all that the connection sends from now on.
func (c *conn) limitHops(hops int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, hops)
	}); err != nil {
		return err
	}
	return failed
}

// deserted says whether the client of a parked connection is gone: nobody reads from it meanwhile.
func (c *conn) deserted() bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = n == 0 && err == nil || err != nil && err != syscall.EAGAIN && err != syscall.EINTR
	})
	return gone || err != nil
}

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
