package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestRunTellsSystemd runs the daemon as a unit of Type=notify with a watchdog does.
func TestRunTellsSystemd(t *testing.T) {
	dir := t.TempDir()
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { manager.Close() })
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	t.Setenv("WATCHDOG_USEC", "100000")

	config := writeRunConfig(t, dir)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var log bytes.Buffer // read when the daemon has ended
	ended := make(chan int, 1)
	go func() {
		ended <- execute(ctx, stdio{out: &log, err: &log, now: time.Now}, []string{"run", "--config", config})
	}()

	// want waits for the daemon to say something; its heartbeat may come at any time.
	want := func(said string) {
		t.Helper()
		for {
			message := make([]byte, 256)
			if err := manager.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			n, err := manager.Read(message)
			if err != nil {
				t.Fatalf("the daemon does not say %q: %v", said, err)
			}
			switch got := string(message[:n]); got {
			case said:
				return
			case "WATCHDOG=1":
			default:
				t.Fatalf("the daemon says %q, want %q", got, said)
			}
		}
	}

	want("FDSTORE=1\nFDPOLL=0\nFDNAME=api.socket")
	want("READY=1")
	want("WATCHDOG=1")
	if got := runCLI(t, false, "status", "--config", config); got.status != exitOK {
		t.Errorf("vragent status of a daemon that is ready: %+v", got)
	}

	// A configuration with a fault is refused, and that ends nothing.
	if err := os.WriteFile(config, []byte("no_such_key: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	want("RELOADING=1")
	want("READY=1")
	writeRunConfig(t, dir)
	if got := runCLI(t, false, "status", "--config", config); got.status != exitFailed || !strings.Contains(got.out, "no_such_key") {
		t.Errorf("vragent status with a configuration that was refused: %+v", got)
	}

	stop()
	want("STOPPING=1")
	if status := <-ended; status != exitOK {
		t.Errorf("exit status %d after SIGTERM, want 0; its log:\n%s", status, log.String())
	}
}

// writeRunConfig writes a configuration that keeps everything inside dir.
func writeRunConfig(t *testing.T, dir string) (config string) {
	t.Helper()
	config = filepath.Join(dir, "agent.yaml")
	text := "drop_dir: DIR/drop\nstate_dir: DIR/state\napi: {socket: DIR/api.sock}\n"
	if err := os.WriteFile(config, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	return config
}

func TestRunDoesNotStartWithAFaultyConfiguration(t *testing.T) {
	config := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(config, []byte("drop_dri: /srv/drop\nlog: {level: loud}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := runCLI(t, false, "run", "--config", config)
	if got.status != exitFailed || got.out != "" || strings.Count(got.err, "\n") != 1 {
		t.Errorf("vragent run = %+v, want exit status 1 and one line on standard error", got)
	}
	for _, place := range []string{config + ":1:1: ", config + ":2:"} {
		if !strings.Contains(got.err, place) {
			t.Errorf("%q does not name %q", got.err, place)
		}
	}
}

func TestVersionNamesTheBuild(t *testing.T) {
	defer func(v, c string) { version, commit = v, c }(version, commit)
	version, commit = "1.2.3", "0123456789ab"
	got := runCLI(t, false, "version")
	lines := strings.Split(got.out, "\n")
	if diff := cmp.Diff([]string{"vragent 1.2.3", "commit  0123456789ab"}, lines[:2]); diff != "" || got.status != exitOK {
		t.Errorf("vragent version (-want +got):\n%s", diff)
	}
}
