package api

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"
)

const (
	// headerTime is how long a client may take over its request line and headers.
	headerTime = 10 * time.Second
	// idleTime is how long a kept connection may say nothing.
	idleTime = 2 * time.Minute
	// maxHeader bounds the request line and headers. CloudMonkey sends everything in the URL, user
	// data too, so it holds 1 MiB of user data in base64 that is percent-encoded.
	maxHeader = 2 << 20
	// stopTime is how long requests under way may take to end once the server is to stop.
	stopTime = 5 * time.Second
)

// Serve answers on ln with h until ctx ends or ln breaks, and closes ln. It returns nil when ctx
// ended; requests under way then see their context end and have a few seconds to say so to their
// clients. A nil log discards.
func Serve(ctx context.Context, ln net.Listener, h http.Handler, log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       connContext,
	}
	stopped := make(chan error, 1)
	unhook := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
		defer cancel()
		err := srv.Shutdown(grace)
		if errors.Is(err, context.DeadlineExceeded) {
			err = srv.Close()
		}
		stopped <- err
	})
	err := srv.Serve(ln)
	if unhook() { // ctx has not ended: the listener broke
		return errors.Join(err, srv.Close())
	}
	return <-stopped
}

// connContext makes the peer of a local connection known to its requests.
func connContext(ctx context.Context, conn net.Conn) context.Context {
	if c, ok := conn.(*peerConn); ok {
		return context.WithValue(ctx, peerKey{}, c.peer)
	}
	return ctx
}
