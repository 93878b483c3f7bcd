package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAFileIsReplacedOnceItIsComplete(t *testing.T) {
	gone := errors.New("the daemon has gone")
	for name, c := range map[string]struct {
		folder  os.FileMode
		writing error
		content string
		says    string // with the file's path as FILE and its folder's as FOLDER
	}{
		"written":                   {0o700, nil, "new", ""},
		"writing fails":             {0o700, gone, "old", "the daemon has gone"},
		"the folder is not synced":  {0o300, nil, "new", "FILE is complete, but may not outlast a power failure: sync its folder: open FOLDER: permission denied"},
		"nor written in the folder": {0o300, gone, "old", "the daemon has gone"},
	} {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			path := filepath.Join(folder, "backup")
			if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(folder, c.folder); err != nil {
				t.Fatal(err)
			}
			said := ""
			if err := withoutPower(t, []string{filepath.Dir(folder), folder, path}, func() error {
				return putFile(path, func(out io.Writer) error {
					_, err := io.WriteString(out, "new")
					return errors.Join(err, c.writing)
				})
			}); err != nil {
				said = err.Error()
			}
			if want := strings.NewReplacer("FILE", path, "FOLDER", folder).Replace(c.says); said != want {
				t.Errorf("putFile() says %q, want %q", said, want)
			}
			if err := os.Chmod(folder, 0o700); err != nil {
				t.Fatal(err)
			}
			if content, err := os.ReadFile(path); err != nil || string(content) != c.content {
				t.Errorf("the file holds %q, %v; want %q", content, err, c.content)
			}
			if entries, err := os.ReadDir(folder); err != nil || len(entries) != 1 {
				t.Errorf("beside the file there is something: %v, %v", entries, err)
			}
		})
	}
}

// withoutPower calls do as a user whom file modes bind and whom the paths belong to.
func withoutPower(t *testing.T, paths []string, do func() error) error {
	t.Helper()
	if os.Geteuid() != 0 {
		return do()
	}
	const nobody = 65534
	for _, path := range paths {
		if err := os.Chown(path, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error)
	go func() {
		// The thread ends with the goroutine, and the power it has given up with it: setfsuid(2).
		runtime.LockOSThread()
		if _, err := unix.SetfsuidRetUid(nobody); err != nil {
			done <- err
			return
		}
		done <- do()
	}()
	return <-done
}
