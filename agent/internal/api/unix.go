package api

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
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

// UnixListener hands out connections whose peers are known. Close removes the socket.
type UnixListener struct {
	*net.UnixListener
	path string
	gid  int // -1: no group
}

// ListenUnix listens on a unix socket at path that root, the caller's own user and the members
// of group may use: mode 0660, or 0600 where there is no such group or it may not be given away.
// Whoever connects is looked at again by the credentials that the kernel reports (see Peer), so
// that a socket whose mode was changed by hand admits nobody else.
//
// A socket left behind by a process that is gone is replaced; one that somebody answers on, or a
// file that is no socket, is an error.
func ListenUnix(path, group string) (*UnixListener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// Nobody may connect before owner and mode are right, so the socket is made where only we
	// can see it and is renamed into its place.
	hidden := path + "." + rand.Text()[:6]
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	gid, err := giveAway(hidden, group)
	if err == nil {
		err = os.Rename(hidden, path)
	}
	if err != nil {
		return nil, errors.Join(err, ln.Close(), os.Remove(hidden))
	}
	return &UnixListener{UnixListener: ln, path: path, gid: gid}, nil
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

// Close stops listening and removes the socket, unless another one has taken its place.
func (l *UnixListener) Close() error {
	own := l.owns()
	err := l.UnixListener.Close()
	if own {
		err = errors.Join(err, os.Remove(l.path))
	}
	return err
}

// owns tells whether the file at the path is still our socket: the kernel knows it by no name
// but the one it was bound to, so a connection decides.
func (l *UnixListener) owns() bool {
	conn, err := net.DialTimeout("unix", l.path, time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	bound, ok := conn.RemoteAddr().(*net.UnixAddr)
	return ok && bound.Name == l.Addr().String()
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
