package api

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// headerTime is how long a client may take over its request line and headers.
	headerTime = 10 * time.Second
	// idleTime is how long a kept connection may say nothing.
	idleTime = 2 * time.Minute
	// plainHeader bounds the request line and headers of a request without user data.
	plainHeader = 64 << 10
)

// farewell is how long things take when the server is to stop.
type farewell struct {
	linger  time.Duration // kept connections have time to end with their next answer
	request time.Duration // then one may take over its first request, and requests to read go on
	all     time.Duration // then other requests go on
	save    time.Duration // and then all have time to say so to their clients
}

var usualFarewell = farewell{linger: 100 * time.Millisecond, request: 500 * time.Millisecond, all: 5 * time.Second, save: time.Second}

// HeaderFor returns how long the request line and headers of one request may be, in bytes, where that
// many bytes of user data are allowed in it: CloudMonkey sends everything in the URL, in base64 that is
// percent-encoded. A server reads this much of anybody before it knows who it is.
func HeaderFor(userData int) int { return plainHeader + 2*userData }

// Serve answers on ln with h until ctx ends or ln breaks, and closes ln. It returns nil when ctx ended.
// Then connections end with their next answer for a moment, before it stops listening and closes those
// that are kept. Requests under way go on; after half a second those that only read, which can be made
// again, and after five all see their context end. See waiting for those that wait for something to
// happen. Requests are read up to maxHeader bytes, their bodies left out; see HeaderFor. A nil log discards.
func Serve(ctx context.Context, ln net.Listener, h http.Handler, maxHeader int, log *slog.Logger) error {
	return serve(ctx, ln, h, maxHeader, log, usualFarewell)
}

func serve(ctx context.Context, ln net.Listener, h http.Handler, maxHeader int, log *slog.Logger, f farewell) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	base := context.WithValue(context.WithoutCancel(ctx), stoppingKey{}, ctx)
	reads, endReads := context.WithCancel(base)
	defer endReads()
	writes, endWrites := context.WithCancel(base)
	defer endWrites()
	conns := connections{states: make(map[net.Conn]http.ConnState)}
	srv := &http.Server{
		Handler:           gentle(ctx, reads, h),
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return writes },
		ConnContext:       connContext,
		ConnState:         conns.follow,
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ln) }()
	select {
	case err := <-ended: // the listener broke
		return errors.Join(err, srv.Close())
	case <-ctx.Done():
	}
	// Server.Shutdown would not answer a request that comes by a connection of just before.
	conns.linger(f.linger)
	err := ln.Close()
	<-ended // of that
	defer time.AfterFunc(f.request, func() {
		conns.close(http.StateNew)
		endReads()
	}).Stop()
	defer time.AfterFunc(f.all, endWrites).Stop()
	conns.drain(f.all + f.save)
	return errors.Join(err, srv.Close())
}

// gentle has answers end their connections once the server is stopping, and requests that only read end
// with reads.
func gentle(stopping, reads context.Context, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			defer context.AfterFunc(reads, cancel)()
			r = r.WithContext(ctx)
		}
		last := &lastAnswer{ResponseWriter: w, stopping: stopping}
		next.ServeHTTP(last, r)
		last.begin() // of an answer without a body
	})
}

// lastAnswer is an answer that ends its connection if the server is stopping when it begins.
type lastAnswer struct {
	http.ResponseWriter
	stopping context.Context
	begun    bool
}

func (w *lastAnswer) begin() {
	if !w.begun && w.stopping.Err() != nil {
		w.Header().Set("Connection", "close")
	}
	w.begun = true
}

func (w *lastAnswer) WriteHeader(status int) {
	w.begin()
	w.ResponseWriter.WriteHeader(status)
}

func (w *lastAnswer) Write(b []byte) (int, error) {
	w.begin()
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *lastAnswer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

type stoppingKey struct{}

// waiting returns the context for a request that waits for something to happen: it ends when the server
// is to stop, too.
func waiting(r *http.Request) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(r.Context())
	stopping, ok := ctx.Value(stoppingKey{}).(context.Context)
	if !ok {
		return ctx, cancel
	}
	unhook := context.AfterFunc(stopping, cancel)
	return ctx, func() { unhook(); cancel() }
}

// connections are those that are open.
type connections struct {
	mu     sync.Mutex
	states map[net.Conn]http.ConnState
}

// follow implements http.Server.ConnState.
func (c *connections) follow(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateClosed, http.StateHijacked:
		delete(c.states, conn)
	default:
		c.states[conn] = state
	}
}

// linger waits until all connections have ended, but not for long.
func (c *connections) linger(limit time.Duration) { c.wait(limit, func() {}) }

// drain closes the connections that are between two requests, or get there, until none is left.
func (c *connections) drain(limit time.Duration) {
	c.wait(limit, func() { c.close(http.StateIdle) })
}

// wait waits until all connections have ended, or for limit, and does something each time it looks.
func (c *connections) wait(limit time.Duration, do func()) {
	end := time.After(limit)
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for {
		do()
		c.mu.Lock()
		open := len(c.states)
		c.mu.Unlock()
		if open == 0 {
			return
		}
		select {
		case <-look.C:
		case <-end:
			return
		}
	}
}

// close closes the connections in a state in which nothing is owed to the client.
func (c *connections) close(state http.ConnState) {
	c.mu.Lock()
	var conns []net.Conn
	for conn, is := range c.states {
		if is == state {
			conns = append(conns, conn)
		}
	}
	c.mu.Unlock()
	for _, conn := range conns {
		_ = conn.Close()
	}
}

// connContext makes the peer of a local connection known to its requests.
func connContext(ctx context.Context, conn net.Conn) context.Context {
	if c, ok := conn.(*peerConn); ok {
		return context.WithValue(ctx, peerKey{}, c.peer)
	}
	return ctx
}
