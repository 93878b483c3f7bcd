package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"path"
	"strings"
	"sync"
	"time"

	"vragent/agent/internal/account"
	"vragent/agent/internal/api/wire"
	"vragent/agent/internal/job"
)

// push is what a job is to do: the payload that is kept with it. It says what the client named,
// not what the files become: that is made of the files as they are when the job's turn comes.
type push struct {
	Network *networkPush `json:"network,omitempty"`
	VM      *vmPush      `json:"vm,omitempty"`
	Bundle  *bundlePush  `json:"bundle,omitempty"`
	Remove  bool         `json:"remove,omitempty"`
	Forced  bool         `json:"forced,omitempty"`
	// Sync is set where the client waits: a unit that is pending is good enough.
	Sync bool `json:"sync,omitempty"`
	// DisableUser is the id of a user.
	DisableUser string `json:"disable_user,omitempty"`
	// Reveal makes the password a part of the result that is shown once.
	Reveal bool `json:"reveal,omitempty"`
}

type networkPush struct {
	Definition []byte `json:"definition,omitempty"`
}

// vmPush names what changes of a VM: nil stays as it is, an empty value removes.
type vmPush struct {
	Hostname   *string     `json:"hostname,omitempty"`
	NICs       []nicPush   `json:"nics,omitempty"`
	Metadata   []metaEntry `json:"metadata,omitempty"`
	UserData   *[]byte     `json:"userdata,omitempty"`
	VendorData *[]byte     `json:"vendordata,omitempty"`
	Password   *string     `json:"password,omitempty"`
}

type nicPush struct {
	Index     int     `json:"index"`
	Network   *string `json:"network,omitempty"`
	MAC       *string `json:"mac,omitempty"`
	IPv4      *string `json:"ipv4,omitempty"`
	Default   *string `json:"default,omitempty"` // true, false or empty
	LeaseTime *string `json:"lease_time,omitempty"`
}

type metaEntry struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

type bundlePush struct {
	Replace bool `json:"replace,omitempty"`
}

func networkUnit(name string) string { return "networks/" + name + ".yaml" }
func vmUnit(name string) string      { return "vms/" + name }

// pusher carries jobs out: it makes changes of them, has them judged, puts them, and sees what
// becomes of them.
type pusher struct {
	drop    Drop
	backend Backend
	users   *account.Users
	jobs    *job.Queue
	spool   spool
	log     *slog.Logger

	following sync.WaitGroup
}

const (
	// batchSize is how many jobs are judged and put together at most. Whatever waits goes into
	// one batch and shares its syncs; a lone job waits for nobody.
	batchSize = 256
	// settleTime is how long a batch may hold up the next one. A unit whose files somebody else
	// holds open is waited for apart.
	settleTime = time.Second
	// readTime is how long the files of one unit may hold up the others.
	readTime = 100 * time.Millisecond
)

// run carries jobs out until ctx ends. Jobs that are not finished then are carried on by the next
// run of the agent.
func (p *pusher) run(ctx context.Context) error {
	defer p.following.Wait()
	for {
		tasks, err := p.jobs.Next(ctx, batchSize)
		if err != nil {
			return nil // ctx ended
		}
		p.batch(ctx, tasks)
	}
}

// work is a job on its way.
type work struct {
	task   *job.Task
	job    job.Job
	push   push
	change Change
}

// waits tells whether the job stays open while its unit is as u tells.
func (w *work) waits(u Unit) bool {
	return u.State == Pending && !w.push.Remove && !w.push.Sync
}

func (p *pusher) batch(ctx context.Context, tasks []*job.Task) {
	var batch []*work
	for _, t := range tasks {
		w := &work{task: t, job: t.Job()}
		payload, err := t.Payload()
		if err == nil {
			err = json.Unmarshal(payload, &w.push)
		}
		switch {
		case err != nil:
			p.fail(ctx, w, err)
		case w.push.Bundle != nil:
			p.bundle(ctx, w)
		case w.push.DisableUser != "":
			p.disable(ctx, w)
		case w.job.Released:
			p.follow(ctx, w)
		default:
			limited, cancel := context.WithTimeout(ctx, readTime)
			w.change, err = p.change(limited, w)
			cancel()
			switch {
			case errors.Is(err, context.DeadlineExceeded):
				p.giveTime(ctx, w)
			case err != nil:
				p.fail(ctx, w, err)
			default:
				batch = append(batch, w)
			}
		}
	}
	batch = p.judge(ctx, batch)
	batch = p.put(ctx, batch)
	p.settle(ctx, batch)
}

