package metadata

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// conn is a connection of a guest, or of a source that is none, in the form that fasthttp reads
// requests from. At first it is a bare descriptor that nothing waits for but the server's loop: as
// long as requests are there when they are read and answers go out at once, the loop serves them
// itself. When one would have to wait it is detached: from then on it has a goroutine to itself and
// waits in the ordinary way.
type conn struct {
	server   *Server
	listener *listener
	source   netip.AddrPort

	entry   *entry // whose connection it is counted as; nil: a stranger's. Changed by claim only
	refused bool   // over the guest's limit: there to say so

	waiter atomic.Pointer[waiter] // once its request waits for a change

	// Of the goroutine that serves the connection.
	handOver  func()      // has another goroutine run the loop; nil: this one does not run it
	fresh     bool        // nothing has been answered since the loop found something to read
	inRequest bool        // the beginning of a request has been read
	idle      bool        // there was nothing to read between two requests: back to the loop
	parked    bool        // its request waits for a change
	answered  bool        // at least once
	between   atomic.Bool // two requests; any goroutine may look

	mu            sync.Mutex
	fd            int      // -1 once it is closed or detached
	file          *os.File // once it is detached
	closed        bool
	stopping      bool      // no request follows the one in progress
	lastRead      time.Time // once it is stopping: when a request has to be there at last
	readDeadline  time.Time // for when it is detached
	writeDeadline time.Time

	// Of the loop.
	registered int // the descriptor that the loop waits for; 0: none
	expires    time.Time
}

var _ net.Conn = (*conn)(nil)

// Read reads what is there. If that is nothing, a connection between two requests ends with io.EOF
// and idle set, and one within a request is detached and waits.
func (c *conn) Read(b []byte) (int, error) {
	if c.handOver != nil && !c.fresh && !c.inRequest {
		c.idle = true
		return 0, io.EOF
	}
	c.mu.Lock()
	if c.file == nil && !c.closed {
		n, err := retry(func() (int, error) { return unix.Read(c.fd, b) })
		c.mu.Unlock()
		switch {
		case err == unix.EAGAIN:
			if c.handOver != nil && !c.inRequest {
				c.idle = true
				return 0, io.EOF
			}
			if err := c.detach(); err != nil {
				return 0, err
			}
			return c.file.Read(b)
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0 && len(b) > 0:
			return 0, io.EOF
		}
		return n, nil
	}
	file := c.file
	c.mu.Unlock()
	if file == nil {
		return 0, net.ErrClosed
	}
	return file.Read(b)
}

// Write writes all of b. What the client has no room for at once is written once the connection is
// detached.
func (c *conn) Write(b []byte) (int, error) {
	written := 0
	for {
		c.mu.Lock()
		if c.file != nil || c.closed {
			break
		}
		n, err := retry(func() (int, error) { return unix.Write(c.fd, b[written:]) })
		c.mu.Unlock()
		switch {
		case err == unix.EAGAIN:
			if err := c.detach(); err != nil {
				return written, err
			}
			continue
		case err != nil:
			return written, os.NewSyscallError("write", err)
		}
		if written += n; written == len(b) {
			return written, nil
		}
	}
	file := c.file
	c.mu.Unlock()
	if file == nil {
		return written, net.ErrClosed
	}
	n, err := file.Write(b[written:])
	return written + n, err
}

// retry makes a system call again that a signal interrupted.
func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// detach takes the connection out of the loop, with the goroutine that serves it, and lets another
// one run the loop. A connection that is detached stays so.
func (c *conn) detach() error {
	c.server.loop.forget(c)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return net.ErrClosed
	case c.file != nil:
		return nil
	}
	c.file = os.NewFile(uintptr(c.fd), "connection") // does not block, so the runtime waits for it
	c.fd = -1
	err := errors.Join(c.file.SetReadDeadline(c.readUntil()), c.file.SetWriteDeadline(c.writeDeadline))
	if c.handOver != nil {
		c.handOver()
		c.handOver = nil
	}
	return err
}

// mayWait is called by the goroutine that serves the connection before it does what can take long.
func (c *conn) mayWait() {
	if c.handOver != nil {
		c.detach() // if that fails, so will the next Read or Write
	}
}

// readUntil is the deadline for reading. On a connection that is to end after the request in
// progress it is over already between two requests. c.mu is held.
func (c *conn) readUntil() time.Time {
	switch {
	case !c.stopping:
		return c.readDeadline
	case c.between.Load():
		return time.Unix(1, 0)
	case c.readDeadline.IsZero() || c.lastRead.Before(c.readDeadline):
		return c.lastRead
	}
	return c.readDeadline
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.readDeadline = t; c.file != nil {
		return c.file.SetReadDeadline(c.readUntil())
	}
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writeDeadline = t; c.file != nil {
		return c.file.SetWriteDeadline(t)
	}
	return nil
}

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *conn) LocalAddr() net.Addr {
	p := c.listener.place
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.address, c.server.ports[p.service]))
}

func (c *conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.source) }

// Close ends the connection, unless it is going back to the loop.
func (c *conn) Close() error {
	if c.idle {
		return nil
	}
	return c.end(false)
}

// abort ends the connection at once, and what is not sent yet is not sent any more. Any goroutine
// may call it.
func (c *conn) abort() { c.end(true) }

// end closes the connection and counts it out, the first time.
func (c *conn) end(reset bool) error {
	if reset {
		c.control(func(fd int) error {
			return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		})
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	var err error
	if c.file != nil {
		err = c.file.Close()
	} else {
		err = unix.Close(c.fd) // leaves the loop's epoll by itself
		c.fd = -1
	}
	entry := c.entry
	c.mu.Unlock()
	c.server.loop.forget(c)
	c.server.leave(c, entry)
	return err
}

// claim makes a stranger's connection a guest's. It is not ok where the connection has ended.
func (c *conn) claim(e *entry) (ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.entry = e
	}
	return !c.closed
}

// stop ends the connection once the request in progress, if there is one, is answered.
func (c *conn) stop() {
	c.noMore()
	if c.server.loop.forget(c) && !c.server.serveLast(c) {
		c.end(false)
	}
}

// noMore has no request follow the one in progress.
func (c *conn) noMore() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopping, c.lastRead = true, time.Now().Add(c.server.farewell.request)
	if c.file != nil {
		c.file.SetReadDeadline(c.readUntil())
	}
}

// expire ends the connection unless something came just now.
func (c *conn) expire() {
	if c.server.loop.forget(c) {
		c.end(false)
	}
}

// control calls fn with the descriptor while it is open.
func (c *conn) control(fn func(fd int) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return net.ErrClosed
	case c.file == nil:
		return fn(c.fd)
	}
	raw, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	return errors.Join(raw.Control(func(fd uintptr) { failed = fn(int(fd)) }), failed)
}

// limitHops sets the IP hop limit of all that the connection sends from now on.
func (c *conn) limitHops(hops int) error {
	return c.control(func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, hops) })
}

// deserted says whether the client of a connection is gone that nobody reads from meanwhile.
func (c *conn) deserted() bool {
	switch n, err := c.peek(); err {
	case nil:
		return n == 0
	case unix.EAGAIN, unix.EINTR:
		return false
	}
	return true
}

// readable says whether something is there to be read on a connection that nobody reads from meanwhile.
func (c *conn) readable() bool {
	n, err := c.peek()
	return err == nil && n > 0
}

// peek looks at what is there to be read. Nothing without an error is the end.
func (c *conn) peek() (n int, err error) {
	err = c.control(func(fd int) (err error) {
		n, _, err = unix.Recvfrom(fd, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return err
	})
	return n, err
}
