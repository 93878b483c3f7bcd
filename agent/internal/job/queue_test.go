package job_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vragent/agent/internal/job"
)

// memStore keeps records in memory. Its content is what a restart finds.
type memStore struct {
	mu      sync.Mutex
	records map[string][]byte
	broken  error
	commit  func(map[string][]byte) // called before each commit
}

func newStore() *memStore { return &memStore{records: map[string][]byte{}} }

func (s *memStore) Commit(changes map[string][]byte) error {
	if s.commit != nil {
		s.commit(changes)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	for key, value := range changes {
		if value == nil {
			delete(s.records, key)
		} else {
			s.records[key] = slices.Clone(value)
		}
	}
	return nil
}

func (s *memStore) Get(key string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if value, ok := s.records[key]; ok {
		return slices.Clone(value), nil
	}
	return nil, errors.New("no such key")
}

func (s *memStore) Each(prefix string, fn func(string, []byte) error) error {
	s.mu.Lock()
	records := maps.Clone(s.records)
	s.mu.Unlock()
	for key, value := range records {
		if strings.HasPrefix(key, prefix) {
			if err := fn(key, value); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *memStore) keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.records))
}

type fakeClock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *fakeClock { return &fakeClock{now: time.Date(2026, 11, 24, 6, 0, 0, 0, time.UTC)} }

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func open(t *testing.T, opts job.Options) *job.Queue {
	t.Helper()
	q, err := job.OpenQueue(opts)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func add(t *testing.T, q *job.Queue, unit, payload string) job.Job {
	t.Helper()
	j, err := q.Add(job.Job{Command: "push", Unit: unit, Name: payload}, []byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// next returns the tasks that may be carried out now, nil where there are none.
func next(t *testing.T, q *job.Queue) []*job.Task {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	tasks, err := q.Next(ctx, 100)
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	return tasks
}

// payloads returns what tasks are to do.
func payloads(t *testing.T, tasks []*job.Task) []string {
	t.Helper()
	var all []string
	for _, task := range tasks {
		p, err := task.Payload()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(p))
	}
	return all
}

func want(t *testing.T, tasks []*job.Task, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, payloads(t, tasks)); diff != "" {
		t.Errorf("tasks differ (-want +got):\n%s", diff)
	}
}

func finish(t *testing.T, task *job.Task) {
	t.Helper()
	if err := task.Finish(json.RawMessage(`{"success":true}`), nil); err != nil {
		t.Fatal(err)
	}
}

func TestJobsOfOneUnitTakeTheirTurns(t *testing.T) {
	q := open(t, job.Options{Store: newStore()})
	add(t, q, "a", "a1")
	add(t, q, "a", "a2")
	add(t, q, "b", "b1")
	first := next(t, q)
	want(t, first, "a1", "b1")
	want(t, next(t, q))

	// A job that is carried out and waits for its outcome holds nobody up.
	first[0].Release()
	second := next(t, q)
	want(t, second, "a2")
	finish(t, first[0])
	add(t, q, "a", "a3")
	want(t, next(t, q))
	if err := second[0].Fail(431, "no"); err != nil {
		t.Fatal(err)
	}
	want(t, next(t, q), "a3")
}

func TestAJobThatIsGivenBackKeepsItsTurn(t *testing.T) {
	q := open(t, job.Options{Store: newStore()})
	add(t, q, "a", "a1")
	add(t, q, "a", "a2")
	add(t, q, "b", "b1")
	tasks := next(t, q)
	want(t, tasks, "a1", "b1")
	tasks[0].Return()
	again := next(t, q)
	want(t, again, "a1")
	want(t, next(t, q))
	finish(t, again[0])
	want(t, next(t, q), "a2")
}

func TestAJobOfAllUnitsRunsAlone(t *testing.T) {
	q := open(t, job.Options{Store: newStore()})
	add(t, q, "a", "a1")
	add(t, q, "", "all")
	add(t, q, "a", "a2")
	add(t, q, "b", "b1")
	before := next(t, q)
	want(t, before, "a1")
	want(t, next(t, q))
	before[0].Release()
	all := next(t, q)
	want(t, all, "all")
	want(t, next(t, q))
	all[0].Release()
	want(t, next(t, q), "a2", "b1")
}

func TestJobsSurviveARestart(t *testing.T) {
	store, clock := newStore(), newClock()
	q := open(t, job.Options{Store: store, Now: clock.Now})
	a1, a2, b1, c1 := add(t, q, "a", "a1"), add(t, q, "a", "a2"), add(t, q, "b", "b1"), add(t, q, "c", "c1")
	tasks := next(t, q)
	finish(t, tasks[1]) // b1
	tasks[2].Release()  // c1 waits for something
	if err := tasks[2].Report("waits for a network"); err != nil {
		t.Fatal(err)
	}
	clock.add(time.Minute)

	q = open(t, job.Options{Store: store, Now: clock.Now})
	got, err := q.Get(b1.ID)
	if err != nil || got.State != job.Done || string(got.Result) != `{"success":true}` || got.Percent != 100 {
		t.Errorf("finished job = %+v, %v", got, err)
	}
	// What was carried out is not carried out again, and lets others go ahead.
	tasks = next(t, q)
	want(t, tasks, "a1", "c1")
	if j := tasks[1].Job(); j.ID != c1.ID || !j.Released || j.Note != "waits for a network" {
		t.Errorf("waiting job = %+v", j)
	}
	if tasks[0].Job().ID != a1.ID {
		t.Error("another id after the restart")
	}
	finish(t, tasks[0])
	want(t, next(t, q), "a2")
	if j := add(t, q, "d", "d1"); j.Seq <= a2.Seq {
		t.Errorf("seq %d after %d", j.Seq, a2.Seq)
	}
}

func TestNothingIsAcknowledgedThatIsNotDurable(t *testing.T) {
	store := newStore()
	q := open(t, job.Options{Store: store})
	store.broken = errors.New("no space left on device")
	if _, err := q.Add(job.Job{Unit: "a"}, nil); !errors.Is(err, store.broken) {
		t.Errorf("Add() = %v", err)
	}
	want(t, next(t, q))
	store.broken = nil
	add(t, q, "a", "a1")
	want(t, next(t, q), "a1")
}

func TestAJobWhoseEndIsNotDurableIsCarriedOutAgain(t *testing.T) {
	store := newStore()
	q := open(t, job.Options{Store: store})
	j := add(t, q, "a", "a1")
	task := next(t, q)[0]
	store.broken = errors.New("no space left on device")
	if err := task.Finish(json.RawMessage(`{}`), nil); !errors.Is(err, store.broken) {
		t.Errorf("Finish() = %v", err)
	}
	if got, err := q.Wait(t.Context(), j.ID); err != nil || got.State != job.Done {
		t.Errorf("Wait() = %v, %v", got.State, err)
	}
	store.broken = nil
	want(t, next(t, open(t, job.Options{Store: store})), "a1")
}

func TestOrderOfAcknowledgementIsOrderOfWork(t *testing.T) {
	store := newStore()
	q := open(t, job.Options{Store: store})
	var mu sync.Mutex
	acknowledged := map[string][]uint64{}
	var adding sync.WaitGroup
	for i := range 8 {
		adding.Go(func() {
			for n := range 50 {
				unit, payload := fmt.Sprint(n%3), fmt.Sprintf("%d-%d", i, n)
				if n == 25 && i == 0 {
					unit = ""
				}
				j, err := q.Add(job.Job{Unit: unit}, []byte(payload))
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				acknowledged[unit] = append(acknowledged[unit], j.Seq)
				mu.Unlock()
			}
		})
	}
	done := map[string][]uint64{}
	for n := 0; n < 400; {
		tasks, err := q.Next(t.Context(), 7)
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			j := task.Job()
			done[j.Unit] = append(done[j.Unit], j.Seq)
			task.Release()
			finish(t, task)
			n++
		}
	}
	adding.Wait()
	for unit, got := range done {
		// Who heard of it first is only nearly the order of acknowledgement; Seq is it.
		slices.Sort(acknowledged[unit])
		if diff := cmp.Diff(acknowledged[unit], got); diff != "" {
			t.Errorf("unit %q: order differs (-want +got):\n%s", unit, diff)
		}
	}
}

