package metadata

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

// newHTTP gives the HTTP side of a service. The parser is fasthttp's; see the package's
// documentation for why.
func (s *Server) newHTTP(handler fasthttp.RequestHandler) *fasthttp.Server {
	return &fasthttp.Server{
		Handler:                      handler,
		ConnState:                    followState,
		ErrorHandler:                 s.serveError,
		ReadBufferSize:               maxHeader,
		MaxRequestBodySize:           maxBody,
		ReadTimeout:                  readTimeout,
		WriteTimeout:                 writeTimeout,
		IdleTimeout:                  idleTimeout,
		KeepHijackedConns:            true, // requests that wait
		DisablePreParseMultipartForm: true,
		NoDefaultServerHeader:        true,
		NoDefaultContentType:         true,
		SecureErrorLogMessage:        true,
		Logger:                       silent{},
	}
}

// followState tells a connection where between requests it is.
func followState(c net.Conn, state fasthttp.ConnState) {
	switch c := c.(*conn); state {
	case fasthttp.StateActive:
		c.inRequest = true
		c.between.Store(false)
	case fasthttp.StateIdle:
		c.inRequest, c.fresh, c.answered = false, false, true
		c.between.Store(true)
	}
}

// silent drops what fasthttp would log of clients that misbehave.
type silent struct{}

func (silent) Printf(string, ...any) {}

// serveMetadata answers a request to port 80.
func (s *Server) serveMetadata(ctx *fasthttp.RequestCtx) {
	defer s.guard(ctx)
	c := ctx.Conn().(*conn)
	now := time.Now()
	r, fault := readRequest(&ctx.Request)
	if s.leaving.Load() {
		ctx.SetConnectionClose()
	}

	e, network, ok := s.identify(c)
	if !ok {
		c.abort()
		return
	}
	if e == nil {
		s.logStranger(c, "no guest of the device has this address")
		s.count.add(kindStranger, http.StatusNotFound)
		write(&ctx.Response, unknown("unknown source"))
		return
	}
	v := view{table: s.table, guest: e.guest.Load(), network: network}
	answered := s.check(c, e, v, r, fault, now)
	if answered.status == 0 {
		if s.park(ctx, c, e, v, r, now) {
			return
		}
		answered = v.answer(r, s.tokens, now)
	}
	s.deliver(&ctx.Response, c, e, v, r, answered, now)
}

// check gives the refusal of a request that is not to be answered, or the zero response.
func (s *Server) check(c *conn, e *entry, v view, r *request, fault int, now time.Time) response {
	switch {
	case fault != 0:
		refused := refuse(fault, "the request is malformed")
		refused.close = true
		return refused
	case !hostAllowed(r.host, *s.hosts.Load(), v.network.Domain):
		return refuse(http.StatusMisdirectedRequest, "Host is none of ours")
	case c.refused:
		refused := limited("too many connections")
		refused.close = true
		return refused
	case !e.rate.take(s.limits.Load().Rate, now):
		c.mayWait()
		s.pause(refusalPause)
		return limited("too many requests")
	}
	return response{}
}

// refusalPause holds the answer to a request beyond the guest's rate back, and with it the
// connection, so that a flood on the connections that a guest may have ends in a trickle.
const refusalPause = 100 * time.Millisecond

// pause waits, unless the server stops.
func (s *Server) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.stopped.Done():
	}
}

// longAnswer is the size in bytes of an answer that a client may not have room for at once.
const longAnswer = 8 << 10

// deliver writes the answer and keeps what is to be known of it.
func (s *Server) deliver(out *fasthttp.Response, c *conn, e *entry, v view, r *request, answered response, now time.Time) {
	if answered.length > longAnswer {
		c.mayWait()
	}
	if answered.file != nil && r.method != http.MethodHead {
		body, err := answered.open()
		if errors.Is(err, fs.ErrNotExist) { // replaced since we looked: what is there now?
			v.guest = e.guest.Load()
			body, err = nil, nil
			if answered = v.answer(r, s.tokens, now); answered.file != nil {
				body, err = answered.open()
			}
		}
		switch {
		case err != nil:
			if e.failed.now(now) {
				s.log.Error("content not readable", "vm", v.guest.VM, "network", v.guest.Network, "path", r.path, slog.Any("reason", err))
			}
			answered = refuse(http.StatusServiceUnavailable, "the content is not readable")
			answered.header = []string{"Retry-After", "1"}
		case body != nil:
			out.SetBodyStream(body, int(answered.length))
		}
	}
	if answered.hops != 0 {
		if err := c.limitHops(answered.hops); err != nil {
			answered = refuse(http.StatusServiceUnavailable, "the hop limit cannot be set")
			s.log.Error("hop limit not set", slog.Any("reason", err))
		}
	}
	write(out, answered)
	if answered.status >= 400 && answered.status != http.StatusNotFound {
		s.logRefusal(e, c, answered.why)
	}
	s.note(e, kindOf(r.path), Request{Time: now, Method: r.method, Path: r.path, Status: answered.status, Why: answered.why})
}

