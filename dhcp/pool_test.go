package dhcp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// memoryLeases is a store that forgets nothing, unless fail says so.
type memoryLeases struct {
	mu     sync.Mutex
	leases map[string]Lease
	fail   error
}

func leaseKey(network string, ip netip.Addr) string { return network + " " + ip.String() }

func (m *memoryLeases) Load(fn func(Lease) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	for _, l := range m.leases {
		if err := fn(l); err != nil {
			return err
		}
	}
	return nil
}

func (m *memoryLeases) Commit(_ context.Context, leases []Lease) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	if m.leases == nil {
		m.leases = make(map[string]Lease)
	}
	for _, l := range leases {
		if l.State == LeaseForgotten {
			delete(m.leases, leaseKey(l.Network, l.IP))
			continue
		}
		m.leases[leaseKey(l.Network, l.IP)] = l
	}
	return nil
}

var errDisk = errors.New("no space left on device")

// poolNetwork has a pool of as many addresses from 10.1.1.200 on.
func poolNetwork(size int, change ...func(*Network)) *Network {
	return guestNetwork(append([]func(*Network){func(n *Network) {
		n.Pool = &Pool{From: addr("10.1.1.200"), To: numberAddr(addrNumber(addr("10.1.1.200")) + uint32(size) - 1)}
		n.LeaseTime = time.Hour
	}}, change...)...)
}

// desk is a table with a store and a clock: a server without sockets.
type desk struct {
	t     testing.TB
	table *Table
	store *memoryLeases
	now   time.Time
}

func newDesk(t testing.TB, n *Network) *desk {
	d := &desk{t: t, store: &memoryLeases{}, now: noon}
	d.open(n)
	return d
}

// open starts anew with what is in the store, as after a crash.
func (d *desk) open(n *Network) {
	d.table = newTestTable(n)
	d.table.now = func() time.Time { return d.now }
	if err := d.store.Load(func(l Lease) error { d.table.load(l, d.now); return nil }); err != nil {
		d.t.Fatal(err)
	}
}

// flush commits what is queued beside acknowledgements.
func (d *desk) flush() {
	for _, e := range d.table.queue.all() {
		_ = d.store.Commit(context.Background(), []Lease{*e.lease}) // the test knows whether the store fails
	}
}

// ask returns the address of the answer and its type; silence is an error.
func (d *desk) ask(mac MAC, kind dhcpv4.MessageType, change ...dhcpv4.Modifier) (netip.Addr, dhcpv4.MessageType, error) {
	d.t.Helper()
	reply, _, err := say(d.t, d.table, eth0, message(d.t, mac, kind, change...), func(p *Packet) { p.Time = d.now })
	if reply.Lease == nil {
		return reply.Address, reply.Type, err
	}
	d.flush() // a server has one queue
	stored := d.store.Commit(context.Background(), []Lease{*reply.Lease})
	switch {
	case reply.claim == nil:
	case stored != nil:
		reply.claim.unstored(d.now)
		return netip.Addr{}, 0, ErrStore
	case !reply.claim.stored(d.now):
		d.flush()
		return netip.Addr{}, 0, ErrMoved
	}
	return reply.Address, reply.Type, err
}

// bind takes a client through DISCOVER and REQUEST.
func (d *desk) bind(mac MAC) netip.Addr {
	d.t.Helper()
	offered, kind, err := d.ask(mac, dhcpv4.MessageTypeDiscover)
	if err != nil || kind != dhcpv4.MessageTypeOffer {
		d.t.Fatalf("DISCOVER of %s: %v, %v", mac, kind, err)
	}
	got, kind, err := d.ask(mac, dhcpv4.MessageTypeRequest, choose("10.1.1.1"), askFor(offered.String()))
	if err != nil || kind != dhcpv4.MessageTypeAck || got != offered {
		d.t.Fatalf("REQUEST of %s for %s: %v, %v, %v", mac, offered, kind, got, err)
	}
	return got
}

