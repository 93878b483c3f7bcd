package shared

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vragent/agent/internal/etcd"
	"vragent/dhcp"
)

// Leases are the pool leases of both routers. It implements dhcp.SharedLeases: Commit is called by one
// goroutine at a time, Follow by another.
type Leases struct {
	store  *Store
	prefix string

	// turn holds a token that is taken for each transaction and each look at what changed, so that what
	// was written here is known before what others made of it. It guards what follows.
	turn    chan struct{}
	known   map[string]place // by key, all that is in the store
	newest  int64            // revision
	epoch   string
	orphans []dhcp.Lease // that a store without this router's leases is to get
	adopted func()
	lose    context.CancelCauseFunc // ends the Follow in progress; nil is none
}

// place is the record of one address as this router knows it.
type place struct {
	changed int64 // revision
	lease   dhcp.Lease
}

// Leases returns the leases of the store. Orphans are the leases of a router that had no partner so far:
// the store gets those whose addresses are nobody's there, and adopted is called once it has them.
func (s *Store) Leases(orphans []dhcp.Lease, adopted func()) *Leases {
	return &Leases{
		store: s, prefix: s.prefix + "/leases/", turn: make(chan struct{}, 1), known: make(map[string]place),
		orphans: orphans, adopted: adopted,
	}
}

