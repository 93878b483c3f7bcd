package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"vragent/netcfg/nstest"
)

// TestKilledDaemon kills the daemon in the middle of its work, time and again. What it serves once it
// is ready again is what lies in the drop directory, or the last good content where that is bad.
func TestKilledDaemon(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "setpriv")
	const n, rounds = 200, 3
	r := newRouter(t)
	r.logLevel(t, "info")
	g := r.guest(t, "g", "eth0", macA)
	r.AddAddr(t, "eth0", "10.1.0.1/16")
	samples := []int{0, 1, n / 2, n - 2, n - 1}
	for _, i := range samples {
		g.AddAddr(t, "eth0", largeIP(i)+"/16")
	}
	name := func(i int) string { return fmt.Sprintf("vms/vm-%d", i) }
	write := func(i int, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(r.drop, name(i), "user-data"), []byte(content), 0o660); err != nil {
			t.Fatal(err)
		}
	}
	check := func(round int, content string) {
		t.Helper()
		for _, i := range samples {
			got, err := g.Output(t, "curl", "-sSf", "--max-time", "5", "--noproxy", "*", "--interface", largeIP(i), "http://10.1.0.1/latest/user-data")
			if err != nil || got != content {
				t.Errorf("round %d: %s reads %q, %v; want %q", round, name(i), got, err, content)
			}
		}
	}

	p := r.startAs(t, binary)
	r.put(t, "networks/large.yaml", largeNetwork)
	for i := range n {
		r.put(t, name(i)+"/user-data", "first")
		// Without a MAC the VM is served by address alone, so one guest can ask for all of them.
		r.put(t, name(i)+"/vm.yaml", fmt.Sprintf("nics: [{network: large, ipv4: %s}]\n", largeIP(i)))
	}
	r.applied(t)
	for round := range rounds {
		content := fmt.Sprintf("round %d", round)
		for i := range n {
			write(i, content)
			// Somewhere between noticing the first and having this one in force. The rest is written
			// while no daemon runs.
			if i == n*(round+1)/rounds-1 {
				crash(t, p)
			}
		}
		p = r.startAs(t, binary)
		check(round, content)
	}

	// Bad files, and a crash before and after they were judged.
	last := fmt.Sprintf("round %d", rounds-1)
	for _, i := range samples {
		r.put(t, name(i)+"/vm.yaml", "nics: 1\n")
		write(i, "goes with the bad file")
	}
	for range 2 {
		crash(t, p)
		p = r.startAs(t, binary)
		check(rounds, last)
		for _, i := range samples {
			if why := r.rejected(t, name(i)); !strings.HasPrefix(why, name(i)+"/vm.yaml:1:7: ") {
				t.Errorf("%s is rejected for %q", name(i), why)
			}
		}
	}

	// What was removed while no daemon ran is gone.
	end(t, p)
	for _, i := range samples {
		r.remove(t, name(i))
	}
	p = r.startAs(t, binary)
	if out, err := g.Output(t, "curl", "-sSf", "--max-time", "5", "--noproxy", "*", "--interface", largeIP(0), "http://10.1.0.1/latest/user-data"); err == nil {
		t.Errorf("removed before the start and served: %q", out)
	}
	status, err := r.client.Status(t.Context())
	if err != nil || len(status.Units) > 0 {
		t.Errorf("status: units %+v, %v", status.Units, err)
	}
	end(t, p)
}

// crash ends a daemon before it can do anything about it.
func crash(t *testing.T, p *nstest.Process) {
	t.Helper()
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.Exited()
}
