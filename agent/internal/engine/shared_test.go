package engine

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"vragent/agent/internal/api"
)

// sharedTaken is a shared store in memory.
type sharedTaken struct {
	mu      sync.Mutex
	records map[string][]byte
	away    error
	changed chan struct{} // closed at the next change
	losses  int
	past    []string // VMs whose records have changed, in order
}

var errAway = errors.New("the store is away")

func newSharedTaken() *sharedTaken {
	return &sharedTaken{records: make(map[string][]byte), changed: make(chan struct{})}
}

// change calls fn unless the store is away, and wakes those that follow.
func (s *sharedTaken) change(vm string, fn func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away != nil {
		return s.away
	}
	before := s.records[vm]
	fn()
	if !bytes.Equal(before, s.records[vm]) {
		s.past = append(s.past, vm)
		s.wake()
	}
	return nil
}

func (s *sharedTaken) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// leave makes the store unreachable, or brings it back for nil.
func (s *sharedTaken) leave(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = err
	s.losses++
	s.wake()
}

func (s *sharedTaken) empty() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.records)
}

func (s *sharedTaken) Get(_ context.Context, vm string) (value []byte, err error) {
	err = s.change(vm, func() { value = s.records[vm] })
	return value, err
}

func (s *sharedTaken) Put(_ context.Context, vm string, value []byte) error {
	return s.change(vm, func() { s.records[vm] = value })
}

func (s *sharedTaken) Restore(_ context.Context, vm string, value []byte) error {
	return s.change(vm, func() {
		if s.records[vm] == nil {
			s.records[vm] = value
		}
	})
}

func (s *sharedTaken) Remove(_ context.Context, vm string, value []byte) error {
	return s.change(vm, func() {
		if bytes.Equal(s.records[vm], value) {
			delete(s.records, vm)
		}
	})
}