func stranger(n int) MAC { return MAC{2, 0, 0, 0, byte(n >> 8), byte(n)} }

func TestPoolRemembersItsClients(t *testing.T) {
	d := newDesk(t, poolNetwork(3))
	first := d.bind(stranger(1))
	second := d.bind(stranger(2))
	if first == second {
		t.Fatalf("two clients have %v", first)
	}
	d.now = d.now.Add(2 * time.Hour) // both leases have run out
	if got := d.bind(stranger(3)); got == first || got == second {
		t.Errorf("a newcomer gets %v, which is remembered for another", got)
	}
	if got := d.bind(stranger(2)); got != second {
		t.Errorf("the second client gets %v after expiry, had %v", got, second)
	}
	if got := d.bind(stranger(4)); got != first {
		t.Errorf("with nothing else left a newcomer gets %v, want %v", got, first)
	}
	if _, _, err := d.ask(stranger(1), dhcpv4.MessageTypeDiscover); err != ErrExhausted {
		t.Errorf("the first client: %v, want %v", err, ErrExhausted)
	}
}

func TestOfferIsHeldForAWhile(t *testing.T) {
	d := newDesk(t, poolNetwork(1))
	if _, _, err := d.ask(stranger(1), dhcpv4.MessageTypeDiscover); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.ask(stranger(2), dhcpv4.MessageTypeDiscover); err != ErrExhausted {
		t.Errorf("while the offer is held: %v, want %v", err, ErrExhausted)
	}
	d.now = d.now.Add(offerHold)
	if _, _, err := d.ask(stranger(2), dhcpv4.MessageTypeDiscover); err != nil {
		t.Errorf("after that: %v", err)
	}
	if _, kind, err := d.ask(stranger(1), dhcpv4.MessageTypeRequest, choose("10.1.1.1"), askFor("10.1.1.200")); kind != dhcpv4.MessageTypeNak {
		t.Errorf("the late client gets %v, %v; want a NAK", kind, err)
	}
}

func TestChoosingAnotherServerFreesTheOffer(t *testing.T) {
	d := newDesk(t, poolNetwork(1))
	if _, _, err := d.ask(stranger(1), dhcpv4.MessageTypeDiscover); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.ask(stranger(1), dhcpv4.MessageTypeRequest, choose("10.1.1.2"), askFor("10.1.1.77")); err != ErrOtherServer {
		t.Fatal(err)
	}
	if got := d.bind(stranger(2)); got != addr("10.1.1.200") {
		t.Errorf("the next client gets %v", got)
	}
}

