package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vragent/agent/internal/api"
	"vragent/agent/internal/handover/handovertest"
	"vragent/netcfg/nstest"
)

// unit is a daemon as systemd would run it: one process after the other, and a store for their sockets.
type unit struct {
	*handovertest.Keeper
	router *router
	binary string
	cmd    *exec.Cmd
	log    logBuffer
}

// startUnit starts the daemon and returns once it is ready.
func startUnit(t *testing.T, r *router, binary string) *unit {
	t.Helper()
	u := &unit{Keeper: handovertest.New(t), router: r, binary: binary}
	t.Cleanup(func() {
		if u.cmd != nil {
			u.cmd.Process.Kill()
			u.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("log of the daemons:\n%s", &u.log)
		}
	})
	u.start(t)
	u.ready(t)
	r.client = api.Dial(r.dir + "/api.sock")
	t.Cleanup(r.client.Close)
	return u
}

func (u *unit) start(t *testing.T) {
	t.Helper()
	u.cmd = u.Pass(t, u.binary, "run", "--config", u.router.config)
	u.cmd.Stderr = &u.log
	if err := u.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, file := range u.cmd.ExtraFiles {
		file.Close()
	}
}

func (u *unit) ready(t *testing.T) {
	t.Helper()
	patience := time.After(time.Minute)
	for {
		select {
		case message := <-u.Told():
			if message == "READY=1" {
				return
			}
		case <-patience:
			t.Fatalf("no READY=1")
		}
	}
}

// end sends a signal and waits until the process is gone.
func (u *unit) end(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := u.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	if err := u.cmd.Wait(); err != nil && signal == syscall.SIGTERM {
		t.Errorf("the daemon ends with %v", err)
	}
	u.cmd = nil
}

// restart is what systemctl restart does.
func (u *unit) restart(t *testing.T) {
	t.Helper()
	u.end(t, syscall.SIGTERM)
	u.start(t)
	u.ready(t)
}

// load is what goes on at a router: guests that ask for data and addresses, and programs that change
// things and ask how they are. It counts what was done, and lists what failed.
type load struct {
	wg   sync.WaitGroup
	over atomic.Bool

	mu       sync.Mutex
	done     map[string]int
	longest  map[string]time.Duration
	failures map[string][]error
}

// keep does something again and again, until stop.
func (l *load) keep(what string, do func(i int) error) {
	l.wg.Go(func() {
		for i := 0; !l.over.Load(); i++ {
			began := time.Now()
			err := do(i)
			took := time.Since(began)
			l.mu.Lock()
			l.done[what]++
			l.longest[what] = max(l.longest[what], took)
			if err != nil {
				l.failures[what] = append(l.failures[what], err)
			}
			l.mu.Unlock()
		}
	})
}

// counts returns how often each thing was done.
func (l *load) counts() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.done)
}

// more waits until everything that goes on was done again.
func (l *load) more(t *testing.T) {
	t.Helper()
	before := l.counts()
	nstest.Poll(t, time.Minute, "everything to be done again", func() bool {
		now := l.counts()
		for what, n := range before {
			if now[what] < n+2 {
				return false
			}
		}
		return true
	})
}

func (l *load) stop() {
	l.over.Store(true)
	l.wg.Wait()
}

// The guests under load, as MACs and addresses of one host.
const loadGuests = 8

func loadMAC(i int) string  { return fmt.Sprintf("02:00:00:00:01:%02x", i) }
func loadAddr(i int) string { return fmt.Sprint("10.1.1.", 50+i) }

// putLoadGuests drops the network of a device, and its VMs.
func putLoadGuests(t *testing.T, r *router, g *nstest.Host, device string) {
	t.Helper()
	r.put(t, "networks/guest-1.yaml", "interface: "+device+"\ngateway: 10.1.1.1/24\npin_neighbors: false\npool: {from: 10.1.1.200, to: 10.1.1.250}\n")
	for i := range loadGuests {
		g.AddAddr(t, "eth0", loadAddr(i)+"/24")
		name := fmt.Sprint("vm", i)
		r.put(t, "vms/"+name+"/user-data", strings.Repeat("x", 20_000))
		r.put(t, "vms/"+name+"/vm.yaml", vm(name, "guest-1", loadMAC(i), loadAddr(i)))
	}
	r.put(t, "vms/pushed/vm.yaml", "hostname: p\nnics:\n- {network: guest-1, ipv4: 10.1.1.99}\n")
	r.applied(t)
}

