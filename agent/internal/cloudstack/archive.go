package cloudstack

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Archive is the folder that a management server drops files in, with the folder "processed" for
// those that have been taken in. The zero limits are the defaults.
type Archive struct {
	Dir string
	// MaxFiles is how many files stay in "processed", 5000 if zero.
	MaxFiles int
	// MaxAge is how long they do, 30 days if zero.
	MaxAge time.Duration
}

const (
	archiveFiles = 5000
	archiveAge   = 30 * 24 * time.Hour
	// pruneAtOnce bounds what one call removes from a folder that has grown for years.
	pruneAtOnce = 2000
)

// Path returns where the file called name lies; a path with a folder in it is taken as it is.
func (a Archive) Path(name string) string {
	if strings.ContainsRune(name, '/') {
		return name
	}
	return filepath.Join(a.Dir, name)
}

// Holds tells whether the file at path lies in the server's folder itself.
func (a Archive) Holds(path string) bool {
	abs, err := filepath.Abs(path)
	return err == nil && filepath.Dir(abs) == filepath.Clean(a.Dir)
}

// Open opens a file that a server has dropped, and nothing that would keep its reader waiting.
func Open(path string) (*os.File, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: is no regular file", path)
	}
	return os.Open(path)
}

func readFile(path string) ([]byte, error) {
	f, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

func (a Archive) processed(name string) string {
	return filepath.Join(a.Dir, "processed", filepath.Base(name)+".gz")
}

// Has tells whether a file of that name has been taken in.
func (a Archive) Has(name string) bool {
	_, err := os.Stat(a.processed(name))
	return err == nil
}

// Keep puts data in the archive under name, readable by root alone, since it may hold a password.
// A name without a suffix of its own gets the time for one, as files of the router itself come
// again and again under one name.
func (a Archive) Keep(name string, data []byte) error {
	return a.keep(name, bytes.NewReader(data))
}

func (a Archive) keep(name string, data io.Reader) error {
	name = filepath.Base(name)
	if strings.HasSuffix(name, ".json") {
		name += "." + time.Now().UTC().Format("20060102T150405.000000000")
	}
	folder := filepath.Join(a.Dir, "processed")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	temp, err := os.CreateTemp(folder, ".new-") // mode 0600
	if err != nil {
		return err
	}
	z := gzip.NewWriter(temp)
	_, err = io.Copy(z, data)
	err = errors.Join(err, z.Close(), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), a.processed(name))
	}
	if err != nil {
		_ = os.Remove(temp.Name())
		return err
	}
	return nil
}

// Done archives a file that has been taken in and removes it. keep false removes it only.
func (a Archive) Done(name string, data []byte, keep bool) error {
	if keep {
		if err := a.Keep(name, data); err != nil {
			return fmt.Errorf("archive: %w", err)
		}
	}
	if err := os.Remove(a.Path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("archive: %w", err)
	}
	return nil
}

// DoneFile archives a file of any size that has been taken in and removes it.
func (a Archive) DoneFile(name string) error {
	f, err := os.Open(a.Path(name))
	if err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	defer f.Close()
	if err := a.keep(name, f); err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	return a.Done(name, nil, false)
}

// Prune removes from the archive what is too old or too many, the oldest first. It looks at ages
// once a day and at the number at each call, which for the number allowed costs a millisecond.
func (a Archive) Prune(now time.Time) error {
	most, age := cmp.Or(a.MaxFiles, archiveFiles), cmp.Or(a.MaxAge, archiveAge)
	folder := filepath.Join(a.Dir, "processed")
	f, err := os.Open(folder)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	names, err := f.Readdirnames(-1)
	_ = f.Close()
	if err != nil {
		return err
	}
	mark := filepath.Join(folder, ".pruned")
	marked, err := os.Stat(mark)
	fresh := err == nil && now.Sub(marked.ModTime()) < 24*time.Hour
	if fresh && len(names) <= most {
		return nil
	}
	type entry struct {
		name string
		time time.Time
	}
	var entries []entry
	for _, name := range names {
		if name == filepath.Base(mark) {
			continue
		}
		if info, err := os.Lstat(filepath.Join(folder, name)); err == nil && info.Mode().IsRegular() {
			entries = append(entries, entry{name, info.ModTime()})
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return a.time.Compare(b.time) })
	// With some room to spare, so that the next call need not do it again.
	tooMany := 0
	if len(entries) > most {
		tooMany = len(entries) - most*9/10
	}
	var faults []error
	for i, e := range entries {
		if i >= pruneAtOnce || i >= tooMany && now.Sub(e.time) <= age {
			break
		}
		if err := os.Remove(filepath.Join(folder, e.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			faults = append(faults, err)
		}
	}
	if !fresh {
		if err := os.WriteFile(mark, nil, 0o600); err != nil {
			faults = append(faults, err)
		}
		_ = os.Chtimes(mark, now, now)
	}
	return errors.Join(faults...)
}
