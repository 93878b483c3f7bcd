package metadata

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// ServeNetHTTP serves the same answers as Server does with a tuned net/http in place of fasthttp, for
// the comparison in the figures: the same sockets, the same counting of connections.
func ServeNetHTTP(s *Server, d Device, address netip.Addr) error {
	l, err := s.listen(place{d.Index, address, metadataService}, &d)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           http.HandlerFunc(s.serveNetHTTP),
		ReadHeaderTimeout: readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
	return server.Serve(netHTTPListener{l, s})
}

type connKey struct{}

type netHTTPListener struct {
	*listener
	server *Server
}

func (l netHTTPListener) Accept() (net.Conn, error) {
	accepted, err := l.listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{TCPConn: accepted.(*net.TCPConn), listener: l.listener}
	c.source = c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	if c.entry, _ = l.server.table.find(l.device.Load().Networks, c.source); c.entry == nil {
		return nil, errors.New("the comparison has no strangers")
	}
	c.entry.admit(c, 0)
	l.add(c)
	return &netHTTPConn{conn: c, server: l.server}, nil
}

type netHTTPConn struct {
	*conn
	server *Server
	once   sync.Once
}

func (c *netHTTPConn) Close() error {
	c.once.Do(func() { c.server.leave(c.conn) })
	return c.conn.Close()
}

func (s *Server) serveNetHTTP(w http.ResponseWriter, in *http.Request) {
	c := in.Context().Value(connKey{}).(*netHTTPConn).conn
	now := time.Now()
	r := &request{
		method: in.Method, path: in.URL.EscapedPath(), query: in.URL.RawQuery, host: in.Host,
		token: in.Header.Get(tokenHeader), ttl: in.Header.Get(tokenTTLHeader), forwarded: in.Header[forwardedHeader] != nil,
		ifMatch: in.Header.Get("If-Match"), ifNoneMatch: in.Header.Get("If-None-Match"),
		ifRange: in.Header.Get("If-Range"), ranges: in.Header.Get("Range"),
	}
	e, network, _ := s.identify(c)
	v := view{table: s.table, guest: e.guest.Load(), network: network}
	answered := s.check(c, e, v, r, 0, now)
	if answered.status == 0 {
		answered = v.answer(r, s.tokens, now)
	}
	header := w.Header()
	header["Content-Type"] = []string{answered.kind}
	header["Etag"] = []string{answered.etag}
	for i := 0; i < len(answered.header); i += 2 {
		header[answered.header[i]] = []string{answered.header[i+1]}
	}
	if answered.file != nil {
		header["Content-Length"] = []string{strconv.FormatInt(answered.length, 10)}
	}
	w.WriteHeader(answered.status)
	if answered.file == nil {
		io.WriteString(w, answered.text)
	} else if body, err := answered.open(); err == nil {
		io.CopyN(w, body, answered.length)
		body.(io.Closer).Close()
	}
	e.history.add(Request{Time: now, Method: r.method, Path: r.path, Status: answered.status, Why: answered.why})
}
