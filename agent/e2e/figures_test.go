package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"vragent/agent/internal/api"
	"vragent/netcfg/nstest"
)

// The figures of the whole agent, as a process of its own:
//
//	VRAGENT_FIGURES=1 go test -count=1 -v -run '^TestFigures' ./agent/e2e

// figuresRouter returns a router with a large network, a host on it that stands for all guests, and
// the daemon's binary; or nil where no figures are wanted, or the test runs elsewhere.
func figuresRouter(t *testing.T) (r *router, g *nstest.Host, binary string) {
	t.Helper()
	if os.Getenv("VRAGENT_FIGURES") == "" {
		t.Skip("set VRAGENT_FIGURES=1")
	}
	if !nstest.Enter(t) {
		return nil, nil, ""
	}
	binary = filepath.Join(t.TempDir(), "vragent")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "vragent/agent/cmd/vragent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as the package has it
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	r = newRouter(t)
	g = r.guest(t, "g", "eth0", macA)
	r.AddAddr(t, "eth0", "10.0.0.1/8")
	g.AddAddr(t, "eth0", "10.0.0.2/8")
	text, err := os.ReadFile(r.config)
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte("level: debug"), []byte("level: warn"), 1)
	if err := os.WriteFile(r.config, append(text, "metadata: {guest_rate: 0}\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	return r, g, binary
}

// figures is a table that is printed when the test ends.
func figures(t *testing.T) *tabwriter.Writer {
	var table bytes.Buffer
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tVMs\tfigure\tbar")
	t.Cleanup(func() {
		w.Flush()
		fmt.Printf("\n%s\n", table.String())
	})
	return w
}

func TestFiguresOfChanges(t *testing.T) {
	r, g, binary := figuresRouter(t)
	if r == nil {
		return
	}
	w := figures(t)
	d := startDaemon(t, r, binary)
	r.put(t, "networks/g.yaml", figuresNetwork)
	var cpu []float64
	have := 0
	for _, n := range []int{100, 10_000, 50_000} {
		archive := filepath.Join(r.dir, "vms.tar")
		writeTar(t, archive, have, n, 500)
		began := time.Now()
		if out, err := exec.Command("tar", "-x", "-f", archive, "-C", r.drop).CombinedOutput(); err != nil {
			t.Fatalf("tar: %v\n%s", err, out)
		}
		unpacked := time.Now()
		if res, err := r.client.Wait(t.Context(), nil, 5*time.Minute); err != nil || res.State != api.Applied {
			t.Fatalf("wait: %v, %v", res.State, err)
		}
		if n == 10_000 {
			fmt.Fprintf(w, "unpacked by tar over a running agent, tar itself %.1f s\t%d\t%.1f s more\t5 s\n", unpacked.Sub(began).Seconds(), n-have, time.Since(unpacked).Seconds())
		}
		have = n
		time.Sleep(time.Second) // let the collector and the disk come to rest before CPU time is taken
		median, perChange := d.changes(t, r, g)
		cpu = append(cpu, perChange)
		fmt.Fprintf(w, "drop of one VM to its first correct answer, median of 40\t%d\t%.1f ms\t25 ms\n", n, median)
		fmt.Fprintf(w, "CPU time of the agent for one VM's change\t%d\t%.2f ms\t\n", n, perChange)
	}
	fmt.Fprintf(w, "largest of the three by the smallest\t\t%.2f\t1.5\n", slices.Max(cpu)/slices.Min(cpu))
	fmt.Fprintf(w, "resident memory\t%d\t%d MB\t\n", have, d.rss(t)>>20)
	d.stop(t)
}

func TestFiguresOfStarts(t *testing.T) {
	r, _, binary := figuresRouter(t)
	if r == nil {
		return
	}
	w := figures(t)
	d := startDaemon(t, r, binary)
	r.put(t, "networks/g.yaml", figuresNetwork)
	r.unpack(t, 10_000, 500)
	d.stop(t)
	var starts []float64
	for range 5 {
		began := time.Now()
		d = startDaemon(t, r, binary)
		starts = append(starts, time.Since(began).Seconds())
		d.stop(t)
	}
	slices.Sort(starts)
	fmt.Fprintf(w, "start until READY=1, nothing changed, median of 5\t10000\t%.2f s\t1 s\n", starts[2])
}

func TestFiguresOfMemory(t *testing.T) {
	r, g, binary := figuresRouter(t)
	if r == nil {
		return
	}
	w := figures(t)
	d := startDaemon(t, r, binary)
	r.put(t, "networks/g.yaml", figuresNetwork)
	r.unpack(t, 1000, 32<<10)
	clients := make([]*http.Client, 200) // the kernel keeps 1,024 neighbors
	for i := range clients {
		g.Run(t, "ip", "addr", "replace", vmAddress(i)+"/8", "dev", "eth0")
		clients[i] = clientAt(g, vmAddress(i))
		clients[i].Transport.(*http.Transport).DisableKeepAlives = true // as curl and cloud-init do
	}
	for i := range 10_000 {
		if got := get(t, clients[i%len(clients)], "http://10.0.0.1/latest/user-data"); len(got) != 32<<10 {
			t.Fatalf("user data of %d bytes", len(got))
		}
	}
	fmt.Fprintf(w, "resident memory with 32 KB of user data each, after 10,000 requests\t1000\t%d MB\t40 MB\n", d.rss(t)>>20)
	d.stop(t)
}

// figuresNetwork pins no neighbors: here all guests are one host with one MAC.
const figuresNetwork = "interface: eth0\ngateway: 10.0.0.1/8\npin_neighbors: false\n"

func vmAddress(i int) string { return fmt.Sprintf("10.%d.%d.%d", 1+i>>16, i>>8&255, i&255) }

// writeTar makes an archive of the VMs from to to-1 as they lie in the drop directory.
func writeTar(t *testing.T, path string, from, to, userData int) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	add := func(h tar.Header, data string) {
		h.Size, h.ModTime = int64(len(data)), time.Now()
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, data)
	}
	for i := from; i < to; i++ {
		dir := fmt.Sprintf("vms/vm-%d/", i)
		add(tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o770}, "")
		add(tar.Header{Name: dir + "user-data", Mode: 0o660}, strings.Repeat("x", userData))
		add(tar.Header{Name: dir + "meta-data.yaml", Mode: 0o660}, fmt.Sprintf("service-offering: Small\navailability-zone: zone-a\ninstance-id: id-%d\nvm-id: id-%[1]d\npublic-keys: ssh-ed25519 AAAA%[1]d ops\ncloud-identifier: CloudStack-x\n", i))
		add(tar.Header{Name: dir + "vm.yaml", Mode: 0o660}, vm(fmt.Sprintf("vm-%d", i), "g", fmt.Sprintf("02:00:00:%02x:%02x:%02x", i>>16, i>>8&255, i&255), vmAddress(i)))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// unpack drops n VMs and waits until they are in force.
