package state

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// faultyFiles fails as told and counts syncs.
type faultyFiles struct {
	fileSystem
	syncs atomic.Int64

	mu       sync.Mutex
	room     int64 // bytes that writes may still take, if limited
	limited  bool
	failSync bool
	readOnly bool
	noTrunc  bool
	gate     sync.RWMutex
}

func (f *faultyFiles) hold()  { f.gate.Lock() }
func (f *faultyFiles) letGo() { f.gate.Unlock() }

func (f *faultyFiles) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *faultyFiles) create(path string) (*os.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.readOnly {
		return nil, &os.PathError{Op: "open", Path: path, Err: syscall.EROFS}
	}
	return f.fileSystem.create(path)
}

func (f *faultyFiles) writeAt(file *os.File, b []byte, off int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.readOnly {
		return syscall.EROFS
	}
	if f.limited {
		if int64(len(b)) > f.room {
			f.fileSystem.writeAt(file, b[:f.room], off)
			f.room = 0
			return syscall.ENOSPC
		}
		f.room -= int64(len(b))
	}
	return f.fileSystem.writeAt(file, b, off)
}

func (f *faultyFiles) truncate(file *os.File, size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.noTrunc {
		return syscall.EIO
	}
	return f.fileSystem.truncate(file, size)
}

func (f *faultyFiles) sync(file *os.File) error {
	f.gate.RLock()
	defer f.gate.RUnlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.syncs.Add(1)
	if f.failSync {
		return syscall.EIO
	}
	return f.fileSystem.sync(file)
}

func tryPut(s *Store, pairs ...string) error {
	var b Batch
	for i := 0; i < len(pairs); i += 2 {
		b.Put(pairs[i], []byte(pairs[i+1]))
	}
	return s.Commit(&b)
}

func TestFullDiskFailsTheCommitAndNothingElse(t *testing.T) {
	for _, noTrunc := range []bool{false, true} {
		dir := t.TempDir()
		files := &faultyFiles{fileSystem: osFiles{}}
		s := open(t, dir, Options{files: files})
		put(t, s, "a", "1", "b", "1")
		for room := range int64(120) {
			files.set(func() { files.limited, files.room, files.noTrunc = true, room, noTrunc })
			err := tryPut(s, "a", "2", "b", "2", "c", "a value that does not fit")
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("Commit() with room for %d = %v, want ENOSPC", room, err)
			}
			wantContent(t, s, map[string]string{"a": "1", "b": "1"})
		}
		files.set(func() { files.limited, files.noTrunc = false, false })
		put(t, s, "c", "3")
		want := map[string]string{"a": "1", "b": "1", "c": "3"}
		wantContent(t, s, want)
		s.Close()
		s, _ = openReport(t, dir, Options{})
		wantContent(t, s, want)
	}
}

func TestReadOnlyFolderIsReadAndRecovers(t *testing.T) {
	dir := t.TempDir()
	files := &faultyFiles{fileSystem: osFiles{}}
	s := open(t, dir, Options{files: files, SegmentSize: 100})
	put(t, s, "a", "a value that fills the first segment up, so that the next one has to be made")
	files.set(func() { files.readOnly = true })
	if err := tryPut(s, "b", "2"); !errors.Is(err, syscall.EROFS) {
		t.Fatalf("Commit() = %v, want EROFS", err)
	}
	if _, err := s.Get("a"); err != nil {
		t.Fatal(err)
	}
	files.set(func() { files.readOnly = false })
	put(t, s, "b", "2")
	s.Close()
	if got := open(t, dir, Options{}).Len(); got != 2 {
		t.Errorf("Len() = %d, want 2", got)
	}
}

func TestFailedSyncIsNeverRetriedOnTheSameFile(t *testing.T) {
	dir := t.TempDir()
	files := &faultyFiles{fileSystem: osFiles{}}
	s := open(t, dir, Options{files: files})
	put(t, s, "a", "1", "gone", "1")
	remove(t, s, "gone")
	first := s.active

	files.set(func() { files.failSync = true })
	if err := tryPut(s, "a", "2", "gone", "2", "new", "2"); !errors.Is(err, syscall.EIO) {
		t.Fatalf("Commit() = %v, want EIO", err)
	}
	want := map[string]string{"a": "1"}
	wantContent(t, s, want)
	files.set(func() { files.failSync = false })
	put(t, s, "b", "3")
	if s.active == first {
		t.Error("the store goes on in a file whose sync failed")
	}
	want["b"] = "3"
	wantContent(t, s, want)

	// The failed batch did reach the disk; it must not come back.
	s.Close()
	wantContent(t, open(t, dir, Options{}), want)
}

func TestSyncsThatGoOnFailingLeaveNoFilesBehind(t *testing.T) {
	dir := t.TempDir()
	files := &faultyFiles{fileSystem: osFiles{}}
	s := open(t, dir, Options{files: files})
	put(t, s, "a", "1")
	files.set(func() { files.failSync = true })
	for range 50 {
		if err := tryPut(s, "a", "2"); err == nil {
			t.Fatal("Commit() succeeds though its sync failed")
		}
	}
	files.set(func() { files.failSync = false })
	put(t, s, "b", "3")
	eventually(t, "segments of failed commits are removed", func() bool { return len(segmentFiles(t, dir)) <= 3 })
	want := map[string]string{"a": "1", "b": "3"}
	wantContent(t, s, want)
	s.Close()
	wantContent(t, open(t, dir, Options{}), want)
}

// Opened while the file system is read-only, a store goes on in a new segment once it is not any more.
func TestStoreOpenedReadOnlyWritesOnceItCan(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	put(t, s, "a", "1")
	s.Close()
	if err := os.Chmod(segmentFiles(t, dir)[0], 0o400); err != nil {
		t.Fatal(err)
	}
	if f, err := os.OpenFile(segmentFiles(t, dir)[0], os.O_RDWR, 0); err == nil {
		f.Close()
		t.Skip("modes do not bind root")
	}
	files := &faultyFiles{fileSystem: osFiles{}, readOnly: true}
	s = open(t, dir, Options{files: files})
	first := tryPut(s, "b", "2")
	if again := tryPut(s, "b", "2"); !errors.Is(first, syscall.EROFS) || again.Error() != first.Error() {
		t.Errorf("Commit() = %v, then %v; want the same, EROFS", first, again)
	}
	files.set(func() { files.readOnly = false })
	put(t, s, "b", "2")
	wantContent(t, s, map[string]string{"a": "1", "b": "2"})
}
