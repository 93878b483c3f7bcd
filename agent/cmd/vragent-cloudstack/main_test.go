package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vragent/agent/internal/cloudstack"
	"vragent/netcfg/nstest"
)

// TestMain is the program itself where the test's binary is called by one of its names.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "update_config.py", "vr_cfg.sh":
		main()
	}
	os.Exit(m.Run())
}

// taker takes every file in and remembers their names.
type taker struct{ names []string }

func (t *taker) Apply(_ context.Context, files []cloudstack.File) ([]cloudstack.Result, error) {
	var results []cloudstack.Result
	for _, f := range files {
		name := filepath.Base(f.Name)
		t.names = append(t.names, name)
		r := cloudstack.Result{Name: name, State: cloudstack.Applied}
		if strings.Contains(string(f.Data), "torn") {
			r.State, r.Reason = cloudstack.Rejected, "is torn"
		}
		results = append(results, r)
	}
	return results, nil
}

// original stands for the router's own update_config.py.
const original = `#!/bin/sh
echo original "$@" defer=$DEFER_CONFIG
case $1 in
fail*) exit 3 ;;
kill*) kill -9 $$ ;;
esac
`

func newRouter(t *testing.T, originals bool) (*router, *taker, *bytes.Buffer) {
	t.Helper()
	r := &router{bin: t.TempDir(), in: cloudstack.Intake{Taker: &taker{}, Archive: cloudstack.Archive{Dir: t.TempDir()}}}
	out := &bytes.Buffer{}
	r.out, r.err, r.flush = out, out, func() error { return nil }
	r.log = openLog(filepath.Join(t.TempDir(), "cloud.log"))
	t.Cleanup(func() { r.log.Close() })
	if originals {
		write(t, filepath.Join(r.bin, "update_config.py.cloudstack"), original)
	}
	return r, r.in.Taker.(*taker), out
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestUpdateConfig(t *testing.T) {
	for _, test := range []struct {
		name      string
		originals bool
		files     string // that lie there, with their contents
		args      string
		status    int
		taken     string
		out       string
	}{
		{"ours never starts the original", true, "vm_dhcp_entry.json.u={}", "vm_dhcp_entry.json.u", 0, "vm_dhcp_entry.json.u", ""},
		{"ours that is rejected", true, "vm_metadata.json.u=torn", "vm_metadata.json.u false", 1, "vm_metadata.json.u", "vm_metadata.json.u: rejected: is torn\n"},
		{"ours without a suffix", true, "dhcp.json={}", "dhcp.json", 0, "dhcp.json", ""},
		{"shared goes to both", true, "guest_network.json.u={}", "guest_network.json.u false", 0, "guest_network.json.u", "original guest_network.json.u false defer=\n"},
		{"shared that is rejected goes to both", true, "ip_aliases.json.u=torn", "ip_aliases.json.u", 1, "ip_aliases.json.u", "ip_aliases.json.u: rejected: is torn\noriginal ip_aliases.json.u defer=\n"},
		{"shared that is gone is the original's to judge", true, "", "ip_associations.json.u", 0, "", "original ip_associations.json.u defer=\n"},
		{"foreign goes to the original", true, "fail.json.u={}", "fail.json.u", 3, "", "original fail.json.u defer=\n"},
		{"an original that is killed", true, "kill.json={}", "kill.json", 137, "", "original kill.json defer=\n"},
		{"foreign without an original", false, "firewall_rules.json={}", "firewall_rules.json", 1, "", "firewall_rules.json: a file of this kind is not vragent's, and there is no original update_config.py to hand it to\n"},
		{"shared without an original", false, "guest_network.json.u={}", "guest_network.json.u", 0, "guest_network.json.u", ""},
		{"the router's own file comes first", false, "cmd_line.json={} vm_password.json.u={}", "vm_password.json.u", 0, "cmd_line.json vm_password.json.u", ""},
		{"a broken one of the router is told, and counts for itself", false, "cmd_line.json=torn vm_password.json.u={}", "vm_password.json.u", 0, "cmd_line.json vm_password.json.u", "cmd_line.json: rejected: is torn\n"},
		{"a file that was never there", false, "", "vm_password.json.u", 1, "", "vm_password.json.u: rejected: open DIR/vm_password.json.u: no such file or directory\n"},
		{"a file that was taken in before", false, "processed/vm_password.json.u.gz=", "vm_password.json.u", 0, "", "vm_password.json.u: it was taken in before\n"},
		{"no file at all", true, "", "", 1, "", "usage: update_config.py NAME [false]\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, taken, out := newRouter(t, test.originals)
			dir := r.in.Archive.Dir
			if err := os.Mkdir(dir+"/processed", 0o755); err != nil {
				t.Fatal(err)
			}
			for _, f := range strings.Fields(test.files) {
				name, content, _ := strings.Cut(f, "=")
				write(t, filepath.Join(dir, name), content)
			}
			status := r.run(context.Background(), "update_config.py", strings.Fields(test.args))
			printed := strings.ReplaceAll(out.String(), dir, "DIR")
			if got := strings.Join(taken.names, " "); status != test.status || printed != test.out || got != test.taken {
				t.Errorf("status %d, taken %q, printed %q; want %d, %q, %q", status, got, printed, test.status, test.taken, test.out)
			}
		})
	}
}

