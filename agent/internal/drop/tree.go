package drop

import (
	"errors"
	"fmt"
	"hash/maphash"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// tree knows what is in the directory and has watches set on its folders.
// Watches go by path: whenever a name comes or goes its watch is set anew,
// since the folder behind it may be another one.
type tree struct {
	dir     *Dir
	watcher *fsnotify.Watcher // nil: the kernel gives none

	newWatcher func() (*fsnotify.Watcher, error)
	refused    error         // why there is none
	lost       chan error    // one slot: the watcher's last error
	drained    chan struct{} // closed with the watcher
	mark       *mark         // nil: there is none
	seed       maphash.Seed

	root    fileID // zero: the drop directory is missing
	rootOK  bool   // has a watch
	tops    map[Kind]*top
	watched int // VM folders
	// bare are the VM folders without a watch, with how they looked last.
	bare map[string]uint64
}

// top is the folder of all units of a kind.
type top struct {
	id     fileID
	ok     bool // has a watch
	failed bool // could not be listed
	// known are the units that are there, with how a network's file looked
	// last if the folder has no watch, and whether a VM's folder has one.
	known map[string]known
}

type known struct {
	watched bool
	print   uint64
}

// fileID tells whether a path still leads to the same folder.
type fileID struct{ dev, ino uint64 }

func idOf(path string) fileID {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fileID{}
	}
	return fileID{st.Dev, st.Ino}
}

func (t *tree) init(d *Dir) {
	t.dir = d
	t.lost = make(chan error, 1)
	t.seed = maphash.MakeSeed()
	t.bare = make(map[string]uint64)
	t.tops = map[Kind]*top{
		Network: {known: make(map[string]known)},
		VM:      {known: make(map[string]known)},
	}
	t.open()
}

func newWatcher() (*fsnotify.Watcher, error) { return fsnotify.NewBufferedWatcher(eventBuffer) }

// open asks for a watcher, again each second if there is none.
func (t *tree) open() bool {
	w, err := t.newWatcher()
	if err != nil {
		t.refused = err
		return false
	}
	t.watcher = w
	t.mark = newMark(w)
	t.drained = make(chan struct{})
	go t.drain()
	return true
}

// drain takes the watcher's errors off its hands, whatever the loop is doing:
// it may report one under the lock that the loop needs to set a watch.
func (t *tree) drain() {
	defer close(t.drained)
	for err := range t.watcher.Errors {
		if errors.Is(err, unix.EINVAL) {
			continue // a watch had ended before it was to be ended
		}
		select {
		case t.lost <- err:
		default:
		}
	}
}

func (t *tree) close() error {
	if t.mark != nil {
		t.mark.close()
		t.mark = nil
	}
	if t.watcher == nil {
		return nil
	}
	err := t.watcher.Close()
	<-t.drained
	return err
}

func (t *tree) path(kind Kind) string { return filepath.Join(t.dir.path, kind.folder()) }

func (t *tree) vmPath(name string) string { return t.path(VM) + "/" + name }

// start sets all watches. Units that change afterwards are touched, those that
// are there are not.
func (t *tree) start() { t.resetAll(false) }

func (t *tree) touchAll() {
	for kind, top := range t.tops {
		for name := range top.known {
			t.touch(Unit{kind, name})
		}
	}
}

func (t *tree) touch(u Unit) {
	t.dir.mu.Lock()
	defer t.dir.mu.Unlock()
	t.dir.touch(u, time.Now())
}

// publish shows the state of things to Status.
func (t *tree) publish() {
	v := view{
		watched:   t.watched,
		unwatched: len(t.bare),
		missing:   t.root == fileID{},
		blind:     t.watcher == nil,
	}
	t.dir.mu.Lock()
	defer t.dir.mu.Unlock()
	if v.blind && !t.dir.view.blind {
		t.dir.log.Warn("no inotify instance: the drop directory is scanned each second", "err", t.refused)
	}
	if v.missing != t.dir.view.missing {
		if v.missing {
			t.dir.log.Warn("the drop directory is missing; what it held stays in force", "dir", t.dir.path)
		} else {
			t.dir.log.Info("the drop directory is back", "dir", t.dir.path)
		}
	}
	if (v.unwatched > 0) != (t.dir.view.unwatched > 0) {
		t.dir.log.Info("VM folders beyond the kernel's limit of watches are scanned each second",
			"watched", v.watched, "unwatched", v.unwatched)
	}
	t.dir.view = v
}

// add sets a watch. Errors are those of inotify_add_watch(2), ENOSPC at the
// limit.
func (t *tree) add(path string) error {
	if t.watcher == nil {
		return unix.ENOSPC
	}
	return t.watcher.Add(path)
}

