package nstest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// emptied are the folders that programs of this field keep state in; each host gets them fresh.
var emptied = []string{
	"/run",
	"/var/lib/dhcp",
	"/var/lib/dhcpcd",
	"/var/lib/NetworkManager",
	"/var/lib/cloud",
}

// mountEmpty lays a fresh tmpfs over dir, for the mount namespace of the calling thread.
func mountEmpty(dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	return nil
}

// mountCopy lays a writable copy of dir over it, for the mount namespace of the calling thread.
// (An overlay would be cheaper, but does not stack on the overlays that containers are made of.)
// What the caller may not read is left out.
func mountCopy(dir string) error {
	source, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("copy %s: %w", dir, err)
	}
	defer source.Close()
	if err := mountEmpty(dir); err != nil {
		return err
	}
	return copyTree(source.FS(), dir)
}

// copyTree copies folders, files and symbolic links of source below target, owners and modes too as
// far as the caller may set them.
func copyTree(source fs.FS, target string) error {
	return fs.WalkDir(source, ".", func(name string, entry fs.DirEntry, err error) error {
		if skippable(err) {
			return nil
		}
		if err != nil {
			return err
		}
		to := filepath.Join(target, name)
		info, err := entry.Info()
		if skippable(err) {
			return nil
		}
		if err != nil {
			return err
		}
		switch info.Mode().Type() {
		case fs.ModeDir:
			err = os.Mkdir(to, info.Mode().Perm())
			if name == "." {
				err = nil
			}
		case fs.ModeSymlink:
			var link string
			link, err = fs.ReadLink(source, name)
			if skippable(err) {
				return nil
			}
			if err == nil {
				err = os.Symlink(link, to)
			}
		case 0:
			var content []byte
			content, err = fs.ReadFile(source, name)
			if skippable(err) {
				return nil
			}
			if err == nil {
				err = os.WriteFile(to, content, info.Mode().Perm())
			}
		default:
			return nil
		}
		if err != nil {
			return err
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			_ = os.Lchown(to, int(stat.Uid), int(stat.Gid))
		}
		return nil
	})
}

// skippable tells that a file may not be read, or that it was removed while the tree is copied.
func skippable(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist)
}