// disable carries out the one job that is not about the drop directory.
func (p *pusher) disable(ctx context.Context, w *work) {
	u, err := p.users.SetState(w.push.DisableUser, account.Disabled)
	if err != nil {
		p.fail(ctx, w, err)
		return
	}
	p.done(w, userAnswer(u), nil)
}

// giveTime lets a job wait until nobody holds the unit's files open for writing, and gives it back.
func (p *pusher) giveTime(ctx context.Context, w *work) {
	p.following.Go(func() {
		limited, cancel := context.WithDeadline(ctx, w.job.Deadline)
		defer cancel()
		const why = "waits for a file that somebody else is writing"
		if err := w.task.Report(why); err != nil {
			p.log.Warn("job not noted", "job", w.job.ID, "reason", err)
		}
		_, err := p.drop.Read(limited, w.job.Unit)
		switch {
		case err == nil, errors.Is(err, ErrUnknown):
			w.task.Return()
		case errors.Is(err, context.DeadlineExceeded):
			p.fail(ctx, w, &wire.Error{Code: wire.CodeInternal, Text: fmt.Sprintf("The job's time of %s is over, and it still %s. Nothing was changed, and nothing will be",
				w.job.Deadline.Sub(w.job.Created).Round(time.Second), why)})
		default:
			p.fail(ctx, w, err)
		}
	})
}

// change makes of what was asked for what is to be written, from the files as they are now.
func (p *pusher) change(ctx context.Context, w *work) (Change, error) {
	c := Change{Unit: w.job.Unit}
	if w.push.Remove {
		c.Remove = true
		return c, p.removable(ctx, w)
	}
	if n := w.push.Network; n != nil {
		// What the file holds until now does not matter, but who writes it goes first.
		if _, err := p.drop.Read(ctx, c.Unit); err != nil && !errors.Is(err, ErrUnknown) {
			return c, err
		}
		c.Files = map[string][]byte{path.Base(c.Unit): n.Definition}
		return c, nil
	}
	if w.push.VM == nil {
		return c, errors.New("job without content")
	}
	return p.vmChange(ctx, c, *w.push.VM)
}

// removable refuses to take a network away from VMs, unless that is meant.
func (p *pusher) removable(ctx context.Context, w *work) error {
	if w.push.Forced || !strings.HasPrefix(w.job.Unit, "networks/") {
		return nil
	}
	for _, vm := range p.backend.VMs(ctx) {
		for _, nic := range vm.NICs {
			if nic.Network == w.job.Name {
				return &wire.Error{Code: wire.CodeResourceInUse, Text: fmt.Sprintf("Network %s is in use by VM %s; forced=true removes it all the same", w.job.Name, vm.Name)}
			}
		}
	}
	return nil
}