func TestAggregatedGoesOnAfterAFault(t *testing.T) {
	r, taken, out := newRouter(t, true)
	flushes := 0
	r.flush = func() error { flushes++; return nil }
	dir := r.in.Archive.Dir
	script := func(line string) string { return "<script>\n" + line + "\n</script>\n" }
	section := func(name, data string) string {
		return "<file>\n" + dir + "/" + name + "\n" + data + "\n</file>\n" + script("/opt/cloud/bin/update_config.py "+name)
	}
	cfg := func(text string) { write(t, dir+"/VR-u.cfg", "#Router\n<version>\n1.0\n</version>\n"+text) }
	call := func() int { return r.run(context.Background(), "vr_cfg.sh", []string{"-c", dir + "/VR-u.cfg"}) }

	cfg(section("vm_metadata.json.1", "torn") + section("vm_dhcp_entry.json.2", "{}") + section("firewall_rules.json.3", "{}") +
		section("guest_network.json.4", "{}") + section("fail.json.5", "{}") + section("vm_password.json.6", "{}") +
		script("[[ 'a  b' == a* ]] && echo shell 'a  b' $DEFER_CONFIG; exit 4") + section("vm_password.json.7", "{}"))
	if status := call(); status != 1 {
		t.Errorf("status %d, want 1\n%s", status, out)
	}
	if got := strings.Join(taken.names, " "); got != "vm_metadata.json.1 vm_dhcp_entry.json.2 guest_network.json.4 vm_password.json.6 vm_password.json.7" {
		t.Errorf("taken: %s", got)
	}
	want := []string{
		"vm_metadata.json.1: rejected: is torn",
		"/opt/cloud/bin/update_config.py fail.json.5: exit status 3; it said, by the end of LOG:",
		"original fail.json.5 defer=true",
		"[[ 'a  b' == a* ]] && echo shell 'a  b' $DEFER_CONFIG; exit 4: exit status 4; it said, by the end of LOG:",
		"shell a  b true",
	}
	var said []string
	for line := range strings.Lines(strings.ReplaceAll(out.String(), r.log.Name(), "LOG")) {
		if !strings.Contains(line, " vragent: ") { // a line of the log
			said = append(said, strings.TrimSpace(line))
		}
	}
	if diff := cmp.Diff(want, said); diff != "" {
		t.Errorf("printed (-want +got):\n%s", diff)
	}
	log, err := os.ReadFile(r.log.Name())
	if err != nil {
		t.Fatal(err)
	}
	at := 0
	for _, part := range []string{"VR-u.cfg: begins", "vm_metadata.json.1: rejected: is torn", "vm_dhcp_entry.json.2: applied", "original firewall_rules.json.3 defer=true",
		"guest_network.json.4: applied", "original guest_network.json.4 defer=true", "vm_password.json.7: applied", "ends with exit status 1"} {
		i := strings.Index(string(log[at:]), part)
		if i < 0 {
			t.Fatalf("the log lacks %q, or has it out of order:\n%s", part, log)
		}
		at += i
	}
	if flushes != 1 {
		t.Errorf("connections were flushed %d times, want once", flushes)
	}

	cfg(section("vm_dhcp_entry.json.2", "{}"))
	for range 2 { // the second time its archived copy answers
		if status := call(); status != 0 {
			t.Errorf("status %d, want 0\n%s", status, out)
		}
	}
	if got := len(taken.names); got != 6 {
		t.Errorf("%d files taken in, want one more than before: %v", got, taken.names)
	}
}

