package dhcp

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

var errAway = errors.New("the store is away")

// share makes the desk's store one that others have part in, and reachable or not.
func (d *desk) share(reachable bool) {
	d.table.shared = true
	d.table.current.Store(reachable)
}

// told is ask with the time that the client is told; 0 goes with a NAK or a silence.
func (d *desk) told(mac MAC, kind dhcpv4.MessageType, change ...dhcpv4.Modifier) (time.Duration, dhcpv4.MessageType, error) {
	d.t.Helper()
	reply, parsed, err := say(d.t, d.table, eth0, message(d.t, mac, kind, change...), func(p *Packet) { p.Time = d.now })
	if err != nil {
		return 0, dhcpv4.MessageTypeNone, err
	}
	if reply.Lease != nil {
		if err := d.store.Commit(context.Background(), []Lease{*reply.Lease}); err != nil {
			d.t.Fatal(err)
		}
		if reply.claim != nil && !reply.claim.stored(d.now) {
			d.t.Fatal("the lease does not hold")
		}
	}
	return parsed.IPAddressLeaseTime(0), reply.Type, nil
}

func TestSharedStoreKeepsAnAddressLongerThanItsClientIsTold(t *testing.T) {
	d := newDesk(t, poolNetwork(4))
	d.share(true)
	got := d.bind(stranger(1))
	if told, _, err := d.told(stranger(1), dhcpv4.MessageTypeRequest, using(got.String())); err != nil || told != time.Hour {
		t.Errorf("the client is told %v, %v; want an hour", told, err)
	}
	if stored := d.store.leases[leaseKey("guest-1", got)]; !stored.Expiry.Equal(noon.Add(90 * time.Minute)) {
		t.Errorf("the store keeps it until %v, want an hour and a half", stored.Expiry)
	}
	// Its own client is renewed within that time, and nobody else has the address.
	d.now = noon.Add(80 * time.Minute)
	if other := d.bind(stranger(2)); other == got {
		t.Errorf("%v is given to another client after %v", got, d.now.Sub(noon))
	}
	infinite := newDesk(t, poolNetwork(4, func(n *Network) { n.LeaseTime = Infinite }))
	infinite.share(true)
	got = infinite.bind(stranger(1))
	if stored := infinite.store.leases[leaseKey("guest-1", got)]; !stored.Expiry.IsZero() {
		t.Errorf("an infinite lease ends at %v", stored.Expiry)
	}
}

func TestWithoutTheSharedStoreLeasesAreRenewedWithinTheTimeThatIsStored(t *testing.T) {
	d := newDesk(t, poolNetwork(4))
	d.share(true)
	address := d.bind(stranger(1))
	d.share(false)
	d.store.fail = errAway // nothing may be committed
	for _, test := range []struct {
		after, want time.Duration
	}{{30 * time.Minute, time.Hour}, {60 * time.Minute, 30 * time.Minute}, {89*time.Minute + 59*time.Second, time.Second}} {
		d.now = noon.Add(test.after)
		for name, change := range map[string]dhcpv4.Modifier{"renewing": using(address.String()), "init-reboot": askFor(address.String())} {
			if told, kind, err := d.told(stranger(1), dhcpv4.MessageTypeRequest, change); kind != dhcpv4.MessageTypeAck || told != test.want {
				t.Errorf("%s after %v: %v, %v, %v; want %v", name, test.after, kind, told, err, test.want)
			}
		}
	}
	d.now = noon.Add(89*time.Minute + 59*time.Second + time.Millisecond)
	if _, kind, err := d.told(stranger(1), dhcpv4.MessageTypeRequest, using(address.String())); err != ErrStore {
		t.Errorf("with nothing left: %v, %v", kind, err)
	}
	// Not newly bound, and not refused: others may know better.
	for name, test := range map[string]struct {
		mac    MAC
		kind   dhcpv4.MessageType
		change []dhcpv4.Modifier
	}{
		"newcomer":                   {stranger(2), dhcpv4.MessageTypeDiscover, nil},
		"discover of a bound client": {stranger(1), dhcpv4.MessageTypeDiscover, nil},
		"selecting":                  {stranger(2), dhcpv4.MessageTypeRequest, []dhcpv4.Modifier{choose("10.1.1.1"), askFor("10.1.1.201")}},
		"unknown lease":              {stranger(2), dhcpv4.MessageTypeRequest, []dhcpv4.Modifier{using("10.1.1.203")}},
		"lease of another":           {stranger(2), dhcpv4.MessageTypeRequest, []dhcpv4.Modifier{askFor(address.String())}},
	} {
		if _, kind, err := d.told(test.mac, test.kind, test.change...); err != ErrStore {
			t.Errorf("%s: %v, %v; want %v", name, kind, err, ErrStore)
		}
	}
	if _, kind, err := d.told(web, dhcpv4.MessageTypeRequest, askFor("10.1.1.34")); kind != dhcpv4.MessageTypeAck {
		t.Errorf("known host: %v, %v", kind, err)
	}
	d.share(true)
	d.store.fail = nil
	d.bind(stranger(2))
}

