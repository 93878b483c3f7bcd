package shared_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vragent/agent/internal/etcd"
	"vragent/agent/internal/etcd/etcdtest"
	"vragent/agent/internal/shared"
	"vragent/dhcp"
	"vragent/netcfg/nstest"
)

const (
	address  = "127.0.0.1:2379"
	waitTime = 20 * time.Second
)

// side is one router of a pair, and what it has been told.
type side struct {
	store  *shared.Store
	leases *shared.Leases
	etcd   *etcd.Client

	mu      sync.Mutex
	told    map[string]string // by address
	current bool
	rounds  int
	stop    func()
}

func newSide(t *testing.T, orphans []dhcp.Lease, adopted func()) *side {
	t.Helper()
	s := newSideOf(t, []string{"http://" + address})
	s.leases = s.store.Leases(orphans, adopted)
	return s
}

func newSideOf(t *testing.T, endpoints []string) *side {
	t.Helper()
	client, err := etcd.NewClient(etcd.Options{Endpoints: endpoints})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	s := &side{store: shared.NewStore(shared.Options{KV: client, Prefix: "/pair-7"}), etcd: client, told: make(map[string]string)}
	s.leases = s.store.Leases(nil, nil)
	return s
}

// follow follows as a DHCP server does, and returns once all was told.
func (s *side) follow(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			_ = s.leases.Follow(ctx, s.take, func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.current = true
				s.rounds++
			})
			s.mu.Lock()
			s.current = false
			s.mu.Unlock()
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	s.stop = func() { cancel(); <-done }
	t.Cleanup(s.stop)
	s.await(t, "all to be told", func() bool { return s.current })
}

func (s *side) take(l dhcp.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.State == dhcp.LeaseForgotten {
		delete(s.told, l.IP.String())
		return
	}
	s.told[l.IP.String()] = fmt.Sprintf("%s %s", l.MAC, l.State)
}

func (s *side) await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	nstest.Poll(t, waitTime, what, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return ok()
	})
}

// knows waits until the side was told exactly that.
func (s *side) knows(t *testing.T, want map[string]string) {
	t.Helper()
	var last map[string]string
	defer func() {
		if t.Failed() {
			t.Logf("told: %v", last)
		}
	}()
	s.await(t, fmt.Sprint("to be told ", want), func() bool {
		last = s.told
		return cmp.Equal(s.told, want)
	})
}

func lease(ip string, client byte, change ...func(*dhcp.Lease)) dhcp.Lease {
	l := dhcp.Lease{Network: "guest-1", IP: netip.MustParseAddr(ip), MAC: dhcp.MAC{2, 0, 0, 0, 0, client}, State: dhcp.LeaseBound,
		ClientID: []byte{1, client}, Hostname: "host\xff", Start: time.Now().Truncate(0), Expiry: time.Now().Add(time.Hour).Truncate(0)}
	for _, c := range change {
		c(&l)
	}
	return l
}

func in(state dhcp.LeaseState) func(*dhcp.Lease) { return func(l *dhcp.Lease) { l.State = state } }

func (s *side) commit(t *testing.T, leases ...dhcp.Lease) {
	t.Helper()
	if err := s.leases.Commit(t.Context(), leases); err != nil {
		t.Fatalf("Commit: %v", err)
	}
}

func bound(client byte) string { return fmt.Sprintf("02:00:00:00:00:%02x bound", client) }

func TestEachRouterIsToldWhatTheOtherWrites(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	etcdtest.Start(t, nstest.Here(t), address, nil)
	a, b := newSide(t, nil, nil), newSide(t, nil, nil)
	a.follow(t)
	a.commit(t, lease("10.1.1.200", 1), lease("10.1.1.201", 2)) // before b is there
	b.follow(t)
	b.knows(t, map[string]string{"10.1.1.200": bound(1), "10.1.1.201": bound(2)})
	a.commit(t, lease("10.1.1.202", 3), lease("10.1.1.200", 1, in(dhcp.LeaseReleased)), lease("10.1.1.201", 0, in(dhcp.LeaseForgotten)))
	b.knows(t, map[string]string{"10.1.1.200": "02:00:00:00:00:01 released", "10.1.1.202": bound(3)})
	// b goes on where a ended, and a is told; of its own it is told nothing.
	b.commit(t, lease("10.1.1.202", 3), lease("10.1.1.200", 4))
	a.knows(t, map[string]string{"10.1.1.202": bound(3), "10.1.1.200": bound(4)})
	if s := a.store.Status(); s.Current || s.Err == nil || s.Stored == 0 {
		t.Errorf("Status() = %+v, though passwords are not followed", s)
	}
}