func TestPoolClientInEveryState(t *testing.T) {
	ack, nak := dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak
	request, other := dhcpv4.MessageTypeRequest, stranger(2)
	tests := map[string]struct {
		mac    MAC
		kind   dhcpv4.MessageType
		change []dhcpv4.Modifier
		want   dhcpv4.MessageType
		err    error
	}{
		"renew":                             {stranger(1), request, []dhcpv4.Modifier{using("10.1.1.200")}, ack, nil},
		"init-reboot":                       {stranger(1), request, []dhcpv4.Modifier{askFor("10.1.1.200")}, ack, nil},
		"renew of another's":                {other, request, []dhcpv4.Modifier{using("10.1.1.200")}, nak, nil},
		"init-reboot with another's":        {other, request, []dhcpv4.Modifier{askFor("10.1.1.200")}, nak, nil},
		"init-reboot, never had one":        {other, request, []dhcpv4.Modifier{askFor("10.1.1.201")}, nak, nil},
		"init-reboot with a host's address": {other, request, []dhcpv4.Modifier{askFor("10.1.1.34")}, nak, nil},
		"init-reboot, other subnet":         {other, request, []dhcpv4.Modifier{askFor("192.168.7.7")}, nak, nil},
		"renew, other subnet":               {other, request, []dhcpv4.Modifier{using("192.168.7.7")}, 0, ErrWrongNet},
		"selecting a forgotten offer":       {other, request, []dhcpv4.Modifier{choose("10.1.1.1"), askFor("10.1.1.203")}, ack, nil},
		"selecting what is taken":           {other, request, []dhcpv4.Modifier{choose("10.1.1.1"), askFor("10.1.1.200")}, nak, nil},
		"selecting the gateway":             {other, request, []dhcpv4.Modifier{choose("10.1.1.1"), askFor("10.1.1.1")}, nak, nil},
		"inform":                            {other, dhcpv4.MessageTypeInform, []dhcpv4.Modifier{using("10.1.1.77")}, ack, nil},
		"release of another's":              {other, dhcpv4.MessageTypeRelease, []dhcpv4.Modifier{choose("10.1.1.1"), using("10.1.1.200")}, 0, ErrNotHolder},
		"decline of another's":              {other, dhcpv4.MessageTypeDecline, []dhcpv4.Modifier{choose("10.1.1.1"), askFor("10.1.1.200")}, 0, ErrNotHolder},
		"release":                           {stranger(1), dhcpv4.MessageTypeRelease, []dhcpv4.Modifier{choose("10.1.1.1"), using("10.1.1.200")}, 0, ErrNoReply},
		"decline":                           {stranger(1), dhcpv4.MessageTypeDecline, []dhcpv4.Modifier{choose("10.1.1.1"), askFor("10.1.1.200")}, 0, ErrNoReply},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, poolNetwork(8))
			if got := d.bind(stranger(1)); got != addr("10.1.1.200") {
				t.Fatalf("first client has %v", got)
			}
			_, kind, err := d.ask(test.mac, test.kind, test.change...)
			if kind != test.want || err != test.err {
				t.Errorf("answer = %v, %v; want %v, %v", kind, err, test.want, test.err)
			}
		})
	}
}

func TestReservationTakesAPoolAddressAtOnce(t *testing.T) {
	states := map[string][]dhcpv4.Modifier{
		"renew":       {using("10.1.1.200")},
		"init-reboot": {askFor("10.1.1.200")},
		"selecting":   {choose("10.1.1.1"), askFor("10.1.1.200")},
	}
	for name, state := range states {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, poolNetwork(2))
			d.bind(stranger(1))
			d.table.SetHost(&Host{Network: "guest-1", MAC: nobody, IP: addr("10.1.1.200"), Default: true})
			if got, _, err := d.ask(nobody, dhcpv4.MessageTypeDiscover); err != nil || got != addr("10.1.1.200") {
				t.Errorf("the host is offered %v, %v", got, err)
			}
			if _, kind, err := d.ask(stranger(1), dhcpv4.MessageTypeRequest, state...); kind != dhcpv4.MessageTypeNak {
				t.Errorf("the former holder gets %v, %v; want a NAK", kind, err)
			}
			if got := d.bind(stranger(1)); got != addr("10.1.1.201") {
				t.Errorf("then it gets %v", got)
			}
			d.flush()
			d.table.RemoveHost("guest-1", nobody)
			if _, kind, err := d.ask(stranger(1), dhcpv4.MessageTypeRequest, using("10.1.1.200")); kind != dhcpv4.MessageTypeNak {
				t.Errorf("the lease came back to life: %v, %v", kind, err)
			}
			if got := d.bind(stranger(2)); got != addr("10.1.1.200") {
				t.Errorf("the address is free again, a newcomer gets %v", got)
			}
		})
	}
}

