package agent

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"sync/atomic"

	"vragent/agent/internal/journal"
)

// logSwitch is a log handler whose level and format can change while loggers made from it are in use.
type logSwitch struct {
	level slog.LevelVar
	json  atomic.Bool
	text  slog.Handler
	jsonl slog.Handler
	root  *logSwitch // whose level and format count; itself for the one that set is called on
}

func newLogSwitch(out io.Writer) *logSwitch {
	s := &logSwitch{}
	s.root = s
	opts := &slog.HandlerOptions{Level: &s.level}
	s.text = journal.Handler(out, func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, opts) })
	s.jsonl = journal.Handler(out, func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, opts) })
	return s
}

func (s *logSwitch) set(cfg LogConfig) {
	s.level.Set(cfg.Level)
	s.json.Store(cfg.JSON)
}

func (s *logSwitch) Enabled(_ context.Context, level slog.Level) bool {
	return level >= s.root.level.Level()
}

func (s *logSwitch) Handle(ctx context.Context, r slog.Record) error {
	if s.root.json.Load() {
		return s.jsonl.Handle(ctx, r)
	}
	return s.text.Handle(ctx, r)
}

func (s *logSwitch) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logSwitch{root: s.root, text: s.text.WithAttrs(attrs), jsonl: s.jsonl.WithAttrs(attrs)}
}

func (s *logSwitch) WithGroup(name string) slog.Handler {
	return &logSwitch{root: s.root, text: s.text.WithGroup(name), jsonl: s.jsonl.WithGroup(name)}
}

func randomKey() []byte {
	key := make([]byte, 32)
	rand.Read(key)
	return key
}
