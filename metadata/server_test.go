package metadata_test

import (
	"bytes"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"vragent/metadata"
	"vragent/netcfg/nstest"
)

func TestServesTheCloudStackShape(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{})
	g := guest("guest-1", "VM-1", "10.1.1.34")
	g.Meta = map[string]string{"availability-zone": "zone-1", "public-keys": "ssh-rsa AAAA a@b\n", "Colour": "blue"}
	binary := []byte("\x1f\x8b\x00\xff\r\n\x00end")
	g.UserData = content(t, binary)
	s.table.SetGuest(g)
	c := client(t, host, "10.1.1.34")

	for _, test := range []struct {
		path   string
		status int
		body   string
	}{
		{"/latest/user-data", 200, string(binary)},
		{"/latest/USER-DATA?x=1", 200, string(binary)},
		{"/latest/user-data/", 404, "Not Found\n"},
		{"/latest/vendor-data", 404, "Not Found\n"},
		{"/latest/meta-data/", 200, "Colour\navailability-zone\ninstance-id\nlocal-hostname\nlocal-ipv4\n" +
			"public-hostname\npublic-ipv4\npublic-keys\nservice-offering\nvm-id\n"},
		{"/latest/meta-data/instance-id", 200, "VM-1"},
		{"/latest/vm-id", 200, "VM-1"},
		{"/latest/local-hostname", 200, "vm-1"},
		{"/latest/meta-data/Local-IPv4", 200, "10.1.1.34"},
		{"/latest/public-ipv4", 200, "203.0.113.7"},
		{"/latest/public-hostname", 200, "203.0.113.7"},
		{"/latest/service-offering", 200, ""},
		{"/latest/availability-zone", 200, "zone-1"},
		{"/latest/public-keys", 200, "ssh-rsa AAAA a@b\n"},
		{"/latest/colour", 200, "blue"},
		{"/latest/meta-data/nothing", 404, "Not Found\n"},
		{"/latest/meta-data/../user-data", 404, "Not Found\n"},
		{"/latest/meta-data/%2e%2e/user-data", 404, "Not Found\n"},
		{"/latest/meta-data/%zz", 404, "Not Found\n"},
		{"/nothing", 404, "Not Found\n"},
	} {
		// Not http.NewRequest, which would clean the path.
		reply := raw(t, host, "10.1.1.34", "10.1.1.1:80", "GET "+test.path+" HTTP/1.1\r\nHost: 10.1.1.1\r\nConnection: close\r\n\r\n")
		head, body, _ := strings.Cut(reply, "\r\n\r\n")
		if want := "HTTP/1.1 " + map[int]string{200: "200 OK", 404: "404 Not Found"}[test.status]; !strings.HasPrefix(head, want) || body != test.body {
			t.Errorf("GET %s = %q, want %q and body %q", test.path, reply, want, test.body)
		}
	}

	plain := ask(t, c, "GET", "http://10.1.1.1/latest/meta-data")
	if slash := ask(t, c, "GET", "http://10.1.1.1/latest/meta-data/"); plain.Body != slash.Body {
		t.Errorf("the listing without a slash is %q, with one %q", plain.Body, slash.Body)
	}
	if got, want := ask(t, c, "GET", "http://10.1.1.1/latest/user-data").Header.Get("Content-Type"), "application/octet-stream"; got != want {
		t.Errorf("Content-Type of user data = %q, want %q", got, want)
	}
}

