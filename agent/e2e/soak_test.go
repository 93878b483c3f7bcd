package e2e

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"vragent/agent/internal/api"
	"vragent/netcfg/nstest"
)

// TestFiguresOfIdling leaves a daemon with a large site alone.
func TestFiguresOfIdling(t *testing.T) {
	r, _, binary := figuresRouter(t)
	if r == nil {
		return
	}
	w := figures(t)
	d := startDaemon(t, r, binary)
	defer d.stop(t)
	r.put(t, "networks/g.yaml", figuresNetwork)
	r.unpack(t, 10_000, 500)
	// Go's collector runs two minutes after the last time, and gives memory back until then; both belong to
	// what was dropped. What the daemon does from then on it does for ever.
	time.Sleep(10 * time.Second)
	before, woken := d.cpu(t), d.wakeups(t)
	time.Sleep(time.Minute)
	fmt.Fprintf(w, "CPU time while nothing happens, over a minute\t10000\t%.3f s\t0.1 s\n", (d.cpu(t) - before).Seconds())
	fmt.Fprintf(w, "wakeups of a thread in that minute\t10000\t%d\t\n", d.wakeups(t)-woken)
}

// wakeups returns how often threads of the daemon have gone to sleep.
func (d *daemon) wakeups(t *testing.T) int {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", d.cmd.Process.Pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("threads of the daemon: %v", err)
	}
	sum := 0
	for _, file := range files {
		sum += statusLine(file, "voluntary_ctxt_switches:")
	}
	return sum
}

// statusLine returns a number of a status file below /proc, 0 where it is not there.
func statusLine(file, name string) int {
	data, _ := os.ReadFile(file)
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			n, _ := strconv.Atoi(strings.Fields(rest)[0])
			return n
		}
	}
	return 0
}

// TestFiguresOfSoak keeps everything that changes on a router changing, at a set rate, and looks at what
// the daemon holds while all of that rests for a moment: memory, goroutines, descriptors. What it holds at
// the end has to be what it held once the first third of the time was over.
//
//	VRAGENT_SOAK=30m   for how long; without it, for two minutes, as one of many figures
//
// Only with VRAGENT_SOAK does the test fail where the daemon has grown.
func TestFiguresOfSoak(t *testing.T) {
	out := spoken(t)
	r, g, binary := figuresRouter(t)
	if r == nil {
		return
	}
	length, decides := 2*time.Minute, false
	if text := os.Getenv("VRAGENT_SOAK"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil || length < time.Minute {
			t.Fatalf("VRAGENT_SOAK=%s: want a duration of a minute or more, such as 30m", text)
		}
		decides = true
	}
	s := newSoak(t, r, g, binary)
	fmt.Fprintf(out, "\nsoak: %s of churn; make soak goes on for 30 minutes\n\n", length)
	s.start()
	const samples = 30
	held := []holding{s.look()}
	fmt.Fprintf(out, "%8s  %s\n%8s  %s\n", "after", holdingHeader, "0s", held[0])
	for i := range samples {
		time.Sleep(length / samples)
		h := s.look()
		held = append(held, h)
		fmt.Fprintf(out, "%8s  %s\n", (length * time.Duration(i+1) / samples).Round(time.Second), h)
	}
	s.stop()
	fmt.Fprintf(out, "\n%s\n", s.did())
	grown := growth(held)
	if len(grown) == 0 {
		fmt.Fprintf(out, "flat: no more memory, goroutines and descriptors in the last third of the time than in the one before\n")
	}
	for _, what := range grown {
		fmt.Fprintln(out, what)
		if decides {
			t.Error(what)
		}
	}
	s.d.stop(t)
}

// spokenEnv tells the process of a test in its namespaces where to say what is not to wait for its end.
const spokenEnv = "VRAGENT_E2E_SPOKEN"

