package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"vragent/agent"
	"vragent/agent/internal/api"
	"vragent/agent/internal/etcd/etcdtest"
	"vragent/netcfg/nstest"
)

// twins are a redundant pair of routers, each a host with a daemon of its own, and their etcd, which
// stands outside of the pair.
//
//	test's namespaces: etcd at 192.0.2.9, and the two segments
//	   br0 ── guests, eth0 of a (10.1.1.2), eth0 of b (10.1.1.3); 10.1.1.1 is on one of them
//	   br1 ── eth1 of a (192.0.2.2), eth1 of b (192.0.2.3)
type twins struct {
	*nstest.Host
	a, b  *router
	store *etcdtest.Server
	certs *etcdtest.Certs
	way   string // to the store, address and port
}

const storeAddress = "192.0.2.9:2379"

// newTwins makes the pair with its etcd, and guests by their MACs. No daemon runs yet, and the gateway
// address is nowhere.
func newTwins(t *testing.T, secure bool, macs ...string) (w *twins, guests []*nstest.Host) {
	t.Helper()
	w = &twins{Host: nstest.Here(t), way: storeAddress}
	segment, management := []string{}, []string{}
	for i, r := range []**router{&w.a, &w.b} {
		name := string(rune('a' + i))
		host := nstest.NewHost(t, "router-"+name)
		dir := t.TempDir()
		*r = &router{Host: host, dir: dir, drop: dir + "/drop", config: dir + "/agent.yaml", log: &logBuffer{}}
		for device, list := range map[string]*[]string{"eth0": &segment, "eth1": &management} {
			port := "port-" + name + device[3:]
			nstest.Pair(t, w.Host, port, host, device)
			*list = append(*list, port)
		}
		host.AddAddr(t, "eth0", fmt.Sprintf("10.1.1.%d/24", i+2))
		host.AddAddr(t, "eth1", fmt.Sprintf("192.0.2.%d/24", i+2))
	}
	for i, mac := range macs {
		g := nstest.NewHost(t, fmt.Sprintf("guest-%d", i))
		port := fmt.Sprintf("port-g%d", i)
		nstest.Pair(t, w.Host, port, g, "eth0")
		g.SetMAC(t, "eth0", mac)
		segment = append(segment, port)
		guests = append(guests, g)
	}
	w.Bridge(t, "br0", segment...)
	w.Bridge(t, "br1", management...)
	w.AddAddr(t, "br1", "192.0.2.9/24")
	if secure {
		w.certs = etcdtest.NewCerts(t)
	}
	w.store = etcdtest.Start(t, w.Host, storeAddress, w.certs)
	for _, r := range []*router{w.a, w.b} {
		w.share(t, r, w.certs)
	}
	return w, guests
}

// share writes the configuration of a router, with a certificate of these.
func (w *twins) share(t *testing.T, r *router, certs *etcdtest.Certs) {
	t.Helper()
	if certs == nil {
		r.configure(t, fmt.Sprintf("shared_state: {etcd: {endpoints: [\"http://%s\"]}}\n", w.way))
		return
	}
	pair := certs.Make(t, r.Name(), "")
	r.configure(t, fmt.Sprintf("shared_state:\n  etcd:\n    endpoints: [\"https://%s\"]\n    tls: {ca: %s, cert: %s, key: %s}\n", w.way, w.certs.CA, pair.Cert, pair.Key))
}

// put drops a file on both routers.
func (w *twins) put(t *testing.T, path, content string) {
	t.Helper()
	for _, r := range []*router{w.a, w.b} {
		r.put(t, path, content)
	}
}

// applied waits until all is applied on both.
func (w *twins) applied(t *testing.T) {
	t.Helper()
	for _, r := range []*router{w.a, w.b} {
		r.applied(t)
	}
}

