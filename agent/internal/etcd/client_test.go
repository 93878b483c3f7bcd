package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vragent/agent/internal/etcd"
	"vragent/agent/internal/etcd/etcdtest"
	"vragent/netcfg/nstest"
)

const (
	address  = "127.0.0.1:2379"
	waitTime = 20 * time.Second
)

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func client(t *testing.T, o etcd.Options) *etcd.Client {
	t.Helper()
	c, err := etcd.NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func plain() etcd.Options { return etcd.Options{Endpoints: []string{"http://" + address}} }

// keys returns keys and values as text.
func keys(kvs []etcd.KV) []string {
	var list []string
	for _, kv := range kvs {
		list = append(list, kv.Key+"="+string(kv.Value))
	}
	return list
}

func TestTransactionsHoldOrChangeNothing(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	etcdtest.Start(t, nstest.Here(t), address, nil)
	c, ctx := client(t, plain()), within(t, waitTime)
	done, first, _, err := c.Commit(ctx, etcd.Txn{
		Unchanged: []etcd.Compare{{Key: "a/1"}, {Key: "a/2"}},
		Puts:      []etcd.Put{{Key: "a/1", Value: []byte("one")}, {Key: "a/2", Value: []byte("two")}},
	})
	if err != nil || !done || first == 0 {
		t.Fatalf("first: %v, revision %d, %v", done, first, err)
	}
	// What somebody else made is not overwritten, and what else is in the transaction is not done.
	done, _, read, err := c.Commit(ctx, etcd.Txn{
		Unchanged: []etcd.Compare{{Key: "a/1"}, {Key: "a/3"}},
		Puts:      []etcd.Put{{Key: "a/1", Value: []byte("other")}, {Key: "a/3", Value: []byte("three")}},
		Read:      []string{"a/1", "a/3"},
	})
	if err != nil || done {
		t.Errorf("against the comparison: done %v, %v", done, err)
	}
	if diff := cmp.Diff([]etcd.KV{{Key: "a/1", Value: []byte("one"), Created: first, Changed: first}}, read); diff != "" {
		t.Errorf("read (-want +got):\n%s", diff)
	}
	done, second, _, err := c.Commit(ctx, etcd.Txn{
		Unchanged: []etcd.Compare{{Key: "a/1", Changed: first}, {Key: "a/2", Changed: first}},
		Puts:      []etcd.Put{{Key: "a/1", Value: nil}},
		Deletes:   []string{"a/2"},
	})
	if err != nil || !done || second <= first {
		t.Errorf("second: %v, revision %d after %d, %v", done, second, first, err)
	}
	kvs, revision, err := c.Range(ctx, "a/")
	if err != nil || revision != second {
		t.Fatalf("Range: revision %d, %v", revision, err)
	}
	if diff := cmp.Diff([]string{"a/1="}, keys(kvs)); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	if kv, ok, err := c.Get(ctx, "a/1"); err != nil || !ok || kv.Created != first || kv.Changed != second {
		t.Errorf("Get = %+v, %v, %v", kv, ok, err)
	}
	if kv, ok, err := c.Get(ctx, "a/2"); err != nil || ok {
		t.Errorf("Get of a deleted key = %+v, %v, %v", kv, ok, err)
	}
}

func TestRangesOfAnySizeAreOfOneRevision(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	etcdtest.Start(t, nstest.Here(t), address, nil)
	c, ctx := client(t, plain()), within(t, waitTime)
	const n = 2500
	var want []string
	for i := 0; i < n; i += etcd.MaxOps {
		var txn etcd.Txn
		for j := i; j < min(n, i+etcd.MaxOps); j++ {
			key := fmt.Sprintf("a/%06d", j)
			txn.Puts = append(txn.Puts, etcd.Put{Key: key, Value: []byte("x")})
			want = append(want, key+"=x")
		}
		if done, _, _, err := c.Commit(ctx, txn); err != nil || !done {
			t.Fatalf("transaction of %d changes: %v, %v", len(txn.Puts), done, err)
		}
	}
	if _, _, _, err := c.Commit(ctx, etcd.Txn{Puts: []etcd.Put{{Key: "a0", Value: []byte("outside")}, {Key: "a.", Value: []byte("outside")}}}); err != nil {
		t.Fatal(err)
	}
	kvs, _, err := c.Range(ctx, "a/")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, keys(kvs)); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	// More than the server takes at once is refused in its words, and no other member is asked.
	var large etcd.Txn
	for i := range etcd.MaxOps + 1 {
		large.Puts = append(large.Puts, etcd.Put{Key: fmt.Sprintf("b/%d", i)})
	}
	if _, _, _, err := c.Commit(ctx, large); err == nil || !strings.Contains(err.Error(), "too many operations") {
		t.Errorf("transaction of %d changes: %v", len(large.Puts), err)
	}
}

