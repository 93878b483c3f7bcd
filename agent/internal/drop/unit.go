package drop

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Kind tells what a unit describes.
type Kind string

const (
	Network Kind = "network"
	VM      Kind = "vm"
)

// folder is the kind's folder below the drop directory.
func (k Kind) folder() string {
	if k == Network {
		return networksFolder
	}
	return vmsFolder
}

const (
	networksFolder = "networks"
	vmsFolder      = "vms"
	networkSuffix  = ".yaml"
)

// Unit is what changes as one: a network's file or a VM's folder.
type Unit struct {
	Kind Kind
	Name string
}

// Path is the unit's place below the drop directory: networks/guest-1.yaml or
// vms/i-2-34-VM.
func (u Unit) Path() string {
	if u.Kind == Network {
		return networksFolder + "/" + u.Name + networkSuffix
	}
	return vmsFolder + "/" + u.Name
}

func (u Unit) String() string { return u.Path() }

// valid tells whether the unit can exist.
func (u Unit) valid() bool {
	return (u.Kind == Network || u.Kind == VM) && ValidName(u.Name)
}

// Names of the files in a VM's folder that are read.
const (
	VMFile         = "vm.yaml"
	MetaDataFile   = "meta-data.yaml"
	UserDataFile   = "user-data"
	VendorDataFile = "vendor-data"
	PasswordFile   = "password"
)

// vmFiles are the files of a VM, the one that makes it exist last.
var vmFiles = [...]string{MetaDataFile, UserDataFile, VendorDataFile, PasswordFile, VMFile}

// Limit is the size in bytes of the largest file that is read.
func Limit(kind Kind, file string) int64 {
	switch {
	case kind == Network:
		return 256 << 10
	case file == VMFile:
		return 256 << 10
	case file == MetaDataFile:
		return 64 << 10
	case file == PasswordFile:
		return 4 << 10
	default: // user data and vendor data
		return 1 << 20
	}
}

func isVMFile(name string) bool {
	for _, f := range vmFiles {
		if f == name {
			return true
		}
	}
	return false
}

// ValidName tells whether name can be that of a network or a VM: 1 to 128 of
// A-Za-z0-9._- that do not begin with a dot and are not passed over as a
// temporary name.
func ValidName(name string) bool {
	if len(name) < 1 || len(name) > 128 || passedOver(name) {
		return false
	}
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// passedOver tells whether a name belongs to a copy under way or an editor.
func passedOver(name string) bool {
	return strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".tmp") ||
		strings.HasSuffix(name, ".swp") || strings.HasSuffix(name, "~")
}

// networkUnit returns the unit of a file in the folder of networks.
func networkUnit(file string) (Unit, bool) {
	name, ok := strings.CutSuffix(file, networkSuffix)
	return Unit{Network, name}, ok && !passedOver(file) && ValidName(name)
}

// ParsePath returns the unit that a path below the drop directory belongs to:
// the unit's own path, or that of a file in a VM's folder.
func ParsePath(path string) (Unit, error) {
	parts := strings.Split(filepath.Clean(path), "/")
	switch {
	case len(parts) == 2 && parts[0] == networksFolder:
		if u, ok := networkUnit(parts[1]); ok {
			return u, nil
		}
	case (len(parts) == 2 || len(parts) == 3) && parts[0] == vmsFolder && ValidName(parts[1]):
		return Unit{VM, parts[1]}, nil
	}
	return Unit{}, fmt.Errorf("%s: neither networks/NAME.yaml nor vms/NAME", path)
}
