package state

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// fill writes twenty batches of two keys each and returns what they hold.
func fill(t testing.TB, dir string) map[string]string {
	t.Helper()
	s := open(t, dir, Options{})
	all := make(map[string]string)
	for i := range 20 {
		small, large := fmt.Sprintf("small-%02d", i), fmt.Sprintf("large-%02d", i)
		all[small] = fmt.Sprint(i)
		all[large] = strings.Repeat(fmt.Sprintf("%02d", i), 4000)
		put(t, s, small, all[small], large, all[large])
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return all
}

// wantOnly checks that what the store gives is what was written, and returns
// how many keys are missing or damaged.
func wantOnly(t testing.TB, s *Store, all map[string]string) (missing int) {
	t.Helper()
	for key := range s.Keys("") {
		if _, ok := all[key]; !ok {
			t.Fatalf("the store has made up %q", key)
		}
	}
	for key, want := range all {
		value, err := s.Get(key)
		switch {
		case errors.Is(err, ErrNotFound), errors.Is(err, ErrDamaged):
			missing++
		case err != nil:
			t.Fatal(err)
		case string(value) != want:
			t.Fatalf("Get(%q) = %d bytes that were never written", key, len(value))
		}
	}
	return missing
}

func TestTornEndIsCutAndKeptAside(t *testing.T) {
	dir := t.TempDir()
	all := fill(t, dir)
	path := segmentFiles(t, dir)[0]
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// The last batch is 8 KB: cut at its ends and in its parts.
	for _, cut := range []int{1, 2, 7999, 8000, 8001, 8040, 8047, 8048, 8050, 8080, 8090, 8095} {
		if err := os.WriteFile(path, whole[:len(whole)-cut], 0o600); err != nil {
			t.Fatal(err)
		}
		s, report := openReport(t, dir, Options{})
		if missing := wantOnly(t, s, all); missing != 2 {
			t.Errorf("cut %d: %d keys missing, want both of the last batch", cut, missing)
		}
		torn := len(report.Damage) > 0
		for _, d := range report.Damage {
			torn = torn && d.Torn
		}
		if len(report.Lost) > 0 || torn != (len(report.Kept) == 1) {
			t.Errorf("cut %d: report %v", cut, report)
		}
		put(t, s, "after", "x")
		s.Close()
		s = open(t, dir, Options{})
		if got, err := s.Get("after"); string(got) != "x" {
			t.Errorf("cut %d: Get() = %q, %v", cut, got, err)
		}
		s.Close()
		os.RemoveAll(filepath.Join(dir, damagedFolder))
	}
}

func TestFlippedBytesAreFoundAndTheRestIsKept(t *testing.T) {
	dir := t.TempDir()
	all := fill(t, dir)
	path := segmentFiles(t, dir)[0]
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	offsets := []int{0, 8, 12, 16, 31, 32, 36, 60, 71, 72, 79, 80, len(whole) - 1}
	for range 60 {
		offsets = append(offsets, rng.IntN(len(whole)))
	}
	for _, off := range offsets {
		data := bytes.Clone(whole)
		data[off] ^= 1 << rng.IntN(8)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, report := openReport(t, dir, Options{})
		// In the last batch, a flipped byte cannot be told from a torn write.
		allowed := 1
		if off > len(whole)-8100 {
			allowed = 2
		}
		missing := wantOnly(t, s, all)
		if missing > allowed {
			t.Errorf("byte %d flipped: %d keys missing: %v", off, missing, report)
		}
		// A large value is looked at when it is read; all else at once.
		if off < fileHeaderSize+80 && report.Empty() {
			t.Errorf("byte %d flipped: not reported", off)
		}
		s.Close()
		for _, p := range segmentFiles(t, dir) {
			os.Remove(p)
		}
		os.RemoveAll(filepath.Join(dir, damagedFolder))
	}
}

func TestDamagedSegmentIsRewrittenAndKeptAside(t *testing.T) {
	dir := t.TempDir()
	all := fill(t, dir)
	path := segmentFiles(t, dir)[0]
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[fileHeaderSize+20]++ // head of the first record
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s, report := openReport(t, dir, Options{})
	if len(report.Damage) != 1 || report.Damage[0].Torn || report.Damage[0].Offset != fileHeaderSize {
		t.Fatalf("report %v, want the first record", report)
	}
	kept := filepath.Join(dir, damagedFolder, filepath.Base(path))
	eventually(t, "the segment is kept aside", func() bool { _, err := os.Stat(kept); return err == nil })
	delete(all, "small-00")
	if missing := wantOnly(t, s, all); missing != 0 {
		t.Errorf("%d keys missing", missing)
	}
	s.Close()
	wantContent(t, open(t, dir, Options{}), all)
}

func TestDamagedValueIsNeverGivenOutAndHeals(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir)
	path := segmentFiles(t, dir)[0]
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[bytes.Index(data, []byte("05050505"))+100]++
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ := openReport(t, dir, Options{})
	if _, err := s.Get("large-05"); !errors.Is(err, ErrDamaged) {
		t.Errorf("Get() = %v, want ErrDamaged", err)
	}
	if _, err := s.Open("large-05"); !errors.Is(err, ErrDamaged) {
		t.Errorf("Open() = %v, want ErrDamaged", err)
	}
	seen := 0
	err = s.Each("", -1, func(string, []byte) error { seen++; return nil })
	if !errors.Is(err, ErrDamaged) || seen != 39 {
		t.Errorf("Each() gave %d values and %v, want the 39 that are sound and ErrDamaged", seen, err)
	}
	put(t, s, "large-05", "new")
	if got, err := s.Get("large-05"); string(got) != "new" {
		t.Errorf("Get() = %q, %v", got, err)
	}
}