// follower collects what a watch tells.
type follower struct {
	events chan etcd.Event
	ended  chan error
}

func follow(t *testing.T, c *etcd.Client, prefix string, revision int64) *follower {
	t.Helper()
	f := &follower{events: make(chan etcd.Event, 100), ended: make(chan error, 1)}
	started := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.ended <- c.Watch(ctx, prefix, revision, func() { close(started) }, func(events []etcd.Event) error {
			for _, e := range events {
				f.events <- e
			}
			return nil
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	select {
	case <-started:
	case err := <-f.ended:
		t.Fatalf("Watch: %v", err)
	case <-time.After(waitTime):
		t.Fatal("the watch does not start")
	}
	return f
}

func (f *follower) next(t *testing.T) string {
	t.Helper()
	select {
	case e := <-f.events:
		if e.Deleted {
			return e.Key + " deleted"
		}
		return e.Key + "=" + string(e.Value)
	case err := <-f.ended:
		t.Fatalf("Watch: %v", err)
	case <-time.After(waitTime):
		t.Fatal("no event")
	}
	return ""
}

func put(t *testing.T, c *etcd.Client, key, value string) int64 {
	t.Helper()
	_, revision, _, err := c.Commit(within(t, waitTime), etcd.Txn{Puts: []etcd.Put{{Key: key, Value: []byte(value)}}})
	if err != nil {
		t.Fatal(err)
	}
	return revision
}

func TestWatchesTellEveryChangeSinceARevision(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	etcdtest.Start(t, nstest.Here(t), address, nil)
	c := client(t, plain())
	put(t, c, "a/1", "before")
	since := put(t, c, "a/2", "missed")
	f := follow(t, c, "a/", since)
	put(t, c, "b/1", "of no interest")
	put(t, c, "a/1", strings.Repeat("x", 100_000))
	if _, _, _, err := c.Commit(within(t, waitTime), etcd.Txn{Deletes: []string{"a/2"}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a/2=missed", "a/1=" + strings.Repeat("x", 100_000), "a/2 deleted"} {
		if got := f.next(t); got != want {
			t.Errorf("event %.20q, want %.20q", got, want)
		}
	}
}

func TestWatchOfForgottenRevisionsSaysSo(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	h := nstest.Here(t)
	etcdtest.Start(t, h, address, nil)
	c := client(t, plain())
	put(t, c, "a/1", "one")
	revision := put(t, c, "a/1", "two")
	h.Run(t, "env", "ETCDCTL_API=3", "etcdctl", "--endpoints", address, "compact", fmt.Sprint(revision))
	if err := c.Watch(within(t, waitTime), "a/", 1, nil, nil); !errors.Is(err, etcd.ErrCompacted) {
		t.Errorf("Watch: %v, want %v", err, etcd.ErrCompacted)
	}
}

func TestMembersThatCannotBeReachedArePassedOver(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	h := nstest.Here(t)
	gone := nstest.NewHost(t, "gone")
	nstest.Pair(t, h, "eth0", gone, "eth0")
	h.AddAddr(t, "eth0", "192.0.2.1/24")
	etcdtest.Start(t, h, address, nil)
	for name, dead := range map[string]string{"refuses": "http://127.0.0.1:9", "silent": "http://192.0.2.9:2379"} {
		t.Run(name, func(t *testing.T) {
			c := client(t, etcd.Options{Endpoints: []string{dead, "http://" + address}})
			if _, _, err := c.Get(within(t, waitTime), "a"); err != nil {
				t.Errorf("Get: %v", err)
			}
			if got := c.Endpoint(); got != "http://"+address {
				t.Errorf("Endpoint() = %s: the next request goes astray as well", got)
			}
		})
	}
	c := client(t, etcd.Options{Endpoints: []string{"http://127.0.0.1:9", "http://127.0.0.1:7"}})
	_, _, err := c.Get(within(t, waitTime), "a")
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:9") || !strings.Contains(err.Error(), "127.0.0.1:7") {
		t.Errorf("Get with nobody there: %v, want both members named", err)
	}
	if err != nil && strings.Contains(err.Error(), "\n") {
		t.Errorf("Get with nobody there: %q, want one line", err)
	}
	// Others that turn the client to its next member keep no request from its round.
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 500 {
				_, _, err := c.Get(within(t, waitTime), "a")
				if err == nil || !strings.Contains(err.Error(), "127.0.0.1:9") || !strings.Contains(err.Error(), "127.0.0.1:7") {
					t.Errorf("Get beside others: %v, want both members asked", err)
				}
			}
		})
	}
	all.Wait()
}

