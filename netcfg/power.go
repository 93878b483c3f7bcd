package netcfg

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Powers are the things that this process is allowed to do, by capability or otherwise. They are decided
// when the process starts and do not change.
type Powers struct {
	NetAdmin       bool // change addresses and neighbor entries
	NetRaw         bool // send and receive whole frames
	NetBindService bool // listen on ports 67 and 80
	Lease          bool // take leases on files of other users
}

// ReadPowers tells what this process may do in the network namespace of the calling thread. A capability
// counts only where it is in force: in a user namespace that owns the network namespace or lies above
// its owner, and for leases on files in the first user namespace.
func ReadPowers() (Powers, error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return Powers{}, fmt.Errorf("capabilities: %w", err)
	}
	has := func(capability uint) bool { return data[capability/32].Effective&(1<<(capability%32)) != 0 }
	overNetwork, err := governsNetwork()
	if err != nil {
		return Powers{}, err
	}
	first, err := inFirstUserNamespace()
	if err != nil {
		return Powers{}, err
	}
	return Powers{
		NetAdmin:       has(unix.CAP_NET_ADMIN) && overNetwork,
		NetRaw:         has(unix.CAP_NET_RAW) && overNetwork,
		NetBindService: has(unix.CAP_NET_BIND_SERVICE) && overNetwork || firstFreePort() <= 67,
		Lease:          has(unix.CAP_LEASE) && first,
	}, nil
}

// governsNetwork tells whether capabilities of this process count in its network namespace: whether its
// user namespace is the owner's or one above it.
func governsNetwork() (bool, error) {
	own, err := inode("/proc/thread-self/ns/user")
	if err != nil {
		return false, err
	}
	network, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return false, fmt.Errorf("network namespace: %w", err)
	}
	defer network.Close()
	// The kernel refuses the step to a namespace that is not below ours (EPERM).
	owner, err := unix.IoctlRetInt(int(network.Fd()), unix.NS_GET_USERNS)
	for err == nil {
		var stat unix.Stat_t
		if err := unix.Fstat(owner, &stat); err != nil {
			unix.Close(owner)
			return false, fmt.Errorf("user namespace: %w", err)
		}
		if stat.Ino == own {
			unix.Close(owner)
			return true, nil
		}
		var parent int
		parent, err = unix.IoctlRetInt(owner, unix.NS_GET_PARENT)
		unix.Close(owner)
		owner = parent
	}
	return false, nil
}

// firstUserNamespace is PROC_USER_INIT_INO, the inode of the user namespace that a machine starts with.
const firstUserNamespace = 0xEFFFFFFD

func inFirstUserNamespace() (bool, error) {
	own, err := inode("/proc/thread-self/ns/user")
	return own == firstUserNamespace, err
}

func inode(name string) (uint64, error) {
	var stat unix.Stat_t
	if err := unix.Stat(name, &stat); err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return stat.Ino, nil
}

// firstFreePort returns the lowest port that needs no capability; 1024 if the kernel does not say.
func firstFreePort() int {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		return 1024
	}
	port, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 1024
	}
	return port
}
