package drop

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A unit is written in four steps:
//
//  1. new files go to a hidden folder beside the unit, .put-NAME-*
//  2. they are made durable
//  3. the folder is renamed: to the unit's own name if there is none yet, and
//     else to .commit-NAME, from which moment the change is going to be made
//  4. the files are moved over the old ones, vm.yaml last
//
// An agent that is killed after step 3 does step 4 at its next start, before
// it reads anything, and throws away what it has left from steps 1 and 2. The
// unit's folder stays the same, so that whoever is copying files into it goes
// on undisturbed, and nothing is touched but the files that are to change.
const (
	stagePrefix  = ".put-"
	commitPrefix = ".commit-"
	gonePrefix   = ".gone-"
	// removals is a file in a hidden folder with the names to remove.
	removals = ".remove"
)

// Edit is a change to one unit. Files that it does not name stay as they are.
type Edit struct {
	Unit Unit
	Set  map[string][]byte // contents by base name
	// Clear names files to remove; that one is not there is no error.
	Clear []string
	// Remove takes the whole unit away; Set and Clear are empty then.
	Remove bool
}

func (e Edit) check() error {
	if !e.Unit.valid() {
		return fmt.Errorf("%s: not a valid name", e.Unit.Path())
	}
	names := slices.Clone(e.Clear)
	for name := range e.Set {
		names = append(names, name)
	}
	for _, name := range names {
		ok := isVMFile(name)
		if e.Unit.Kind == Network {
			ok = name == e.Unit.Name+networkSuffix
		}
		if !ok {
			return fmt.Errorf("%s: has no file %q", e.Unit.Path(), name)
		}
	}
	for name, data := range e.Set {
		if max := Limit(e.Unit.Kind, name); int64(len(data)) > max {
			return fmt.Errorf("%s: %s has %d bytes, allowed are %d", e.Unit.Path(), name, len(data), max)
		}
		if slices.Contains(e.Clear, name) {
			return fmt.Errorf("%s: %s is both set and cleared", e.Unit.Path(), name)
		}
	}
	if e.Remove == (len(names) > 0) {
		return fmt.Errorf("%s: a change either names files or removes the unit", e.Unit.Path())
	}
	return nil
}

func (e Edit) bytes() int64 {
	var n int64
	for _, data := range e.Set {
		n += int64(len(data))
	}
	return n
}

// Put makes one change, durable when it returns. Whatever kills the agent, the
// unit is as before or wholly changed when it starts again. Concurrent calls
// share their syncs to disk. On error nothing has changed, except with
// ErrUnfinished. The change comes out of Next like any other.
func (d *Dir) Put(ctx context.Context, edit Edit) error {
	var err error
	done := func(_ Unit, e error) { err = e }
	if fault := d.PutAll(ctx, slices.Values([]Edit{edit}), done); fault != nil {
		return fault
	}
	return err
}

// Remove takes a unit away, durably. That it is not there is no error.
func (d *Dir) Remove(ctx context.Context, u Unit) error {
	return d.Put(ctx, Edit{Unit: u, Remove: true})
}

// ErrUnfinished tells that a change has been decided but the disk did not let
// it be completed. It is tried again when the unit is next read or written, and
// at the next start.
var ErrUnfinished = errors.New("change is not complete yet")

const (
	groupEdits = 512
	groupBytes = 16 << 20
)

