package drop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// FileInfo is one file of a unit as it lies there.
type FileInfo struct {
	Path     string // below the drop directory
	Size     int64  // in bytes
	Modified time.Time
}

// List returns the files of a unit that would be read, for people to see; none where there is no
// such unit.
func (d *Dir) List(u Unit) []FileInfo {
	var list []FileInfo
	add := func(path string, info os.FileInfo) {
		list = append(list, FileInfo{Path: path, Size: info.Size(), Modified: info.ModTime()})
	}
	if u.Kind == Network {
		if info, err := os.Lstat(filepath.Join(d.path, u.Path())); err == nil {
			add(u.Path(), info)
		}
		return list
	}
	entries, err := os.ReadDir(filepath.Join(d.path, u.Path()))
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if !isVMFile(e.Name()) {
			continue
		}
		if info, err := e.Info(); err == nil {
			add(u.Path()+"/"+e.Name(), info)
		}
	}
	return list
}

// Again has units given out by Next once more, as if they had changed now.
func (d *Dir) Again(units []Unit) {
	now := time.Now()
	d.mu.Lock()
	for _, u := range units {
		d.touch(u, now)
	}
	d.mu.Unlock()
	ping(d.changed)
}

// Peek looks at a drop directory without making or changing anything: it returns a read-only Dir, for
// the caller to close, and the units that are there, networks first, in name order.
func Peek(path string) (*Dir, []Unit, error) {
	d, err := Open(path, Options{ReadOnly: true})
	if err != nil {
		return nil, nil, err
	}
	var units []Unit
	for _, kind := range []Kind{Network, VM} {
		names, err := d.listKind(kind)
		if err != nil {
			return nil, nil, errors.Join(fmt.Errorf("drop directory %s: %w", path, err), d.Close())
		}
		for _, name := range names {
			units = append(units, Unit{kind, name})
		}
	}
	sortUnits(units)
	return d, units, nil
}
