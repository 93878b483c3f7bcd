package metadata_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vragent/metadata"
	"vragent/netcfg/nstest"
)

// later is an answer that is on its way.
type later struct {
	answer answer
	err    error
	done   chan struct{}
}

func askLater(c *http.Client, url string, fields ...string) *later {
	l := &later{done: make(chan struct{})}
	go func() {
		defer close(l.done)
		l.answer, l.err = tryAsk(c, "GET", url, fields...)
	}()
	return l
}

func (l *later) get(t *testing.T) answer {
	t.Helper()
	select {
	case <-l.done:
	case <-time.After(20 * time.Second):
		t.Fatal("no answer")
	}
	if l.err != nil {
		t.Fatal(l.err)
	}
	return l.answer
}

func (l *later) pending() bool {
	select {
	case <-l.done:
		return false
	default:
		return true
	}
}

func TestWaitEndsWithTheChange(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{})
	g := guest("guest-1", "VM-1", "10.1.1.34")
	g.UserData = content(t, []byte("first"))
	s.table.SetGuest(g)
	s.table.SetGuest(guest("guest-1", "VM-2", "10.1.1.35"))
	c := client(t, host, "10.1.1.34")
	const base = "http://10.1.1.1/latest/"
	wait := func(path, etag string) *later {
		url := base + path + "?wait=60"
		if etag != "" {
			url += "&etag=" + strings.Trim(etag, `"`)
		}
		l := askLater(c, url)
		return l
	}
	parked := func(n int) {
		t.Helper()
		nstest.Poll(t, 10*time.Second, "requests to wait", func() bool { return s.server.Waiting() == n })
	}

	first := ask(t, c, "GET", base+"user-data")
	if got := wait("user-data", "something-else").get(t); got.Body != "first" {
		t.Errorf("a client that has something else: %v, want an answer at once", got)
	}
	data, keys, tree, missing, public := wait("user-data", first.Header.Get("ETag")), wait("public-keys", ""),
		wait("meta-data/", ""), wait("vendor-data", ""), wait("public-ipv4", "")
	parked(5)

	// What does not concern a request leaves it waiting.
	s.table.SetGuest(guest("guest-1", "VM-2", "10.1.1.35"))
	same := *g
	s.table.SetGuest(&same)
	changed := *g
	changed.UserData = content(t, []byte("second"))
	s.table.SetGuest(&changed)
	if got := data.get(t); got.Body != "second" || got.Status != 200 || got.Header.Get("ETag") == first.Header.Get("ETag") {
		t.Errorf("user data after its change: %v", got)
	}
	parked(4)
	if !keys.pending() || !tree.pending() || !missing.pending() || !public.pending() {
		t.Error("a request was answered by a change of something else")
	}

	more := changed
	more.Meta = map[string]string{"public-keys": "ssh-rsa AAAA\n", "colour": "blue"}
	s.table.SetGuest(&more)
	if got := keys.get(t); got.Body != "ssh-rsa AAAA\n" {
		t.Errorf("keys after their change: %v", got)
	}
	if got := tree.get(t); !strings.Contains(got.Body, "colour\n") {
		t.Errorf("names after their change: %v", got)
	}
	moved := network("guest-1", "10.1.1.0/24")
	moved.PublicIPv4 = netip.MustParseAddr("203.0.113.8")
	s.table.SetNetwork(moved)
	if got := public.get(t); got.Body != "203.0.113.8" {
		t.Errorf("public-ipv4 after its change: %v", got)
	}
	withVendor := *moved
	withVendor.VendorData = content(t, []byte("vendor"))
	s.table.SetNetwork(&withVendor)
	if got := missing.get(t); got.Body != "vendor" || got.Status != 200 {
		t.Errorf("vendor data once there is some: %v", got)
	}
	parked(0)
}

