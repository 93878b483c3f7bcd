package metadata_test

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vragent/metadata"
	"vragent/netcfg/nstest"
)

func TestRateOfOneGuest(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{Limits: metadata.Limits{Rate: 5}})
	s.table.SetGuest(guest("guest-1", "VM-2", "10.1.1.35"))
	c := client(t, host, "10.1.1.34")
	limited := 0
	for range 20 {
		switch got := ask(t, c, "GET", idURL); got.Status {
		case 200:
		case 429:
			limited++
			if got.Header.Get("Retry-After") != "1" {
				t.Errorf("429 without Retry-After: %v", got)
			}
		default:
			t.Errorf("GET = %v", got)
		}
	}
	if limited == 0 {
		t.Error("20 requests in a row passed a rate of 5 in a second")
	}
	// The order of refusals: Host comes before rate, rate before token.
	if got := ask(t, c, "GET", idURL, "Host", "evil.example"); got.Status != 421 {
		t.Errorf("another Host beyond the rate: %v", got)
	}
	tokens := network("guest-1", "10.1.1.0/24")
	tokens.TokensRequired = true
	s.table.SetNetwork(tokens)
	nstest.Poll(t, 10*time.Second, "a refusal of the rate", func() bool { return ask(t, c, "GET", idURL).Status == 429 })
	if got := ask(t, client(t, host, "10.1.1.99"), "GET", idURL, "Host", "evil.example"); got.Status != 404 {
		t.Errorf("a stranger with another Host: %v", got)
	}
	s.table.SetNetwork(network("guest-1", "10.1.1.0/24"))
	if got := ask(t, client(t, host, "10.1.1.35"), "GET", idURL); got.Status != 200 {
		t.Errorf("another guest: %v", got)
	}
	if n := strings.Count(s.log.String(), "guest refused"); n != 1 {
		t.Errorf("logged %d times, want once a minute:\n%s", n, s.log)
	}
	s.server.SetLimits(metadata.Limits{})
	for range 50 {
		if got := ask(t, c, "GET", idURL); got.Status != 200 {
			t.Errorf("GET without a limit = %v", got)
		}
	}
}

func TestConnectionsOfOneGuest(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{Limits: metadata.Limits{Connections: 4}})
	s.table.SetGuest(guest("guest-1", "VM-2", "10.1.1.35"))
	var open []net.Conn
	connect := func(source string) net.Conn {
		c, err := dial(context.Background(), host, source, "10.1.1.1:80")
		if err != nil { // reset before it was quite open
			return nil
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(20 * time.Second))
		return c
	}
	const request = "GET /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n"
	status := func(c net.Conn) string {
		if c == nil {
			return "closed"
		}
		io.WriteString(c, request)
		reply := make([]byte, 1024)
		n, err := c.Read(reply)
		if err != nil {
			return "closed"
		}
		return statuses(string(reply[:n]))
	}
	for range 4 {
		c := connect("10.1.1.34")
		if got := status(c); got != "200" {
			t.Fatalf("within the limit: %s", got)
		}
		open = append(open, c)
	}
	if got := ask(t, client(t, host, "10.1.1.34"), "GET", idURL); got.Status != 429 || got.Header.Get("Retry-After") == "" {
		t.Errorf("beyond the limit: %v", got)
	}
	if got := ask(t, client(t, host, "10.1.1.35"), "GET", idURL); got.Status != 200 {
		t.Errorf("another guest: %v", got)
	}
	if got := status(open[0]); got != "200" {
		t.Errorf("a connection within the limit, later: %s", got)
	}
	for range 100 { // far beyond: nobody is told any more
		connect("10.1.1.34")
	}
	nstest.Poll(t, 10*time.Second, "more connections to be closed at once", func() bool { return status(connect("10.1.1.34")) == "closed" })
	for _, c := range open {
		c.Close()
	}
	for range 100 { // strangers have a limit too
		connect("10.1.1.99")
	}
	if got := ask(t, client(t, host, "10.1.1.35"), "GET", idURL); got.Status != 200 {
		t.Errorf("another guest after all that: %v", got)
	}
}

