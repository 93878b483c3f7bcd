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
type leases struct {
	store   *state.Store
	damaged func(error) // hears of records that cannot be read
}

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
		s.damaged(err)
		return nil
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

// records is a store as users and jobs ask for it. It implements account.Store and job.Store.
type records struct {
	store   *state.Store
	damaged func(error) // hears of records that cannot be read
}

func (r records) Commit(changes map[string][]byte) error {
	var batch state.Batch
	for key, value := range changes {
		if value == nil {
			batch.Delete(key)
		} else {
			batch.Put(key, value)
		}
	}
	return r.store.Commit(&batch)
}

func (r records) Get(key string) ([]byte, error) { return r.store.Get(key) }

func (r records) Each(prefix string, fn func(key string, value []byte) error) error {
	err := r.store.Each(prefix, -1, fn)
	if errors.Is(err, state.ErrDamaged) {
		r.damaged(err)
		return nil
	}
	return err
}
