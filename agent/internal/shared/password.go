package shared

import (
	"bytes"
	"context"
	"strings"

	"vragent/agent/internal/etcd"
)

// Passwords are the records of the passwords that the VMs of both routers have taken, by VM. A record is
// whatever its owner makes of it, and never the password itself.
type Passwords struct {
	store  *Store
	prefix string
}

// Passwords returns the records of the store.
func (s *Store) Passwords() *Passwords { return &Passwords{store: s, prefix: s.prefix + "/taken/"} }

// Get returns the record of a VM as both routers agree on it now, nil where there is none.
func (p *Passwords) Get(ctx context.Context, vm string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	kv, there, err := p.store.kv.Get(ctx, p.prefix+vm)
	if err != nil || !there {
		return nil, err
	}
	return kv.Value, nil
}

// Put records what a VM has taken. After an error it may be recorded or not.
func (p *Passwords) Put(ctx context.Context, vm string, value []byte) error {
	return p.commit(ctx, etcd.Txn{Puts: []etcd.Put{{Key: p.prefix + vm, Value: value}}})
}

// Restore records what a VM has taken unless there is a record of it.
func (p *Passwords) Restore(ctx context.Context, vm string, value []byte) error {
	return p.commit(ctx, etcd.Txn{Unchanged: []etcd.Compare{{Key: p.prefix + vm}}, Puts: []etcd.Put{{Key: p.prefix + vm, Value: value}}})
}

// Remove removes the record of a VM if it is value still: another one is of a later password.
func (p *Passwords) Remove(ctx context.Context, vm string, value []byte) error {
	get, cancel := context.WithTimeoutCause(ctx, writeTime, errSlow)
	defer cancel()
	kv, there, err := p.store.kv.Get(get, p.prefix+vm)
	if err != nil || !there || !bytes.Equal(kv.Value, value) {
		return err
	}
	return p.commit(ctx, etcd.Txn{Unchanged: []etcd.Compare{{Key: kv.Key, Changed: kv.Changed}}, Deletes: []string{kv.Key}})
}

// commit makes a transaction; that its comparisons do not hold is no error.
func (p *Passwords) commit(ctx context.Context, t etcd.Txn) error {
	ctx, cancel := context.WithTimeoutCause(ctx, writeTime, errSlow)
	defer cancel()
	_, _, _, err := p.store.commit(ctx, t)
	return err
}

// Follow calls take with every record, then current, then take with each change, nil for a record that
// was removed, until ctx ends or the store is lost, and returns why.
func (p *Passwords) Follow(ctx context.Context, take func(vm string, value []byte), current func()) error {
	return p.store.follow(ctx, passwordsPart, p.prefix, func(kvs []etcd.KV, _ int64) error {
		for _, kv := range kvs {
			take(strings.TrimPrefix(kv.Key, p.prefix), kv.Value)
		}
		return nil
	}, current, func(events []etcd.Event) error {
		for _, e := range events {
			value := e.Value
			if e.Deleted {
				value = nil
			}
			take(strings.TrimPrefix(e.Key, p.prefix), value)
		}
		return nil
	})
}
