package api

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"vragent/agent/internal/api/bundle"
	"vragent/agent/internal/api/wire"
)

const (
	// A bundle is put in pieces, so that its memory is bounded.
	putUnits = 500
	putBytes = 16 << 20

	// Percent of a bundle's progress at which its parts end.
	judgedPercent = 10
	putPercent    = 80
)

// bundle carries a bundle's job out until all of its units are judged; it runs alone, since what
// it changes is not known before it is read. What then waits is followed beside other jobs.
func (p *pusher) bundle(ctx context.Context, w *work) {
	f, b, err := p.spool.open(w.job.Name)
	if err != nil {
		p.fail(ctx, w, err)
		return
	}
	run := &bundleRun{pusher: p, work: w, bundle: b, units: b.Units()}
	if w.job.Released {
		// Before a restart everything was put, and nothing was rejected: only then a bundle waits.
		err = run.listRemoved(ctx)
	} else {
		err = run.write(ctx)
	}
	err = errors.Join(err, f.Close())
	if err != nil {
		p.endBundle(ctx, w, err)
		return
	}
	w.task.Release()
	p.following.Go(func() { p.endBundle(ctx, w, run.follow(ctx)) })
}

// endBundle ends the job and forgets the bundle, unless the agent stops.
func (p *pusher) endBundle(ctx context.Context, w *work, err error) {
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		p.fail(ctx, w, err)
	}
	if err := p.spool.remove(w.job.Name); err != nil {
		p.log.Warn("bundle not removed", "job", w.job.ID, "reason", err)
	}
}

// bundleRun is one bundle on its way.
type bundleRun struct {
	*pusher
	work    *work
	bundle  *bundle.Bundle
	units   []string
	removed []string        // units that the bundle lacks, in replace mode
	refused map[string]Unit // judged as rejected, and left as they are
}

