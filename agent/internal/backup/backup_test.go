package backup

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	header  = Header{Created: time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC), Release: "1.4.0"}
	records = []Record{
		{User, "user/1", []byte(`{"id":"1"}`)},
		{Lease, "lease/guest-1/10.1.1.200", []byte{1, 1, 10, 0xff}},
		{Taken, "taken/vms/a", []byte("{}")},
		{Fault, "leases", []byte("value is damaged")},
	}
)

func write(t testing.TB) []byte {
	t.Helper()
	var out bytes.Buffer
	w := NewWriter(&out, header)
	for _, r := range records {
		if err := w.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func read(data []byte) (h Header, list []Record, err error) {
	h, err = Read(bytes.NewReader(data), func(r Record) error { list = append(list, r); return nil })
	return h, list, err
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	h, list, err := read(write(t))
	if err != nil || h != header {
		t.Errorf("Read() = %+v, %v; want %+v", h, err, header)
	}
	if diff := cmp.Diff(records, list); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

func TestEveryCutAndEveryFlippedByteIsNoticed(t *testing.T) {
	whole := write(t)
	for n := range whole {
		if _, _, err := read(whole[:n]); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrForeign) {
			t.Fatalf("cut after %d bytes: %v", n, err)
		}
		flipped := bytes.Clone(whole)
		flipped[n] ^= 1
		if _, _, err := read(flipped); err == nil {
			t.Fatalf("byte %d flipped: not noticed", n)
		}
	}
}

func TestWhatCannotBeReadSaysWhy(t *testing.T) {
	whole := string(write(t))
	_, rest, _ := strings.Cut(whole, "\n")
	for name, test := range map[string]struct {
		data string
		want error
		text string
	}{
		"empty":            {"", ErrForeign, ""},
		"another format":   {"SQLite format 3\n" + rest, ErrForeign, ""},
		"no version":       {"vragent-backup\n" + rest, ErrForeign, ""},
		"a newer release":  {"vragent-backup 2\n{\"surprise\":1}\n", ErrTooNew, "format 2: this one reads format 1"},
		"cut short":        {whole[:len(whole)-1], ErrDamaged, "cut short in line 7"},
		"another checksum": {strings.Replace(whole, "guest-1", "guest-2", 1), ErrDamaged, "checksum"},
		"more than a file": {whole + "\n", ErrDamaged, "follows"},
		"endless line":     {"vragent-backup 1\n" + strings.Repeat(" ", maxLine+1), ErrDamaged, "line 2 is longer"},
		"unknown field":    {"vragent-backup 1\n{\"made\":1}\n", ErrDamaged, "line 2"},
	} {
		if _, _, err := read([]byte(test.data)); !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v, want %v with %q", name, err, test.want, test.text)
		}
	}
}

func TestErrorOfTheReceiverEndsReading(t *testing.T) {
	enough := errors.New("enough")
	n := 0
	_, err := Read(bytes.NewReader(write(t)), func(Record) error { n++; return enough })
	if err != enough || n != 1 {
		t.Errorf("Read() = %v after %d records", err, n)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestErrorOfTheWriterIsNotLost(t *testing.T) {
	w := NewWriter(full{}, header)
	for range 1000 { // more than the buffer
		w.Add(records[0])
	}
	if err := w.Close(); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("Close() = %v", err)
	}
}

// FuzzRead: whatever is in a file, reading it ends, and what is accepted is what Writer would write.
func FuzzRead(f *testing.F) {
	f.Add(write(f))
	f.Add([]byte("vragent-backup 1\n{}\nsha256 \n"))
	f.Add([]byte("vragent-backup 99\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, list, err := read(data)
		if err != nil {
			return
		}
		var out bytes.Buffer
		w := NewWriter(&out, h)
		for _, r := range list {
			w.Add(r)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		h2, again, err := read(out.Bytes())
		if err != nil || !h2.Created.Equal(h.Created) || h2.Release != h.Release || !cmp.Equal(again, list) {
			t.Fatalf("written again it is %+v %v, %v; was %+v %v", h2, again, err, h, list)
		}
	})
}