// spoken returns where to say something at once: Enter holds back what the test prints until it is over.
// Called before Enter as well.
func spoken(t *testing.T) io.Writer {
	t.Helper()
	if name := os.Getenv(spokenEnv); name != "" {
		pipe, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { pipe.Close() })
		return pipe
	}
	name := filepath.Join(t.TempDir(), "spoken")
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(name, os.O_RDWR, 0) // so that neither side waits for the other
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(spokenEnv, name)
	var copying sync.WaitGroup
	copying.Go(func() { io.Copy(os.Stdout, pipe) })
	t.Cleanup(func() {
		pipe.SetReadDeadline(time.Now().Add(time.Second)) // for what is still in it
		copying.Wait()
		pipe.Close()
	})
	return os.Stdout
}

// A holding is what a daemon holds.
type holding struct {
	resident, heap, state   int // bytes; heap is what the collector last found in use, state the state directory
	goroutines, descriptors int
}

const holdingHeader = "resident MB   heap MB  goroutines  descriptors  state directory MB"

func (h holding) String() string {
	mb := func(n int) float64 { return float64(n) / (1 << 20) }
	return fmt.Sprintf("%11.1f  %8.1f  %10d  %11d  %18.1f", mb(h.resident), mb(h.heap), h.goroutines, h.descriptors, mb(h.state))
}

