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

// Server is an etcd of one member. Its methods are for one goroutine.
type Server struct {
	t       testing.TB // the process ends with it
	host    *nstest.Host
	dir     string
	address string
	args    []string
	process *nstest.Process
}

// Start starts etcd in h, at an address of h's with a port, and returns once it serves. Where certs is
// not nil, it speaks TLS and asks clients for a certificate. The test is skipped where etcd is not
// installed.
func Start(t testing.TB, h *nstest.Host, address string, certs *Certs) *Server {
	t.Helper()
	if _, err := os.Stat("/usr/bin/etcd"); err != nil {
		t.Skip("etcd is not installed (etcd-server)")
	}
	s := &Server{t: t, host: h, dir: filepath.Join(t.TempDir(), "etcd"), address: address}
	scheme := "http"
	if certs != nil {
		scheme = "https"
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		pair := certs.Make(t, "server", host)
		s.args = []string{"--client-cert-auth", "--trusted-ca-file", certs.CA, "--cert-file", pair.Cert, "--key-file", pair.Key}
	}
	const peer = "http://127.0.0.1:2380"
	s.args = append(s.args, "--name", "one", "--data-dir", s.dir, "--log-level", "warn", "--logger", "zap",
		"--heartbeat-interval", "10", "--election-timeout", "50", // it elects itself sooner
		"--listen-client-urls", scheme+"://"+address, "--advertise-client-urls", scheme+"://"+address,
		"--listen-metrics-urls", "http://127.0.0.1:2381",
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "one="+peer)
	s.Start(t)
	return s
}

// Start starts it again after Stop, and returns once it serves.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	s.process = s.host.Start(s.t, "/usr/bin/etcd", s.args...)
	nstest.Poll(t, time.Minute, "etcd to be healthy", func() bool {
		select {
		case <-s.process.Exited():
			t.Fatalf("etcd ended: %v\n%s", s.process.Wait(), s.process.Output())
		default:
		}
		out, err := s.host.Output(t, "curl", "-sSf", "--max-time", "1", "--noproxy", "*", "http://127.0.0.1:2381/health")
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
