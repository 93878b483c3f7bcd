package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// retryAfter is how long the server waits before it tries again what it could not open.
const retryAfter = time.Second

// ServerOptions are what a Server can be given. All may be left out.
type ServerOptions struct {
	Logger *slog.Logger     // nil discards
	Now    func() time.Time // nil is time.Now
	// Leases is the stable storage of pool leases; without it, and without Shared, pools serve nobody.
	Leases Leases
	// Sockets opens the sockets that clients are heard on; nil: they end with the process.
	Sockets Sockets
	// Shared is there instead of Leases where other servers write to the storage as well.
	Shared SharedLeases
}

// Server answers the clients of guest devices from a Table. Its methods are safe for concurrent use.
type Server struct {
	table   *Table
	log     *slog.Logger
	now     func() time.Time
	leases  Leases
	sockets Sockets
	shared  SharedLeases // nil is not shared
	past    *history
	inbox   sync.Pool
	count   counters
	wake    chan struct{} // a port needs its prober
	started chan struct{}
	quiet   quiet

	// Workers never take mu: it is held while a socket is closed, which waits for its worker.
	mu         sync.Mutex
	running    bool
	serving    bool           // the leases have been read
	wanted     map[int]Device // by index; those with networks only
	open       map[int]*port
	faults     map[int]Fault // by index
	storeErr   error         // why leases cannot be read or stored
	storeSince time.Time
	followErr  error // why the shared store cannot be followed
	followFrom time.Time
	followTold time.Time      // when it was logged
	tasks      sync.WaitGroup // of ports
}

// Fault is something that keeps guests from being served; the server tries again by itself.
type Fault struct {
	Device string // empty where it concerns the store of leases
	Since  time.Time
	Err    error
}

// port is an open device.
type port struct {
	device   atomic.Pointer[Device]
	listener *listener
	sender   *sender
	limit    limiter
	prober   prober
	closed   chan struct{} // closes when no more is to be received
	over     chan struct{} // closes when no more will be
}

