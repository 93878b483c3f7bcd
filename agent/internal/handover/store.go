package handover

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Options are what a Store can be given. All may be left out.
type Options struct {
	// Notify is the address of systemd's notification socket, as in NOTIFY_SOCKET. Without it no
	// socket outlives the process.
	Notify string
	// Inherited are the sockets of the process before this one. The Store owns them from now on.
	Inherited []Socket
	Log       *slog.Logger // nil discards
}

// Store opens sockets that outlive the process. Its methods are safe for concurrent use.
type Store struct {
	notify string
	log    *slog.Logger

	mu        sync.Mutex
	inherited map[string][]int // by name, not handed out yet
	dropped   bool             // something was, since the last barrier
}

const (
	// sendTime is how long systemd may take to read what it is told before it is told no more.
	sendTime = time.Second
	// barrierTime is how long systemd may take to do what it was told.
	barrierTime = 2 * time.Second
	// maxName is the length of the longest name that systemd takes.
	maxName = 255
)

// New returns a store.
func New(o Options) *Store {
	s := &Store{notify: o.Notify, log: o.Log, inherited: make(map[string][]int)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, socket := range o.Inherited {
		s.inherited[socket.Name] = append(s.inherited[socket.Name], socket.FD)
	}
	return s
}

// Keeps tells whether sockets outlive the process.
func (s *Store) Keeps() bool { return s.notify != "" }

// Open returns the socket that the process before this one had under the name, once, if check finds it
// right. Else it returns what open returns, which is kept under the name from now on. The caller owns
// the descriptor. Errors are those of open; that a socket cannot be kept is logged and no more.
//
// A name is 1 to 255 of A-Za-z0-9.-, and belongs to one socket at a time: see Drop.
func (s *Store) Open(name string, check func(fd int) error, open func() (fd int, err error)) (int, error) {
	if !sound(name) {
		return -1, fmt.Errorf("%q names no socket", name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if fds := s.inherited[name]; len(fds) > 0 {
		delete(s.inherited, name)
		err := errors.New("the name is not the only one of its kind")
		if len(fds) == 1 {
			if err = right(fds[0], check); err == nil {
				s.log.Debug("socket taken over", "socket", name)
				return fds[0], nil
			}
		}
		s.log.Info("socket not taken over", "socket", name, "reason", err)
		s.discard(name, fds)
	}
	fd, err := open()
	if errors.Is(err, unix.EADDRINUSE) && s.dropped {
		// By the socket that was dropped, as long as systemd has not read that it was.
		s.barrier()
		fd, err = open()
	}
	if err != nil {
		return -1, err
	}
	if s.Keeps() {
		// Without FDPOLL=0 systemd lets go of a socket that has an error to tell, as one does whose
		// link is down for a moment.
		if err := s.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, fd); err != nil {
			s.log.Warn("socket ends with this process", "socket", name, "reason", err)
		}
	}
	return fd, nil
}

// right checks a socket of the process before this one and readies it for the runtime's poller.
func right(fd int, check func(fd int) error) error {
	if err := check(fd); err != nil {
		return err
	}
	return unix.SetNonblock(fd, true)
}

// Drop says that the socket of a name is wanted no longer, by the next process either. Its owner
// closes it.
func (s *Store) Drop(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.discard(name, s.inherited[name])
	delete(s.inherited, name)
}

// Prune drops the sockets of the process before this one that nobody has opened: their device is gone
// or the configuration has changed.
func (s *Store) Prune() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.inherited)) {
		s.log.Info("socket not taken over", "socket", name, "reason", "nothing is served on it any more")
		s.discard(name, s.inherited[name])
	}
	clear(s.inherited)
}

// discard closes descriptors and has systemd close its own. s.mu is held.
func (s *Store) discard(name string, fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // of a descriptor that nothing was done with
	}
	if !s.Keeps() || !sound(name) {
		return
	}
	s.dropped = true
	if err := s.send("FDSTOREREMOVE=1\nFDNAME=" + name); err != nil {
		s.log.Warn("socket stays open in systemd", "socket", name, "reason", err)
	}
}

// sound tells whether a name can stand in a message to systemd and in the environment.
func sound(name string) bool {
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '-' {
			return false
		}
	}
	return name != "" && len(name) <= maxName
}

// barrier waits until systemd has done what it was told so far: it closes the descriptor that it is
// sent when it comes to it. s.mu is held.
func (s *Store) barrier() {
	s.dropped = false
	r, w, err := os.Pipe()
	if err == nil {
		defer r.Close()
		err = errors.Join(s.send("BARRIER=1", int(w.Fd())), w.Close(), r.SetReadDeadline(time.Now().Add(barrierTime)))
	}
	if err == nil {
		_, err = r.Read(make([]byte, 1))
	}
	if err != io.EOF {
		s.log.Warn("systemd does not say that it has closed a socket", "reason", err)
	}
}

// send tells systemd something, with descriptors that go with it.
func (s *Store) send(text string, fds ...int) error {
	conn, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket to systemd: %w", err)
	}
	defer unix.Close(conn)
	patience := unix.NsecToTimeval(int64(sendTime))
	if err := unix.SetsockoptTimeval(conn, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience); err != nil {
		return fmt.Errorf("socket to systemd: %w", err)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for {
		err = unix.Sendmsg(conn, []byte(text), rights, &unix.SockaddrUnix{Name: s.notify}, 0)
		if err != unix.EINTR {
			return os.NewSyscallError("sendmsg", err)
		}
	}
}