func TestClientThatBecomesAHostLosesItsPoolLease(t *testing.T) {
	d := newDesk(t, poolNetwork(1))
	d.bind(stranger(1))
	d.table.SetHost(&Host{Network: "guest-1", MAC: stranger(1), IP: addr("10.1.1.50"), Default: true})
	if _, kind, err := d.ask(stranger(1), dhcpv4.MessageTypeRequest, using("10.1.1.200")); kind != dhcpv4.MessageTypeNak {
		t.Errorf("renewal of the pool lease: %v, %v; want a NAK", kind, err)
	}
	if got := d.bind(stranger(2)); got != addr("10.1.1.200") {
		t.Errorf("next client gets %v", got)
	}
}

func TestDeclinedAddressesAreQuarantinedUpToHalfThePool(t *testing.T) {
	d := newDesk(t, poolNetwork(4))
	var declined []netip.Addr
	for range 3 {
		got := d.bind(stranger(1))
		if slices.Contains(declined, got) {
			t.Fatalf("%v is given again right after it was declined", got)
		}
		if _, _, err := d.ask(stranger(1), dhcpv4.MessageTypeDecline, choose("10.1.1.1"), askFor(got.String())); err != ErrNoReply {
			t.Fatal(err)
		}
		declined = append(declined, got)
	}
	use, _ := d.table.PoolUse("guest-1")
	if want := (PoolUse{Total: 4, Declined: 2}); use != want {
		t.Errorf("PoolUse() = %+v, want %+v", use, want)
	}
	d.flush()
	d.open(poolNetwork(4)) // quarantine outlives a restart
	if use, _ := d.table.PoolUse("guest-1"); use.Declined < 2 {
		t.Errorf("after a restart PoolUse() = %+v", use)
	}
	d.now = d.now.Add(quarantine)
	if use, _ := d.table.PoolUse("guest-1"); use.Declined != 0 {
		t.Errorf("after an hour PoolUse() = %+v", use)
	}
}

func TestClonesWithOneClientIDGetTheirOwnAddresses(t *testing.T) {
	d := newDesk(t, poolNetwork(4))
	id := dhcpv4.WithGeneric(dhcpv4.OptionClientIdentifier, []byte{255, 1, 2, 3, 4, 0, 2, 9, 9})
	first, _, err := d.ask(stranger(1), dhcpv4.MessageTypeDiscover, id)
	if err != nil {
		t.Fatal(err)
	}
	second, _, err := d.ask(stranger(2), dhcpv4.MessageTypeDiscover, id)
	if err != nil || first == second {
		t.Errorf("clones get %v and %v, %v", first, second, err)
	}
}

func TestRapidCommitBindsAtOnceWhereTheNetworkAllowsIt(t *testing.T) {
	rapid := dhcpv4.WithGeneric(dhcpv4.OptionRapidCommit, nil)
	allowed := newDesk(t, poolNetwork(4, func(n *Network) { n.RapidCommit = true }))
	for _, mac := range []MAC{web, stranger(1)} {
		_, parsed, err := say(t, allowed.table, eth0, message(t, mac, dhcpv4.MessageTypeDiscover, rapid))
		if err != nil || parsed.MessageType() != dhcpv4.MessageTypeAck || !parsed.Options.Has(dhcpv4.OptionRapidCommit) {
			t.Errorf("%s: %v, %v", mac, parsed, err)
		}
	}
	if _, kind, err := newDesk(t, poolNetwork(4)).ask(stranger(1), dhcpv4.MessageTypeDiscover, rapid); kind != dhcpv4.MessageTypeOffer {
		t.Errorf("not allowed: %v, %v", kind, err)
	}
}

