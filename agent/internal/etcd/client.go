package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
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

// Client speaks with one member of a cluster at a time, and turns to the next one when that cannot be
// reached. Its methods are safe for concurrent use.
type Client struct {
	opts    Options
	http    *http.Client
	current atomic.Uint64 // endpoint in use, modulo their number
}

// Check returns what is wrong with o without reaching out: addresses, and files that cannot be used.
func (o *Options) Check() error {
	if len(o.Endpoints) == 0 {
		return errors.New("no endpoints")
	}
	var secure int
	for _, endpoint := range o.Endpoints {
		u, err := url.Parse(endpoint)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Port() == "" || u.Hostname() == "" || u.Path != "" || u.RawQuery != "" || u.User != nil || u.Fragment != "" {
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

const (
	dialTime = 2 * time.Second
	// A connection that nothing comes on for pingAfter is asked whether it is alive, and given up
	// when there is no answer within pingTime. A server closes connections that it is asked on twice
	// within 5 s (etcd --grpc-keepalive-min-time).
	pingAfter = 10 * time.Second
	pingTime  = 3 * time.Second

	maxMessage = 64 << 20 // bytes
	pageSize   = 1000     // keys of a range that are fetched at once
)

// NewClient returns a client; nothing is connected before the first request. o must pass Check.
func NewClient(o Options) *Client {
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	c := &Client{opts: o}
	dialer := &net.Dialer{Timeout: dialTime}
	transport := &http.Transport{
		Protocols:       &protocols,
		HTTP2:           &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTime},
		DialContext:     dialer.DialContext,
		IdleConnTimeout: time.Minute,
		DialTLSContext:  c.dialTLS,
	}
	c.http = &http.Client{Transport: transport}
	return c
}

func (c *Client) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	config, err := c.opts.TLS.load()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	return (&tls.Dialer{Config: config}).DialContext(ctx, network, address)
}

// Close closes idle connections. Requests in progress end with their contexts.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Endpoint returns the member that requests go to now.
func (c *Client) Endpoint() string {
	return c.opts.Endpoints[c.current.Load()%uint64(len(c.opts.Endpoints))]
}

// StatusError is an answer of the server that refuses a request: its gRPC status.
type StatusError struct {
	Code    int
	Message string
}

func (e *StatusError) Error() string { return "etcd: " + e.Message }

// Status codes of gRPC after which another member may do better.
const (
	codeUnknown          = 2
	codeDeadlineExceeded = 4
	codeUnavailable      = 14
)

// Range returns all keys that begin with prefix, as they are at one revision, the newest that the
// cluster has agreed on when Range is called, and that revision.
func (c *Client) Range(ctx context.Context, prefix string) (kvs []KV, revision int64, err error) {
	from, end := prefix, prefixEnd(prefix)
	for {
		var page rangeResponse
		if err := c.call(ctx, "KV/Range", rangeRequest(from, end, pageSize, revision), page.parse); err != nil {
			return nil, 0, err
		}
		kvs = append(kvs, page.kvs...)
		if revision == 0 {
			revision = page.revision
		}
		if !page.more || len(page.kvs) == 0 {
			return kvs, revision, nil
		}
		from = page.kvs[len(page.kvs)-1].Key + "\x00"
	}
}

// Get returns one key as the cluster agrees on it now, and false where it is not there.
func (c *Client) Get(ctx context.Context, key string) (KV, bool, error) {
	var r rangeResponse
	if err := c.call(ctx, "KV/Range", rangeRequest(key, "", 0, 0), r.parse); err != nil || len(r.kvs) == 0 {
		return KV{}, false, err
	}
	return r.kvs[0], true, nil
}

// Commit makes a transaction. It reports whether all comparisons held, and with that whether the
// changes were made, the revision, and, where they did not, the keys of t.Read that are there. After an
// error the changes may have been made or not.
func (c *Client) Commit(ctx context.Context, t Txn) (done bool, revision int64, read []KV, err error) {
	var r txnResponse
	err = c.call(ctx, "KV/Txn", t.request(), r.parse)
	return r.succeeded, r.revision, r.read, err
}

// call sends a request to the member in use. When that cannot be reached or has no leader, it is sent to
// the next one, once round; each has its part of the time that is left.
func (c *Client) call(ctx context.Context, method string, request []byte, parse func([]byte) error) error {
	var faults []error
	for left := len(c.opts.Endpoints); left > 0; left-- {
		used := c.current.Load()
		try, cancel := ctx, context.CancelFunc(func() {})
		if deadline, ok := ctx.Deadline(); ok && left > 1 {
			try, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(left))
		}
		err := c.ask(try, c.Endpoint(), method, request, parse)
		cancel()
		var status *StatusError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &status) && status.Code != codeUnavailable && status.Code != codeDeadlineExceeded && status.Code != codeUnknown:
			return err
		}
		faults = append(faults, err)
		c.http.CloseIdleConnections() // one that is dead would take the next request, too
		c.current.CompareAndSwap(used, used+1)
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(faults...)
}