func TestOneAddressIsNeverGivenTwice(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	etcdtest.Start(t, nstest.Here(t), address, nil)
	// Neither is told anything: they cannot hear each other, and both serve.
	sides := []*side{newSide(t, nil, nil), newSide(t, nil, nil)}
	const n = 300
	var wg sync.WaitGroup
	won := make([]map[string]byte, 2)
	for i, s := range sides {
		won[i] = make(map[string]byte)
		wg.Go(func() {
			for from := 0; from < n; from += 50 {
				var batch []dhcp.Lease
				for k := from; k < from+50; k++ {
					batch = append(batch, lease(fmt.Sprintf("10.1.%d.%d", k/200, k%200+1), byte(i+1)))
				}
				var held *dhcp.HeldError
				if err := s.leases.Commit(t.Context(), batch); err != nil && !errors.As(err, &held) {
					t.Errorf("Commit: %v", err)
					return
				}
				for _, l := range batch {
					won[i][l.IP.String()] = l.MAC[5]
				}
				if held != nil {
					for _, l := range held.Held {
						delete(won[i], l.IP.String())
						if l.MAC[5] == byte(i+1) {
							t.Errorf("%s is held by its own client", l.IP)
						}
					}
				}
			}
		})
	}
	wg.Wait()
	if len(won[0])+len(won[1]) != n {
		t.Errorf("%d and %d addresses given, of %d", len(won[0]), len(won[1]), n)
	}
	reader := newSide(t, nil, nil)
	reader.follow(t)
	want := make(map[string]string)
	for _, w := range won {
		for ip, client := range w {
			want[ip] = bound(client)
		}
	}
	reader.knows(t, want)
}

func TestLeasesLastAsLongWhereTheClockIsAnother(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	etcdtest.Start(t, nstest.Here(t), address, nil)
	a, b := newSide(t, nil, nil), newSide(t, nil, nil)
	tomorrow := func() time.Time { return time.Now().Add(24 * time.Hour) }
	b.store = shared.NewStore(shared.Options{KV: b.etcd, Prefix: "/pair-7", Now: tomorrow})
	b.leases = b.store.Leases(nil, nil)
	told := make(chan dhcp.Lease, 1)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	current := make(chan struct{})
	go func() {
		defer close(ended)
		_ = b.leases.Follow(ctx, func(l dhcp.Lease) { told <- l }, func() { close(current) })
	}()
	defer func() { cancel(); <-ended }()
	select {
	case <-current:
	case <-time.After(waitTime):
		t.Fatal("the store is not followed")
	}
	a.commit(t, lease("10.1.1.1", 1)) // for an hour
	select {
	case l := <-told:
		if left := l.Expiry.Sub(tomorrow()); left > time.Hour || left < 50*time.Minute {
			t.Errorf("a lease of an hour has %v left by a clock that is a day ahead", left)
		}
	case <-time.After(waitTime):
		t.Fatal("the lease is not told")
	}
}

func TestManyLeasesShareATransaction(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	etcdtest.Start(t, nstest.Here(t), address, nil)
	a := newSide(t, nil, nil)
	var batch []dhcp.Lease
	for k := range 1000 {
		batch = append(batch, lease(fmt.Sprintf("10.1.%d.%d", k/200, k%200+1), 1))
	}
	a.commit(t, append(batch, batch[:10]...)...) // of one address twice, too
	if s := a.store.Status(); s.Stored != (1000+etcd.MaxOps-1)/etcd.MaxOps || s.Refused != 0 || s.Failed != 0 || s.Spent <= 0 {
		t.Errorf("Status() = %+v, want as few transactions as will do", s)
	}
}

