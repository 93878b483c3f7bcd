package metadata_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vragent/metadata"
	"vragent/netcfg/nstest"
)

// serveEveryone starts a network's guest at each of these addresses, each with user data that names
// it.
func serveEveryone(t *testing.T, s *site, network string, addresses ...string) {
	t.Helper()
	for _, a := range addresses {
		g := guest(network, network+"-"+a, a)
		g.UserData = content(t, []byte("user data of "+network+"-"+a))
		s.table.SetGuest(g)
	}
}

func TestNoFieldOfARequestTellsWhoAsks(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{})
	serveEveryone(t, s, "guest-1", "10.1.1.34", "10.1.1.35")
	c := client(t, host, "10.1.1.34")
	for _, field := range []string{
		"X-Forwarded-For", "X-Real-IP", "X-Client-IP", "X-Original-Forwarded-For", "True-Client-IP", "X-Instance-ID",
		"X-Instance-ID-Signature", "X-Tenant-ID", "X-Remote-Addr", "X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Host", "Client-IP",
	} {
		got := ask(t, c, "GET", "http://10.1.1.1/latest/user-data", field, "10.1.1.35", "Forwarded", "for=10.1.1.35")
		if got.Body != "user data of guest-1-10.1.1.34" {
			t.Errorf("%s: %v", field, got)
		}
	}
	for _, path := range []string{
		"/metadata/10.1.1.35/instance-id", "/userdata/10.1.1.35/user-data", "/latest/10.1.1.35/user-data", "/latest/meta-data/../../userdata/10.1.1.35/user-data",
		"//10.1.1.35/latest/user-data", "/latest/user-data/..", "/latest/user-data%00", "/latest/user-data%2f", "/latest/./user-data", "/latest/user-data;x", "/latest/meta-data/instance-id/",
		"/latest\\user-data", "/2009-04-04/user-data/../../latest", "/2009-13-04/user-data", "/1.1/user-data",
	} {
		reply := raw(t, host, "10.1.1.34", "10.1.1.1:80", "GET "+path+" HTTP/1.0\r\n\r\n")
		if !strings.HasPrefix(reply, "HTTP/1.1 404 ") || strings.Contains(reply, "10.1.1.35") {
			t.Errorf("GET %s = %q, want 404", path, reply)
		}
	}
}

func TestTakenOverAddressGetsNothingOfItsFormerHolder(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{})
	large := guest("guest-1", "VM-1", "10.1.1.34")
	large.UserData = content(t, []byte(strings.Repeat("old secret ", 90_000)))
	large.Meta = map[string]string{"token": "old secret"}
	s.table.SetGuest(large)

	idle, err := dial(t.Context(), host, "10.1.1.34", "10.1.1.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	reading, err := dial(t.Context(), host, "10.1.1.34", "10.1.1.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer reading.Close()
	reading.(*net.TCPConn).SetReadBuffer(4096)
	const request = "GET /latest/user-data HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n"
	io.WriteString(idle, "GET /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n")
	io.WriteString(reading, request)
	first := make([]byte, 1024)
	for _, c := range []net.Conn{idle, reading} {
		c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Read(first); err != nil {
			t.Fatal(err)
		}
	}

	s.table.SetGuest(guest("guest-1", "VM-2", "10.1.1.34"))
	if _, err := io.WriteString(idle, request); err == nil {
		_, err = idle.Read(first)
		if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) {
			t.Errorf("the former holder's idle connection: %v, want it closed", err)
		}
	}
	if n, err := io.Copy(io.Discard, reading); err == nil || n >= 990_000 {
		t.Errorf("the former holder's answer in progress went on for %d bytes, %v", n, err)
	}
	c := client(t, host, "10.1.1.34")
	if got := ask(t, c, "GET", "http://10.1.1.1/latest/user-data"); got.Status != 404 {
		t.Errorf("user data for the new holder: %v", got)
	}
	if got := ask(t, c, "GET", "http://10.1.1.1/latest/token"); got.Status != 404 {
		t.Errorf("a name of the former holder: %v", got)
	}
	if got := ask(t, c, "GET", "http://10.1.1.1/latest/vm-id"); got.Body != "VM-2" {
		t.Errorf("vm-id for the new holder: %v", got)
	}
	for _, r := range s.server.Last("guest-1", large.IP) {
		if r.Status == 200 && r.Path == "/latest/user-data" {
			t.Errorf("Last() has a request of the former holder: %+v", r)
		}
	}
	// A VM of the same name that was made anew is another one.
	anew := guest("guest-1", "VM-2", "10.1.1.34")
	anew.Generation = 2
	s.table.SetGuest(anew)
	if _, err := tryAsk(c, "POST", "http://10.1.1.1/latest/vm-id"); err == nil {
		// http.Client sends a POST again only over a connection that it never used.
		t.Log("the client opened another connection")
	}
	s.table.RemoveGuest("guest-1", large.IP)
	if got := ask(t, client(t, host, "10.1.1.34"), "GET", "http://10.1.1.1/latest/vm-id"); got.Status != 404 {
		t.Errorf("after the guest was removed: %v", got)
	}
}

