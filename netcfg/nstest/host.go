package nstest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Host is a machine of the test: a network namespace with the mounts and the host name that belong to
// it. Its methods may be called from any goroutine, with the t of the test or subtest that is to fail.
// A Host lasts until the test that made it ends.
type Host struct {
	name  string
	here  bool             // the namespaces of the test process itself
	files map[int]*os.File // open namespaces by their CLONE_NEW flag
	links *netlink.Handle  // speaks with this host's kernel
}

// Here returns the test's own namespaces as a Host: the place where code of the test runs that is not
// told otherwise.
func Here(t testing.TB) *Host {
	t.Helper()
	mustBeInside(t)
	h := &Host{name: "router", here: true, files: map[int]*os.File{}}
	t.Cleanup(h.close)
	if err := h.open(); err != nil {
		t.Fatalf("host %s: %v", h.name, err)
	}
	return h
}

// NewHost makes a host with network, mount and uts namespaces of its own. Its loopback link is up; it
// has no other. Folders in which programs keep state (/run, /var/lib/dhcp and the like) are empty, /etc
// is a copy. The name is its host name.
func NewHost(t testing.TB, name string) *Host {
	t.Helper()
	mustBeInside(t)
	h := &Host{name: name, files: map[int]*os.File{}}
	t.Cleanup(h.close)
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := furnish(name); err != nil {
			return err
		}
		return h.open()
	})
	if err != nil {
		t.Fatalf("host %s: %v", name, err)
	}
	return h
}

// open takes hold of the namespaces of the calling thread.
func (h *Host) open() error {
	for flag, file := range map[int]string{unix.CLONE_NEWNET: "net", unix.CLONE_NEWNS: "mnt", unix.CLONE_NEWUTS: "uts"} {
		f, err := os.Open("/proc/thread-self/ns/" + file)
		if err != nil {
			return err
		}
		h.files[flag] = f
	}
	var err error
	h.links, err = netlink.NewHandle(unix.NETLINK_ROUTE)
	return err
}

// close lets the namespaces go.
func (h *Host) close() {
	if h.links != nil {
		h.links.Close()
	}
	for _, f := range h.files {
		f.Close()
	}
}

func mustBeInside(t testing.TB) {
	t.Helper()
	if !entered {
		t.Fatal("nstest: the test must call Enter first")
	}
}

// onThread calls fn on an operating system thread that nothing else ever uses.
func onThread(fn func() error) error {
	var err error
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err = fn()
	})
	wg.Wait()
	return err
}

// Name returns the host's name.
func (h *Host) Name() string { return h.name }

// Do calls fn on a thread that is in the host's namespaces and waits for it. Sockets that fn opens stay
// in the host after fn has returned; goroutines that fn starts do not run in the host. fn must not call
// t.FailNow or what does so; it may call t.Error.
func (h *Host) Do(t testing.TB, fn func()) {
	t.Helper()
	if err := onThread(func() error {
		if err := h.enter(); err != nil {
			return err
		}
		fn()
		return nil
	}); err != nil {
		t.Fatalf("host %s: %v", h.name, err)
	}
}

// enter moves the calling thread, which must be locked and used for nothing else, into the host.
func (h *Host) enter() error {
	if h.here {
		return nil
	}
	// A thread that shares its root and working folder with others cannot change its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	for flag, f := range h.files {
		if err := unix.Setns(int(f.Fd()), flag); err != nil {
			return fmt.Errorf("setns: %w", err)
		}
	}
	return nil
}

// Dial connects from within the host, as net.Dialer.DialContext does with dialer. A nil dialer is a zero one.
func (h *Host) Dial(ctx context.Context, dialer *net.Dialer, network, address string) (conn net.Conn, err error) {
	if dialer == nil {
		dialer = &net.Dialer{}
	}
	err = onThread(func() error {
		if err := h.enter(); err != nil {
			return err
		}
		// Addresses must be literal, of one family, or the dialer would start goroutines on other threads.
		if host, _, splitErr := net.SplitHostPort(address); splitErr != nil {
			return splitErr
		} else if _, parseErr := netip.ParseAddr(host); parseErr != nil {
			return parseErr
		}
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Command returns a command that runs in the host, for the caller to start. When ctx ends it is killed.
// The program is looked up in the host's mounts. Where a test starts a program that it does not wait
// for, Start is simpler.
func (h *Host) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	if h.here {
		return exec.CommandContext(ctx, program, args...)
	}
	ns := func(flag int) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), h.files[flag].Fd()) }
	// nsenter replaces itself with the program, so the process that is started is the program.
	argv := []string{
		"--net=" + ns(unix.CLONE_NEWNET), "--mount=" + ns(unix.CLONE_NEWNS), "--uts=" + ns(unix.CLONE_NEWUTS),
		"--", program,
	}
	return exec.CommandContext(ctx, "nsenter", append(argv, args...)...)
}

// Output runs a program in the host and returns what it writes, standard output and error together, and
// how it ended. It is killed when the test ends.
func (h *Host) Output(t testing.TB, program string, args ...string) (string, error) {
	t.Helper()
	out, err := h.Command(t.Context(), program, args...).CombinedOutput()
	return string(out), err
}

// Run runs a program in the host and returns what it writes. The test fails at once if the program does.
func (h *Host) Run(t testing.TB, program string, args ...string) string {
	t.Helper()
	out, err := h.Output(t, program, args...)
	if err != nil {
		t.Fatalf("host %s: %s %s: %v\n%s", h.name, program, strings.Join(args, " "), err, out)
	}
	return out
}

// Empty lays an empty folder over dir in this host, made if it is missing, so that a program finds no state.
func (h *Host) Empty(t testing.TB, dir string) {
	t.Helper()
	h.Do(t, func() {
		if err := errors.Join(os.MkdirAll(dir, 0o755), mountEmpty(dir)); err != nil {
			t.Errorf("host %s: %v", h.name, err)
		}
	})
}

// WriteFile writes a file as this host sees it, parent folders too.
func (h *Host) WriteFile(t testing.TB, name, content string) {
	t.Helper()
	h.Do(t, func() {
		dir := name[:strings.LastIndexByte(name, '/')+1]
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(name, []byte(content), 0o644)); err != nil {
			t.Errorf("host %s: %v", h.name, err)
		}
	})
}

// ReadFile reads a file as this host sees it.
func (h *Host) ReadFile(t testing.TB, name string) string {
	t.Helper()
	var content []byte
	h.Do(t, func() {
		var err error
		if content, err = os.ReadFile(name); err != nil {
			t.Errorf("host %s: %v", h.name, err)
		}
	})
	return string(content)
}
