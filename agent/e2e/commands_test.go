package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vragent/agent/internal/api"
	"vragent/netcfg/nstest"
)

// TestCommandsOfARunningDaemon is what an operator sees, and what scripts go by.
func TestCommandsOfARunningDaemon(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "setpriv")
	r := newRouter(t)
	// vragent runs a command and returns what it writes to standard output, its only line on standard
	// error, and its exit status.
	vragent := func(args ...string) (stdout, stderr string, status int) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), binary, append(args, "--config", r.config)...)
		var errOut strings.Builder
		cmd.Stderr = &errOut
		out, err := cmd.Output()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatalf("vragent %q: %v", args, err)
		}
		if strings.Count(errOut.String(), "\n") > 1 {
			t.Errorf("vragent %q says more than a line:\n%s", args, errOut.String())
		}
		return string(out), strings.TrimSuffix(errOut.String(), "\n"), cmd.ProcessState.ExitCode()
	}
	// exits runs a command and checks its exit status, and that text is in what it writes.
	exits := func(status int, text string, args ...string) {
		t.Helper()
		stdout, stderr, got := vragent(args...)
		if got != status || !strings.Contains(stdout+stderr, text) {
			t.Errorf("vragent %q: exit status %d, want %d and %q in\n%s%s", args, got, status, text, stdout, stderr)
		}
	}

	exits(69, "no daemon is listening", "status")
	exits(69, "no daemon is listening", "wait")
	exits(64, "unknown command", "statsu")
	exits(64, "unknown flag", "status", "--nonsense")
	exits(0, "go1.", "version")

	if err := os.WriteFile(r.config+".bad", []byte("drop_dir: /x\nlog: {level: loud}\ndrop_dirs: /y\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	bad := exec.CommandContext(t.Context(), binary, "run", "--config", r.config+".bad")
	out, err := bad.CombinedOutput()
	if bad.ProcessState.ExitCode() != 1 {
		t.Errorf("run with a bad configuration: %v", err)
	}
	for _, place := range []string{".bad:2:14: ", ".bad:3:1: "} {
		if !strings.Contains(string(out), place) {
			t.Errorf("run with a bad configuration says nothing of %s\n%s", place, out)
		}
	}

	g := r.guest(t, "a", "eth0", macA)
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	g.AddAddr(t, "eth0", "10.1.1.34/24")
	p := r.startAs(t, binary)
	exits(0, "", "status")
	exits(0, "", "check")
	r.put(t, "networks/guest-1.yaml", network)
	r.put(t, "vms/a/user-data", "mine")
	r.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	exits(0, "applied", "wait")
	exits(0, "applied", "wait", r.drop+"/vms/a")
	exits(0, "applied", "wait", "vms/a")
	exits(0, "guest-1", "networks")
	exits(0, "10.1.1.34", "vms")
	exits(0, "10.1.1.34", "explain", "a")
	exits(0, "10.1.1.34", "explain", macA)
	exits(0, "user-data", "explain", "10.1.1.34")
	exits(1, "is known", "explain", "nobody")
	exits(1, "is known", "explain", "10.1.1.99")

	r.put(t, "vms/b/vm.yaml", vm("b", "guest-2", macB, "10.1.1.35"))
	exits(3, "guest-2", "wait")
	exits(0, "applied", "wait", "vms/a")
	exits(0, "guest-2", "status") // pending is no fault
	exits(0, "guest-2", "explain", "b")

	r.put(t, "vms/a/vm.yaml", "hostname: a\nnics:\n- {network: guest-1, ipv4: 10.1.2.34}\n")
	const reason = "vms/a/vm.yaml:3:28: nics[0].ipv4: 10.1.2.34"
	exits(1, reason, "wait")
	exits(1, reason, "wait", "vms/a")
	exits(1, reason, "status")
	exits(1, reason, "check") // which asks no daemon
	exits(1, reason, "check", r.drop+"/vms/a")
	exits(0, "", "check", r.drop+"/networks/guest-1.yaml")
	exits(0, reason, "explain", "a")
	if got, err := curl(t, g, "http://10.1.1.1/latest/user-data"); err != nil || got != "mine" {
		t.Errorf("user-data of a rejected unit = %q, %v", got, err)
	}

	// Programs read JSON, and find in it what people read in tables.
	stdout, _, _ := vragent("vms", "-o", "json")
	var vms []api.VM
	if err := json.Unmarshal([]byte(stdout), &vms); err != nil {
		t.Fatalf("vragent vms -o json: %v\n%s", err, stdout)
	}
	states := make(map[string]api.State)
	for _, vm := range vms {
		states[vm.Name] = vm.State
	}
	if diff := cmp.Diff(map[string]api.State{"a": api.Rejected, "b": api.Pending}, states); diff != "" {
		t.Errorf("states of VMs (-want +got):\n%s", diff)
	}

	// A file that somebody has open is judged by nobody.
	r.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	r.applied(t, "vms/a")
	open, err := os.Create(r.drop + "/vms/a/user-data")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open.WriteString("first half, "); err != nil {
		t.Fatal(err)
	}
	exits(2, "vms/a is still open", "wait", "--timeout", "300ms", "vms/a")
	exits(0, "applied", "wait", "networks/guest-1.yaml") // the others do not wait for it
	if got, err := curl(t, g, "http://10.1.1.1/latest/user-data"); err != nil || got != "mine" {
		t.Errorf("user-data while it is written = %q, %v", got, err)
	}
	if _, err := open.WriteString("second half"); err != nil {
		t.Fatal(err)
	}
	if err := open.Close(); err != nil {
		t.Fatal(err)
	}
	exits(0, "applied", "wait", "vms/a")
	if got, err := curl(t, g, "http://10.1.1.1/latest/user-data"); err != nil || got != "first half, second half" {
		t.Errorf("user-data once it is written = %q, %v", got, err)
	}
	end(t, p)
	exits(69, "no daemon is listening", "status")
}