// serve moves the gateway address to a router, from nowhere or from the other one, and tells guests of
// its new card as keepalived does.
func (w *twins) serve(t *testing.T, r *router) {
	t.Helper()
	for _, other := range []*router{w.a, w.b} {
		if other != r && strings.Contains(other.Run(t, "ip", "-4", "addr", "show", "dev", "eth0"), "10.1.1.1/24") {
			other.DelAddr(t, "eth0", "10.1.1.1/24")
		}
	}
	if !strings.Contains(r.Run(t, "ip", "-4", "addr", "show", "dev", "eth0"), "10.1.1.1/24") {
		r.AddAddr(t, "eth0", "10.1.1.1/24")
	}
	r.Run(t, "busybox", "arping", "-U", "-c", "1", "-I", "eth0", "10.1.1.1")
}

// sharedBecomes waits until a router's status tells that it is in step with the other one, or is not.
func sharedBecomes(t *testing.T, r *router, current bool) api.SharedStatus {
	t.Helper()
	var shared api.SharedStatus
	nstest.Poll(t, waitTime, fmt.Sprintf("%s to be current: %v", r.Name(), current), func() bool {
		status, err := r.client.Status(t.Context())
		if err != nil || status.Shared == nil {
			t.Fatalf("status of %s: %+v, %v", r.Name(), status.Shared, err)
		}
		shared = *status.Shared
		return shared.Current == current
	})
	return shared
}

// poolLease returns what a router knows of a pool address: MAC and state.
func poolLease(t *testing.T, r *router, ip string) string {
	t.Helper()
	leases, err := r.client.Leases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range leases {
		if l.IPv4 == ip {
			return l.MAC + " " + l.State
		}
	}
	return ""
}

func poolLeaseBecomes(t *testing.T, r *router, ip, want string) {
	t.Helper()
	nstest.Poll(t, waitTime, fmt.Sprintf("%s on %s to be %q", ip, r.Name(), want), func() bool { return poolLease(t, r, ip) == want })
}

// keepalive starts keepalived on a router. The first to run has the gateway address, until it ends or its
// link goes down.
func keepalive(t *testing.T, r *router) *nstest.Process {
	t.Helper()
	const config = "/run/keepalived.conf"
	r.WriteFile(t, config, `global_defs {
	vrrp_version 3
}
vrrp_instance guests {
	state BACKUP
	nopreempt
	interface eth0
	virtual_router_id 51
	priority 100
	advert_int 0.1
	virtual_ipaddress {
		10.1.1.1/24 dev eth0
	}
}
`)
	return r.Start(t, "keepalived", "--dont-fork", "--log-console", "--vrrp", "--use-file", config, "--pid", "/run/keepalived.pid", "--vrrp_pid", "/run/vrrp.pid")
}

// password asks the password server at the gateway address as a guest's script does.
func password(t *testing.T, g *nstest.Host, request string) string {
	t.Helper()
	out, err := g.Output(t, "curl", "-sSf", "--max-time", "15", "--noproxy", "*", "-H", "DomU_Request: "+request, "http://10.1.1.1:8080/")
	if err != nil {
		return err.Error() + ": " + out
	}
	return out
}

// loop asks for a page of the gateway address again and again until stop, which returns how many
// requests were answered. An answer that is not want fails the test; none, or none in time, does not:
// between two routers there is a moment without any.
func loop(t *testing.T, g *nstest.Host, url, want string) (answered func() int, stop func()) {
	t.Helper()
	var mu sync.Mutex
	n := 0
	end := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-end:
				return
			default:
			}
			out, err := g.Command(t.Context(), "curl", "-sS", "--max-time", "0.2", "--noproxy", "*", "-w", "%{http_code}", url).Output()
			if err != nil {
				continue
			}
			if string(out) != want+"200" {
				t.Errorf("a request in the loop is answered %q, want %q", out, want+"200")
			}
			mu.Lock()
			n++
			mu.Unlock()
		}
	})
	stop = sync.OnceFunc(func() { close(end); wg.Wait() })
	t.Cleanup(stop)
	return func() int { mu.Lock(); defer mu.Unlock(); return n }, stop
}

const pooled = "pool: {from: 10.1.1.200, to: 10.1.1.209, probe: false}\n"

