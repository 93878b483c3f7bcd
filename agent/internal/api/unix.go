package api

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Peer is the process at the other end of a unix socket, as the kernel knew it when it connected.
type Peer struct {
	PID    int
	UID    int
	GIDs   []int // the primary group first
	Trust  bool  // root, the daemon's own user or a member of the socket's group
	Socket string
}

// String tells who the peer is, for logs: "root (pid 812)".
func (p Peer) String() string {
	name := "uid " + strconv.Itoa(p.UID)
	if u, err := user.LookupId(strconv.Itoa(p.UID)); err == nil {
		name = u.Username
	}
	return fmt.Sprintf("%s (pid %d)", name, p.PID)
}

// UnixListener hands out connections whose peers are known. Close removes the socket, unless it
// outlives the process.
type UnixListener struct {
	*net.UnixListener
	path string
	gid  int // -1: no group
	kept bool
}

// ListenUnix listens on a unix socket at path that root, the caller's own user and the members
// of group may use: mode 0660, or 0600 where there is no such group or it may not be given away.
// Whoever connects is looked at again by the credentials that the kernel reports (see Peer), so
// that a socket whose mode was changed by hand admits nobody else.
//
// A socket left behind by a process that is gone is replaced; one that somebody answers on, or a
// file that is no socket, is an error. Nil sockets end with the process.
func ListenUnix(path, group string, sockets Sockets) (*UnixListener, error) {
	if sockets == nil {
		sockets = ownSockets{}
	}
	fd, err := sockets.Open(unixSocket,
		func(fd int) error { return checkUnix(fd, path) },
		func() (int, error) { return openUnix(path, group) })
	if err != nil {
		return nil, err
	}
	gid, err := giveAway(path, group) // once more: the group may be another one by now
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	ln, err := listener(fd)
	if err != nil {
		return nil, err
	}
	return &UnixListener{UnixListener: ln.(*net.UnixListener), path: path, gid: gid, kept: sockets.Keeps()}, nil
}

func openUnix(path, group string) (int, error) {
	if err := removeStale(path); err != nil {
		return -1, err
	}
	// Nobody may connect before owner and mode are right, so the socket is made where only we
	// can see it and is renamed into its place.
	hidden := path + "." + rand.Text()[:6]
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if errors.Is(err, fs.ErrNotExist) {
		return -1, fmt.Errorf("the folder of %s is not there: make it, or name another api.socket", path)
	}
	if err != nil {
		return -1, err
	}
	ln.SetUnlinkOnClose(false)
	fd, err := descriptor(ln)
	if err == nil {
		_, err = giveAway(hidden, group)
	}
	if err == nil {
		err = os.Rename(hidden, path)
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return -1, errors.Join(err, os.Remove(hidden))
	}
	return fd, nil
}

// checkUnix tells what a socket of the process before this one lacks to be the one at path.
func checkUnix(fd int, path string) error {
	bound, err := checkListening(fd, unix.AF_UNIX)
	if err != nil {
		return err
	}
	at, ok := bound.(*unix.SockaddrUnix)
	if !ok || !leadsTo(path, at.Name) {
		return fmt.Errorf("it is not the socket at %s", path)
	}
	return nil
}

// giveAway sets group and mode of the socket and returns the group's id, or -1.
func giveAway(path, group string) (int, error) {
	mode, gid := os.FileMode(0o600), -1
	if g, err := user.LookupGroup(group); err == nil {
		id, err := strconv.Atoi(g.Gid)
		if err != nil {
			return -1, fmt.Errorf("group %s: %w", group, err)
		}
		// Run with that group, as its unit does, the daemon has nothing to give away, and the unit's filter
		// leaves it no chown.
		if groupOf(path) == id || os.Chown(path, -1, id) == nil {
			mode, gid = 0o660, id
		}
	}
	return gid, os.Chmod(path, mode)
}

// groupOf returns the id of the group that path belongs to, or -1.
func groupOf(path string) int {
	var stat unix.Stat_t
	if unix.Lstat(path, &stat) != nil {
		return -1
	}
	return int(stat.Gid)
}

// removeStale removes the socket at path if nobody answers on it.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s is there and is no socket: remove it", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("%s: another daemon answers on it", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("%s is there, and whether a daemon answers on it cannot be told: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Accept waits for a connection. Its peer is found with PeerFrom in the context of its requests.
func (l *UnixListener) Accept() (net.Conn, error) {
	conn, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	peer, err := peerOf(conn)
	if err != nil {
		// The peer is gone already, or the kernel does not tell: it is a stranger.
		peer = Peer{UID: -1}
	}
	peer.Socket = l.path
	peer.Trust = peer.UID == 0 || peer.UID == os.Geteuid() || l.gid >= 0 && slices.Contains(peer.GIDs, l.gid)
	return &peerConn{UnixConn: conn, peer: peer}, nil
}

// Close stops listening and removes the socket, unless another one has taken its place or it outlives
// the process.
func (l *UnixListener) Close() error {
	own := !l.kept && leadsTo(l.path, l.Addr().String())
	err := l.UnixListener.Close()
	if own {
		// Two that close it at the same time both find it theirs.
		if gone := os.Remove(l.path); !errors.Is(gone, os.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}
	return err
}

// leadsTo tells whether the file at path is the socket that was bound to name: the kernel knows it by
// no other name, so a connection decides.
func leadsTo(path, name string) bool {
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	bound, ok := conn.RemoteAddr().(*net.UnixAddr)
	return ok && bound.Name == name
}

// peerConn is a connection with the credentials of who opened it.
type peerConn struct {
	*net.UnixConn
	peer Peer
}

func peerOf(conn *net.UnixConn) (Peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var peer Peer
	var failed error
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			failed = fmt.Errorf("SO_PEERCRED: %w", err)
			return
		}
		groups, err := peerGroups(fd)
		if err != nil {
			failed = fmt.Errorf("SO_PEERGROUPS: %w", err)
			return
		}
		peer = Peer{PID: int(cred.Pid), UID: int(cred.Uid), GIDs: append([]int{int(cred.Gid)}, groups...)}
	})
	return peer, errors.Join(err, failed)
}

// peerGroups returns the supplementary groups of the peer, unix(7) SO_PEERGROUPS.
func peerGroups(fd uintptr) ([]int, error) {
	buf := make([]byte, 4*64)
	n, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS, buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, 4*65536) // NGROUPS_MAX
		n, err = getsockopt(fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS, buf)
	}
	if err != nil {
		return nil, err
	}
	var groups []int
	for b := buf[:n]; len(b) >= 4; b = b[4:] {
		groups = append(groups, int(binary.NativeEndian.Uint32(b)))
	}
	return groups, nil
}

// getsockopt reads an option whose value is bytes; package unix has it for values of known types.
func getsockopt(fd uintptr, level, option int, buf []byte) (int, error) {
	size := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(size), nil
}

type peerKey struct{}

// PeerFrom returns the local process that a request came from; false for a request over TCP.
func PeerFrom(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(peerKey{}).(Peer)
	return p, ok
}
