package metadata

import (
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// loop is where connections are waited for, those that are opened as well as those that are between
// two requests: an epoll instance, and one goroutine at a time that runs it, serving what it finds. A
// request that is there already is read, answered and done without another goroutine having to be
// woken for it, which would cost more than the answer, and a connection that is idle takes no
// goroutine at all.
type loop struct {
	epoll int
	bell  int // an eventfd that is readable once the loop is to end

	mu        sync.Mutex
	listeners map[int32]*listener
	conns     map[int32]*conn
}

func newLoop() (*loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epoll)
		return nil, err
	}
	l := &loop{epoll: epoll, bell: bell, listeners: make(map[int32]*listener), conns: make(map[int32]*conn)}
	if err := l.watch(bell); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// close is called once, when nothing runs the loop any more.
func (l *loop) close() {
	unix.Close(l.epoll)
	unix.Close(l.bell)
}

// ring ends the loop.
func (l *loop) ring() {
	unix.Write(l.bell, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

func (l *loop) watch(fd int) error {
	return unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

// listen has the loop accept a listener's connections.
func (l *loop) listen(n *listener) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.listeners[int32(n.fd)] = n
	return l.watch(n.fd)
}

// ignore ends listen. The listener's descriptor is still open.
func (l *loop) ignore(n *listener) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.listeners, int32(n.fd))
	unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, n.fd, nil)
}

// await has the loop serve the connection when there is something to read, until expires. It is not
// ok where the connection has to end instead.
func (l *loop) await(c *conn, expires time.Time) (ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.stopping {
		return false
	}
	c.expires = expires
	if c.registered == 0 {
		if err := l.watch(c.fd); err != nil {
			return false
		}
		c.registered = c.fd
		l.conns[int32(c.fd)] = c
	}
	return true
}

// forget ends await. It says whether the loop waited for the connection.
func (l *loop) forget(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.registered == 0 {
		return false
	}
	if l.conns[int32(c.registered)] == c {
		delete(l.conns, int32(c.registered))
	}
	c.mu.Lock()
	if c.fd >= 0 {
		unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, c.fd, nil)
	}
	c.mu.Unlock()
	waited := !c.expires.IsZero()
	c.registered, c.expires = 0, time.Time{}
	return waited
}

// find tells what an event is for.
func (l *loop) find(fd int32) (*listener, *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := l.listeners[fd]; n != nil {
		return n, nil
	}
	c := l.conns[fd]
	if c != nil {
		c.expires = time.Time{} // it is being served
	}
	return nil, c
}

// expired gives the connections whose time is over.
func (l *loop) expired(now time.Time) []*conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	var expired []*conn
	for _, c := range l.conns {
		if !c.expires.IsZero() && now.After(c.expires) {
			expired = append(expired, c)
		}
	}
	return expired
}

// lead runs the loop, until the server stops or a connection took this goroutine.
func (s *Server) lead() {
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := retry(func() (int, error) { return unix.EpollWait(s.loop.epoll, events, -1) })
		if err != nil { // the descriptor is ours and the arguments are right
			s.log.Error("waiting for connections", slog.Any("reason", err))
			return
		}
		if s.stopped.Err() != nil {
			return
		}
		for _, event := range events[:n] {
			l, c := s.loop.find(event.Fd)
			if l != nil {
				c = s.accept(l)
			}
			if c != nil && !s.serve(c) {
				return // events left over are still there for the next one
			}
		}
	}
}

// serve answers what is there to be read. It says whether this goroutine still runs the loop.
func (s *Server) serve(c *conn) bool {
	handedOver := false
	c.handOver = func() {
		handedOver = true
		s.running.Go(s.lead)
	}
	c.fresh, c.inRequest, c.idle = true, false, false
	server := s.http[c.listener.place.service]
	server.ServeConn(c) // what goes wrong with a connection is its client's affair
	if c.parked {
		return !handedOver // whoever answers it ends it
	}
	if c.idle {
		c.idle = false
		timeout := server.IdleTimeout
		if c.fresh {
			timeout = server.ReadTimeout
		}
		if !s.loop.await(c, time.Now().Add(timeout)) && !s.serveLast(c) {
			c.end(false)
		}
	}
	return !handedOver
}

// serveLast gives a connection that nobody reads from any more, since the server stops, its last chance:
// a request that is there already is answered, and one that has had no answer yet may bring its request
// within a moment. It is not ok where there is no reason to wait.
func (s *Server) serveLast(c *conn) (ok bool) {
	c.mu.Lock()
	stopping := c.stopping
	c.mu.Unlock()
	if !stopping || c.answered && !c.readable() {
		return false
	}
	s.running.Go(func() {
		c.handOver = nil
		if c.detach() != nil {
			c.end(false)
			return
		}
		c.fresh, c.inRequest, c.idle = true, false, false
		s.http[c.listener.place.service].ServeConn(c)
	})
	return true
}