// PutAll makes many changes, each for itself as Put does, with a few syncs for
// all of them. It calls done for each in the order of edits once it is durable
// or has failed. It takes only as many edits at a time from the sequence as
// share a sync. The error is ctx's, after which the rest is left undone, or
// that the directory cannot be written at all.
func (d *Dir) PutAll(ctx context.Context, edits iter.Seq[Edit], done func(Unit, error)) error {
	if d.readOnly {
		return errReadOnly
	}
	if _, err := os.Stat(d.path); err != nil {
		return ErrMissing
	}
	for _, kind := range []Kind{Network, VM} {
		if err := d.prepare(filepath.Join(d.path, kind.folder())); err != nil {
			return fmt.Errorf("drop directory: %w", err)
		}
	}
	var group []*pending
	var size int64
	flush := func() error {
		err := ctx.Err()
		if err == nil {
			d.putGroup(group)
		}
		for _, p := range group {
			if err != nil {
				p.discard()
				p.err = err
			}
			done(p.Unit, p.err)
		}
		group, size = group[:0], 0
		return err
	}
	for e := range edits {
		if ctx.Err() != nil {
			break
		}
		p := d.stage(e)
		group = append(group, p)
		size += e.bytes()
		if len(group) == groupEdits || size >= groupBytes {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	return ctx.Err()
}

var errReadOnly = errors.New("drop directory is open for reading only")

// pending is an edit on its way.
type pending struct {
	Edit
	staged string // hidden folder or file with the new content
	fresh  bool   // there was no such VM when it was staged, and so nothing to clear
	err    error
}

func (p *pending) discard() {
	if p.staged != "" {
		os.RemoveAll(p.staged)
	}
}

func (d *Dir) putGroup(group []*pending) {
	// Contents have to be on disk before a name leads to them.
	if err := d.syncs.sync(d.path); err != nil {
		for _, p := range group {
			if p.err == nil {
				p.err = err
			}
		}
	}
	for _, p := range group {
		if p.err == nil {
			p.err = d.commit(p)
		}
		if p.err != nil {
			if !errors.Is(p.err, ErrUnfinished) {
				p.discard()
			}
			p.err = fmt.Errorf("%s: %w", p.Unit.Path(), p.err)
		}
	}
	if err := d.syncs.sync(d.path); err != nil {
		for _, p := range group {
			if p.err == nil {
				p.err = fmt.Errorf("%s: changed, but perhaps not on disk: %w", p.Unit.Path(), err)
			}
		}
	}
}

// stage writes the new files of an edit to a hidden place.
func (d *Dir) stage(e Edit) *pending {
	p := &pending{Edit: e}
	if p.err = e.check(); p.err != nil || e.Remove {
		return p
	}
	folder := filepath.Join(d.path, e.Unit.Kind.folder())
	if e.Unit.Kind == Network {
		for _, data := range e.Set {
			p.staged = filepath.Join(folder, stagePrefix+e.Unit.Name+"-"+token())
			p.err = writeFile(p.staged, data)
		}
		if p.err != nil {
			p.discard()
		}
		return p
	}
	p.staged = filepath.Join(folder, stagePrefix+e.Unit.Name+"-"+token())
	if p.err = makeGroupFolder(p.staged); p.err != nil {
		return p
	}
	for name, data := range e.Set {
		if p.err = writeFile(p.staged+"/"+name, data); p.err != nil {
			p.discard()
			return p
		}
	}
	if len(e.Clear) > 0 {
		_, err := os.Lstat(filepath.Join(d.path, e.Unit.Path()))
		if p.fresh = errors.Is(err, fs.ErrNotExist); p.fresh {
			return p
		}
		if p.err = p.writeRemovals(); p.err != nil {
			p.discard()
		}
	}
	return p
}

// writeRemovals notes in the staged folder what is to be cleared.
func (p *pending) writeRemovals() error {
	return writeFile(p.staged+"/"+removals, []byte(strings.Join(p.Clear, "\n")))
}

// commit makes a staged edit take effect.
func (d *Dir) commit(p *pending) error {
	lock := d.lockOf(p.Unit)
	lock.Lock()
	defer lock.Unlock()
	defer d.touchNow(p.Unit)

	path := filepath.Join(d.path, p.Unit.Path())
	switch {
	case p.Unit.Kind == Network && len(p.Set) > 0:
		return os.Rename(p.staged, path)
	case p.Unit.Kind == Network:
		return allowMissing(os.Remove(path))
	}
	if d.halfway(p.Unit) {
		if err := d.finish(p.Unit.Name); err != nil {
			return err
		}
	}
	if p.Remove {
		gone := filepath.Join(d.path, vmsFolder, gonePrefix+p.Unit.Name+"-"+token())
		if err := allowMissing(os.Rename(path, gone)); err != nil {
			return err
		}
		os.RemoveAll(gone) // the next start's if it fails
		return nil
	}
	if len(p.Clear) == 0 || p.fresh {
		err := unix.Renameat2(unix.AT_FDCWD, p.staged, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
		if err == nil || err != unix.EEXIST {
			return os.NewSyscallError("rename", err)
		}
		if p.fresh { // somebody has made the VM meanwhile, an edit before this one perhaps
			if err := p.writeRemovals(); err != nil {
				return err
			}
			if err := d.syncs.sync(d.path); err != nil {
				return err
			}
		}
	}
	if err := os.Rename(p.staged, d.commitPath(p.Unit.Name)); err != nil {
		return err
	}
	return d.finish(p.Unit.Name)
}

func (d *Dir) commitPath(name string) string {
	return filepath.Join(d.path, vmsFolder, commitPrefix+name)
}

// finish completes a change to a VM that has been decided, if there is one, and
// remembers whether it could. The caller holds the unit's lock. Doing it twice
// does no harm.
func (d *Dir) finish(name string) error {
	err := d.finishFiles(name)
	u := Unit{VM, name}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.half[u] = struct{}{}
		return fmt.Errorf("%w: %w", ErrUnfinished, err)
	}
	delete(d.half, u)
	return nil
}

// halfway tells whether finish has failed for a unit.
func (d *Dir) halfway(u Unit) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.half[u]
	return ok
}

func (d *Dir) finishFiles(name string) error {
	from := d.commitPath(name)
	list, err := os.ReadFile(from + "/" + removals)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(from); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	} else if err != nil {
		return err
	}
	to := filepath.Join(d.path, vmsFolder, name)
	if err := makeGroupFolder(to); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, file := range vmFiles { // vm.yaml is the last
		if err := allowMissing(os.Rename(from+"/"+file, to+"/"+file)); err != nil {
			return err
		}
	}
	for _, file := range strings.Split(string(list), "\n") {
		if !isVMFile(file) {
			continue
		}
		if err := allowMissing(os.Remove(to + "/" + file)); err != nil {
			return err
		}
	}
	return os.RemoveAll(from)
}

