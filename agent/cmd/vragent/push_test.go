package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vragent/agent/internal/api"
)

// pushed serves a daemon that takes bundles whose sum is right, and whose only job goes through states,
// one at each question.
func pushed(t *testing.T, states ...api.Job) (config string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "api.sock")
	ln, err := api.ListenUnix(socket, "no such group", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer := func(w http.ResponseWriter, v any) {
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	}
	var asked atomic.Int64
	more := map[string]http.Handler{
		"POST /client/api": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			sum := sha256.New()
			_, err := io.Copy(sum, r.Body)
			if got := r.URL.Query().Get("sha256"); err != nil || got != hex.EncodeToString(sum.Sum(nil)) {
				answer(w, map[string]any{"pushbundleresponse": map[string]any{"errorcode": 431, "errortext": fmt.Sprintf("sum %s is wrong: %v", got, err)}})
				return
			}
			answer(w, map[string]any{"pushbundleresponse": map[string]string{"jobid": "job-" + r.URL.Query().Get("mode")}})
		}),
		"GET /v1/jobs/{id}": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			answer(w, states[min(int(asked.Add(1)), len(states))-1])
		}),
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- api.Serve(ctx, ln, api.Local(&router{}, api.LocalOptions{More: more}), api.HeaderFor(0), nil)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return writeConfig(t, socket)
}

func TestPushFollowsItsJob(t *testing.T) {
	folder := tree(t, map[string]string{"networks/g.yaml": "a", "vms/web/vm.yaml": "b", "vms/web/user-data": strings.Repeat("x", 1<<20)})
	open := api.Job{State: "open", Percent: 30, Note: "network guest-1 is not there", Created: time.Now()}
	tests := []struct {
		name string
		mode string
		jobs []api.Job
		want result
	}{
		{"done", "merge", []api.Job{{State: "done", Percent: 100}}, result{0, "job job-merge is done\n", "100 %\n"}},
		{"failed", "replace", []api.Job{{State: "failed", Percent: 50, Error: "vms/web is rejected"}},
			result{1, "", "50 %\nvragent: job job-replace failed: vms/web is rejected\n"}},
		{"waits", "merge", []api.Job{open, open, {State: "done", Percent: 100}},
			result{0, "job job-merge is done\n", "30 %\nwaits for network guest-1 is not there\n100 %\n"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := runCLI(t, false, "push", "--mode", tt.mode, folder, "--config", pushed(t, tt.jobs...))
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(result{})); diff != "" {
				t.Errorf("vragent push (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPushRefusesAFolderThatIsNoDropDirectory(t *testing.T) {
	folder := t.TempDir()
	want := result{1, "", "vragent: " + folder + " is no drop directory: it has neither networks nor vms\n"}
	got := runCLI(t, false, "push", "--mode", "replace", folder, "--config", pushed(t))
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(result{})); diff != "" {
		t.Errorf("vragent push (-want +got):\n%s", diff)
	}
}