// open gives the part of the file that is the body.
func (r response) open() (io.Reader, error) {
	file, err := r.file.Open()
	if err != nil {
		return nil, err
	}
	if r.offset != 0 {
		if _, err := file.Seek(r.offset, io.SeekStart); err != nil {
			file.Close()
			return nil, err
		}
	}
	return file, nil
}

// write puts a response in fasthttp's form, all but a body that is in a file.
func write(out *fasthttp.Response, r response) {
	out.SetStatusCode(r.status)
	if r.kind != "" {
		out.Header.SetContentType(r.kind)
	}
	if r.etag != "" {
		out.Header.Set("Etag", r.etag)
	}
	for i := 0; i < len(r.header); i += 2 {
		out.Header.Set(r.header[i], r.header[i+1])
	}
	if r.close {
		out.SetConnectionClose()
	}
	if r.file == nil {
		out.SetBodyString(r.text)
	} else if !out.IsBodyStream() { // HEAD
		out.Header.SetContentLength(int(r.length))
	}
}

// serveError answers what the parser did not take for a request.
func (s *Server) serveError(ctx *fasthttp.RequestCtx, err error) {
	defer s.guard(ctx)
	c := ctx.Conn().(*conn)
	e, _, ok := s.identify(c)
	if !ok {
		c.abort()
		return
	}
	ctx.Response.Reset()
	ctx.SetConnectionClose()
	if c.listener.place.service == passwordService {
		ctx.Response.Header.SetContentType(plain)
		ctx.Response.SetBodyString(badRequest)
		return
	}
	if e == nil {
		s.logStranger(c, "no guest of the device has this address")
		s.count.add(kindStranger, http.StatusNotFound)
		write(&ctx.Response, unknown("unknown source"))
		return
	}
	var small *fasthttp.ErrSmallBuffer
	var network net.Error
	refused := refuse(http.StatusBadRequest, "the request is malformed")
	switch {
	case errors.As(err, &small):
		refused = refuse(http.StatusRequestHeaderFieldsTooLarge, "the request's header is too large")
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		refused = refuse(http.StatusRequestEntityTooLarge, "the request's body is too large")
	case errors.As(err, &network) && network.Timeout():
		refused = refuse(http.StatusRequestTimeout, "the request did not come in time")
	}
	refused.close = true
	write(&ctx.Response, refused)
	s.logRefusal(e, c, refused.why)
	s.note(e, kindMetadata, Request{Time: time.Now(), Status: refused.status, Why: refused.why})
}

// readRequest takes from a request what the answer may depend on. fault is the status for one that
// the parser lets pass and that is not to be answered, or 0.
func readRequest(in *fasthttp.Request) (r *request, fault int) {
	header := &in.Header
	r = &request{
		method:      string(header.Method()),
		host:        string(header.Host()),
		token:       string(header.Peek(tokenHeader)),
		ttl:         string(header.Peek(tokenTTLHeader)),
		forwarded:   len(header.PeekAll(forwardedHeader)) > 0,
		ifMatch:     string(header.Peek("If-Match")),
		ifNoneMatch: string(header.Peek("If-None-Match")),
		ifRange:     string(header.Peek("If-Range")),
		ranges:      string(header.Peek("Range")),
	}
	r.path, r.query, _ = strings.Cut(string(header.RequestURI()), "?")
	if rest, ok := strings.CutPrefix(r.path, "http://"); ok { // the absolute form names the host too
		r.host, r.path = rest, "/"
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			r.host, r.path = rest[:i], rest[i:]
		}
	}
	switch protocol := string(header.Protocol()); {
	case protocol != "HTTP/1.1" && protocol != "HTTP/1.0":
		return r, http.StatusHTTPVersionNotSupported
	case protocol == "HTTP/1.1" && r.host == "":
		return r, http.StatusBadRequest
	}
	return r, 0
}

