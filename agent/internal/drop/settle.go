package drop

import (
	"container/heap"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// state is where a unit that has changed stands.
type state int

const (
	bursting  state = iota // events may still follow
	unsettled              // somebody is writing, or a try to read failed
	ready                  // waits for Next
	out                    // given out by the last Next
)

// work is a unit that has changed and is not done with.
type work struct {
	unit    Unit
	state   state
	first   time.Time     // event since it was last given out
	last    time.Time     // event, or look that found somebody writing
	due     time.Time     // for the loop to look at it; bursting and unsettled only
	wait    time.Duration // until the look after that
	again   bool          // has changed since it was given out
	failure string        // last error of the system that was logged
	// still holds since when files are unchanged, by name; only where the file
	// system knows no leases.
	still map[string]stillness
	at    int // in the queue, -1 if not
}

type stillness struct {
	sig   signature
	since time.Time
}

// touch notes that a unit has changed. The caller holds d.mu.
func (d *Dir) touch(u Unit, now time.Time) {
	w := d.work[u]
	if w == nil {
		w = &work{unit: u, at: -1}
		d.work[u] = w
		w.first = now
	}
	w.last = now
	switch w.state {
	case bursting:
		due := now.Add(quietAfter)
		if last := w.first.Add(quietMax); due.After(last) {
			due = last
		}
		d.schedule(w, due)
	case unsettled:
		if due := now.Add(quietAfter); due.Before(w.due) {
			d.schedule(w, due)
		}
	case ready: // whoever reads it sees the newest
	case out:
		w.again = true
	}
}

func (d *Dir) schedule(w *work, due time.Time) {
	w.due = due
	if w.at < 0 {
		heap.Push(&d.queue, w)
	} else {
		heap.Fix(&d.queue, w.at)
	}
}

// requeue has a unit given out again that could not be read.
func (d *Dir) requeue(u Unit, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.work[u]
	if w == nil {
		now := time.Now()
		w = &work{unit: u, at: -1, first: now, last: now, state: unsettled}
		d.work[u] = w
	}
	if w.state == ready || w.at >= 0 {
		return // is looked at anyway
	}
	w.state = unsettled
	w.again = false
	w.wait = 0
	d.postpone(w, err)
	ping(d.changed)
}

// postpone schedules the next look at a unit that has not settled.
func (d *Dir) postpone(w *work, err error) {
	most := pollMax
	switch {
	case errors.Is(err, ErrUnsettled):
		w.failure = ""
		if w.still != nil {
			w.wait = noLeaseQuiet / 5
			most = w.wait
		} else {
			w.last = time.Now()
		}
	case errors.Is(err, ErrMissing): // the loop has said so
		most = retryMax
	default:
		most = retryMax
		if w.failure != err.Error() {
			w.failure = err.Error()
			d.log.Warn("cannot read for now", "unit", w.unit.Path(), "err", err)
		}
	}
	w.wait = min(max(2*w.wait, pollMin), most)
	d.schedule(w, time.Now().Add(w.wait))
}

// lookAt deals with up to max units that are due and returns when the next is,
// zero if none is queued.
func (d *Dir) lookAt(now time.Time, most int) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	for range most {
		if len(d.queue) == 0 {
			return time.Time{}
		}
		w := d.queue[0]
		if w.due.After(now) {
			break
		}
		heap.Pop(&d.queue)
		if w.state == unsettled {
			d.mu.Unlock()
			err := d.check(w.unit)
			d.mu.Lock()
			if err != nil {
				d.postpone(w, err)
				continue
			}
		}
		w.state = ready
		d.ready = append(d.ready, w.unit)
		ping(d.arrived)
	}
	if len(d.queue) == 0 {
		return time.Time{}
	}
	return d.queue[0].due
}

