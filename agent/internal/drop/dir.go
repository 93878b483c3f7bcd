package drop

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

const (
	quietAfter = 3 * time.Millisecond  // without an event a unit is ready
	quietMax   = 20 * time.Millisecond // and this long after its first at the latest
	pollMin    = 2 * time.Millisecond  // between looks at a file that is being written
	pollMax    = 20 * time.Millisecond
	retryMax   = time.Second // between tries after an error of the system
	scanEvery  = time.Second // of folders without a watch
	// noLeaseQuiet is how long a file has to be unchanged where the file system
	// cannot tell whether somebody has it open.
	noLeaseQuiet = time.Second

	// eventBuffer holds events beyond the kernel's own queue while the loop is
	// busy, such as during the unpacking of an archive.
	eventBuffer = 4 << 10
)

// Options change how a Dir works. The zero value is right for the agent.
type Options struct {
	// Logger hears of what the directory's users should know; nil discards.
	Logger *slog.Logger
	// Group is whom the directory is for, "vragent" if empty. Without such a
	// group the directory is its owner's alone.
	Group string
	// MaxWatches limits the watches on VM folders below what the kernel allows;
	// zero does not.
	MaxWatches int

	// ReadOnly makes nothing, puts nothing away and writes nothing: for a look
	// at a directory that another process may be serving from.
	ReadOnly bool

	lease   func(fd int) error // fcntl(F_SETLEASE) if nil
	watcher func() (*fsnotify.Watcher, error)
}

// Dir is a drop directory. Its methods may be called from any goroutine, Next
// from one at a time.
type Dir struct {
	path  string
	log   *slog.Logger
	gid   int // -1: none
	notes []string
	lease func(fd int) error
	max   int

	readOnly bool

	arrived  chan struct{}      // one slot: ready has become longer
	changed  chan struct{}      // one slot: the loop is to look at work again
	barriers chan chan struct{} // closed by the loop when passed
	done     chan struct{}      // closed when Run has returned

	mu    sync.Mutex // guards what follows; held across single system calls only
	work  map[Unit]*work
	queue dueQueue
	ready []Unit
	out   []Unit // given out by the last Next
	view  view
	quiet bool              // a lease was refused
	half  map[Unit]struct{} // changes of ours that the disk stopped half way

	tree tree // the loop's; Scan's before there is one

	scanning sync.Once // for the first Scan

	locks unitLocks
	syncs syncer
}

// Status tells how changes are noticed.
type Status struct {
	Watched   int    // VM folders with a watch of the kernel
	Unwatched int    // those without, which are scanned each second
	Unsettled []Unit // being written at the moment, in path order
	// QuietTime: the file system has refused a lease, so that a file counts as
	// complete when it has not changed for a second.
	QuietTime bool
	// Missing: the drop directory is not there. What it held stays in force.
	Missing bool
	Notes   []string // what an operator should know of how the directory is set up
}

// Open makes the directory with its two folders if they are missing, open to
// the group, puts away what a killed agent left half written, and begins to
// watch. Run does the rest.
func Open(path string, opts Options) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	d := &Dir{
		path:     path,
		log:      opts.Logger,
		gid:      -1,
		lease:    opts.lease,
		max:      opts.MaxWatches,
		arrived:  make(chan struct{}, 1),
		changed:  make(chan struct{}, 1),
		barriers: make(chan chan struct{}),
		done:     make(chan struct{}),
		work:     make(map[Unit]*work),
		half:     make(map[Unit]struct{}),
		readOnly: opts.ReadOnly,
		locks:    unitLocks{seed: maphash.MakeSeed()},
		syncs:    syncer{call: unix.Syncfs},
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if d.lease == nil {
		d.lease = takeLease
	}
	d.tree.newWatcher = opts.watcher
	if d.tree.newWatcher == nil {
		d.tree.newWatcher = newWatcher
	}
	if !d.readOnly {
		if err := d.setUp(cmp.Or(opts.Group, "vragent")); err != nil {
			return nil, fmt.Errorf("drop directory: %w", err)
		}
		if err := d.recover(); err != nil {
			return nil, fmt.Errorf("drop directory: %w", err)
		}
	}
	d.tree.init(d)
	return d, nil
}

// view is what Status shows of the loop's tree.
type view struct {
	watched, unwatched int
	missing, blind     bool
}

