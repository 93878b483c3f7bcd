package etcd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
)

// Options say where etcd is and how it is spoken to.
type Options struct {
	// Endpoints are URLs of members of one cluster, http or https without a path, at least one.
	Endpoints []string
	TLS       TLS
}

// TLS names PEM files. They are read for each connection, so that new ones are used from the next
// connection on. Those that are not needed are empty.
type TLS struct {
	CA        string // who signs the servers' certificates; empty: who the system trusts
	Cert, Key string // of this client
}

// Check returns what is wrong with o without reaching out: addresses, and files that cannot be used.
func (o *Options) Check() error {
	if len(o.Endpoints) == 0 {
		return errors.New("no endpoints")
	}
	var secure int
	for _, endpoint := range o.Endpoints {
		u, err := url.Parse(endpoint)
		if err == nil {
			_, err = strconv.ParseUint(u.Port(), 10, 16)
		}
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Path != "" || u.RawQuery != "" || u.User != nil || u.Fragment != "" {
			return fmt.Errorf("endpoint %q: want http://HOST:PORT or https://HOST:PORT", endpoint)
		}
		if u.Scheme == "https" {
			secure++
		}
	}
	switch {
	case secure != 0 && secure != len(o.Endpoints):
		return errors.New("endpoints are http and https: want one of them for all")
	case secure == 0 && o.TLS != TLS{}:
		return errors.New("tls is set, and the endpoints are http: want https")
	case (o.TLS.Cert == "") != (o.TLS.Key == ""):
		return errors.New("tls.cert and tls.key go together")
	}
	_, err := o.TLS.load()
	return err
}

// load reads the files.
func (t TLS) load() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}}
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, fmt.Errorf("tls.ca: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls.ca: no certificate in %s", t.CA)
		}
	}
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, fmt.Errorf("tls.cert and tls.key: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