func TestRecordsThatWereReplacedYieldToTheirClientAlone(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	etcdtest.Start(t, nstest.Here(t), address, nil)
	for name, test := range map[string]struct {
		holder, wanted dhcp.Lease
		want           bool
	}{
		"same client":          {lease("10.1.1.1", 1), lease("10.1.1.1", 1), true},
		"release by its own":   {lease("10.1.1.2", 1), lease("10.1.1.2", 1, in(dhcp.LeaseReleased)), true},
		"released":             {lease("10.1.1.3", 1, in(dhcp.LeaseReleased)), lease("10.1.1.3", 2), true},
		"run out":              {lease("10.1.1.4", 1, func(l *dhcp.Lease) { l.Expiry = time.Now().Add(-time.Second) }), lease("10.1.1.4", 2), true},
		"bound":                {lease("10.1.1.5", 1), lease("10.1.1.5", 2), false},
		"bound for ever":       {lease("10.1.1.6", 1, func(l *dhcp.Lease) { l.Expiry = time.Time{} }), lease("10.1.1.6", 2), false},
		"declined":             {lease("10.1.1.7", 1, in(dhcp.LeaseDeclined)), lease("10.1.1.7", 2), false},
		"release of another's": {lease("10.1.1.8", 1), lease("10.1.1.8", 2, in(dhcp.LeaseReleased)), false},
		"end of another's":     {lease("10.1.1.9", 1), lease("10.1.1.9", 0, in(dhcp.LeaseForgotten)), false},
	} {
		t.Run(name, func(t *testing.T) {
			newSide(t, nil, nil).commit(t, test.holder)
			// This one does not know of it yet.
			late := newSide(t, nil, nil)
			other := lease("10.9.9.9", byte(len(name)))
			other.Network = name
			err := late.leases.Commit(t.Context(), []dhcp.Lease{test.wanted, other})
			if test.want {
				if err != nil {
					t.Errorf("Commit: %v", err)
				}
				return
			}
			var held *dhcp.HeldError
			if !errors.As(err, &held) {
				t.Fatalf("Commit: %v, want a HeldError", err)
			}
			want := test.holder
			want.Hostname = "host\ufffd" // what JSON makes of bytes that are no text
			if diff := cmp.Diff([]dhcp.Lease{want}, held.Held, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("held (-want +got):\n%s", diff)
			}
			if kv, ok, err := late.etcd.Get(t.Context(), "/pair-7/leases/"+name+"/10.9.9.9"); err != nil || !ok || !strings.Contains(string(kv.Value), other.MAC.String()) {
				t.Errorf("the rest of the batch: %q, %v", kv.Value, err)
			}
		})
	}
}

func TestDeletedRecordsAreMadeAgain(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	etcdtest.Start(t, nstest.Here(t), address, nil)
	a, b := newSide(t, nil, nil), newSide(t, nil, nil)
	a.commit(t, lease("10.1.1.1", 1))
	b.commit(t, lease("10.1.1.1", 1))
	b.commit(t, lease("10.1.1.1", 1, in(dhcp.LeaseForgotten)))
	a.commit(t, lease("10.1.1.1", 1)) // a thinks of it as of its own, changed by nobody
	b.commit(t, lease("10.1.1.1", 1))
	b.commit(t, lease("10.1.1.1", 1, in(dhcp.LeaseForgotten)))
	a.commit(t, lease("10.1.1.1", 1, in(dhcp.LeaseForgotten)))
	if _, ok, err := a.etcd.Get(t.Context(), "/pair-7/leases/guest-1/10.1.1.1"); err != nil || ok {
		t.Errorf("the record is there: %v, %v", ok, err)
	}
}

