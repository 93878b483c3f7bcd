package drop

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrUnsettled tells that somebody is writing a unit's files or has just
// changed them. The unit is given out by Next again when it has settled.
var ErrUnsettled = errors.New("still being written")

// ErrMissing tells that the drop directory itself is not there. That says
// nothing about the units in it.
var ErrMissing = errors.New("drop directory is missing")

// File is the content of one file.
type File struct {
	Name string // base name
	Data []byte
}

// Fault is a reason to reject a unit that lies in its files as such.
type Fault struct {
	File string // below the drop directory
	What string
}

// Content is a consistent picture of a unit's files: at one moment all of them
// were as they are here, and nobody had one open for writing.
type Content struct {
	Unit Unit
	// Exists: a network's file is there, or a VM's folder with vm.yaml in it.
	Exists bool
	Files  map[string]File // by base name; those with a fault are left out
	// Fingerprint stands for the names, sizes, times and inodes of all files.
	// Where Stat gives the same one after a restart the files need not be read
	// again. Within one tick of the kernel's clock a file can change and keep
	// its times: read what Next gives out, whatever its fingerprint.
	Fingerprint string
	Faults      []Fault
	Notes       []string // about names that are not read
	// SettledAt is when the unit came to be so: the last change of its files, or
	// the last moment, give or take 20 ms, that one was seen being written.
	SettledAt time.Time
}

// signature tells versions of a file apart.
type signature struct {
	ino          uint64
	size         int64
	mtime, ctime unix.Timespec
	mode         uint32
}

func signatureOf(st *unix.Stat_t) signature {
	return signature{ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim, mode: st.Mode & unix.S_IFMT}
}

// entry is one name in a unit's folder.
type entry struct {
	name string
	sig  signature
}

// listing is what a unit consists of at one moment, without contents.
type listing struct {
	files []entry // that are read, or would be were they regular; in name order
	// strays are names that are not read; links and special files among them
	// count as faults.
	strays []entry
}

func (l listing) equal(m listing) bool {
	return slices.Equal(l.files, m.files) && slices.Equal(l.strays, m.strays)
}

func (l listing) exists(u Unit) bool {
	for _, f := range l.files {
		if u.Kind == Network || f.name == VMFile {
			return true
		}
	}
	return false
}