func TestRenewalThatCannotBeCommittedIsAnsweredWithinTheTimeThatIsStored(t *testing.T) {
	d := newDesk(t, poolNetwork(4))
	d.share(true)
	address := d.bind(stranger(1))
	d.now = noon.Add(45 * time.Minute)
	s := &Server{table: d.table, shared: &pairStore{}, past: newHistory(), now: func() time.Time { return d.now }, log: slog.New(slog.DiscardHandler)}
	port := &port{}
	port.device.Store(eth0)
	waiting := func(mac MAC, change ...dhcpv4.Modifier) (*waitingACK, *claim) {
		t.Helper()
		p := Packet{Message: message(t, mac, dhcpv4.MessageTypeRequest, change...).ToBytes(), Destination: broadcastAddr, Time: d.now}
		reply, err := d.table.Answer(eth0, p, nil)
		if err != nil || reply.claim == nil {
			t.Fatalf("%+v, %v", reply, err)
		}
		return &waitingACK{port: port, reply: reply, mac: mac, packet: p}, reply.claim
	}
	renewing, first := waiting(stranger(1), using(address.String()))
	selecting, second := waiting(stranger(2), choose("10.1.1.1"), askFor("10.1.1.203"))
	s.storeFault(errAway, d.now)
	first.unstored(d.now)
	second.unstored(d.now)
	reply, ok := s.within(renewing, d.now)
	if !ok {
		t.Fatalf("the renewal gets no answer: %+v", s.Last(stranger(1)))
	}
	parsed, err := dhcpv4.FromBytes(reply.Message)
	if err != nil || parsed.MessageType() != dhcpv4.MessageTypeAck || parsed.IPAddressLeaseTime(0) != 45*time.Minute {
		t.Errorf("the renewal is answered %v, %v; want what is left of an hour and a half", parsed, err)
	}
	if reply, ok := s.within(selecting, d.now); ok {
		t.Errorf("a new lease that is not stored is acknowledged: %+v", reply)
	}
	if last := s.Last(stranger(2)); len(last) != 1 || last[0].Why != ErrStore.Error() {
		t.Errorf("what is told of the silence: %+v", last)
	}
}

// pairStore is a shared store as a test has it: what it tells and how it answers.
type pairStore struct {
	mu     sync.Mutex
	held   []Lease
	stored []Lease
	follow func(ctx context.Context, take func(Lease), current func()) error
}

func (p *pairStore) Commit(_ context.Context, leases []Lease) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range leases {
		if e := (&HeldError{Held: p.held}); !e.holds(&l) {
			p.stored = append(p.stored, l)
		}
	}
	if len(p.held) > 0 {
		return &HeldError{Held: p.held}
	}
	return nil
}

func (p *pairStore) Follow(ctx context.Context, take func(Lease), current func()) error {
	return p.follow(ctx, take, current)
}

func TestAddressThatAnotherServerGaveAwayIsNotGivenAgain(t *testing.T) {
	table := newTestTable(poolNetwork(2))
	address := addr("10.1.1.200")
	store := &pairStore{held: []Lease{{Network: "guest-1", IP: address, MAC: stranger(9), State: LeaseBound, Start: noon, Expiry: noon.Add(time.Hour)}}}
	s := NewServer(table, ServerOptions{Shared: store, Now: func() time.Time { return noon }})
	s.followed()
	p := func(mac MAC, change ...dhcpv4.Modifier) *waitingACK {
		packet := Packet{Message: message(t, mac, dhcpv4.MessageTypeRequest, change...).ToBytes(), Destination: broadcastAddr, Time: noon}
		reply, err := table.Answer(eth0, packet, nil)
		if err != nil {
			t.Fatal(err)
		}
		w := &waitingACK{port: &port{sender: new(sender)}, reply: reply, mac: mac}
		w.port.device.Store(eth0)
		w.port.sender.hold() // by the port
		w.port.sender.hold()
		table.queue.push(entry{lease: reply.Lease, claim: reply.claim, reply: w})
		return w
	}
	p(stranger(1), choose("10.1.1.1"), askFor(address.String()))
	s.commit(t.Context(), new(outbox))
	if last := s.Last(stranger(1)); len(last) != 1 || last[0].Answer != "" || last[0].Why != ErrHeld.Error() {
		t.Errorf("the second client: %+v", last)
	}
	if len(store.stored) != 0 || len(s.Faults()) != 0 {
		t.Errorf("stored %v, faults %v", store.stored, s.Faults())
	}
	// From here on this server knows whose it is.
	if b := table.Bindings("guest-1"); len(b) == 0 || b[len(b)-1].IP != address || b[len(b)-1].MAC != stranger(9) || b[len(b)-1].State != "bound" {
		t.Errorf("bindings %+v", b)
	}
	reply, _, err := say(t, table, eth0, message(t, stranger(1), dhcpv4.MessageTypeRequest, using(address.String())))
	if err != nil || reply.Type != dhcpv4.MessageTypeNak {
		t.Errorf("the second client asks again: %+v, %v", reply, err)
	}
}