func TestStoreThatIsAwayIsNoticedAndComesBack(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	server := etcdtest.Start(t, nstest.Here(t), address, nil)
	a, b := newSide(t, nil, nil), newSide(t, nil, nil)
	a.follow(t)
	b.follow(t)
	a.commit(t, lease("10.1.1.1", 1))
	b.knows(t, map[string]string{"10.1.1.1": bound(1)})
	for name, outage := range map[string]struct{ begin, end func() }{
		"stopped": {func() { server.Stop(t) }, func() { server.Start(t) }},
		"silent":  {func() { server.Pause(t) }, func() { server.Resume(t) }},
	} {
		t.Run(name, func(t *testing.T) {
			outage.begin()
			a.await(t, "a to notice", func() bool { return !a.current })
			b.await(t, "b to notice", func() bool { return !b.current })
			if s := a.store.Status(); s.Current || s.Err == nil {
				t.Errorf("Status() = %+v", s)
			}
			if err := a.leases.Commit(t.Context(), []dhcp.Lease{lease("10.1.1.2", 2)}); err == nil {
				t.Error("a lease is stored while the store is away")
			}
			outage.end()
			a.await(t, "a to go on", func() bool { return a.current })
			b.await(t, "b to go on", func() bool { return b.current })
			b.commit(t, lease("10.1.1.3", 3))
			// Whatever became of the commit that failed, both know the same of it: what is stored.
			kvs, _, err := a.etcd.Range(t.Context(), "/pair-7/leases/")
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{"10.1.1.1": bound(1), "10.1.1.3": bound(3)}
			for _, kv := range kvs {
				if strings.HasSuffix(kv.Key, "10.1.1.2") {
					want["10.1.1.2"] = bound(2)
				}
			}
			for s, own := range map[*side]string{a: "10.1.1.1", b: "10.1.1.3"} { // which it is not told
				s.mu.Lock()
				s.told[own] = want[own]
				s.mu.Unlock()
			}
			a.knows(t, want)
			b.knows(t, want)
		})
	}
}

// fullStore is a store that has no room for anything.
type fullStore struct{ *etcd.Client }

var errFull = errors.New("mvcc: database space exceeded")

func (fullStore) Commit(context.Context, etcd.Txn) (bool, int64, []etcd.KV, error) {
	return false, 0, nil, errFull
}

func TestStoreThatCannotBeWrittenCountsAsAway(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	etcdtest.Start(t, nstest.Here(t), address, nil)
	a := newSide(t, nil, nil)
	for _, made := range []bool{false, true} {
		if made {
			a.follow(t)
			a.stop()
		}
		full := shared.NewStore(shared.Options{KV: fullStore{a.etcd}, Prefix: "/pair-7"})
		err := full.Leases(nil, nil).Follow(t.Context(), func(dhcp.Lease) {}, func() { t.Error("it is followed") })
		if s := full.Status(); !errors.Is(err, errFull) || s.Current {
			t.Errorf("Follow: %v, status %+v", err, s)
		}
	}
}

// A member that the others do not hear of any more would tell old news, and take no leases.
func TestMemberWithoutAMajorityCountsAsAway(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	members, endpoints := etcdtest.StartCluster(t, nstest.Here(t))
	a, b := newSideOf(t, endpoints), newSideOf(t, []string{endpoints[1], endpoints[2], endpoints[0]})
	a.follow(t)
	b.follow(t)
	a.commit(t, lease("10.1.1.1", 1))
	b.knows(t, map[string]string{"10.1.1.1": bound(1)})
	members[0].Stop(t) // two of three are an etcd
	a.mu.Lock()
	rounds := a.rounds
	a.mu.Unlock()
	a.await(t, "a to turn to another member", func() bool { return a.current && a.rounds > rounds })
	// The members that are left may be about to agree on a leader.
	soon := func(s *side, l dhcp.Lease) {
		t.Helper()
		nstest.Poll(t, waitTime, "a lease to be stored", func() bool { return s.leases.Commit(t.Context(), []dhcp.Lease{l}) == nil })
	}
	soon(a, lease("10.1.1.2", 2))
	b.knows(t, map[string]string{"10.1.1.1": bound(1), "10.1.1.2": bound(2)})
	members[1].Stop(t) // one is none
	a.await(t, "a to notice", func() bool { return !a.current })
	b.await(t, "b to notice", func() bool { return !b.current })
	if err := b.leases.Commit(t.Context(), []dhcp.Lease{lease("10.1.1.3", 3)}); err == nil {
		t.Error("a lease is stored by a minority")
	}
	members[1].Start(t)
	b.await(t, "b to go on", func() bool { return b.current })
	a.await(t, "a to go on", func() bool { return a.current })
	soon(b, lease("10.1.1.4", 4))
	a.await(t, "a to be told", func() bool { return a.told["10.1.1.4"] == bound(4) })
}