func TestFailedWriteStopsPoolLeasesOnly(t *testing.T) {
	d := newDesk(t, poolNetwork(4))
	renewing := d.bind(stranger(1))
	d.store.fail = errDisk
	if _, _, err := d.ask(stranger(2), dhcpv4.MessageTypeDiscover); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.ask(stranger(2), dhcpv4.MessageTypeRequest, choose("10.1.1.1"), askFor("10.1.1.201")); err != ErrStore {
		t.Errorf("new lease: %v, want %v", err, ErrStore)
	}
	if _, _, err := d.ask(stranger(1), dhcpv4.MessageTypeRequest, using(renewing.String())); err != ErrStore {
		t.Errorf("renewal: %v, want %v", err, ErrStore)
	}
	d.bind(web)
	d.store.fail = nil
	if got := d.bind(stranger(2)); got != addr("10.1.1.201") {
		t.Errorf("when the disk is back the client gets %v", got)
	}
	// The renewal that failed did not make the lease longer than what is stored.
	d.now = d.now.Add(30 * time.Minute)
	d.store.fail = errDisk
	_, _, _ = d.ask(stranger(1), dhcpv4.MessageTypeRequest, using(renewing.String()))
	for _, b := range d.table.Bindings("guest-1") {
		if b.IP == renewing && !b.Expiry.Equal(noon.Add(time.Hour)) {
			t.Errorf("expiry = %v, want %v", b.Expiry, noon.Add(time.Hour))
		}
	}
}

func TestUnknownLeasesKeepThePoolSilent(t *testing.T) {
	d := newDesk(t, poolNetwork(4))
	server := NewServer(d.table, ServerOptions{Leases: d.store, Now: func() time.Time { return d.now }})
	d.store.fail = errDisk
	server.readLeases()
	if _, _, err := d.ask(stranger(1), dhcpv4.MessageTypeRequest, using("10.1.1.200")); err != ErrStore {
		t.Errorf("with unreadable leases: %v, want %v", err, ErrStore)
	}
	if _, _, err := d.ask(web, dhcpv4.MessageTypeDiscover); err != nil {
		t.Errorf("known host: %v", err)
	}
	if faults := server.Faults(); len(faults) != 1 || !errors.Is(faults[0].Err, errDisk) {
		t.Errorf("Faults() = %v", faults)
	}
	d.store.fail = nil
	server.readLeases()
	d.bind(stranger(1))
	if faults := server.Faults(); len(faults) != 0 {
		t.Errorf("Faults() = %v", faults)
	}
}

func TestAddressesAreProbedBeforeTheyAreOffered(t *testing.T) {
	d := newDesk(t, poolNetwork(3, func(n *Network) { n.Pool.Probe = true }))
	pool := d.table.scope("guest-1").pool
	if _, _, err := d.ask(stranger(1), dhcpv4.MessageTypeDiscover); err != ErrProbing {
		t.Fatalf("before any probe: %v, want %v", err, ErrProbing)
	}
	targets := pool.probes(probeBatch, d.now)
	if len(targets) != 3 {
		t.Fatalf("probes() = %v, want the whole pool", targets)
	}
	squatter := MAC{2, 0, 0, 0, 9, 9}
	for i, target := range targets {
		holder := MAC{}
		if i == 0 {
			holder = squatter
		}
		if got := pool.probed(target.addr, holder, d.now); got != (i == 0) {
			t.Errorf("probed(%v) = %v", numberAddr(target.addr), got)
		}
	}
	got := d.bind(stranger(1))
	if got == numberAddr(targets[0].addr) {
		t.Errorf("%v is given though somebody has it", got)
	}
	if again := pool.probes(probeBatch, d.now); len(again) != 0 {
		t.Errorf("probes again: %v", again)
	}

	// A lease that ran out is probed before even its own client has it again; the client may answer.
	d.now = d.now.Add(2 * time.Hour)
	if _, _, err := d.ask(stranger(1), dhcpv4.MessageTypeDiscover); err != ErrProbing {
		t.Fatalf("after expiry: %v, want %v", err, ErrProbing)
	}
	targets = pool.probes(probeBatch, d.now)
	if len(targets) == 0 || numberAddr(targets[0].addr) != got {
		t.Fatalf("probes() = %v, want %v first", targets, got)
	}
	for _, target := range targets {
		pool.probed(target.addr, target.mac, d.now)
	}
	if again := d.bind(stranger(1)); again != got {
		t.Errorf("gets %v, had %v", again, got)
	}
}

