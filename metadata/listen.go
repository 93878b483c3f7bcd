package metadata

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// listener accepts the connections to one place.
type listener struct {
	fd        int
	place     place
	device    atomic.Pointer[Device]
	strangers *strangers

	mu       sync.Mutex
	ended    bool
	stopping bool // ended because the server stops: its connections may end well
	conns    map[*conn]struct{}
}

// backlog is how many connections may wait to be accepted. The kernel has a limit of its own.
const backlog = 4096

// listen opens a place, or takes it over from the process before this one.
func (s *Server) listen(p place, d *Device) (*listener, error) {
	port := s.ports[p.service]
	fd, err := s.sockets.Open(p.socketName(),
		func(fd int) error { return checkSocket(fd, p, port) },
		func() (int, error) { return openSocket(p, port) })
	if err != nil {
		return nil, err
	}
	l := &listener{fd: fd, place: p, strangers: new(strangers), conns: make(map[*conn]struct{})}
	l.device.Store(d)
	return l, nil
}

// bindSocket sets a listening socket's options before it is bound to its address. Bound to the device,
// it accepts what comes in there and nothing else, whatever address that was sent to, so that devices
// may have the same addresses. The address need not be there yet.
func bindSocket(fd, device int) error {
	for _, o := range []struct {
		name                 string
		level, option, value int
	}{
		{"SO_BINDTOIFINDEX", unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, device},
		{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{"IP_FREEBIND", unix.IPPROTO_IP, unix.IP_FREEBIND, 1},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.option, o.value); err != nil {
			return fmt.Errorf("set %s: %w", o.name, err)
		}
	}
	return nil
}

// accept takes one connection, or gives nil where there is none or it may not come in.
func (s *Server) accept(l *listener) *conn {
	fd, from, err := l.next()
	switch err {
	case nil:
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM: // others must give some back first
		if s.scarce.now(time.Now()) {
			s.log.Warn("connection not accepted", "device", l.device.Load().Name, "reason", err)
		}
		s.pause(acceptPause)
		return nil
	default: // gone already, or taken by whoever ran the loop before
		return nil
	}
	source, ok := from.(*unix.SockaddrInet4)
	if !ok {
		unix.Close(fd)
		return nil
	}
	c := &conn{server: s, listener: l, fd: fd, source: netip.AddrPortFrom(netip.AddrFrom4(source.Addr), uint16(source.Port))}
	if !s.admit(c) {
		return nil
	}
	return c
}

// next takes a connection from the queue.
func (l *listener) next() (fd int, from unix.Sockaddr, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended { // and its descriptor may be another's by now
		return -1, nil, unix.EBADF
	}
	return unix.Accept4(l.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
}

// acceptPause is how long nothing is accepted when descriptors or memory are scarce.
const acceptPause = 5 * time.Millisecond

// close ends the place: nobody listens there any more, and its connections end at once.
func (l *listener) close(s *Server) {
	l.deafen(s, false)
	s.sockets.Drop(l.place.socketName())
	l.endConnections((*conn).abort)
}

// stop leaves the place to the next process, and has the connections end once they are answered.
func (l *listener) stop(s *Server) {
	l.deafen(s, true)
	l.endConnections((*conn).stop)
}

// deafen has no more connections accepted.
func (l *listener) deafen(s *Server, stopping bool) {
	s.loop.ignore(l)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended {
		l.ended, l.stopping = true, stopping
		unix.Close(l.fd)
	}
}

// count says how many connections there are.
func (l *listener) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

func (l *listener) endConnections(how func(*conn)) {
	l.mu.Lock()
	conns := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	for _, c := range conns {
		how(c)
	}
}

// add counts a connection in, unless the listener has ended otherwise than by the server's stop.
func (l *listener) add(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.stopping:
		c.noMore()
	case l.ended:
		return false
	}
	l.conns[c] = struct{}{}
	return true
}
