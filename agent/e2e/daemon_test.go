package e2e

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"vragent/agent/internal/api"
	"vragent/netcfg/nstest"
)

// vragent runs a command of the program against the router's configuration.
func (r *router) vragent(t *testing.T, binary string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), binary, append(args, "--config", r.config)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); errors.As(err, &exit) {
		status = exit.ExitCode()
	} else if err != nil {
		t.Fatalf("vragent %v: %v", args, err)
	}
	return out.String(), errs.String(), status
}

// edit replaces a part of agent.yaml.
func (r *router) edit(t *testing.T, old, new string) {
	t.Helper()
	text, err := os.ReadFile(r.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.config, bytes.Replace(text, []byte(old), []byte(new), 1), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestDaemonTellsFaultsOfItsConfigurationInOneLine(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	for name, test := range map[string]struct{ more, api, want string }{
		"unknown key":         {more: "public_interfaces: eth2\n", want: "/agent.yaml:5:1: "},
		"wrong type":          {more: "metadata: {guest_rate: fast}\n", want: "/agent.yaml:5:24: "},
		"out of range":        {more: "metadata: {guest_rate: -1}\n", want: "/agent.yaml:5:24: "},
		"key twice":           {more: "log: {level: warn}\n", want: "/agent.yaml:5:1: "},
		"second document":     {more: "---\n", want: "/agent.yaml:"},
		"syntax":              {more: "metadata: {\n", want: "/agent.yaml:"},
		"TCP without TLS":     {api: "listen: \"192.0.2.1:8443\"", want: ": api.listen: "},
		"two faults together": {more: "metadata: {guest_rate: fast}\npublic_interface: a b\n", want: "; "},
	} {
		t.Run(name, func(t *testing.T) {
			r.configure(t, test.more)
			if test.api != "" {
				r.edit(t, "api.sock}", "api.sock, "+test.api+"}")
			}
			stdout, stderr, status := r.vragent(t, binary, "run")
			if status != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "vragent: "+r.config) || !strings.Contains(stderr, test.want) {
				t.Errorf("exit status %d, %q%q; want 1 and one line with %q", status, stdout, stderr, test.want)
			}
			// check finds the same, a fault a line.
			if checked, _, status := r.vragent(t, binary, "check"); status != 1 || strings.ReplaceAll(strings.TrimSuffix(checked, "\n"), "\n", "; ") != strings.TrimSuffix(strings.TrimPrefix(stderr, "vragent: "), "\n") {
				t.Errorf("check: exit status %d, %q; run says %q", status, checked, stderr)
			}
			if _, err := os.Lstat(r.dir + "/state"); err == nil {
				t.Error("a state directory was made")
			}
		})
	}
	if err := os.Remove(r.config); err != nil {
		t.Fatal(err)
	}
	if _, stderr, status := r.vragent(t, binary, "run"); status != 1 || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, r.config+": does not exist") {
		t.Errorf("without a configuration: exit status %d, %q", status, stderr)
	}
}

func TestDaemonReloadsOnHangupAndEndsOnTermination(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "setpriv")
	r := newRouter(t)
	g := r.guest(t, "a", "eth0", macA)
	uplink := nstest.NewHost(t, "uplink")
	nstest.Pair(t, r.Host, "eth2", uplink, "eth0")
	nstest.Pair(t, r.Host, "eth3", uplink, "eth1")
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	r.AddAddr(t, "eth2", "198.51.100.2/24")
	r.AddAddr(t, "eth3", "203.0.113.3/24")
	g.AddAddr(t, "eth0", "10.1.1.34/24")
	p := r.startAs(t, binary)
	// Commands that cannot read the configuration look for the daemon at the default socket.
	if err := os.Mkdir("/run/vragent", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(r.dir+"/api.sock", "/run/vragent/api.sock"); err != nil {
		t.Fatal(err)
	}
	r.put(t, "networks/guest-1.yaml", network)
	r.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	r.applied(t)
	const url = "http://10.1.1.1/latest/public-ipv4"
	serves(t, g, url, "198.51.100.2")

	// hangup writes a configuration and returns what status tells once it was read.
	hangup := func(level, more string) (config api.ConfigStatus) {
		t.Helper()
		before, err := r.client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.configure(t, more)
		r.logLevel(t, level)
		if err := p.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		nstest.Poll(t, waitTime, "the configuration to be read", func() bool {
			status, err := r.client.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			config = status.Config
			return !config.Loaded.Equal(before.Config.Loaded) || len(config.Faults) != len(before.Config.Faults)
		})
		return config
	}
	// noted tells whether a change of a file was logged, which is done at level info.
	const note = `level=INFO msg="unit changed" unit=vms/a`
	noted := func() bool { return strings.Contains(p.Output(), note) }

	config := hangup("debug", "public_interface: eth3\nguest_rate: 7\n")
	if len(config.Faults) != 1 || config.Faults[0].File != r.config || config.Faults[0].Line != 6 || config.Faults[0].Column != 1 {
		t.Errorf("faults = %+v, want one at %s:6:1", config.Faults, r.config)
	}
	if got, err := curl(t, g, url); err != nil || got != "198.51.100.2" {
		t.Errorf("public-ipv4 after a faulty configuration = %q, %v", got, err)
	}
	for _, command := range []string{"status", "check"} {
		stdout, stderr, status := r.vragent(t, binary, command)
		// Lines of status are folded, which cuts paths up.
		if words := strings.Join(strings.Fields(stdout), ""); status != 1 || stderr != "" || !strings.Contains(words, `agent.yaml:6:1:unknownkey"guest_rate"`) {
			t.Errorf("vragent %s: exit status %d, want 1 with the fault\n%s%s", command, status, stdout, stderr)
		}
	}

	config = hangup("warn", "public_interface: eth3\n")
	if len(config.Faults) != 0 || len(config.Restart) != 0 {
		t.Errorf("configuration = %+v, want no faults and nothing for later", config)
	}
	serves(t, g, url, "203.0.113.3")
	r.put(t, "vms/a/user-data", "one")
	r.applied(t, "vms/a")
	if noted() {
		t.Errorf("a line of level info at level warn:\n%s", p.Output())
	}
	hangup("debug", "public_interface: eth2\n")
	serves(t, g, url, "198.51.100.2")
	r.put(t, "vms/a/user-data", "two")
	nstest.Poll(t, waitTime, "a line of level info", noted)

	// What cannot change live is named.
	r.configure(t, "cloudstack: {enabled: true}\n")
	if err := p.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	nstest.Poll(t, waitTime, "cloudstack to be named", func() bool {
		status, err := r.client.Status(t.Context())
		return err == nil && len(status.Config.Restart) == 1 && status.Config.Restart[0] == "cloudstack"
	})

	end(t, p)
	if _, err := os.Lstat(r.dir + "/api.sock"); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
	silent(t, g, "10.1.1.1:80")
}
