package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"

	"vragent/netcfg/nstest"
)

// TestFiguresFailover measures how long guests of a pair are without a router once the other one has the
// gateway address: keepalived moves it, 20 times back and forth, while a guest asks all the time.
func TestFiguresFailover(t *testing.T) {
	if os.Getenv("VRAGENT_FIGURES") == "" {
		t.Skip("set VRAGENT_FIGURES=1")
	}
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "keepalived", "setpriv")
	table := figures(t)
	w, guests := newTwins(t, false, macA)
	g := guests[0]
	g.AddAddr(t, "eth0", "10.1.1.34/24")
	passing := listen(t, "port-g0")
	routers := []*router{w.a, w.b}
	appeared := make(map[*router]chan time.Time)
	keepers := make(map[*router]*nstest.Process)
	for _, r := range routers {
		r.logLevel(t, "info")
		r.startAs(t, binary)
		r.put(t, "networks/guest-1.yaml", network)
		r.put(t, "vms/a/user-data", r.Name())
		r.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
		r.applied(t)
		appeared[r] = addressEvents(t, r.Host, "10.1.1.1")
	}
	keepers[w.a] = keepalive(t, w.a)
	<-appeared[w.a]
	keepers[w.b] = keepalive(t, w.b)
	keepers[w.b].WaitFor(t, "Entering BACKUP STATE", waitTime)

	var mu sync.Mutex
	first := make(map[string]time.Time) // 200s of a router since the last look
	askAlways(t, g, func(body string, at time.Time) {
		mu.Lock()
		defer mu.Unlock()
		if _, ok := first[body]; !ok {
			first[body] = at
		}
	})
	discoverAlways(t, g)

	var offers, answers []float64
	for i := range 20 {
		from, to := routers[i%2], routers[(i+1)%2]
		mu.Lock()
		clear(first)
		mu.Unlock()
		n := passing.len()
		if err := keepers[from].Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		began := <-appeared[to]
		mac := to.MAC(t, "eth0")
		var offer message
		nstest.Poll(t, waitTime, "an offer of the other router", func() (ok bool) {
			offer, ok = passing.find(n, func(m message) bool {
				return m.MessageType() == dhcpv4.MessageTypeOffer && string(m.from) == string(mac)
			})
			return ok
		})
		var answered time.Time
		nstest.Poll(t, waitTime, "an answer of the other router", func() (ok bool) {
			mu.Lock()
			defer mu.Unlock()
			answered, ok = first[to.Name()]
			return ok
		})
		offers = append(offers, float64(offer.at.Sub(began).Microseconds())/1000)
		answers = append(answers, float64(answered.Sub(began).Microseconds())/1000)
		<-keepers[from].Exited()
		keepers[from] = keepalive(t, from)
		keepers[from].WaitFor(t, "Entering BACKUP STATE", waitTime)
	}
	slices.Sort(offers)
	slices.Sort(answers)
	for what, list := range map[string][]float64{"OFFER": offers, "200": answers} {
		fmt.Fprintf(table, "failover: gateway address appears, to first %s, median of 20 (largest %.0f ms)\t1\t%.0f ms\t300 ms\n", what, list[19], list[10])
	}
}

// addressEvents tells when an address appears on a host.
func addressEvents(t *testing.T, h *nstest.Host, address string) chan time.Time {
	t.Helper()
	updates, done := make(chan netlink.AddrUpdate, 64), make(chan struct{})
	h.Do(t, func() {
		if err := netlink.AddrSubscribe(updates, done); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { close(done) })
	times := make(chan time.Time, 64)
	go func() {
		for u := range updates {
			if u.NewAddr && u.LinkAddress.IP.String() == address {
				times <- time.Now()
			}
		}
	}()
	return times
}

// askAlways has a guest ask for its user data, every few milliseconds on a new connection, until the test ends.
func askAlways(t *testing.T, g *nstest.Host, told func(body string, at time.Time)) {
	t.Helper()
	dialer := &net.Dialer{Timeout: 20 * time.Millisecond}
	client := &http.Client{Timeout: 100 * time.Millisecond, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return g.Dial(ctx, dialer, network, addr)
		},
	}}
	every(t, func() {
		res, err := client.Get("http://10.1.1.1/latest/user-data")
		if err != nil {
			return // nobody has the address
		}
		defer res.Body.Close()
		if body, err := io.ReadAll(res.Body); err == nil && res.StatusCode == http.StatusOK {
			told(string(body), time.Now())
		}
	})
}

// discoverAlways has a guest ask for an address every few milliseconds, until the test ends.
func discoverAlways(t *testing.T, g *nstest.Host) {
	t.Helper()
	mac := g.MAC(t, "eth0")
	var conn net.PacketConn
	g.Do(t, func() {
		var err error
		if conn, err = net.ListenPacket("udp4", "0.0.0.0:68"); err != nil {
			t.Error(err)
		}
	})
	if conn == nil {
		t.FailNow()
	}
	t.Cleanup(func() { conn.Close() })
	g.Run(t, "ip", "route", "add", "255.255.255.255/32", "dev", "eth0")
	every(t, func() {
		m, err := dhcpv4.NewDiscovery(mac)
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = conn.WriteTo(m.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 67}) // with the link down there is nobody to tell
	})
}

// every calls fn every few milliseconds until the test ends.
func every(t *testing.T, fn func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			fn()
			select {
			case <-ctx.Done():
			case <-time.After(2 * time.Millisecond):
			}
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}