// growth compares the last third of the samples with the third before it, and names what has grown: memory
// by more than a twentieth and 2 MB, goroutines and descriptors by more than two.
func growth(held []holding) (grown []string) {
	third := len(held) / 3
	earlier, later := held[third:2*third], held[2*third:]
	median := func(of []holding, value func(holding) int) int {
		values := make([]int, len(of))
		for i, h := range of {
			values[i] = value(h)
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	for _, c := range []struct {
		what  string
		value func(holding) int
		slack func(int) int
	}{
		{"bytes of resident memory", func(h holding) int { return h.resident }, func(n int) int { return n/20 + 2<<20 }},
		{"bytes of heap", func(h holding) int { return h.heap }, func(n int) int { return n/20 + 2<<20 }},
		{"goroutines", func(h holding) int { return h.goroutines }, func(int) int { return 2 }},
		{"descriptors", func(h holding) int { return h.descriptors }, func(int) int { return 2 }},
	} {
		was, is := median(earlier, c.value), median(later, c.value)
		if is > was+c.slack(was) {
			grown = append(grown, fmt.Sprintf("NOT FLAT: from %d to %d %s", was, is, c.what))
		}
	}
	return grown
}

func TestGrowthIsToldFromNoise(t *testing.T) {
	of := func(value func(i int) holding) (held []holding) {
		for i := range 31 {
			held = append(held, value(i))
		}
		return held
	}
	for name, c := range map[string]struct {
		held []holding
		want int
	}{
		"nothing grows":            {of(func(int) holding { return holding{50 << 20, 20 << 20, 0, 60, 40} }), 0},
		"warming up":               {of(func(i int) holding { return holding{min(i, 8) << 20, 20 << 20, 0, 60, 40} }), 0},
		"noise":                    {of(func(i int) holding { return holding{(50 + i%3) << 20, 20 << 20, 0, 60 + i%2, 40} }), 0},
		"a megabyte every sample":  {of(func(i int) holding { return holding{(50 + i) << 20, 20 << 20, 0, 60, 40} }), 1},
		"a goroutine every sample": {of(func(i int) holding { return holding{50 << 20, 20 << 20, 0, 60 + i, 40} }), 1},
		"descriptors and heap":     {of(func(i int) holding { return holding{50 << 20, (20 + i) << 20, 0, 60, 40 + i} }), 2},
		"the state directory":      {of(func(i int) holding { return holding{50 << 20, 20 << 20, i << 20, 60, 40} }), 0},
	} {
		if got := growth(c.held); len(got) != c.want {
			t.Errorf("%s: %q, want %d", name, got, c.want)
		}
	}
}

// A soak is a daemon with three networks, and everything that churns there:
//
//	g    1,000 VMs that change, come, go and ask; their guest holds addresses of many
//	pool leases for whoever asks
//	vip  a network whose address and device go and come back
type soak struct {
	*router
	t      *testing.T
	d      *daemon
	socket *http.Client
	guests []*http.Client // of the first VMs, each from its address
	vip    *nstest.Host

	rest    sync.RWMutex // held for reading by whoever changes something
	over    chan struct{}
	workers sync.WaitGroup
	churn   []churn
}

// churn is one of the things that go on.
type churn struct {
	what  string
	count *atomic.Int64
	run   func()
}

const (
	soakVMs    = 1000
	soakGuests = 50
	soakMAC    = "02:00:00:dd:00:01"

	soakPatience = 5 * time.Second
)

func newSoak(t *testing.T, r *router, g *nstest.Host, binary string) *soak {
	t.Helper()
	s := &soak{router: r, t: t, over: make(chan struct{})}
	text, err := os.ReadFile(r.config)
	if err != nil {
		t.Fatal(err)
	}
	// Jobs that are kept for a day have not come to their full number when the soak is over.
	text = []byte(strings.Replace(string(text), "api: {", "api: {job_retention: 1m, ", 1))
	if err := os.WriteFile(r.config, text, 0o644); err != nil {
		t.Fatal(err)
	}
	pool := r.guest(t, "pool", "eth1", macB)
	r.AddAddr(t, "eth1", "192.168.1.1/24")
	pool.AddAddr(t, "eth0", "192.168.1.2/24")
	s.vip = nstest.NewHost(t, "vip")
	s.d = startDaemon(t, r, binary)
	s.socket = overSocket(r.dir + "/api.sock")
	r.put(t, "networks/g.yaml", figuresNetwork)
	r.put(t, "networks/pool.yaml", "interface: eth1\ngateway: 192.168.1.1/24\nlease_time: 30s\npool: {from: 192.168.1.10, to: 192.168.1.250, probe: false}\n")
	r.put(t, "networks/vip.yaml", "interface: vip\ngateway: 192.168.2.1/24\n")
	r.put(t, "vms/vip/vm.yaml", vm("vip", "vip", soakMAC, "192.168.2.34"))
	r.put(t, "vms/vip/user-data", "behind the vip")
	s.plug()
	archive := filepath.Join(r.dir, "vms.tar")
	writeTar(t, archive, 0, soakVMs, 500)
	r.Run(t, "tar", "-x", "-f", archive, "-C", r.drop)
	r.applied(t)
	for i := range soakGuests {
		g.AddAddr(t, "eth0", vmAddress(i)+"/8")
		// One SYN of a million may be lost while a busy machine has no time for it; the next is a second away.
		s.guests = append(s.guests, clientWithin(g, vmAddress(i), soakPatience))
	}
	known, strangers, vip := newStation(t, g), newStation(t, pool), (*station)(nil)

	s.each("user data changed and read", 100*time.Millisecond, s.change)
	s.each("VMs removed and back", 300*time.Millisecond, s.comeAndGo)
	s.each("faulty files, and put right", time.Second, s.fault)
	s.each("networks changed", time.Second, func(i int) error {
		r.put(t, "networks/pool.yaml", fmt.Sprintf("interface: eth1\ngateway: 192.168.1.1/24\nlease_time: %ds\npool: {from: 192.168.1.10, to: 192.168.1.250, probe: false}\n", 30+i%2))
		return s.inForce("networks/pool.yaml")
	})
	s.each("leases of known VMs", 25*time.Millisecond, func(int) error {
		n := rand.IntN(soakVMs/2) + soakVMs/2 // those that stay
		address, err := known.lease(fmt.Sprintf("02:00:00:00:%02x:%02x", n>>8, n&255), soakPatience)
		if err == nil && address.String() != vmAddress(n) {
			err = fmt.Errorf("vm-%d is given %s, want %s", n, address, vmAddress(n))
		}
		return err
	})
	s.each("leases of the pool", 50*time.Millisecond, func(i int) error {
		mac := fmt.Sprintf("02:01:%02x:%02x:%02x:%02x", i>>24&255, i>>16&255, i>>8&255, i&255)
		address, err := strangers.lease(mac, soakPatience)
		if err != nil || i%8 == 0 {
			return err // some never come back
		}
		return strangers.release(mac, address, "192.168.1.1")
	})
	s.each("requests", 5*time.Millisecond, func(i int) error {
		paths := []string{"latest/user-data", "latest/meta-data/", "latest/meta-data/instance-id", "latest/local-ipv4", "2016-09-02/meta-data/"}
		_, err := readFrom(s.guests[i%soakGuests], "http://10.0.0.1/"+paths[i%len(paths)])
		return err
	})
	s.each("requests with a token", 100*time.Millisecond, func(i int) error { return withToken(s.guests[i%soakGuests]) })
	s.each("connections cut short", 100*time.Millisecond, func(i int) error { return cutShort(g, i) })
	s.each("passwords taken", 200*time.Millisecond, s.password)
	s.each("pushes", 100*time.Millisecond, s.push)
	s.each("reports read", 200*time.Millisecond, s.report)
	s.each("users made and removed", time.Second, func(i int) error {
		name := fmt.Sprintf("u%d", i)
		if _, err := r.client.AddUser(context.Background(), name, "operator"); err != nil {
			return err
		}
		return r.client.RemoveUser(context.Background(), name)
	})
	s.each("reloads", 5*time.Second, func(int) error { return s.d.cmd.Process.Signal(syscall.SIGHUP) })
	s.each("addresses taken away and back", 500*time.Millisecond, func(i int) error {
		if i%10 == 9 { // the device too
			vip.conn.Close()
			r.Delete(t, "vip")
			s.plug()
			vip = nil
		} else {
			r.DelAddr(t, "vip", "192.168.2.1/24")
			r.AddAddr(t, "vip", "192.168.2.1/24")
		}
		client := clientAt(s.vip, "192.168.2.34")
		defer client.CloseIdleConnections()
		until := time.Now().Add(20 * time.Second)
		for {
			_, err := readFrom(client, "http://192.168.2.1/latest/user-data")
			if err == nil {
				break
			}
			if time.Now().After(until) {
				return fmt.Errorf("after the address is back: %w", err)
			}
			time.Sleep(5 * time.Millisecond)
		}
		if vip == nil {
			vip = newStation(t, s.vip)
		}
		for {
			_, err := vip.lease(soakMAC, 100*time.Millisecond)
			if err == nil || time.Now().After(until) {
				return err
			}
		}
	})
	return s
}

// release gives an address back; there is no answer to that.
func (s *station) release(mac string, address netip.Addr, server string) error {
	hardware, err := net.ParseMAC(mac)
	if err != nil {
		return err
	}
	m, err := dhcpv4.New(dhcpv4.WithHwAddr(hardware), dhcpv4.WithMessageType(dhcpv4.MessageTypeRelease),
		dhcpv4.WithClientIP(address.AsSlice()), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.ParseIP(server))))
	if err != nil {
		return err
	}
	_, err = s.conn.WriteTo(m.ToBytes(), servers)
	return err
}

