package shared

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"vragent/agent/internal/etcd"
)

// KV is the store that the routers share. *etcd.Client is one.
type KV interface {
	Range(ctx context.Context, prefix string) (kvs []etcd.KV, revision int64, err error)
	Get(ctx context.Context, key string) (etcd.KV, bool, error)
	Commit(ctx context.Context, t etcd.Txn) (done bool, revision int64, read []etcd.KV, err error)
	Watch(ctx context.Context, prefix string, revision int64, started func(), fn func([]etcd.Event) error) error
}

// Options are what a Store can be given. All but KV may be left out.
type Options struct {
	KV     KV
	Prefix string // of all keys, without a slash at the end
	Log    *slog.Logger
	Now    func() time.Time
}

// Store is the shared state of a pair. Its methods are safe for concurrent use.
type Store struct {
	kv     KV
	prefix string
	log    *slog.Logger
	now    func() time.Time
	counts [outcomes]atomic.Uint64
	spent  atomic.Int64 // nanoseconds in transactions

	mu     sync.Mutex
	faults [parts]error
	since  time.Time // of the state that they tell
}

// part is what is followed on its own.
type part int

const (
	leasesPart part = iota
	passwordsPart
	parts
)

// outcome is what came of a transaction.
type outcome int

const (
	stored outcome = iota
	refused
	failed
	outcomes
)

// errStarting stands until a part has been read for the first time.
var errStarting = errors.New("not reached since the start")

// NewStore returns a store; nothing is asked of it before Follow.
func NewStore(o Options) *Store {
	s := &Store{kv: o.KV, prefix: o.Prefix, log: o.Log, now: o.Now, faults: [parts]error{errStarting, errStarting}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.since = s.now()
	return s
}

// Status is how the routers' agreement stands.
type Status struct {
	Current bool      // this router is told what the other one writes
	Since   time.Time // of that
	Err     error     // why it is not
	// Transactions by what came of them: stored, refused (the other router was first) and failed.
	Stored, Refused, Failed uint64
	Spent                   time.Duration // in all of them
}

// Status returns how it stands now.
func (s *Store) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.fault()
	return Status{
		Current: err == nil, Since: s.since, Err: err, Spent: time.Duration(s.spent.Load()),
		Stored: s.counts[stored].Load(), Refused: s.counts[refused].Load(), Failed: s.counts[failed].Load(),
	}
}

// fault returns why a part is not followed. s.mu is held.
func (s *Store) fault() error {
	for _, err := range s.faults {
		if err != nil {
			return err
		}
	}
	return nil
}

// report notes that a part is followed, or why not.
func (s *Store) report(p part, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.fault() == nil
	s.faults[p] = err
	if is := s.fault() == nil; is != was {
		s.since = s.now()
	}
}

const (
	// readTime bounds the reading of everything, writeTime a transaction. Clients of DHCP ask again
	// after four seconds (RFC 2131, section 4.1).
	readTime  = 10 * time.Second
	writeTime = 3 * time.Second
)

// follow reads a part and watches it from there, until ctx ends or the store is lost. read gets all keys
// and the revision of that, changed gets the changes after it. What it returns is not nil.
func (s *Store) follow(ctx context.Context, p part, prefix string, read func([]etcd.KV, int64) error, current func(), changed func([]etcd.Event) error) error {
	all, cancel := context.WithTimeout(ctx, readTime)
	kvs, revision, err := s.kv.Range(all, prefix)
	cancel()
	if err == nil {
		err = read(kvs, revision)
	}
	if err == nil {
		err = s.kv.Watch(ctx, prefix, revision+1, func() {
			s.report(p, nil)
			current()
		}, changed)
	}
	if err == nil {
		err = errors.New("the watch ended")
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	s.report(p, err)
	return err
}

// commit makes a transaction and counts it.
func (s *Store) commit(ctx context.Context, t etcd.Txn) (done bool, revision int64, read []etcd.KV, err error) {
	began := time.Now()
	done, revision, read, err = s.kv.Commit(ctx, t)
	s.spent.Add(int64(time.Since(began)))
	switch {
	case err != nil:
		s.counts[failed].Add(1)
	case done:
		s.counts[stored].Add(1)
	default:
		s.counts[refused].Add(1)
	}
	return done, revision, read, err
}

// epoch returns what tells this store from one that was emptied, and makes it where it is missing. It
// fails where the store cannot be written.
func (s *Store) epoch(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	key := s.prefix + "/epoch"
	kv, there, err := s.kv.Get(ctx, key)
	if err == nil && there {
		// Written as it is: a store that can be read only, for want of space, is of no use.
		_, _, _, err = s.kv.Commit(ctx, etcd.Txn{
			Unchanged: []etcd.Compare{{Key: key, Changed: kv.Changed}}, Puts: []etcd.Put{{Key: key, Value: kv.Value}},
		})
	}
	if err != nil || there {
		return string(kv.Value), err
	}
	made := rand.Text()
	done, _, read, err := s.commit(ctx, etcd.Txn{
		Unchanged: []etcd.Compare{{Key: key}}, Puts: []etcd.Put{{Key: key, Value: []byte(made)}}, Read: []string{key},
	})
	switch {
	case err != nil:
		return "", err
	case done:
		return made, nil
	case len(read) == 1:
		return string(read[0].Value), nil
	}
	return "", fmt.Errorf("%s comes and goes", key)
}