// drop ends a watch if there still is one.
func (t *tree) drop(path string) {
	if t.watcher != nil {
		t.watcher.Remove(path)
	}
}

// resetAll sets every watch anew. It touches all units that are or were there,
// if touch is set.
func (t *tree) resetAll(touch bool) {
	t.drop(t.dir.path)
	t.root = idOf(t.dir.path)
	t.rootOK = t.root != fileID{} && t.add(t.dir.path) == nil
	t.reset(Network, touch)
	t.reset(VM, touch)
	t.publish()
}

// reset sets the watches for a kind anew, and touches its units.
func (t *tree) reset(kind Kind, touch bool) {
	top := t.tops[kind]
	t.drop(t.path(kind))
	if kind == VM {
		for name, k := range top.known {
			if k.watched {
				t.drop(t.vmPath(name))
			}
		}
		t.watched = 0
		clear(t.bare)
	}
	top.id = idOf(t.path(kind))
	top.ok = top.id != fileID{} && t.add(t.path(kind)) == nil
	names, err := t.dir.listKind(kind)
	top.failed = err != nil && !errors.Is(err, ErrMissing)
	if top.failed {
		t.dir.log.Warn("cannot be listed for now", "err", err)
	}
	if touch && !errors.Is(err, ErrMissing) {
		for name := range top.known {
			t.touch(Unit{kind, name})
		}
	}
	if err != nil {
		// What was known stays known, to be touched when it is gone.
		for name := range top.known {
			top.known[name] = known{}
		}
		t.publish()
		return
	}
	top.known = make(map[string]known, len(names))
	for _, name := range names {
		t.come(kind, name)
		if touch {
			t.touch(Unit{kind, name})
		}
	}
	t.publish()
}

// come notes that a unit is there or may be another one under the same name.
func (t *tree) come(kind Kind, name string) {
	top := t.tops[kind]
	if kind == Network {
		k := known{}
		if !top.ok {
			k.print = t.filePrint(name)
		}
		top.known[name] = k
		return
	}
	if top.known[name].watched {
		t.drop(t.vmPath(name))
		t.watched--
	}
	delete(t.bare, name)
	var st unix.Stat_t
	if unix.Lstat(t.vmPath(name), &st) != nil || st.Mode&unix.S_IFMT == unix.S_IFREG {
		delete(top.known, name)
		return
	}
	top.known[name] = known{}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		t.watchVM(name)
	}
}

// watchVM sets the watch on a VM's folder, or notes that it has none.
func (t *tree) watchVM(name string) bool {
	err := error(unix.ENOSPC)
	if t.dir.max == 0 || t.watched < t.dir.max {
		err = t.add(t.vmPath(name))
	}
	if err != nil {
		if _, ok := t.bare[name]; !ok {
			t.bare[name] = t.folderPrint(name)
		}
		return false
	}
	delete(t.bare, name)
	t.tops[VM].known[name] = known{watched: true}
	t.watched++
	return true
}

// handle deals with one event of the watcher.
func (t *tree) handle(e fsnotify.Event) {
	rel, ok := strings.CutPrefix(e.Name, t.dir.path)
	if !ok {
		return
	}
	comesOrGoes := e.Op&(fsnotify.Create|fsnotify.Remove|fsnotify.Rename) != 0
	if rel == "" {
		if comesOrGoes {
			t.checkTops()
		}
		return
	}
	parts := strings.Split(rel[1:], "/")
	kind := VM
	if parts[0] == networksFolder {
		kind = Network
	} else if parts[0] != vmsFolder {
		return
	}
	switch {
	case len(parts) == 1:
		if comesOrGoes || t.tops[kind].failed {
			t.reset(kind, true)
		}
	case kind == Network && len(parts) == 2:
		if u, ok := networkUnit(parts[1]); ok {
			if e.Op&fsnotify.Create != 0 {
				t.come(Network, u.Name)
			}
			if e.Op&(fsnotify.Remove|fsnotify.Rename) != 0 {
				delete(t.tops[Network].known, u.Name)
			}
			t.touch(u)
		}
	case kind == VM && len(parts) == 2:
		name := parts[1]
		if !ValidName(name) {
			return
		}
		if _, bare := t.bare[name]; comesOrGoes || bare {
			t.come(VM, name)
			t.publish()
		}
		t.touch(Unit{VM, name})
	case kind == VM && len(parts) == 3 && ValidName(parts[1]) && !passedOver(parts[2]):
		t.touch(Unit{VM, parts[1]})
	}
}