// NewServer returns a server that answers from t once it runs.
func NewServer(t *Table, opts ServerOptions) *Server {
	s := &Server{
		table: t, log: opts.Logger, now: opts.Now, leases: opts.Leases, sockets: opts.Sockets, shared: opts.Shared, past: newHistory(),
		inbox:  sync.Pool{New: func() any { return newInbox() }},
		wanted: make(map[int]Device), open: make(map[int]*port), faults: make(map[int]Fault),
		quiet: quiet{logged: make(map[string]*backoff)}, wake: make(chan struct{}, 1), started: make(chan struct{}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.sockets == nil {
		s.sockets = ownSockets{}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now = s.now
	t.leasesKnown.Store(false)
	t.shared = s.shared != nil
	return s
}

// SetDevices says what the devices look like now. Once the server has started, devices that are new and have
// networks are served when SetDevices returns, those that vanished or have no networks left are not any
// more, and the rest is left alone. A known name with a new index is another device. What cannot be
// opened is logged, stands in Faults and is tried again. Calling it again with the same devices does
// nothing.
func (s *Server) SetDevices(devices []Device) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted = make(map[int]Device, len(devices))
	for _, d := range devices {
		if len(d.Networks) > 0 {
			s.wanted[d.Index] = d
		}
	}
	for index := range s.faults {
		if _, ok := s.wanted[index]; !ok {
			delete(s.faults, index)
		}
	}
	if s.serving {
		s.reconcile()
	}
}

// Started closes once Run has read the leases, or has found that it cannot, and serves the devices that
// it was told of before.
func (s *Server) Started() <-chan struct{} { return s.started }

// Run reads the leases and serves until ctx ends, then answers what has been received, commits what
// waits, closes all sockets and returns nil. It is called once.
func (s *Server) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.running {
		s.mu.Unlock()
		return errors.New("dhcp server runs already")
	}
	s.running = true
	s.mu.Unlock()

	s.readLeases() // before the first client is heard, who may be a stranger
	s.takeOffers()
	s.mu.Lock()
	s.serving = true
	s.reconcile()
	s.mu.Unlock()
	close(s.started)
	journalCtx, endJournal := context.WithCancel(context.WithoutCancel(ctx))
	defer endJournal()
	var journal sync.WaitGroup
	journal.Go(func() { s.runJournal(journalCtx) })
	if s.shared != nil {
		journal.Go(func() { s.runFollow(ctx) })
	}

	retry := time.NewTicker(retryAfter)
	defer retry.Stop()
	wall := &clock{s.now()}
	for {
		select {
		case <-ctx.Done():
			s.mu.Lock()
			s.serving = false
			for index := range s.open {
				s.shut(index)
			}
			s.mu.Unlock()
			s.tasks.Wait() // nothing adds to the journal any more
			s.leaveOffers()
			endJournal()
			journal.Wait()
			return nil
		case <-retry.C:
		case <-s.wake:
		}
		s.readLeases()
		s.followClock(wall)
		s.mu.Lock()
		s.reconcile()
		s.mu.Unlock()
	}
}

// readLeases loads the leases unless that has been done. Until then no stranger is answered: the server
// does not know whose the addresses are.
func (s *Server) readLeases() {
	if s.leases == nil || s.table.leasesKnown.Load() {
		return
	}
	err := s.ReloadLeases()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && (s.storeErr == nil || s.storeErr.Error() != err.Error()) {
		s.log.Error("pool leases cannot be read: pools are not served, known hosts are", "reason", err)
		s.storeSince = s.now()
	}
	s.storeErr = err
}

// ReloadLeases takes what the store knows that the server does not. Run does so by itself when it starts.
func (s *Server) ReloadLeases() error {
	if s.leases == nil {
		return errNoStore
	}
	now := s.now()
	if err := s.leases.Load(func(l Lease) error { s.table.load(l, now); return nil }); err != nil {
		return fmt.Errorf("read leases: %w", err)
	}
	s.table.leasesKnown.Store(true)
	return nil
}

// reconcile makes the open ports those that are wanted. The caller holds s.mu.
func (s *Server) reconcile() {
	for index := range s.open {
		if _, ok := s.wanted[index]; !ok {
			s.shut(index)
			s.sockets.Drop(socketName(index))
		}
	}
	for index, d := range s.wanted {
		if p, ok := s.open[index]; ok {
			if !sameDevice(p.device.Load(), &d) {
				p.device.Store(&d)
			}
			continue
		}
		if err := s.openPort(d); err != nil {
			s.fault(d, err)
			continue
		}
		delete(s.faults, index)
	}
	for index, p := range s.open {
		if !p.prober.started.Load() && s.table.probes(p.device.Load()) {
			p.prober.started.Store(true)
			s.tasks.Go(func() { s.runProber(index, p) })
		}
	}
}

func sameDevice(a, b *Device) bool {
	if a.Name != b.Name || a.HardwareAddr != b.HardwareAddr || a.MTU != b.MTU || len(a.Networks) != len(b.Networks) {
		return false
	}
	for i := range a.Networks {
		if a.Networks[i] != b.Networks[i] {
			return false
		}
	}
	return true
}

// fault keeps the reason why a device is not served, and logs it when it is news. The caller holds s.mu.
func (s *Server) fault(d Device, err error) {
	old, known := s.faults[d.Index]
	fault := Fault{Device: d.Name, Since: s.now(), Err: err}
	if known {
		fault.Since = old.Since
	}
	s.faults[d.Index] = fault
	if !known || old.Err.Error() != err.Error() {
		s.log.Error("guests of a device are not served", "device", d.Name, "reason", err)
	}
}

// openPort opens a device and starts to serve it. The caller holds s.mu.
func (s *Server) openPort(d Device) error {
	l, err := s.listen(d.Name, d.Index)
	if err != nil {
		return err
	}
	out, err := openSender(d.Name, d.Index)
	if err != nil {
		err = errors.Join(err, l.close())
		s.sockets.Drop(socketName(d.Index))
		return err
	}
	p := &port{listener: l, sender: out, closed: make(chan struct{}), over: make(chan struct{}), prober: newProber()}
	p.device.Store(&d)
	s.open[d.Index] = p
	s.tasks.Go(func() { s.serve(d.Index, p) })
	s.log.Info("serving DHCP", "device", d.Name, "networks", d.Networks)
	return nil
}

// shut closes a device; its goroutine ends by itself. The caller holds s.mu.
func (s *Server) shut(index int) {
	p := s.open[index]
	delete(s.open, index)
	close(p.closed)
	s.count.dropped.Add(p.listener.drops())
	if err := p.listener.close(); err != nil {
		s.log.Warn("closing a socket", "device", p.device.Load().Name, "reason", err)
	}
	close(p.over)
	p.sender.release()
	s.log.Info("no longer serving DHCP", "device", p.device.Load().Name)
}

// serve answers what comes in on a port until its listener is closed.
func (s *Server) serve(index int, p *port) {
	p.sender.hold()
	defer p.sender.release()
	work := &worker{server: s, port: p, out: outbox{index: index}}
	err := p.listener.wait(work.take)
	if errors.Is(err, net.ErrClosed) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[index] == p {
		s.shut(index)
		s.sockets.Drop(socketName(index))
		if d, ok := s.wanted[index]; ok {
			s.fault(d, fmt.Errorf("receive: %w", err))
		}
	}
}

// worker is what the goroutine of one port works with.
type worker struct {
	server  *Server
	port    *port
	out     outbox
	answers answerer
	request request
	pace    pace
}

// take receives what waits, if anything does, and answers it. The buffers are borrowed for the time being,
// so that memory follows the devices that have something to say, not the number of devices.
//
// Most of what a lone datagram costs is being woken up for it, so where they come fast some are let gather,
// as network cards do. The pause is a timer's: a thread that waits in a system call for so short a time
// keeps the runtime busy with taking its processor away and giving it back.
func (w *worker) take(fd int) error {
	in := w.server.inbox.Get().(*inbox)
	defer w.server.inbox.Put(in)
	for {
		n, err := in.receive(fd)
		if err != nil {
			return err
		}
		now := w.server.now()
		w.answerBatch(in, n, now)
		select {
		case <-w.port.closed:
			return nil
		default:
		}
		if n >= gathered || !w.pace.busy(n, now) {
			continue
		}
		time.Sleep(gatherFor)
	}
}

const (
	// gathered are enough datagrams at once that the next ones need not gather.
	gathered = 16
	// gatherFor is how long datagrams gather: the runtime's timers are no finer, and clients wait a thousand
	// times longer.
	gatherFor = time.Millisecond

	paceWindow = 8 * time.Millisecond
	paceFast   = 32 // datagrams in a window: 4,000 a second
)

// pace tells whether datagrams come so fast that it is worth to let some gather.
type pace struct {
	since time.Time
	count int
	fast  bool
}

// busy counts n datagrams and reports whether the last window had many.
func (p *pace) busy(n int, now time.Time) bool {
	p.count += n
	if passed := now.Sub(p.since); passed >= paceWindow || passed < 0 {
		p.fast = p.count >= paceFast && passed < 2*paceWindow
		p.since, p.count = now, 0
	}
	return p.fast
}

// answerBatch answers n datagrams that were received now.
func (w *worker) answerBatch(in *inbox, n int, now time.Time) {
	device := w.port.device.Load()
	for i := range n {
		packet, ok := in.packet(i)
		if !ok {
			w.server.count.add(dhcpv4.MessageTypeNone, outcomeInvalid)
			continue
		}
		packet.Time = now
		w.answer(device, &packet)
	}
	w.flush(device)
}

func (w *worker) answer(device *Device, packet *Packet) {
	s, r := w.server, &w.request
	if err := r.parse(packet.Message); err != nil {
		s.count.add(dhcpv4.MessageTypeNone, outcomeInvalid)
		return
	}
	if !w.port.limit.allow(r.mac, packet.Time) {
		s.count.add(r.kind, outcomeLimited)
		return
	}
	w.respond(device, packet)
}

// respond answers the parsed request: at once, or through the journal, or when the probe of an address is
// done.
func (w *worker) respond(device *Device, packet *Packet) {
	s, r := w.server, &w.request
	reply, err := s.table.answer(&w.answers, r, device, packet, w.out.next())
	if err == ErrProbing && w.port.prober.wait(r.mac, packet) {
		if !w.port.prober.started.Load() { // the network has a pool since a moment ago
			select {
			case s.wake <- struct{}{}:
			default:
			}
		}
		return // it is heard again
	}
	e := newExchange(device, r, packet, &reply, err)
	switch {
	case reply.claim != nil:
		reply.Message = append([]byte(nil), reply.Message...)
		w.port.sender.hold()
		waiting := &waitingACK{port: w.port, reply: reply, exchange: e, mac: r.mac}
		if s.shared != nil {
			waiting.packet = *packet
			waiting.packet.Message = append([]byte(nil), packet.Message...)
		}
		if !s.table.queue.push(entry{lease: reply.Lease, claim: reply.claim, reply: waiting}) {
			reply.claim.unstored(packet.Time)
			s.settle(waiting, ErrStore)
			w.port.sender.release()
		}
		return
	case reply.Lease != nil:
		s.table.queue.add(reply.Lease)
	}
	s.note(r.mac, &e)
	if err == nil && w.out.add(&reply) {
		w.flush(device)
	}
}

func (w *worker) flush(device *Device) { w.server.flush(w.port, device, &w.out) }

// flush sends what an outbox holds.
func (s *Server) flush(p *port, device *Device, out *outbox) {
	if out.count == 0 {
		return
	}
	if lost, err := out.flush(p.sender); lost > 0 {
		s.count.unsent.Add(uint64(lost))
		s.log.Debug("replies were not sent", "device", device.Name, "count", lost, "reason", err)
	}
}

// newExchange puts what came of a request into a form that keeps nothing of the packet.
func newExchange(device *Device, r *request, p *Packet, reply *Reply, err error) exchange {
	e := exchange{time: p.Time, state: stateOf(r, p), network: reply.Network, device: device.Name, message: r.kind, answer: reply.Type,
		address: reply.Address, why: reply.Why}
	if err != nil {
		e.silent, e.why = true, err
	}
	if !e.address.IsValid() {
		if e.address = r.ciaddr; !e.address.IsValid() {
			e.address = r.requestedIP
		}
	}
	return e
}

// settle notes what came of a request whose lease was committed, or was not.
func (s *Server) settle(w *waitingACK, err error) {
	if err != nil {
		w.exchange.silent, w.exchange.why = true, err
	}
	s.note(w.mac, &w.exchange)
}

// note remembers, counts and logs an exchange.
func (s *Server) note(mac MAC, e *exchange) {
	outcome := outcomeAnswered
	switch {
	case e.why == ErrNoReply:
		outcome = outcomeNoted
	case e.silent:
		outcome = outcomeSilent
	case e.answer == dhcpv4.MessageTypeNak:
		outcome = outcomeRefused
	}
	s.count.add(e.message, outcome)
	s.past.add(mac, *e, e.silent && (e.network == "" || e.why == ErrExhausted))
	switch {
	case e.message == dhcpv4.MessageTypeDecline && e.why == ErrNoReply:
		s.log.Warn("a client declined its address, something else answers for it", "network", e.network,
			"device", e.device, "mac", mac.String(), "ip", e.address.String())
	case e.why == ErrExhausted && s.quiet.worthLogging(e.network, e.time):
		s.log.Warn("the pool has no free address", "network", e.network, "device", e.device, "mac", mac.String())
	case s.log.Enabled(context.Background(), slog.LevelDebug):
		s.log.Debug("dhcp", "network", e.network, "device", e.device, "mac", mac.String(),
			"message", messageName(e.message), "answer", answerName(e), "ip", e.address.String(), "reason", e.why)
	}
}

func answerName(e *exchange) string {
	if e.silent {
		return "silence"
	}
	return messageName(e.answer)
}

// backoff spaces out a log line that could come with every packet.
type backoff struct {
	next     time.Time
	interval time.Duration
}

const (
	backoffFirst = time.Minute
	backoffLast  = time.Hour
)

// quiet spaces out the log lines about exhausted pools.
type quiet struct {
	mu     sync.Mutex
	logged map[string]*backoff // by network
}

// worthLogging reports whether a network's exhausted pool is to be logged now: at first, then at growing
// intervals while it lasts.
func (q *quiet) worthLogging(network string, now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := q.logged[network]
	if b == nil {
		b = &backoff{}
		q.logged[network] = b
	}
	if now.Before(b.next) {
		return false
	}
	if now.Sub(b.next) > b.interval {
		b.interval = backoffFirst / 2 // it was over in between
	}
	b.interval = min(2*b.interval, backoffLast)
	b.next = now.Add(b.interval)
	return true
}

// Last returns the last exchanges of a MAC, newest first: at most eight, of the guests that were heard
// of last.
func (s *Server) Last(mac MAC) []Exchange { return s.past.last(mac) }

// Faults returns what keeps guests from being served now, by device name.
func (s *Server) Faults() []Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	faults := make([]Fault, 0, len(s.faults)+1)
	switch {
	case s.followErr != nil:
		faults = append(faults, Fault{Err: s.followErr, Since: s.followFrom})
	case s.storeErr != nil:
		faults = append(faults, Fault{Err: s.storeErr, Since: s.storeSince})
	}
	for _, fault := range s.faults {
		faults = append(faults, fault)
	}
	sort.Slice(faults, func(i, j int) bool { return faults[i].Device < faults[j].Device })
	return faults
}