func TestLeasesFollowTheClockThatRuns(t *testing.T) {
	d := newDesk(t, poolNetwork(1))
	start := time.Now() // with a monotonic reading, as a server's clock has it
	d.now = start
	d.bind(stranger(1))
	lease := d.store.leases["guest-1 10.1.1.200"]
	if got := lease.Expiry.Sub(start); got != time.Hour {
		t.Errorf("expiry is in %v", got)
	}
	// A restart knows the wall clock only.
	record, err := lease.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if err := lease.UnmarshalBinary(record); err != nil {
		t.Fatal(err)
	}
	d.store.leases["guest-1 10.1.1.200"] = lease
	d.now = start.Add(59 * time.Minute)
	d.open(poolNetwork(1))
	if _, _, err := d.ask(stranger(2), dhcpv4.MessageTypeDiscover); err != ErrExhausted {
		t.Errorf("before the end: %v, want %v", err, ErrExhausted)
	}
	d.now = start.Add(61 * time.Minute)
	if _, _, err := d.ask(stranger(2), dhcpv4.MessageTypeDiscover); err != nil {
		t.Errorf("after the end: %v", err)
	}
}

func TestReleasedByTheOperator(t *testing.T) {
	d := newDesk(t, poolNetwork(1))
	server := NewServer(d.table, ServerOptions{Leases: d.store, Now: func() time.Time { return d.now }})
	server.readLeases()
	d.bind(stranger(1))
	ctx, cancel := context.WithCancel(t.Context())
	var journal sync.WaitGroup
	journal.Go(func() { server.runJournal(ctx) })
	defer journal.Wait()
	defer cancel()
	if err := server.ReleaseLease(ctx, "", addr("10.1.1.200")); err != nil {
		t.Fatal(err)
	}
	if err := server.ReleaseLease(ctx, "", addr("10.1.1.200")); err != ErrNoLease {
		t.Errorf("a second time: %v, want %v", err, ErrNoLease)
	}
	if _, kind, err := d.ask(stranger(1), dhcpv4.MessageTypeRequest, using("10.1.1.200")); kind != dhcpv4.MessageTypeNak {
		t.Errorf("the client gets %v, %v; want a NAK", kind, err)
	}
	if _, ok := d.store.leases["guest-1 10.1.1.200"]; ok {
		t.Error("the record is still there")
	}
}

