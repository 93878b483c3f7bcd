package handover

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Socket is a descriptor that came from the store: a socket, or a memory file of what goes with one.
// Whoever takes the value owns the descriptor.
type Socket struct {
	Name string
	FD   int
}

// firstFD is the first descriptor that a process gets from systemd, sd_listen_fds(3).
const firstFD = 3

// Inherited returns the sockets that systemd has passed to this process, and takes what tells of them
// out of the environment: a second call returns none. Descriptors close in programs that this process
// starts.
func Inherited() []Socket {
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")
	for _, name := range []string{"LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	if pid != strconv.Itoa(os.Getpid()) { // meant for the process that started this one
		return nil
	}
	n, err := strconv.Atoi(count)
	if err != nil {
		return nil
	}
	var sockets []Socket
	for i, name := range strings.Split(names, ":") {
		if i >= n {
			break
		}
		fd := firstFD + i
		if !isSocket(fd) && !isMemory(fd) {
			continue // something else in this process, that we were not told the truth about
		}
		unix.CloseOnExec(fd)
		sockets = append(sockets, Socket{Name: name, FD: fd})
	}
	return sockets
}

func isSocket(fd int) bool {
	var info unix.Stat_t
	return unix.Fstat(fd, &info) == nil && info.Mode&unix.S_IFMT == unix.S_IFSOCK
}

// isMemory tells whether a descriptor is a memory file: these alone have seals, memfd_create(2).
func isMemory(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	return err == nil
}
