package dhcp

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// Sockets opens sockets that may outlive the process: what clients send while it ends waits there for
// the next one.
type Sockets interface {
	// Open returns the socket that the process before this one had under the name, if check finds it
	// right, or else what open returns. The caller owns the descriptor and closes it; at the end of
	// the process that alone does not end the socket.
	Open(name string, check func(fd int) error, open func() (fd int, err error)) (int, error)
	// Drop says that the socket of a name is wanted no longer, by the next process either. It comes
	// after the descriptor was closed.
	Drop(name string)
}

// ownSockets are those that end with the process.
type ownSockets struct{}

func (ownSockets) Open(_ string, _ func(int) error, open func() (int, error)) (int, error) {
	return open()
}

func (ownSockets) Drop(string) {}

// socketName names the socket of a device: by its index, which no other device gets while the system
// runs.
func socketName(index int) string { return "dhcp." + strconv.Itoa(index) }

// listen opens the server's port on a device, or takes it over from the process before this one.
func (s *Server) listen(device string, index int) (*listener, error) {
	fd, err := s.sockets.Open(socketName(index),
		func(fd int) error { return checkSocket(fd, device, index) },
		func() (int, error) { return openSocket(device, index) })
	if err != nil {
		return nil, err
	}
	l, err := newListener(fd, device)
	if err != nil {
		err = errors.Join(err, unix.Close(fd))
		s.sockets.Drop(socketName(index))
		return nil, err
	}
	return l, nil
}

// checkSocket tells what a socket of the process before this one lacks to be what openSocket returns. What
// can be set anew is.
func checkSocket(fd int, device string, index int) error {
	for _, want := range []struct {
		what          string
		option, value int
	}{
		{"SO_DOMAIN", unix.SO_DOMAIN, unix.AF_INET},
		{"SO_PROTOCOL", unix.SO_PROTOCOL, unix.IPPROTO_UDP},
		{"SO_BINDTOIFINDEX", unix.SO_BINDTOIFINDEX, index},
		{"SO_REUSEADDR", unix.SO_REUSEADDR, 0},
	} {
		got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, want.option)
		if err != nil {
			return fmt.Errorf("%s: %w", want.what, err)
		}
		if got != want.value {
			return fmt.Errorf("%s is %d, want %d", want.what, got, want.value)
		}
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	if at, ok := bound.(*unix.SockaddrInet4); !ok || at.Port != serverPort || at.Addr != [4]byte{} {
		return fmt.Errorf("bound to %v, want UDP port %d of every address", bound, serverPort)
	}
	return setUpSocket(fd, device, index)
}
