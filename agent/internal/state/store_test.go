package state

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// open opens the store in dir and closes it with the test.
func open(t testing.TB, dir string, opts Options) *Store {
	t.Helper()
	s, report := openReport(t, dir, opts)
	if !report.Empty() {
		t.Fatalf("Open() reports %v", report)
	}
	return s
}

func openReport(t testing.TB, dir string, opts Options) (*Store, Report) {
	t.Helper()
	s, report, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, report
}

func put(t testing.TB, s *Store, pairs ...string) {
	t.Helper()
	var b Batch
	for i := 0; i < len(pairs); i += 2 {
		b.Put(pairs[i], []byte(pairs[i+1]))
	}
	if err := s.Commit(&b); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, s *Store, keys ...string) {
	t.Helper()
	var b Batch
	for _, key := range keys {
		b.Delete(key)
	}
	if err := s.Commit(&b); err != nil {
		t.Fatal(err)
	}
}

// content reads the whole store, by Keys and Get.
func content(t testing.TB, s *Store) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for key := range s.Keys("") {
		value, err := s.Get(key)
		if err != nil {
			t.Fatal(err)
		}
		all[key] = string(value)
	}
	return all
}

func wantContent(t testing.TB, s *Store, want map[string]string) {
	t.Helper()
	if diff := cmp.Diff(want, content(t, s)); diff != "" {
		t.Fatalf("content (-want +got):\n%s", diff)
	}
}

// segmentFiles returns the paths of the segments, oldest first.
func segmentFiles(t testing.TB, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(paths)
	return paths
}

// eventually polls until ok or a deadline.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still waiting: %s", what)
		}
	}
}

func TestStoreKeepsBatchesAcrossReopening(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	put(t, s, "a", "1", "b", "2")
	put(t, s, "a", "3", "empty", "")
	remove(t, s, "b", "never was")
	want := map[string]string{"a": "3", "empty": ""}
	wantContent(t, s, want)
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir, Options{})
		wantContent(t, s, want)
	}
	if _, err := s.Get("b"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get() = %v, want ErrNotFound", err)
	}
	if n, ok := s.Size("a"); n != 1 || !ok {
		t.Errorf("Size() = %d, %t, want 1, true", n, ok)
	}
}

func TestBatchAppliesItsChangesInOrder(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	var b Batch
	b.Put("k", []byte("first"))
	b.Delete("k")
	b.Put("k", []byte("last"))
	b.Put("gone", nil)
	b.Delete("gone")
	if err := s.Commit(&b); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"k": "last"}
	wantContent(t, s, want)
	s.Close()
	wantContent(t, open(t, dir, Options{}), want)
}

func TestCommitRefusesWhatTheFormatCannotHold(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	for name, key := range map[string]string{"empty": "", "too long": strings.Repeat("k", MaxKey+1)} {
		var b Batch
		b.Put("beside", nil)
		b.Put(key, nil)
		if err := s.Commit(&b); err == nil {
			t.Errorf("Commit() of a key that is %s succeeds", name)
		}
	}
	wantContent(t, s, map[string]string{})
	if err := s.Commit(&Batch{}); err != nil {
		t.Errorf("Commit() of nothing = %v", err)
	}
}

