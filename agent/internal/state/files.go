package state

import (
	"os"

	"golang.org/x/sys/unix"
)

// fileSystem is what a store does to its folder that can fail for want of
// space, permission or a healthy disk.
type fileSystem interface {
	create(path string) (*os.File, error)
	writeAt(f *os.File, b []byte, off int64) error
	truncate(f *os.File, size int64) error
	// sync makes a file's data durable. After an error nothing is known of
	// what was written since the last success, and a second call proves nothing.
	sync(f *os.File) error
	syncDir(dir string) error
	remove(path string) error
}

type osFiles struct{}

func (osFiles) create(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

func (osFiles) writeAt(f *os.File, b []byte, off int64) error {
	_, err := f.WriteAt(b, off)
	return err
}

func (osFiles) truncate(f *os.File, size int64) error { return f.Truncate(size) }

func (osFiles) sync(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

func (osFiles) syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (osFiles) remove(path string) error { return os.Remove(path) }
