package metrics

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// ask returns the status that a scrape from there gets.
func ask(h http.Handler, local net.Addr, remote, authorization string) int {
	r := httptest.NewRequest("GET", "/metrics", nil)
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, local))
	r.RemoteAddr = remote
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code
}

func tcp(address string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(address), Port: 8443} }

// elsewhere asks with a header from another host.
func elsewhere(h http.Handler, authorization string) int {
	return ask(h, tcp("192.168.10.4"), "192.168.10.9:40000", authorization)
}

func writeToken(t *testing.T, path, token string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestMetricsAreOpenOnLoopbackAndTheSocketOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	writeToken(t, path, "secret\n")
	h := New("", Sources{}).Handler(NewToken(path, nil))
	for _, tt := range []struct {
		name          string
		local         net.Addr
		remote        string
		authorization string
		want          int
	}{
		{"the unix socket", &net.UnixAddr{Name: "/run/vragent/api.sock", Net: "unix"}, "@", "", 200},
		{"loopback", tcp("127.0.0.1"), "127.0.0.1:40000", "", 200},
		{"loopback of IPv6", tcp("::1"), "[::1]:40000", "", 200},
		{"loopback, mapped", tcp("::ffff:127.0.0.1"), "[::ffff:127.0.0.1]:40000", "", 200},
		{"routed to loopback", tcp("127.0.0.1"), "192.168.10.9:40000", "", 401},
		{"this router by its own address", tcp("192.168.10.4"), "192.168.10.4:40000", "", 401},
		{"elsewhere", tcp("192.168.10.4"), "192.168.10.9:40000", "", 401},
		{"elsewhere, with the token", tcp("192.168.10.4"), "192.168.10.9:40000", "Bearer secret", 200},
		{"elsewhere, the scheme in small letters", tcp("192.168.10.4"), "192.168.10.9:40000", "bearer secret", 200},
		{"elsewhere, a wrong token", tcp("192.168.10.4"), "192.168.10.9:40000", "Bearer secret2", 401},
		{"elsewhere, part of the token", tcp("192.168.10.4"), "192.168.10.9:40000", "Bearer secre", 401},
		{"elsewhere, an empty token", tcp("192.168.10.4"), "192.168.10.9:40000", "Bearer ", 401},
		{"elsewhere, another scheme", tcp("192.168.10.4"), "192.168.10.9:40000", "Basic secret", 401},
		{"an address of no known kind", nil, "127.0.0.1:40000", "", 401},
		{"a client without an address", tcp("127.0.0.1"), "", "", 401},
	} {
		if got := ask(h, tt.local, tt.remote, tt.authorization); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestTokenFollowsItsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	token := NewToken(path, nil)
	h := New("", Sources{}).Handler(token)
	step := func(what, bearer string, want int) {
		t.Helper()
		if got := elsewhere(h, "Bearer "+bearer); got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
	step("no file", "a", 401)
	writeToken(t, path, "a")
	step("written", "a", 200)
	writeToken(t, path, "b")
	step("changed, the old token", "a", 401)
	step("changed, the new token", "b", 200)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	step("removed", "b", 401)
	writeToken(t, path, " \n")
	step("empty", "", 401)
	step("empty, the old token", "b", 401)
	writeToken(t, path, strings.Repeat("x", maxToken+1))
	step("too long", strings.Repeat("x", maxToken+1), 401)
	writeToken(t, path, "c")
	step("good again", "c", 200)
	token.SetFile("")
	step("no file is configured any more", "c", 401)
	token.SetFile(path)
	step("configured again", "c", 200)
}

func TestWithoutATokenNobodyElseIsLetIn(t *testing.T) {
	for name, token := range map[string]*Token{"nil": nil, "no file": NewToken("", nil)} {
		h := New("", Sources{}).Handler(token)
		if got := elsewhere(h, "Bearer "); got != http.StatusUnauthorized {
			t.Errorf("%s: %d, want 401", name, got)
		}
		if got := ask(h, tcp("127.0.0.1"), "127.0.0.1:40000", ""); got != http.StatusOK {
			t.Errorf("%s, loopback: %d, want 200", name, got)
		}
	}
}

func TestRefusalsSayHowToGetIn(t *testing.T) {
	h := New("", Sources{}).Handler(nil)
	r := httptest.NewRequest("GET", "/metrics", nil)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if got, want := w.Header().Get("WWW-Authenticate"), `Bearer realm="vragent metrics"`; got != want {
		t.Errorf("WWW-Authenticate = %q, want %q", got, want)
	}
	want := "metrics are open on loopback; elsewhere the token of api.metrics_token_file is needed\n"
	if diff := cmp.Diff(want, w.Body.String()); diff != "" {
		t.Errorf("body (-want +got):\n%s", diff)
	}
	w = httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("POST", "/metrics", nil))
	if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: %d, Allow %q", w.Code, w.Header().Get("Allow"))
	}
}
