// Package state keeps what the agent must not lose: a checksummed,
// log-structured store of keys and values in one folder of its own.
//
// Changes are made in batches. A batch is on disk when Commit returns, and
// after a crash it is there whole or not at all. Batches that are committed at
// the same time share one fdatasync. Values stay on disk: the index in memory
// holds keys and positions, and a value can be read piece by piece while it is
// replaced. Every byte that is handed out has been checked against a checksum.
//
// The folder holds segments, append-only files of records (see record.go for
// the format). A sealed segment that is mostly dead is rewritten in the
// background. What is damaged is moved to the folder "damaged" and reported;
// everything that can still be read stays readable.
//
// The package knows nothing of what the values mean.
package state

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

var (
	// ErrNotFound tells that the store has no such key.
	ErrNotFound = errors.New("no such key")
	// ErrDamaged tells that the value of a key is there, but its checksum is
	// wrong. A new Put or Delete of the key heals it.
	ErrDamaged = errors.New("value is damaged")
	// ErrLocked tells that another process has the store open.
	ErrLocked = errors.New("in use by another process")
	// ErrTooNew tells that a later release wrote the store. It is left as it is.
	ErrTooNew = errors.New("written by a newer release")
	// ErrClosed tells that the store has been closed.
	ErrClosed = errors.New("store is closed")
)

const (
	// MaxKey is the length of the longest key, in bytes. Keys are not empty.
	MaxKey = 1024
	// MaxValue is the size of the largest value, in bytes.
	MaxValue = 64 << 20

	damagedFolder      = "damaged"
	defaultSegmentSize = 32 << 20
)

// Options change how a store works. The zero value is right for the agent.
type Options struct {
	// SegmentSize is the size in bytes at which a new segment is begun,
	// 32 MiB if zero.
	SegmentSize int64
	// Logger hears of compaction and damage; nil discards.
	Logger *slog.Logger

	files fileSystem // the operating system if nil; tests let it fail
}

// Store is an open store. Its methods may be called from any goroutine.
type Store struct {
	dir         string
	lock        *os.File // the folder itself, flocked
	files       fileSystem
	log         *slog.Logger
	segmentSize int64

	commits committer

	mu       sync.RWMutex // guards what follows; never held across I/O
	index    map[string]location
	segments []*segment // ascending by number; the last may be active
	closed   bool

	// Only the leader of the commits uses these, and Open before there is one.
	active  *segment // nil: the next commit begins a segment
	seq     uint64   // of the last batch written
	durable uint64   // of the last batch known to be on disk
	number  uint64   // of the last segment made
	suspect map[string]struct{}

	compact  chan struct{} // one slot: look for segments to rewrite
	stop     context.CancelFunc
	finished chan struct{}
}

// location says where the value of a key is.
type location struct {
	seg  *segment
	seq  uint64
	off  int64 // of the value
	size uint32
	crc  uint32
	lost bool // replay found the value damaged
}

