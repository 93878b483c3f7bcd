package dhcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Offers that their clients have not taken up yet are no leases and not on stable storage. They go to the
// next process with the sockets: else it would offer the same addresses to others, whose DISCOVERs may have
// waited before the REQUESTs. They are kept as a memory file of records of Lease.AppendBinary, each after its
// length in two bytes, big-endian; expiry is the end of the offer.

const (
	offersName = "dhcp.offers"
	offersSize = 1 << 20 // of the largest file that is read, in bytes
)

var errNoOffers = errors.New("there are no offers of before")

// leaveOffers leaves the offers to the next process.
func (s *Server) leaveOffers() {
	now := s.now()
	var file []byte
	for _, scope := range s.table.scopes.Load().all {
		for _, l := range scope.pool.offers(now) {
			record, err := l.MarshalBinary()
			if err != nil || len(file)+2+len(record) > offersSize {
				continue // that client may have to begin anew
			}
			file = append(binary.BigEndian.AppendUint16(file, uint16(len(record))), record...)
		}
	}
	if len(file) == 0 {
		return
	}
	fd, err := s.sockets.Open(offersName, func(int) error { return errors.New("of the process before") }, func() (int, error) { return memoryFile(offersName, file) })
	if err == nil {
		err = unix.Close(fd)
	}
	if err != nil {
		s.log.Debug("offers end with this process", "reason", err)
	}
}

func memoryFile(name string, content []byte) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("memory file: %w", err)
	}
	for done := 0; done < len(content); {
		n, err := unix.Pwrite(fd, content[done:], int64(done))
		if err != nil {
			return -1, errors.Join(fmt.Errorf("memory file: %w", err), unix.Close(fd))
		}
		done += n
	}
	return fd, nil
}

// takeOffers puts the offers of the process before this one in force.
func (s *Server) takeOffers() {
	var offers []Lease
	fd, err := s.sockets.Open(offersName,
		func(fd int) (err error) {
			offers, err = readOffers(fd)
			return err
		},
		func() (int, error) { return -1, errNoOffers })
	if err != nil { // or they could not be read, which whoever kept them has logged
		return
	}
	_ = unix.Close(fd) // it was read
	s.sockets.Drop(offersName)
	now := s.now()
	for _, l := range offers {
		if scope := s.table.scope(l.Network); scope != nil {
			scope.pool.reoffer(&l, now)
		}
	}
}

func readOffers(fd int) ([]Lease, error) {
	var info unix.Stat_t
	if err := unix.Fstat(fd, &info); err != nil {
		return nil, err
	}
	if info.Mode&unix.S_IFMT != unix.S_IFREG || info.Size > offersSize {
		return nil, errors.New("not a file of offers")
	}
	file := make([]byte, info.Size)
	for done := 0; done < len(file); {
		n, err := unix.Pread(fd, file[done:], int64(done))
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, os.NewSyscallError("pread", err)
		}
		done += n
	}
	return parseOffers(file)
}

// parseOffers reads what leaveOffers wrote.
func parseOffers(file []byte) ([]Lease, error) {
	var offers []Lease
	for len(file) > 0 {
		if len(file) < 2 || len(file) < 2+int(binary.BigEndian.Uint16(file)) {
			return nil, errors.New("offers are cut short")
		}
		size := int(binary.BigEndian.Uint16(file))
		var l Lease
		if err := l.UnmarshalBinary(file[2 : 2+size]); err != nil {
			return nil, fmt.Errorf("offer: %w", err)
		}
		offers = append(offers, l)
		file = file[2+size:]
	}
	return offers, nil
}

// offers returns what clients were offered and may still take up, by address.
func (p *pool) offers(now time.Time) []Lease {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expire(now)
	var offers []Lease
	for _, s := range p.byIP {
		if s.state == slotOffered {
			offers = append(offers, *p.record(s, LeaseBound, now))
		}
	}
	slices.SortFunc(offers, func(a, b Lease) int { return a.IP.Compare(b.IP) })
	return offers
}

// reoffer holds an address for a client that another process offered it to, unless it is in use.
func (p *pool) reoffer(l *Lease, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !l.IP.Is4() || !p.usable(addrNumber(l.IP)) {
		return
	}
	if old := p.byMAC[l.MAC]; old != nil && old.state == slotBound {
		return
	}
	s := p.slotAt(addrNumber(l.IP))
	end := now.Add(min(l.Expiry.Sub(now.Round(0)), offerHold))
	if s.state != slotFree || !end.After(now) {
		return
	}
	p.assign(s, &client{mac: l.MAC, clientID: l.ClientID, hostname: []byte(l.Hostname)}, now)
	p.set(s, slotOffered, end)
}