func (p *pusher) vmChange(ctx context.Context, c Change, v vmPush) (Change, error) {
	old, err := p.drop.Read(ctx, c.Unit, fileVM, fileMeta)
	if err != nil && !errors.Is(err, ErrUnknown) {
		return c, err
	}
	c.Files = map[string][]byte{}
	_, exists := old[fileVM]
	if !exists && len(v.NICs) == 0 {
		return c, &wire.Error{Code: wire.CodeParameter, Text: errNoNIC.Error()}
	}
	if !exists || v.Hostname != nil || len(v.NICs) > 0 {
		edited, err := editVM(old[fileVM], v)
		if err != nil {
			return c, &wire.Error{Code: wire.CodeParameter, Text: fmt.Sprintf("%s/%s: %v", c.Unit, fileVM, err)}
		}
		c.Files[fileVM] = edited
	}
	if len(v.Metadata) > 0 {
		edited, err := editMeta(old[fileMeta], v.Metadata)
		if err != nil {
			return c, &wire.Error{Code: wire.CodeParameter, Text: fmt.Sprintf("%s/%s: %v", c.Unit, fileMeta, err)}
		}
		c.Files[fileMeta] = edited
	}
	if v.UserData != nil {
		c.Files[fileUser] = emptyRemoves(*v.UserData)
	}
	if v.VendorData != nil {
		c.Files[fileVendor] = emptyRemoves(*v.VendorData)
	}
	if v.Password != nil {
		c.Files[filePassword] = nil
		if *v.Password != "" {
			c.Files[filePassword] = []byte(*v.Password + "\n")
		}
	}
	// What is as it should be already is not written again: an untouched vm.yaml keeps its time.
	for _, name := range []string{fileVM, fileMeta} {
		if data, ok := old[name]; ok && c.Files[name] != nil && bytes.Equal(data, c.Files[name]) {
			delete(c.Files, name)
		}
	}
	return c, nil
}

func emptyRemoves(data []byte) []byte {
	if len(data) == 0 {
		return nil
	}
	return data
}

// judge fails the jobs whose changes would be rejected and returns the others.
func (p *pusher) judge(ctx context.Context, batch []*work) []*work {
	if len(batch) == 0 {
		return nil
	}
	verdicts, err := p.drop.Judge(ctx, changesOf(batch))
	if err != nil {
		for _, w := range batch {
			p.fail(ctx, w, err)
		}
		return nil
	}
	kept := batch[:0:0]
	for _, w := range batch {
		if u := verdicts[w.change.Unit]; u.State == Rejected {
			p.fail(ctx, w, rejected(u))
			continue
		}
		kept = append(kept, w)
	}
	return kept
}

func changesOf(batch []*work) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		for _, w := range batch {
			if !yield(w.change, nil) {
				return
			}
		}
	}
}

// put writes the changes and returns the jobs whose changes are on disk.
func (p *pusher) put(ctx context.Context, batch []*work) []*work {
	var changes []Change
	for _, w := range batch {
		if w.change.Remove || len(w.change.Files) > 0 {
			changes = append(changes, w.change)
		}
	}
	if len(changes) == 0 || p.drop.Put(ctx, changes) == nil {
		for _, w := range batch {
			w.task.Release()
		}
		return batch
	}
	// One change may have spoilt it for the others.
	kept := batch[:0:0]
	for _, w := range batch {
		if err := p.drop.Put(ctx, []Change{w.change}); err != nil {
			p.fail(ctx, w, err)
			continue
		}
		w.task.Release()
		kept = append(kept, w)
	}
	return kept
}

// settle ends the jobs whose changes are in force or rejected, and leaves the others to be
// followed.
func (p *pusher) settle(ctx context.Context, batch []*work) {
	if len(batch) == 0 {
		return
	}
	units := make([]string, len(batch))
	for i, w := range batch {
		units[i] = w.change.Unit
	}
	limited, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	states, err := p.drop.Settle(limited, units)
	var ending sync.WaitGroup // ends of jobs share a sync
	defer ending.Wait()
	for i, w := range batch {
		if err != nil || i >= len(states) || w.waits(states[i]) {
			p.follow(ctx, w)
			continue
		}
		ending.Go(func() { p.finish(ctx, w, states[i]) })
	}
}

// follow waits for the outcome of a job apart from the others.
func (p *pusher) follow(ctx context.Context, w *work) {
	p.following.Go(func() {
		limited, cancel := context.WithDeadline(ctx, w.job.Deadline)
		defer cancel()
		if err := w.task.Report(cmp.Or(w.job.Note, "written, waits to be judged")); err != nil {
			p.log.Warn("job not noted", "job", w.job.ID, "reason", err)
		}
		states, err := p.drop.Settle(limited, []string{w.job.Unit})
		if err == nil && len(states) != 1 {
			err = errors.New("unit not judged")
		}
		for err == nil && w.waits(states[0]) {
			if err := w.task.Report("waits: " + reasons(states[0])); err != nil {
				p.log.Warn("job not noted", "job", w.job.ID, "reason", err)
			}
			states[0], err = p.drop.Follow(limited, w.job.Unit, Pending)
		}
		switch {
		case ctx.Err() != nil:
			// The agent stops; the job goes on after its restart.
		case errors.Is(err, context.DeadlineExceeded):
			note := w.task.Job().Note
			p.fail(ctx, w, &wire.Error{Code: wire.CodeInternal, Text: fmt.Sprintf("The job's time of %s is over, and %s %s. What was pushed is written and still takes effect by itself once that is over",
				w.job.Deadline.Sub(w.job.Created).Round(time.Second), w.job.Unit, note)})
		case err != nil:
			p.fail(ctx, w, err)
		default:
			p.finish(ctx, w, states[0])
		}
	})
}