func (l listing) fingerprint(u Unit) string {
	if !l.exists(u) {
		return ""
	}
	h := sha256.New()
	var b []byte
	for _, f := range l.files {
		b = append(append(b[:0], f.name...), 0)
		b = binary.LittleEndian.AppendUint64(b, f.sig.ino)
		b = binary.LittleEndian.AppendUint64(b, uint64(f.sig.size))
		b = binary.LittleEndian.AppendUint64(b, uint64(f.sig.mtime.Nano()))
		b = binary.LittleEndian.AppendUint64(b, uint64(f.sig.ctime.Nano()))
		b = binary.LittleEndian.AppendUint32(b, f.sig.mode)
		h.Write(b)
	}
	for _, f := range l.strays {
		b = append(append(b[:0], f.name...), 0)
		b = binary.LittleEndian.AppendUint32(b, f.sig.mode)
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// Stat returns the fingerprint that Read would give now, without reading, and
// whether the unit exists. It does not say whether the unit has settled.
func (d *Dir) Stat(u Unit) (fingerprint string, exists bool, err error) {
	f, err := d.openFolder(u)
	if err != nil || f == nil {
		return "", false, err
	}
	defer f.Close()
	l, err := f.list(u)
	if errors.Is(err, unix.EACCES) {
		return "", true, nil // Read tells
	}
	if err != nil {
		return "", false, err
	}
	return l.fingerprint(u), l.exists(u), nil
}

// Read returns the unit's content. ErrUnsettled and errors of the system (no
// file descriptors left, the disk) are no verdict on the unit: it is queued
// again by itself, and what is known of it stays true meanwhile.
func (d *Dir) Read(u Unit) (Content, error) {
	if !u.valid() {
		return Content{Unit: u}, nil
	}
	c, err := d.read(u)
	if err != nil {
		d.requeue(u, err)
		return Content{}, fmt.Errorf("%s: %w", u.Path(), err)
	}
	return c, nil
}

func (d *Dir) read(u Unit) (Content, error) {
	c := Content{Unit: u}
	lock := d.lockOf(u)
	if err := d.complete(u, lock); err != nil {
		return c, err
	}
	lock.RLock()
	defer lock.RUnlock()
	f, err := d.openFolder(u)
	if err != nil {
		return c, err
	}
	if f == nil {
		c.SettledAt = d.settledAt(u)
		return c, nil
	}
	defer f.Close()
	before, err := f.list(u)
	if errors.Is(err, unix.EACCES) {
		c.Exists = true
		c.fault(u.Path(), "cannot be read: %v", unix.EACCES)
		c.SettledAt = d.settledAt(u)
		return c, nil
	}
	if err != nil {
		return c, err
	}
	c.Exists = before.exists(u)
	c.Fingerprint = before.fingerprint(u)
	c.Files = make(map[string]File, len(before.files))

	open, err := f.hold(u, before, &c)
	defer open.close()
	if err != nil {
		return c, err
	}
	c.SettledAt = d.settledAt(u)
	for _, o := range open {
		data, err := o.read()
		if err != nil {
			return c, err
		}
		c.Files[o.entry.name] = File{Name: o.entry.name, Data: data}
	}

	// Names that came, went or were replaced meanwhile, or the whole folder.
	after, err := f.list(u)
	if err != nil {
		return c, err
	}
	if !before.equal(after) || !f.inPlace(u) {
		return c, ErrUnsettled
	}
	for _, s := range before.strays {
		c.stray(u, s)
	}
	slices.SortFunc(c.Faults, func(a, b Fault) int { return cmp.Compare(a.File, b.File) })
	return c, nil
}

// complete makes another try at a change of ours that the disk stopped half way.
func (d *Dir) complete(u Unit, lock *sync.RWMutex) error {
	if u.Kind != VM || !d.halfway(u) {
		return nil
	}
	lock.Lock()
	defer lock.Unlock()
	return d.finish(u.Name)
}

func (c *Content) fault(file, format string, args ...any) {
	c.Faults = append(c.Faults, Fault{File: file, What: fmt.Sprintf(format, args...)})
}

// stray says what is to be said about a name that is not read.
func (c *Content) stray(u Unit, s entry) {
	path := u.Path() + "/" + s.name
	switch s.sig.mode {
	case unix.S_IFREG:
		if like := likely(s.name); like != "" {
			c.Notes = append(c.Notes, fmt.Sprintf("%s is not read; did you mean %s?", s.name, like))
		} else {
			c.Notes = append(c.Notes, s.name+" is not read")
		}
	case unix.S_IFDIR:
		c.Notes = append(c.Notes, s.name+" is a folder, which is not read")
	default:
		c.fault(path, "%s is not allowed in a VM's folder", typeName(s.sig.mode))
	}
}

// likely returns the file's name that somebody who wrote name may have meant.
func likely(name string) string {
	plain := func(s string) string {
		s = strings.ToLower(s)
		for _, suffix := range []string{".yaml", ".yml", ".txt", ".json"} {
			s = strings.TrimSuffix(s, suffix)
		}
		return strings.NewReplacer("-", "", "_", "", ".", "").Replace(s)
	}
	for _, f := range vmFiles {
		if plain(name) == plain(f) {
			return f
		}
	}
	if plain(name) == "passwd" {
		return PasswordFile
	}
	return ""
}

func typeName(mode uint32) string {
	switch mode {
	case unix.S_IFLNK:
		return "a symbolic link"
	case unix.S_IFDIR:
		return "a folder"
	case unix.S_IFIFO:
		return "a pipe"
	case unix.S_IFSOCK:
		return "a socket"
	default:
		return "a device"
	}
}

// folder is the open folder that holds a unit's files: the VM's own, or that
// of all networks.
type folder struct {
	fd   int // -1: the unit is no folder but something that has a fault
	path string
	dir  *Dir
	st   unix.Stat_t
}

// openFolder returns nil where the unit is not there.
func (d *Dir) openFolder(u Unit) (*folder, error) {
	path := filepath.Join(d.path, u.Kind.folder())
	if u.Kind == VM {
		path = filepath.Join(path, u.Name)
	}
	fd, err := openRetry(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|nofollow(u.Kind))
	switch err {
	case nil:
	case unix.ENOENT:
		if _, err := os.Stat(d.path); err != nil {
			return nil, ErrMissing
		}
		return nil, nil
	case unix.ENOTDIR, unix.ELOOP, unix.EACCES:
		f := &folder{fd: -1, path: path, dir: d}
		if err := unix.Lstat(path, &f.st); err != nil {
			return nil, gone(err)
		}
		if err != unix.EACCES && f.st.Mode&unix.S_IFMT == unix.S_IFREG {
			return nil, nil // a file among the folders of the VMs
		}
		return f, nil
	default:
		return nil, os.NewSyscallError("open", err)
	}
	f := &folder{fd: fd, path: path, dir: d}
	if err := unix.Fstat(fd, &f.st); err != nil {
		f.Close()
		return nil, os.NewSyscallError("fstat", err)
	}
	return f, nil
}

// nofollow: a VM's folder must not be a link; the folder of networks may be.
func nofollow(k Kind) int {
	if k == VM {
		return unix.O_NOFOLLOW
	}
	return 0
}

func gone(err error) error {
	if err == unix.ENOENT {
		return ErrUnsettled
	}
	return err
}

func openRetry(at int, path string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(at, path, flags, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func (f *folder) Close() {
	if f.fd >= 0 {
		unix.Close(f.fd)
	}
}

// inPlace tells whether the folder is still the one at its path.
func (f *folder) inPlace(u Unit) bool {
	var st unix.Stat_t
	flags := 0
	if u.Kind == VM {
		flags = unix.AT_SYMLINK_NOFOLLOW
	}
	err := unix.Fstatat(unix.AT_FDCWD, f.path, &st, flags)
	return err == nil && st.Ino == f.st.Ino && st.Dev == f.st.Dev
}

// list returns the unit's files. EACCES means that the folder is closed to us.
func (f *folder) list(u Unit) (listing, error) {
	if f.fd < 0 {
		if f.st.Mode&unix.S_IFMT == unix.S_IFDIR || u.Kind == Network {
			return listing{}, unix.EACCES
		}
		// The unit itself is a link or a special file: it stands for vm.yaml.
		return listing{files: []entry{{VMFile, signatureOf(&f.st)}}}, nil
	}
	if u.Kind == Network {
		name := u.Name + networkSuffix
		sig, err := f.stat(name)
		if err == unix.ENOENT {
			return listing{}, nil
		}
		if err != nil {
			return listing{}, err
		}
		return listing{files: []entry{{name, sig}}}, nil
	}
	names, err := readNames(f.fd)
	if err != nil {
		return listing{}, err
	}
	var l listing
	for _, name := range names {
		if passedOver(name) {
			continue
		}
		sig, err := f.stat(name)
		if err == unix.ENOENT {
			return listing{}, ErrUnsettled
		}
		if err != nil {
			return listing{}, err
		}
		if isVMFile(name) {
			l.files = append(l.files, entry{name, sig})
		} else {
			l.strays = append(l.strays, entry{name, signature{mode: sig.mode}})
		}
	}
	return l, nil
}

func (f *folder) stat(name string) (signature, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(f.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return signature{}, err
	}
	return signatureOf(&st), nil
}

var direntPieces = sync.Pool{New: func() any { return new([8 << 10]byte) }}

// readNames returns the names in an open folder in byte order, from its start.
func readNames(fd int) ([]string, error) {
	if _, err := unix.Seek(fd, 0, io.SeekStart); err != nil {
		return nil, err
	}
	var names []string
	piece := direntPieces.Get().(*[8 << 10]byte)
	defer direntPieces.Put(piece)
	buf := piece[:]
	for {
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			slices.Sort(names)
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// heldFile is open for reading with nobody able to open it for writing, or
// quiet for long enough where the file system knows no leases.
type heldFile struct {
	entry entry
	fd    int
	path  string
}

type heldFiles []heldFile

func (o heldFiles) close() {
	for _, f := range o {
		unix.Close(f.fd) // ends the lease
	}
}

// hold opens the files of l that can be read and notes the faults of the
// others in c. ErrUnsettled means that one of them is being written. The files
// are to be closed in any case.
func (f *folder) hold(u Unit, l listing, c *Content) (open heldFiles, err error) {
	for _, e := range l.files {
		path := u.Kind.folder() + "/" + e.name
		if u.Kind == VM {
			path = u.Path() + "/" + e.name
		}
		if f.fd < 0 {
			c.fault(u.Path(), "%s is not allowed in place of a VM's folder", typeName(e.sig.mode))
			continue
		}
		if e.sig.mode != unix.S_IFREG {
			c.fault(path, "%s is not allowed, only a regular file", typeName(e.sig.mode))
			continue
		}
		fd, err := openRetry(f.fd, e.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC)
		switch err {
		case nil:
		case unix.EACCES, unix.EPERM:
			c.fault(path, "cannot be read: %v", err)
			continue
		case unix.ENOENT, unix.ELOOP, unix.ENXIO:
			return open, ErrUnsettled // replaced since it was listed
		default:
			return open, os.NewSyscallError("open", err)
		}
		open = append(open, heldFile{entry: e, fd: fd, path: path})
		if err := f.dir.settled(u, fd, e); err != nil {
			return open, err
		}
		if max := Limit(u.Kind, e.name); e.sig.size > max {
			c.fault(path, "has %d bytes, allowed are %d", e.sig.size, max)
			unix.Close(fd)
			open = open[:len(open)-1]
		}
	}
	return open, nil
}

func (o heldFile) read() ([]byte, error) {
	data := make([]byte, o.entry.sig.size)
	for n := 0; n < len(data); {
		got, err := unix.Pread(o.fd, data[n:], int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("read", err)
		}
		if got == 0 {
			return nil, ErrUnsettled // has become shorter
		}
		n += got
	}
	return data, nil
}