func TestPairOfRoutersCarriesOnWhenOneFails(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "keepalived", "setpriv", "dhclient", "udhcpc", "curl")
	const strangerMAC, lateMAC = "02:00:4c:5f:00:0c", "02:00:4c:5f:00:0d"
	w, guests := newTwins(t, false, macA, strangerMAC, lateMAC)
	known, stranger, late := guests[0], guests[1], guests[2]
	passing := map[string]*wire{macA: listen(t, "port-g0"), strangerMAC: listen(t, "port-g1")}
	w.a.startAs(t, binary)
	w.b.startAs(t, binary)
	w.put(t, "networks/guest-1.yaml", network+pooled+"lease_time: 1m\n") // dhclient renews at half of it
	w.put(t, "vms/a/password", "s3cret\n")
	w.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	w.applied(t)
	sharedBecomes(t, w.a, true)
	sharedBecomes(t, w.b, true)

	// Both stand by, until one has the address: nobody answers.
	quiet := func(addresses ...string) {
		t.Helper()
		known.AddAddr(t, "eth0", "10.1.1.34/24")
		for _, address := range addresses {
			for _, port := range []string{":80", ":8080"} {
				silent(t, known, address+port)
			}
		}
		known.DelAddr(t, "eth0", "10.1.1.34/24")
	}
	quiet("10.1.1.1", "10.1.1.2", "10.1.1.3")
	if out, err := known.Output(t, "timeout", "3", "udhcpc", "-n", "-q", "-t", "1", "-T", "1", "-i", "eth0", "-s", "/bin/true"); err == nil {
		t.Errorf("somebody answers DHCP without the address:\n%s", out)
	}
	keepalive(t, w.a)
	nstest.Poll(t, waitTime, "the first router to have the address", func() bool {
		return strings.Contains(w.a.Run(t, "ip", "-4", "addr", "show", "dev", "eth0"), "10.1.1.1/24")
	})
	keepalive(t, w.b).WaitFor(t, "Entering BACKUP STATE", waitTime)

	dhclient := known.Start(t, "dhclient", "-d", "-v", "-pf", "/run/dhclient.pid", "-lf", leaseNote, "eth0")
	has(t, known, "eth0", "10.1.1.34")
	strange := udhcpc(t, stranger, "eth0", "-f")
	has(t, stranger, "eth0", "10.1.1.200")
	if got := password(t, known, "send_my_password"); got != "s3cret" {
		t.Errorf("password %q", got)
	}
	if got := password(t, known, "saved_password"); got != "saved_password" {
		t.Errorf("acknowledged with %q", got)
	}
	answered, stop := loop(t, known, "http://10.1.1.1/latest/local-hostname", "a")
	nstest.Poll(t, waitTime, "the loop to go round", func() bool { return answered() > 2 })
	for _, port := range []string{":80", ":8080"} {
		silent(t, known, "10.1.1.3"+port)
	}
	answers := func(r *router) bool {
		mac := r.MAC(t, "eth0")
		_, ok := passing[macA].find(0, func(m message) bool { return m.OpCode == dhcpv4.OpcodeBootReply && string(m.from) == string(mac) })
		return ok
	}
	if answers(w.b) || !answers(w.a) {
		t.Errorf("the first router answers: %v, the one that stands by: %v", answers(w.a), answers(w.b))
	}

	// The first one is cut off, as by the loss of power.
	seen := map[string]int{macA: passing[macA].len(), strangerMAC: passing[strangerMAC].len()}
	w.a.Down(t, "eth0")
	nstest.Poll(t, waitTime, "the second router to have the address", func() bool {
		return strings.Contains(w.b.Run(t, "ip", "-4", "addr", "show", "dev", "eth0"), "10.1.1.1/24")
	})
	before := answered()
	nstest.Poll(t, waitTime, "the loop to go on", func() bool { return answered() > before+2 })
	stop()
	for _, client := range []struct{ mac, ip string }{{macA, "10.1.1.34"}, {strangerMAC, "10.1.1.200"}} {
		if client.mac == strangerMAC {
			if err := strange.Signal(syscall.SIGUSR1); err != nil { // renew now
				t.Fatal(err)
			}
		}
		// dhclient does so by itself at half of its minute.
		wire, n := passing[client.mac], seen[client.mac]
		ack := wire.awaitWithin(t, n, time.Minute, "ACK", client.mac)
		if ack.YourIPAddr.String() != client.ip || ack.ServerIdentifier().String() != "10.1.1.1" || string(ack.from) != string(w.b.MAC(t, "eth0")) {
			t.Errorf("the renewal is answered %s from %s", ack, ack.from)
		}
		if asked, ok := wire.find(n, func(m message) bool { return m.TransactionID == ack.TransactionID }); !ok || asked.kind() != "RENEWING" && asked.kind() != "REBINDING" { // the latter where its first word fell into the gap
			t.Errorf("asked %s, want a renewal", asked)
		}
	}
	select {
	case <-dhclient.Exited():
		t.Error("dhclient has ended")
	default:
	}
	if got := password(t, known, "send_my_password"); got != "saved_password" {
		t.Errorf("the taken password comes back on the other router: %q", got)
	}
	lease(t, late, "10.1.1.201") // not the address that the first router gave away

	// What ends on the second router has ended on the first.
	if err := strange.Signal(syscall.SIGUSR2); err != nil { // release
		t.Fatal(err)
	}
	poolLeaseBecomes(t, w.b, "10.1.1.200", strangerMAC+" released")
	poolLeaseBecomes(t, w.a, "10.1.1.200", strangerMAC+" released")
	poolLeaseBecomes(t, w.a, "10.1.1.201", lateMAC+" bound")
}