// Serving returns the names of the devices that are served now, sorted.
func (s *Server) Serving() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.open))
	for _, p := range s.open {
		names = append(names, p.device.Load().Name)
	}
	sort.Strings(names)
	return names
}

// Seen is what is known of a host's card beside its place in the table.
type Seen struct {
	// At is when the card was last heard of; the zero time is never.
	At time.Time
	// Expiry is the end of the lease that it holds; the zero time is none, unless Infinite.
	Expiry   time.Time
	Infinite bool
}

// Seen returns what is known of a host, and false where there is no such host.
func (t *Table) Seen(network string, mac MAC) (Seen, bool) {
	s := t.scope(network)
	if s == nil {
		return Seen{}, false
	}
	h, ok := s.hosts.Load().byMAC.get(mac)
	if !ok {
		return Seen{}, false
	}
	return t.seen(h), true
}

func (t *Table) seen(h *host) Seen {
	var seen Seen
	if at := h.seen.Load(); at != 0 {
		seen.At = onClock(t.epoch.Add(time.Duration(at)), t.now())
	}
	switch expires := time.Duration(h.expires.Load()); expires {
	case 0:
	case Infinite:
		seen.Infinite = true
	default:
		seen.Expiry = onClock(t.epoch.Add(expires), t.now())
	}
	return seen
}