// What a guest reads while its files change is the old content or the new, whole.
func TestContentThatChangesIsReadWhole(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{})
	contents := []metadata.Content{
		content(t, []byte(strings.Repeat("a", 300_000))),
		content(t, []byte(strings.Repeat("b", 200_000))),
	}
	set := func(i int) {
		g := guest("guest-1", "VM-1", "10.1.1.34")
		g.UserData = contents[i%2]
		s.table.SetGuest(g)
	}
	set(0)
	ctx, cancel := context.WithCancel(t.Context())
	var changing sync.WaitGroup
	changing.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			set(i)
		}
	})
	c := client(t, host, "10.1.1.34")
	for range 200 {
		got := ask(t, c, "GET", "http://10.1.1.1/latest/user-data")
		if got.Status != 200 || got.Body != strings.Repeat("a", 300_000) && got.Body != strings.Repeat("b", 200_000) {
			t.Errorf("status %d, %d bytes, beginning with %.1q", got.Status, len(got.Body), got.Body)
		}
	}
	cancel()
	changing.Wait()
}

// replaced is Content that is not there any more when it is opened.
type replaced struct {
	metadata.Content
	then func()
}

func (r *replaced) Open() (io.ReadSeekCloser, error) {
	r.then()
	return nil, errors.Join(errors.New("segment 7"), syscall.ENOENT)
}

func TestReplacedContentIsLookedUpAgain(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{})
	newer := guest("guest-1", "VM-1", "10.1.1.34")
	newer.UserData = content(t, []byte("newer"))
	old := guest("guest-1", "VM-1", "10.1.1.34")
	old.UserData = &replaced{content(t, []byte("old")), func() { s.table.SetGuest(newer) }}
	s.table.SetGuest(old)
	c := client(t, host, "10.1.1.34")
	if got := ask(t, c, "GET", "http://10.1.1.1/latest/user-data"); got.Body != "newer" || got.Status != 200 {
		t.Errorf("GET = %v", got)
	}
	removed := guest("guest-1", "VM-1", "10.1.1.34")
	removed.UserData = &replaced{content(t, []byte("old")), func() { s.table.SetGuest(guest("guest-1", "VM-1", "10.1.1.34")) }}
	s.table.SetGuest(removed)
	if got := ask(t, c, "GET", "http://10.1.1.1/latest/user-data"); got.Status != 404 {
		t.Errorf("GET of what was removed = %v", got)
	}
	broken := guest("guest-1", "VM-1", "10.1.1.34")
	broken.UserData = &replaced{content(t, []byte("old")), func() {}}
	s.table.SetGuest(broken)
	if got := ask(t, c, "GET", "http://10.1.1.1/latest/user-data"); got.Status != http.StatusServiceUnavailable || got.Header.Get("Retry-After") == "" {
		t.Errorf("GET of what cannot be opened = %v", got)
	}
}

// An address that stops being served takes its open connections along.
func TestConnectionsEndWithTheirDevice(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{})
	open, err := dial(t.Context(), host, "10.1.1.34", "10.1.1.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	open.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(open, "GET /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n")
	if _, err := open.Read(make([]byte, 1024)); err != nil {
		t.Fatal(err)
	}
	s.server.SetDevices(nil)
	if n, err := open.Read(make([]byte, 1024)); err == nil {
		t.Errorf("the connection gave %d more bytes", n)
	}
}
