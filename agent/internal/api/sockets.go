package api

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Sockets opens listening sockets that may outlive the process: connections that come while it ends
// wait there for the next one.
type Sockets interface {
	// Open returns the socket that the process before this one had under the name, if check finds it
	// right, or else what open returns. The caller owns the descriptor and closes it; at the end of
	// the process that alone does not end the socket.
	Open(name string, check func(fd int) error, open func() (fd int, err error)) (int, error)
	// Keeps tells whether sockets outlive the process.
	Keeps() bool
}

// Names of the sockets.
const (
	unixSocket = "api.socket"
	tcpSocket  = "api.listen"
)

// ownSockets are those that end with the process.
type ownSockets struct{}

func (ownSockets) Open(_ string, _ func(int) error, open func() (int, error)) (int, error) {
	return open()
}

func (ownSockets) Keeps() bool { return false }

// listener makes a listener of a socket, which it owns from then on.
func listener(fd int) (net.Listener, error) {
	file := os.NewFile(uintptr(fd), "listener")
	ln, err := net.FileListener(file) // with a descriptor of its own
	return ln, errors.Join(err, file.Close())
}

// descriptor takes the socket out of a listener, which is closed.
func descriptor(ln interface {
	net.Listener
	syscall.Conn
}) (int, error) {
	fd := -1
	raw, err := ln.SyscallConn()
	if err == nil {
		var failed error
		err = raw.Control(func(of uintptr) { fd, failed = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) })
		err = errors.Join(err, failed)
	}
	return fd, errors.Join(err, ln.Close())
}

// checkListening tells what a socket lacks to be one that listens for streams, and returns what it is
// bound to.
func checkListening(fd, domain int) (unix.Sockaddr, error) {
	for _, want := range []struct {
		what          string
		option, value int
	}{
		{"SO_DOMAIN", unix.SO_DOMAIN, domain},
		{"SO_TYPE", unix.SO_TYPE, unix.SOCK_STREAM},
		{"SO_ACCEPTCONN", unix.SO_ACCEPTCONN, 1},
	} {
		got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, want.option)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", want.what, err)
		}
		if got != want.value {
			return nil, fmt.Errorf("%s is %d, want %d", want.what, got, want.value)
		}
	}
	return unix.Getsockname(fd)
}