func TestHeadRangeAndPreconditions(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{})
	g := guest("guest-1", "VM-1", "10.1.1.34")
	data := bytes.Repeat([]byte("0123456789"), 10_000)
	g.UserData = content(t, data)
	s.table.SetGuest(g)
	c := client(t, host, "10.1.1.34")

	for _, url := range []string{"http://10.1.1.1/latest/user-data", "http://10.1.1.1/latest/instance-id"} {
		whole := ask(t, c, "GET", url)
		etag := whole.Header.Get("ETag")
		if etag == "" || whole.Status != 200 {
			t.Fatalf("GET %s = %d, ETag %q", url, whole.Status, etag)
		}
		size := len(whole.Body)
		head := ask(t, c, "HEAD", url)
		if head.Body != "" || head.Header.Get("Content-Length") != whole.Header.Get("Content-Length") || head.Header.Get("ETag") != etag {
			t.Errorf("HEAD %s = %v, want the fields of GET, %v", url, head, whole.Header)
		}
		for _, test := range []struct {
			name   string
			fields []string
			status int
			body   string
		}{
			{"first byte", []string{"Range", "bytes=0-0"}, 206, whole.Body[:1]},
			{"from the second", []string{"Range", "bytes=1-"}, 206, whole.Body[1:]},
			{"last two", []string{"Range", "bytes=-2"}, 206, whole.Body[size-2:]},
			{"more than there is", []string{"Range", "bytes=1-99999999999999999999"}, 206, whole.Body[1:]},
			{"beyond the end", []string{"Range", "bytes=999999999-"}, 416, "Requested Range Not Satisfiable\n"},
			{"two ranges", []string{"Range", "bytes=0-0,2-2"}, 200, whole.Body},
			{"another unit", []string{"Range", "lines=0-0"}, 200, whole.Body},
			{"If-Range that holds", []string{"Range", "bytes=0-0", "If-Range", etag}, 206, whole.Body[:1]},
			{"If-Range that does not", []string{"Range", "bytes=0-0", "If-Range", `"old"`}, 200, whole.Body},
			{"If-None-Match that holds", []string{"If-None-Match", `"old", W/` + etag}, 304, ""},
			{"If-None-Match that does not", []string{"If-None-Match", `"old"`}, 200, whole.Body},
			{"If-None-Match of anything", []string{"If-None-Match", "*"}, 304, ""},
			{"If-Match that holds", []string{"If-Match", etag}, 200, whole.Body},
			{"If-Match that does not", []string{"If-Match", `"old"`}, 412, "Precondition Failed\n"},
		} {
			got := ask(t, c, "GET", url, test.fields...)
			if got.Status != test.status || got.Body != test.body {
				t.Errorf("%s: GET %s = %d, %d bytes, want %d, %d bytes", test.name, url, got.Status, len(got.Body), test.status, len(test.body))
			}
		}
	}
	if got := ask(t, c, "POST", "http://10.1.1.1/latest/user-data"); got.Status != 405 || got.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST = %d, Allow %q", got.Status, got.Header.Get("Allow"))
	}
}

func TestUnknownSourceGetsNotFoundWhateverItAsks(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	_, host := small(t, metadata.Options{})
	for _, request := range []string{
		"GET /latest/meta-data/ HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
		"PUT /latest/api/token HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n",
		"DELETE / HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n",
		"no http at all\r\n\r\n",
		"GET /" + strings.Repeat("x", 10_000) + " HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: 10.1.1.1\r\nContent-Length: x\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: 10.1.1.1\r\nX-Forwarded-For: 10.1.1.34\r\nForwarded: for=10.1.1.34\r\nX-Real-Ip: 10.1.1.34\r\n\r\n",
	} {
		if got := raw(t, host, "10.1.1.99", "10.1.1.1:80", request); !strings.HasPrefix(got, "HTTP/1.1 404 Not Found\r\n") {
			t.Errorf("%.60q: answer %.60q, want 404", request, got)
		}
	}
	if got := raw(t, host, "10.1.1.99", "10.1.1.1:8080", "GET / HTTP/1.1\r\nHost: 10.1.1.1\r\nDomU_Request: send_my_password\r\n\r\n"); !strings.HasSuffix(got, "\r\n\r\nbad_request") {
		t.Errorf("password server: %q, want bad_request", got)
	}
}

