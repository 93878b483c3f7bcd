package nstest

import (
	"bytes"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A Process is a program that runs beside the test. Its methods may be called from any goroutine.
type Process struct {
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // how it ended; valid once exited is closed

	mu      sync.Mutex
	out     bytes.Buffer
	written chan struct{} // closed at the next write, then replaced
}

// Start starts a program in the host. It is killed, with its children, when the test ends; the output
// of one that runs in a failed test is logged then.
func (h *Host) Start(t testing.TB, program string, args ...string) *Process {
	t.Helper()
	p := &Process{cmd: h.Command(t.Context(), program, args...), exited: make(chan struct{}), written: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = (*output)(p), (*output)(p)
	// A group of its own, so that its children can be killed with it.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Cancel = p.kill
	// A child that left the group may keep the output open.
	p.cmd.WaitDelay = time.Second
	line := strings.Join(append([]string{program}, args...), " ")
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("host %s: %s: %v", h.name, line, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		_ = p.kill()
		<-p.exited
		if t.Failed() {
			t.Logf("host %s: %s: %v\n%s", h.name, line, p.err, p.Output())
		}
	})
	return p
}

// kill ends the process and its group.
func (p *Process) kill() error { return syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) }

// Pid returns the number of the process in the test's pid namespace.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Signal sends a signal to the process alone, not to its children.
func (p *Process) Signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Wait waits until the process has ended and returns how, as exec.Cmd.Wait does.
func (p *Process) Wait() error {
	<-p.exited
	return p.err
}

// Output returns what the process has written so far.
func (p *Process) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// WaitFor waits until the process has written text. The test fails at once when the process ends
// without it, or after timeout.
func (p *Process) WaitFor(t testing.TB, text string, timeout time.Duration) {
	t.Helper()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		p.mu.Lock()
		found, written := strings.Contains(p.out.String(), text), p.written
		p.mu.Unlock()
		if found {
			return
		}
		select {
		case <-written:
		case <-p.exited:
			if strings.Contains(p.Output(), text) {
				return
			}
			t.Fatalf("%s ended (%v) before it wrote %q:\n%s", p.cmd, p.err, text, p.Output())
		case <-timer.C:
			t.Fatalf("%s did not write %q within %s:\n%s", p.cmd, text, timeout, p.Output())
		}
	}
}

// output is the Process as its program writes to it.
type output Process

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.written)
	o.written = make(chan struct{})
	return o.out.Write(b)
}

// Poll asks ok every few milliseconds until it says yes. The test fails at once when it has not after
// timeout; what says what was waited for. Where there is an event to wait for, wait for that.
func Poll(t testing.TB, timeout time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for: %s", timeout, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