func TestEmptiedStoreGetsBackWhatTheRoutersKnow(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	server := etcdtest.Start(t, nstest.Here(t), address, nil)
	a, b := newSide(t, nil, nil), newSide(t, nil, nil)
	a.follow(t)
	b.follow(t)
	var batch []dhcp.Lease
	want := make(map[string]string)
	for k := range 150 { // more than a transaction
		batch = append(batch, lease(fmt.Sprintf("10.1.1.%d", k+1), byte(k)))
		want[fmt.Sprintf("10.1.1.%d", k+1)] = bound(byte(k))
	}
	a.commit(t, batch...)
	b.commit(t, lease("10.1.2.1", 1, func(l *dhcp.Lease) { l.Expiry = time.Now() }), lease("10.1.2.2", 2))
	want["10.1.2.2"] = bound(2)
	a.await(t, "a to be told", func() bool { return len(a.told) == 2 })
	b.await(t, "b to be told", func() bool { return len(b.told) == 150 })
	server.Stop(t)
	a.await(t, "a to notice", func() bool { return !a.current })
	b.await(t, "b to notice", func() bool { return !b.current })
	server.Wipe(t)
	server.Start(t)
	a.await(t, "a to go on", func() bool { return a.current })
	b.await(t, "b to go on", func() bool { return b.current })
	reader := newSide(t, nil, nil)
	reader.follow(t)
	reader.knows(t, want) // less what has run out
	b.commit(t, lease("10.1.1.1", 0), lease("10.1.2.2", 2, in(dhcp.LeaseReleased)))
	want["10.1.2.2"] = "02:00:00:00:00:02 released"
	reader.knows(t, want)
}

func TestLeasesOfASingleRouterAreTakenAlong(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	etcdtest.Start(t, nstest.Here(t), address, nil)
	a := newSide(t, nil, nil)
	a.commit(t, lease("10.1.1.1", 1))
	adopted := 0
	b := newSide(t, []dhcp.Lease{
		lease("10.1.1.1", 9), lease("10.1.1.2", 2), lease("10.1.1.3", 3, func(l *dhcp.Lease) { l.Expiry = time.Now() }),
	}, func() { adopted++ })
	b.follow(t)
	b.mu.Lock()
	if adopted != 1 {
		t.Errorf("adopted is called %d times", adopted)
	}
	b.mu.Unlock()
	b.knows(t, map[string]string{"10.1.1.1": bound(1), "10.1.1.2": bound(2)})
	reader := newSide(t, nil, nil)
	reader.follow(t)
	reader.knows(t, map[string]string{"10.1.1.1": bound(1), "10.1.1.2": bound(2)})
}

func TestRecordsThatCannotBeReadKeepTheirAddress(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	etcdtest.Start(t, nstest.Here(t), address, nil)
	a := newSide(t, nil, nil)
	for key, value := range map[string]string{
		"guest-1/10.1.1.1": `{"format":2,"lease":"of a newer release"}`,
		"guest-1/10.1.1.2": `{"format":1,"lease":{"network":"guest-1","ip":"10.1.1.9","mac":"02:00:00:00:00:01","state":"bound","start":"2026-01-01T00:00:00Z"}}`,
		"guest-1/10.1.1.3": ``,
		"guest-1/web":      `{"format":1}`,
		"guest-1":          `{}`,
	} {
		if _, _, _, err := a.etcd.Commit(t.Context(), etcd.Txn{Puts: []etcd.Put{{Key: "/pair-7/leases/" + key, Value: []byte(value)}}}); err != nil {
			t.Fatal(err)
		}
	}
	a.follow(t)
	nobody := dhcp.MAC{}.String() + " declined"
	a.knows(t, map[string]string{"10.1.1.1": nobody, "10.1.1.2": nobody, "10.1.1.3": nobody})
	var held *dhcp.HeldError
	if err := a.leases.Commit(t.Context(), []dhcp.Lease{lease("10.1.1.1", 1), lease("10.1.1.4", 4)}); !errors.As(err, &held) || len(held.Held) != 1 {
		t.Errorf("Commit: %v, want the address to be held", err)
	}
	if kv, _, err := a.etcd.Get(t.Context(), "/pair-7/leases/guest-1/10.1.1.1"); err != nil || !strings.Contains(string(kv.Value), "newer") {
		t.Errorf("the record is overwritten: %s, %v", kv.Value, err)
	}
}

