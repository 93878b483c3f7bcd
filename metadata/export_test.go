package metadata

import (
	"net/netip"
	"time"
)

// CheckSocket is checkSocket for the metadata service.
func CheckSocket(fd, device int, address netip.Addr, port uint16) error {
	return checkSocket(fd, place{device, address, metadataService}, port)
}

// ShortTimeouts makes connections end sooner than a test would want to wait for. It is called before
// the server has devices.
func (s *Server) ShortTimeouts(d time.Duration) {
	for _, h := range s.http {
		h.ReadTimeout, h.WriteTimeout, h.IdleTimeout = d, d, d
	}
	s.sweep.Reset(d)
}

// Connections counts those that are open.
func (s *Server) Connections() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.open {
		l.mu.Lock()
		n += len(l.conns)
		l.mu.Unlock()
	}
	return n
}

// TakeLeave changes how long connections have when the server stops: to end with their next answer, and
// for everything else. It is called before the server has devices.
func (s *Server) TakeLeave(linger, rest time.Duration) {
	s.farewell = farewell{linger: linger, request: rest, all: 2 * rest}
}