// write judges the bundle as a whole and puts what is not rejected: removals first, then networks,
// then VMs.
func (r *bundleRun) write(ctx context.Context) error {
	if err := r.listRemoved(ctx); err != nil {
		return err
	}
	judged := 0
	verdicts, err := r.drop.Judge(ctx, func(yield func(Change, error) bool) {
		for c, err := range r.changes(ctx) {
			judged++
			r.work.task.Progress(judgedPercent * judged / r.total())
			if !yield(c, err) {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	r.refused = map[string]Unit{}
	for unit, u := range verdicts {
		if u.State == Rejected {
			r.refused[unit] = u
		}
	}
	return r.put(ctx)
}

func (r *bundleRun) total() int { return max(1, len(r.units)+len(r.removed)) }

// listRemoved finds the units that the bundle lacks and that are to go.
func (r *bundleRun) listRemoved(ctx context.Context) error {
	if !r.work.push.Bundle.Replace {
		return nil
	}
	all, err := r.drop.Units(ctx)
	if err != nil {
		return err
	}
	for _, unit := range all {
		if !r.bundle.Has(unit, "") {
			r.removed = append(r.removed, unit)
		}
	}
	return nil
}

// changes are all changes that the bundle makes, one in memory at a time.
func (r *bundleRun) changes(ctx context.Context) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		for _, unit := range r.removed {
			if !yield(Change{Unit: unit, Remove: true}, nil) {
				return
			}
		}
		for _, unit := range r.units {
			c, err := r.change(unit)
			if err == nil {
				err = ctx.Err()
			}
			if !yield(c, err) || err != nil {
				return
			}
		}
	}
}

// change makes the change of one unit. Merging is what unpacking the archive over the drop
// directory would do; after replacing, the drop directory is what the archive is.
func (r *bundleRun) change(unit string) (Change, error) {
	files, err := r.bundle.Files(unit)
	if err != nil {
		return Change{}, err
	}
	if r.work.push.Bundle.Replace && strings.HasPrefix(unit, "vms/") {
		for _, name := range []string{fileVM, fileMeta, fileUser, fileVendor, filePassword} {
			if _, ok := files[name]; !ok {
				files[name] = nil
			}
		}
	}
	return Change{Unit: unit, Files: files}, nil
}

func (r *bundleRun) put(ctx context.Context) error {
	var piece []Change
	size, done := 0, 0
	flush := func() error {
		if len(piece) == 0 {
			return nil
		}
		if err := r.drop.Put(ctx, piece); err != nil {
			return fmt.Errorf("%d of %d units written: %w", done-len(piece), r.total(), err)
		}
		r.work.task.Progress(judgedPercent + (putPercent-judgedPercent)*done/r.total())
		piece, size = nil, 0
		return nil
	}
	for c, err := range r.changes(ctx) {
		if err != nil {
			return err
		}
		done++
		if _, no := r.refused[c.Unit]; no {
			continue
		}
		piece = append(piece, c)
		for _, data := range c.Files {
			size += len(data)
		}
		if len(piece) >= putUnits || size >= putBytes {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// follow waits until every unit is in force, or is rejected, or the job's time is over. It ends
// the job where all went well and returns why not otherwise.
func (r *bundleRun) follow(ctx context.Context) error {
	limited, cancel := context.WithDeadline(ctx, r.work.job.Deadline)
	defer cancel()
	open := append([]string{}, r.removed...)
	for _, unit := range r.units {
		if _, no := r.refused[unit]; !no {
			open = append(open, unit)
		}
	}
	all := len(open)
	for {
		states, err := r.settle(limited, open)
		if err == nil {
			open, err = r.sort(states, open)
		}
		if len(open) == 0 && err == nil || len(r.refused) > 0 && err == nil {
			return r.end(open)
		}
		if err == nil {
			err = r.wait(limited, states, open)
		}
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return &wire.Error{Code: wire.CodeInternal, Text: fmt.Sprintf("The job's time of %s is over, and %d of %d units are not in force yet, %s among them: %s. They are written and still take effect by themselves once that is over",
				r.work.job.Deadline.Sub(r.work.job.Created).Round(time.Second), len(open), all, open[0], r.work.task.Job().Note)}
		}
		if err != nil {
			return err
		}
	}
}

// settle waits for units piece by piece, so that the job's progress shows.
func (r *bundleRun) settle(ctx context.Context, units []string) ([]Unit, error) {
	var states []Unit
	for piece := range slices.Chunk(units, putUnits) {
		s, err := r.drop.Settle(ctx, piece)
		if err != nil {
			return nil, err
		}
		states = append(states, s...)
		r.work.task.Progress(putPercent + (99-putPercent)*len(states)/len(units))
	}
	return states, nil
}

// sort takes out of open what is over, and notes what was rejected after all.
func (r *bundleRun) sort(states []Unit, open []string) ([]string, error) {
	if len(states) != len(open) {
		return open, errors.New("not all units were judged")
	}
	var still []string
	for i, u := range states {
		switch {
		case u.State == Pending && !r.isRemoved(open[i]):
			still = append(still, open[i])
		case u.State == Rejected && !r.isRemoved(open[i]):
			if r.refused == nil {
				r.refused = map[string]Unit{}
			}
			r.refused[open[i]] = u
		}
	}
	return still, nil
}

func (r *bundleRun) isRemoved(unit string) bool { return !r.bundle.Has(unit, "") }

// wait waits for the first of the open units to get on.
func (r *bundleRun) wait(ctx context.Context, states []Unit, open []string) error {
	for _, u := range states {
		if u.Unit == open[0] {
			if err := r.work.task.Report(fmt.Sprintf("%d of %d units wait, %s: %s", len(open), r.total(), u.Unit, reasons(u))); err != nil {
				r.log.Warn("job not noted", "job", r.work.job.ID, "reason", err)
			}
		}
	}
	_, err := r.drop.Follow(ctx, open[0], Pending)
	return err
}

// end ends the job: open units are those that still wait.
func (r *bundleRun) end(open []string) error {
	if len(r.refused) == 0 {
		networks := 0
		for _, unit := range r.units {
			if strings.HasPrefix(unit, "networks/") {
				networks++
			}
		}
		r.done(r.work, wire.Object{{Name: "bundle", Value: wire.Object{
			{Name: "networks", Value: networks},
			{Name: "virtualmachines", Value: len(r.units) - networks},
			{Name: "removed", Value: len(r.removed)},
		}}}, nil)
		return nil
	}
	const shown = 10
	var text strings.Builder
	fmt.Fprintf(&text, "%d of %d units are rejected and keep their last good content; the others are written", len(r.refused), len(r.units))
	if len(open) > 0 {
		fmt.Fprintf(&text, ", %d of them wait for something", len(open))
	}
	n := 0
	for _, unit := range r.units {
		u, no := r.refused[unit]
		if !no {
			continue
		}
		if n++; n > shown {
			fmt.Fprintf(&text, "\n... and %d more", len(r.refused)-shown)
			break
		}
		fmt.Fprintf(&text, "\n%s: %s", unit, reasons(u))
	}
	return &wire.Error{Code: wire.CodeParameter, Text: text.String()}
}
