package api_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vragent/agent/internal/api"
)

// fakeBackend answers with what a test put in.
type fakeBackend struct {
	status   api.Status
	networks []api.Network
	vms      []api.VM
	explain  map[string]api.Explanation
	wait     func(ctx context.Context, paths []string) (api.WaitResult, error)
}

func (b *fakeBackend) Status(context.Context) api.Status      { return b.status }
func (b *fakeBackend) Networks(context.Context) []api.Network { return b.networks }
func (b *fakeBackend) VMs(context.Context) []api.VM           { return b.vms }

func (b *fakeBackend) Explain(_ context.Context, subject string) (api.Explanation, error) {
	if e, ok := b.explain[subject]; ok {
		return e, nil
	}
	return api.Explanation{}, fmt.Errorf("%w: no VM, MAC or address %q", api.ErrUnknown, subject)
}

func (b *fakeBackend) Wait(ctx context.Context, paths []string) (api.WaitResult, error) {
	return b.wait(ctx, paths)
}

// serveLocal serves the local API of b on a socket of its own and returns a client for it.
func serveLocal(t *testing.T, b api.Backend, opts api.LocalOptions) (*api.Client, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "api.sock")
	ln, err := api.ListenUnix(path, "no such group", nil)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, ln, api.Local(b, opts))
	c := api.Dial(path)
	t.Cleanup(c.Close)
	return c, path
}

// serve runs h on ln until the test ends.
func serve(t *testing.T, ln net.Listener, h http.Handler) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.Serve(ctx, ln, h, api.HeaderFor(0), nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve() = %v after its context ended, want nil", err)
		}
	})
}

func TestClientReadsReports(t *testing.T) {
	seen := time.Date(2026, 11, 24, 5, 30, 0, 0, time.UTC)
	b := &fakeBackend{
		status:   api.Status{Version: "1.0", VMs: map[api.State]int{api.Applied: 2, api.Rejected: 1}},
		networks: []api.Network{{Name: "guest-1", Unit: api.Unit{State: api.Applied}, Guests: 2}},
		vms: []api.VM{{Name: "web", Unit: api.Unit{State: api.Rejected, Reasons: []api.Fault{{File: "vms/web/vm.yaml", Line: 3, What: "no such network"}}},
			NICs: []api.NIC{{Network: "guest-1", IPv4: "10.1.1.34", LastSeen: &seen}}}},
		explain: map[string]api.Explanation{"10.1.1.34": {Subject: "10.1.1.34", Answer: "it is served"}},
	}
	c, _ := serveLocal(t, b, api.LocalOptions{})
	ctx := t.Context()

	status, err := c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b.status, status); diff != "" {
		t.Errorf("Status() differs (-want +got):\n%s", diff)
	}
	networks, err := c.Networks(ctx)
	if diff := cmp.Diff(b.networks, networks); err != nil || diff != "" {
		t.Errorf("Networks() error %v, differs (-want +got):\n%s", err, diff)
	}
	vms, err := c.VMs(ctx)
	if diff := cmp.Diff(b.vms, vms); err != nil || diff != "" {
		t.Errorf("VMs() error %v, differs (-want +got):\n%s", err, diff)
	}
	e, err := c.Explain(ctx, "10.1.1.34")
	if diff := cmp.Diff(b.explain["10.1.1.34"], e); err != nil || diff != "" {
		t.Errorf("Explain() error %v, differs (-want +got):\n%s", err, diff)
	}
	if _, err := c.Explain(ctx, "a b&c"); !errors.Is(err, api.ErrUnknown) || !strings.Contains(err.Error(), `"a b&c"`) {
		t.Errorf("Explain(unknown) = %v, want ErrUnknown that names the subject", err)
	}
}

func TestClientWaits(t *testing.T) {
	b := &fakeBackend{}
	c, _ := serveLocal(t, b, api.LocalOptions{})

	t.Run("done", func(t *testing.T) {
		var asked []string
		b.wait = func(_ context.Context, paths []string) (api.WaitResult, error) {
			asked = paths
			return api.WaitResult{State: api.Pending}, nil
		}
		res, err := c.Wait(t.Context(), []string{"vms/web"}, time.Minute)
		if err != nil || res.State != api.Pending {
			t.Errorf("Wait() = %v, %v, want pending", res, err)
		}
		if diff := cmp.Diff([]string{"vms/web"}, asked); diff != "" {
			t.Errorf("paths differ (-want +got):\n%s", diff)
		}
	})
	t.Run("time over", func(t *testing.T) {
		b.wait = func(ctx context.Context, _ []string) (api.WaitResult, error) {
			<-ctx.Done()
			return api.WaitResult{Unsettled: []string{"vms/web"}}, ctx.Err()
		}
		res, err := c.Wait(t.Context(), nil, time.Millisecond)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait() error %v, want deadline exceeded", err)
		}
		if diff := cmp.Diff([]string{"vms/web"}, res.Unsettled); diff != "" {
			t.Errorf("unsettled differs (-want +got):\n%s", diff)
		}
	})
	t.Run("client goes away", func(t *testing.T) {
		started, ended := make(chan struct{}), make(chan struct{})
		b.wait = func(ctx context.Context, _ []string) (api.WaitResult, error) {
			close(started)
			<-ctx.Done()
			close(ended)
			return api.WaitResult{}, ctx.Err()
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-started; cancel() }()
		if _, err := c.Wait(ctx, nil, 0); !errors.Is(err, context.Canceled) {
			t.Errorf("Wait() error %v, want canceled", err)
		}
		<-ended
	})
}