func TestAggregatedFileAfterTheRoutersOwn(t *testing.T) {
	r, taken, out := newRouter(t, false)
	dir := r.in.Archive.Dir
	write(t, dir+"/cmd_line.json", "torn")
	cfg := "<file>\n/c/vm_password.json.1\n{}\n</file>\n<script>\nupdate_config.py vm_password.json.1\n</script>\n<script>\ntrue\n</script>\n"
	write(t, dir+"/VR-u.cfg", cfg+strings.ReplaceAll(cfg, "json.1", "json.2"))
	status := r.run(context.Background(), "vr_cfg.sh", []string{"-c", dir + "/VR-u.cfg"})
	if got := strings.Join(taken.names, " "); status != 0 || got != "cmd_line.json vm_password.json.1 vm_password.json.2" || out.String() != "cmd_line.json: rejected: is torn\n" {
		t.Errorf("status %d, taken %q, printed %q; want 0, the router's own file first and once, and what is wrong with it", status, got, out)
	}
}

func TestAggregatedFileIsNotHeldAsAWhole(t *testing.T) {
	r, taken, out := newRouter(t, false)
	var most int
	r.in.Taker = applier(func(ctx context.Context, files []cloudstack.File) ([]cloudstack.Result, error) {
		size := 0
		for _, f := range files {
			size += len(f.Data)
		}
		most = max(most, size)
		return taken.Apply(ctx, files)
	})
	const n, each = 100, 64 << 10
	var cfg strings.Builder
	for i := range n {
		name := fmt.Sprintf("vm_metadata.json.%d", i)
		cfg.WriteString("<file>\n/c/" + name + "\n" + strings.Repeat("x", each) + "\n</file>\n")
		cfg.WriteString(strings.Repeat("<script>\nupdate_config.py "+name+"\n</script>\n", 2)) // twice is once
	}
	path := r.in.Archive.Dir + "/VR-u.cfg"
	write(t, path, cfg.String())
	if status := r.run(context.Background(), "vr_cfg.sh", []string{"-c", path}); status != 0 || len(taken.names) != n {
		t.Errorf("status %d, %d files taken in; want %d of them\n%s", status, len(taken.names), n, out)
	}
	if most < each || most > batchBytes+2*each {
		t.Errorf("%d bytes at once", most)
	}
	if !r.in.Archive.Has(path) {
		t.Error("it is not archived")
	}
}

// applier is a function that takes files in.
type applier func(context.Context, []cloudstack.File) ([]cloudstack.Result, error)

func (a applier) Apply(ctx context.Context, files []cloudstack.File) ([]cloudstack.Result, error) {
	return a(ctx, files)
}