func TestPairWithoutItsStoreServesWhatItKnows(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "setpriv", "udhcpc", "busybox", "curl")
	const strangerMAC, lateMAC = "02:00:4c:5f:00:0c", "02:00:4c:5f:00:0d"
	w, guests := newTwins(t, false, macA, strangerMAC, lateMAC)
	known, stranger, late := guests[0], guests[1], guests[2]
	passing := map[string]*wire{macA: listen(t, "port-g0"), strangerMAC: listen(t, "port-g1")}
	w.a.startAs(t, binary)
	w.b.startAs(t, binary)
	w.put(t, "networks/guest-1.yaml", network+pooled+"lease_time: 1h\n")
	w.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	w.applied(t)
	w.serve(t, w.a)
	lease(t, known, "10.1.1.34")
	strange := udhcpc(t, stranger, "eth0", "-f")
	has(t, stranger, "eth0", "10.1.1.200")
	poolLeaseBecomes(t, w.b, "10.1.1.200", strangerMAC+" bound")
	w.put(t, "vms/a/password", "s3cret\n")
	w.applied(t)

	for name, outage := range map[string]struct{ begin, end func() }{
		"stopped": {func() { w.store.Stop(t) }, func() { w.store.Start(t) }},
		"silent":  {func() { w.store.Pause(t) }, func() { w.store.Resume(t) }},
	} {
		t.Run(name, func(t *testing.T) {
			outage.begin()
			if s := sharedBecomes(t, w.a, false); s.Why == "" {
				t.Errorf("status tells no reason: %+v", s)
			}
			sharedBecomes(t, w.b, false)
			if out, _, _ := w.a.vragent(t, binary, "status"); !strings.Contains(out, "out of reach for") {
				t.Errorf("vragent status:\n%s", out)
			}
			for _, r := range []*router{w.a, w.b} {
				nstest.Poll(t, waitTime, "explain to tell of the password", func() bool {
					x, err := r.client.Explain(t.Context(), "a")
					return err == nil && strings.Contains(strings.Join(x.Obstacles, "\n"), "password: taken passwords cannot be shared")
				})
			}
			// On the other router as well, which has it from the first one.
			for _, r := range []*router{w.a, w.b} {
				w.serve(t, r)
				serves(t, known, "http://10.1.1.1/latest/local-hostname", "a")
				lease(t, known, "10.1.1.34")
				n := passing[strangerMAC].len()
				if err := strange.Signal(syscall.SIGUSR1); err != nil {
					t.Fatal(err)
				}
				ack := passing[strangerMAC].await(t, n, "ACK", strangerMAC)
				if left := ack.IPAddressLeaseTime(0); left <= 0 || left > time.Hour || string(ack.from) != string(r.MAC(t, "eth0")) {
					t.Errorf("%s renews for %v, from %s", r.Name(), left, ack.from)
				}
				if out, err := late.Output(t, "timeout", "5", "udhcpc", "-n", "-q", "-t", "2", "-T", "1", "-i", "eth0", "-s", "/bin/true"); err == nil {
					t.Errorf("%s binds a new client:\n%s", r.Name(), out)
				}
			}
			// Held, and neither the password nor a word that there is none.
			if got := password(t, known, "send_my_password"); got != "bad_request" {
				t.Errorf("password without the store: %q", got)
			}
			got := make(chan string, 1)
			go func() { got <- password(t, known, "send_my_password") }()
			nstest.Poll(t, waitTime, "the request to be held", func() bool {
				out, _ := w.b.Output(t, "ss", "-Htn", "state", "established", "( sport = :8080 )")
				return out != ""
			})
			outage.end()
			if p := <-got; p != "s3cret" {
				t.Errorf("a request that was held is answered %q when the store is back", p)
			}
			sharedBecomes(t, w.a, true)
			sharedBecomes(t, w.b, true)
		})
	}
	lease(t, late, "10.1.1.201")
	if got := password(t, known, "saved_password"); got != "saved_password" {
		t.Errorf("acknowledged with %q", got)
	}
	w.serve(t, w.a)
	if got := password(t, known, "send_my_password"); got != "saved_password" {
		t.Errorf("the taken password comes back: %q", got)
	}
}