// plug makes the device of the network vip, and its address.
func (s *soak) plug() {
	nstest.Pair(s.t, s.Host, "vip", s.vip, "eth0")
	s.vip.SetMAC(s.t, "eth0", soakMAC)
	s.vip.AddAddr(s.t, "eth0", "192.168.2.34/24")
	s.AddAddr(s.t, "vip", "192.168.2.1/24")
}

// each has fn called at every tick from start to stop, with the number of the call, except while the soak
// rests. What it returns is an error of the test; the first
// five are told.
func (s *soak) each(what string, period time.Duration, fn func(i int) error) {
	count := new(atomic.Int64)
	s.churn = append(s.churn, churn{what, count, func() {
		tick := time.NewTicker(period)
		defer tick.Stop()
		failed := 0
		for i := 0; ; i++ {
			select {
			case <-tick.C:
			case <-s.over:
				return
			}
			s.rest.RLock()
			err := fn(i)
			s.rest.RUnlock()
			if err != nil {
				if failed++; failed <= 5 {
					s.t.Errorf("%s, number %d: %v", what, i, err)
				}
			}
			count.Add(1)
		}
	}})
}

func (s *soak) start() {
	for _, c := range s.churn {
		s.workers.Go(c.run)
	}
}

func (s *soak) stop() {
	close(s.over)
	s.workers.Wait()
}