// Open opens the store in dir, which it makes if it is missing, with mode 0700.
// Damage is no error: what could be read is in the store, the rest is in the
// report. A folder that cannot be written opens too, and Commit fails with the
// reason until it can be. ErrLocked and ErrTooNew change nothing on disk.
func Open(dir string, opts Options) (*Store, Report, error) {
	s := &Store{
		dir:         dir,
		files:       opts.files,
		log:         opts.Logger,
		segmentSize: opts.SegmentSize,
		index:       make(map[string]location),
		suspect:     make(map[string]struct{}),
		compact:     make(chan struct{}, 1),
		finished:    make(chan struct{}),
	}
	if s.files == nil {
		s.files = osFiles{}
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.segmentSize <= 0 {
		s.segmentSize = defaultSegmentSize
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, Report{}, fmt.Errorf("state %s: %w", dir, err)
	}
	lock, err := os.Open(dir)
	if err != nil {
		return nil, Report{}, fmt.Errorf("state %s: %w", dir, err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, Report{}, fmt.Errorf("state %s: %w", dir, err)
	}
	s.lock = lock

	report, err := s.replay()
	if err != nil {
		for _, seg := range s.segments {
			seg.release()
		}
		lock.Close()
		return nil, Report{}, fmt.Errorf("state %s: %w", dir, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	go func() {
		defer close(s.finished)
		s.compactor(ctx)
	}()
	s.wakeCompactor()
	return s, report, nil
}

// Close waits for commits under way and frees the folder. Values that are open
// stay readable until they are closed themselves. A second Close does nothing.
func (s *Store) Close() error {
	if !s.commits.close() {
		return nil
	}
	s.stop()
	<-s.finished
	s.commits.wait()

	s.mu.Lock()
	s.closed = true
	segments := s.segments
	s.segments, s.active = nil, nil
	s.index = nil
	s.mu.Unlock()
	for _, seg := range segments {
		seg.release()
	}
	return s.lock.Close()
}

// Get returns the value of key, checked. The caller owns the result.
// The error is ErrNotFound, ErrDamaged, ErrClosed or one of the disk.
func (s *Store) Get(key string) ([]byte, error) {
	loc, err := s.find(key)
	if err != nil {
		return nil, fmt.Errorf("state %q: %w", key, err)
	}
	defer loc.seg.release()
	value, err := loc.read()
	if err != nil {
		return nil, fmt.Errorf("state %q: %w", key, err)
	}
	return value, nil
}

// Open returns the value of key for reading piece by piece, checked once now.
// It must be closed. It goes on giving these bytes when the key gets another
// value or the store is compacted or closed. Errors are those of Get.
func (s *Store) Open(key string) (*Value, error) {
	loc, err := s.find(key)
	if err != nil {
		return nil, fmt.Errorf("state %q: %w", key, err)
	}
	if err := loc.verify(); err != nil {
		loc.seg.release()
		return nil, fmt.Errorf("state %q: %w", key, err)
	}
	return newValue(loc), nil
}

// Size returns the size of a value in bytes, and whether there is one.
// It reads nothing from disk.
func (s *Store) Size(key string) (int64, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	loc, ok := s.index[key]
	return int64(loc.size), ok
}

// Len returns the number of keys.
func (s *Store) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.index)
}

// Keys yields the keys that begin with prefix, as they are at the call, in
// byte order. The store may be changed while it runs.
func (s *Store) Keys(prefix string) iter.Seq[string] {
	s.mu.RLock()
	keys := make([]string, 0, len(s.index))
	for key := range s.index {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	s.mu.RUnlock()
	slices.Sort(keys)
	return slices.Values(keys)
}

// Each calls do with every key that begins with prefix and its checked value,
// in the order in which they lie on disk: the quick way to read a store at the
// start. Values of more than limit bytes are passed over, none if limit is
// negative. The value is valid until do returns. A damaged value is passed
// over; Each goes on, and at the end returns ErrDamaged with the keys of the
// first ones. An error of do ends it and is returned as it is.
func (s *Store) Each(prefix string, limit int64, do func(key string, value []byte) error) error {
	type entry struct {
		key string
		loc location
	}
	s.mu.RLock()
	if s.closed {
		s.mu.RUnlock()
		return ErrClosed
	}
	entries := make([]entry, 0, len(s.index))
	used := make(map[*segment]struct{})
	for key, loc := range s.index {
		if strings.HasPrefix(key, prefix) && (limit < 0 || int64(loc.size) <= limit) {
			entries = append(entries, entry{key, loc})
			if _, ok := used[loc.seg]; !ok {
				used[loc.seg] = struct{}{}
				loc.seg.acquire()
			}
		}
	}
	s.mu.RUnlock()
	defer func() {
		for seg := range used {
			seg.release()
		}
	}()
	slices.SortFunc(entries, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.loc.seg.number, b.loc.seg.number), cmp.Compare(a.loc.off, b.loc.off))
	})

	var damaged []string
	var win *window
	var of *segment
	for _, e := range entries {
		if of != e.loc.seg {
			of = e.loc.seg
			win = newWindow(of.file, of.end())
		}
		value := win.bytes(e.loc.off, int(e.loc.size))
		if checksum(value) != e.loc.crc || len(value) != int(e.loc.size) {
			damaged = append(damaged, e.key)
			continue
		}
		if err := do(e.key, value); err != nil {
			return err
		}
	}
	return damageOf(damaged)
}

// damageOf is the error that tells of damaged values, nil where there are none.
func damageOf(keys []string) error {
	const named = 8
	switch n := len(keys); {
	case n == 0:
		return nil
	case n == 1:
		return fmt.Errorf("state %q: %w", keys[0], ErrDamaged)
	case n > named:
		return fmt.Errorf("state %q and %d more: %w", keys[:named], n-named, ErrDamaged)
	}
	return fmt.Errorf("state %q: %w", keys, ErrDamaged)
}

// find returns where the value of key is, its segment held for the caller.
func (s *Store) find(key string) (location, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return location{}, ErrClosed
	}
	loc, ok := s.index[key]
	if !ok {
		return location{}, ErrNotFound
	}
	loc.seg.acquire()
	return loc, nil
}

// Usage tells how much disk a store takes.
type Usage struct {
	Segments int
	Bytes    int64 // of all segments
	Live     int64 // of records that are still needed
}

// Usage returns what the store takes on disk now, the folder of damaged files
// not counted.
func (s *Store) Usage() Usage {
	s.mu.RLock()
	defer s.mu.RUnlock()
	u := Usage{Segments: len(s.segments)}
	for _, seg := range s.segments {
		u.Bytes += seg.end()
		u.Live += seg.live
	}
	return u
}

// keepAside moves a segment's file to the folder of damaged files and returns
// its new path. Of many only the newest are kept.
func (s *Store) keepAside(name string) (string, error) {
	folder := filepath.Join(s.dir, damagedFolder)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return "", err
	}
	to := filepath.Join(folder, name)
	if err := os.Rename(filepath.Join(s.dir, name), to); err != nil {
		return "", err
	}
	s.thinOut(folder)
	return to, nil
}

// keptAside is how many damaged files are kept for whoever wants to look.
const keptAside = 16

func (s *Store) thinOut(folder string) {
	entries, err := os.ReadDir(folder) // in name order, which is the order of making
	if err != nil {
		return
	}
	for len(entries) > keptAside {
		if err := os.Remove(filepath.Join(folder, entries[0].Name())); err != nil {
			return
		}
		entries = entries[1:]
	}
}

func (s *Store) sortedSuspects() []string {
	return slices.Sorted(maps.Keys(s.suspect))
}