// recover completes and clears up what a killed agent left. Other hidden names
// belong to others.
func (d *Dir) recover() error {
	for _, kind := range []Kind{Network, VM} {
		folder := filepath.Join(d.path, kind.folder())
		entries, err := os.ReadDir(folder)
		if err != nil {
			return err
		}
		for _, e := range entries {
			name, committed := strings.CutPrefix(e.Name(), commitPrefix)
			switch {
			case kind == VM && committed && ValidName(name):
				if err := d.finish(name); err != nil {
					d.note("%s: %v", Unit{VM, name}.Path(), err)
				}
			case strings.HasPrefix(e.Name(), stagePrefix), kind == VM && strings.HasPrefix(e.Name(), gonePrefix):
				if err := os.RemoveAll(filepath.Join(folder, e.Name())); err != nil {
					d.log.Warn("left over from an earlier run", "err", err)
				}
			}
		}
	}
	return nil
}

// touchNow has a unit that we have written given out without waiting for the
// end of a burst.
func (d *Dir) touchNow(u Unit) {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.touch(u, now)
	if w := d.work[u]; w.state == bursting {
		d.schedule(w, now)
		ping(d.changed)
	}
}

// prepare makes the folder of a kind again if somebody has removed it.
func (d *Dir) prepare(folder string) error {
	if _, err := os.Stat(folder); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := makeFolder(folder, d.gid); err != nil {
		return err
	}
	if d.gid >= 0 {
		if err := admitGroup(folder, d.gid); err != nil {
			d.log.Warn("files may be unreadable for the agent", "err", err)
		}
	}
	return nil
}

// makeGroupFolder makes a folder below one of the directory's own.
func makeGroupFolder(path string) error {
	if err := os.Mkdir(path, 0o770); err != nil {
		return err
	}
	return openToGroup(path)
}

func writeFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o660)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o660)
	}
	return errors.Join(err, f.Close())
}

func allowMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// token makes a name that nobody else uses.
func token() string { return rand.Text() }

// unitLocks keep Read from seeing a change of ours half made.
type unitLocks struct {
	seed  maphash.Seed
	locks [64]sync.RWMutex
}

func (d *Dir) lockOf(u Unit) *sync.RWMutex {
	n := maphash.Comparable(d.locks.seed, u)
	return &d.locks.locks[n%uint64(len(d.locks.locks))]
}

// syncer makes everything that was written before a call durable. Calls that
// come while a sync is running share the next one.
type syncer struct {
	mu   sync.Mutex
	next *syncRound

	run  sync.Mutex // held while a round runs
	fd   int        // of the directory at id, if that is set
	id   fileID
	call func(fd int) error // syncfs; tests let it fail
}

type syncRound struct {
	done bool // guarded by syncer.run
	err  error
}

func (s *syncer) sync(dir string) error {
	s.mu.Lock()
	if s.next == nil {
		s.next = new(syncRound)
	}
	round := s.next
	s.mu.Unlock()

	s.run.Lock()
	defer s.run.Unlock()
	if round.done {
		return round.err
	}
	s.mu.Lock()
	s.next = nil // whoever comes from now on may have written after the sync began
	s.mu.Unlock()
	round.err = s.once(dir)
	round.done = true
	return round.err
}

func (s *syncer) once(dir string) error {
	id := idOf(dir)
	if id == (fileID{}) {
		return ErrMissing
	}
	if id != s.id {
		s.close()
		fd, err := openRetry(unix.AT_FDCWD, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
		if err != nil {
			return os.NewSyscallError("open", err)
		}
		s.fd, s.id = fd, id
	}
	return os.NewSyscallError("syncfs", s.call(s.fd))
}

func (s *syncer) close() {
	if s.id != (fileID{}) {
		unix.Close(s.fd)
		s.id = fileID{}
	}
}