// slowWay is a way to the store that takes its time, in each direction.
type slowWay struct {
	delay atomic.Int64 // nanoseconds
}

// newSlowWay opens a way at address, which leads to the store.
func newSlowWay(t *testing.T, address string) *slowWay {
	t.Helper()
	s := &slowWay{}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	var open sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); l.Close(); open.Wait() })
	open.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", storeAddress)
			if err != nil {
				near.Close()
				continue
			}
			stop := context.AfterFunc(ctx, func() { near.Close(); far.Close() })
			var both sync.WaitGroup
			both.Go(func() { s.carry(ctx, far, near) })
			both.Go(func() { s.carry(ctx, near, far) })
			open.Go(func() { both.Wait(); stop() })
		}
	})
	return s
}

// carry brings what comes from one end to the other, each piece after the delay, until either ends.
func (s *slowWay) carry(ctx context.Context, to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	for buf := make([]byte, 64<<10); ; {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(s.delay.Load())):
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func TestPairWithASlowStoreTakesItsTime(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "setpriv", "udhcpc", "busybox", "curl")
	const strangerMAC, lateMAC = "02:00:4c:5f:00:0c", "02:00:4c:5f:00:0d"
	w, guests := newTwins(t, false, macA, strangerMAC, lateMAC)
	known, stranger, late := guests[0], guests[1], guests[2]
	passing := listen(t, "port-g1")
	w.way = "192.0.2.9:2378"
	way := newSlowWay(t, w.way)
	for _, r := range []*router{w.a, w.b} {
		w.share(t, r, nil)
		r.startAs(t, binary)
	}
	w.put(t, "networks/guest-1.yaml", network+pooled+"lease_time: 1h\n")
	w.put(t, "vms/a/password", "s3cret\n")
	w.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	w.applied(t)
	w.serve(t, w.a)
	lease(t, known, "10.1.1.34")

	way.delay.Store(int64(200 * time.Millisecond))
	strange := udhcpc(t, stranger, "eth0", "-f")
	has(t, stranger, "eth0", "10.1.1.200")
	if got := password(t, known, "send_my_password"); got != "s3cret" {
		t.Errorf("password through a slow way: %q", got)
	}
	poolLeaseBecomes(t, w.b, "10.1.1.200", strangerMAC+" bound")

	// So slow that it is none.
	way.delay.Store(int64(time.Minute))
	n := passing.len()
	if err := strange.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if ack := passing.await(t, n, "ACK", strangerMAC); ack.IPAddressLeaseTime(0) <= 0 || ack.YourIPAddr.String() != "10.1.1.200" {
		t.Errorf("renewal: %s", ack)
	}
	sharedBecomes(t, w.a, false)
	if out, err := late.Output(t, "timeout", "5", "udhcpc", "-n", "-q", "-t", "2", "-T", "1", "-i", "eth0", "-s", "/bin/true"); err == nil {
		t.Errorf("a new client is bound:\n%s", out)
	}
	serves(t, known, "http://10.1.1.1/latest/local-hostname", "a")
	way.delay.Store(0)
	sharedBecomes(t, w.a, true)
	lease(t, late, "10.1.1.201")
	poolLeaseBecomes(t, w.b, "10.1.1.201", lateMAC+" bound")
}

