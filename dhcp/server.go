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
}

// Server answers the clients of guest devices from a Table. Its methods are safe for concurrent use.
type Server struct {
	table *Table
	log   *slog.Logger
	now   func() time.Time
	past  *history
	inbox sync.Pool
	count counters
	wake  chan struct{} // what is wanted has changed

	mu      sync.Mutex
	running bool
	wanted  map[int]Device // by index; those with networks only
	open    map[int]*port
	faults  map[int]Fault // by index
	tasks   sync.WaitGroup
}

// Fault is something that keeps a device from being served; the server tries again by itself.
type Fault struct {
	Device string
	Since  time.Time
	Err    error
}

// port is an open device.
type port struct {
	device   atomic.Pointer[Device]
	listener *listener
	sender   *sender
	limit    limiter
}

// NewServer returns a server that answers from t once it runs.
func NewServer(t *Table, opts ServerOptions) *Server {
	s := &Server{
		table: t, log: opts.Logger, now: opts.Now, past: newHistory(),
		inbox:  sync.Pool{New: func() any { return newInbox() }},
		wake:   make(chan struct{}, 1),
		wanted: make(map[int]Device), open: make(map[int]*port), faults: make(map[int]Fault),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	return s
}

// SetDevices says what the devices look like now. While the server runs, devices that are new and have
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
	if s.running {
		s.reconcile()
	}
}

// Run serves until ctx ends, then closes all sockets and returns nil.
func (s *Server) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.running {
		s.mu.Unlock()
		return errors.New("dhcp server runs already")
	}
	s.running = true
	s.reconcile()
	s.mu.Unlock()

	retry := time.NewTicker(retryAfter)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			s.mu.Lock()
			s.running = false
			for index := range s.open {
				s.shut(index)
			}
			s.mu.Unlock()
			s.tasks.Wait()
			return nil
		case <-retry.C:
		case <-s.wake:
		}
		s.mu.Lock()
		s.reconcile()
		s.mu.Unlock()
	}
}

// reconcile makes the open ports those that are wanted. The caller holds s.mu.
func (s *Server) reconcile() {
	for index := range s.open {
		if _, ok := s.wanted[index]; !ok {
			s.shut(index)
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
	l, err := listen(d.Name, d.Index)
	if err != nil {
		return err
	}
	out, err := openSender(d.Name, d.Index)
	if err != nil {
		return errors.Join(err, l.close())
	}
	p := &port{listener: l, sender: out}
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
	s.count.dropped.Add(p.listener.drops())
	if err := p.listener.close(); err != nil {
		s.log.Warn("closing a socket", "device", p.device.Load().Name, "reason", err)
	}
	s.log.Info("no longer serving DHCP", "device", p.device.Load().Name)
}

// serve answers what comes in on a port until its listener is closed.
func (s *Server) serve(index int, p *port) {
	defer func() {
		if err := p.sender.close(); err != nil {
			s.log.Warn("closing a socket", "device", p.device.Load().Name, "reason", err)
		}
	}()
	work := &worker{server: s, port: p, out: outbox{index: index}}
	err := p.listener.wait(work.take)
	if errors.Is(err, net.ErrClosed) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[index] == p {
		s.shut(index)
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
}

// take receives one batch, if there is one, and answers it. The buffers are borrowed for the time
// being, so that memory follows the devices that have something to say, not the number of devices.
func (w *worker) take(fd uintptr) error {
	in := w.server.inbox.Get().(*inbox)
	defer w.server.inbox.Put(in)
	n, err := in.receive(fd)
	if err != nil {
		return err
	}
	now := w.server.now()
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
	return nil
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
	reply, err := s.table.answer(&w.answers, r, device, packet, w.out.next())
	s.note(device, r, packet.Time, &reply, err)
	if err != nil {
		return
	}
	if w.out.add(&reply) {
		w.flush(device)
	}
}

func (w *worker) flush(device *Device) {
	if w.out.count == 0 {
		return
	}
	if lost, err := w.out.flush(w.port.sender); lost > 0 {
		w.server.count.unsent.Add(uint64(lost))
		w.server.log.Debug("replies were not sent", "device", device.Name, "count", lost, "reason", err)
	}
}

// note remembers, counts and logs what came of a request.
func (s *Server) note(device *Device, r *request, now time.Time, reply *Reply, err error) {
	e := exchange{time: now, network: reply.Network, device: device.Name, message: r.kind, answer: reply.Type,
		address: reply.Address, why: reply.Why}
	outcome := outcomeAnswered
	switch {
	case err == ErrNoReply:
		outcome = outcomeNoted
	case err != nil:
		outcome = outcomeSilent
	case reply.Type == dhcpv4.MessageTypeNak:
		outcome = outcomeRefused
	}
	if err != nil {
		e.silent, e.why = true, err
		if e.address = r.ciaddr; !e.address.IsValid() {
			e.address = r.requestedIP
		}
	}
	s.count.add(r.kind, outcome)
	s.past.add(r.mac, e, reply.Network == "")
	switch {
	case r.kind == dhcpv4.MessageTypeDecline && err == ErrNoReply:
		s.log.Warn("a client declined its address, something else answers for it", "network", reply.Network,
			"device", device.Name, "mac", r.mac.String(), "ip", r.requestedIP.String())
	case s.log.Enabled(context.Background(), slog.LevelDebug):
		s.log.Debug("dhcp", "network", reply.Network, "device", device.Name, "mac", r.mac.String(),
			"message", messageName(r.kind), "answer", answerName(&e), "ip", e.address.String(), "reason", e.why)
	}
}

func answerName(e *exchange) string {
	if e.silent {
		return "silence"
	}
	return messageName(e.answer)
}

// Last returns the last exchanges of a MAC, newest first: at most eight, of the guests that were heard
// of last.
func (s *Server) Last(mac MAC) []Exchange { return s.past.last(mac) }

// Faults returns what keeps devices from being served now, by device name.
func (s *Server) Faults() []Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	faults := make([]Fault, 0, len(s.faults))
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
		seen.At = t.epoch.Add(time.Duration(at))
	}
	switch expires := time.Duration(h.expires.Load()); expires {
	case 0:
	case Infinite:
		seen.Infinite = true
	default:
		seen.Expiry = t.epoch.Add(expires)
	}
	return seen
}
