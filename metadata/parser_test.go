package metadata_test

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"vragent/metadata"
	"vragent/netcfg/nstest"
)

// malformed are requests that parties on a request's way might understand differently, and what
// becomes of each: the statuses of all answers on the connection.
var malformed = []struct {
	name, request string
	want          string
}{
	{"plain", "GET /latest/vm-id HTTP/1.1\r\nHost: a\r\n\r\n", "421"},
	{"no Host", "GET /latest/vm-id HTTP/1.1\r\n\r\n", "400"},
	{"no Host, HTTP/1.0", "GET /latest/vm-id HTTP/1.0\r\n\r\n", "200"},
	{"two Hosts", "GET /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nHost: evil\r\n\r\n", "400"},
	{"two equal Hosts", "GET /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nHost: 10.1.1.1\r\n\r\n", "400"},
	{"absolute form", "GET http://10.1.1.1/latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n", "200"},
	{"absolute form, evil host", "GET http://evil/latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n", "421"},
	{"bare LF", "GET /latest/vm-id HTTP/1.1\nHost: 10.1.1.1\n\n", "400"},
	{"folded field", "GET /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nX: a\r\n b\r\n\r\n", "200"},
	{"space before the colon", "GET /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nX : a\r\n\r\n", "400"},
	{"field without a colon", "GET /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nnonsense\r\n\r\n", "400"},
	{"NUL in a field", "GET /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nX: a\x00b\r\n\r\n", "400"},
	{"CR in a field", "GET /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nX: a\rb\r\n\r\n", "400"},
	{"HTTP/0.9", "GET /latest/vm-id\r\n\r\n", "400"},
	{"HTTP/2.0", "GET /latest/vm-id HTTP/2.0\r\nHost: 10.1.1.1\r\n\r\n", "505"},
	{"HTTP/1.1x", "GET /latest/vm-id HTTP/1.1x\r\nHost: 10.1.1.1\r\n\r\n", "400"},
	{"two spaces", "GET  /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n", "400"},
	{"method in lower case", "get /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n", "405"},
	{"body of a GET", "GET /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nContent-Length: 4\r\n\r\nabcd", "200"},
	{"a request in the body of a GET", "GET /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nContent-Length: 52\r\n\r\nGET /latest/user-data HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n..", "200"},
	{"two lengths", "PUT /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nContent-Length: 4\r\nContent-Length: 0\r\n\r\nabcd", "400"},
	{"a list of lengths", "PUT /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nContent-Length: 4, 4\r\n\r\nabcd", "400"},
	{"a length with a sign", "PUT /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nContent-Length: +4\r\n\r\nabcd", "400"},
	{"a negative length", "PUT /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nContent-Length: -4\r\n\r\nabcd", "400"},
	{"length and chunks", "PUT /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "405"},
	{"chunks of a GET", "GET /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /latest/user-data HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n", "200 200"},
	{"unknown transfer coding", "PUT /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "400"},
	{"chunked twice", "PUT /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", "400"},
	{"chunks in HTTP/1.0", "PUT /latest/vm-id HTTP/1.0\r\nHost: 10.1.1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
	{"bad chunk size", "PUT /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", "400"},
	{"header of 5,000 bytes", "GET /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nX: " + strings.Repeat("x", 5000) + "\r\n\r\n", "431"},
	{"path of 5,000 bytes", "GET /" + strings.Repeat("x", 5000) + " HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n", "431"},
	{"body of 100,000 bytes", "PUT /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("x", 100000), "413"},
	{"CONNECT", "CONNECT evil:80 HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n", "405"},
	{"OPTIONS *", "OPTIONS * HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n", "405"},
	{"upgrade", "GET /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n", "200"},
	{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400"},
	{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400"},
	{"two requests at once", "GET /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\nGET /latest/vm-id HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n", "200 200"},
}

func TestMalformedRequestsAreRefused(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{})
	g := guest("guest-1", "VM-1", "10.1.1.34")
	g.UserData = content(t, []byte("user data"))
	s.table.SetGuest(g)
	for _, test := range malformed {
		if got := statuses(raw(t, host, "10.1.1.34", "10.1.1.1:80", test.request, halfClose)); got != test.want {
			t.Errorf("%s: statuses %q, want %q", test.name, got, test.want)
		}
	}
	if got := ask(t, client(t, host, "10.1.1.34"), "GET", "http://10.1.1.1/latest/vm-id"); got.Body != "VM-1" {
		t.Errorf("GET after all that = %v", got)
	}
}

// TestFiguresOfParsers prints what fasthttp, as it is used here, and net/http make of the malformed
// requests.
func TestFiguresOfParsers(t *testing.T) {
	if !figures(t) {
		return
	}
	s, host := small(t, metadata.Options{})
	s.router.AddAddr(t, "eth0", "10.1.1.2/24")
	device := metadata.Device{Index: s.router.Link(t, "eth0").Attrs().Index, Name: "eth0", Networks: []string{"guest-1"}}
	go func() {
		fmt.Fprintln(os.Stderr, metadata.ServeNetHTTP(s.server, device, netip.MustParseAddr("10.1.1.2")))
	}()
	nstest.Poll(t, 10e9, "net/http to answer", func() bool {
		_, err := tryAsk(client(t, host, "10.1.1.34"), "GET", "http://10.1.1.2/latest/vm-id")
		return err == nil
	})
	fmt.Printf("%-32s %-10s %-10s\n", "request", "fasthttp", "net/http")
	for _, test := range malformed {
		fmt.Printf("%-32s %-10s %-10s\n", test.name,
			statuses(raw(t, host, "10.1.1.34", "10.1.1.1:80", test.request, halfClose)),
			statuses(raw(t, host, "10.1.1.34", "10.1.1.2:80", strings.ReplaceAll(test.request, "10.1.1.1", "10.1.1.2"), halfClose)))
	}
}

// statuses are those of all responses in what a connection gave back.
func statuses(reply string) string {
	var all []string
	for i, part := range strings.Split(reply, "HTTP/1.1 ") {
		if i > 0 && len(part) >= 3 {
			all = append(all, part[:3])
		}
	}
	return strings.Join(all, " ")
}