func TestPairProvesWhoItIsToItsStore(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "setpriv", "udhcpc", "busybox")
	const strangerMAC = "02:00:4c:5f:00:0c"
	w, guests := newTwins(t, true, strangerMAC)
	stranger := guests[0]
	w.share(t, w.b, etcdtest.NewCerts(t)) // another authority's
	p := w.a.startAs(t, binary)
	q := w.b.startAs(t, binary)
	w.put(t, "networks/guest-1.yaml", network+pooled+"lease_time: 1h\n")
	w.applied(t)
	sharedBecomes(t, w.a, true)
	w.serve(t, w.a)
	lease(t, stranger, "10.1.1.200")

	status, err := w.b.client.Status(t.Context())
	if err != nil || status.Shared.Current || !strings.Contains(status.Shared.Why, "the server refuses tls.cert") {
		t.Errorf("status with a certificate of somebody else: %+v, %v", status.Shared, err)
	}
	if !strings.Contains(strings.Join(status.Faults, "\n"), "tls.cert") {
		t.Errorf("faults %q", status.Faults)
	}
	end(t, q)
	w.share(t, w.b, w.certs)
	q = w.b.startAs(t, binary)
	sharedBecomes(t, w.b, true)
	poolLeaseBecomes(t, w.b, "10.1.1.200", strangerMAC+" bound")

	// The store loses everything, and gets it back from whoever knows.
	end(t, q)
	w.store.Stop(t)
	sharedBecomes(t, w.a, false)
	w.store.Wipe(t)
	w.store.Start(t)
	sharedBecomes(t, w.a, true)
	w.b.startAs(t, binary)
	sharedBecomes(t, w.b, true)
	poolLeaseBecomes(t, w.b, "10.1.1.200", strangerMAC+" bound")
	end(t, p)
}

func TestRouterTakesItsLeasesIntoAPair(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "setpriv", "udhcpc", "busybox")
	const strangerMAC = "02:00:4c:5f:00:0c"
	w, guests := newTwins(t, false, strangerMAC)
	w.a.configure(t, "") // a router by itself
	p := w.a.startAs(t, binary)
	w.a.put(t, "networks/guest-1.yaml", network+pooled+"lease_time: 1h\n")
	w.a.applied(t)
	w.serve(t, w.a)
	lease(t, guests[0], "10.1.1.200")
	end(t, p)
	w.share(t, w.a, nil)
	w.a.startAs(t, binary)
	w.b.startAs(t, binary)
	w.b.put(t, "networks/guest-1.yaml", network+pooled+"lease_time: 1h\n")
	for _, r := range []*router{w.a, w.b} {
		poolLeaseBecomes(t, r, "10.1.1.200", strangerMAC+" bound")
	}
	// The backup of either has it.
	file := w.b.dir + "/backup"
	if _, stderr, status := w.b.vragent(t, binary, "backup", file); status != 0 {
		t.Fatalf("vragent backup: exit status %d\n%s", status, stderr)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if c, err := agent.ReadBackup(f); err != nil || c.Leases != 1 || len(c.Faults) != 0 {
		t.Errorf("backup of the other router: %+v, %v", c, err)
	}
}
