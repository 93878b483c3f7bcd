package nstest

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// insideEnv tells a re-executed test binary for which test it runs, and verdictFD where it is to say
// how that test ended.
const (
	insideEnv = "NSTEST_INSIDE"
	verdictFD = 3
)

// Verdicts of the inner process. None at all means that it died or ran no test.
const (
	verdictPass    = "pass"
	verdictFail    = "fail"
	verdictSkip    = "skip"
	verdictProcfs  = "procfs" // /proc could not be mounted: try again without a pid namespace
	verdictRefused = "refused"
)

// Enter runs the calling test once more, alone, in a new process with namespaces of its own, and
// reports that run's output and outcome as this test's. It returns true in the new process, where the
// test goes on, and false in the old one, where the test must return:
//
//	if !nstest.Enter(t) {
//		return
//	}
//
// In the new process the test is root (of a user namespace), so it has every capability over its
// network and its mounts and none over the machine. All ids are mapped where the caller is root, else
// only its own. The loopback link is up. /run is empty, /etc is a private copy, /sys shows the new
// network, mounts do not spread.
//
// The flags of the test binary are handed on, -test.v, -test.short, the time left of -test.timeout and
// the folder for coverage among them. Called by a test that is inside already, a subtest for example,
// Enter just returns true: subtests share the namespaces of the test that entered.
//
// Where the kernel does not allow such namespaces the test is skipped with the reason.
func Enter(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideEnv) != "" {
		inside(t)
		return true
	}
	verdict, output, err := reexecute(t, syscall.CLONE_NEWPID)
	if verdict == verdictProcfs {
		verdict, output, err = reexecute(t, 0)
	}
	report(t, verdict, output, err)
	return false
}

// Inside tells whether this process runs in the namespaces of a test that called Enter.
func Inside() bool { return entered }

// report turns the outcome of the inner run into the outcome of t.
func report(t *testing.T, verdict, output string, err error) {
	t.Helper()
	switch {
	case verdict == verdictPass && err == nil:
		if testing.Verbose() {
			t.Log("\n" + output)
		}
	case verdict == verdictSkip && err == nil:
		t.Skip("\n" + output)
	case verdict == verdictRefused:
		t.Skipf("no namespaces for tests here: %s", strings.TrimSpace(output))
	case verdict == "" && namespaceRefusal(err):
		t.Skipf("no namespaces for tests here: %v", err)
	case verdict == "":
		t.Fatalf("inner test gave no verdict (%v)\n%s", err, output)
	default:
		t.Fatalf("inner test: %s (%v)\n%s", verdict, err, output)
	}
}

// namespaceRefusal tells whether err is the kernel's way to say that clone(2) may not make these
// namespaces: EPERM and EACCES by policy, ENOSPC by limit, EINVAL and ENOSYS where they are not built in.
func namespaceRefusal(err error) bool {
	for _, errno := range []error{syscall.EPERM, syscall.EACCES, syscall.ENOSPC, syscall.EINVAL, syscall.ENOSYS, syscall.EUSERS} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// reexecute runs the test t in new namespaces and returns its verdict and output.
func reexecute(t *testing.T, pidFlag uintptr) (verdict, output string, err error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatalf("find the test binary: %v", err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatalf("pipe: %v", err)
	}
	defer read.Close()
	defer write.Close()

	cmd := exec.Command(self, innerArgs(t)...)
	cmd.Env = append(os.Environ(), insideEnv+"="+t.Name(), impatientRace())
	cmd.ExtraFiles = []*os.File{write}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET |
			syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | pidFlag,
		Pdeathsig: syscall.SIGKILL,
	}
	mapIDs(cmd.SysProcAttr)

	// Pdeathsig means the thread that starts the process, so that thread has to stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return "", "", err
	}
	write.Close()
	said, _ := io.ReadAll(read)
	err = cmd.Wait()
	return strings.TrimSpace(string(said)), out.String(), err
}

// impatientRace returns the setting by which the race detector does not sleep for a second before the
// process exits, as it does otherwise. What the user has set stays.
func impatientRace() string {
	return "GORACE=atexit_sleep_ms=0 " + os.Getenv("GORACE")
}

// mapIDs makes the caller root of the new user namespace; root brings all other ids along, so that
// programs can drop to users of their own and files keep their owners.
func mapIDs(attr *syscall.SysProcAttr) {
	if os.Geteuid() == 0 {
		all := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}}
		attr.UidMappings, attr.GidMappings = all, all
		attr.GidMappingsEnableSetgroups = true
		return
	}
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
}

// notHandedOn are flags that choose other tests, or files that the outer process writes itself.
var notHandedOn = regexp.MustCompile(`^test\.(run|skip|list|bench|benchtime|benchmem|fuzz.*|count|cpu|shuffle|v|timeout|parallel|failfast|paniconexit0|testlogfile|coverprofile|outputdir|artifacts|.*profile|.*profilerate|.*profilefraction|trace)$`)

// innerArgs returns the arguments that make the test binary run t alone.
func innerArgs(t *testing.T) []string {
	var pattern []string
	for name := range strings.SplitSeq(t.Name(), "/") {
		pattern = append(pattern, "^"+regexp.QuoteMeta(name)+"$")
	}
	args := []string{"-test.run=" + strings.Join(pattern, "/"), "-test.count=1", "-test.paniconexit0"}
	if testing.Verbose() {
		args = append(args, "-test.v")
	}
	if deadline, ok := t.Deadline(); ok {
		// The inner process is to fail first: it alone can say where it hangs.
		left := time.Until(deadline)
		args = append(args, fmt.Sprintf("-test.timeout=%s", max(left-left/20, time.Second)))
	}
	flag.Visit(func(f *flag.Flag) {
		if !notHandedOn.MatchString(f.Name) {
			args = append(args, fmt.Sprintf("-%s=%s", f.Name, f.Value))
		}
	})
	return append(args, flag.Args()...)
}

// entered is set once inside has prepared this process.
var entered bool

// inside prepares the namespaces of this process for the test t. The first caller does it; it is the
// test that was asked for, so nothing runs beside it.
func inside(t *testing.T) {
	t.Helper()
	if entered {
		return
	}
	entered = true
	syscall.CloseOnExec(verdictFD)
	verdict := os.NewFile(verdictFD, "verdict")
	say := func(s string) {
		if _, err := verdict.WriteString(s + "\n"); err != nil {
			t.Errorf("report the outcome: %v", err)
		}
		verdict.Close()
	}
	if err := prepare(); err != nil {
		if errors.Is(err, errProcfs) {
			say(verdictProcfs)
			t.SkipNow()
		}
		if namespaceRefusal(err) {
			say(verdictRefused)
			t.Skip(err)
		}
		say(verdictFail)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		switch {
		case t.Failed():
			say(verdictFail)
		case t.Skipped():
			say(verdictSkip)
		default:
			say(verdictPass)
		}
	})
}

// prepare makes the new namespaces usable.
func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if os.Getpid() == 1 {
		if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("%w: %w", errProcfs, err)
		}
	}
	if err := furnish("router"); err != nil {
		return err
	}
	return nil
}

var errProcfs = errors.New("mount /proc")

// furnish gives the namespaces of the calling thread what a machine has: a loopback link, folders that
// programs may write to, a name.
func furnish(name string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("link lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("link lo: set up: %w", err)
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	// Only a nicety: where the kernel refuses, /sys keeps showing the links of the machine.
	_ = unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	for _, dir := range emptied {
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		if err := mountEmpty(dir); err != nil {
			return err
		}
	}
	return mountCopy("/etc")
}