// check tells whether a unit could be read now.
func (d *Dir) check(u Unit) error {
	f, err := d.openFolder(u)
	if err != nil || f == nil {
		return err
	}
	defer f.Close()
	l, err := f.list(u)
	if errors.Is(err, unix.EACCES) {
		return nil
	}
	if err != nil {
		return err
	}
	open, err := f.hold(u, l, &Content{})
	open.close()
	return err
}

// Done says that the units of the last Next have been dealt with, so that
// Barrier counts them as being worked on no longer, but for those that have
// changed since. Next says the same; who tells others that the work is done
// calls Done first.
func (d *Dir) Done() {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for _, u := range d.out {
		w := d.work[u]
		if w == nil || w.state != out {
			continue
		}
		if !w.again {
			delete(d.work, u)
			continue
		}
		last := w.last
		*w = work{unit: u, at: -1, first: now, still: w.still}
		d.touch(u, now)
		w.last = last
		ping(d.changed)
	}
	d.out = d.out[:0]
}

func (d *Dir) takeReady(most int) []Unit {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := min(most, len(d.ready))
	units := append([]Unit(nil), d.ready[:n]...)
	d.ready = d.ready[n:]
	if len(d.ready) == 0 {
		d.ready = nil
	} else {
		ping(d.arrived)
	}
	for _, u := range units {
		d.work[u].state = out
	}
	d.out = append(d.out, units...)
	return units
}

// settledAt tells since when a unit that can be read now has been so, as far as
// is known: since the last event, or the last look that found somebody writing.
// The kernel tells of no close, so the look may have been up to pollMax before
// it. Of a unit that no event has told of it is now.
func (d *Dir) settledAt(u Unit) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	if w := d.work[u]; w != nil {
		return w.last
	}
	return time.Now()
}

// settled tells whether the open file e of a unit is complete: ErrUnsettled if
// somebody has it open for writing. As long as fd is open nobody can open it
// so from then on, where the file system knows leases.
func (d *Dir) settled(u Unit, fd int, e entry) error {
	err := d.lease(fd)
	switch err {
	case nil:
		return nil
	case unix.EAGAIN:
		return ErrUnsettled
	case unix.EMFILE, unix.ENFILE, unix.ENOMEM:
		return err
	}
	// EINVAL, EACCES for another user's file without CAP_LEASE, ENOLCK ...
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.quiet {
		d.quiet = true
		d.log.Warn("no file leases here: a file counts as complete when it has not changed for a second",
			"unit", u.Path(), "err", err)
	}
	now := time.Now()
	w := d.work[u]
	if w == nil {
		// Never seen changing: the file's own time counts, if the clock can be
		// believed.
		if age := now.Sub(time.Unix(e.sig.ctime.Unix())); age > noLeaseQuiet {
			return nil
		}
		w = &work{unit: u, at: -1, first: now, last: now, state: unsettled}
		d.work[u] = w // requeue schedules it
	}
	if s, ok := w.still[e.name]; ok && s.sig == e.sig {
		if now.Sub(s.since) >= noLeaseQuiet {
			return nil
		}
		return ErrUnsettled
	}
	if w.still == nil {
		w.still = make(map[string]stillness)
	}
	w.still[e.name] = stillness{sig: e.sig, since: now}
	return ErrUnsettled
}

// takeLease asks for a read lease on fd, which the kernel gives only while
// nobody has the file open for writing. When somebody then wants to, the
// kernel sends SIGIO, which the Go runtime ignores, and has him wait until fd
// is closed.
func takeLease(fd int) error {
	for {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK)
		if err != unix.EINTR {
			return err
		}
	}
}

// dueQueue is a heap of work by due time.
type dueQueue []*work

func (q dueQueue) Len() int           { return len(q) }
func (q dueQueue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q dueQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i, j
}

func (q *dueQueue) Push(x any) {
	w := x.(*work)
	w.at = len(*q)
	*q = append(*q, w)
}

func (q *dueQueue) Pop() any {
	old := *q
	w := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	w.at = -1
	return w
}