// take waits for the token.
func (l *Leases) take(ctx context.Context) error {
	select {
	case l.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l *Leases) give() { <-l.turn }

// record is the value of a key.
type record struct {
	Format int        `json:"format"`
	Lease  dhcp.Lease `json:"lease"`
}

// recordFormat changes when a release would misread a record.
const recordFormat = 1

func (l *Leases) key(lease *dhcp.Lease) string {
	return l.prefix + lease.Network + "/" + lease.IP.String()
}

// unreadable is how long an address whose record says nothing is left alone.
const unreadable = time.Hour

// read returns the lease of a key. One that cannot be read, because a newer release wrote it or somebody
// else did, is an address that nobody gets.
func (l *Leases) read(kv etcd.KV) (dhcp.Lease, error) {
	name, ip, _ := strings.Cut(strings.TrimPrefix(kv.Key, l.prefix), "/")
	address, err := netip.ParseAddr(ip)
	if err != nil {
		return dhcp.Lease{}, fmt.Errorf("%s is no key of a lease", kv.Key)
	}
	var r record
	err = json.Unmarshal(kv.Value, &r)
	switch {
	case err != nil:
		err = fmt.Errorf("%s: %w", kv.Key, err)
	case r.Format != recordFormat:
		err = fmt.Errorf("%s has format %d, want %d: written by a newer release", kv.Key, r.Format, recordFormat)
	case r.Lease.Network != name || r.Lease.IP != address || r.Lease.MAC == dhcp.MAC{} || r.Lease.State < dhcp.LeaseBound || r.Lease.State > dhcp.LeaseDeclined:
		err = fmt.Errorf("%s holds no lease of that address", kv.Key)
	default:
		return r.Lease, nil
	}
	now := l.store.now()
	return dhcp.Lease{Network: name, IP: address, State: dhcp.LeaseDeclined, Start: now, Expiry: now.Add(unreadable)}, err
}

// Each calls fn with every lease that this router knows the store to hold, at one moment, in any order,
// and returns fn's error.
func (l *Leases) Each(ctx context.Context, fn func(dhcp.Lease) error) error {
	if err := l.take(ctx); err != nil {
		return err
	}
	list := slices.Collect(maps.Values(l.known))
	l.give()
	for _, p := range list {
		if err := fn(p.lease); err != nil {
			return err
		}
	}
	return nil
}

// Follow implements dhcp.SharedLeases.
func (l *Leases) Follow(ctx context.Context, take func(dhcp.Lease), current func()) error {
	ctx, lose := context.WithCancelCause(ctx)
	defer lose(nil)
	if err := l.take(ctx); err != nil {
		return err
	}
	l.lose = lose
	newest := l.newest
	l.give()
	if err := l.restore(ctx, newest); err != nil {
		l.store.report(leasesPart, err)
		return err
	}
	tell := func(list []dhcp.Lease) {
		for _, lease := range list {
			take(lease)
		}
	}
	return l.store.follow(ctx, leasesPart, l.prefix, func(kvs []etcd.KV, revision int64) error {
		if err := l.take(ctx); err != nil {
			return err
		}
		list := l.compare(kvs, revision)
		l.give()
		tell(list)
		return nil
	}, current, func(events []etcd.Event) error {
		if err := l.take(ctx); err != nil {
			return err
		}
		list := l.change(events)
		l.give()
		tell(list)
		return nil
	})
}

// restore gives a store that was emptied, or that this router never wrote to, what the router knows.
// newest is a revision that the store had before.
func (l *Leases) restore(ctx context.Context, newest int64) error {
	epoch, err := l.store.epoch(ctx)
	if err != nil {
		return err
	}
	all, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	_, revision, err := l.store.kv.Range(all, l.store.prefix+"/epoch")
	if err != nil {
		return err
	}
	if err := l.take(ctx); err != nil {
		return err
	}
	lost := l.orphans
	if emptied := l.epoch != "" && (l.epoch != epoch || revision < newest); emptied {
		for _, p := range l.known {
			lost = append(lost, p.lease)
		}
		clear(l.known)
		l.newest = 0
		l.store.log.Warn("the shared store has lost what was in it; it gets back the pool leases that this router knows", "count", len(lost))
	}
	l.epoch, l.orphans = epoch, lost
	l.give()
	var keep []dhcp.Lease
	now := l.store.now()
	for _, lease := range lost {
		if lease.State != dhcp.LeaseForgotten && (lease.Expiry.IsZero() || lease.Expiry.After(now)) {
			keep = append(keep, lease)
		}
	}
	var held *dhcp.HeldError
	if len(keep) > 0 {
		if err := l.write(ctx, keep, true); err != nil && !errors.As(err, &held) {
			return err
		}
	}
	if err := l.take(ctx); err != nil {
		return err
	}
	l.orphans = nil
	if len(lost) > 0 {
		clear(l.known) // what is in the store now is news, whosever it is
	}
	l.give()
	if l.adopted != nil {
		l.adopted()
		l.adopted = nil
	}
	return nil
}

// compare takes the whole store as it is at a revision and returns what is news.
func (l *Leases) compare(kvs []etcd.KV, revision int64) []dhcp.Lease {
	var news []dhcp.Lease
	there := make(map[string]bool, len(kvs))
	for _, kv := range kvs {
		there[kv.Key] = true
		if p, ok := l.known[kv.Key]; ok && p.changed >= kv.Changed {
			continue
		}
		news = l.learn(news, kv)
	}
	for key, p := range l.known {
		if !there[key] && p.changed <= revision {
			delete(l.known, key)
			news = append(news, l.forgotten(p.lease))
		}
	}
	l.newest = max(l.newest, revision)
	return news
}

// change takes changes as they come and returns what is news. How long they last is told from now on: the
// clocks of two routers need not agree for that.
func (l *Leases) change(events []etcd.Event) []dhcp.Lease {
	var news []dhcp.Lease
	for _, e := range events {
		l.newest = max(l.newest, e.Changed)
		p, known := l.known[e.Key]
		switch {
		case known && p.changed >= e.Changed:
		case e.Deleted && known:
			delete(l.known, e.Key)
			news = append(news, l.forgotten(p.lease))
		case e.Deleted: // by this router, or without a word before
		default:
			n := len(news)
			news = l.learn(news, e.KV)
			for i := range news[n:] {
				l.arrive(&news[n+i])
			}
		}
	}
	return news
}

// arrive puts a lease that was recorded a moment ago into the time of this router.
func (l *Leases) arrive(lease *dhcp.Lease) {
	if lease.Expiry.IsZero() {
		return
	}
	now := l.store.now()
	lease.Start, lease.Expiry = now, now.Add(lease.Expiry.Sub(lease.Start))
}

// learn notes a key and adds its lease to news.
func (l *Leases) learn(news []dhcp.Lease, kv etcd.KV) []dhcp.Lease {
	lease, err := l.read(kv)
	if err != nil {
		l.store.log.Error("record in the shared store cannot be used; its address is left alone", "err", err)
		delete(l.known, kv.Key) // so that it is not overwritten
		if !lease.IP.IsValid() {
			return news
		}
		return append(news, lease)
	}
	l.known[kv.Key] = place{kv.Changed, lease}
	return append(news, lease)
}

// forgotten is the record of an address that nothing is in the store of.
func (l *Leases) forgotten(lease dhcp.Lease) dhcp.Lease {
	return dhcp.Lease{Network: lease.Network, IP: lease.IP, State: dhcp.LeaseForgotten, Start: l.store.now()}
}

// Commit implements dhcp.SharedLeases.
func (l *Leases) Commit(ctx context.Context, leases []dhcp.Lease) error {
	return l.write(ctx, leases, false)
}

// write stores records, transaction by transaction. Where missing is set it writes only those that the
// store has no record of.
func (l *Leases) write(ctx context.Context, leases []dhcp.Lease, missing bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, writeTime, errSlow)
	defer cancel()
	if err := l.take(ctx); err != nil {
		return err
	}
	defer l.give()
	// Of one address the last record counts.
	at := make(map[string]int, len(leases))
	var list []dhcp.Lease
	for _, lease := range leases {
		key := l.key(&lease)
		if i, again := at[key]; again {
			list[i] = lease
			continue
		}
		at[key] = len(list)
		list = append(list, lease)
	}
	var held []dhcp.Lease
	for len(list) > 0 {
		n := min(len(list), etcd.MaxOps)
		more, err := l.transact(ctx, list[:n], missing)
		if err != nil {
			// What is in the store now has to be seen.
			if l.lose != nil {
				l.lose(err)
			}
			return err
		}
		held = append(held, more...)
		list = list[n:]
	}
	if len(held) > 0 {
		return &dhcp.HeldError{Held: held}
	}
	return nil
}

