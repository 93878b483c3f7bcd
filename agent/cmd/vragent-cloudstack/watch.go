package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// watch tells when files in some folders have been written. What matters is that something may have
// changed, not what: whoever waits looks at all of it.
type watch struct {
	file    *os.File
	changed chan struct{} // holds one event at most
	ended   chan struct{}
}

func newWatch(folders ...string) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	w := &watch{file: os.NewFile(uintptr(fd), "inotify"), changed: make(chan struct{}, 1), ended: make(chan struct{})}
	for _, folder := range folders {
		if _, err := unix.InotifyAddWatch(fd, folder, unix.IN_CLOSE_WRITE|unix.IN_MOVED_TO|unix.IN_MOVED_FROM|unix.IN_DELETE|unix.IN_ONLYDIR); err != nil {
			_ = w.file.Close()
			return nil, fmt.Errorf("inotify: %s: %w", folder, err)
		}
	}
	go w.read()
	return w, nil
}

// read passes events on until the file is closed. An overflow is an event as well.
func (w *watch) read() {
	defer close(w.ended)
	buf := make([]byte, 4096)
	for {
		if _, err := w.file.Read(buf); err != nil {
			return
		}
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

func (w *watch) close() {
	_ = w.file.Close()
	<-w.ended
}

// fileID tells a file from one that was put in its place, and from what it was before somebody wrote
// into it.
type fileID struct {
	inode  uint64
	size   int64
	change unix.Timespec
}

// identify tells what an open file is; the zero value where that cannot be told.
func identify(f *os.File) fileID {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return fileID{}
	}
	return fileID{st.Ino, st.Size, st.Mtim}
}
