package metadata

import (
	"bufio"
	"bytes"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

// inline is Content for tests of what needs no file.
type inline string

func (b inline) Size() int64  { return int64(len(b)) }
func (b inline) ETag() string { return "inline" }
func (b inline) Open() (io.ReadSeekCloser, error) {
	return struct {
		io.ReadSeeker
		io.Closer
	}{strings.NewReader(string(b)), io.NopCloser(nil)}, nil
}

func fuzzView() view {
	table := NewTable()
	network := &Network{Name: "n", Subnet: netip.MustParsePrefix("10.1.1.0/24"), Domain: "cs1.internal", PublicIPv4: netip.MustParseAddr("203.0.113.7")}
	table.SetNetwork(network)
	guest := &Guest{
		Network: "n", VM: "VM-1", IP: netip.MustParseAddr("10.1.1.34"), Hostname: "vm-1", UserData: inline("user data"),
		Meta: map[string]string{"public-keys": "ssh-rsa AAAA a@b\n", "colour": "blue"},
	}
	table.SetGuest(guest)
	table.SetGuest(&Guest{Network: "n", VM: "SECRET", IP: netip.MustParseAddr("10.1.1.35"), Hostname: "SECRET", UserData: inline("SECRET")})
	return view{table: table, guest: guest, network: network}
}

// FuzzRequest has whatever the parser takes for a request answered.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		"GET /latest/user-data HTTP/1.1\r\nHost: 10.1.1.1\r\nRange: bytes=1-3\r\n\r\n",
		"GET /latest/meta-data/?recursive=true&wait=3&etag=x HTTP/1.1\r\nHost: a:80\r\nIf-None-Match: W/\"x\", *\r\n\r\n",
		"PUT /latest/api/token HTTP/1.1\r\nHost: data-server.\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n",
		"HEAD http://10.1.1.1/2009-04-04/meta-data/public-keys/0/openssh-key HTTP/1.0\r\nRange: bytes=-5\r\n\r\n",
		"GET /%2e%2e/latest//vm-id/ HTTP/1.1\r\nHost: [::1]:80\r\nX-aws-ec2-metadata-token: AAAA\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	v, tokens, now := fuzzView(), newTokens([]byte("key")), time.Unix(1_000_000, 0)
	f.Fuzz(func(t *testing.T, data []byte) {
		var in fasthttp.Request
		if in.ReadLimitBody(bufio.NewReaderSize(bytes.NewReader(data), maxHeader), maxBody) != nil {
			return
		}
		r, fault := readRequest(&in)
		if fault != 0 || !hostAllowed(r.host, nil, v.network.Domain) {
			return
		}
		wishOf(r.query)
		answered := v.answer(r, tokens, now)
		body := answered.text
		if answered.file != nil {
			whole := string(answered.file.(inline))
			if answered.offset < 0 || answered.length < 0 || answered.offset+answered.length > int64(len(whole)) {
				t.Fatalf("%q: bytes %d+%d of %d", data, answered.offset, answered.length, len(whole))
			}
			body = whole[answered.offset : answered.offset+answered.length]
		} else if answered.status == 200 && r.method == "GET" && int64(len(body)) != answered.length {
			t.Fatalf("%q: %d bytes, said to be %d", data, len(body), answered.length)
		}
		if strings.Contains(body, "SECRET") {
			t.Fatalf("%q: another guest's data: %q", data, body)
		}
		for i := 1; i < len(answered.header); i += 2 {
			if strings.ContainsAny(answered.header[i], "\r\n") {
				t.Fatalf("%q: a field of several lines: %q", data, answered.header)
			}
		}
		var out fasthttp.Response
		write(&out, answered)
		out.Header.Header()
	})
}

// FuzzToken has no token that the server did not issue.
func FuzzToken(f *testing.F) {
	v, tokens, now := fuzzView(), newTokens([]byte("key")), time.Unix(1_000_000, 0)
	issued := tokens.issue(v.guest, now.Add(time.Minute))
	if !tokens.valid(issued, v.guest, now) || tokens.valid(issued, v.guest, now.Add(time.Minute)) {
		f.Fatal("a token is valid until it ends")
	}
	f.Add(issued)
	f.Add(issued[:20])
	f.Add("")
	f.Fuzz(func(t *testing.T, token string) {
		if token != issued && tokens.valid(token, v.guest, now) {
			t.Errorf("%q is valid", token)
		}
	})
}

func TestBucketFillsWithTime(t *testing.T) {
	var b bucket
	now := time.Unix(1_000_000, 0)
	took := func(n int) (taken int) {
		for range n {
			if b.take(10, now) {
				taken++
			}
		}
		return taken
	}
	if got := took(20); got != 10 {
		t.Errorf("at first %d, want a second's worth, 10", got)
	}
	now = now.Add(500 * time.Millisecond)
	if got := took(20); got != 5 {
		t.Errorf("half a second later %d, want 5", got)
	}
	now = now.Add(time.Hour)
	if got := took(20); got != 10 {
		t.Errorf("an hour later %d, want 10", got)
	}
	now = now.Add(-time.Hour) // the clock was set
	if got := took(20); got != 0 {
		t.Errorf("with the clock set back %d, want 0", got)
	}
	now = now.Add(time.Second)
	if got := took(20); got != 10 {
		t.Errorf("a second after that %d, want 10", got)
	}
}

func TestHistoryKeepsTheLast(t *testing.T) {
	var h history
	for i := range 20 {
		h.add(Request{Status: i, Path: strings.Repeat("x", 1000)})
	}
	got := h.newestFirst()
	if len(got) != historySize || got[0].Status != 19 || got[7].Status != 12 || len(got[0].Path) != historyPath {
		t.Errorf("newestFirst() = %d requests, %d to %d", len(got), got[0].Status, got[len(got)-1].Status)
	}
}

func TestOnceAMinute(t *testing.T) {
	var o onceAMinute
	now := time.Unix(1_000_000, 0)
	for _, test := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {time.Second, false}, {59 * time.Second, false}, {time.Minute, true}, {time.Minute, false}} {
		if got := o.now(now.Add(test.after)); got != test.want {
			t.Errorf("after %v: %t", test.after, got)
		}
	}
	var s strangers
	logged := 0
	for a := netip.MustParseAddr("10.0.0.1"); logged < 2*maxStrangersLogged && a.Is4() && s.logNow(a, now); a = a.Next() {
		logged++
	}
	if logged != maxStrangersLogged {
		t.Errorf("%d sources logged in a minute, want %d", logged, maxStrangersLogged)
	}
	if !s.logNow(netip.MustParseAddr("10.9.9.9"), now.Add(2*time.Minute)) {
		t.Error("nothing is logged any more")
	}
}