// servePassword answers a request to port 8080. The status is 200 whatever the answer is.
func (s *Server) servePassword(ctx *fasthttp.RequestCtx) {
	defer s.guard(ctx)
	c := ctx.Conn().(*conn)
	now := time.Now()
	r, fault := readRequest(&ctx.Request)
	asked := string(ctx.Request.Header.Peek(domURequest))
	ctx.Response.Header.SetContentType(plain)
	ctx.SetConnectionClose()

	e, network, ok := s.identify(c)
	if !ok {
		c.abort()
		return
	}
	why := ""
	switch {
	case e == nil:
		s.logStranger(c, "no guest of the device has this address")
		s.count.add(kindStranger, http.StatusOK)
		ctx.Response.SetBodyString(badRequest)
		return
	case fault != 0:
		why = "the request is malformed"
	case !hostAllowed(r.host, *s.hosts.Load(), network.Domain):
		why = "Host is none of ours"
	case c.refused:
		why = "too many connections"
	case !e.rate.take(s.limits.Load().Rate, now):
		c.mayWait()
		s.pause(refusalPause)
		why = "too many requests"
	}
	body := badRequest
	if why == "" {
		c.mayWait() // a password that was taken is recorded on disk
		body = s.passwordAnswer(s.stopped, e, asked, now)
	} else {
		s.logRefusal(e, c, why)
	}
	ctx.Response.SetBodyString(body)
	if asked != sendMyPassword && asked != savedPassword {
		asked = "" // not ours to keep
	}
	s.note(e, kindPassword, Request{Time: now, Method: r.method, Path: asked, Status: http.StatusOK, Why: why})
}

// park has the request wait, if it wants to and its answer is still what the client has.
func (s *Server) park(ctx *fasthttp.RequestCtx, c *conn, e *entry, v view, r *request, now time.Time) bool {
	wish, _ := wishOf(r.query)
	if wish.wait == 0 || r.method != http.MethodGet || s.leaving.Load() {
		return false
	}
	answered := v.answer(r, s.tokens, now)
	switch answered.status {
	case http.StatusOK, http.StatusPartialContent, http.StatusNotModified, http.StatusNotFound:
	default:
		return false
	}
	etag := v.etag(r)
	if wish.any {
		wish.last = etag
	}
	if etag != wish.last {
		return false
	}
	w := &waiter{key: e.key, conn: c, request: r, last: wish.last}
	c.parked = true
	c.handOver = nil // who answers the request later does not run the loop
	s.loop.forget(c)
	s.running.Add(1) // until finish has answered
	ctx.HijackSetNoResponse(true)
	ctx.Hijack(func(net.Conn) {
		w.timer = time.AfterFunc(maxWait, func() { s.finish(w) })
		s.table.waiting.add(w)
		c.waiter.Store(w)
		w.timer.Reset(wish.wait) // not before w.timer is set, which finish reads
		if s.leaving.Load() {
			s.finish(w)
		} else {
			s.look(w) // at what changed before it was among those that wait
		}
	})
	return true
}

// look answers a request that waits, if what it waits for is there.
func (s *Server) look(w *waiter) {
	v, ok := s.table.view(w.key.network, w.key.ip)
	if !ok || s.table.entry(w.key) != w.conn.entry || v.etag(w.request) != w.last {
		s.finish(w)
	}
}

// finish answers a request that waited, in a goroutine of its own, and ends its connection. Only
// the first call for a request does so.
func (s *Server) finish(w *waiter) {
	if !w.done.CompareAndSwap(false, true) {
		return
	}
	w.timer.Stop()
	s.table.waiting.remove(w)
	go func() {
		defer s.running.Done()
		defer w.conn.Close()
		s.answerWaiter(w)
	}()
}

func (s *Server) answerWaiter(w *waiter) {
	now := time.Now()
	out := fasthttp.AcquireResponse()
	defer fasthttp.ReleaseResponse(out)
	out.Header.SetNoDefaultContentType(true)
	e, network, ok := s.identify(w.conn)
	switch {
	case !ok:
		return
	case e == nil:
		write(out, unknown("unknown source"))
	default:
		v := view{table: s.table, guest: e.guest.Load(), network: network}
		s.deliver(out, w.conn, e, v, w.request, v.answer(w.request, s.tokens, now), now)
	}
	out.SetConnectionClose()
	w.conn.SetWriteDeadline(now.Add(writeTimeout))
	buffered := bufio.NewWriter(w.conn)
	if out.Write(buffered) == nil {
		buffered.Flush() // a client that is gone needs no answer
	}
}
