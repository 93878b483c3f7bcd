package job

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// ErrNotFound is returned for a job that does not exist, or no longer.
var ErrNotFound = errors.New("no such job")

// Store keeps records by key. It is safe for concurrent use.
type Store interface {
	// Commit makes all changes durable together before it returns, or none. A nil value deletes.
	Commit(changes map[string][]byte) error
	// Get returns the value of key, or an error where there is none.
	Get(key string) ([]byte, error)
	// Each calls fn for every record whose key starts with prefix and stops at fn's first error.
	Each(prefix string, fn func(key string, value []byte) error) error
}

// State is how far a job is. The numbers are those of CloudStack's jobstatus.
type State int

// The states of a job.
const (
	Open   State = 0
	Done   State = 1
	Failed State = 2
)

func (s State) String() string {
	switch s {
	case Open:
		return "open"
	case Done:
		return "done"
	}
	return "failed"
}

// Job is the record of one job. The copies that Queue hands out are the caller's.
type Job struct {
	ID  string `json:"id"`  // a UUID
	Seq uint64 `json:"seq"` // the order of acknowledgement

	Command string `json:"command"`
	// Unit is what the job changes: jobs of one unit take their turns. The empty unit is all of
	// them: such a job follows every one before it and comes before every one after it.
	Unit  string `json:"unit"`
	Kind  string `json:"kind,omitempty"`  // of the unit, as users call it
	Name  string `json:"name,omitempty"`  // of the unit, as users call it
	Owner string `json:"owner,omitempty"` // the id of the user who asked
	User  string `json:"user,omitempty"`  // its name
	Role  string `json:"role,omitempty"`  // its account

	Created   time.Time `json:"created"`
	Deadline  time.Time `json:"deadline"`
	Completed time.Time `json:"completed,omitzero"`

	State    State  `json:"state"`
	Released bool   `json:"released,omitempty"` // carried out; what remains is to see what becomes of it
	Percent  int    `json:"percent,omitempty"`
	Note     string `json:"note,omitempty"` // what an open job waits for
	// Code and Text tell why a job failed. Code is one of the API's error codes, 0 of a job that
	// did not fail.
	Code int    `json:"code,omitempty"`
	Text string `json:"text,omitempty"`
	// Result is an object, of a job that is done.
	Result json.RawMessage `json:"result,omitempty"`
	// HasSecret tells that the job's result has a part that is shown once.
	HasSecret bool `json:"has_secret,omitempty"`
}

// Options are the settings of a Queue.
type Options struct {
	Store     Store
	Retention time.Duration // how long finished jobs are kept; 0 means a day
	Limit     time.Duration // how long a job may stay open; 0 means an hour
	// SecretTime is how long a secret waits to be shown; 0 means ten minutes.
	SecretTime time.Duration
	Now        func() time.Time // nil means time.Now
	Log        *slog.Logger     // nil discards
}

// Queue holds all jobs. All methods are safe for concurrent use.
type Queue struct {
	opts Options

	mu   sync.Mutex // guards what follows; never held across I/O
	seq  uint64
	open map[string]*entry
	// finished jobs are many: their records stay in the store.
	finished map[string]finished
	waiting  []*entry         // open, not yet handed out, by Seq
	heads    map[string]*slot // by unit: who may change it
	running  int              // handed out and not released
	all      bool             // a job of the empty unit is handed out and not released
	wake     chan struct{}    // closed when a job may have become ready

	adding sync.RWMutex // read-held while a job of one unit is added, write-held for one of all
}

// slot lets one job of a unit be added at a time.
type slot struct {
	sync.Mutex
	users int  // who holds or wants it
	busy  bool // a job of the unit is handed out and not released
}

type entry struct {
	job  Job
	done chan struct{} // closed when the job is finished
}

type finished struct {
	seq       uint64
	completed time.Time
	secret    bool
	failed    bool
}

const (
	jobPrefix     = "job/"
	payloadPrefix = "payload/"
	secretPrefix  = "secret/"
)

