package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// ErrCompacted is returned by Watch for a revision whose changes etcd does not keep any more.
var ErrCompacted = errors.New("etcd: the changes since then are not kept any more")

// Watch calls fn with the changes of all keys that begin with prefix, from revision on, in their order,
// until ctx ends, fn returns an error or the member is lost, and returns why. A connection that has
// gone dead without a word is noticed after pingAfter and pingTime; who needs to know sooner asks for
// something. started is called once the member watches.
func (c *Client) Watch(ctx context.Context, prefix string, revision int64, started func(), fn func([]Event) error) error {
	used := c.current.Load()
	endpoint := c.Endpoint()
	err := c.watch(ctx, endpoint, prefix, revision, started, fn)
	if ctx.Err() == nil && !errors.Is(err, ErrCompacted) {
		c.current.CompareAndSwap(used, used+1)
	}
	c.http.CloseIdleConnections() // one that is dead would take the next request, too
	return err
}

func (c *Client) watch(ctx context.Context, endpoint, prefix string, revision int64, started func(), fn func([]Event) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	requests, send := io.Pipe() // stays open, since its end would end the watch
	defer send.Close()
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, _ = send.Write(frame(watchRequest(prefix, prefixEnd(prefix), revision))) // that it fails shows in the response
	}()
	defer func() { <-written }()
	defer requests.Close()
	// The transport waits for more of the request, and looks at ctx again once that has ended.
	defer context.AfterFunc(ctx, func() { requests.CloseWithError(context.Cause(ctx)) })()
	res, err := c.open(ctx, endpoint, "Watch/Watch", requests)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	for {
		message, err := readFrame(res.Body)
		if err == io.EOF {
			if err := status(res); err != nil {
				return fmt.Errorf("%s: %w", endpoint, err)
			}
			return fmt.Errorf("%s: the watch was ended", endpoint)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", endpoint, explain(err))
		}
		var r watchResponse
		if err := r.parse(message); err != nil {
			return fmt.Errorf("%s: %w", endpoint, err)
		}
		switch {
		case r.compact != 0:
			return ErrCompacted
		case r.canceled:
			return fmt.Errorf("%s: the watch was ended: %s", endpoint, r.reason)
		}
		if started != nil {
			started()
			started = nil
		}
		if len(r.events) > 0 {
			if err := fn(r.events); err != nil {
				return err
			}
		}
	}
}