// clientPatience is how long a DHCP client waits at least before it asks again, RFC 2131, section 4.1.
const clientPatience = 3 * time.Second

// startLoad begins with everything. A DHCP client asks once, and waits for patience.
func startLoad(t *testing.T, r *router, g *nstest.Host, patience time.Duration) *load {
	t.Helper()
	l := &load{done: make(map[string]int), longest: make(map[string]time.Duration), failures: make(map[string][]error)}
	t.Cleanup(l.stop)
	for i := range 4 {
		client := clientAt(g, loadAddr(i))
		what := "GET on kept connections"
		if i%2 == 1 {
			what = "GET on new connections"
			client.Transport.(*http.Transport).DisableKeepAlives = true
		}
		t.Cleanup(client.CloseIdleConnections)
		l.keep(what, func(int) error { return fetch(client, "http://10.1.1.1/latest/user-data", 20_000) })
	}
	token := clientAt(g, loadAddr(4))
	t.Cleanup(token.CloseIdleConnections)
	l.keep("PUT of a token on kept connections", func(int) error {
		req, err := http.NewRequest(http.MethodPut, "http://10.1.1.1/latest/api/token", http.NoBody)
		if err != nil {
			return err
		}
		req.Header.Set("X-aws-ec2-metadata-token-ttl-seconds", "60")
		return wantOK(token.Do(req))
	})
	password := clientAt(g, loadAddr(5))
	l.keep("request for a password", func(int) error {
		req, err := http.NewRequest(http.MethodGet, "http://10.1.1.1:8080/", nil)
		if err != nil {
			return err
		}
		req.Header.Set("DomU_Request", "send_my_password")
		return wantOK(password.Do(req))
	})
	waits := clientAt(g, loadAddr(6))
	waits.Timeout = time.Minute
	t.Cleanup(waits.CloseIdleConnections)
	l.keep("GET that waits for a change", func(int) error {
		return fetch(waits, "http://10.1.1.1/latest/user-data?wait=1", 20_000)
	})
	for i := range 4 {
		s := newStation(t, g)
		l.keep("DHCP of a known VM", func(int) error {
			address, err := s.lease(loadMAC(i), patience)
			if err == nil && address != netip.MustParseAddr(loadAddr(i)) {
				err = fmt.Errorf("%s has %s", loadMAC(i), address)
			}
			return err
		})
	}
	for i := range 3 {
		s := newStation(t, g)
		l.keep("DHCP from the pool", func(n int) error {
			_, err := s.lease(fmt.Sprintf("02:00:00:00:02:%02x", 16*i+n%16), patience)
			return err
		})
	}
	for i := range 2 {
		client := overSocket(r.dir + "/api.sock")
		client.Transport.(*http.Transport).DisableKeepAlives = i == 1
		t.Cleanup(client.CloseIdleConnections)
		l.keep("push over the API", func(n int) error {
			res, err := client.PostForm("http://vragent"+api.Path, url.Values{
				"command": {"pushVirtualMachine"}, "response": {"json"}, "id": {"pushed"}, "hostname": {fmt.Sprint("p", n)},
			})
			return wantOK(res, err)
		})
	}
	list := api.Dial(r.dir + "/api.sock")
	t.Cleanup(list.Close)
	all, err := list.VMs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l.keep("list of VMs", func(int) error {
		vms, err := list.VMs(context.Background())
		if err == nil && len(vms) != len(all) {
			err = fmt.Errorf("%d VMs of %d", len(vms), len(all))
		}
		return err
	})
	l.keep("vragent wait", func(int) error {
		_, err := list.Wait(context.Background(), nil, time.Minute)
		return err
	})
	return l
}