// A value may hold what looks like records; after damage before it they must
// not be taken for some.
func TestRecordsInsideValuesAreNotBelieved(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	forged := appendRecordHead(nil, salt{}, header{seq: 1 << 40, flags: flagLast, keyLen: 5, valueCRC: checksum(nil)}, "admin")
	put(t, s, "user-data", strings.Repeat("#", 10)+string(forged)+strings.Repeat("#", 10))
	put(t, s, "beside", "b")
	s.Close()
	path := segmentFiles(t, dir)[0]
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[fileHeaderSize+8]++
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ = openReport(t, dir, Options{})
	wantContent(t, s, map[string]string{"beside": "b"})
}

func TestEmptyAndForeignFilesDoNoHarm(t *testing.T) {
	dir := t.TempDir()
	for name, data := range map[string]string{
		segmentName(1, salt{1}): "",
		segmentName(2, salt{2}): "vrag",
		segmentName(3, salt{3}): strings.Repeat("\x00", 5000),
		"notes.txt":             "not ours",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, report := openReport(t, dir, Options{})
	if report.Empty() {
		t.Error("nothing is reported")
	}
	put(t, s, "k", "v")
	eventually(t, "the broken segments are out of the way", func() bool { return len(segmentFiles(t, dir)) == 1 })
	s.Close()
	wantContent(t, open(t, dir, Options{}), map[string]string{"k": "v"})
	if got, _ := os.ReadFile(filepath.Join(dir, "notes.txt")); string(got) != "not ours" {
		t.Error("a foreign file was changed")
	}
}

// FuzzOpen: whatever lies in the folder, opening does not panic and no value
// with a wrong checksum comes out; what is written afterwards is kept.
func FuzzOpen(f *testing.F) {
	dir := f.TempDir()
	s, _, err := Open(dir, Options{})
	if err != nil {
		f.Fatal(err)
	}
	for i := range 3 {
		var b Batch
		b.Put("k", []byte(strings.Repeat("v", i*10)))
		b.Delete("gone")
		if err := s.Commit(&b); err != nil {
			f.Fatal(err)
		}
	}
	s.Close()
	seed, err := os.ReadFile(segmentFiles(f, dir)[0])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(seed[:len(seed)-5])
	f.Add([]byte("vragstat"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		var salted salt
		if len(data) >= fileHeaderSize {
			copy(salted[:], data[16:])
		}
		if err := os.WriteFile(filepath.Join(dir, segmentName(7, salted)), data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, _, err := Open(dir, Options{})
		if errors.Is(err, ErrTooNew) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		for key := range s.Keys("") {
			value, err := s.Get(key)
			if err != nil {
				continue
			}
			s.mu.RLock()
			loc := s.index[key]
			s.mu.RUnlock()
			if checksum(value) != loc.crc {
				t.Fatalf("Get(%q) gave a value with a wrong checksum", key)
			}
		}
		put(t, s, "new", "kept")
		s.Close()
		s, _, err = Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if got, err := s.Get("new"); string(got) != "kept" {
			t.Fatalf("Get() = %q, %v", got, err)
		}
	})
}

// TestMain also is the process that TestKilledWhileCommitting kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv("STATE_TEST_WRITER"); dir != "" {
		commitUntilKilled(dir)
	}
	os.Exit(m.Run())
}