func TestDeadConnectionsEndAWatch(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	server := etcdtest.Start(t, nstest.Here(t), address, nil)
	c := client(t, plain())
	for name, lose := range map[string]func(){"stopped": func() { server.Stop(t) }, "silent": func() { server.Pause(t) }} {
		t.Run(name, func(t *testing.T) {
			f := follow(t, c, "a/", 0)
			put(t, c, "a/1", name)
			f.next(t)
			lose()
			select {
			case err := <-f.ended:
				if err == nil {
					t.Error("the watch ended without a reason")
				}
			case <-time.After(waitTime):
				t.Error("the watch does not notice")
			}
			if name == "stopped" {
				server.Start(t)
			} else {
				server.Resume(t)
			}
			nstest.Poll(t, waitTime, "the client to be served again", func() bool {
				_, ok, err := c.Get(within(t, time.Second), "a/1")
				return err == nil && ok
			})
		})
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	etcdtest.Start(t, nstest.Here(t), address, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	c := client(t, plain())
	go func() {
		ended <- c.Watch(ctx, "a/", 0, func() { cancel(errors.New("enough")) }, nil)
	}()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("Watch ends without a reason")
		}
	case <-time.After(waitTime):
		t.Fatal("Watch goes on")
	}
}

func TestCertificatesProveWhoIsWho(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	certs, others := etcdtest.NewCerts(t), etcdtest.NewCerts(t)
	etcdtest.Start(t, nstest.Here(t), address, certs)
	good, wrong := certs.Make(t, "router-a", ""), others.Make(t, "stranger", "")
	for name, test := range map[string]struct {
		tls  etcd.TLS
		want string // of the error
	}{
		"right":                    {etcd.TLS{CA: certs.CA, Cert: good.Cert, Key: good.Key}, ""},
		"no certificate":           {etcd.TLS{CA: certs.CA}, "the server refuses tls.cert"},
		"of another authority":     {etcd.TLS{CA: certs.CA, Cert: wrong.Cert, Key: wrong.Key}, "the server refuses tls.cert"},
		"server of another":        {etcd.TLS{CA: others.CA, Cert: good.Cert, Key: good.Key}, "not signed by tls.ca"},
		"server unknown to us":     {etcd.TLS{Cert: good.Cert, Key: good.Key}, "not signed by tls.ca"},
		"plain where TLS is asked": {etcd.TLS{}, "127.0.0.1:2379"},
	} {
		t.Run(name, func(t *testing.T) {
			o := etcd.Options{Endpoints: []string{"https://" + address}, TLS: test.tls}
			if name == "plain where TLS is asked" {
				o.Endpoints = []string{"http://" + address}
			}
			_, _, err := client(t, o).Get(within(t, waitTime), "a")
			switch {
			case test.want == "" && err != nil:
				t.Errorf("Get: %v", err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("Get: %v, want %q in it", err, test.want)
			}
		})
	}
}

func TestOptionsAreCheckedBeforeAnythingIsDone(t *testing.T) {
	certs := etcdtest.NewCerts(t)
	pair := certs.Make(t, "a", "")
	for name, test := range map[string]struct {
		o    etcd.Options
		want string
	}{
		"none":             {etcd.Options{}, "no endpoints"},
		"no scheme":        {etcd.Options{Endpoints: []string{"192.0.2.1:2379"}}, `"192.0.2.1:2379": want http`},
		"no port":          {etcd.Options{Endpoints: []string{"http://192.0.2.1"}}, "want http"},
		"no such port":     {etcd.Options{Endpoints: []string{"http://192.0.2.1:99999"}}, "want http"},
		"a path":           {etcd.Options{Endpoints: []string{"http://192.0.2.1:2379/v3"}}, "want http"},
		"a user":           {etcd.Options{Endpoints: []string{"http://me@192.0.2.1:2379"}}, "want http"},
		"mixed":            {etcd.Options{Endpoints: []string{"http://a:1", "https://b:1"}}, "one of them for all"},
		"tls without need": {etcd.Options{Endpoints: []string{"http://a:1"}, TLS: etcd.TLS{CA: certs.CA}}, "want https"},
		"half a pair":      {etcd.Options{Endpoints: []string{"https://a:1"}, TLS: etcd.TLS{Cert: pair.Cert}}, "go together"},
		"no such file":     {etcd.Options{Endpoints: []string{"https://a:1"}, TLS: etcd.TLS{CA: "/nowhere"}}, "tls.ca: open /nowhere"},
		"no certificate":   {etcd.Options{Endpoints: []string{"https://a:1"}, TLS: etcd.TLS{CA: pair.Key}}, "tls.ca: no certificate"},
		"key of another":   {etcd.Options{Endpoints: []string{"https://a:1"}, TLS: etcd.TLS{Cert: pair.Cert, Key: certs.CA}}, "tls.cert and tls.key"},
		"good":             {etcd.Options{Endpoints: []string{"https://a:1", "https://[::1]:2"}, TLS: etcd.TLS{CA: certs.CA, Cert: pair.Cert, Key: pair.Key}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.o.Check()
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("Check() = %v, want %q", err, test.want)
			}
		})
	}
}
