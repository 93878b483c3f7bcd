package metadata_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"vragent/metadata"
	"vragent/netcfg/nstest"
)

const (
	ttlField   = "X-aws-ec2-metadata-token-ttl-seconds"
	tokenField = "X-aws-ec2-metadata-token"
	tokenURL   = "http://10.1.1.1/latest/api/token"
	idURL      = "http://10.1.1.1/latest/meta-data/instance-id"
)

func TestTokensAreBoundToTheGuest(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	key := []byte("0123456789abcdef0123456789abcdef")
	s, host := small(t, metadata.Options{TokenKey: key})
	s.table.SetGuest(guest("guest-1", "VM-2", "10.1.1.35"))
	one, two := client(t, host, "10.1.1.34"), client(t, host, "10.1.1.35")

	got := ask(t, one, "PUT", tokenURL, ttlField, "300")
	token := got.Body
	if got.Status != 200 || token == "" || got.Header.Get(ttlField) != "300" {
		t.Fatalf("PUT = %v", got)
	}
	for _, test := range []struct {
		name   string
		client *http.Client
		token  string
		want   int
	}{
		{"the guest's own", one, token, 200},
		{"none, and none is required", one, "", 200},
		{"another guest's", two, token, 401},
		{"one with its end changed", one, "B" + token[1:], 401},
		{"nonsense", one, "nonsense", 401},
	} {
		fields := []string{tokenField, test.token}
		if test.token == "" {
			fields = nil
		}
		if got := ask(t, test.client, "GET", idURL, fields...); got.Status != test.want {
			t.Errorf("%s: %d, want %d", test.name, got.Status, test.want)
		}
	}

	required := network("guest-1", "10.1.1.0/24")
	required.TokensRequired = true
	s.table.SetNetwork(required)
	if got := ask(t, one, "GET", idURL); got.Status != 401 {
		t.Errorf("no token where one is required: %d", got.Status)
	}
	if got := ask(t, one, "GET", idURL, tokenField, token); got.Body != "VM-1" {
		t.Errorf("token from before one was required: %v", got)
	}

	// A restart with the same key keeps tokens, with another it does not.
	s.server.SetDevices(nil)
	for name, o := range map[string]metadata.Options{"same key": {TokenKey: key}, "new key": {}} {
		again := metadata.NewServer(s.table, o)
		again.SetDevices(s.devices)
		want := 200
		if name == "new key" {
			want = 401
		}
		if got := ask(t, one, "GET", idURL, tokenField, token); got.Status != want {
			t.Errorf("after a restart with %s: %d, want %d", name, got.Status, want)
		}
		again.SetDevices(nil)
		stopped, cancel := context.WithCancel(t.Context())
		cancel()
		again.Run(stopped)
	}

	// The address passes to another VM.
	s.serve("eth0", []string{"10.1.1.1"}, "guest-1")
	s.table.SetGuest(guest("guest-1", "VM-3", "10.1.1.34"))
	if got := ask(t, one, "GET", idURL, tokenField, token); got.Status != 401 {
		t.Errorf("token of the address's former holder: %d", got.Status)
	}
}

func TestTokenRequestsThatAreRefused(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	_, host := small(t, metadata.Options{})
	c := client(t, host, "10.1.1.34")
	for _, test := range []struct {
		name, method string
		fields       []string
		want         int
	}{
		{"shortest", "PUT", []string{ttlField, "1"}, 200},
		{"longest", "PUT", []string{ttlField, "21600"}, 200},
		{"too short", "PUT", []string{ttlField, "0"}, 400},
		{"too long", "PUT", []string{ttlField, "21601"}, 400},
		{"far too long", "PUT", []string{ttlField, strings.Repeat("9", 40)}, 400},
		{"no number", "PUT", []string{ttlField, "1h"}, 400},
		{"with a sign", "PUT", []string{ttlField, "+5"}, 400},
		{"no life", "PUT", nil, 400},
		{"through a proxy", "PUT", []string{ttlField, "60", "X-Forwarded-For", "192.0.2.1"}, 403},
		{"through a proxy that is empty", "PUT", []string{ttlField, "60", "X-Forwarded-For", ""}, 403},
		{"GET", "GET", []string{ttlField, "60"}, 405},
		{"POST", "POST", []string{ttlField, "60"}, 405},
		{"another Host", "PUT", []string{ttlField, "60", "Host", "evil.example"}, 421},
	} {
		if got := ask(t, c, test.method, tokenURL, test.fields...); got.Status != test.want || got.Status != 200 && len(got.Body) > 40 {
			t.Errorf("%s: %v, want %d", test.name, got, test.want)
		}
	}
}

// A guest that forwards for others, a container host for example, cannot be made to forward the
// answer with the token: it is one hop too far.
func TestTokenDoesNotPassAHop(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s := newSite(t, metadata.Options{})
	middle, far := nstest.NewHost(t, "middle"), nstest.NewHost(t, "far")
	s.segment("eth0", "10.1.1.1/24", middle, "10.1.1.34/24")
	nstest.Pair(t, middle, "eth1", far, "eth0")
	middle.AddAddr(t, "eth1", "10.9.0.1/24")
	far.AddAddr(t, "eth0", "10.9.0.2/24")
	far.AddRoute(t, "10.1.1.0/24", "10.9.0.1")
	s.router.AddRoute(t, "10.9.0.0/24", "10.1.1.34")
	middle.WriteFile(t, "/proc/sys/net/ipv4/ip_forward", "1")
	behind := network("behind", "10.9.0.0/24")
	s.table.SetNetwork(behind)
	s.table.SetGuest(guest("behind", "VM-9", "10.9.0.2"))
	s.serve("eth0", []string{"10.1.1.1"}, "behind")

	c := client(t, far, "")
	c.Timeout = 2e9
	if got := ask(t, c, "GET", idURL); got.Body != "VM-9" {
		t.Fatalf("GET over a hop = %v", got)
	}
	if got, err := tryAsk(c, "PUT", tokenURL, ttlField, "60"); err == nil {
		t.Errorf("PUT over a hop = %v, want no answer", got)
	}
	if got := ask(t, c, "GET", idURL); got.Body != "VM-9" {
		t.Errorf("GET after that = %v", got)
	}
	relayed := *behind
	relayed.Relay = true
	s.table.SetNetwork(&relayed)
	if got := ask(t, c, "PUT", tokenURL, ttlField, "60"); got.Status != 200 {
		t.Errorf("PUT over the relay's hop = %v", got)
	}
}
