package metadata

import (
	"context"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// listen opens a place. Bound to the device, the socket accepts what comes in there and nothing
// else, whatever address it was sent to, so that devices may have the same addresses.
func (s *Server) listen(p place, d *Device) (*listener, error) {
	config := net.ListenConfig{
		// No keep-alive probes: every read and write has a deadline, and turning the probes on is
		// four system calls for each connection.
		KeepAlive: -1,
		Control: func(_, _ string, raw syscall.RawConn) error {
			var failed error
			if err := raw.Control(func(fd uintptr) { failed = bindSocket(int(fd), p.device) }); err != nil {
				return err
			}
			return failed
		},
	}
	config.SetMultipathTCP(false)
	opened, err := config.Listen(context.Background(), "tcp4", netip.AddrPortFrom(p.address, s.ports[p.service]).String())
	if err != nil {
		return nil, err
	}
	l := &listener{Listener: opened, place: p, strangers: new(strangers), conns: make(map[*conn]struct{})}
	l.device.Store(d)
	return l, nil
}

// bindSocket sets a listening socket's options before it is bound to its address. The address need
// not be there yet.
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
			return &net.OpError{Op: "set " + o.name, Net: "tcp4", Err: err}
		}
	}
	return nil
}
