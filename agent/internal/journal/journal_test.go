package journal

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// stream opens a file and makes JOURNAL_STREAM name it.
func stream(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "stream"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		t.Fatal(err)
	}
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", stat.Dev, stat.Ino))
	return f
}

func lines(t *testing.T, f *os.File) []string {
	t.Helper()
	data, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

// plainText writes records without their time, which tests cannot know.
func plainText(out io.Writer) slog.Handler {
	return slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: noTime})
}

func plainJSON(out io.Writer) slog.Handler {
	return slog.NewJSONHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: noTime})
}

func noTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

func TestEachLineHasItsPriority(t *testing.T) {
	f := stream(t)
	log := slog.New(Handler(f, plainText))
	log.Error("a")
	log.Warn("b")
	log.Info("c")
	log.Debug("d")
	log.Log(context.Background(), slog.LevelError+4, "worse than an error")
	log.Log(context.Background(), slog.LevelInfo+2, "between")
	log.With("vm", "i-2-34-VM").WithGroup("nic").Warn("two\nlines", "ip", "10.1.1.34")
	want := []string{
		`<3>level=ERROR msg=a`,
		`<4>level=WARN msg=b`,
		`<6>level=INFO msg=c`,
		`<7>level=DEBUG msg=d`,
		`<3>level=ERROR+4 msg="worse than an error"`,
		`<6>level=INFO+2 msg=between`,
		`<4>level=WARN msg="two\nlines" vm=i-2-34-VM nic.ip=10.1.1.34`,
	}
	if diff := cmp.Diff(want, lines(t, f)); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestJSONLinesHaveTheirPriorityToo(t *testing.T) {
	f := stream(t)
	slog.New(Handler(f, plainJSON)).Warn("b")
	if diff := cmp.Diff([]string{`<4>{"level":"WARN","msg":"b"}`}, lines(t, f)); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestElsewhereLinesAreLeftAlone(t *testing.T) {
	for name, value := range map[string]string{
		"no journal":                     "",
		"the journal's, of another file": "1:1",
		"not a device and inode":         "nonsense",
	} {
		t.Run(name, func(t *testing.T) {
			f := stream(t)
			t.Setenv("JOURNAL_STREAM", value)
			slog.New(Handler(f, plainText)).Info("c")
			if diff := cmp.Diff([]string{"level=INFO msg=c"}, lines(t, f)); diff != "" {
				t.Errorf("lines (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("not a file", func(t *testing.T) {
		stream(t)
		var b strings.Builder
		slog.New(Handler(&b, plainText)).Info("c")
		if got, want := b.String(), "level=INFO msg=c\n"; got != want {
			t.Errorf("line = %q, want %q", got, want)
		}
	})
	t.Run("a closed file", func(t *testing.T) {
		f := stream(t)
		f.Close()
		if Connected(f) {
			t.Error("Connected() = true of a closed file")
		}
	})
}

func TestLinesOfSeveralPrioritiesDoNotMix(t *testing.T) {
	f := stream(t)
	log := slog.New(Handler(f, plainText))
	const each = 200
	var wg sync.WaitGroup
	for _, level := range []slog.Level{slog.LevelError, slog.LevelWarn, slog.LevelInfo, slog.LevelDebug} {
		wg.Go(func() {
			for range each {
				log.Log(context.Background(), level, "m")
			}
		})
	}
	wg.Wait()
	got := map[string]int{}
	for _, line := range lines(t, f) {
		got[line]++
	}
	want := map[string]int{"<3>level=ERROR msg=m": each, "<4>level=WARN msg=m": each, "<6>level=INFO msg=m": each, "<7>level=DEBUG msg=m": each}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestLevelsAreTheHandlersOwn(t *testing.T) {
	f := stream(t)
	log := slog.New(Handler(f, func(out io.Writer) slog.Handler {
		return slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: noTime})
	}))
	log.Info("c")
	log.Warn("b")
	if diff := cmp.Diff([]string{"<4>level=WARN msg=b"}, lines(t, f)); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestWriteReportsWhatTheWriterBelowSays(t *testing.T) {
	p := &prefixer{out: full{}, mu: &sync.Mutex{}, prefix: "<6>"}
	if n, err := p.Write([]byte("line\n")); n != 0 || err != unix.ENOSPC {
		t.Errorf("Write() = %d, %v, want 0, %v", n, err, unix.ENOSPC)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, unix.ENOSPC }