func TestServeEndsWaitsWhenTheDaemonStops(t *testing.T) {
	started := make(chan struct{})
	b := &fakeBackend{wait: func(ctx context.Context, _ []string) (api.WaitResult, error) {
		close(started)
		<-ctx.Done()
		return api.WaitResult{}, ctx.Err()
	}}
	path := filepath.Join(t.TempDir(), "api.sock")
	ln, err := api.ListenUnix(path, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- api.Serve(ctx, ln, api.Local(b, api.LocalOptions{}), api.HeaderFor(0), nil) }()
	go func() { <-started; cancel() }()

	c := api.Dial(path)
	if _, err := c.Wait(t.Context(), nil, 0); err == nil || err.Error() != "the daemon is stopping" {
		t.Errorf("Wait() error %v, want that the daemon is stopping", err)
	}
	if err := <-done; err != nil {
		t.Errorf("Serve() = %v, want nil", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, api.ErrNoDaemon) || !strings.Contains(err.Error(), path) {
		t.Errorf("Status() = %v, want ErrNoDaemon that names the socket", err)
	}
}

func TestLocalRefusesBadRequests(t *testing.T) {
	_, path := serveLocal(t, &fakeBackend{}, api.LocalOptions{Ready: func() error { return errors.New("port 67 is taken") }})
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	t.Cleanup(client.CloseIdleConnections)
	tests := []struct {
		name, method, target, body string
		want                       int
	}{
		{"no subject", "GET", "/v1/explain", "", 400},
		{"no body", "POST", "/v1/wait", "", 400},
		{"unknown field", "POST", "/v1/wait", `{"path": []}`, 400},
		{"two objects", "POST", "/v1/wait", `{} {}`, 400},
		{"negative time", "POST", "/v1/wait", `{"timeout_seconds": -1}`, 400},
		{"body too large", "POST", "/v1/wait", `{"paths": ["` + strings.Repeat("x", 5<<20) + `"]}`, 400},
		{"wrong method", "POST", "/v1/status", "", 405},
		{"unknown path", "GET", "/v2/status", "", 404},
		{"alive", "GET", "/healthz", "", 200},
		{"not ready", "GET", "/readyz", "", 503},
		{"empty lists are lists", "GET", "/v1/vms", "", 200},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), tt.method, "http://vragent"+tt.target, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if res.StatusCode != tt.want {
				t.Errorf("status %d, want %d", res.StatusCode, tt.want)
			}
		})
	}
}

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "api.sock")

	// Left behind by a daemon that was killed.
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	ln, err := api.ListenUnix(path, "no such group", nil)
	if err != nil {
		t.Fatalf("a stale socket is in the way: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600 where there is no group", info.Mode(), err)
	}

	// While it lives nobody takes it away.
	if _, err := api.ListenUnix(filepath.Join(filepath.Dir(path), "none", "api.sock"), "", nil); err == nil || !strings.Contains(err.Error(), "the folder of ") {
		t.Errorf("ListenUnix() without a folder = %v, want that it is not there", err)
	}
	if _, err := api.ListenUnix(path, "", nil); err == nil || !strings.Contains(err.Error(), "another daemon answers") {
		t.Errorf("second ListenUnix() = %v, want that another daemon answers", err)
	}
	if err := ln.Close(); err != nil {
		t.Errorf("Close() = %v", err)
	}

	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := api.ListenUnix(path, "", nil); err == nil {
		t.Error("ListenUnix() replaced a file that is no socket")
	}
}

func TestListenUnixCloseLeavesASuccessorAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "api.sock")
	first, err := api.ListenUnix(path, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := api.ListenUnix(path, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Errorf("Close() = %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("closing the first listener took the second one's socket away: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Errorf("Close() = %v", err)
	}
}

// TestLocalAdmitsRootAndGroupOnly connects as root, as a member of the group and as a stranger,
// to a socket whose mode somebody has opened to all.
func TestLocalAdmitsRootAndGroupOnly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("becoming another user needs root")
	}
	for _, program := range []string{"setpriv", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s", program)
		}
	}
	dir, err := os.MkdirTemp("/tmp", "vragent-api-") // below t.TempDir nobody else may look
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "api.sock")
	ln, err := api.ListenUnix(path, "daemon", nil)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v, want 0660", info.Mode(), err)
	}
	serve(t, ln, api.Local(&fakeBackend{}, api.LocalOptions{}))

	tests := []struct {
		name string
		mode os.FileMode
		as   []string
		want string
	}{
		{"root", 0o660, []string{"--reuid=root", "--regid=root", "--clear-groups"}, "200"},
		{"supplementary group", 0o660, []string{"--reuid=nobody", "--regid=nogroup", "--groups=daemon"}, "200"},
		{"primary group", 0o660, []string{"--reuid=nobody", "--regid=daemon", "--clear-groups"}, "200"},
		{"stranger", 0o660, []string{"--reuid=nobody", "--regid=nogroup", "--clear-groups"}, "000"},
		{"stranger at an open socket", 0o666, []string{"--reuid=nobody", "--regid=nogroup", "--clear-groups"}, "403"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.Chmod(path, tt.mode); err != nil {
				t.Fatal(err)
			}
			args := append(tt.as, "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "20", "--unix-socket", path, "http://vragent/v1/status")
			out, _ := exec.Command("setpriv", args...).Output() // curl fails where it may not connect: 000
			if got := string(out); got != tt.want {
				t.Errorf("status %s, want %s", got, tt.want)
			}
		})
	}
}