func TestKeysAndEachTakeAPrefix(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	put(t, s, "vm/b", "bb", "net/a", "a", "vm/a", "aaaa")
	if diff := cmp.Diff([]string{"vm/a", "vm/b"}, slices.Collect(s.Keys("vm/"))); diff != "" {
		t.Errorf("Keys() (-want +got):\n%s", diff)
	}
	each := func(prefix string, limit int64) (got []string) {
		err := s.Each(prefix, limit, func(key string, value []byte) error {
			got = append(got, key+"="+string(value))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if diff := cmp.Diff([]string{"vm/b=bb", "vm/a=aaaa"}, each("vm/", -1)); diff != "" {
		t.Errorf("Each() in the order of the log (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"vm/b=bb", "net/a=a"}, each("", 2)); diff != "" {
		t.Errorf("Each() of small values (-want +got):\n%s", diff)
	}
	stop := errors.New("stop")
	if err := s.Each("", -1, func(string, []byte) error { return stop }); err != stop {
		t.Errorf("Each() = %v, want the callback's error", err)
	}
}

func TestValueOutlivesItsKey(t *testing.T) {
	s := open(t, t.TempDir(), Options{SegmentSize: 1 << 10})
	old := strings.Repeat("old", 1000)
	put(t, s, "k", old)
	v, err := s.Open("k")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		put(t, s, "k", strings.Repeat(fmt.Sprint(i), 500))
	}
	remove(t, s, "k")
	eventually(t, "old segments are removed", func() bool { return s.Usage().Segments <= 2 })
	s.Close()

	if v.Size() != int64(len(old)) {
		t.Errorf("Size() = %d, want %d", v.Size(), len(old))
	}
	for range 2 {
		got, err := io.ReadAll(v)
		if err != nil || string(got) != old {
			t.Fatalf("ReadAll() = %d bytes, %v; want the %d old ones", len(got), err, len(old))
		}
		if _, err := v.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
	}
	v.Close()
	v.Close()
	if _, err := v.Read(make([]byte, 1)); err == nil {
		t.Error("Read() after Close() succeeds")
	}
}

func TestClosedStoreSaysSo(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	put(t, s, "k", "v")
	s.Close()
	var b Batch
	b.Put("k", nil)
	_, get := s.Get("k")
	_, openErr := s.Open("k")
	for name, err := range map[string]error{
		"Commit": s.Commit(&b), "Get": get, "Open": openErr,
		"Each": s.Each("", -1, func(string, []byte) error { return nil }),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s() = %v, want ErrClosed", name, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close() = %v", err)
	}
}

func TestOpenRefusesASecondProcess(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	if _, _, err := Open(dir, Options{}); !errors.Is(err, ErrLocked) {
		t.Fatalf("second Open() = %v, want ErrLocked", err)
	}
	s.Close()
	open(t, dir, Options{})
}

func TestOpenRefusesANewerFormatAndLeavesIt(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	put(t, s, "k", "v")
	s.Close()
	path := segmentFiles(t, dir)[0]
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[8]++
	copy(data[12:], le32(fileHeaderCRC(data)))
	data = append(data, "torn"...)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err = Open(dir, Options{})
	if !errors.Is(err, ErrTooNew) {
		t.Fatalf("Open() = %v, want ErrTooNew", err)
	}
	if err := Check(dir); !errors.Is(err, ErrTooNew) {
		t.Errorf("Check() = %v, want ErrTooNew", err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(after, data) {
		t.Error("Open() changed a file that it refused")
	}
}

func TestCheckPassesWhatOpenCanRead(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	put(t, s, "k", "v")
	s.Close()
	path := segmentFiles(t, dir)[0]
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, damaged := range map[string][]byte{
		"sound": data, "empty": nil, "torn header": data[:20], "flipped version": append([]byte("vragstat\x02"), data[9:]...),
	} {
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Check(dir); err != nil {
			t.Errorf("%s: Check() = %v", name, err)
		}
	}
	if err := Check(filepath.Join(dir, "missing")); err != nil {
		t.Errorf("missing: Check() = %v", err)
	}
}

func le32(v uint32) []byte { return []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)} }

func TestConcurrentCommitsShareSyncs(t *testing.T) {
	files := &faultyFiles{fileSystem: osFiles{}}
	s := open(t, t.TempDir(), Options{files: files})
	put(t, s, "first", "")
	files.hold()
	const writers = 64
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() { put(t, s, fmt.Sprint(i), "v") })
	}
	eventually(t, "all writers are queued", func() bool {
		s.commits.mu.Lock()
		defer s.commits.mu.Unlock()
		return len(s.commits.queue) == writers-1
	})
	before := files.syncs.Load()
	files.letGo()
	wg.Wait()
	// One for the first writer, who waited for nobody, and one for all others.
	if got := files.syncs.Load() - before; got != 2 {
		t.Errorf("%d syncs for %d commits, want 2", got, writers)
	}
	if s.Len() != writers+1 {
		t.Errorf("Len() = %d, want %d", s.Len(), writers+1)
	}
}

func TestCompactionKeepsWhatIsInForce(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{SegmentSize: 8 << 10})
	model := make(map[string]string)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		key := fmt.Sprintf("key-%d", rng.IntN(50))
		if rng.IntN(4) == 0 {
			remove(t, s, key)
			delete(model, key)
			continue
		}
		value := strings.Repeat(key, rng.IntN(40))
		put(t, s, key, value)
		model[key] = value
	}
	wantContent(t, s, model)
	eventually(t, "compaction", func() bool { return s.candidate() == nil })
	wantContent(t, s, model)
	if u := s.Usage(); u.Bytes > 10*u.Live+64<<10 {
		t.Errorf("Usage() = %+v: dead records stay", u)
	}
	s.Close()
	wantContent(t, open(t, dir, Options{}), model)
}

func TestCompactionForgetsDeletionsInTheEnd(t *testing.T) {
	s := open(t, t.TempDir(), Options{SegmentSize: 4 << 10})
	put(t, s, "stays", strings.Repeat("x", 5000))
	var b Batch
	for i := range 3000 {
		b.Put(fmt.Sprint(i), nil)
	}
	if err := s.Commit(&b); err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		var b Batch
		for j := range 100 {
			b.Delete(fmt.Sprint(i*100 + j))
		}
		if err := s.Commit(&b); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "deletions are forgotten", func() bool { return s.candidate() == nil && s.Usage().Bytes < 120<<10 })
	if got := slices.Collect(s.Keys("")); !slices.Equal(got, []string{"stays"}) {
		t.Errorf("Keys() = %q", got)
	}
}

func TestReadersAndWritersAtOnce(t *testing.T) {
	s := open(t, t.TempDir(), Options{SegmentSize: 64 << 10})
	value := func(n int) string { return strings.Repeat(fmt.Sprintf("%08d", n), 50) }
	put(t, s, "a", value(0), "b", value(0))
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				v, err := s.Open("a")
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(v)
				v.Close()
				if err != nil || len(got) != 400 || strings.Count(string(got), string(got[:8])) != 50 {
					t.Errorf("Open() gave %q, %v", got, err)
					return
				}
			}
		})
	}
	for n := range 1000 {
		put(t, s, "a", value(n), "b", value(n))
	}
	close(done)
	wg.Wait()
}

func TestReportReadsLikeALine(t *testing.T) {
	r := Report{
		Damage: []Damage{{File: "1.seg", Offset: 32, Length: 8, What: "no sound record"}},
		Lost:   []string{"vm/a"},
		Kept:   []string{"damaged/1.seg"},
	}
	want := `1.seg: 8 bytes at 32: no sound record; value of "vm/a" is damaged; kept damaged/1.seg`
	if got := r.String(); got != want {
		t.Errorf("String() = %q, want %q", got, want)
	}
	if got := (Report{}).String(); got != "sound" {
		t.Errorf("String() = %q, want sound", got)
	}
}
