package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vragent/agent/internal/api"
	"vragent/netcfg/nstest"
)

// faultsEnv has the tests of faults run: make test-faults sets it. The daemon is built with the race
// detector then.
const faultsEnv = "VRAGENT_FAULTS"

// fault skips a test of a fault unless it was asked for, and returns the program. It is called before
// Enter, as buildDaemon is.
func fault(t *testing.T) (binary string) {
	t.Helper()
	if os.Getenv(faultsEnv) == "" {
		t.Skip("make test-faults runs it")
	}
	t.Parallel()
	return buildDaemon(t)
}

// seeded returns random numbers and prints what brings the same ones again.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	const seedEnv = "VRAGENT_SEED"
	seed := rand.Uint64()
	if text := os.Getenv(seedEnv); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s: %v", seedEnv, err)
		}
	}
	t.Logf("%s=%d", seedEnv, seed)
	return rand.New(rand.NewPCG(seed, seed))
}

// bad are lines that no daemon writes whose code is right, whatever the fault.
var bad = regexp.MustCompile(`(?m)^(WARNING: DATA RACE|panic: |.*panic serving|fatal error: all goroutines|unexpected fault).*$`)

// boot starts the daemon, and has its output looked through when the test ends. Arguments before the
// program are those of prlimit.
func (r *router) boot(t *testing.T, binary string, limits ...string) *nstest.Process {
	t.Helper()
	p := r.Start(t, "prlimit", append(limits, binary, "run", "--config", r.config)...)
	t.Cleanup(func() {
		if line := bad.FindString(p.Output()); line != "" {
			t.Errorf("the daemon says %q", line)
		}
	})
	r.client = api.Dial(r.dir + "/api.sock")
	t.Cleanup(r.client.Close)
	p.WaitFor(t, "msg=serving drop_dir", waitTime)
	return p
}

// descriptors counts those that a process has open.
func descriptors(t *testing.T, p *nstest.Process) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// asGuest returns a client that keeps its connection, for requests from a guest's own address or from
// that one of its addresses.
func asGuest(t *testing.T, g *nstest.Host, address string) *http.Client {
	t.Helper()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}, Timeout: waitTime}
	transport := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return g.Dial(ctx, dialer, network, addr)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Timeout: waitTime, Transport: transport}
}

// passwordOf asks the password server as a guest.
func passwordOf(client *http.Client, request string) (string, error) {
	req, err := http.NewRequest(http.MethodGet, "http://10.1.1.1:8080/", nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("DomU_Request", request)
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return string(body), err
}

// faultsOf returns all that status complains of, on a line each, but for what no test has: the group.
func (r *router) faultsOf(t *testing.T) string {
	t.Helper()
	status, err := r.client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	faults := slices.DeleteFunc(status.Faults, func(f string) bool { return strings.Contains(f, "no group vragent") })
	return strings.Join(faults, "\n")
}

// lineOf returns the first line of an output that has text in it.
func lineOf(output, text string) string {
	for line := range strings.Lines(output) {
		if strings.Contains(line, text) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// until polls for a change to come into force for a guest.
func until(t *testing.T, client *http.Client, path, want string) {
	t.Helper()
	nstest.Poll(t, waitTime, fmt.Sprintf("%s to be %.40q", path, want), func() bool {
		got, err := ask(client, path)
		return err == nil && got == want
	})
}

// counted returns the sum of the daemon's metric over the lines whose labels hold all of these.
func (r *router) counted(t *testing.T, metric string, labels ...string) (sum float64) {
	t.Helper()
	client := overSocket(r.dir + "/api.sock")
	defer client.CloseIdleConnections()
	res, err := client.Get("http://vragent/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(body) {
		text := string(line)
		if !strings.HasPrefix(text, metric+"{") && !strings.HasPrefix(text, metric+" ") {
			continue
		}
		all := true
		for _, label := range labels {
			all = all && strings.Contains(text, label)
		}
		if !all {
			continue
		}
		value, err := strconv.ParseFloat(strings.TrimSpace(text[strings.LastIndexByte(text, ' ')+1:]), 64)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		sum += value
	}
	return sum
}
