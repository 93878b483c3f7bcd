package engine

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"vragent/agent/internal/drop"
	"vragent/agent/internal/state"
)

// taken is the record of a password that a guest has taken: never the password itself.
type taken struct {
	Salt []byte `json:"salt"`
	Hash []byte `json:"hash"` // SHA-256 of salt and password
}

func (t taken) is(password string) bool {
	sum := sha256.Sum256(append(t.Salt[:len(t.Salt):len(t.Salt)], password...))
	return subtle.ConstantTimeCompare(sum[:], t.Hash) == 1
}

func parseTaken(value []byte) (*taken, error) {
	t := new(taken)
	if err := json.Unmarshal(value, t); err != nil {
		return nil, err
	}
	return t, nil
}

// Password implements metadata.Passwords: what was dropped for the VM, unless it has been taken. Where a
// pair shares that, it asks until ctx ends.
func (e *Engine) Password(ctx context.Context, vm string) (string, bool, error) {
	unit := drop.Unit{Kind: drop.VM, Name: vm}
	e.mu.RLock()
	v, ok := e.model.View(unit)
	e.mu.RUnlock()
	if !ok || v.Have == nil || v.Have.VM.Password == "" {
		return "", false, nil
	}
	password := v.Have.VM.Password
	t, err := e.takenPassword(unit)
	if err != nil {
		// Better none than one that was taken before.
		return "", false, fmt.Errorf("record of taken passwords: %w", err)
	}
	if t != nil && t.is(password) {
		return "", false, nil
	}
	if e.Shared == nil {
		return password, true, nil
	}
	var value []byte
	err = hold(ctx, func(ctx context.Context) (err error) {
		value, err = e.Shared.Get(ctx, vm)
		return err
	})
	if err == nil && value != nil {
		t, err = parseTaken(value)
	}
	if err != nil {
		return "", false, fmt.Errorf("shared record of taken passwords: %w", err)
	}
	if value != nil && t.is(password) {
		return "", false, nil
	}
	return password, true, nil
}

func (e *Engine) takenPassword(unit drop.Unit) (*taken, error) {
	value, err := e.Store.Get(TakenPrefix + unit.Path())
	if errors.Is(err, state.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseTaken(value)
}

// Forget drops the records of passwords that were taken under the names of units, which are other
// VMs' from now on: the same text is a new password there.
func (e *Engine) Forget(units []string) error {
	e.taking.Lock()
	defer e.taking.Unlock()
	var batch state.Batch
	gone := make(map[string][]byte)
	for _, unit := range units {
		if value, err := e.Store.Get(TakenPrefix + unit); err == nil {
			gone[takenOf(unit)] = value
		}
		batch.Delete(TakenPrefix + unit)
	}
	if err := e.Store.Commit(&batch); err != nil {
		return fmt.Errorf("record of taken passwords: %w", err)
	}
	e.unshare(gone)
	return nil
}

// Taken implements metadata.Passwords. The record comes first; the file is removed then, and that it
// cannot be removed changes nothing: the record counts. Where a pair shares it, the other router's record
// is the first, and is tried until ctx ends.
func (e *Engine) Taken(ctx context.Context, vm, password string) error {
	unit := drop.Unit{Kind: drop.VM, Name: vm}
	e.mu.RLock()
	v, ok := e.model.View(unit)
	e.mu.RUnlock()
	if !ok || v.Have == nil {
		return fmt.Errorf("VM %s is not in force", vm)
	}
	t := taken{Salt: make([]byte, 16)}
	rand.Read(t.Salt)
	sum := sha256.Sum256(append(t.Salt[:len(t.Salt):len(t.Salt)], password...))
	t.Hash = sum[:]
	value, err := json.Marshal(t)
	if err != nil {
		return err
	}
	if e.Shared != nil {
		if err := hold(ctx, func(ctx context.Context) error { return e.Shared.Put(ctx, vm, value) }); err != nil {
			return fmt.Errorf("shared record of taken passwords: %w", err)
		}
	}
	e.taking.Lock()
	defer e.taking.Unlock()
	var batch state.Batch
	batch.Put(TakenPrefix+unit.Path(), value)
	if err := e.Store.Commit(&batch); err != nil {
		return fmt.Errorf("record of taken passwords: %w", err)
	}
	if v.Have.VM.Password == password {
		e.removePassword(vm, password)
	}
	return nil
}

// removePassword removes the file of a password that was taken.
func (e *Engine) removePassword(vm, password string) {
	if err := e.Dir.RemovePassword(vm, password); err != nil {
		e.Log.Warn("taken password stays in the drop directory; it is not given out again", "vm", vm, "err", err)
	}
}

// CheckTaken tells whether a record, such as one from a backup, says that a password was taken.
func CheckTaken(key string, value []byte) error {
	path, ok := strings.CutPrefix(key, TakenPrefix)
	if !ok {
		return fmt.Errorf("%q is no key of taken passwords", key)
	}
	unit, err := drop.ParsePath(path)
	if err != nil || unit.Kind != drop.VM || unit.Path() != path {
		return fmt.Errorf("%s: is of no VM", key)
	}
	var t taken
	if err := json.Unmarshal(value, &t); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	if len(t.Hash) != sha256.Size || len(t.Salt) == 0 {
		return fmt.Errorf("%s: holds no salted hash", key)
	}
	return nil
}