// TestOneGuestCannotHurtTheOthers has one guest do what it can while another is served.
func TestOneGuestCannotHurtTheOthers(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{Limits: metadata.Limits{Rate: 200, Connections: 64}})
	bad := guest("guest-1", "VM-1", "10.1.1.34")
	bad.UserData = content(t, make([]byte, 1<<20))
	s.table.SetGuest(bad)
	s.table.SetGuest(guest("guest-1", "VM-2", "10.1.1.35"))

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	var connections atomic.Int64
	attack := func(name string, request func(net.Conn)) {
		wg.Go(func() {
			for ctx.Err() == nil {
				c, err := dial(ctx, host, "10.1.1.34", "10.1.1.1:80")
				if err != nil {
					continue
				}
				connections.Add(1)
				c.SetDeadline(time.Now().Add(time.Second))
				stop := context.AfterFunc(ctx, func() { c.Close() })
				request(c)
				stop()
				c.Close()
			}
		})
	}
	for range 8 {
		attack("idle", func(c net.Conn) { c.Read(make([]byte, 1)) })
		attack("slow reader", func(c net.Conn) {
			io.WriteString(c, "GET /latest/user-data HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n")
			c.Read(make([]byte, 1))
			<-ctx.Done()
		})
		attack("slow writer", func(c net.Conn) {
			for ctx.Err() == nil {
				if _, err := io.WriteString(c, "G"); err != nil {
					return
				}
				c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
				c.Read(make([]byte, 1))
			}
		})
		attack("flood", func(c net.Conn) {
			for ctx.Err() == nil {
				if _, err := io.WriteString(c, strings.Repeat("GET /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n", 50)); err != nil {
					return
				}
				if _, err := c.Read(make([]byte, 32<<10)); err != nil {
					return
				}
			}
		})
		attack("oversized", func(c net.Conn) {
			io.WriteString(c, "GET /"+strings.Repeat("x", 100_000)+" HTTP/1.1\r\n\r\n")
		})
	}
	nstest.Poll(t, 20*time.Second, "the attack to be on", func() bool { return connections.Load() > 100 })
	c := client(t, host, "10.1.1.35")
	for i := range 100 {
		if i%10 == 0 {
			c.CloseIdleConnections()
		}
		if got := ask(t, c, "GET", idURL); got.Body != "VM-2" {
			t.Errorf("GET of the other guest = %v", got)
		}
	}
	cancel()
	wg.Wait()
}

// Whoever does not get on with it is not waited for, with a request as little as without one.
func TestSlowClientsAreNotWaitedFor(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s := newSite(t, metadata.Options{})
	s.server.ShortTimeouts(200 * time.Millisecond)
	host := nstest.NewHost(t, "guest")
	s.segment("eth0", "10.1.1.1/24", host, "10.1.1.34/24")
	s.table.SetNetwork(network("guest-1", "10.1.1.0/24"))
	g := guest("guest-1", "VM-1", "10.1.1.34")
	g.UserData = content(t, make([]byte, 8<<20))
	s.table.SetGuest(g)
	s.serve("eth0", []string{"10.1.1.1"}, "guest-1")
	const head = "GET /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\n"
	for _, test := range []struct{ name, request, want string }{
		{"nothing", "", ""},
		{"half a request", head, "408"},
		{"a request, then nothing", head + "\r\n", "200"},
		{"a request, then half of one", head + "\r\n" + head, "200"},
		{"half a body", "PUT /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nContent-Length: 10\r\n\r\nab", "408"},
	} {
		if got := statuses(raw(t, host, "", "10.1.1.1:80", test.request)); got != test.want {
			t.Errorf("%s: statuses %q, want %q", test.name, got, test.want)
		}
	}
	reader, err := dial(t.Context(), host, "", "10.1.1.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	io.WriteString(reader, "GET /latest/user-data HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n")
	nstest.Poll(t, 10*time.Second, "the server to give a slow reader up", func() bool { return s.server.Connections() == 0 })
}

// Requests that come in pieces, or several at once, are answered as if they had not.
func TestRequestsInPieces(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	_, host := small(t, metadata.Options{})
	const request = "GET /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n"
	for size := 1; size < len(request); size += 7 {
		c, err := dial(t.Context(), host, "10.1.1.34", "10.1.1.1:80")
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		c.(*net.TCPConn).SetNoDelay(true)
		all := request + request + strings.Replace(request, "Host", "Connection: close\r\nHost", 1)
		for len(all) > 0 {
			n := min(size, len(all))
			if _, err := io.WriteString(c, all[:n]); err != nil {
				t.Fatal(err)
			}
			all = all[n:]
		}
		reply, err := io.ReadAll(c)
		if got := statuses(string(reply)); err != nil || got != "200 200 200" || strings.Count(string(reply), "VM-1") != 3 {
			t.Errorf("in pieces of %d: %q, %v", size, reply, err)
		}
		c.Close()
	}
}