// did tells how much of everything has happened.
func (s *soak) did() string {
	var b strings.Builder
	for _, c := range s.churn {
		fmt.Fprintf(&b, "%8d  %s\n", c.count.Load(), c.what)
	}
	return b.String()
}

// look lets everything rest, and tells what the daemon holds then.
func (s *soak) look() holding {
	s.rest.Lock()
	defer s.rest.Unlock()
	s.inForce()
	for _, c := range append(slices.Clone(s.guests), s.socket) {
		c.CloseIdleConnections()
	}
	s.client.Close()
	var h holding
	// Connections that have just been closed are still on their way.
	for until := time.Now().Add(10 * time.Second); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.d.cmd.Process.Pid))
		if err != nil {
			s.t.Error(err)
			return h
		}
		if len(fds) == h.descriptors {
			break
		}
		h.descriptors = len(fds)
	}
	metrics, err := s.metrics()
	if err != nil {
		s.t.Error(err)
	}
	h.goroutines = int(metrics["go_goroutines"])
	h.heap = int(metrics["go_memstats_next_gc_bytes"]) / 2 // at the default of GOGC
	h.resident = statusLine(fmt.Sprintf("/proc/%d/status", s.d.cmd.Process.Pid), "VmRSS:") << 10
	filepath.WalkDir(s.dir+"/state", func(_ string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if info, err := e.Info(); err == nil {
				h.state += int(info.Size())
			}
		}
		return nil
	})
	return h
}

// metrics scrapes the metrics without labels.
func (s *soak) metrics() (map[string]float64, error) {
	res, err := s.socket.Get("http://vragent/metrics")
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	values := map[string]float64{}
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		if name, value, ok := strings.Cut(lines.Text(), " "); ok && name != "#" {
			values[name], _ = strconv.ParseFloat(value, 64)
		}
	}
	return values, lines.Err()
}

// inForce waits until units, or all of them, are applied.
func (s *soak) inForce(units ...string) error {
	result, err := s.client.Wait(context.Background(), units, time.Minute)
	if err == nil && result.State != api.Applied {
		err = fmt.Errorf("%s is %s, want applied: %+v", units, result.State, result.Units)
	}
	return err
}

func (s *soak) change(i int) error {
	n := i % soakGuests
	want := fmt.Sprintf("change %d", i)
	s.put(s.t, fmt.Sprintf("vms/vm-%d/user-data", n), want)
	if err := s.inForce(fmt.Sprintf("vms/vm-%d", n)); err != nil {
		return err
	}
	got, err := readFrom(s.guests[n], "http://10.0.0.1/latest/user-data")
	if err == nil && got != want {
		err = fmt.Errorf("vm-%d reads %.20q, want %q", n, got, want)
	}
	return err
}

func (s *soak) comeAndGo(i int) error {
	n := 100 + i%100
	unit := fmt.Sprintf("vms/vm-%d", n)
	s.remove(s.t, unit)
	if result, err := s.client.Wait(context.Background(), nil, time.Minute); err != nil {
		return fmt.Errorf("wait after a removal: %v, %w", result.State, err)
	}
	s.put(s.t, unit+"/user-data", fmt.Sprintf("time %d", i))
	s.put(s.t, unit+"/vm.yaml", vm(fmt.Sprintf("vm-%d", n), "g", fmt.Sprintf("02:00:00:00:00:%02x", n), vmAddress(n)))
	return s.inForce(unit)
}

