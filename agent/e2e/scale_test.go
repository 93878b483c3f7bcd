package e2e

import (
	"archive/tar"
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vragent/agent/internal/api"
	"vragent/netcfg/nstest"
)

// largeNetwork has room for a whole site's guests.
const largeNetwork = "interface: eth0\ngateway: 10.1.0.1/16\n"

// largeMAC and largeIP belong to the i-th VM of archiveVMs.
func largeMAC(i int) string { return fmt.Sprintf("02:00:4c:60:%02x:%02x", i>>8, i&255) }
func largeIP(i int) string  { return fmt.Sprintf("10.1.%d.%d", 1+i/250, 1+i%250) }

// archiveVMs writes a tar archive of a drop directory with n VMs.
func archiveVMs(t *testing.T, name string, n int) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buffer := bufio.NewWriter(f)
	w := tar.NewWriter(buffer)
	add := func(path, content string) {
		header := &tar.Header{Name: path, Mode: 0o660, Size: int64(len(content)), ModTime: time.Now(), Typeflag: tar.TypeReg}
		if err := w.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		// As an archive of a folder has them: vm.yaml comes before or after the rest by chance.
		add(fmt.Sprintf("vms/vm-%d/vm.yaml", i), vm(fmt.Sprintf("vm-%d", i), "large", largeMAC(i), largeIP(i)))
		add(fmt.Sprintf("vms/vm-%d/user-data", i), fmt.Sprintf("I am vm-%d", i))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := buffer.Flush(); err != nil {
		t.Fatal(err)
	}
}

// TestTenThousandVMsComeAndGo unpacks a site over a running agent and removes it again, while another
// tenant's guest goes on reading.
func TestTenThousandVMsComeAndGo(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t) // without the race detector, which would be most of the time
	if !nstest.Enter(t) {
		return
	}
	const n = 10_000
	r := newRouter(t)
	g := r.guest(t, "last", "eth0", largeMAC(n-1))
	other := r.guest(t, "other", "eth1", macB)
	r.AddAddr(t, "eth0", "10.1.0.1/16")
	r.AddAddr(t, "eth1", "10.2.1.1/24")
	g.AddAddr(t, "eth0", largeIP(n-1)+"/16")
	other.AddAddr(t, "eth0", "10.2.1.34/24")
	r.logLevel(t, "info")
	p := r.startAs(t, binary)
	r.put(t, "networks/large.yaml", largeNetwork)
	r.put(t, "networks/other.yaml", "interface: eth1\ngateway: 10.2.1.1/24\n")
	r.put(t, "vms/other/user-data", "I am other")
	r.put(t, "vms/other/vm.yaml", vm("other", "other", macB, "10.2.1.34"))
	r.applied(t)
	stop := undisturbed(t, other, "http://10.2.1.1/latest/user-data")

	archive := filepath.Join(r.dir, "site.tar")
	archiveVMs(t, archive, n)
	r.Run(t, "tar", "-x", "-f", archive, "-C", r.drop)
	r.applied(t)
	status, err := r.client.Status(t.Context())
	if err != nil || status.VMs[api.Applied] != n+1 {
		t.Errorf("applied are %d VMs of %d, %v", status.VMs[api.Applied], n+1, err)
	}
	if got, err := curl(t, g, "http://10.1.0.1/latest/user-data"); err != nil || got != fmt.Sprintf("I am vm-%d", n-1) {
		t.Errorf("user-data of the last one = %q, %v", got, err)
	}
	stop()

	r.Run(t, "rm", "-rf", r.drop+"/vms")
	r.applied(t)
	status, err = r.client.Status(t.Context())
	if left := status.VMs[api.Applied] + status.VMs[api.Pending] + status.VMs[api.Rejected]; err != nil || left != 0 {
		t.Errorf("%d VMs are left after all were removed, %v", left, err)
	}
	if _, err := curl(t, g, "http://10.1.0.1/latest/user-data"); err == nil {
		t.Error("a removed VM is still served")
	}

	// The folder that was removed comes back with the next VM.
	r.put(t, "vms/again/user-data", "again")
	r.put(t, "vms/again/vm.yaml", vm("again", "large", largeMAC(n-1), largeIP(n-1)))
	r.applied(t)
	if got, err := curl(t, g, "http://10.1.0.1/latest/user-data"); err != nil || got != "again" {
		t.Errorf("user-data of a VM dropped after all were removed = %q, %v", got, err)
	}
	end(t, p)
}