var errSlow = fmt.Errorf("the shared store did not answer within %v", writeTime)

// rounds bounds how often a transaction is tried anew because others were faster.
const rounds = 10

// transact stores records in one transaction, less those that turn out to be held by others, and returns
// what these hold.
func (l *Leases) transact(ctx context.Context, list []dhcp.Lease, missing bool) (held []dhcp.Lease, err error) {
	for range rounds {
		var txn etcd.Txn
		for i := range list {
			key := l.key(&list[i])
			txn.Unchanged = append(txn.Unchanged, etcd.Compare{Key: key, Changed: l.known[key].changed})
			txn.Read = append(txn.Read, key)
			if list[i].State == dhcp.LeaseForgotten {
				txn.Deletes = append(txn.Deletes, key)
				continue
			}
			value, err := json.Marshal(record{recordFormat, list[i]})
			if err != nil {
				return nil, fmt.Errorf("lease of %s: %w", list[i].IP, err)
			}
			txn.Puts = append(txn.Puts, etcd.Put{Key: key, Value: value})
		}
		done, revision, read, err := l.store.commit(ctx, txn)
		if err != nil {
			return nil, err
		}
		if done {
			l.newest = max(l.newest, revision)
			for i := range list {
				key := l.key(&list[i])
				if list[i].State == dhcp.LeaseForgotten {
					delete(l.known, key)
				} else {
					l.known[key] = place{revision, list[i]}
				}
			}
			return held, nil
		}
		now := make(map[string]etcd.KV, len(read))
		for _, kv := range read {
			now[kv.Key] = kv
		}
		var rest []dhcp.Lease
		for _, lease := range list {
			key := l.key(&lease)
			kv, there := now[key]
			switch {
			case kv.Changed == l.known[key].changed: // not the reason
				rest = append(rest, lease)
			case !there:
				delete(l.known, key)
				if lease.State != dhcp.LeaseForgotten {
					rest = append(rest, lease)
				}
			default:
				holder, err := l.read(kv)
				if err == nil {
					l.known[key] = place{kv.Changed, holder}
				}
				if err == nil && !missing && l.yields(&holder, &lease) {
					rest = append(rest, lease)
				} else {
					held = append(held, holder)
				}
			}
		}
		if list = rest; len(list) == 0 {
			return held, nil
		}
	}
	return nil, fmt.Errorf("the shared store changes faster than it can be written, tried %d times", rounds)
}

// yields reports whether a record that another router wrote may be replaced: it is of the same client, or
// its address is nobody's.
func (l *Leases) yields(holder, lease *dhcp.Lease) bool {
	switch {
	case holder.MAC == lease.MAC:
		return true
	case lease.State != dhcp.LeaseBound:
		return false
	}
	return holder.State == dhcp.LeaseReleased || !holder.Expiry.IsZero() && holder.Expiry.Before(l.store.now())
}
