package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vragent/agent/internal/cloudstack"
)

// keep keeps the files of the router's own scripts as they would write them, until ctx ends: after
// each change of the agent's, and after somebody else has written into one of them. It holds nothing
// in memory in between.
func (s *site) keep(ctx context.Context) error {
	if err := os.MkdirAll(s.path(bagsDir), 0o755); err != nil {
		return err
	}
	w, err := newWatch(s.path(filepath.Dir(hostsFile)), s.path(bagsDir))
	if err != nil {
		return err
	}
	defer w.close()

	if c, ok := s.daemon.(*cloudstack.Client); ok {
		c.Patience = 0 // follow tries again by itself, and not as often
	}
	newer := make(chan cloudstack.Guests)
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		s.follow(ctx, newer)
	}()
	defer func() { <-asked }()

	off, fault := false, ""
	var kept map[string]fileID
	for {
		var g cloudstack.Guests
		select {
		case <-ctx.Done():
			return nil
		case g = <-newer:
		case <-w.changed:
			if !s.foreign(kept) {
				continue
			}
			if g, err = s.daemon.Guests(ctx, 0); err != nil {
				continue // follow brings it when the agent is back
			}
			select {
			case <-newer: // has become older
			default:
			}
		}
		if g.Off != off {
			off = g.Off
			s.say("cloudstack.databags is %t: the files are kept %s", !off, map[bool]string{true: "no longer", false: "again"}[off])
		}
		if g.Off || g.Empty() {
			continue
		}
		began := time.Now()
		var hosts bool
		kept, hosts, err = s.keepFiles(g)
		if now := fmt.Sprint(err); now != fault {
			if fault = now; err != nil {
				s.say("%v", err)
			}
		}
		if hosts {
			// For the names in it; a dnsmasq that does not run needs nothing.
			if err := s.systemctl(ctx, "try-reload-or-restart", dnsmasqUnit); err != nil && ctx.Err() == nil {
				s.say("%v", err)
			}
		}
		debug.FreeOSMemory()
		// Changes that come fast are written together.
		select {
		case <-time.After(max(s.pause, 10*time.Since(began))):
		case <-ctx.Done():
			return nil
		}
	}
}

// follow sends what the agent knows of the guests whenever that changes.
func (s *site) follow(ctx context.Context, newer chan<- cloudstack.Guests) {
	var last uint64
	said := ""
	for ctx.Err() == nil {
		g, err := s.daemon.Guests(ctx, last)
		if err != nil {
			if ctx.Err() == nil && err.Error() != said {
				said = err.Error()
				s.say("%v", err)
			}
			select {
			case <-time.After(s.pause): // it is restarted, as a rule
			case <-ctx.Done():
			}
			continue
		}
		said, last = "", g.Generation
		select {
		case newer <- g:
		case <-ctx.Done():
		}
	}
}

// keptFiles are the files that are kept, with the modes they get where there is none.
func keptFiles(g cloudstack.Guests, userData func(unit string) ([]byte, error)) []keptFile {
	text := func(data []byte) func(io.Writer) error {
		return func(w io.Writer) error {
			_, err := w.Write(data)
			return err
		}
	}
	return []keptFile{
		{bagsDir + "/dhcpentry.json", 0o644, g.WriteDHCPEntries},
		{bagsDir + "/vmdata.json", 0o600, func(w io.Writer) error { return g.WriteVMData(w, userData) }},
		{dhcpHosts, 0o644, text(g.DHCPHosts())},
		{hostsFile, 0o644, text(g.Hosts())},
	}
}

type keptFile struct {
	path  string
	mode  fs.FileMode
	write func(io.Writer) error
}