func TestHostHasToBeOneOfOurs(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{Hosts: []string{"metadata.example"}})
	c := client(t, host, "10.1.1.34")
	for name, status := range map[string]int{
		"10.1.1.1": 200, "10.1.1.1:80": 200, "192.0.2.9": 200, "[fd00:ec2::254]": 200, "[::1]:80": 200,
		"data-server": 200, "Data-Server": 200, "data-server.": 200, "data-server:80": 200, "data-server.cs1.internal": 200, "data-server.cs1.internal.": 200,
		"instance-data": 200, "metadata.example": 200, "METADATA.example.": 200,
		"evil.example": 421, "data-server.evil.example": 421, "10.1.1.1.evil.example": 421, "localhost": 421, "data-server.cs1.internal.evil": 421,
		"10.1.1.1:x": 400, ".": 421,
	} {
		if got := ask(t, c, "GET", "http://10.1.1.1/latest/instance-id", "Host", name); got.Status != status {
			t.Errorf("Host %q: %d, want %d", name, got.Status, status)
		}
	}
	s.server.SetHosts([]string{"evil.example"})
	if got := ask(t, c, "GET", "http://10.1.1.1/latest/instance-id", "Host", "evil.example"); got.Status != 200 {
		t.Errorf("a host that was configured just now: %d, want 200", got.Status)
	}
}

func TestGuestsAreToldApartByDeviceAndSource(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s := newSite(t, metadata.Options{})
	one, two := nstest.NewHost(t, "one"), nstest.NewHost(t, "two")
	s.segment("eth0", "10.1.1.1/24", one, "10.1.1.34/24", "10.1.1.35/24")
	s.segment("eth1", "10.1.1.1/24", two, "10.1.1.34/24", "10.1.1.77/24")
	s.router.AddAddr(t, "eth1", "10.2.2.1/24")
	s.table.SetNetwork(network("a", "10.1.1.0/24"))
	s.table.SetNetwork(network("b", "10.1.1.0/24"))
	s.table.SetGuest(guest("a", "A-34", "10.1.1.34"))
	s.table.SetGuest(guest("a", "A-35", "10.1.1.35"))
	s.table.SetGuest(guest("b", "B-34", "10.1.1.34"))
	s.serve("eth0", []string{"10.1.1.1", "169.254.169.254"}, "a")
	s.serve("eth1", []string{"10.1.1.1", "169.254.169.254"}, "b")
	// The router's routes to the two segments are the same; the reply goes out of the device that a
	// connection came in on, since its socket is bound to it.
	for _, h := range []*nstest.Host{one, two} {
		h.AddRoute(t, "169.254.169.254/32", "10.1.1.1")
		h.AddRoute(t, "10.2.2.0/24", "10.1.1.1")
	}
	s.router.AddAddr(t, "lo", "169.254.169.254/32")

	for _, test := range []struct {
		host   *nstest.Host
		source string
		want   string
	}{{one, "10.1.1.34", "A-34"}, {one, "10.1.1.35", "A-35"}, {two, "10.1.1.34", "B-34"}, {two, "10.1.1.77", "Not Found\n"}} {
		for _, address := range []string{"10.1.1.1", "169.254.169.254"} {
			if got := ask(t, client(t, test.host, test.source), "GET", "http://"+address+"/latest/instance-id"); got.Body != test.want {
				t.Errorf("%s from %s of %s is %q, want %q", address, test.source, test.host.Name(), got.Body, test.want)
			}
		}
	}
	// 10.2.2.1 is the router's too, on the other device, and nothing is served there.
	if got, err := tryAsk(client(t, one, "10.1.1.34"), "GET", "http://10.2.2.1/latest/instance-id"); err == nil {
		t.Errorf("an address of another device answered %v", got)
	}
}

