package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vragent/agent"
	"vragent/agent/internal/api"
	"vragent/netcfg/nstest"
)

// router is an agent on a router of the test's own.
//
//	test's namespaces: the agent, and its devices eth0, eth1, ...
//	      │ eth0                  │ eth1
//	   guest a                 guest b
type router struct {
	*nstest.Host
	dir    string // all of its files
	drop   string // the drop directory
	config string // agent.yaml
	log    *logBuffer
	now    func() time.Time // the agent's clock; nil: the machine's

	agent  *agent.Agent
	client *api.Client
	stop   func()
}

// newRouter makes the links; start starts the agent.
func newRouter(t *testing.T) *router {
	t.Helper()
	dir := t.TempDir()
	r := &router{Host: nstest.Here(t), dir: dir, drop: dir + "/drop", config: dir + "/agent.yaml", log: &logBuffer{}}
	r.configure(t, "")
	t.Cleanup(func() {
		if r.stop != nil {
			r.stop()
		}
		if t.Failed() {
			t.Logf("log of the agent:\n%s", r.log)
		}
	})
	return r
}

// configure writes agent.yaml: the paths of the test, and more.
func (r *router) configure(t *testing.T, more string) {
	t.Helper()
	text := fmt.Sprintf("drop_dir: %s\nstate_dir: %s/state\napi: {socket: %s/api.sock}\nlog: {level: debug}\n%s", r.drop, r.dir, r.dir, more)
	if err := os.WriteFile(r.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// start runs the agent until stop, and returns once it serves.
func (r *router) start(t testing.TB) {
	t.Helper()
	ready := make(chan struct{})
	a, err := agent.New(agent.Options{Config: r.config, Version: "test", Log: r.log, Now: r.now, Ready: func() { close(ready) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	r.agent, r.client = a, api.Dial(r.dir+"/api.sock")
	r.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("agent: %v", err)
		}
		r.client.Close()
		r.stop = nil
	}
	select {
	case <-ready:
	case err := <-done:
		r.stop = nil
		t.Fatalf("agent ended: %v\n%s", err, r.log)
	case <-time.After(20 * time.Second):
		t.Fatalf("agent does not serve\n%s", r.log)
	}
}

// put drops a file under its final name by rename.
func (r *router) put(t testing.TB, path, content string) {
	t.Helper()
	path = filepath.Join(r.drop, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o770); err != nil {
		t.Fatal(err)
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, []byte(content), 0o660); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

func (r *router) remove(t testing.TB, path string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(r.drop, path)); err != nil {
		t.Fatal(err)
	}
}

// wait waits until paths, or everything, has been judged, and returns what came of it.
func (r *router) wait(t testing.TB, paths ...string) api.WaitResult {
	t.Helper()
	result, err := r.client.Wait(context.Background(), paths, 2*time.Minute)
	if err != nil {
		t.Fatalf("wait %v: %v", paths, err)
	}
	return result
}

// applied waits, and fails the test unless all is applied.
func (r *router) applied(t testing.TB, paths ...string) {
	t.Helper()
	if result := r.wait(t, paths...); result.State != api.Applied {
		t.Fatalf("wait %v = %+v, want applied", paths, result)
	}
}

// rejected waits for one path and returns the reasons why it is rejected.
func (r *router) rejected(t testing.TB, path string) string {
	t.Helper()
	result := r.wait(t, path)
	if result.State != api.Rejected || len(result.Units) != 1 {
		t.Fatalf("wait %s = %+v, want rejected", path, result)
	}
	var reasons []string
	for _, f := range result.Units[0].Reasons {
		reasons = append(reasons, f.String())
	}
	return strings.Join(reasons, "\n")
}

// guest makes a guest whose eth0 is on the router's device.
func (r *router) guest(t *testing.T, name, device, mac string) *nstest.Host {
	t.Helper()
	g := nstest.NewHost(t, name)
	nstest.Pair(t, r.Host, device, g, "eth0")
	g.SetMAC(t, "eth0", mac)
	return g
}

// curl fetches a path from an address as a guest; what is not 200 is an error with the status.
func curl(t testing.TB, g *nstest.Host, url string) (string, error) {
	t.Helper()
	return g.Output(t, "curl", "-sSf", "--max-time", "5", "--noproxy", "*", url)
}

// logBuffer collects what the agent logs.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

var _ io.Writer = (*logBuffer)(nil)

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
