package api

import (
	"context"
	"net"
	"net/http"
	"time"
)

// ServePatiently is Serve that has a moment for kept connections only, and as long as a test may take for
// all others.
func ServePatiently(ctx context.Context, ln net.Listener, h http.Handler) error {
	return serve(ctx, ln, h, 64<<10, nil, farewell{linger: time.Millisecond, request: time.Minute, all: time.Minute, save: time.Minute})
}
