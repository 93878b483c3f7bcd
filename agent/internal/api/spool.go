package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"vragent/agent/internal/account"
	"vragent/agent/internal/api/bundle"
)

// spool keeps bundles from their acknowledgement until their job is over.
type spool struct {
	dir    string
	limits bundle.Limits
}

// receive takes a bundle in and returns its name in the spool: durable, so that a job may be made
// of it. What does not match sum, a SHA-256 in hexadecimal, or is refused, leaves nothing behind.
func (s spool) receive(body io.Reader, sum string) (name string, got bundle.Summary, err error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return "", got, err
	}
	f, err := os.CreateTemp(s.dir, ".bundle-")
	if err != nil {
		return "", got, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	got, err = bundle.Receive(f, body, s.limits)
	if err == nil && got.SHA256 != sum {
		err = &bundle.Refused{Why: fmt.Sprintf("sha256 of the body is %s, and %s was announced", got.SHA256, sum)}
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", got, err
	}
	name = account.NewID()
	if err = os.Rename(f.Name(), s.path(name)); err != nil {
		return "", got, err
	}
	return name, got, syncDir(s.dir)
}

func (s spool) path(name string) string { return filepath.Join(s.dir, filepath.Base(name)) }

func (s spool) open(name string) (*os.File, *bundle.Bundle, error) {
	f, err := os.Open(s.path(name))
	if err != nil {
		return nil, nil, err
	}
	b, err := bundle.Open(f)
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, b, nil
}

func (s spool) remove(name string) error { return os.Remove(s.path(name)) }

// names lists what lies in the spool.
func (s spool) names() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// sweep removes those of names that no job needs: uploads that broke off, bundles whose job ended as
// the agent was killed.
func (s spool) sweep(ctx context.Context, names []string, needed map[string]bool) error {
	var errs []error
	for _, name := range names {
		if ctx.Err() == nil && !needed[name] {
			errs = append(errs, os.Remove(s.path(name)))
		}
	}
	return errors.Join(errs...)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