func (d *Dir) setUp(group string) error {
	if g, err := user.LookupGroup(group); err != nil {
		d.note("no group %s: only its owner can use the drop directory", group)
	} else if d.gid, err = strconv.Atoi(g.Gid); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(d.path), 0o755); err != nil {
		return err
	}
	for _, folder := range []string{d.path, filepath.Join(d.path, networksFolder), filepath.Join(d.path, vmsFolder)} {
		if err := makeFolder(folder, d.gid); err != nil {
			return err
		}
		if d.gid < 0 {
			continue
		}
		if err := admitGroup(folder, d.gid); err != nil {
			d.note("%v: files may be unreadable for the agent, depending on the umask they are dropped with", err)
		}
	}
	return nil
}

func (d *Dir) note(format string, args ...any) {
	note := fmt.Sprintf(format, args...)
	d.notes = append(d.notes, note)
	d.log.Warn(note, "dir", d.path)
}

// Path is the absolute path of the directory.
func (d *Dir) Path() string { return d.path }

// Close ends a Dir that Run has not been called on.
func (d *Dir) Close() error {
	d.syncs.run.Lock()
	d.syncs.close()
	d.syncs.run.Unlock()
	return d.tree.close()
}

// Status returns how things are at the moment.
func (d *Dir) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := Status{
		Watched:   d.view.watched,
		Unwatched: d.view.unwatched,
		QuietTime: d.quiet,
		Missing:   d.view.missing,
		Notes:     slices.Clone(d.notes),
	}
	if d.view.blind {
		s.Notes = append(s.Notes, "the kernel gives no inotify instance: the directory is scanned each second")
	}
	for u, w := range d.work {
		if w.state == unsettled {
			s.Unsettled = append(s.Unsettled, u)
		}
	}
	sortUnits(s.Unsettled)
	return s
}

func sortUnits(units []Unit) {
	slices.SortFunc(units, func(a, b Unit) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
}

// Scan sees to it that every change from now on will be noticed and returns
// the units that are there, networks first, in name order. VM folders without
// vm.yaml are among them. It is to be called before Run, whose work it is else;
// afterwards it only lists.
func (d *Dir) Scan(ctx context.Context) ([]Unit, error) {
	d.scanning.Do(d.tree.start)
	var units []Unit
	for _, kind := range []Kind{Network, VM} {
		names, err := d.listKind(kind)
		if err != nil {
			return nil, fmt.Errorf("drop directory: %w", err)
		}
		for _, name := range names {
			units = append(units, Unit{kind, name})
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	sortUnits(units)
	return units, nil
}

// listKind returns the names of the units of a kind that are there, in no
// order. That its folder is not there is no error, but that the drop directory
// is not.
func (d *Dir) listKind(kind Kind) ([]string, error) {
	fd, err := openRetry(unix.AT_FDCWD, filepath.Join(d.path, kind.folder()), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		if _, err := os.Stat(d.path); err != nil {
			return nil, ErrMissing
		}
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(d.path, kind.folder()), Err: err}
	}
	f := os.NewFile(uintptr(fd), kind.folder())
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		switch {
		case kind == Network:
			if u, ok := networkUnit(e.Name()); ok {
				names = append(names, u.Name)
			}
		case ValidName(e.Name()) && !e.Type().IsRegular():
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Next waits for units that have changed and settled, and returns up to max of
// them, each once. A unit that is gone is among them too. The units count as
// being worked on until the next call, see Barrier. The error is ctx's.
func (d *Dir) Next(ctx context.Context, max int) ([]Unit, error) {
	d.Done()
	for {
		if units := d.takeReady(max); len(units) > 0 {
			return units, nil
		}
		select {
		case <-d.arrived:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Barrier returns once every change that was made before the call has been
// noticed, and of the given units, or of all if there are none given, those
// that are being written, are waiting for Next or were given out by the last
// call of it. It waits for Run; its error is ctx's, or that Run has ended.
func (d *Dir) Barrier(ctx context.Context, units []Unit) ([]Unit, error) {
	passed := make(chan struct{})
	select {
	case d.barriers <- passed:
	case <-d.done:
		return nil, errEnded
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case <-passed:
	case <-d.done:
		return nil, errEnded
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var open []Unit
	if len(units) == 0 {
		for u := range d.work {
			open = append(open, u)
		}
	}
	for _, u := range units {
		if d.work[u] != nil {
			open = append(open, u)
		}
	}
	sortUnits(open)
	return open, nil
}

var errEnded = errors.New("drop directory is not watched any more")

// Run notices changes until ctx ends. It may be called once. It returns nil
// when ctx ends.
func (d *Dir) Run(ctx context.Context) error {
	defer close(d.done)
	defer d.Close()
	l := loop{dir: d, tree: &d.tree}
	d.scanning.Do(func() {
		d.tree.start()
		d.tree.touchAll()
	})
	l.run(ctx)
	return nil
}

func ping(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