func TestALoneAddWaitsForNobodyElsesCommit(t *testing.T) {
	store := newStore()
	q := open(t, job.Options{Store: store})
	held, release := make(chan struct{}), make(chan struct{})
	var commits atomic.Int32
	store.commit = func(map[string][]byte) {
		if commits.Add(1) == 1 {
			close(held)
			<-release
		}
	}
	slow := make(chan job.Job)
	go func() {
		j, _ := q.Add(job.Job{Unit: "a"}, []byte("slow"))
		slow <- j
	}()
	<-held
	add(t, q, "b", "quick")
	want(t, next(t, q), "quick")
	close(release)
	<-slow
	want(t, next(t, q), "slow")
}

func TestSecretIsTakenOnce(t *testing.T) {
	store := newStore()
	q := open(t, job.Options{Store: store})
	j := add(t, q, "a", "a1")
	task := next(t, q)[0]
	if secret, err := q.TakeSecret(j.ID); secret != nil || err != nil {
		t.Errorf("TakeSecret() of an open job = %q, %v", secret, err)
	}
	if err := task.Finish(json.RawMessage(`{}`), []byte("hidden")); err != nil {
		t.Fatal(err)
	}
	q = open(t, job.Options{Store: store}) // also after a restart
	if got, err := q.Get(j.ID); err != nil || !got.HasSecret || strings.Contains(string(got.Result), "hidden") {
		t.Errorf("job = %+v, %v", got, err)
	}
	var taken sync.Map
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if secret, err := q.TakeSecret(j.ID); err != nil {
				t.Error(err)
			} else if secret != nil {
				taken.Store(i, string(secret))
			}
		})
	}
	wg.Wait()
	n := 0
	taken.Range(func(_, v any) bool { n++; return v == "hidden" })
	if n != 1 {
		t.Errorf("taken %d times", n)
	}
	if got, err := q.Get(j.ID); err != nil || got.HasSecret {
		t.Errorf("afterwards: %+v, %v", got, err)
	}
	if diff := cmp.Diff([]string{"job/" + j.ID}, store.keys()); diff != "" {
		t.Errorf("store differs (-want +got):\n%s", diff)
	}
}