func wantOK(res *http.Response, err error) error {
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, body)
	}
	return err
}

// fetch gets a body of so many bytes.
func fetch(client *http.Client, url string, want int) error {
	res, err := client.Get(url)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && (res.StatusCode != http.StatusOK || len(body) != want) {
		err = fmt.Errorf("%s, %d bytes", res.Status, len(body))
	}
	return err
}

func TestRestartUnderLoadLosesNothing(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	r.configure(t, "metadata: {guest_rate: 0}\n")
	g := r.guest(t, "g", "eth0", macA)
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	u := startUnit(t, r, binary)
	putLoadGuests(t, r, g, "eth0")
	l := startLoad(t, r, g, waitTime)
	for range 5 {
		l.more(t)
		u.restart(t)
	}
	l.more(t)
	l.stop()
	for what, failures := range l.failures {
		for _, err := range failures {
			t.Errorf("%s: %v", what, err)
		}
	}

	// All that was acknowledged is done.
	jobs, err := r.client.Jobs(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range jobs {
		id := j.ID
		nstest.Poll(t, waitTime, "job "+id+" to end", func() bool {
			j, err := r.client.Job(t.Context(), id)
			return err == nil && j.State != "open"
		})
		if j, err := r.client.Job(t.Context(), id); err != nil || j.State != "done" {
			t.Errorf("job %s: %+v, %v", id, j, err)
		}
	}
	u.end(t, syscall.SIGTERM)
}

// What comes while nobody is there waits for the next daemon, whatever ended the one before.
func TestWhatComesBetweenTwoDaemonsIsAnswered(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	g := r.guest(t, "g", "eth0", macA)
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	u := startUnit(t, r, binary)
	putLoadGuests(t, r, g, "eth0")
	for name, signal := range map[string]syscall.Signal{"stopped": syscall.SIGTERM, "killed": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			u.end(t, signal)
			type outcome struct {
				what string
				err  error
			}
			outcomes := make(chan outcome)
			asked := []func() outcome{
				func() outcome {
					client := clientAt(g, loadAddr(0))
					defer client.CloseIdleConnections()
					return outcome{"GET", fetch(client, "http://10.1.1.1/latest/user-data", 20_000)}
				},
				func() outcome {
					_, err := r.client.Status(context.Background())
					return outcome{"status", err}
				},
				func() outcome {
					// This VM was dropped when nobody was there, and its guest asks at once.
					name := "late-" + name
					mac := "02:00:00:00:03:" + strconv.Itoa(10+int(signal))
					r.put(t, "vms/"+name+"/vm.yaml", vm(name, "guest-1", mac, fmt.Sprint("10.1.1.", 100+int(signal))))
					_, err := newStation(t, g).lease(mac, waitTime)
					return outcome{"DHCP", err}
				},
			}
			for _, ask := range asked {
				go func() { outcomes <- ask() }()
			}
			waiting := func() bool {
				// A datagram of more than nothing, and a connection in each queue.
				out, err := exec.Command("ss", "-Hlun", "sport = 67").Output()
				udp := strings.Fields(string(out))
				tcp, err2 := exec.Command("ss", "-Hlnt", "sport = 80").Output()
				queue := strings.Fields(string(tcp))
				return err == nil && err2 == nil && len(udp) > 1 && udp[1] != "0" && len(queue) > 1 && queue[1] == "1"
			}
			nstest.Poll(t, waitTime, "questions to wait", waiting)
			u.start(t)
			for range asked {
				if o := <-outcomes; o.err != nil {
					t.Errorf("%s: %v", o.what, o.err)
				}
			}
			u.ready(t)
		})
	}
}

