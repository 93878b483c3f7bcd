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

	mu    sync.Mutex
	ended bool
	conns map[*conn]struct{}
}

// backlog is how many connections may wait to be accepted. The kernel has a limit of its own.
const backlog = 4096

// listen opens a place.
func (s *Server) listen(p place, d *Device) (*listener, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := bindSocket(fd, p.device); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(s.ports[p.service]), Addr: p.address.As4()}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(fd, backlog); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen: %w", err)
	}
	l := &listener{fd: fd, place: p, strangers: new(strangers), conns: make(map[*conn]struct{})}
	l.device.Store(d)
	return l, nil
}

// bindSocket sets a listening socket's options before it is bound to its address. Bound to the device,
// it accepts what comes in there and nothing else, whatever address that was sent to, so that devices
// may have the same addresses. The address need not be there yet. Accepted connections inherit
// TCP_NODELAY.
func bindSocket(fd, device int) error {
	for _, o := range []struct {
		name                 string
		level, option, value int
	}{
		{"SO_BINDTOIFINDEX", unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, device},
		{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{"IP_FREEBIND", unix.IPPROTO_IP, unix.IP_FREEBIND, 1},
		{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.option, o.value); err != nil {
			return fmt.Errorf("set %s: %w", o.name, err)
		}
	}
	return nil
}

// accept takes one connection, or gives nil where there is none or it may not come in.
func (s *Server) accept(l *listener) *conn {
	fd, from, err := unix.Accept4(l.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
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

// acceptPause is how long nothing is accepted when descriptors or memory are scarce.
const acceptPause = 5 * time.Millisecond

// end stops listening and ends the listener's connections in the given way.
func (l *listener) end(s *Server, how func(*conn)) {
	s.loop.ignore(l)
	l.mu.Lock()
	if !l.ended {
		l.ended = true
		unix.Close(l.fd)
	}
	l.mu.Unlock()
	l.endConnections(how)
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

// add counts a connection in, unless the listener has ended.
func (l *listener) add(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	l.conns[c] = struct{}{}
	return true
}