// ask sends one request to one member.
func (c *Client) ask(ctx context.Context, endpoint, method string, request []byte, parse func([]byte) error) error {
	body := io.NopCloser(strings.NewReader(string(frame(request))))
	res, err := c.open(ctx, endpoint, method, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, err := readFrame(res.Body)
	if err != nil && err != io.EOF {
		return fmt.Errorf("%s: %w", endpoint, explain(err))
	}
	if err == nil {
		// Trailers come after the end of the body.
		if _, err := io.Copy(io.Discard, io.LimitReader(res.Body, maxMessage)); err != nil {
			return fmt.Errorf("%s: %w", endpoint, explain(err))
		}
	}
	if err := status(res); err != nil {
		return fmt.Errorf("%s: %w", endpoint, err)
	}
	if err := parse(answer); err != nil {
		return fmt.Errorf("%s: %w", endpoint, err)
	}
	return nil
}

// open begins a call and returns once its response has begun.
func (c *Client) open(ctx context.Context, endpoint, method string, body io.ReadCloser) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint+"/etcdserverpb."+method, body)
	if err != nil {
		body.Close()
		return nil, err
	}
	req.Header = http.Header{
		"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "User-Agent": {"vragent"},
		"Hasleader": {"true"}, // a member that the others do not hear of says so instead of telling old news
	}
	if deadline, ok := ctx.Deadline(); ok {
		req.Header.Set("Grpc-Timeout", strconv.FormatInt(max(1, time.Until(deadline).Milliseconds()), 10)+"m")
	}
	res, err := c.http.Do(req)
	if err != nil {
		var withURL *url.Error
		if errors.As(err, &withURL) {
			err = withURL.Err
		}
		return nil, fmt.Errorf("%s: %w", endpoint, explain(c.refusal(ctx, endpoint, err)))
	}
	if res.StatusCode != http.StatusOK || !strings.HasPrefix(res.Header.Get("Content-Type"), "application/grpc") {
		res.Body.Close()
		return nil, fmt.Errorf("%s: is no etcd: it answers %s", endpoint, res.Status)
	}
	return res, nil
}

// refusal returns the server's reason for closing a connection, where it has one and err is what else
// was noticed of that. With TLS 1.3 a server that refuses the client's certificate says so after the
// handshake, and a request that is being written then fails before the reason is read.
func (c *Client) refusal(ctx context.Context, endpoint string, err error) error {
	address, secure := strings.CutPrefix(endpoint, "https://")
	var known *net.OpError
	if !secure || ctx.Err() != nil || errors.As(err, &known) && (known.Op == "dial" || known.Op == remoteError) {
		return err
	}
	conn, again := c.dialTLS(ctx, "tcp", address)
	if again != nil {
		return err
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(dialTime))
	var remote *net.OpError
	if _, again = conn.Read(make([]byte, 1)); errors.As(again, &remote) && remote.Op == remoteError {
		return again
	}
	return err
}

// remoteError is what crypto/tls calls an alert of the other side.
const remoteError = "remote error"

// explain says what an operator can do about an error of a connection.
func explain(err error) error {
	var remote *net.OpError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("the server's certificate is not signed by tls.ca: %w", err)
	case errors.As(err, &name):
		return fmt.Errorf("the server's certificate is for another name than the endpoint's: %w", err)
	case errors.As(err, &remote) && remote.Op == remoteError:
		return fmt.Errorf("the server refuses tls.cert: %w", err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer in time: %w", err)
	}
	return err
}

// status returns the error that a finished call ended with. It stands in the trailer, or in the header
// where there is nothing else.
func status(res *http.Response) error {
	from := res.Trailer
	if from.Get("Grpc-Status") == "" {
		from = res.Header
	}
	text := from.Get("Grpc-Status")
	if text == "0" {
		return nil
	}
	code, err := strconv.Atoi(text)
	if err != nil {
		return fmt.Errorf("the answer has no gRPC status, but %q", text)
	}
	message, err := url.PathUnescape(from.Get("Grpc-Message"))
	if err != nil {
		message = from.Get("Grpc-Message")
	}
	return &StatusError{Code: code, Message: strings.TrimPrefix(message, "etcdserver: ")}
}

// frame puts gRPC's prefix before a message: not compressed, and its length.
func frame(message []byte) []byte {
	b := make([]byte, 5, 5+len(message))
	binary.BigEndian.PutUint32(b[1:], uint32(len(message)))
	return append(b, message...)
}

// readFrame reads one message; io.EOF says that there is none.
func readFrame(r io.Reader) ([]byte, error) {
	var prefix [5]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(prefix[1:])
	switch {
	case prefix[0] != 0:
		return nil, fmt.Errorf("%w: compressed", errMessage)
	case size > maxMessage:
		return nil, fmt.Errorf("%w: %d bytes", errMessage, size)
	}
	message, err := io.ReadAll(io.LimitReader(r, int64(size)))
	switch {
	case err != nil:
		return nil, err
	case len(message) < int(size):
		return nil, io.ErrUnexpectedEOF
	}
	return message, nil
}