// finish ends a job by what became of its unit.
func (p *pusher) finish(ctx context.Context, w *work, u Unit) {
	switch {
	case w.push.Remove:
		// Also where somebody else dropped it again at once: the removal was carried out.
		p.done(w, wire.Success(), nil)
	case u.State == "":
		p.fail(ctx, w, &wire.Error{Code: wire.CodeInternal, Text: fmt.Sprintf("%s was removed before it took effect", w.job.Unit)})
	case u.State == Rejected:
		p.fail(ctx, w, rejected(u))
	default:
		result, err := p.resource(ctx, w)
		if err != nil {
			p.fail(ctx, w, err)
			return
		}
		var secret []byte
		if w.push.Reveal {
			secret = []byte(*w.push.VM.Password)
		}
		p.done(w, result, secret)
	}
}

// resource is the unit that a push was for, as lists show it.
func (p *pusher) resource(ctx context.Context, w *work) (wire.Object, error) {
	if w.push.Network != nil {
		n, err := p.drop.Network(ctx, w.job.Name)
		if err != nil && !errors.Is(err, ErrUnknown) {
			return nil, err
		}
		n.Name = w.job.Name
		return wire.Object{{Name: "network", Value: networkObject(n)}}, nil
	}
	vm, err := p.drop.VM(ctx, w.job.Name)
	if err != nil && !errors.Is(err, ErrUnknown) {
		return nil, err
	}
	vm.Name = w.job.Name
	return wire.Object{{Name: "virtualmachine", Value: vmObject(vm)}}, nil
}

func (p *pusher) done(w *work, result wire.Object, secret []byte) {
	body, err := json.Marshal(result)
	if err == nil {
		err = w.task.Finish(body, secret)
	}
	if err != nil {
		p.log.Error("job not recorded as done", "job", w.job.ID, "reason", err)
	}
	p.audit(w, "done", "")
}

// fail ends a job with the reason, unless the reason is that the agent stops: then the job goes on
// after its restart.
func (p *pusher) fail(ctx context.Context, w *work, reason error) {
	if ctx.Err() != nil {
		return
	}
	code, words := wire.CodeInternal, reason.Error()
	var e *wire.Error
	if errors.As(reason, &e) {
		code, words = e.Code, e.Text
	}
	if err := w.task.Fail(code, words); err != nil {
		p.log.Error("job not recorded as failed", "job", w.job.ID, "reason", err)
	}
	p.audit(w, "failed", words)
}

func (p *pusher) audit(w *work, outcome, reason string) {
	args := []any{"user", w.job.User, "account", w.job.Role, "command", w.job.Command, "resource", cmp.Or(w.job.Unit, "bundle"), "job", w.job.ID, "outcome", outcome}
	if reason != "" {
		args = append(args, "reason", reason)
	}
	p.log.Info("audit", args...)
}

// rejected is the error of a unit that was or would be rejected.
func rejected(u Unit) error {
	return &wire.Error{Code: wire.CodeParameter, Text: fmt.Sprintf("%s is rejected: %s", u.Unit, reasons(u))}
}

// reasons says why a unit is in its state.
func reasons(u Unit) string {
	if len(u.Reasons) == 0 {
		return string(u.State)
	}
	all := make([]string, len(u.Reasons))
	for i, f := range u.Reasons {
		all[i] = f.String()
	}
	return strings.Join(all, "; ")
}
