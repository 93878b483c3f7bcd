package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"vragent/agent/internal/api"
)

var update = flag.Bool("update", false, "write the golden files anew")

// now is the time at which every command of these tests runs.
var now = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) time.Time     { return now.Add(-d) }
func agoPtr(d time.Duration) *time.Time { t := ago(d); return &t }

// router is a daemon that answers with what a test put in.
type router struct {
	status   api.Status
	networks []api.Network
	vms      []api.VM
	explain  map[string]api.Explanation
	wait     func(ctx context.Context, paths []string) (api.WaitResult, error)
}

func (r *router) Status(context.Context) api.Status      { return r.status }
func (r *router) Networks(context.Context) []api.Network { return r.networks }
func (r *router) VMs(context.Context) []api.VM           { return r.vms }

func (r *router) Explain(_ context.Context, subject string) (api.Explanation, error) {
	e, ok := r.explain[subject]
	if !ok {
		return e, fmt.Errorf("%w: no VM, MAC or address %q", api.ErrUnknown, subject)
	}
	return e, nil
}

func (r *router) Wait(ctx context.Context, paths []string) (api.WaitResult, error) {
	return r.wait(ctx, paths)
}

// start serves r on a socket and returns a configuration that names it.
func start(t *testing.T, r *router) (config string) {
	t.Helper()
	dir := t.TempDir()
	socket := filepath.Join(dir, "api.sock")
	ln, err := api.ListenUnix(socket, "no such group", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.Serve(ctx, ln, api.Local(r, api.LocalOptions{}), api.HeaderFor(0), nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return writeConfig(t, socket)
}

// writeConfig writes a configuration with the given socket.
func writeConfig(t *testing.T, socket string) string {
	t.Helper()
	config := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(config, []byte("api: {socket: "+socket+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return config
}

// result is what a command line came to.
type result struct {
	status   int
	out, err string
}

func runCLI(t *testing.T, color bool, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	std := stdio{out: &out, err: &errs, color: color, now: func() time.Time { return now }}
	status := execute(t.Context(), std, args)
	return result{status, out.String(), errs.String()}
}

const longName = "i-2-1234-VM.a-name-that-somebody-generated-with-all-that-they-knew.example.org"

// busy is a router with everything that a table can show.
func busy() *router {
	long := longName
	older := api.Unit{
		Unit: "vms/" + long, State: api.Rejected, InForce: true, Since: ago(12 * time.Minute),
		Reasons: []api.Fault{{
			File: "vms/" + long + "/vm.yaml", Line: 5, Column: 11,
			What: "10.1.2.34 is outside network guest-1: give it an address inside 10.1.1.0/24, other than its gateway 10.1.1.1",
		}},
	}
	waiting := api.Unit{
		Unit: "networks/guest-2.yaml", State: api.Pending, Since: ago(3 * time.Hour),
		Reasons: []api.Fault{{What: "device eth7 is not there: it is served once it appears"}},
	}
	noted := api.Unit{
		Unit: "vms/db-1", State: api.Applied, InForce: true, Since: ago(50 * time.Hour),
		Notes: []string{`vms/db-1/userdata is not read; did you mean "user-data"?`},
	}
	return &router{
		status: api.Status{
			Version: "1.0.0", Started: ago(49 * time.Hour), DropDir: "/var/lib/vragent/drop",
			Config: api.ConfigStatus{
				Files:  []string{"/etc/vragent/agent.yaml", "/etc/vragent/agent.d/10-fleet.yaml"},
				Loaded: ago(5 * time.Minute),
				Faults: []api.Fault{{File: "/etc/vragent/agent.yaml", Line: 3, Column: 1, What: `unknown key "drop_dri"; did you mean "drop_dir"?`}},
			},
			Networks: map[api.State]int{api.Applied: 2, api.Pending: 1},
			VMs:      map[api.State]int{api.Applied: 10002, api.Rejected: 1},
			Watch:    api.WatchStatus{Watched: 8000, Unwatched: 2005, Unsettled: []string{"vms/web-2"}},
			Units:    []api.Unit{waiting, older, noted},
			Faults:   []string{"the state directory is full: 12 changes wait for room on /var/lib/vragent/state"},
			Powers:   map[string]bool{"net_admin": false, "net_raw": true, "net_bind_service": true, "lease": true},
		},
		networks: []api.Network{
			{
				Unit: api.Unit{Unit: "networks/guest-1.yaml", State: api.Applied, InForce: true},
				Name: "guest-1", Device: "eth0", Subnet: "10.1.1.0/24", Gateway: "10.1.1.1", Serving: "10.1.1.1",
				Guests: 10002, PoolTotal: 51, PoolUsed: 7,
			},
			{Unit: waiting, Name: "guest-2", Device: "eth7", Subnet: "192.168.100.0/22", Gateway: "192.168.100.254", Guests: 1},
			{
				Unit: api.Unit{Unit: "networks/" + long + ".yaml", State: api.Applied, InForce: true},
				Name: long, Device: "wan-uplink-0123", Subnet: "192.168.100.0/22", Gateway: "192.168.100.254",
				Serving: "192.168.100.253", Standby: true,
			},
		},
		vms: []api.VM{
			{
				Unit: api.Unit{Unit: "vms/web-1", State: api.Applied, InForce: true}, Name: "web-1", Hostname: "web-1",
				NICs: []api.NIC{
					{Network: "guest-1", MAC: "02:00:4c:5f:00:01", IPv4: "10.1.1.34", Default: true, Served: true, LastSeen: agoPtr(4 * time.Second), LeaseEnds: agoPtr(-11 * time.Hour)},
					{Network: "guest-2", MAC: "02:00:4c:5f:00:02", IPv4: "192.168.100.34", Why: "network guest-2 is pending"},
				},
			},
			{
				Unit: older, Name: long, Hostname: "web-2",
				NICs: []api.NIC{{Network: long, MAC: "02:00:4c:5f:00:03", IPv4: "192.168.100.134", Default: true, Served: true, LastSeen: agoPtr(90 * time.Minute)}},
			},
			{Unit: noted, Name: "db-1", NICs: []api.NIC{{Network: "guest-1", IPv4: "10.1.1.36", Default: true, Served: true}}},
			{Unit: api.Unit{
				Unit: "vms/new", State: api.Rejected, Since: ago(time.Second),
				Reasons: []api.Fault{{File: "vms/new/vm.yaml", Line: 2, What: "did not find expected key"}},
			}, Name: "new"},
		},
		explain: map[string]api.Explanation{"web-1": {
			Subject: "web-1",
			Answer:  "web-1 gets 10.1.1.34 on guest-1 and its data from http://10.1.1.1. It gets nothing on guest-2.",
			Next:    "make device eth7, or correct interface in networks/guest-2.yaml",
			VM: &api.VM{
				Unit: api.Unit{Unit: "vms/web-1", State: api.Applied, InForce: true, Since: ago(2 * time.Hour)}, Name: "web-1", Hostname: "web-1",
				NICs: []api.NIC{
					{Network: "guest-1", MAC: "02:00:4c:5f:00:01", IPv4: "10.1.1.34", Default: true, Served: true, LastSeen: agoPtr(4 * time.Second), LeaseEnds: agoPtr(-11 * time.Hour)},
					{Network: "guest-2", MAC: "02:00:4c:5f:00:02", IPv4: "192.168.100.34", Why: "network guest-2 is pending"},
				},
			},
			Networks: []api.Network{
				{Unit: api.Unit{State: api.Applied, InForce: true}, Name: "guest-1", Device: "eth0", Subnet: "10.1.1.0/24", Gateway: "10.1.1.1", Guests: 3},
				{Unit: waiting, Name: "guest-2", Device: "eth7", Subnet: "192.168.100.0/22", Gateway: "192.168.100.254", Guests: 1},
			},
			Files: []api.FileInfo{
				{Path: "vms/web-1/vm.yaml", Size: 212, Modified: ago(2 * time.Hour)},
				{Path: "vms/web-1/user-data", Size: 32768, Modified: ago(2 * time.Hour)},
			},
			Served: []api.ServedEntry{
				{NIC: "10.1.1.34", Name: "local-hostname", Value: "web-1", Size: 5},
				{NIC: "10.1.1.34", Name: "public-keys", Value: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIP0KfzPjZ0a1v6cJk3o1Zb2u6yq7pDdW8aM7cQ1n2b3X ops@example.org\n", Size: 97},
				{NIC: "10.1.1.34", Name: "service-offering"},
				{NIC: "10.1.1.34", Name: "user-data", Size: 32768},
			},
			DHCP: []api.DHCPExchange{
				{Time: ago(4 * time.Second), Network: "guest-1", Device: "eth0", MAC: "02:00:4c:5f:00:01", Message: "REQUEST (SELECTING)", Answer: "ACK", Address: "10.1.1.34"},
				{Time: ago(9 * time.Second), Device: "eth0", MAC: "02:00:4c:5f:00:01", Message: "REQUEST (SELECTING)", Answer: "none", Why: "the client chose server 10.1.1.77"},
			},
			Requests: []api.MetadataRequest{
				{Time: ago(3 * time.Second), Path: "/latest/user-data", Status: 200},
				{Time: ago(3 * time.Second), Path: "/latest/\x1b[2Jmeta-data/nope", Status: 404, Why: "no such name"},
			},
			Obstacles: []string{"network guest-2 is pending: device eth7 is not there"},
		}},
	}
}

// TestReports compares what people and programs get with golden files.
func TestReports(t *testing.T) {
	tests := []struct {
		name   string
		args   []string
		status int
	}{
		{"status", []string{"status"}, 1},
		{"networks", []string{"networks"}, 0},
		{"vms", []string{"vms"}, 0},
		{"explain", []string{"explain", "web-1"}, 0},
		{"networks-json", []string{"networks", "-o", "json"}, 0},
		{"networks-yaml", []string{"networks", "-o", "yaml"}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := runCLI(t, false, append(tt.args, "--config", start(t, busy()))...)
			if got.status != tt.status || got.err != "" {
				t.Errorf("exit status %d with %q on standard error, want %d and nothing", got.status, got.err, tt.status)
			}
			if !strings.Contains(tt.name, "-") {
				for line := range strings.Lines(got.out) {
					// Below the table names are whole, to be copied.
					if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 && !strings.Contains(line, longName) {
						t.Errorf("a line of %d characters: %s", n, line)
					}
				}
			}
			golden(t, filepath.Join("testdata", tt.name+".golden"), got.out)
		})
	}
}

func TestStatesAreColouredOnATerminalOnly(t *testing.T) {
	config := start(t, busy())
	if plain := runCLI(t, false, "vms", "--config", config); strings.Contains(plain.out, "\x1b") {
		t.Errorf("colour without a terminal: %q", plain.out)
	}
	colored := runCLI(t, true, "vms", "--config", config)
	if want := "\x1b[31mrejected\x1b[0m"; !strings.Contains(colored.out, want) {
		t.Errorf("output %q has no %q", colored.out, want)
	}
	if got := runCLI(t, true, "explain", "web-1", "--config", config); strings.Contains(got.out, "\x1b[2J") {
		t.Errorf("what a guest asked for reached the terminal unfiltered: %q", got.out)
	}
}

func TestWantsColor(t *testing.T) {
	tests := []struct {
		name     string
		env      map[string]string
		terminal bool
		want     bool
	}{
		{"terminal", nil, true, true},
		{"pipe", nil, false, false},
		{"NO_COLOR", map[string]string{"NO_COLOR": "1"}, true, false},
		{"NO_COLOR is empty", map[string]string{"NO_COLOR": ""}, true, true},
		{"terminal without colour", map[string]string{"TERM": "dumb"}, true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := wantsColor(func(k string) string { return tt.env[k] }, tt.terminal); got != tt.want {
				t.Errorf("wantsColor() = %v, want %v", got, tt.want)
			}
		})
	}
}

// TestRefusals pins exit status and the one line on standard error of what cannot be done.
func TestRefusals(t *testing.T) {
	none := writeConfig(t, "/nowhere/api.sock")
	busy := start(t, busy())
	tests := []struct {
		name   string
		args   []string
		status int
		err    string
	}{
		{"no command", nil, 64, "vragent: a command is missing: see vragent --help\n"},
		{"unknown command", []string{"sattus"}, 64, "vragent: unknown command \"sattus\" for \"vragent\": see vragent --help\n"},
		{"unknown flag", []string{"status", "--colour"}, 64, "vragent: unknown flag: --colour: see vragent status --help\n"},
		{"unknown format", []string{"vms", "-o", "xml"}, 64, "vragent: invalid argument \"xml\" for \"-o, --output\" flag: must be table, json or yaml: see vragent vms --help\n"},
		{"missing argument", []string{"explain"}, 64, "vragent: name one guest by its VM, MAC or IP: see vragent explain --help\n"},
		{"argument too many", []string{"status", "all"}, 64, "vragent: unknown command \"all\" for \"vragent status\": see vragent status --help\n"},
		{"no time to wait", []string{"wait", "--timeout", "0s"}, 64, "vragent: invalid argument \"0s\" for \"--timeout\" flag: must be a time above zero, as in 30s or 2m: see vragent wait --help\n"},
		{"unknown shell", []string{"completion", "csh"}, 64, "vragent: invalid argument \"csh\" for \"vragent completion\": see vragent completion --help\n"},
		{"no daemon", []string{"status", "--config", none}, 69, "vragent: no daemon is listening on /nowhere/api.sock: start it with systemctl start vragent\n"},
		{"no daemon to wait for", []string{"wait", "--config", none}, 69, "vragent: no daemon is listening on /nowhere/api.sock: start it with systemctl start vragent\n"},
		{"unknown guest", []string{"explain", "nobody", "--config", busy}, 1, "vragent: no VM, MAC or address \"nobody\" is known: see vragent vms\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := runCLI(t, false, tt.args...)
			if diff := cmp.Diff(result{tt.status, "", tt.err}, got, cmp.AllowUnexported(result{})); diff != "" {
				t.Errorf("vragent %q (-want +got):\n%s", tt.args, diff)
			}
		})
	}
}

// TestGuessedSocketIsNamedAsOne: with a configuration that cannot be used there may be a daemon on another
// socket.
func TestGuessedSocketIsNamedAsOne(t *testing.T) {
	if _, err := os.Stat(defaultSocket); err == nil {
		t.Skip("a daemon runs here")
	}
	config := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(config, []byte("colour: red\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := runCLI(t, false, "status", "--config", config)
	want := "vragent: no daemon is listening on " + defaultSocket + ": start it with systemctl start vragent" +
		" (that is the default: " + config + " cannot be used, see vragent check, and may name another socket)\n"
	if diff := cmp.Diff(result{69, "", want}, got, cmp.AllowUnexported(result{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWaitTellsTheWorstState(t *testing.T) {
	pending := api.Unit{Unit: "vms/db-1", State: api.Pending, Reasons: []api.Fault{{What: "network guest-9 is not there"}}}
	rejected := api.Unit{Unit: "vms/web-1", State: api.Rejected, Reasons: []api.Fault{{File: "vms/web-1/vm.yaml", Line: 3, Column: 5, What: "no such key"}}}
	tests := []struct {
		name   string
		answer api.WaitResult
		err    error
		want   result
	}{
		{"applied", api.WaitResult{State: api.Applied}, nil, result{0, "applied\n", ""}},
		{
			"rejected", api.WaitResult{State: api.Rejected, Units: []api.Unit{rejected, pending}}, nil,
			result{1, "rejected\n\nrejected  vms/web-1\n  vms/web-1/vm.yaml:3:5: no such key\n\npending  vms/db-1\n  network guest-9 is not there\n", ""},
		},
		{
			"pending", api.WaitResult{State: api.Pending, Units: []api.Unit{pending}}, nil,
			result{3, "pending\n\npending  vms/db-1\n  network guest-9 is not there\n", ""},
		},
		{
			"timed out", api.WaitResult{State: api.Applied, Unsettled: []string{"vms/web-1"}}, context.DeadlineExceeded,
			result{2, "vms/web-1 is still open\n", "vragent: not all was judged within 1m0s: see vragent status\n"},
		},
		{
			"unknown path", api.WaitResult{}, fmt.Errorf("%w: networks/nope.yaml is not in the drop directory", api.ErrUnknown),
			result{1, "", "vragent: unknown: networks/nope.yaml is not in the drop directory\n"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := &router{wait: func(ctx context.Context, _ []string) (api.WaitResult, error) {
				if _, bounded := ctx.Deadline(); !bounded {
					t.Error("the daemon was asked without the time limit")
				}
				return tt.answer, tt.err
			}}
			got := runCLI(t, false, "wait", "--timeout", "1m", "--config", start(t, r))
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(result{})); diff != "" {
				t.Errorf("vragent wait (-want +got):\n%s", diff)
			}
		})
	}
}

// Paths that are there are meant as they stand; others are looked for in the drop directory.
func TestWaitPaths(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.MkdirAll("vms/web-1", 0o700); err != nil {
		t.Fatal(err)
	}
	var got []string
	r := &router{wait: func(_ context.Context, paths []string) (api.WaitResult, error) {
		got = paths
		return api.WaitResult{State: api.Applied}, nil
	}}
	if res := runCLI(t, false, "wait", "vms/web-1", "vms/web-2", "--config", start(t, r)); res.status != 0 {
		t.Fatalf("vragent wait: %+v", res)
	}
	if want := []string{filepath.Join(dir, "vms/web-1"), "vms/web-2"}; !cmp.Equal(want, got) {
		t.Errorf("the daemon was asked for %q, want %q", got, want)
	}
}

func TestEmptyRouterSaysWhatToDrop(t *testing.T) {
	config := start(t, &router{})
	for command, want := range map[string]string{
		"networks": "no networks: drop one as networks/NAME.yaml\n",
		"vms":      "no VMs: drop one as vms/NAME/vm.yaml\n",
	} {
		if got := runCLI(t, false, command, "--config", config); got.out != want || got.status != 0 {
			t.Errorf("vragent %s = %+v, want %q", command, got, want)
		}
	}
}

func TestCompletions(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		t.Run(shell, func(t *testing.T) {
			got := runCLI(t, false, "completion", shell)
			if got.status != 0 || !strings.Contains(got.out, "vragent") {
				t.Fatalf("exit status %d, output %.40q", got.status, got.out)
			}
			if _, err := exec.LookPath(shell); err != nil {
				t.Skipf("%s is not installed, so its completions were not read by it", shell)
			}
			file := filepath.Join(t.TempDir(), "completions")
			if err := os.WriteFile(file, []byte(got.out), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(shell, "-n", file).CombinedOutput(); err != nil {
				t.Errorf("%s -n: %v\n%s", shell, err, out)
			}
		})
	}
	got := runCLI(t, false, "__complete", "--config", start(t, busy()), "explain", "")
	if want := "web-1\n" + longName + "\ndb-1\nnew\n:4\n"; got.out != want {
		t.Errorf("explain completes to %q, want %q", got.out, want)
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("output differs from %s (-want +got); go test -update rewrites it:\n%s", file, diff)
	}
}