func TestAggregatedFileThatBreaksOff(t *testing.T) {
	r, taken, out := newRouter(t, true)
	path := r.in.Archive.Dir + "/VR-u.cfg"
	write(t, path, "<file>\n/c/vm_dhcp_entry.json.1\n{}\n</file>\n<script>\nupdate_config.py vm_dhcp_entry.json.1\n</script>\n<file>\n/c/vm_password.json.2\n{")
	if status := r.run(context.Background(), "vr_cfg.sh", []string{"-c", path}); status != 1 || !strings.Contains(out.String(), "VR-u.cfg: line 10: breaks off") || len(taken.names) != 1 {
		t.Errorf("status %d, taken %v, printed %q; want 1, what was whole, and where it breaks off", status, taken.names, out)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("it was taken away: %v", err)
	}
}

// pythonOriginal imports a module beside it, as the router's own does.
const pythonOriginal = `#!/usr/bin/env python3
import os, sys
import configure
print(configure.describe(sys.argv[1:]), os.environ.get("DEFER_CONFIG"), sys.stdin.read())
print("on the other stream", file=sys.stderr)
sys.exit(7)
`

// TestOriginalRunsAsIfNothingWereInItsPlace starts the program by the name of the diverted one, in a
// folder with an original that needs its neighbor.
func TestOriginalRunsAsIfNothingWereInItsPlace(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("python3 is not installed")
	}
	bin, dir := t.TempDir(), t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, bin+"/update_config.py"); err != nil {
		t.Fatal(err)
	}
	write(t, bin+"/update_config.py.cloudstack", pythonOriginal)
	write(t, bin+"/configure.py", "def describe(args):\n    return 'configures ' + ' '.join(args)\n")
	write(t, dir+"/ip_associations.json.u", "{}")
	for _, test := range []struct{ name, file, out string }{
		{"foreign", "firewall_rules.json.u", "configures firewall_rules.json.u false true input\n"},
		// The agent takes it in first.
		{"shared", "ip_associations.json.u", "configures ip_associations.json.u false true input\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := exec.Command(bin+"/update_config.py", test.file, "false")
			cmd.Env = append(os.Environ(), "VRAGENT_CLOUD_BIN="+bin, "VRAGENT_CLOUD_DIR="+dir, "VRAGENT_CLOUD_LOG="+dir+"/log",
				"VRAGENT_SOCKET="+agentSocket(t), "DEFER_CONFIG=true")
			cmd.Stdin = strings.NewReader("input")
			var out, errs bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &errs
			_ = cmd.Run() // its status is looked at
			if status := cmd.ProcessState.ExitCode(); status != 7 || out.String() != test.out || errs.String() != "on the other stream\n" {
				t.Errorf("status %d, output %q and %q; want 7, %q and the original's other line", status, out.String(), errs.String(), test.out)
			}
		})
	}
}

// agentSocket is the socket of an agent that applies whatever it gets.
func agentSocket(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var body struct{ Files []cloudstack.File }
		if err := json.NewDecoder(req.Body).Decode(&body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		results, _ := new(taker).Apply(req.Context(), body.Files)
		answer, _ := json.Marshal(map[string]any{"results": results})
		_, _ = io.Copy(w, bytes.NewReader(answer))
	})}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
	return path
}

// TestFlushConntrack has the kernel track a connection and forget it.
func TestFlushConntrack(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("nft is not installed")
	}
	if !nstest.Enter(t) {
		return
	}
	h := nstest.Here(t)
	if out, err := h.Output(t, "nft", "add table ip t; add chain ip t c { type filter hook output priority 0; }; add rule ip t c ct state new accept"); err != nil {
		t.Skipf("no connection tracking here: %v\n%s", err, out)
	}
	count := func() string {
		text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
		if err != nil {
			t.Skipf("connections cannot be counted: %v", err)
		}
		return strings.TrimSpace(string(text))
	}
	conn, err := net.Dial("udp4", "127.0.0.1:9")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if got := count(); got == "0" {
		t.Skip("the kernel does not track connections here")
	}
	if err := flushConntrack(); err != nil {
		t.Fatal(err)
	}
	if got := count(); got != "0" {
		t.Errorf("%s connections are tracked after the flush", got)
	}
}
