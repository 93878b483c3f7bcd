package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vragent/netcfg/nstest"
)

// applyFiles hands files of a management server to the agent over its socket, and returns the answer.
func applyFiles(t *testing.T, r *router, paths ...string) string {
	t.Helper()
	type file struct {
		Name string `json:"name"`
		Data []byte `json:"data"`
	}
	var files []file
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file{filepath.Base(path), data})
	}
	body, err := json.Marshal(map[string]any{"files": files})
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", r.dir+"/api.sock")
	}}}
	defer client.CloseIdleConnections()
	res, err := client.Post("http://agent/v1/cloudstack/apply", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("apply: %s, %v: %s", res.Status, err, answer)
	}
	return string(answer)
}

func TestFilesOfACloudStackServerServeAGuest(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	r.configure(t, "cloudstack: {enabled: true}\n")
	g := r.guest(t, "web-01", "eth0", "02:01:00:cb:00:02")
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	r.start(t)
	testdata := "../internal/cloudstack/testdata/"
	answer := applyFiles(t, r, testdata+"cmd_line.json",
		testdata+"vm_dhcp_entry.json.1", testdata+"vm_metadata.json.1", testdata+"vm_password.json.1")
	if strings.Contains(answer, "rejected") {
		t.Fatalf("apply: %s", answer)
	}
	lease(t, g, "10.1.1.50")
	if got, err := curl(t, g, "http://10.1.1.1/latest/instance-id"); got != "0b3b9a6e-3d3d-4c55-a4f6-1f6b1f0f9d77" {
		t.Errorf("instance-id = %q, %v", got, err)
	}
	if got, err := g.Output(t, "curl", "-sS", "--max-time", "5", "-H", "DomU_Request: send_my_password", "http://10.1.1.1:8080/"); got != "Xk7&=%+q$z" {
		t.Errorf("password = %q, %v", got, err)
	}
}
