package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestFiguresOfPushes(t *testing.T) {
	r, _, binary := figuresRouter(t)
	if r == nil {
		return
	}
	w := figures(t)
	d := startDaemon(t, r, binary)
	defer d.stop(t)
	r.put(t, "networks/g.yaml", figuresNetwork)
	var bundle bytes.Buffer
	packVMs(&bundle, 10_000)
	sum := sha256.Sum256(bundle.Bytes())
	began := time.Now()
	id, err := r.client.PushBundle(t.Context(), &bundle, hex.EncodeToString(sum[:]), false)
	if err != nil {
		t.Fatal(err)
	}
	if j := r.ended(t, id); j != "done" {
		t.Fatalf("job of the bundle: %s", j)
	}
	fmt.Fprintf(w, "pushBundle of 10,000 VMs until the job is done\t10000\t%.1f s\t6 s\n", time.Since(began).Seconds())

	push := pusher(r)
	var times []float64
	for i := range 100 {
		began := time.Now()
		id := push(t, fmt.Sprintf("vm-%d", 1000+i), "dGltZWQ=")
		if j := r.ended(t, id); j != "done" {
			t.Fatalf("job of a push: %s", j)
		}
		times = append(times, float64(time.Since(began).Microseconds())/1000)
	}
	slices.Sort(times)
	fmt.Fprintf(w, "push of one VM, acknowledged on disk, to in force, median of 100\t10000\t%.1f ms\t10 ms\n", times[len(times)/2])

	const clients, length = 16, 3 * time.Second
	var acknowledged atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(length)
	for c := range clients {
		wg.Go(func() {
			push := pusher(r)
			for i := 0; time.Now().Before(end); i++ {
				push(t, fmt.Sprintf("vm-%d", 2000+c*100+i%100), "cHVzaGVk")
				acknowledged.Add(1)
			}
		})
	}
	wg.Wait()
	fmt.Fprintf(w, "acknowledged pushes a second, %d clients, each durable\t10000\t%.0f\t500\n", clients, float64(acknowledged.Load())/length.Seconds())
}

// packVMs writes a bundle of VMs as they lie in the drop directory.
func packVMs(out io.Writer, n int) {
	w := tar.NewWriter(out)
	for i := range n {
		dir := fmt.Sprintf("vms/vm-%d/", i)
		for name, data := range map[string]string{
			"user-data":      strings.Repeat("x", 500),
			"meta-data.yaml": fmt.Sprintf("instance-id: id-%d\nservice-offering: Small\n", i),
			"vm.yaml":        vm(fmt.Sprintf("vm-%d", i), "g", fmt.Sprintf("02:00:00:%02x:%02x:%02x", i>>16, i>>8&255, i&255), vmAddress(i)),
		} {
			w.WriteHeader(&tar.Header{Name: dir + name, Mode: 0o660, Size: int64(len(data)), Typeflag: tar.TypeReg})
			io.WriteString(w, data)
		}
	}
	w.Close()
}

// pusher returns a client of its own that pushes user data of a VM and returns the job's id.
func pusher(r *router) func(t *testing.T, vm, userData string) string {
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", r.dir+"/api.sock")
	}}}
	return func(t *testing.T, vm, userData string) string {
		res, err := client.PostForm("http://agent/client/api", url.Values{
			"command": {"pushVirtualMachine"}, "response": {"json"}, "id": {vm}, "userdata": {userData},
		})
		if err != nil {
			t.Error(err)
			return ""
		}
		defer res.Body.Close()
		var answer map[string]struct{ JobID, ErrorText string }
		if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
			t.Error(err)
		}
		for _, a := range answer {
			if a.JobID == "" {
				t.Errorf("push of %s: %s", vm, a.ErrorText)
			}
			return a.JobID
		}
		return ""
	}
}

// ended waits for the end of a job and returns its state.
func (r *router) ended(t *testing.T, id string) string {
	t.Helper()
	for began := time.Now(); time.Since(began) < 2*time.Minute; time.Sleep(time.Millisecond) {
		j, err := r.client.Job(t.Context(), id)
		if err != nil {
			t.Fatalf("job %s: %v", id, err)
		}
		if j.State != "open" {
			return j.State
		}
	}
	return "open"
}
