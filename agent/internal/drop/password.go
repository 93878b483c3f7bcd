package drop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// RemovePassword removes the password file of a VM if it still holds that password. A newer one that
// somebody drops meanwhile stays: the file is taken aside under a hidden name first, and put back
// where it turns out to be another one and no still newer one has taken its place.
func (d *Dir) RemovePassword(vm, password string) error {
	folder := filepath.Join(d.path, Unit{VM, vm}.Path())
	path, aside := filepath.Join(folder, PasswordFile), filepath.Join(folder, "."+PasswordFile+".taken")
	err := os.Rename(path, aside)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("password of %s: %w", vm, err)
	}
	data, err := os.ReadFile(aside)
	if err == nil && strings.TrimRight(string(data), "\r\n") == password {
		if err := os.Remove(aside); err != nil {
			return fmt.Errorf("password of %s: %w", vm, err)
		}
		return nil
	}
	err = unix.Renameat2(unix.AT_FDCWD, aside, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if err == unix.EEXIST {
		return os.Remove(aside) // an older one than the one that is there
	}
	if err != nil {
		return fmt.Errorf("password of %s: put back: %w", vm, err)
	}
	return nil
}