// keepFiles brings the files into line with what is known of the guests, each in one step. What says
// the same stays untouched. It returns what the files are then, and tells whether /etc/hosts says
// something else than before.
func (s *site) keepFiles(g cloudstack.Guests) (ids map[string]fileID, hosts bool, err error) {
	if g.Empty() {
		return nil, false, nil
	}
	ids = make(map[string]fileID)
	var faults []error
	for _, f := range keptFiles(g, s.unitFile(g, "user-data")) {
		id, same := s.says(f)
		if same {
			ids[f.path] = id
			continue
		}
		id, err := s.replaceBy(f.path, f.mode, func(w io.Writer) error {
			b := bufio.NewWriterSize(w, 1<<16)
			return errors.Join(f.write(b), b.Flush())
		})
		if err != nil {
			faults = append(faults, err)
			continue
		}
		ids[f.path] = id
		hosts = hosts || f.path == hostsFile
	}
	return ids, hosts, errors.Join(faults...)
}

// unitFile reads a file of a unit; one that is not there is nil.
func (s *site) unitFile(g cloudstack.Guests, name string) func(unit string) ([]byte, error) {
	return func(unit string) ([]byte, error) {
		data, err := readRegular(s.path(g.DropDir), unit+"/"+name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return data, err
	}
}

// readRegular reads the file at path below dir, which others than root may write into. So neither the
// file nor a folder on the way to it may be a symbolic link, which might lead to what only root reads,
// and a pipe or a device is not read.
func readRegular(dir, path string) ([]byte, error) {
	at, err := openAt(unix.AT_FDCWD, dir, unix.O_DIRECTORY)
	names := strings.Split(path, "/")
	for i, name := range names {
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: filepath.Join(dir, filepath.Join(names[:i]...)), Err: err}
		}
		parent := at
		flags := unix.O_NOFOLLOW | unix.O_NONBLOCK
		if i < len(names)-1 {
			flags |= unix.O_DIRECTORY
		}
		at, err = openAt(parent, name, flags)
		_ = unix.Close(parent)
		// ELOOP is a link, ENXIO a socket, and ENOTDIR what is in the place of a folder.
		switch {
		case err == unix.ENOTDIR || err == unix.ELOOP && i < len(names)-1:
			return nil, fmt.Errorf("%s is no folder, or a link to one, which is not followed", filepath.Join(dir, filepath.Join(names[:i+1]...)))
		case err == unix.ELOOP || err == unix.ENXIO:
			return nil, fmt.Errorf("%s is no regular file, and so not read", filepath.Join(dir, path))
		}
	}
	path = filepath.Join(dir, path)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	file := os.NewFile(uintptr(at), path)
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file, and so not read", path)
	}
	return io.ReadAll(file)
}

// openAt opens for reading, however often a signal comes in between.
func openAt(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC|flags, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// says tells whether the file says already what is to be written, and what the file is that does.
func (s *site) says(f keptFile) (fileID, bool) {
	file, err := os.Open(s.path(f.path))
	if err != nil {
		return fileID{}, false
	}
	defer file.Close()
	id := identify(file) // before it is read: what is written into it meanwhile is seen afterwards
	c := &comparison{with: bufio.NewReaderSize(file, 1<<16)}
	if f.write(c) != nil {
		return id, false
	}
	_, err = c.with.ReadByte()
	return id, errors.Is(err, io.EOF)
}

// comparison is a writer of what is to be the same as what with reads.
type comparison struct {
	with *bufio.Reader
	part []byte
}

var errOther = errors.New("says something else")

func (c *comparison) Write(p []byte) (int, error) {
	c.part = append(c.part[:0], p...)
	if _, err := io.ReadFull(c.with, c.part); err != nil || !bytes.Equal(c.part, p) {
		return 0, errOther
	}
	return len(p), nil
}

// foreign tells whether somebody else has been at the files since they were kept.
func (s *site) foreign(ids map[string]fileID) bool {
	for _, f := range keptFiles(cloudstack.Guests{}, nil) {
		var now fileID
		if file, err := os.Open(s.path(f.path)); err == nil {
			now = identify(file)
			_ = file.Close()
		}
		if now != ids[f.path] {
			return true
		}
	}
	return false
}