func TestWaitEndsWithItsTime(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{})
	c := client(t, host, "10.1.1.34")
	etag := ask(t, c, "GET", idURL).Header.Get("ETag")
	if got := ask(t, c, "GET", idURL+"?wait=1&etag="+strings.Trim(etag, `"`)); got.Status != 200 || got.Body != "VM-1" || got.Header.Get("ETag") != etag {
		t.Errorf("GET = %v", got)
	}
	if got := ask(t, c, "GET", idURL+"?wait=1", "If-None-Match", etag); got.Status != 304 {
		t.Errorf("GET with If-None-Match = %v", got)
	}
	if got := ask(t, c, "GET", idURL+"?wait=0"); got.Status != 200 {
		t.Errorf("GET without a time = %v", got)
	}
	if got := ask(t, c, "GET", idURL+"?wait=soon"); got.Status != 400 {
		t.Errorf("GET with a time that is no number = %v", got)
	}
	if n := s.server.Waiting(); n != 0 {
		t.Errorf("%d requests wait, want none", n)
	}
}

func TestWaitEndsWithTheGuestAndTheServer(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{Limits: metadata.Limits{Connections: 3}})
	c := client(t, host, "10.1.1.34")
	parked := func(n int) {
		t.Helper()
		nstest.Poll(t, 10*time.Second, fmt.Sprint(n, " requests to wait"), func() bool { return s.server.Waiting() == n })
	}
	gone := askLater(c, idURL+"?wait=60")
	parked(1)
	s.table.SetGuest(guest("guest-1", "VM-2", "10.1.1.34"))
	<-gone.done
	if gone.err == nil {
		t.Errorf("the address passed on, and who had it was answered %v", gone.answer)
	}
	parked(0)

	// Clients that leave without a word do not use the guest's connections up.
	var left []net.Conn
	for n := range 3 {
		conn, err := dial(context.Background(), host, "10.1.1.34", "10.1.1.1:80")
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "GET /latest/vm-id?wait=60 HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n")
		parked(n + 1)
		defer conn.Close()
		left = append(left, conn)
	}
	for _, conn := range left {
		conn.Close()
	}
	if got := ask(t, client(t, host, "10.1.1.34"), "GET", idURL); got.Body != "VM-2" {
		t.Errorf("GET after three clients left = %v", got)
	}
	parked(0)

	last := askLater(c, idURL+"?wait=60")
	parked(1)
	s.end()
	if got := last.get(t); got.Body != "VM-2" {
		t.Errorf("a request that waited when the server stopped: %v, want its answer", got)
	}
}

func TestRecursiveGivesTheTree(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{})
	g := guest("guest-1", "VM-1", "10.1.1.34")
	g.Meta = map[string]string{"public-keys": "ssh-rsa AAAA a@b\n"}
	g.UserData = content(t, []byte{0xff, 0x00})
	s.table.SetGuest(g)
	c := client(t, host, "10.1.1.34")
	tree := func(path string) map[string]any {
		got := ask(t, c, "GET", "http://10.1.1.1"+path+"?recursive=true")
		object := make(map[string]any)
		if err := json.Unmarshal([]byte(got.Body), &object); err != nil || got.Header.Get("Content-Type") != "application/json" {
			t.Fatalf("GET %s = %v: %v", path, got, err)
		}
		return object
	}
	flat := map[string]any{
		"availability-zone": "", "instance-id": "VM-1", "local-hostname": "vm-1", "local-ipv4": "10.1.1.34", "public-hostname": "203.0.113.7",
		"public-ipv4": "203.0.113.7", "public-keys": "ssh-rsa AAAA a@b\n", "service-offering": "", "vm-id": "VM-1",
	}
	if diff := cmp.Diff(flat, tree("/latest/meta-data/")); diff != "" {
		t.Errorf("meta-data (-want +got):\n%s", diff)
	}
	latest := tree("/latest/")
	if diff := cmp.Diff(map[string]any{"size": 2.0, "etag": g.UserData.ETag()}, latest["user-data"]); diff != "" {
		t.Errorf("user-data (-want +got):\n%s", diff)
	}
	ec2 := tree("/2009-04-04/meta-data")
	if diff := cmp.Diff(map[string]any{"0": map[string]any{"openssh-key": "ssh-rsa AAAA a@b"}}, ec2["public-keys"]); diff != "" {
		t.Errorf("public-keys (-want +got):\n%s", diff)
	}
	if got := ask(t, c, "GET", idURL+"?recursive=true"); got.Body != "VM-1" {
		t.Errorf("a leaf with recursive = %v", got)
	}
}
