package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// aside is appended to the name of a file that something of ours is in the place of. It stays in its
// folder, where it finds what it imports.
const aside = ".cloudstack"

// stand is a place that something of ours takes while the router is ours.
type stand struct {
	path   string
	link   string // a symbolic link to this
	script string // or else a script that says this
}

// standIn is the place of a script that the management server calls. What stands there is a script
// and no link, so that whoever writes into it, instead of replacing it, does not write into a program
// of the package.
func standIn(name string) stand {
	return stand{path: binDir + "/" + name, script: standMark + " a script that lies beside it as " + name + aside + ".\n" +
		"exec /usr/lib/vragent-cloudstack/" + name + ` "$@"` + "\n"}
}

// standMark begins each of them, also those of other releases.
const standMark = "#!/bin/sh\n# vragent-cloudstack stands here in the place of"

// mask is the place that systemd looks for a unit in first. Unlike systemctl mask it also works
// where the unit itself lies there, as those of a router do.
func mask(unit string) stand { return stand{path: unitsDir + "/" + unit, link: "/dev/null"} }

// ours tells whether what is there is ours.
func (s *site) ours(d stand) bool {
	path := s.path(d.path)
	if d.link != "" {
		to, err := os.Readlink(path)
		return err == nil && to == d.link
	}
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
		return false
	}
	data, err := os.ReadFile(path)
	return err == nil && bytes.Equal(data, []byte(d.script))
}

// put sets up what is ours, and tells whether somebody else's was there. That is moved aside; at no
// moment there is nothing. Somebody may still be writing into it: it is the same file aside.
func (s *site) put(d stand) (foreign bool, err error) {
	if s.ours(d) {
		return false, nil
	}
	path := s.path(d.path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".vragent")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	foreign = true
	if data, err := os.ReadFile(path); d.script != "" && err == nil && bytes.HasPrefix(data, []byte(standMark)) {
		// Of another release, and nobody's original.
		foreign = false
	} else if err := os.Link(path, tmp); err == nil {
		if err := os.Rename(tmp, path+aside); err != nil {
			return false, err
		}
		// Two names of one file make rename(2) do nothing and leave the first one.
		if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if d.link != "" {
		err = os.Symlink(d.link, tmp)
	} else if err = os.WriteFile(tmp, []byte(d.script), 0o755); err == nil {
		err = os.Chmod(tmp, 0o755) // whatever the umask
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", tmp, err)
	}
	return foreign, os.Rename(tmp, path)
}

// back puts back what was there before. Where somebody has put another one in its place, that stays.
func (s *site) back(d stand) error {
	path := s.path(d.path)
	if !s.ours(d) {
		if _, err := os.Lstat(path); err == nil {
			return s.drop(path + aside)
		}
	}
	err := os.Rename(path+aside, path)
	if errors.Is(err, fs.ErrNotExist) {
		return s.drop(path)
	}
	return err
}

func (s *site) drop(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