// OpenQueue reads the jobs from the store. Those that are open are handed out again.
func OpenQueue(opts Options) (*Queue, error) {
	opts.Retention = cmp.Or(opts.Retention, 24*time.Hour)
	opts.Limit = cmp.Or(opts.Limit, time.Hour)
	opts.SecretTime = cmp.Or(opts.SecretTime, 10*time.Minute)
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	q := &Queue{
		opts:     opts,
		open:     map[string]*entry{},
		finished: map[string]finished{},
		heads:    map[string]*slot{},
		wake:     make(chan struct{}),
	}
	err := opts.Store.Each(jobPrefix, func(key string, value []byte) error {
		var j Job
		if err := json.Unmarshal(value, &j); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		q.seq = max(q.seq, j.Seq)
		if j.State != Open {
			q.finished[j.ID] = finished{j.Seq, j.Completed, j.HasSecret, j.State == Failed}
			return nil
		}
		e := &entry{job: j, done: make(chan struct{})}
		q.open[j.ID] = e
		q.waiting = append(q.waiting, e)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("jobs: %w", err)
	}
	slices.SortFunc(q.waiting, bySeq)
	return q, nil
}

func bySeq(a, b *entry) int { return cmp.Compare(a.job.Seq, b.job.Seq) }

// Add takes a job in: Command, Unit, Kind, Name, Owner, User and Role are the caller's, the rest
// is set here. When it returns, job and payload are durable, and jobs that are added later for
// the same unit come after it.
func (q *Queue) Add(template Job, payload []byte) (Job, error) {
	unlock := q.lock(template.Unit)
	defer unlock()

	j := template
	j.ID, j.Created = newID(), q.opts.Now()
	j.Deadline = j.Created.Add(q.opts.Limit)
	j.State, j.Released, j.Completed = Open, false, time.Time{}
	q.mu.Lock()
	q.seq++
	j.Seq = q.seq
	q.mu.Unlock()

	record, err := json.Marshal(j)
	if err != nil {
		return Job{}, err
	}
	if payload == nil {
		payload = []byte{}
	}
	if err := q.opts.Store.Commit(map[string][]byte{jobPrefix + j.ID: record, payloadPrefix + j.ID: payload}); err != nil {
		return Job{}, fmt.Errorf("job not taken: %w", err)
	}

	e := &entry{job: j, done: make(chan struct{})}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.open[j.ID] = e
	// Commits of other units may have overtaken this one.
	at, _ := slices.BinarySearchFunc(q.waiting, e, bySeq)
	q.waiting = slices.Insert(q.waiting, at, e)
	q.signal()
	return j, nil
}

// lock makes additions for one unit take their turns, so that the order of acknowledgement is
// the order of Seq; other units share the Store's syncs meanwhile.
func (q *Queue) lock(unit string) (unlock func()) {
	if unit == "" {
		q.adding.Lock()
		return q.adding.Unlock
	}
	q.adding.RLock()
	q.mu.Lock()
	s := q.slot(unit)
	s.users++
	q.mu.Unlock()
	s.Lock()
	return func() {
		s.Unlock()
		q.mu.Lock()
		s.users--
		q.drop(unit, s)
		q.mu.Unlock()
		q.adding.RUnlock()
	}
}

// slot returns the unit's slot. mu is held.
func (q *Queue) slot(unit string) *slot {
	s := q.heads[unit]
	if s == nil {
		s = &slot{}
		q.heads[unit] = s
	}
	return s
}

// drop forgets a slot that nobody needs. mu is held.
func (q *Queue) drop(unit string, s *slot) {
	if s.users == 0 && !s.busy {
		delete(q.heads, unit)
	}
}

// signal wakes whoever waits for a job. mu is held.
func (q *Queue) signal() {
	close(q.wake)
	q.wake = make(chan struct{})
}

// Next waits until jobs may be carried out and returns up to most of them, the oldest first: for
// each unit the oldest one, if the one before it was released, or one job of all units, alone.
// The error is ctx's.
func (q *Queue) Next(ctx context.Context, most int) ([]*Task, error) {
	for {
		q.mu.Lock()
		tasks := q.take(most)
		wake := q.wake
		q.mu.Unlock()
		if len(tasks) > 0 {
			return tasks, nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// take hands jobs out. mu is held.
func (q *Queue) take(most int) []*Task {
	if q.all {
		return nil
	}
	var tasks []*Task
	blocked := map[string]bool{} // units with an older job that has to wait
	rest := q.waiting[:0:0]
	for i, e := range q.waiting {
		unit := e.job.Unit
		released := e.job.Released // before a restart: its turn is over
		if len(tasks) == most {
			rest = append(rest, q.waiting[i:]...)
			break
		}
		if unit == "" && !released {
			if i == 0 && q.running == 0 {
				q.all = true
				q.running++
				tasks = append(tasks, &Task{queue: q, entry: e})
				i++
			}
			rest = append(rest, q.waiting[i:]...)
			break
		}
		if !released {
			if blocked[unit] || q.slot(unit).busy {
				blocked[unit] = true
				rest = append(rest, e)
				continue
			}
			q.slot(unit).busy = true
			q.running++
		}
		tasks = append(tasks, &Task{queue: q, entry: e})
	}
	q.waiting = rest
	return tasks
}

// release lets the next job of the unit go ahead. mu is held.
func (q *Queue) release(e *entry) {
	if e.job.Released {
		return
	}
	e.job.Released = true
	q.running--
	if e.job.Unit == "" {
		q.all = false
	} else {
		s := q.slot(e.job.Unit)
		s.busy = false
		q.drop(e.job.Unit, s)
	}
	q.signal()
}

// Get returns the job of that id, or ErrNotFound.
func (q *Queue) Get(id string) (Job, error) {
	q.mu.Lock()
	e := q.open[id]
	_, known := q.finished[id]
	var j Job
	if e != nil {
		j = e.job
	}
	q.mu.Unlock()
	switch {
	case e != nil:
		return j, nil
	case !known:
		return Job{}, fmt.Errorf("job %q: %w", id, ErrNotFound)
	}
	return q.read(id)
}

func (q *Queue) read(id string) (Job, error) {
	value, err := q.opts.Store.Get(jobPrefix + id)
	if err != nil {
		return Job{}, fmt.Errorf("job %q: %w", id, err)
	}
	var j Job
	if err := json.Unmarshal(value, &j); err != nil {
		return Job{}, fmt.Errorf("job %q: %w", id, err)
	}
	return j, nil
}

// Busy tells whether a job that may change the unit is still to be carried out.
func (q *Queue) Busy(unit string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, e := range q.open {
		if !e.job.Released && (e.job.Unit == unit || e.job.Unit == "") {
			return true
		}
	}
	return false
}

// List returns the jobs from the newest to the oldest that keep wants, and stops when keep's
// second result is false.
func (q *Queue) List(keep func(Job) (ok, more bool)) ([]Job, error) {
	type at struct {
		id  string
		seq uint64
	}
	q.mu.Lock()
	ids := make([]at, 0, len(q.open)+len(q.finished))
	for id, e := range q.open {
		ids = append(ids, at{id, e.job.Seq})
	}
	for id, f := range q.finished {
		ids = append(ids, at{id, f.seq})
	}
	q.mu.Unlock()
	slices.SortFunc(ids, func(a, b at) int { return cmp.Compare(b.seq, a.seq) })
	var jobs []Job
	for _, at := range ids {
		j, err := q.Get(at.id)
		if errors.Is(err, ErrNotFound) {
			continue // its retention ended meanwhile
		}
		if err != nil {
			return nil, err
		}
		ok, more := keep(j)
		if ok {
			jobs = append(jobs, j)
		}
		if !more {
			break
		}
	}
	return jobs, nil
}

// Wait returns the job when it is finished, or as it is when ctx ends, with ctx's error.
func (q *Queue) Wait(ctx context.Context, id string) (Job, error) {
	q.mu.Lock()
	e := q.open[id]
	q.mu.Unlock()
	if e == nil {
		return q.Get(id)
	}
	select {
	case <-e.done:
		return q.Get(id)
	case <-ctx.Done():
		j, err := q.Get(id)
		if err == nil && j.State == Open {
			err = ctx.Err()
		}
		return j, err
	}
}

// TakeSecret returns the secret part of a finished job's result, once: it is gone from the store
// before it is returned. The result is nil where there is none, or no longer.
func (q *Queue) TakeSecret(id string) ([]byte, error) {
	q.mu.Lock()
	f, ok := q.finished[id]
	if ok && f.secret {
		q.finished[id] = finished{f.seq, f.completed, false, f.failed}
	}
	q.mu.Unlock()
	if !f.secret {
		return nil, nil
	}
	secret, err := q.opts.Store.Get(secretPrefix + id)
	if err != nil {
		return nil, fmt.Errorf("job %q: %w", id, err)
	}
	return secret, q.dropSecret(id)
}

// dropSecret removes the secret of a finished job from the store.
func (q *Queue) dropSecret(id string) error {
	j, err := q.read(id)
	if err != nil {
		return err
	}
	j.HasSecret = false
	record, err := json.Marshal(j)
	if err != nil {
		return err
	}
	return q.opts.Store.Commit(map[string][]byte{secretPrefix + id: nil, jobPrefix + id: record})
}

// sweepTime is how often finished jobs are looked through.
const sweepTime = time.Minute

// Run forgets secrets that nobody asked for and jobs whose retention is over, until ctx ends.
func (q *Queue) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepTime)
	defer tick.Stop()
	for {
		if err := q.Sweep(); err != nil {
			q.opts.Log.Warn("old jobs not removed", "reason", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Sweep does once what Run does again and again.
func (q *Queue) Sweep() error {
	now := q.opts.Now()
	old := map[string][]byte{}
	var secrets []string
	q.mu.Lock()
	for id, f := range q.finished {
		// The age may be negative after the clock was set; that is no reason to forget.
		switch age := now.Sub(f.completed); {
		case age >= q.opts.Retention:
			old[jobPrefix+id] = nil
			if f.secret {
				old[secretPrefix+id] = nil
			}
			delete(q.finished, id)
		case f.secret && age >= q.opts.SecretTime:
			q.finished[id] = finished{f.seq, f.completed, false, f.failed}
			secrets = append(secrets, id)
		}
	}
	q.mu.Unlock()
	var errs []error
	for _, id := range secrets {
		errs = append(errs, q.dropSecret(id))
	}
	if len(old) > 0 {
		errs = append(errs, q.opts.Store.Commit(old))
	}
	return errors.Join(errs...)
}

// Counts returns how many jobs there are in each state, without reading records.
func (q *Queue) Counts() (open, done, failed int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, f := range q.finished {
		if f.failed {
			failed++
		}
	}
	return len(q.open), len(q.finished) - failed, failed
}

// newID makes a random UUID, RFC 9562 section 5.4.
func newID() string {
	var b [16]byte
	_, _ = io.ReadFull(rand.Reader, b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
