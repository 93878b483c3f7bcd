package api_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vragent/agent/internal/api"
	"vragent/netcfg/nstest"
)

// writePair writes a certificate of that name for 127.0.0.1, and its key.
func writePair(t *testing.T, dir, name string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: raw}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path+".new", pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func TestCheckListen(t *testing.T) {
	cert, key := writePair(t, t.TempDir(), "router")
	for _, tt := range []struct {
		address, cert, key string
		want               string
	}{
		{"127.0.0.1:8443", "", "", ""},
		{"[::1]:8443", "", "", ""},
		{"192.0.2.1:8443", cert, key, ""},
		{"192.0.2.1:8443", "", "", "tls.cert and tls.key are required"},
		{"0.0.0.0:8443", "", "", "tls.cert and tls.key are required"},
		{"[::ffff:192.0.2.1]:8443", "", "", "tls.cert and tls.key are required"},
		{"127.0.0.1:8443", cert, "", "go together"},
		{"127.0.0.1:8443", cert, cert, "tls"},
		{"127.0.0.1:8443", cert, "/nonexistent", "no such file"},
		{"localhost:8443", "", "", "want ADDRESS:PORT"},
		{"", "", "", "want ADDRESS:PORT"},
	} {
		err := api.CheckListen(tt.address, tt.cert, tt.key)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("CheckListen(%q) = %v, want %q", tt.address, err, tt.want)
		}
	}
}

func TestCertificateFollowsItsFiles(t *testing.T) {
	dir := t.TempDir()
	cert, key := writePair(t, dir, "first")
	ln, err := api.Listen(t.Context(), "127.0.0.1:0", api.ListenOptions{Cert: cert, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, ln, http.NotFoundHandler())
	name := func() string {
		t.Helper()
		conn, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	if got := name(); got != "first" {
		t.Errorf("certificate of %q", got)
	}
	writePair(t, dir, "second")
	eventually(t, func() string {
		if got := name(); got != "second" {
			return "certificate of " + got
		}
		return ""
	})
	// A broken file changes nothing.
	if err := os.WriteFile(cert, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := name(); got != "second" {
		t.Errorf("with a broken file: certificate of %q", got)
	}
	writePair(t, dir, "third")
	eventually(t, func() string {
		if got := name(); got != "third" {
			return "certificate of " + got
		}
		return ""
	})
}

func TestOpenSSLClient(t *testing.T) {
	needs(t, "openssl")
	cert, key := writePair(t, t.TempDir(), "router")
	ln, err := api.Listen(t.Context(), "127.0.0.1:0", api.ListenOptions{Cert: cert, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, ln, http.NotFoundHandler())
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-tls1_3", "-CAfile", cert, "-verify_return_error", "-verify_ip", "127.0.0.1"}, "Verify return code: 0 (ok)"},
		{[]string{"-tls1_2", "-CAfile", cert, "-verify_return_error"}, "Verify return code: 0 (ok)"},
		{[]string{"-tls1_1", "-cipher", "ALL:@SECLEVEL=0"}, "alert protocol version"},
	} {
		cmd := exec.Command("openssl", append([]string{"s_client", "-connect", ln.Addr().String()}, tt.args...)...)
		cmd.Stdin = strings.NewReader("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		out, _ := cmd.CombinedOutput() // it fails where the handshake does
		if !strings.Contains(string(out), tt.want) {
			t.Errorf("openssl %v: no %q in\n%s", tt.args, tt.want, out)
		}
	}
}

func TestConnectionsOfOneClientAreBounded(t *testing.T) {
	ln, err := api.Listen(t.Context(), "127.0.0.1:0", api.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	// ask tells whether a connection is answered.
	ask := func(conn net.Conn) bool {
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return false
		}
		b := make([]byte, 12)
		_, err := io.ReadFull(conn, b)
		return err == nil && string(b) == "HTTP/1.1 200"
	}
	var conns []net.Conn
	for range 64 {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if !ask(conn) {
			t.Fatal("a connection within the bound is not answered")
		}
		conns = append(conns, conn)
	}
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err == nil && ask(conn) {
		t.Error("the 65th connection is answered")
	}
	_ = conns[0].Close()
	eventually(t, func() string {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		if !ask(conn) {
			return "not answered after another connection ended"
		}
		return ""
	})
}

// TestGuestDevicesAreRefused asks at the management address from a guest: the kernel would take the
// packets in by any device (RFC 1122, the weak host model), the listener does not.
func TestGuestDevicesAreRefused(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router, guest, manager := nstest.Here(t), nstest.NewHost(t, "guest"), nstest.NewHost(t, "manager")
	nstest.Pair(t, router, "eth0", guest, "eth0")
	nstest.Pair(t, router, "eth1", manager, "eth0")
	router.AddAddr(t, "eth0", "10.1.1.1/24")
	router.AddAddr(t, "eth1", "192.0.2.1/24")
	guest.AddAddr(t, "eth0", "10.1.1.5/24")
	manager.AddAddr(t, "eth0", "192.0.2.9/24")
	guest.AddRoute(t, "192.0.2.0/24", "10.1.1.1")

	var mu sync.Mutex
	var seen []string
	refuse := func(local netip.Addr, device string) bool {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, fmt.Sprintf("%s by %s", local, device))
		return device == "eth0"
	}
	cert, key := writePair(t, t.TempDir(), "router")
	ln, err := api.Listen(t.Context(), "192.0.2.1:8443", api.ListenOptions{Cert: cert, Key: key, Refuse: refuse})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }))

	ask := func(h *nstest.Host) (string, error) {
		return h.Output(t, "curl", "-sSk", "--max-time", "10", "https://192.0.2.1:8443/")
	}
	if out, err := ask(manager); err != nil || out != "hello" {
		t.Errorf("manager: %q, %v", out, err)
	}
	if out, err := ask(guest); err == nil || strings.Contains(out, "hello") {
		t.Errorf("guest: %q, %v, want a reset", out, err)
	}
	mu.Lock()
	defer mu.Unlock()
	if got := strings.Join(seen, ", "); got != "192.0.2.1 by eth1, 192.0.2.1 by eth0" {
		t.Errorf("seen: %s", got)
	}
}

func TestSlowFormEnds(t *testing.T) {
	l := newLab(t, labOptions{})
	conn, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(l.url, "http://"), api.Path))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// Half a form, and then the client goes away: no goroutine may wait for the rest.
	if _, err := io.WriteString(conn, "POST /client/api HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\ncommand=lo"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, context.Canceled) || !strings.HasPrefix(string(answer), "HTTP/1.1 430") {
		t.Errorf("answer %q, %v", answer, err)
	}
}