// TestFoldersBeyondTheKernelsWatches: where the kernel gives no more watches the rest is scanned.
func TestFoldersBeyondTheKernelsWatches(t *testing.T) {
	t.Parallel()
	if !nstest.Enter(t) {
		return
	}
	const n, watches = 200, 60
	// The limit of this user namespace; the machine's own stays as it is.
	if err := os.WriteFile("/proc/sys/user/max_inotify_watches", fmt.Append(nil, watches), 0); err != nil {
		t.Skipf("no limit can be set here: %v", err)
	}
	r := newRouter(t)
	guests := make([]*nstest.Host, 2) // the first VM of all, and the last
	index := []int{0, n - 1}
	for i, name := range []string{"first", "last"} {
		guests[i] = r.guest(t, name, name, largeMAC(index[i]))
		guests[i].AddAddr(t, "eth0", largeIP(index[i])+"/16")
	}
	r.Bridge(t, "eth0", "first", "last")
	r.AddAddr(t, "eth0", "10.1.0.1/16")
	r.start(t)
	r.put(t, "networks/large.yaml", largeNetwork)
	archive := filepath.Join(r.dir, "site.tar")
	archiveVMs(t, archive, n)
	r.Run(t, "tar", "-x", "-f", archive, "-C", r.drop)
	r.applied(t)
	status, err := r.client.Status(t.Context())
	if err != nil || status.VMs[api.Applied] != n || status.Watch.Watched+status.Watch.Unwatched != n || status.Watch.Unwatched < n-watches {
		t.Fatalf("status: VMs %v, watch %+v, %v; want %d VMs, fewer than %d folders with a watch", status.VMs, status.Watch, err, n, watches)
	}
	change := func(i int, content string) {
		t.Helper()
		if err := os.WriteFile(fmt.Sprintf("%s/vms/vm-%d/user-data", r.drop, index[i]), []byte(content), 0o660); err != nil {
			t.Fatal(err)
		}
	}
	for i := range guests {
		change(i, "waited for")
		r.applied(t, fmt.Sprintf("vms/vm-%d", index[i]))
		if got, err := curl(t, guests[i], "http://10.1.0.1/latest/user-data"); err != nil || got != "waited for" {
			t.Errorf("user-data of vm-%d after wait = %q, %v", index[i], got, err)
		}
	}
	for i := range guests {
		change(i, "found")
		nstest.Poll(t, 20*time.Second, fmt.Sprintf("change of vm-%d is found", index[i]), func() bool {
			got, err := curl(t, guests[i], "http://10.1.0.1/latest/user-data")
			return err == nil && got == "found"
		})
	}
	r.remove(t, fmt.Sprintf("vms/vm-%d", n-1))
	r.applied(t)
	if _, err := curl(t, guests[1], "http://10.1.0.1/latest/user-data"); err == nil {
		t.Error("a removed VM without a watch is still served")
	}

	// With fewer VMs than watches, every folder has one again.
	for i := watches / 2; i < n; i++ {
		r.remove(t, fmt.Sprintf("vms/vm-%d", i))
	}
	nstest.Poll(t, 20*time.Second, "all folders have a watch", func() bool {
		status, err := r.client.Status(t.Context())
		return err == nil && status.Watch.Unwatched == 0 && status.Watch.Watched == watches/2
	})
}

// logLevel changes the level of agent.yaml.
func (r *router) logLevel(t *testing.T, level string) {
	t.Helper()
	text, err := os.ReadFile(r.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.config, []byte(strings.Replace(string(text), "level: debug", "level: "+level, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
}
