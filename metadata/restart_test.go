package metadata_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vragent/metadata"
	"vragent/netcfg/nstest"
)

// keptSockets keeps sockets as whoever starts the next process would. It is not safe for concurrent use.
type keptSockets struct {
	t    *testing.T
	kept map[string]int
}

func keepSockets(t *testing.T) *keptSockets {
	k := &keptSockets{t: t, kept: make(map[string]int)}
	t.Cleanup(func() {
		for _, fd := range k.kept {
			unix.Close(fd)
		}
	})
	return k
}

func (k *keptSockets) dup(fd int) int {
	k.t.Helper()
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		k.t.Fatal(err)
	}
	return copied
}

func (k *keptSockets) Open(name string, check func(int) error, open func() (int, error)) (int, error) {
	if fd, ok := k.kept[name]; ok {
		err := check(fd)
		if err == nil {
			return k.dup(fd), nil
		}
		k.t.Errorf("%s: %v", name, err)
		k.Drop(name)
	}
	fd, err := open()
	if err == nil {
		k.kept[name] = k.dup(fd)
	}
	return fd, err
}

func (k *keptSockets) Drop(name string) {
	if fd, ok := k.kept[name]; ok {
		unix.Close(fd)
		delete(k.kept, name)
	}
}

const waitTime = 20 * time.Second

// restart ends the server and starts another one for the same guests.
func (s *site) restart(o metadata.Options) {
	s.t.Helper()
	s.end()
	s.start(o)
	s.server.SetDevices(s.devices)
	if faults := s.server.Faults(); len(faults) != 0 {
		s.t.Fatalf("Faults() = %v", faults)
	}
}

// connect opens a connection as the guest.
func connect(t *testing.T, host *nstest.Host) net.Conn {
	t.Helper()
	c, err := dial(context.Background(), host, "10.1.1.34", "10.1.1.1:80")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(waitTime))
	return c
}

const question = "GET /latest/instance-id HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n"

// answered reads one answer, and tells whether the connection ends with it.
func answered(t *testing.T, r *bufio.Reader) (body string, last bool) {
	t.Helper()
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text), res.Close
}

func TestConnectionsOverARestart(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	sockets := keepSockets(t)
	s, host := small(t, metadata.Options{Sockets: sockets})
	s.server.TakeLeave(waitTime, waitTime) // a slow machine may take its time

	silent := connect(t, host) // has said nothing yet
	half := connect(t, host)   // has said half of what it wants to
	io.WriteString(half, question[:10])
	kept := connect(t, host) // has had an answer
	answers := bufio.NewReader(kept)
	io.WriteString(kept, question)
	if body, last := answered(t, answers); body != "VM-1" || last {
		t.Fatalf("answer = %q, last %v", body, last)
	}
	waits := connect(t, host) // waits for a change
	io.WriteString(waits, strings.Replace(question, " HTTP", "?wait=300 HTTP", 1))
	nstest.Poll(t, waitTime, "the request to wait", func() bool { return s.server.Waiting() == 1 })
	nstest.Poll(t, waitTime, "the connections to be accepted", func() bool { return s.server.Connections() == 4 })

	stopped := make(chan struct{})
	go func() { s.end(); close(stopped) }()

	// The change has not come, and is not going to: the request that waits has its answer at once.
	if body, last := answered(t, bufio.NewReader(waits)); body != "VM-1" || !last {
		t.Errorf("answer to a request that waits = %q, last %v", body, last)
	}
	// From then on each answer is a connection's last.
	io.WriteString(kept, question)
	if body, last := answered(t, answers); body != "VM-1" || !last {
		t.Errorf("answer on a kept connection = %q, last %v", body, last)
	}
	io.WriteString(silent, question)
	if body, last := answered(t, bufio.NewReader(silent)); body != "VM-1" || !last {
		t.Errorf("answer on a new connection = %q, last %v", body, last)
	}
	io.WriteString(half, question[10:])
	if body, last := answered(t, bufio.NewReader(half)); body != "VM-1" || !last {
		t.Errorf("answer to a request in two pieces = %q, last %v", body, last)
	}
	<-stopped

	// Nobody is there, and nobody is turned away.
	between := connect(t, host)
	io.WriteString(between, question)
	s.restart(metadata.Options{Sockets: sockets})
	if body, last := answered(t, bufio.NewReader(between)); body != "VM-1" || last {
		t.Errorf("answer on a connection from before = %q, last %v", body, last)
	}

	s.server.SetDevices(nil)
	if len(sockets.kept) != 0 {
		t.Errorf("kept without a device: %v", sockets.kept)
	}
}