// What is kept follows the devices and the configuration.
func TestKeptSocketsFollowWhatIsServed(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	a, b := r.guest(t, "a", "eth0", macA), r.guest(t, "b", "eth1", macB)
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	r.AddAddr(t, "eth1", "10.2.1.1/24")
	a.AddAddr(t, "eth0", "10.1.1.34/24")
	b.AddAddr(t, "eth0", "10.2.1.34/24")
	u := startUnit(t, r, binary)
	names := func(device, address string) []string {
		index := strconv.Itoa(r.Link(t, device).Attrs().Index)
		return []string{"dhcp." + index, "metadata." + index + "." + address, "password." + index + "." + address}
	}
	kept := func(sockets ...[]string) {
		t.Helper()
		want := slices.Sorted(slices.Values(slices.Concat(append(sockets, []string{"api.socket"})...)))
		nstest.Poll(t, waitTime, fmt.Sprint(want, " to be kept"), func() bool { return cmp.Equal(want, u.Names()) })
	}
	kept()
	r.put(t, "networks/guest-1.yaml", network)
	r.put(t, "networks/guest-2.yaml", strings.NewReplacer("eth0", "eth1", "10.1.1.1", "10.2.1.1").Replace(network))
	r.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	r.put(t, "vms/b/vm.yaml", vm("b", "guest-2", macB, "10.2.1.34"))
	r.applied(t)
	one, two := names("eth0", "10.1.1.1"), names("eth1", "10.2.1.1")
	kept(one, two)

	// The address moves to another router and back.
	r.DelAddr(t, "eth1", "10.2.1.1/24")
	kept(one)
	silent(t, b, "10.2.1.1:80")
	r.AddAddr(t, "eth1", "10.2.1.1/24")
	kept(one, two)
	serves(t, b, "http://10.2.1.1/latest/instance-id", "b")

	// While nobody is there one device goes, and one network.
	u.end(t, syscall.SIGTERM)
	r.Delete(t, "eth1")
	u.start(t)
	u.ready(t)
	kept(one)
	serves(t, a, "http://10.1.1.1/latest/instance-id", "a")
	u.end(t, syscall.SIGTERM)
	r.remove(t, "vms")
	r.remove(t, "networks/guest-1.yaml")
	u.start(t)
	u.ready(t)
	kept()
	silent(t, a, "10.1.1.1:80")

	// The API moves.
	for _, port := range []string{"8443", "8444", ""} {
		u.end(t, syscall.SIGTERM)
		r.configure(t, "")
		sockets := []string{}
		if port != "" {
			r.edit(t, "api.sock}", `api.sock, listen: "127.0.0.1:`+port+`"}`)
			sockets = append(sockets, "api.listen")
		}
		u.start(t)
		u.ready(t)
		kept(sockets)
		for _, other := range []string{"8443", "8444"} {
			conn, err := net.Dial("tcp4", "127.0.0.1:"+other)
			if err == nil {
				conn.Close()
			}
			if (err == nil) != (other == port) || err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("listening on %s, connect to %s: %v", port, other, err)
			}
		}
	}
	u.end(t, syscall.SIGTERM)
	if _, err := os.Lstat(filepath.Join(r.dir, "api.sock")); err != nil {
		t.Errorf("the socket that is kept: %v", err)
	}
	// A unit that was stopped for good leaves a socket that nobody listens on. It is in nobody's way.
	u.Empty()
	if _, err := r.client.Status(t.Context()); !errors.Is(err, api.ErrNoDaemon) {
		t.Errorf("status without a daemon: %v", err)
	}
	u.start(t)
	u.ready(t)
	if _, err := r.client.Status(t.Context()); err != nil {
		t.Errorf("status: %v", err)
	}
	u.end(t, syscall.SIGTERM)
}

// TestLoadNoticesAFailure makes sure that the load would tell of a daemon that is simply started anew.
func TestLoadNoticesAFailure(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	r.configure(t, "metadata: {guest_rate: 0}\n")
	g := r.guest(t, "g", "eth0", macA)
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	u := startUnit(t, r, binary)
	putLoadGuests(t, r, g, "eth0")
	l := startLoad(t, r, g, waitTime)
	l.more(t)
	u.end(t, syscall.SIGTERM)
	u.Empty()
	u.start(t)
	u.ready(t)
	l.more(t)
	l.stop()
	if len(l.failures) == 0 {
		t.Error("nothing failed although no socket was kept")
	}
}
