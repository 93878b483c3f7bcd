package metadata

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Sockets opens listening sockets that may outlive the process: connections that come while it ends
// wait there for the next one.
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

// socketName names the socket of a place. No other device gets the index while the system runs.
func (p place) socketName() string { return fmt.Sprintf("%s.%d.%s", p.service, p.device, p.address) }

// openSocket opens the socket of a place.
func openSocket(p place, port uint16) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	err = bindSocket(fd, p.device)
	if err == nil {
		if err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(port), Addr: p.address.As4()}); err != nil {
			err = fmt.Errorf("bind: %w", err)
		}
	}
	if err == nil {
		err = startListening(fd)
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// startListening has connections inherit TCP_NODELAY and wait to be accepted. Doing it again changes
// nothing.
func startListening(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return fmt.Errorf("set TCP_NODELAY: %w", err)
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return nil
}

// checkSocket tells what a socket of the process before this one lacks to be what openSocket returns.
// What can be set anew is.
func checkSocket(fd int, p place, port uint16) error {
	for _, want := range []struct {
		what          string
		option, value int
	}{
		{"SO_DOMAIN", unix.SO_DOMAIN, unix.AF_INET},
		{"SO_PROTOCOL", unix.SO_PROTOCOL, unix.IPPROTO_TCP},
		{"SO_ACCEPTCONN", unix.SO_ACCEPTCONN, 1},
		{"SO_BINDTOIFINDEX", unix.SO_BINDTOIFINDEX, p.device},
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
	want := netip.AddrPortFrom(p.address, port)
	if at, ok := bound.(*unix.SockaddrInet4); !ok || netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port)) != want {
		return fmt.Errorf("bound to %v, want %s", bound, want)
	}
	return startListening(fd)
}