// checkTops finds out whether the drop directory or one of its two folders is
// another one than before, such as after a mount, of which there is no event.
func (t *tree) checkTops() {
	if root := idOf(t.dir.path); root != t.root {
		t.resetAll(true)
		return
	}
	if t.root == (fileID{}) {
		return
	}
	if !t.rootOK {
		t.rootOK = t.add(t.dir.path) == nil
	}
	for kind, top := range t.tops {
		if top.failed || idOf(t.path(kind)) != top.id {
			t.reset(kind, true)
			continue
		}
		if top.ok || top.id == (fileID{}) {
			continue
		}
		if t.add(t.path(kind)) == nil {
			t.reset(kind, true)
			continue
		}
		t.relist(kind)
	}
}

// relist finds what came or went in a folder without a watch.
func (t *tree) relist(kind Kind) {
	top := t.tops[kind]
	names, err := t.dir.listKind(kind)
	if err != nil {
		top.failed = !errors.Is(err, ErrMissing)
		return
	}
	gone := make(map[string]struct{}, len(top.known))
	for name := range top.known {
		gone[name] = struct{}{}
	}
	for _, name := range names {
		delete(gone, name)
		k, ok := top.known[name]
		switch {
		case !ok:
			t.come(kind, name)
			t.touch(Unit{kind, name})
		case kind == Network:
			if print := t.filePrint(name); print == 0 || print != k.print {
				top.known[name] = known{print: print}
				t.touch(Unit{kind, name})
			}
		}
	}
	for name := range gone {
		if kind == VM {
			t.come(VM, name) // and finds that it is not there
		}
		delete(top.known, name)
		t.touch(Unit{kind, name})
	}
	t.publish()
}

// bareNames returns the VM folders that have to be scanned, after giving
// watches to as many as there is room for.
func (t *tree) bareNames() []string {
	if len(t.bare) == 0 {
		return nil
	}
	names := make([]string, 0, len(t.bare))
	full := false
	for name := range t.bare {
		if !full {
			if t.watchVM(name) {
				t.touch(Unit{VM, name}) // for what happened since it was scanned
				continue
			}
			full = true
		}
		names = append(names, name)
	}
	t.publish()
	return names
}

// sweep looks at one VM folder without a watch.
func (t *tree) sweep(name string) {
	last, ok := t.bare[name]
	if !ok {
		return
	}
	if print := t.folderPrint(name); print == 0 || print != last {
		t.bare[name] = print
		t.touch(Unit{VM, name})
	}
}

// racy is how long a time stamp may stay the same though a file changes: more
// than a tick of the kernel's clock.
const racy = 20 * time.Millisecond

// folderPrint returns a number that changes when a VM's folder or one of its
// files does, without listing it; zero if it has changed so lately that it may
// change again and keep its times.
func (t *tree) folderPrint(name string) uint64 {
	path := t.vmPath(name)
	h := printer{now: time.Now()}
	h.hash.SetSeed(t.seed)
	h.add(path)
	for _, f := range vmFiles {
		h.add(path + "/" + f)
	}
	return h.sum()
}

// filePrint is the same for a network's file.
func (t *tree) filePrint(name string) uint64 {
	h := printer{now: time.Now()}
	h.hash.SetSeed(t.seed)
	h.add(t.path(Network) + "/" + name + networkSuffix)
	return h.sum()
}

type printer struct {
	hash  maphash.Hash
	now   time.Time
	fresh bool
}

func (p *printer) add(path string) {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		p.hash.WriteByte(0)
		return
	}
	maphash.WriteComparable(&p.hash, signatureOf(&st))
	if age := p.now.Sub(time.Unix(st.Ctim.Unix())); age > -racy && age < racy {
		p.fresh = true
	}
}

func (p *printer) sum() uint64 {
	if p.fresh {
		return 0
	}
	return max(p.hash.Sum64(), 1)
}

// mark is a pipe that is watched like the folders: the kernel queues all
// events in one order, so that when a write to it is reported all earlier
// changes have been too.
type mark struct {
	read, write int
	path        string
}

func newMark(w *fsnotify.Watcher) *mark {
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return nil
	}
	m := &mark{fds[0], fds[1], fmt.Sprintf("/proc/self/fd/%d", fds[0])}
	if w.Add(m.path) != nil {
		m.close()
		return nil
	}
	return m
}

func (m *mark) set() bool {
	n, err := unix.Write(m.write, []byte{0})
	return n == 1 && err == nil
}

// reset empties the pipe for the next time.
func (m *mark) reset() {
	var b [16]byte
	unix.Read(m.read, b[:])
}

func (m *mark) close() {
	unix.Close(m.read)
	unix.Close(m.write)
}