const killedWriters = 4

// commitUntilKilled counts up in pairs of keys from several goroutines, with a
// key that comes and goes, and prints what has been acknowledged.
func commitUntilKilled(dir string) {
	s, report, err := Open(dir, Options{SegmentSize: 32 << 10}) // so that compaction runs too
	if err != nil {
		panic(err)
	}
	for _, d := range report.Damage {
		if !d.Torn {
			panic(report)
		}
	}
	var wg sync.WaitGroup
	for w := range killedWriters {
		wg.Go(func() {
			left, right, brief := fmt.Sprintf("left-%d", w), fmt.Sprintf("right-%d", w), fmt.Sprintf("brief-%d", w)
			value, err := s.Get(left)
			if err != nil && !errors.Is(err, ErrNotFound) {
				panic(err)
			}
			n, _ := strconv.Atoi(strings.TrimRight(string(value), "."))
			for n++; ; n++ {
				var b Batch
				text := []byte(fmt.Sprint(n) + strings.Repeat(".", n%700))
				b.Put(left, text)
				if n%2 == 0 {
					b.Put(brief, nil)
				} else {
					b.Delete(brief)
				}
				b.Put(right, text)
				if err := s.Commit(&b); err != nil {
					panic(err)
				}
				fmt.Printf("%d %d\n", w, n)
			}
		})
	}
	wg.Wait()
}

func TestKilledWhileCommitting(t *testing.T) {
	dir := t.TempDir()
	acked := make([]int, killedWriters)
	rounds := 30
	if testing.Short() {
		rounds = 5
	}
	for round := range rounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "STATE_TEST_WRITER="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			var w, number int
			if _, err := fmt.Sscan(lines.Text(), &w, &number); err != nil {
				t.Fatalf("%q: %v", lines.Text(), err)
			}
			acked[w] = number
			if n == round*37 {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()

		s, _ := openReport(t, dir, Options{})
		for w, n := range acked {
			left, errLeft := s.Get(fmt.Sprintf("left-%d", w))
			right, errRight := s.Get(fmt.Sprintf("right-%d", w))
			if n == 0 && errors.Is(errLeft, ErrNotFound) && errors.Is(errRight, ErrNotFound) {
				continue
			}
			got, _ := strconv.Atoi(strings.TrimRight(string(left), "."))
			_, brief := s.Size(fmt.Sprintf("brief-%d", w))
			// What was acknowledged, or the batch after it, whole.
			if errLeft != nil || errRight != nil || !bytes.Equal(left, right) || got != n && got != n+1 || brief != (got%2 == 0) {
				t.Fatalf("round %d, writer %d: acknowledged %d, found %q (%v) and %q (%v), brief %t",
					round, w, n, left, errLeft, right, errRight, brief)
			}
			acked[w] = got
		}
		s.Close()
	}
}