func (r *router) unpack(t *testing.T, n, userData int) {
	t.Helper()
	archive := filepath.Join(r.dir, "vms.tar")
	writeTar(t, archive, 0, n, userData)
	if out, err := exec.Command("tar", "-x", "-f", archive, "-C", r.drop).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	if res, err := r.client.Wait(t.Context(), nil, 5*time.Minute); err != nil || res.State != api.Applied {
		t.Fatalf("wait: %v, %v", res.State, err)
	}
}

// daemon is an agent that is a process of its own.
type daemon struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
}

// startDaemon starts the binary and returns once it has said READY=1.
func startDaemon(t *testing.T, r *router, binary string) *daemon {
	t.Helper()
	notify := filepath.Join(r.dir, "notify")
	os.Remove(notify)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	d := &daemon{cmd: exec.Command(binary, "run", "--config", r.config)}
	d.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify)
	d.cmd.Stderr = &d.stderr
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	for buf := make([]byte, 4096); ; {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("no READY=1: %v\n%s", err, d.stderr.String())
		}
		if strings.Contains(string(buf[:n]), "READY=1") {
			break
		}
	}
	r.client = api.Dial(r.dir + "/api.sock")
	return d
}

func (d *daemon) stop(t *testing.T) {
	t.Helper()
	d.cmd.Process.Signal(os.Interrupt)
	if err := d.cmd.Wait(); err != nil {
		t.Fatalf("daemon: %v\n%s", err, d.stderr.String())
	}
}

// cpu returns the CPU time of all threads of the daemon.
func (d *daemon) cpu(t *testing.T) time.Duration {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", d.cmd.Process.Pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("threads of the daemon: %v", err)
	}
	var sum time.Duration
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // a thread that has ended
		}
		ns, err := strconv.ParseInt(strings.Fields(string(data))[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(ns)
	}
	return sum
}

// rss returns the resident memory in bytes.
func (d *daemon) rss(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// changes measures changes of one VM among those that are there: from the rename to the first correct
// answer over HTTP, median of 40 in milliseconds, and CPU time of the agent, mean of 200 in
// milliseconds, without any request for the data.
func (d *daemon) changes(t *testing.T, r *router, g *nstest.Host) (median, cpu float64) {
	t.Helper()
	const path = "vms/vm-7/user-data"
	g.Run(t, "ip", "addr", "replace", vmAddress(7)+"/8", "dev", "eth0")
	client := clientAt(g, vmAddress(7))
	var times []float64
	for i := range 40 {
		want := fmt.Sprintf("change %d of %d", i, time.Now().UnixNano())
		began := time.Now()
		r.put(t, path, want)
		for get(t, client, "http://10.0.0.1/latest/user-data") != want {
			if time.Since(began) > time.Minute {
				t.Fatal("a change does not come into force")
			}
		}
		times = append(times, float64(time.Since(began).Microseconds())/1000)
	}
	slices.Sort(times)
	const n = 200
	before := d.cpu(t)
	for i := range n {
		r.put(t, path, fmt.Sprint("again ", i))
		if _, err := r.client.Wait(t.Context(), []string{"vms/vm-7"}, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	return times[len(times)/2], float64((d.cpu(t) - before).Microseconds()) / 1000 / n
}

// clientAt returns an HTTP client that asks from an address of a guest.
func clientAt(g *nstest.Host, address string) *http.Client {
	return clientWithin(g, address, time.Second)
}

// clientWithin is clientAt with the time that a connection may take.
func clientWithin(g *nstest.Host, address string, dial time.Duration) *http.Client {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}, Timeout: dial}
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		MaxIdleConnsPerHost: 1,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return g.Dial(ctx, dialer, network, addr)
		},
	}}
}

func get(t *testing.T, client *http.Client, url string) string {
	t.Helper()
	res, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, res.Status, err)
	}
	return string(body)
}