func TestStandbyThatLagsBehindEndsNoLeaseOfTheOtherServer(t *testing.T) {
	table := newTestTable(poolNetwork(4))
	s := NewServer(table, ServerOptions{Shared: &pairStore{}, Now: func() time.Time { return noon }})
	s.followed()
	// Here the address and the MAC are those of a host still, or already.
	table.SetHost(&Host{Network: "guest-1", VM: "old", MAC: stranger(7), IP: addr("10.1.1.202")})
	for i, mac := range []MAC{stranger(1), stranger(7)} {
		table.load(Lease{Network: "guest-1", IP: addr("10.1.1.202").Prev(), MAC: mac, State: LeaseBound, Start: noon, Expiry: noon.Add(time.Hour)}, noon)
		table.load(Lease{Network: "guest-1", IP: addr("10.1.1.202"), MAC: mac, State: LeaseBound, Start: noon, Expiry: noon.Add(time.Hour)}, noon)
		if queued := table.queue.all(); len(queued) > 0 {
			t.Errorf("%d: %+v is to be stored", i, queued[0].lease)
		}
	}
	for _, b := range table.Bindings("guest-1") {
		if b.Pool && (b.IP == addr("10.1.1.202") || b.MAC == stranger(7)) {
			t.Errorf("%+v has a lease beside the host", b)
		}
	}
}

func TestServerFollowsTheSharedStore(t *testing.T) {
	table := newTestTable(poolNetwork(4))
	var mu sync.Mutex
	now := noon
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	type round struct {
		ctx     context.Context
		take    func(Lease)
		current func()
		end     chan error
	}
	rounds := make(chan round)
	store := &pairStore{follow: func(ctx context.Context, take func(Lease), current func()) error {
		r := round{ctx, take, current, make(chan error)}
		select {
		case rounds <- r:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case err := <-r.end:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
	s := NewServer(table, ServerOptions{Shared: store, Now: clock})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	ask := func(mac MAC, change ...dhcpv4.Modifier) (dhcpv4.MessageType, error) {
		reply, _, err := say(t, table, eth0, message(t, mac, dhcpv4.MessageTypeRequest, change...))
		if reply.claim != nil {
			reply.claim.stored(noon)
		}
		return reply.Type, err
	}

	r := <-rounds
	if kind, err := ask(stranger(1), using("10.1.1.201")); err != ErrStore {
		t.Errorf("before the store is known: %v, %v", kind, err)
	}
	theirs := Lease{Network: "guest-1", IP: addr("10.1.1.201"), MAC: stranger(1), State: LeaseBound, Start: noon.Add(-time.Hour), Expiry: noon.Add(time.Hour)}
	r.take(theirs)
	r.current()
	if kind, err := ask(stranger(1), using("10.1.1.201")); kind != dhcpv4.MessageTypeAck {
		t.Errorf("a lease of the other server: %v, %v", kind, err)
	}
	if kind, err := ask(stranger(2), using("10.1.1.201")); kind != dhcpv4.MessageTypeNak {
		t.Errorf("a lease of somebody else: %v, %v", kind, err)
	}
	// Clocks of two servers are not one: what the store says last counts.
	theirs.MAC, theirs.Start = stranger(3), noon.Add(-2*time.Hour)
	r.take(theirs)
	if kind, err := ask(stranger(3), using("10.1.1.201")); kind != dhcpv4.MessageTypeAck {
		t.Errorf("by a server whose clock is behind: %v, %v", kind, err)
	}

	r.end <- errAway
	again := <-rounds
	faults := s.Faults()
	if len(faults) != 1 || !errors.Is(faults[0].Err, errAway) || !faults[0].Since.Equal(noon) {
		t.Errorf("Faults() = %v", faults)
	}
	if kind, err := ask(stranger(2), using("10.1.1.201")); err != ErrStore {
		t.Errorf("while the store is away: %v, %v", kind, err)
	}
	again.take(Lease{Network: "guest-1", IP: theirs.IP, State: LeaseForgotten, Start: noon})
	again.current()
	if diff := cmp.Diff(0, len(s.Faults())); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
	if kind, err := ask(stranger(3), using("10.1.1.201")); kind != dhcpv4.MessageTypeNak {
		t.Errorf("what the other server ended: %v, %v", kind, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}
