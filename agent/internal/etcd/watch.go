package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"
)

// ErrCompacted is returned by Watch for a revision whose changes etcd does not keep any more.
var ErrCompacted = errors.New("etcd: the changes since then are not kept any more")

const (
	// askEvery is how often a member is asked whether it still watches, silence how long it may take to
	// say so. The pings of gRPC come every ten seconds at the most.
	askEvery = time.Second
	silence  = 3 * time.Second
)

var (
	errSilent = fmt.Errorf("no answer for %v", silence)
	errLost   = errors.New("the connection was lost")
)

// Watch calls fn with the changes of all keys that begin with prefix, from revision on, in their order,
// until ctx ends, fn returns an error or the connection is lost, and returns why. That a member has gone
// without a word is noticed within three seconds. The changes of one revision come in one call. started
// is called once the member watches.
func (c *Client) Watch(ctx context.Context, prefix string, revision int64, started func(), fn func([]Event) error) error {
	used := c.current.Load()
	err := c.at(used).watch(ctx, prefix, revision, started, fn)
	if ctx.Err() == nil && !errors.Is(err, ErrCompacted) {
		c.current.CompareAndSwap(used, used+1)
	}
	return err
}

// watch is Watch with one member. The library would wait for a member that is lost until it is back; here
// it has to show every now and then that it is there.
func (m *member) watch(ctx context.Context, prefix string, revision int64, started func(), fn func([]Event) error) error {
	ctx, cancel := context.WithCancelCause(clientv3.WithRequireLeader(ctx))
	defer cancel(nil)
	quiet := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer quiet.Stop()
	ask := time.NewTicker(askEvery)
	defer ask.Stop()

	watcher := clientv3.NewWatcher(m.client)
	defer watcher.Close()
	answers := watcher.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(revision), clientv3.WithCreatedNotify())
	for {
		select {
		case <-ask.C:
			if err := watcher.RequestProgress(ctx); err != nil {
				return m.explain(ctx, err)
			}
		case r, open := <-answers:
			switch {
			case !open:
				return m.explain(ctx, errors.New("the watch was ended"))
			case r.CompactRevision != 0:
				return ErrCompacted
			case r.Err() != nil:
				return m.explain(ctx, r.Err())
			}
			quiet.Stop()
			if r.Created {
				go func() {
					if m.client.ActiveConnection().WaitForStateChange(ctx, connectivity.Ready) {
						cancel(errLost)
					}
				}()
			}
			if started != nil {
				started()
				started = nil
			}
			if len(r.Events) > 0 {
				if err := fn(events(r.Events)); err != nil {
					return err
				}
			}
			quiet.Reset(silence)
		}
	}
}

// events takes changes out of the library's hands.
func events(list []*clientv3.Event) []Event {
	taken := make([]Event, 0, len(list))
	for _, e := range list {
		taken = append(taken, Event{KV: pair(e.Kv), Deleted: e.Type == clientv3.EventTypeDelete})
	}
	return taken
}
