package handover_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vragent/agent/internal/handover"
	"vragent/agent/internal/handover/handovertest"
	"vragent/netcfg/nstest"
)

// listen opens a listener on a port of the loopback device, 0 for any.
func listen(port int) func() (int, error) {
	return func() (int, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return -1, err
		}
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
		if err == nil {
			err = unix.Listen(fd, 8)
		}
		if err != nil {
			return -1, errors.Join(err, unix.Close(fd))
		}
		return fd, nil
	}
}

func portOf(t *testing.T, fd int) int {
	t.Helper()
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return name.(*unix.SockaddrInet4).Port
}

func isRight(int) error { return nil }

func unwanted() (int, error) { return -1, errors.New("opened anew") }

// open opens a socket that is closed with the test.
func open(t *testing.T, s *handover.Store, name string, check func(int) error, how func() (int, error)) int {
	t.Helper()
	fd, err := s.Open(name, check, how)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func keeps(t *testing.T, k *handovertest.Keeper, want ...string) {
	t.Helper()
	nstest.Poll(t, 10*time.Second, fmt.Sprintf("%q to be kept", want), func() bool {
		return cmp.Equal(want, k.Names()) || len(want)+len(k.Names()) == 0
	})
}

func TestConnectionWaitsForTheNextProcess(t *testing.T) {
	k := handovertest.New(t)
	first := handover.New(handover.Options{Notify: k.Address()})
	fd, err := first.Open("api.listen", isRight, listen(0))
	if err != nil {
		t.Fatal(err)
	}
	port := portOf(t, fd)
	keeps(t, k, "api.listen")
	unix.Close(fd)

	client, err := net.Dial("tcp4", fmt.Sprint("127.0.0.1:", port))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()

	second := handover.New(handover.Options{Notify: k.Address(), Inherited: k.Inherit(t)})
	fd = open(t, second, "api.listen", isRight, unwanted)
	conn, from, err := unix.Accept(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(conn)
	if want := client.LocalAddr().(*net.TCPAddr).Port; from.(*unix.SockaddrInet4).Port != want {
		t.Errorf("connection from port %d, want %d", from.(*unix.SockaddrInet4).Port, want)
	}
	keeps(t, k, "api.listen") // still, and once
}

func TestSocketsOfTheProcessBefore(t *testing.T) {
	wrong := func(int) error { return errors.New("not ours") }
	for name, test := range map[string]struct {
		before []string // names under which the process before kept something
		check  func(int) error
		taken  bool
		kept   []string // after "a" was opened and what is left was dropped
	}{
		"right":               {before: []string{"a"}, check: isRight, taken: true, kept: []string{"a"}},
		"wrong":               {before: []string{"a"}, check: wrong, kept: []string{"a"}},
		"two of one name":     {before: []string{"a", "a"}, check: isRight, kept: []string{"a"}},
		"of another name":     {before: []string{"b"}, check: isRight, kept: []string{"a"}},
		"one wanted, one not": {before: []string{"a", "b"}, check: isRight, taken: true, kept: []string{"a"}},
		"none":                {check: isRight, kept: []string{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			k := handovertest.New(t)
			first := handover.New(handover.Options{Notify: k.Address()})
			ports := make(map[int]bool)
			for _, name := range test.before {
				ports[portOf(t, open(t, first, name, isRight, listen(0)))] = true
			}
			nstest.Poll(t, 10*time.Second, "sockets to be kept", func() bool { return len(k.Names()) == len(test.before) })

			second := handover.New(handover.Options{Notify: k.Address(), Inherited: k.Inherit(t)})
			fd := open(t, second, "a", test.check, listen(0))
			second.Prune()
			if taken := ports[portOf(t, fd)]; taken != test.taken {
				t.Errorf("taken over: %v, want %v", taken, test.taken)
			}
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
				t.Errorf("flags %#x, %v; want O_NONBLOCK", flags, err)
			}
			keeps(t, k, test.kept...)
		})
	}
}

// An address that is dropped and wanted again at once is free again although systemd needs a moment to
// let go of it.
func TestDroppedSocketDoesNotStandInItsSuccessorsWay(t *testing.T) {
	k := handovertest.New(t)
	s := handover.New(handover.Options{Notify: k.Address()})
	fd, err := s.Open("a", isRight, listen(0))
	if err != nil {
		t.Fatal(err)
	}
	port := portOf(t, fd)
	for range 100 {
		unix.Close(fd)
		s.Drop("a")
		if fd, err = s.Open("a", isRight, listen(port)); err != nil {
			t.Fatal(err)
		}
	}
	unix.Close(fd)
	s.Drop("a")
	keeps(t, k)
}

func TestStoreThatNobodyKeeps(t *testing.T) {
	for name, notify := range map[string]string{"no systemd": "", "systemd is gone": "/nonexistent/notify"} {
		t.Run(name, func(t *testing.T) {
			s := handover.New(handover.Options{Notify: notify})
			open(t, s, "a", isRight, listen(0))
			s.Drop("a")
			s.Prune()
			if s.Keeps() != (notify != "") {
				t.Errorf("Keeps() = %v", s.Keeps())
			}
		})
	}
}

func TestNameThatSystemdWouldMisread(t *testing.T) {
	s := handover.New(handover.Options{})
	for _, name := range []string{"", "a:b", "a\nFDSTOREREMOVE=1", "a b", strings.Repeat("a", 256)} {
		if fd, err := s.Open(name, isRight, listen(0)); err == nil {
			unix.Close(fd)
			t.Errorf("Open(%q) succeeded", name)
		}
	}
}

// TestMain is the process that TestInheritedComesFromTheEnvironment starts, too.
func TestMain(m *testing.M) {
	if os.Getenv("HANDOVER_TEST") == "" {
		os.Exit(m.Run())
	}
	for _, s := range handover.Inherited() {
		flags, err := unix.FcntlInt(uintptr(s.FD), unix.F_GETFD, 0)
		fmt.Println(s.Name, s.FD, flags&unix.FD_CLOEXEC != 0, err)
	}
	fmt.Println(len(handover.Inherited()), os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES"))
}

func TestInheritedComesFromTheEnvironment(t *testing.T) {
	k := handovertest.New(t)
	s := handover.New(handover.Options{Notify: k.Address()})
	open(t, s, "dhcp.3", isRight, listen(0))
	open(t, s, "dhcp.offers", isRight, func() (int, error) { return unix.MemfdCreate("offers", unix.MFD_CLOEXEC) })
	keeps(t, k, "dhcp.3", "dhcp.offers")
	const none = "0   \n"
	both := "dhcp.3 3 true <nil>\ndhcp.offers 4 true <nil>\n" + none
	for name, test := range map[string]struct {
		env  []string
		want string
	}{
		"as systemd does":     {want: both},
		"for another process": {env: []string{"LISTEN_PID=" + strconv.Itoa(os.Getpid())}, want: none},
		"no number":           {env: []string{"LISTEN_FDS=many"}, want: none},
		"fewer than names":    {env: []string{"LISTEN_FDS=1"}, want: "dhcp.3 3 true <nil>\n" + none},
		"more than there are": {env: []string{"LISTEN_FDS=1000", "LISTEN_FDNAMES=dhcp.3:dhcp.offers:c"}, want: both},
		"none":                {env: []string{"LISTEN_FDS=0"}, want: none},
		"negative":            {env: []string{"LISTEN_FDS=-1"}, want: none},
	} {
		t.Run(name, func(t *testing.T) {
			program, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			// env comes after the shell that sets LISTEN_PID.
			cmd := k.Pass(t, "env", append(test.env, program)...)
			cmd.Env = append(cmd.Env, "HANDOVER_TEST=1", "GORACE=atexit_sleep_ms=0")
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if diff := cmp.Diff(test.want, string(out)); diff != "" {
				t.Errorf("the process found (-want +got):\n%s", diff)
			}
		})
	}
}