// TestNoAddressIsGivenToTwo plays random conversations of clients, hosts that come and go, failing writes
// and crashes against a model: whoever was acknowledged holds the address until its lease ends, the client
// gives it up, is refused, or a host takes it.
func TestNoAddressIsGivenToTwo(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			n := poolNetwork(6)
			d := newDesk(t, n)
			type holding struct {
				mac MAC
				end time.Time
			}
			held := map[netip.Addr]holding{}
			hosts := map[netip.Addr]bool{}
			drop := func(mac MAC) { maps.DeleteFunc(held, func(_ netip.Addr, h holding) bool { return h.mac == mac }) }
			acked := func(mac MAC, ip netip.Addr, step int) {
				if h, ok := held[ip]; ok && h.mac != mac && h.end.After(d.now) {
					t.Fatalf("step %d: %v is given to %s while %s holds it until %v", step, ip, mac, h.mac, h.end)
				}
				if hosts[ip] {
					t.Fatalf("step %d: %v is a host's and given to %s", step, ip, mac)
				}
				drop(mac)
				held[ip] = holding{mac, d.now.Add(n.LeaseTime)}
			}
			for step := range 3000 {
				mac := stranger(random.IntN(9))
				ip := numberAddr(addrNumber(addr("10.1.1.200")) + uint32(random.IntN(6)))
				switch random.IntN(14) {
				case 0, 1, 2, 3:
					offered, _, err := d.ask(mac, dhcpv4.MessageTypeDiscover, askFor(ip.String()))
					if err != nil || random.IntN(5) == 0 {
						continue
					}
					if got, kind, err := d.ask(mac, dhcpv4.MessageTypeRequest, choose("10.1.1.1"), askFor(offered.String())); err == nil && kind == dhcpv4.MessageTypeAck {
						acked(mac, got, step)
					}
				case 4, 5, 6:
					state := []dhcpv4.Modifier{using(ip.String())}
					if random.IntN(2) == 0 {
						state = []dhcpv4.Modifier{askFor(ip.String())}
					}
					got, kind, err := d.ask(mac, dhcpv4.MessageTypeRequest, state...)
					switch {
					case err == nil && kind == dhcpv4.MessageTypeAck:
						acked(mac, got, step)
					case err == nil && kind == dhcpv4.MessageTypeNak && held[ip].mac == mac:
						if h := held[ip]; h.end.After(d.now) {
							t.Fatalf("step %d: %s is refused its own %v", step, mac, ip)
						}
					}
				case 7:
					if _, _, err := d.ask(mac, dhcpv4.MessageTypeRelease, choose("10.1.1.1"), using(ip.String())); err == ErrNoReply {
						drop(mac)
					}
				case 8:
					if _, _, err := d.ask(mac, dhcpv4.MessageTypeDecline, choose("10.1.1.1"), askFor(ip.String())); err == ErrNoReply {
						drop(mac)
					}
				case 9:
					d.table.SetHost(&Host{Network: "guest-1", MAC: nobody, IP: ip})
					clear(hosts)
					hosts[ip] = true
					delete(held, ip)
				case 10:
					d.table.RemoveHost("guest-1", nobody)
					clear(hosts)
				case 11:
					d.now = d.now.Add(time.Duration(random.IntN(40)) * time.Minute)
				case 12:
					if d.store.fail = nil; random.IntN(3) == 0 {
						d.store.fail = errDisk
					}
				case 13:
					d.store.fail = nil
					d.open(n) // a crash: what was queued is lost, what was acknowledged is not
					for ip := range hosts {
						d.table.SetHost(&Host{Network: "guest-1", MAC: nobody, IP: ip})
					}
				}
				if random.IntN(3) == 0 {
					d.flush()
				}
			}
		})
	}
}

func TestSelectingIsAnsweredThroughARelayedPool(t *testing.T) {
	table := NewTable()
	table.SetNetwork(&Network{Name: "far", Subnet: netip.MustParsePrefix("10.9.0.0/24"), Gateway: addr("10.9.0.1"),
		ServerID: addr("192.0.2.1"), Relay: true, Pool: &Pool{From: addr("10.9.0.100"), To: addr("10.9.0.101"), Probe: true}})
	d := &Device{Index: 2, Name: "eth0", MTU: 1500, Networks: []string{"far"}}
	relayed := func(m *dhcpv4.DHCPv4) { m.GatewayIPAddr = net.IP{10, 9, 0, 1} }
	reply, _, err := say(t, table, d, message(t, nobody, dhcpv4.MessageTypeDiscover, relayed))
	if err != nil || reply.Address != addr("10.9.0.100") || reply.To.String() != "10.9.0.1:67" || reply.Link != (MAC{}) {
		t.Errorf("reply = %+v, %v", reply, err)
	}
}

func TestReleaseWithoutAServerIdentifierEndsTheLease(t *testing.T) {
	d := newDesk(t, poolNetwork(1))
	d.bind(stranger(1))
	d.ask(stranger(1), dhcpv4.MessageTypeRelease, using("10.1.1.200"), dhcpv4.WithoutOption(dhcpv4.OptionServerIdentifier))
	if got := d.bind(stranger(2)); got != addr("10.1.1.200") {
		t.Errorf("after the release of systemd-networkd the only address goes to nobody: %v", got)
	}
}