func (s *soak) fault(i int) error {
	unit := fmt.Sprintf("vms/vm-%d", 200+i%100)
	s.put(s.t, unit+"/meta-data.yaml", fmt.Sprintf("number: %d\nuser-data: is no name for this\n", i))
	if result, err := s.client.Wait(context.Background(), []string{unit}, time.Minute); err != nil || result.State != api.Rejected {
		return fmt.Errorf("a faulty file is %s, %v; want rejected", result.State, err)
	}
	s.put(s.t, unit+"/meta-data.yaml", fmt.Sprintf("number: %d\n", i))
	return s.inForce(unit)
}

func (s *soak) password(i int) error {
	n := i % soakGuests
	want := fmt.Sprintf("password %d", i)
	s.put(s.t, fmt.Sprintf("vms/vm-%d/password", n), want+"\n")
	if err := s.inForce(fmt.Sprintf("vms/vm-%d", n)); err != nil {
		return err
	}
	for _, c := range []struct{ say, want string }{{"send_my_password", want}, {"saved_password", "saved_password"}, {"send_my_password", "saved_password"}} {
		req, err := http.NewRequest(http.MethodGet, "http://10.0.0.1:8080/", nil)
		if err != nil {
			return err
		}
		req.Header.Set("DomU_Request", c.say)
		if got, err := do(s.guests[n], req); err != nil || got != c.want {
			return fmt.Errorf("%s of vm-%d: %q, %v; want %q", c.say, n, got, err, c.want)
		}
	}
	return nil
}

func (s *soak) push(i int) error {
	name := fmt.Sprintf("vm-%d", 300+i%100)
	res, err := s.socket.PostForm("http://vragent"+api.Path, url.Values{
		"command": {"pushVirtualMachine"}, "response": {"json"}, "id": {name},
		"userdata": {base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "push %d", i))},
	})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		return fmt.Errorf("push of %s: %s, %v: %s", name, res.Status, err, body)
	}
	return s.inForce("vms/" + name)
}

func (s *soak) report(i int) error {
	ctx := context.Background()
	var err error
	switch i % 6 {
	case 0:
		_, err = s.client.Status(ctx)
	case 1:
		_, err = s.client.VMs(ctx)
	case 2:
		_, err = s.client.Networks(ctx)
	case 3:
		_, err = s.client.Explain(ctx, fmt.Sprintf("vm-%d", i%soakGuests))
	case 4:
		_, err = s.client.Leases(ctx)
	case 5:
		_, err = s.metrics()
	}
	return err
}

// readFrom asks as a guest.
func readFrom(client *http.Client, url string) (string, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	return do(client, req)
}

func do(client *http.Client, req *http.Request) (string, error) {
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s", req.Method, req.URL, res.Status)
	}
	return string(body), err
}

// withToken reads by an EC2 session token.
func withToken(client *http.Client) error {
	req, err := http.NewRequest(http.MethodPut, "http://10.0.0.1/latest/api/token", nil)
	if err != nil {
		return err
	}
	req.Header.Set("X-aws-ec2-metadata-token-ttl-seconds", "60")
	token, err := do(client, req)
	if err != nil {
		return err
	}
	if req, err = http.NewRequest(http.MethodGet, "http://10.0.0.1/latest/meta-data/", nil); err != nil {
		return err
	}
	req.Header.Set("X-aws-ec2-metadata-token", token)
	_, err = do(client, req)
	return err
}

// cutShort connects and goes: without a word, in the middle of a request, or before the answer.
func cutShort(g *nstest.Host, i int) error {
	conn, err := g.Dial(context.Background(), &net.Dialer{Timeout: 5 * time.Second}, "tcp", "10.0.0.1:80")
	if err != nil {
		return err
	}
	defer conn.Close()
	const request = "GET /latest/user-data HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n"
	_, err = io.WriteString(conn, request[:[]int{0, 20, len(request)}[i%3]])
	return err
}