func TestTakenPasswordsAreKnownToBothRouters(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	server := etcdtest.Start(t, nstest.Here(t), address, nil)
	a, b := newSide(t, nil, nil).store.Passwords(), newSide(t, nil, nil).store.Passwords()
	if got, err := a.Get(t.Context(), "i-2-34-VM"); err != nil || got != nil {
		t.Errorf("Get = %q, %v", got, err)
	}
	if err := a.Put(t.Context(), "before", []byte("hash 0")); err != nil {
		t.Fatal(err)
	}
	told := make(chan string, 10)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- b.Follow(ctx, func(vm string, value []byte) { told <- fmt.Sprintf("%s %q", vm, value) }, func() { told <- "current" })
	}()
	expect := func(want ...string) {
		t.Helper()
		for _, want := range want {
			select {
			case got := <-told:
				if got != want {
					t.Errorf("told %s, want %s", got, want)
				}
			case <-time.After(waitTime):
				t.Fatalf("not told %s", want)
			}
		}
	}
	expect(`before "hash 0"`, "current")
	if err := a.Put(t.Context(), "i-2-34-VM", []byte("hash 1")); err != nil {
		t.Fatal(err)
	}
	expect(`i-2-34-VM "hash 1"`)
	if got, err := b.Get(t.Context(), "i-2-34-VM"); err != nil || string(got) != "hash 1" {
		t.Errorf("Get = %q, %v", got, err)
	}
	// What is there stays, and a record that is another one by now is not removed.
	if err := errors.Join(a.Restore(t.Context(), "i-2-34-VM", []byte("old")), a.Remove(t.Context(), "i-2-34-VM", []byte("old")), a.Put(t.Context(), "i-2-34-VM", []byte("hash 2"))); err != nil {
		t.Fatal(err)
	}
	expect(`i-2-34-VM "hash 2"`)
	for range 2 {
		if err := a.Remove(t.Context(), "i-2-34-VM", []byte("hash 2")); err != nil {
			t.Fatal(err)
		}
	}
	expect(`i-2-34-VM ""`)
	if err := b.Restore(t.Context(), "i-2-34-VM", []byte("hash 2")); err != nil {
		t.Fatal(err)
	}
	expect(`i-2-34-VM "hash 2"`)
	server.Stop(t)
	if err := <-ended; err == nil {
		t.Error("Follow ends without a reason")
	}
	cancel()
	if got, err := b.Get(t.Context(), "before"); err == nil {
		t.Errorf("Get without the store = %q", got)
	}
}

func TestPairsWithPrefixesOfTheirOwnDoNotMeet(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	etcdtest.Start(t, nstest.Here(t), address, nil)
	a := newSide(t, nil, nil)
	a.commit(t, lease("10.1.1.1", 1))
	other := newSide(t, nil, nil)
	other.store = shared.NewStore(shared.Options{KV: other.etcd, Prefix: "/pair-70"})
	other.leases = other.store.Leases(nil, nil)
	other.follow(t)
	other.commit(t, lease("10.1.1.1", 2))
	kvs, _, err := a.etcd.Range(t.Context(), "/pair")
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, kv := range kvs {
		keys = append(keys, kv.Key)
	}
	slices.Sort(keys)
	want := []string{"/pair-7/leases/guest-1/10.1.1.1", "/pair-70/epoch", "/pair-70/leases/guest-1/10.1.1.1"}
	if diff := cmp.Diff(want, keys); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
}
