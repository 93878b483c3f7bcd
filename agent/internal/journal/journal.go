// Package journal gives log lines the priority that systemd's journal files them under, so that
// `journalctl -p warning` shows what deserves attention.
//
// The journal takes a line's priority from a prefix, <0> to <7>, and removes it (sd-daemon(3)).
// What a line says and in which format is the business of the handlers that write it.
package journal

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// The priorities in use, of syslog(3).
const (
	priorityError   = 3
	priorityWarning = 4
	priorityInfo    = 6
	priorityDebug   = 7
)

// Handler returns what newHandler makes for out, and where out is connected to the journal a
// handler that has each line begin with its priority. newHandler is called once or, for the
// journal, once for each priority; the handlers that it makes have to write each record as one
// line and by one call of Write, as those of log/slog do.
func Handler(out io.Writer, newHandler func(io.Writer) slog.Handler) slog.Handler {
	if f, ok := out.(*os.File); !ok || !Connected(f) {
		return newHandler(out)
	}
	mu := &sync.Mutex{}
	h := &handler{byPriority: map[int]slog.Handler{}}
	for _, p := range []int{priorityError, priorityWarning, priorityInfo, priorityDebug} {
		h.byPriority[p] = newHandler(&prefixer{out: out, mu: mu, prefix: fmt.Sprintf("<%d>", p)})
	}
	return h
}

// Connected tells whether f leads to the journal: whether it is the file that JOURNAL_STREAM names
// by device and inode (systemd.exec(5)). The variable alone does not tell, since it is inherited by
// programs whose output was sent elsewhere.
func Connected(f *os.File) bool {
	stream := os.Getenv("JOURNAL_STREAM")
	if stream == "" {
		return false
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	var stat unix.Stat_t
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.Fstat(int(fd), &stat) }); err != nil || failed != nil {
		return false
	}
	return stream == fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}

// handler passes each record on to the handler of its priority. It is never changed.
type handler struct {
	byPriority map[int]slog.Handler
}

func (h *handler) of(level slog.Level) slog.Handler {
	switch {
	case level >= slog.LevelError:
		return h.byPriority[priorityError]
	case level >= slog.LevelWarn:
		return h.byPriority[priorityWarning]
	case level >= slog.LevelInfo:
		return h.byPriority[priorityInfo]
	}
	return h.byPriority[priorityDebug]
}

// Enabled implements slog.Handler.
func (h *handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.of(level).Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	return h.of(r.Level).Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.each(func(of slog.Handler) slog.Handler { return of.WithAttrs(attrs) })
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	return h.each(func(of slog.Handler) slog.Handler { return of.WithGroup(name) })
}

func (h *handler) each(change func(slog.Handler) slog.Handler) *handler {
	changed := &handler{byPriority: map[int]slog.Handler{}}
	for p, of := range h.byPriority {
		changed.byPriority[p] = change(of)
	}
	return changed
}

// prefixer writes lines with a prefix. The prefixers of one file share a lock, so that their lines
// do not mix.
type prefixer struct {
	prefix string
	out    io.Writer

	mu  *sync.Mutex
	buf []byte
}

// Write implements io.Writer: the prefix and line in one call of the writer below.
func (p *prefixer) Write(line []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.buf = append(append(p.buf[:0], p.prefix...), line...)
	if _, err := p.out.Write(p.buf); err != nil {
		return 0, err
	}
	return len(line), nil
}