func TestDevicesComeAndGo(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{})
	c := client(t, host, "10.1.1.34")
	url := "http://10.1.1.1/latest/instance-id"
	if got := ask(t, c, "GET", url); got.Body != "VM-1" {
		t.Fatalf("GET = %v", got)
	}
	s.serve("eth0", []string{"10.1.1.1"}, "guest-1") // once more, which must disturb nothing
	if got := ask(t, c, "GET", url); got.Body != "VM-1" {
		t.Errorf("GET after the same devices again = %v", got)
	}
	s.server.SetDevices(nil)
	if got, err := tryAsk(c, "GET", url); err == nil {
		t.Errorf("GET without devices = %v, want no connection", got)
	}
	// Before its address is there the listener is opened already.
	s.router.DelAddr(t, "eth0", "10.1.1.1/24")
	s.serve("eth0", []string{"10.1.1.1"}, "guest-1")
	s.router.AddAddr(t, "eth0", "10.1.1.1/24")
	if got := ask(t, c, "GET", url); got.Body != "VM-1" {
		t.Errorf("GET once the address is there = %v", got)
	}
	s.router.Rename(t, "eth0", "wan0")
	if got := ask(t, c, "GET", url); got.Body != "VM-1" {
		t.Errorf("GET after the device was renamed = %v", got)
	}
}

func TestFaultsAreToldAndTriedAgain(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s := newSite(t, metadata.Options{})
	s.router.AddAddr(t, "lo", "10.1.1.1/32")
	taken, err := net.Listen("tcp4", "0.0.0.0:80")
	if err != nil {
		t.Fatal(err)
	}
	device := metadata.Device{Index: 1, Name: "lo", Listen: []netip.Addr{netip.MustParseAddr("10.1.1.1")}}
	s.server.SetDevices([]metadata.Device{device})
	faults := s.server.Faults()
	if len(faults) != 1 {
		t.Fatalf("Faults() = %v", faults)
	}
	want := metadata.Fault{Service: "metadata", Device: "lo", Address: netip.MustParseAddrPort("10.1.1.1:80"), Err: unix.EADDRINUSE}
	if diff := cmp.Diff(want, faults[0], cmpopts.EquateErrors(), cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Errorf("Faults() (-want +got):\n%s", diff)
	}
	if said := faults[0].String(); said != "metadata on 10.1.1.1:80, device lo: bind: address already in use" {
		t.Errorf("the fault says %q", said)
	}
	taken.Close()
	nstest.Poll(t, 10*time.Second, "the fault to be gone", func() bool { return len(s.server.Faults()) == 0 })
	if got := raw(t, s.router, "", "10.1.1.1:80", "GET / HTTP/1.0\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 404 ") {
		t.Errorf("answer once the port was free: %q", got)
	}
}

func TestEntriesAreWhatIsServed(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{})
	g := guest("guest-1", "VM-1", "10.1.1.34")
	g.UserData = content(t, []byte("#!/bin/sh\n"))
	g.Meta = map[string]string{"cloud-domain": "ROOT"}
	s.table.SetGuest(g)
	c := client(t, host, "10.1.1.34")
	entries := s.table.Entries("guest-1", g.IP)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name)
		got := ask(t, c, "GET", "http://10.1.1.1/latest/"+e.Name)
		if int64(len(got.Body)) != e.Size || e.Name != "user-data" && got.Body != e.Value || got.Status != http.StatusOK {
			t.Errorf("served %q for the entry %+v", got.Body, e)
		}
	}
	want := []string{"availability-zone", "cloud-domain", "instance-id", "local-hostname", "local-ipv4",
		"public-hostname", "public-ipv4", "public-keys", "service-offering", "vm-id", "user-data"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("Entries() names (-want +got):\n%s", diff)
	}
	if got := s.table.Entries("guest-1", netip.MustParseAddr("10.1.1.99")); got != nil {
		t.Errorf("Entries() of an unknown guest = %v", got)
	}
	last := s.server.Last("guest-1", g.IP)
	if len(last) != 8 || last[0].Path != "/latest/user-data" || last[0].Status != 200 {
		t.Errorf("Last() = %+v", last)
	}
}
