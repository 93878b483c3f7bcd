package drop

import (
	"context"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// missingEvery is how often a missing drop directory is looked for.
	missingEvery = 50 * time.Millisecond
	// rescanGap is the least time between two scans for lost events.
	rescanGap = 250 * time.Millisecond
	// markTimeout is after which a barrier scans rather than wait for its mark.
	markTimeout = 500 * time.Millisecond

	// What is done at a time before events are looked at again.
	eventsAtOnce = 512
	unitsAtOnce  = 64
	sweepAtOnce  = 256
)

// loop is the one goroutine that touches the tree.
type loop struct {
	dir  *Dir
	tree *tree

	rescanAt   time.Time // events were lost: when to scan, zero if not
	lastRescan time.Time

	swept []string // VM folders that the present sweep has still to look at

	waiting []chan struct{} // barriers for the next flight
	flying  []chan struct{}
	stage   stage
	markDue time.Time // when to give up on the mark
}

// stage is how far the flying barriers are.
type stage int

const (
	landed   stage = iota // there are none
	marking               // events up to the mark are still to come
	sweeping              // folders without a watch are still to be scanned
)

func (l *loop) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	tick := time.NewTimer(scanEvery)
	defer tick.Stop()
	always := make(chan struct{})
	close(always)

	for {
		now := time.Now()
		l.overdue(now)
		next := l.dir.lookAt(now, unitsAtOnce)
		for _, due := range []time.Time{l.rescanAt, l.markDue} {
			if !due.IsZero() && (next.IsZero() || due.Before(next)) {
				next = due
			}
		}
		var busy chan struct{}
		if l.sweepSome() {
			busy = always
		}
		if next.IsZero() {
			next = now.Add(time.Hour)
		}
		timer.Reset(time.Until(next))

		var events chan fsnotify.Event
		if w := l.tree.watcher; w != nil {
			events = w.Events
		}
		select {
		case <-ctx.Done():
			return
		case e := <-events:
			l.event(e)
			l.more(events)
		case err := <-l.tree.lost:
			l.lost(err)
		case passed := <-l.dir.barriers:
			l.waiting = append(l.waiting, passed)
			l.launch()
		case <-tick.C:
			tick.Reset(l.tick())
		case <-timer.C:
		case <-l.dir.changed:
		case <-busy:
		}
	}
}

// more takes the events that have piled up.
func (l *loop) more(events <-chan fsnotify.Event) {
	for range eventsAtOnce {
		select {
		case e := <-events:
			l.event(e)
		default:
			return
		}
	}
}

func (l *loop) event(e fsnotify.Event) {
	if m := l.tree.mark; m != nil && e.Name == m.path {
		m.reset()
		if l.stage == marking {
			l.marked()
		}
		return
	}
	l.tree.handle(e)
}

// lost schedules a scan: the kernel's queue has overflowed, or the watcher has
// failed otherwise.
func (l *loop) lost(err error) {
	if !l.rescanAt.IsZero() {
		return
	}
	l.dir.log.Info("events were lost, scanning", "dir", l.dir.path, "err", err)
	l.rescanAt = time.Now()
	if earliest := l.lastRescan.Add(rescanGap); l.rescanAt.Before(earliest) {
		l.rescanAt = earliest
	}
}

// overdue does what its time has come for.
func (l *loop) overdue(now time.Time) {
	if !l.rescanAt.IsZero() && !now.Before(l.rescanAt) {
		l.rescan()
	}
	if !l.markDue.IsZero() && !now.Before(l.markDue) {
		l.rescan()
		l.marked()
	}
}

func (l *loop) rescan() {
	l.rescanAt = time.Time{}
	l.tree.resetAll(true)
	l.lastRescan = time.Now()
}

// tick is the look around each second at what there are no events for.
func (l *loop) tick() time.Duration {
	if l.tree.watcher == nil && l.tree.open() {
		l.rescan()
	}
	l.tree.checkTops()
	if len(l.swept) == 0 {
		l.swept = l.tree.bareNames()
	}
	if l.tree.root == (fileID{}) {
		return missingEvery
	}
	return scanEvery
}

// sweepSome goes on with the present sweep and tells whether there is more.
func (l *loop) sweepSome() bool {
	n := min(sweepAtOnce, len(l.swept))
	for _, name := range l.swept[:n] {
		l.tree.sweep(name)
	}
	l.swept = l.swept[n:]
	if len(l.swept) > 0 {
		return true
	}
	l.swept = nil
	if l.stage == sweeping {
		l.land()
	}
	return l.stage == sweeping // those that had waited
}

// launch lets the waiting barriers fly, unless some do already.
func (l *loop) launch() {
	if l.stage != landed || len(l.waiting) == 0 {
		return
	}
	l.flying, l.waiting = l.waiting, nil
	l.stage = marking
	if m := l.tree.mark; m != nil && m.set() {
		l.markDue = time.Now().Add(markTimeout)
		return
	}
	if l.tree.watcher != nil {
		l.rescan() // no way to tell which events are still to come
	}
	l.marked()
}

// marked: all events from before the flight have been dealt with.
func (l *loop) marked() {
	l.markDue = time.Time{}
	if !l.rescanAt.IsZero() {
		l.rescan()
	}
	l.tree.checkTops()
	l.stage = sweeping
	l.swept = l.tree.bareNames() // anew, whatever a sweep has seen already
}

func (l *loop) land() {
	for _, passed := range l.flying {
		close(passed)
	}
	l.flying = nil
	l.stage = landed
	l.launch()
}
