package agent

import (
	"context"
	"errors"
	"fmt"

	"vragent/agent/internal/state"
	"vragent/dhcp"
)

// leases keeps pool leases in a store of their own: one record for each address. It implements
// dhcp.Leases.
type leases struct{ store *state.Store }

const leasePrefix = "lease/"

func leaseKey(l dhcp.Lease) string { return leasePrefix + l.Network + "/" + l.IP.String() }

// Load implements dhcp.Leases. Records that are damaged are left out; their addresses count as never
// leased, which the probe and the client's own check (RFC 2131, section 4.4.1) catch where it is wrong.
func (s leases) Load(fn func(dhcp.Lease) error) error {
	err := s.store.Each(leasePrefix, -1, func(key string, value []byte) error {
		var l dhcp.Lease
		if err := l.UnmarshalBinary(value); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		return fn(l)
	})
	if errors.Is(err, state.ErrDamaged) {
		return nil // reported when the store was opened
	}
	return err
}

// Commit implements dhcp.Leases.
func (s leases) Commit(_ context.Context, list []dhcp.Lease) error {
	var batch state.Batch
	for _, l := range list {
		if l.State == dhcp.LeaseForgotten {
			batch.Delete(leaseKey(l))
			continue
		}
		value, err := l.MarshalBinary()
		if err != nil {
			return fmt.Errorf("lease of %s: %w", l.IP, err)
		}
		batch.Put(leaseKey(l), value)
	}
	return s.store.Commit(&batch)
}