// A connection that was opened just before the server stops, and that brings its request only when the
// server has stopped listening, is answered.
func TestNewConnectionOutlivesItsListener(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	sockets := keepSockets(t)
	s, host := small(t, metadata.Options{Sockets: sockets})
	for range 5 {
		s.server.TakeLeave(time.Millisecond, waitTime)
		c := connect(t, host)
		nstest.Poll(t, waitTime, "the connection to be accepted", func() bool { return s.server.Connections() == 1 })
		stopped := make(chan struct{})
		go func() { s.end(); close(stopped) }()
		nstest.Poll(t, waitTime, "the server not to listen", func() bool { return s.server.Stats().Listeners["metadata"] == 0 })
		io.WriteString(c, question)
		if body, last := answered(t, bufio.NewReader(c)); body != "VM-1" || !last {
			t.Errorf("answer = %q, last %v", body, last)
		}
		<-stopped
		s.restart(metadata.Options{Sockets: sockets})
	}
}

func TestNoRequestFailsOverRestarts(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	sockets := keepSockets(t)
	s, host := small(t, metadata.Options{Sockets: sockets})
	var asking sync.WaitGroup
	var done atomic.Bool
	var count atomic.Int64
	for i := range 8 {
		c := client(t, host, "10.1.1.34")
		c.Transport.(*http.Transport).DisableKeepAlives = i%2 == 0
		asking.Go(func() {
			for !done.Load() {
				a, err := tryAsk(c, http.MethodGet, "http://10.1.1.1/latest/instance-id")
				if err != nil || a.Status != http.StatusOK || a.Body != "VM-1" {
					t.Errorf("%d %q, %v", a.Status, a.Body, err)
				}
				count.Add(1)
			}
		})
	}
	for range 20 {
		before := count.Load()
		nstest.Poll(t, waitTime, "requests to be answered", func() bool { return count.Load() >= before+50 })
		s.restart(metadata.Options{Sockets: sockets})
	}
	done.Store(true)
	asking.Wait()
}

func TestSocketThatIsNotThePlacesIsRefused(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	for _, name := range []string{"eth0", "eth1"} {
		nstest.Pair(t, router, name, nstest.NewHost(t, name), "eth0")
	}
	eth0, eth1 := router.Link(t, "eth0").Attrs().Index, router.Link(t, "eth1").Attrs().Index
	address := netip.MustParseAddr("10.1.1.1")
	tcp := func(device int, address string, port int, listening bool) func() (int, error) {
		return func() (int, error) {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1),
				unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, device),
				unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: netip.MustParseAddr(address).As4()}))
			if listening {
				err = errors.Join(err, unix.Listen(fd, 1))
			}
			return fd, err
		}
	}
	other := func(family, kind int) func() (int, error) {
		return func() (int, error) { return unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0) }
	}
	for name, test := range map[string]struct {
		open  func() (int, error)
		right bool
	}{
		"right":           {open: tcp(eth0, "10.1.1.1", 80, true), right: true},
		"another device":  {open: tcp(eth1, "10.1.1.1", 80, true)},
		"every device":    {open: tcp(0, "10.1.1.1", 80, true)},
		"another address": {open: tcp(eth0, "10.1.1.2", 80, true)},
		"every address":   {open: tcp(eth0, "0.0.0.0", 80, true)},
		"another port":    {open: tcp(eth0, "10.1.1.1", 8080, true)},
		"not listening":   {open: tcp(eth0, "10.1.1.1", 80, false)},
		"UDP":             {open: other(unix.AF_INET, unix.SOCK_DGRAM)},
		"IPv6":            {open: other(unix.AF_INET6, unix.SOCK_STREAM)},
		"unix":            {open: other(unix.AF_UNIX, unix.SOCK_STREAM)},
		"no socket":       {open: func() (int, error) { return unix.EpollCreate1(unix.EPOLL_CLOEXEC) }},
	} {
		t.Run(name, func(t *testing.T) {
			fd, err := test.open()
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if err := metadata.CheckSocket(fd, eth0, address, 80); (err == nil) != test.right {
				t.Errorf("checkSocket() = %v", err)
			}
		})
	}
}
