// Package handovertest plays systemd for tests: it keeps sockets for the daemon as systemd's file
// descriptor store does, and starts the daemon with them.
package handovertest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"vragent/agent/internal/handover"
)

// Keeper is a notification socket with a store behind it, until the test ends. Its methods are safe
// for concurrent use.
type Keeper struct {
	address string
	conn    *net.UnixConn
	told    chan string

	mu   sync.Mutex
	kept []handover.Socket
}

// New returns a keeper with an empty store.
func New(t testing.TB) *Keeper {
	t.Helper()
	k := &Keeper{address: filepath.Join(t.TempDir(), "notify"), told: make(chan string, 64)}
	var err error
	if k.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: k.address, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(k.read)
	t.Cleanup(func() {
		k.conn.Close()
		reading.Wait()
		k.Empty()
	})
	return k
}

// Address is what NOTIFY_SOCKET holds.
func (k *Keeper) Address() string { return k.address }

// Told gives the messages that are not about the store, as READY=1. What nobody takes is dropped.
func (k *Keeper) Told() <-chan string { return k.told }

// Names lists what is kept, sorted.
func (k *Keeper) Names() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	names := make([]string, len(k.kept))
	for i, socket := range k.kept {
		names[i] = socket.Name
	}
	slices.Sort(names)
	return names
}

// Empty closes all that is kept, as systemd does when a unit was stopped.
func (k *Keeper) Empty() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drop(func(handover.Socket) bool { return true })
}

// Inherit returns what is kept as the next process of the unit would get it.
func (k *Keeper) Inherit(t testing.TB) []handover.Socket {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	sockets := slices.Clone(k.kept)
	for i := range sockets {
		fd, err := unix.FcntlInt(uintptr(sockets[i].FD), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		sockets[i].FD = fd
	}
	return sockets
}

// Pass gives what is kept to a command that has not started yet, and tells it so in its environment.
// The test starts it with the returned one.
func (k *Keeper) Pass(t testing.TB, program string, args ...string) *exec.Cmd {
	t.Helper()
	sockets := k.Inherit(t)
	// Nobody knows a process's number before it is there, so a shell says it and becomes the program.
	cmd := exec.Command("/bin/sh", append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, program}, args...)...)
	names := make([]string, len(sockets))
	for i, socket := range sockets {
		file := os.NewFile(uintptr(socket.FD), socket.Name)
		t.Cleanup(func() { file.Close() })
		names[i] = socket.Name
		cmd.ExtraFiles = append(cmd.ExtraFiles, file)
	}
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+k.address,
		fmt.Sprint("LISTEN_FDS=", len(sockets)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	return cmd
}

func (k *Keeper) read() {
	text, control := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*64))
	for {
		n, nc, _, _, err := k.conn.ReadMsgUnix(text, control)
		if err != nil { // the test ends
			return
		}
		k.heed(string(text[:n]), descriptors(control[:nc]))
	}
}

func descriptors(control []byte) []int {
	var fds []int
	messages, _ := unix.ParseSocketControlMessage(control)
	for i := range messages {
		some, _ := unix.ParseUnixRights(&messages[i])
		fds = append(fds, some...)
	}
	return fds
}

// heed does what a message says.
func (k *Keeper) heed(message string, fds []int) {
	fields := make(map[string]string)
	for line := range strings.Lines(message) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		fields[name] = value
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case fields["FDSTORE"] == "1":
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			k.kept = append(k.kept, handover.Socket{Name: fields["FDNAME"], FD: fd})
		}
		return
	case fields["FDSTOREREMOVE"] == "1":
		k.drop(func(s handover.Socket) bool { return s.Name == fields["FDNAME"] })
	case fields["BARRIER"] == "1":
	default:
		select {
		case k.told <- message:
		default:
		}
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// drop closes what is kept and meant. k.mu is held.
func (k *Keeper) drop(meant func(handover.Socket) bool) {
	k.kept = slices.DeleteFunc(k.kept, func(s handover.Socket) bool {
		if !meant(s) {
			return false
		}
		unix.Close(s.FD)
		return true
	})
}