func (s *sharedTaken) Follow(ctx context.Context, take func(string, []byte), current func()) error {
	s.mu.Lock()
	all, seen, away, losses := maps.Clone(s.records), len(s.past), s.away, s.losses
	s.mu.Unlock()
	if away != nil {
		return away
	}
	for vm, value := range all {
		take(vm, value)
	}
	current()
	for {
		s.mu.Lock()
		past, changed, lost := s.past[seen:], s.changed, s.losses > losses
		seen = len(s.past)
		s.mu.Unlock()
		if lost {
			return errAway
		}
		for _, vm := range past {
			s.mu.Lock()
			value := s.records[vm]
			s.mu.Unlock()
			take(vm, value)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func (s *sharedTaken) record(vm string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.records[vm])
}

// password returns what a guest would be told, "none" or "unknown".
func (r *rig) password(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	p, ok, err := r.Password(ctx, "web")
	switch {
	case err != nil:
		return "unknown"
	case !ok:
		return "none"
	}
	return p
}

func (r *rig) becomes(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited for: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (r *rig) hasFile(name string) bool {
	_, err := os.Stat(r.path + "/drop/vms/web/" + name)
	return err == nil
}

func newPair(t *testing.T, store *sharedTaken) (a, b *rig) {
	t.Helper()
	a, b = newRigOf(t, t.TempDir(), store), newRigOf(t, t.TempDir(), store)
	for _, r := range []*rig{a, b} {
		r.drop(t, "networks/g.yaml", netFile)
		r.drop(t, "vms/web/vm.yaml", vmFile)
		r.drop(t, "vms/web/password", "s3cret\n")
	}
	return a, b
}

func TestPasswordTakenOnOneRouterIsTakenOnBoth(t *testing.T) {
	store := newSharedTaken()
	a, b := newPair(t, store)
	if got := b.password(t); got != "s3cret" {
		t.Fatalf("password %q", got)
	}
	if err := a.Taken(t.Context(), "web", "s3cret"); err != nil {
		t.Fatal(err)
	}
	if got := b.password(t); got != "none" {
		t.Errorf("the other router gives %q", got)
	}
	if r := store.record("web"); r == "" || strings.Contains(r, "s3cret") {
		t.Errorf("record %q, want a salted hash", r)
	}
	b.becomes(t, "the file to go on the other router as well", func() bool { return !b.hasFile("password") })
	// From then on the other router knows it by itself.
	store.leave(errAway)
	b.drop(t, "vms/web/password", "s3cret\n")
	if got := b.password(t); got != "none" {
		t.Errorf("the same text again, with the store away: %q", got)
	}
	b.drop(t, "vms/web/password", "other\n")
	if got := b.password(t); got != "unknown" {
		t.Errorf("another password with the store away: %q", got)
	}
	if err := b.Taken(deadline(t), "web", "other"); !errors.Is(err, errAway) {
		t.Errorf("Taken: %v", err)
	}
	store.leave(nil)
	if got := b.password(t); got != "other" {
		t.Errorf("another password: %q", got)
	}
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func TestRequestForAPasswordWaitsForTheSharedStore(t *testing.T) {
	store := newSharedTaken()
	a, _ := newPair(t, store)
	store.leave(errAway)
	a.becomes(t, "status to say so", func() bool {
		return strings.Contains(strings.Join(a.Status(t.Context()).Faults, "\n"), errAway.Error())
	})
	got := make(chan string, 1)
	go func() { got <- a.password(t) }()
	select {
	case p := <-got:
		t.Fatalf("answered %q while the store is away", p)
	case <-time.After(2 * holdRetry):
	}
	store.leave(nil)
	if p := <-got; p != "s3cret" {
		t.Errorf("answered %q when the store is back", p)
	}
	a.becomes(t, "status to be well", func() bool {
		return !strings.Contains(strings.Join(a.Status(t.Context()).Faults, "\n"), "shared")
	})
}

func TestRemovedVMLeavesNoRecordInTheSharedStore(t *testing.T) {
	store := newSharedTaken()
	a, b := newPair(t, store)
	if err := a.Taken(t.Context(), "web", "s3cret"); err != nil {
		t.Fatal(err)
	}
	b.becomes(t, "the other router to know", func() bool { return !b.hasFile("password") })
	store.leave(errAway) // it is done when the store is back
	for _, r := range []*rig{a, b} {
		if err := os.RemoveAll(r.path + "/drop/vms/web"); err != nil {
			t.Fatal(err)
		}
		if s := r.settled(t); s.State != api.Applied {
			t.Fatalf("%+v", s)
		}
	}
	store.leave(nil)
	a.becomes(t, "the record to be removed", func() bool { return store.record("web") == "" })
	// The next VM of that name is another one.
	b.drop(t, "vms/web/vm.yaml", vmFile)
	b.drop(t, "vms/web/password", "s3cret\n")
	if got := b.password(t); got != "s3cret" {
		t.Errorf("the new VM gets %q", got)
	}
}

func TestRecordThatOneRouterLosesComesBackFromTheOther(t *testing.T) {
	store := newSharedTaken()
	a, b := newPair(t, store)
	if err := a.Taken(t.Context(), "web", "s3cret"); err != nil {
		t.Fatal(err)
	}
	b.becomes(t, "the other router to know", func() bool { return !b.hasFile("password") })
	// Its folder goes and comes on one router only, as when that is filled anew.
	if err := os.RemoveAll(b.path + "/drop/vms/web"); err != nil {
		t.Fatal(err)
	}
	b.settled(t)
	a.becomes(t, "the record to be there again", func() bool { return store.record("web") != "" })
	b.drop(t, "vms/web/vm.yaml", vmFile)
	b.drop(t, "vms/web/password", "s3cret\n")
	b.becomes(t, "the password to count as taken", func() bool { return b.password(t) == "none" })

	// A store that was emptied gets back what the routers know.
	store.leave(errAway)
	store.empty()
	store.leave(nil)
	a.becomes(t, "the record to be written again", func() bool { return store.record("web") != "" })
}

func TestExplainTellsOfAPasswordThatWaitsForTheSharedStore(t *testing.T) {
	store := newSharedTaken()
	a, _ := newPair(t, store)
	said := func() string {
		x, err := a.Explain(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(x.Obstacles, "\n")
	}
	const held = "password: taken passwords cannot be shared"
	if got := said(); strings.Contains(got, "password") {
		t.Errorf("while the store is there: %q", got)
	}
	store.leave(errAway)
	a.becomes(t, "explain to say so", func() bool {
		got := said()
		return strings.Contains(got, held) && strings.Contains(got, errAway.Error())
	})
	store.leave(nil)
	a.becomes(t, "explain to say no more of it", func() bool { return !strings.Contains(said(), "password") })
	if err := a.Taken(t.Context(), "web", "s3cret"); err != nil {
		t.Fatal(err)
	}
	store.leave(errAway)
	a.becomes(t, "status to say so", func() bool {
		return strings.Contains(strings.Join(a.Status(t.Context()).Faults, "\n"), errAway.Error())
	})
	if got := said(); strings.Contains(got, "password") {
		t.Errorf("of a password that was taken: %q", got)
	}
}
