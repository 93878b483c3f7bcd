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
	"syscall"
	"time"
)

// ServeNetHTTP serves the same answers as Server does with a tuned net/http in place of fasthttp, for
// the comparison in the figures: the same sockets, the same counting of connections.
func ServeNetHTTP(s *Server, d Device, address netip.Addr) error {
	config := net.ListenConfig{
		KeepAlive: -1, // else four more system calls for each connection
		Control: func(_, _ string, raw syscall.RawConn) error {
			var failed error
			return errors.Join(raw.Control(func(fd uintptr) { failed = bindSocket(int(fd), d.Index) }), failed)
		},
	}
	config.SetMultipathTCP(false)
	p := place{d.Index, address, metadataService}
	opened, err := config.Listen(context.Background(), "tcp4", netip.AddrPortFrom(address, s.ports[p.service]).String())
	if err != nil {
		return err
	}
	l := &listener{place: p, strangers: new(strangers)}
	l.device.Store(&d)
	server := &http.Server{
		Handler:           http.HandlerFunc(s.serveNetHTTP),
		ReadHeaderTimeout: readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
	return server.Serve(netHTTPListener{opened, l, s})
}

type connKey struct{}

type netHTTPListener struct {
	net.Listener
	listener *listener
	server   *Server
}

func (l netHTTPListener) Accept() (net.Conn, error) {
	accepted, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{server: l.server, listener: l.listener, fd: -1}
	c.source = accepted.RemoteAddr().(*net.TCPAddr).AddrPort()
	if c.entry, _ = l.server.table.find(l.listener.device.Load().Networks, c.source.Addr()); c.entry == nil {
		return nil, errors.New("the comparison has no strangers")
	}
	c.entry.admit(c, 0)
	return &netHTTPConn{Conn: accepted, conn: c}, nil
}

type netHTTPConn struct {
	net.Conn
	conn *conn
	once sync.Once
}

func (c *netHTTPConn) Close() error {
	c.once.Do(func() { c.conn.entry.release(c.conn) })
	return c.Conn.Close()
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
