package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"vragent/agent/internal/drop"
	"vragent/agent/internal/state"
)

// SharedTaken keeps the records of taken passwords that both routers of a pair go by, by VM. Its methods
// are safe for concurrent use.
type SharedTaken interface {
	// Get returns the record of a VM as both routers agree on it now, nil where there is none.
	Get(ctx context.Context, vm string) ([]byte, error)
	// Put keeps a record. After an error it may be kept or not.
	Put(ctx context.Context, vm string, value []byte) error
	// Restore keeps a record unless there is one.
	Restore(ctx context.Context, vm string, value []byte) error
	// Remove removes the record of a VM if it is still value.
	Remove(ctx context.Context, vm string, value []byte) error
	// Follow calls take with each record, then current, then take with each change, with nil for one
	// that was removed. It returns when ctx ends, or why the store cannot be followed any more.
	Follow(ctx context.Context, take func(vm string, value []byte), current func()) error
}

// holdRetry is how long a request that waits for the shared store lets pass until it asks again.
const holdRetry = 200 * time.Millisecond

// hold asks until there is an answer or ctx ends, and returns the last reason then.
func hold(ctx context.Context, ask func(context.Context) error) error {
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(holdRetry):
		}
	}
}

// takenOf returns the name of the VM whose record lies under a unit's path.
func takenOf(path string) string { return strings.TrimPrefix(path, "vms/") }

// share follows what the other router records until ctx ends, and removes there what is removed here.
func (e *Engine) share(ctx context.Context) {
	var told time.Time // when the last reason was logged
	for ctx.Err() == nil {
		first := make(map[string][]byte) // what is in the store, while that is being told
		err := e.Shared.Follow(ctx, func(vm string, value []byte) {
			if first != nil {
				first[vm] = value
				return
			}
			e.takeRecord(ctx, vm, value)
		}, func() {
			e.takeRecords(ctx, first)
			first = nil
			e.mu.Lock()
			if e.faults["shared"] != "" {
				e.Log.Info("taken passwords are shared again")
			}
			delete(e.faults, "shared")
			e.mu.Unlock()
		})
		if ctx.Err() != nil {
			return
		}
		what := fmt.Sprintf("taken passwords cannot be shared: a VM whose password waits is not told it until they can: %v", err)
		e.mu.Lock()
		before := e.faults["shared"]
		e.faults["shared"] = what
		e.mu.Unlock()
		// Reasons may name a port that is another one each time.
		if now := e.Now(); before == "" || before != what && now.Sub(told) >= time.Minute {
			told = now
			e.Log.Error("taken passwords cannot be shared: a VM whose password waits is not told it until they can", "reason", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryEvery):
		}
	}
}

// takeRecords takes all that is in the shared store. It gets the records of VMs in force that it lacks.
func (e *Engine) takeRecords(ctx context.Context, there map[string][]byte) {
	for vm, value := range there {
		e.takeRecord(ctx, vm, value)
	}
	for key := range e.Store.Keys(TakenPrefix) {
		vm := takenOf(strings.TrimPrefix(key, TakenPrefix))
		if _, ok := there[vm]; !ok && ctx.Err() == nil {
			e.takeRecord(ctx, vm, nil)
		}
	}
}

// takeRecord takes what the shared store has for a VM in force here: its record, or nil for none, which
// gets it the one that is here.
func (e *Engine) takeRecord(ctx context.Context, vm string, value []byte) {
	unit := drop.Unit{Kind: drop.VM, Name: vm}
	key := TakenPrefix + unit.Path()
	e.mu.RLock()
	v, ok := e.model.View(unit)
	e.mu.RUnlock()
	if !ok || v.Have == nil {
		return
	}
	here, err := e.Store.Get(key)
	switch {
	case err != nil && !errors.Is(err, state.ErrNotFound):
		return // reported where it matters, by Password
	case bytes.Equal(here, value):
		return
	case value == nil:
		if err := e.Shared.Restore(ctx, vm, here); err != nil {
			e.Log.Debug("record of a taken password not shared yet", "vm", vm, "err", err)
		}
		return
	}
	if err := CheckTaken(key, value); err != nil {
		e.Log.Error("record in the shared store cannot be used", "err", err)
		return
	}
	e.taking.Lock()
	defer e.taking.Unlock()
	var batch state.Batch
	batch.Put(key, value)
	if err := e.Store.Commit(&batch); err != nil {
		e.Log.Debug("record of a taken password not kept; the shared store has it", "vm", vm, "err", err)
		return
	}
	if t, err := parseTaken(value); err == nil && t.is(v.Have.VM.Password) {
		e.removePassword(vm, v.Have.VM.Password)
	}
}

// unshare has the records removed from the shared store, as long as they are these.
func (e *Engine) unshare(records map[string][]byte) {
	if e.Shared == nil || len(records) == 0 {
		return
	}
	e.mu.Lock()
	for vm, value := range records {
		e.gone[vm] = value
	}
	e.mu.Unlock()
	select {
	case e.goneNews <- struct{}{}:
	default:
	}
}

// runUnshare removes from the shared store what unshare was called for, until ctx ends.
func (e *Engine) runUnshare(ctx context.Context) {
	for {
		e.mu.Lock()
		gone := e.gone
		e.gone = make(map[string][]byte)
		e.mu.Unlock()
		for vm, value := range gone {
			if hold(ctx, func(ctx context.Context) error { return e.Shared.Remove(ctx, vm, value) }) != nil {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-e.goneNews:
		}
	}
}
