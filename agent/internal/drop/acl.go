package drop

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Entries of an access control list, as the kernel takes them in the extended
// attribute (see acl(5) and linux/posix_acl_xattr.h).
const (
	aclDefault = "system.posix_acl_default"
	aclVersion = 2

	aclUserObj  = 0x01
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20

	aclNoID = 0xffffffff
	aclAll  = 7
)

// groupACL gives owner and group everything, and others nothing, whatever
// umask a file is made with.
func groupACL(gid int) []byte {
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{
		{aclUserObj, aclAll, aclNoID},
		{aclGroupObj, aclAll, aclNoID},
		{aclGroup, aclAll, uint32(gid)},
		{aclMask, aclAll, aclNoID},
		{aclOther, 0, aclNoID},
	} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// admitsGroup tells whether a default list lets the group do everything.
func admitsGroup(acl []byte, gid int) bool {
	if len(acl) < 4 || binary.LittleEndian.Uint32(acl) != aclVersion {
		return false
	}
	group, mask := false, false
	for e := acl[4:]; len(e) >= 8; e = e[8:] {
		all := binary.LittleEndian.Uint16(e[2:])&aclAll == aclAll
		switch binary.LittleEndian.Uint16(e) {
		case aclGroup:
			group = group || all && binary.LittleEndian.Uint32(e[4:]) == uint32(gid)
		case aclMask:
			mask = all
		}
	}
	return group && mask
}

// admitGroup sees to it that what is made in folder is open to the group.
func admitGroup(folder string, gid int) error {
	have := make([]byte, 1<<10)
	n, err := unix.Getxattr(folder, aclDefault, have)
	if err == nil && admitsGroup(have[:n], gid) {
		return nil
	}
	if err := unix.Setxattr(folder, aclDefault, groupACL(gid), 0); err != nil {
		return fmt.Errorf("%s: set default access control list: %w", folder, err)
	}
	return nil
}

// makeFolder makes a folder for the group, gid -1 for none, unless it is there.
func makeFolder(folder string, gid int) error {
	err := os.Mkdir(folder, 0o770)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := giveToGroup(folder, gid); err != nil {
		return err
	}
	return openToGroup(folder)
}

// giveToGroup sees to it that folder belongs to the group, gid -1 for none.
// Most have it from the folder around them, and then a daemon does without the
// right to change owners, which its unit takes from it.
func giveToGroup(folder string, gid int) error {
	var stat unix.Stat_t
	if err := unix.Stat(folder, &stat); err != nil {
		return fmt.Errorf("%s: %w", folder, err)
	}
	if gid < 0 || int(stat.Gid) == gid {
		return nil
	}
	return os.Chown(folder, -1, gid)
}

// openToGroup gives a new folder to owner and group, whatever the umask, and
// has what is made in it belong to the same group.
func openToGroup(folder string) error {
	const mode = 0o770 | os.ModeSetgid
	info, err := os.Stat(folder)
	if err != nil {
		return err
	}
	if info.Mode()&(os.ModePerm|os.ModeSetgid) == mode {
		return nil // inherited from the parent
	}
	// The group's bits are also the mask of an access control list.
	err = os.Chmod(folder, mode)
	if errors.Is(err, os.ErrPermission) {
		// systemd's RestrictSUIDSGID= refuses the bit even where it changes
		// nothing. Then what is made in the folder gets the agent's own group.
		err = os.Chmod(folder, mode&os.ModePerm)
	}
	return err
}
