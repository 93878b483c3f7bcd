package etcd

import (
	"context"
	"strings"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
)

// Client speaks with one member of a cluster at a time, and turns to the next one when that cannot be
// reached. Its methods are safe for concurrent use.
type Client struct {
	members []*member
	current atomic.Uint64 // member in use, modulo their number
}

// pageSize is how many keys of a range are fetched at once.
const pageSize = 1000

// NewClient returns a client; nothing is connected before the first request. Errors are those of o.Check.
func NewClient(o Options) (*Client, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	c := &Client{}
	for _, endpoint := range o.Endpoints {
		m, err := newMember(endpoint, o.TLS)
		if err != nil {
			c.Close()
			return nil, err
		}
		c.members = append(c.members, m)
	}
	return c, nil
}

// Close closes all connections. Requests in progress fail.
func (c *Client) Close() {
	for _, m := range c.members {
		_ = m.client.Close() // that a connection was lost before is none of the caller's business
	}
}

// Endpoint returns the member that requests go to now.
func (c *Client) Endpoint() string { return c.member().endpoint }

func (c *Client) member() *member { return c.at(c.current.Load()) }

func (c *Client) at(turn uint64) *member { return c.members[turn%uint64(len(c.members))] }

// Range returns all keys that begin with prefix, as they are at one revision, the newest that the
// cluster has agreed on when Range is called, and that revision.
func (c *Client) Range(ctx context.Context, prefix string) (kvs []KV, revision int64, err error) {
	from, end := prefix, clientv3.GetPrefixRangeEnd(prefix)
	for {
		var page *clientv3.GetResponse
		err := c.call(ctx, func(ctx context.Context, kv clientv3.KV) (err error) {
			page, err = kv.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(revision))
			return err
		})
		if err != nil {
			return nil, 0, err
		}
		for _, kv := range page.Kvs {
			kvs = append(kvs, pair(kv))
		}
		if revision == 0 {
			revision = page.Header.Revision
		}
		if !page.More || len(page.Kvs) == 0 {
			return kvs, revision, nil
		}
		from = kvs[len(kvs)-1].Key + "\x00"
	}
}

// Get returns one key as the cluster agrees on it now, and false where it is not there.
func (c *Client) Get(ctx context.Context, key string) (KV, bool, error) {
	var r *clientv3.GetResponse
	err := c.call(ctx, func(ctx context.Context, kv clientv3.KV) (err error) {
		r, err = kv.Get(ctx, key)
		return err
	})
	if err != nil || len(r.Kvs) == 0 {
		return KV{}, false, err
	}
	return pair(r.Kvs[0]), true, nil
}

// Commit makes a transaction. It reports whether all comparisons held, and with that whether the
// changes were made, the revision, and, where they did not, the keys of t.Read that are there. After an
// error the changes may have been made or not.
func (c *Client) Commit(ctx context.Context, t Txn) (done bool, revision int64, read []KV, err error) {
	unchanged, then, otherwise := t.ops()
	var r *clientv3.TxnResponse
	err = c.call(ctx, func(ctx context.Context, kv clientv3.KV) (err error) {
		r, err = kv.Txn(ctx).If(unchanged...).Then(then...).Else(otherwise...).Commit()
		return err
	})
	if err != nil {
		return false, 0, nil, err
	}
	for _, part := range r.Responses {
		for _, kv := range part.GetResponseRange().GetKvs() {
			read = append(read, pair(kv))
		}
	}
	return r.Succeeded, r.Header.Revision, read, nil
}

// call makes a request of the member in use. When that cannot be reached or has no leader, it is made of
// the next one, once round, whatever other requests turn to meanwhile; each has its part of the time that
// is left.
func (c *Client) call(ctx context.Context, request func(context.Context, clientv3.KV) error) error {
	var found faults
	first := c.current.Load()
	for i := range len(c.members) {
		turn, left := first+uint64(i), len(c.members)-i
		m := c.at(turn)
		try, cancel := ctx, context.CancelFunc(func() {})
		if deadline, ok := ctx.Deadline(); ok && left > 1 {
			try, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(left))
		}
		err := request(try, m.client)
		if err == nil {
			cancel()
			return nil
		}
		found = append(found, m.explain(try, err))
		cancel()
		switch code(err) {
		case codes.Unavailable, codes.DeadlineExceeded, codes.Unknown:
		default: // another member would say the same
			return found
		}
		c.current.CompareAndSwap(turn, turn+1)
		if ctx.Err() != nil {
			break
		}
	}
	return found
}

// faults are what several members said, on one line.
type faults []error

func (f faults) Error() string {
	texts := make([]string, len(f))
	for i, err := range f {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (f faults) Unwrap() []error { return f }
