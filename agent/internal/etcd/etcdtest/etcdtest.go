// Package etcdtest runs Debian's etcd for tests, in hosts of package nstest, and makes certificates for
// it. It leaves what is asked of the server to the tests.
package etcdtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"vragent/netcfg/nstest"
)

// Server is a member of an etcd, the only one of most. Its methods are for one goroutine.
type Server struct {
	t       testing.TB // the process ends with it
	host    *nstest.Host
	dir     string
	health  string // URL
	args    []string
	process *nstest.Process
}

// Start starts etcd in h, at an address of h's with a port, and returns once it serves. Where certs is
// not nil, it speaks TLS and asks clients for a certificate. The test is skipped where etcd is not
// installed.
func Start(t testing.TB, h *nstest.Host, address string, certs *Certs) *Server {
	t.Helper()
	const peer = "http://127.0.0.1:2380"
	s := newServer(t, h, "one", peer, "one="+peer, 2381)
	scheme := "http"
	if certs != nil {
		scheme = "https"
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		pair := certs.Make(t, "server", host)
		s.args = append(s.args, "--client-cert-auth", "--trusted-ca-file", certs.CA, "--cert-file", pair.Cert, "--key-file", pair.Key)
	}
	s.args = append(s.args, "--heartbeat-interval", "10", "--election-timeout", "50", // it elects itself sooner
		"--listen-client-urls", scheme+"://"+address, "--advertise-client-urls", scheme+"://"+address)
	s.Start(t)
	return s
}

// StartCluster starts an etcd of three members on the loopback address of h, and returns them with their
// endpoints once it serves.
func StartCluster(t testing.TB, h *nstest.Host) (members []*Server, endpoints []string) {
	t.Helper()
	const first = 2379
	peer := func(i int) string { return fmt.Sprintf("http://127.0.0.1:%d", first+10*i+1) }
	cluster := fmt.Sprintf("m0=%s,m1=%s,m2=%s", peer(0), peer(1), peer(2))
	for i := range 3 {
		s := newServer(t, h, fmt.Sprint("m", i), peer(i), cluster, first+10*i+2)
		endpoint := fmt.Sprintf("http://127.0.0.1:%d", first+10*i)
		s.args = append(s.args, "--listen-client-urls", endpoint, "--advertise-client-urls", endpoint)
		s.launch()
		members, endpoints = append(members, s), append(endpoints, endpoint)
	}
	for _, s := range members {
		s.await(t)
	}
	return members, endpoints
}

func newServer(t testing.TB, h *nstest.Host, name, peer, cluster string, healthPort int) *Server {
	t.Helper()
	if _, err := os.Stat("/usr/bin/etcd"); err != nil {
		t.Skip("etcd is not installed (etcd-server)")
	}
	health := fmt.Sprintf("http://127.0.0.1:%d", healthPort)
	s := &Server{t: t, host: h, dir: filepath.Join(t.TempDir(), "etcd-"+name), health: health + "/health"}
	s.args = []string{"--name", name, "--data-dir", s.dir, "--log-level", "warn", "--logger", "zap", "--listen-metrics-urls", health,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", cluster}
	return s
}

// Start starts it again after Stop, and returns once it serves.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	s.launch()
	s.await(t)
}

func (s *Server) launch() { s.process = s.host.Start(s.t, "/usr/bin/etcd", s.args...) }

func (s *Server) await(t testing.TB) {
	t.Helper()
	nstest.Poll(t, time.Minute, "etcd to be healthy", func() bool {
		select {
		case <-s.process.Exited():
			t.Fatalf("etcd ended: %v\n%s", s.process.Wait(), s.process.Output())
		default:
		}
		out, err := s.host.Output(t, "curl", "-sSf", "--max-time", "1", "--noproxy", "*", s.health)
		return err == nil && out == `{"health":"true"}`
	})
}

// Stop ends it, as the loss of power would.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	if err := s.process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-s.process.Exited()
}

// Pause has it answer nothing until Resume, with its connections open.
func (s *Server) Pause(t testing.TB) { s.signal(t, syscall.SIGSTOP) }

// Resume ends a Pause.
func (s *Server) Resume(t testing.TB) { s.signal(t, syscall.SIGCONT) }

func (s *Server) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := s.process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// Wipe removes everything that it has stored. It must be stopped.
func (s *Server) Wipe(t testing.TB) {
	t.Helper()
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
}

// Certs is an authority that signs certificates.
type Certs struct {
	CA   string // its own certificate, a PEM file
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Pair is a certificate with its key, two PEM files.
type Pair struct{ Cert, Key string }

// NewCerts makes an authority.
func NewCerts(t testing.TB) *Certs {
	t.Helper()
	c := &Certs{dir: t.TempDir()}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	var pair Pair
	c.cert, c.key, pair = c.make(t, "authority", template)
	c.CA = pair.Cert
	return c
}

// Make makes a certificate, for a server or a client, which is good for an address.
func (c *Certs) Make(t testing.TB, name, address string) Pair {
	t.Helper()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if address != "" { // a server's is good for nothing else: the gateway of etcd could not work with it
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		template.IPAddresses = []net.IP{net.ParseIP(address)}
	}
	_, _, pair := c.make(t, name, template)
	return pair
}

// make signs a certificate, by itself where there is no authority yet.
func (c *Certs) make(t testing.TB, name string, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey, Pair) {
	t.Helper()
	fail := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	fail(err)
	template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62))
	fail(err)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	parent, signer := c.cert, c.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	fail(err)
	cert, err := x509.ParseCertificate(der)
	fail(err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	fail(err)
	path := filepath.Join(c.dir, fmt.Sprintf("%s-%x", name, template.SerialNumber))
	pair := Pair{Cert: path + ".crt", Key: path + ".key"}
	fail(os.WriteFile(pair.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
	fail(os.WriteFile(pair.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
	return cert, key, pair
}
