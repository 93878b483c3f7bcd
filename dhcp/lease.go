package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"
)

// LeaseState is what became of a pool address.
type LeaseState uint8

// States of a pool address.
const (
	// LeaseBound: the client has it until Expiry.
	LeaseBound LeaseState = 1
	// LeaseReleased: free, and remembered for the client that had it.
	LeaseReleased LeaseState = 2
	// LeaseDeclined: in use by somebody unknown, and not given to anybody until Expiry.
	LeaseDeclined LeaseState = 3
	// LeaseForgotten: nothing is to be kept of it. The store deletes what it has under the key.
	LeaseForgotten LeaseState = 4
)

// String returns the state's name: bound, released, declined or forgotten.
func (s LeaseState) String() string {
	switch s {
	case LeaseBound:
		return "bound"
	case LeaseReleased:
		return "released"
	case LeaseDeclined:
		return "declined"
	case LeaseForgotten:
		return "forgotten"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// MarshalText returns the state's name.
func (s LeaseState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the state's name.
func (s *LeaseState) UnmarshalText(text []byte) error {
	for _, state := range []LeaseState{LeaseBound, LeaseReleased, LeaseDeclined, LeaseForgotten} {
		if state.String() == string(text) {
			*s = state
			return nil
		}
	}
	return fmt.Errorf("%q is no lease state", text)
}

// Lease is the record of one pool address. Network and IP are its key: a later record of the same key
// replaces an earlier one.
type Lease struct {
	Network  string     `json:"network"`
	IP       netip.Addr `json:"ip"`
	MAC      MAC        `json:"mac"`
	ClientID []byte     `json:"client_id,omitempty"`
	Hostname string     `json:"hostname,omitempty"` // as the client said it, any bytes
	State    LeaseState `json:"state"`
	// Start is when this record came to be, wall clock.
	Start time.Time `json:"start"`
	// Expiry is the end of the lease or of the quarantine; the zero time is never.
	Expiry time.Time `json:"expiry,omitzero"`
}

// Leases is stable storage for pool leases, which the server's user provides. Its methods are called
// by several goroutines at once.
type Leases interface {
	// Load calls fn with the last record of each key, in any order, and returns fn's error or its own.
	Load(fn func(Lease) error) error
	// Commit stores records, in their order. When it returns nil, they survive the loss of power; when
	// it returns an error, the server takes none of them for stored. Concurrent calls share a sync.
	Commit(ctx context.Context, leases []Lease) error
}

// SharedLeases is stable storage that other servers of the same networks write to as well: of several
// routers one serves at a time, and the next one goes on where it ended.
//
// An address is one client's until the expiry that the store holds, whoever asks. That is later than what
// the client was told by half of its lease time, so that a server that cannot reach the store has time
// left that it can renew leases within, and no other server gives their addresses away before.
type SharedLeases interface {
	// Commit stores records like Leases does, and those only whose place in the store is as this server
	// was told last. A *HeldError says that all others were stored.
	Commit(ctx context.Context, leases []Lease) error
	// Follow calls take with what others have written, and with LeaseForgotten for what is not in the
	// store any more: first with everything that this server was not told yet, then it calls current,
	// then take with each change as it comes. It returns when ctx ends, or why the store cannot be
	// followed any more.
	Follow(ctx context.Context, take func(Lease), current func()) error
}

// HeldError is returned by a SharedLeases for records that were not stored.
type HeldError struct {
	Held []Lease // what the store holds instead, by the same network and address
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("another server has given %s to somebody else", e.Held[0].IP)
}

// leaseFormat is the first byte of a binary record.
const leaseFormat = 1

// AppendBinary appends a compact record of the lease, which UnmarshalBinary reads. Times keep their
// nanoseconds and lose their place on the monotonic clock.
func (l Lease) AppendBinary(b []byte) ([]byte, error) {
	if !l.IP.Is4() || len(l.Network) > math.MaxUint8 || len(l.ClientID) > math.MaxUint16 || len(l.Hostname) > math.MaxUint16 {
		return nil, fmt.Errorf("lease of %s in %q cannot be encoded", l.IP, l.Network)
	}
	ip := l.IP.As4()
	b = append(b, leaseFormat, byte(l.State))
	b = append(b, ip[:]...)
	b = append(b, l.MAC[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(timeNumber(l.Start)))
	b = binary.BigEndian.AppendUint64(b, uint64(timeNumber(l.Expiry)))
	b = append(append(b, byte(len(l.Network))), l.Network...)
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(l.ClientID))), l.ClientID...)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(l.Hostname))), l.Hostname...), nil
}

// MarshalBinary is AppendBinary to nothing.
func (l Lease) MarshalBinary() ([]byte, error) { return l.AppendBinary(nil) }

// UnmarshalBinary reads a record of AppendBinary's. It keeps nothing of b.
func (l *Lease) UnmarshalBinary(b []byte) error {
	const fixed = 2 + 4 + 6 + 8 + 8
	switch {
	case len(b) == 0:
		return errors.New("lease record is empty")
	case b[0] != leaseFormat:
		return fmt.Errorf("lease record has format %d, want %d", b[0], leaseFormat)
	case len(b) < fixed:
		return errors.New("lease record is cut short")
	}
	lease := Lease{State: LeaseState(b[1]), IP: netip.AddrFrom4([4]byte(b[2:6])), MAC: MAC(b[6:12])}
	if lease.State < LeaseBound || lease.State > LeaseForgotten {
		return fmt.Errorf("lease record has unknown state %d", b[1])
	}
	lease.Start = numberTime(int64(binary.BigEndian.Uint64(b[12:])))
	lease.Expiry = numberTime(int64(binary.BigEndian.Uint64(b[20:])))
	rest := b[fixed:]
	field := func(width int) []byte {
		if rest == nil || len(rest) < width {
			rest = nil
			return nil
		}
		size := int(rest[0])
		if width == 2 {
			size = int(binary.BigEndian.Uint16(rest))
		}
		if len(rest) < width+size {
			rest = nil
			return nil
		}
		value := rest[width : width+size]
		rest = rest[width+size:]
		return value
	}
	lease.Network = string(field(1))
	if id := field(2); len(id) > 0 {
		lease.ClientID = append([]byte(nil), id...)
	}
	lease.Hostname = string(field(2))
	if rest == nil || len(rest) != 0 {
		return errors.New("lease record has the wrong length")
	}
	*l = lease
	return nil
}

// timeNumber is a time in nanoseconds since 1970; 0 is the zero time.
func timeNumber(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func numberTime(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}