func TestRetention(t *testing.T) {
	store, clock := newStore(), newClock()
	q := open(t, job.Options{Store: store, Now: clock.Now, Retention: time.Hour})
	old, open1 := add(t, q, "a", "a1"), add(t, q, "b", "b1")
	if err := next(t, q)[0].Finish(json.RawMessage(`{}`), []byte("hidden")); err != nil {
		t.Fatal(err)
	}
	sweep := func(d time.Duration) {
		t.Helper()
		clock.add(d)
		if err := q.Sweep(); err != nil {
			t.Fatal(err)
		}
	}
	sweep(10 * time.Minute)
	if secret, err := q.TakeSecret(old.ID); secret != nil || err != nil {
		t.Errorf("the secret is there after ten minutes: %q, %v", secret, err)
	}
	sweep(-24 * time.Hour) // a clock that was set back is no reason to forget
	if _, err := q.Get(old.ID); err != nil {
		t.Errorf("Get() = %v", err)
	}
	sweep(25 * time.Hour)
	if _, err := q.Get(old.ID); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("Get(old) = %v", err)
	}
	if _, err := q.Get(open1.ID); err != nil {
		t.Errorf("an open job is gone: %v", err)
	}
	if diff := cmp.Diff([]string{"job/" + open1.ID, "payload/" + open1.ID}, store.keys()); diff != "" {
		t.Errorf("store differs (-want +got):\n%s", diff)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	q := open(t, job.Options{Store: newStore()})
	j := add(t, q, "a", "a1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := q.Wait(ctx, j.ID); !errors.Is(err, context.Canceled) || got.ID != j.ID {
		t.Errorf("Wait() = %v, %v", got, err)
	}
	if _, err := q.Wait(t.Context(), "x"); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("Wait(unknown) = %v", err)
	}
	task := next(t, q)[0]
	go func() { _ = task.Fail(530, "no") }()
	if got, err := q.Wait(t.Context(), j.ID); err != nil || got.State != job.Failed || got.Text != "no" || got.Code != 530 {
		t.Errorf("Wait() = %+v, %v", got, err)
	}
}

func TestList(t *testing.T) {
	q := open(t, job.Options{Store: newStore()})
	for i := range 5 {
		add(t, q, "a", fmt.Sprint(i))
	}
	finish(t, next(t, q)[0])
	if !q.Busy("a") || q.Busy("b") {
		t.Errorf("Busy(a) = %v, Busy(b) = %v", q.Busy("a"), q.Busy("b"))
	}
	names := func(keep func(job.Job) (bool, bool)) []string {
		t.Helper()
		jobs, err := q.List(keep)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, j := range jobs {
			names = append(names, j.Name)
		}
		return names
	}
	if diff := cmp.Diff([]string{"4", "3", "2", "1", "0"}, names(func(job.Job) (bool, bool) { return true, true })); diff != "" {
		t.Errorf("all differ (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"0"}, names(func(j job.Job) (bool, bool) { return j.State == job.Done, true })); diff != "" {
		t.Errorf("finished differ (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"4"}, names(func(job.Job) (bool, bool) { return true, false })); diff != "" {
		t.Errorf("first differ (-want +got):\n%s", diff)
	}
}
