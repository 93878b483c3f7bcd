package metadata

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/sys/unix"
)

// Options are what a Server is made with. The zero value is a server on ports 80 and 8080 without
// limits and without passwords.
type Options struct {
	Logger *slog.Logger // nil discards

	// TokenKey signs session tokens. It is 32 random bytes that are kept for as long as tokens are
	// to stay valid; empty: the server makes a key of its own.
	TokenKey []byte
	// Passwords are what the password server gives out; nil: it has none and says so.
	Passwords Passwords

	Limits Limits
	Hosts  []string // further Host names to answer to

	// Sockets opens the sockets that guests connect to; nil: they end with the process.
	Sockets Sockets

	MetadataPort uint16 // 0: 80
	PasswordPort uint16 // 0: 8080
}

// Device is a network device of the router on which guests are served.
type Device struct {
	Index int
	Name  string // for the log: the index tells one device from another
	// Networks are served here now: their serving address is on the device.
	Networks []string
	// Listen are the addresses to answer on: the serving addresses, and 169.254.169.254 where a
	// network asks for it.
	Listen []netip.Addr
}

// Server serves what is in a Table on the guest devices. All methods are safe for concurrent use.
type Server struct {
	table     *Table
	log       *slog.Logger
	tokens    *tokens
	passwords Passwords
	sockets   Sockets
	ports     map[service]uint16
	limits    atomic.Pointer[Limits]
	hosts     atomic.Pointer[[]string]
	http      map[service]*fasthttp.Server

	farewell farewell
	leaving  atomic.Bool     // each answer ends its connection
	stopped  context.Context // ends when connections are to end
	stop     context.CancelFunc
	running  sync.WaitGroup // accept loops, connections, answers to requests that waited
	openings chan struct{}  // holds one element while addresses are to be tried again
	loop     *loop
	scarce   onceAMinute // descriptors or memory
	sweep    *time.Ticker
	count    counters

	mu      sync.Mutex
	closed  bool
	devices []Device
	open    map[place]*listener
	faults  map[place]Fault
}

// service is one of the two that are served on each address.
type service string

const (
	metadataService service = "metadata"
	passwordService service = "password"
)

// place is where a listener listens.
type place struct {
	device  int // index
	address netip.Addr
	service service
}

// Time-outs of a connection. A request has to be there within readTimeout of its first byte, or of
// the opening of its connection, and the client has to have taken the answer within writeTimeout.
const (
	readTimeout  = 10 * time.Second
	writeTimeout = 30 * time.Second
	idleTimeout  = 30 * time.Second

	maxHeader = 4096 // bytes of a request line and its fields together
	maxBody   = 1024 // bytes of a request's body; no request here has a use for one

	retryOpening  = time.Second
	sweepInterval = 5 * time.Second
)

// farewell is how long things take when the server stops.
type farewell struct {
	linger  time.Duration // connections have time to end with their next answer
	request time.Duration // one that came just before may take over its first request
	all     time.Duration // until connections are aborted
}

var usualFarewell = farewell{linger: 100 * time.Millisecond, request: 500 * time.Millisecond, all: 2 * time.Second}

// NewServer returns a server without devices. It serves what is in the table from SetDevices on,
// and Run has to be called for it to end well, try failed addresses again and answer requests that
// wait.
func NewServer(t *Table, o Options) *Server {
	s := &Server{
		table:     t,
		log:       o.Logger,
		tokens:    newTokens(o.TokenKey),
		passwords: o.Passwords,
		sockets:   o.Sockets,
		ports:     map[service]uint16{metadataService: 80, passwordService: 8080},
		farewell:  usualFarewell,
		openings:  make(chan struct{}, 1),
		open:      make(map[place]*listener),
		faults:    make(map[place]Fault),
		sweep:     time.NewTicker(sweepInterval),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.sockets == nil {
		s.sockets = ownSockets{}
	}
	if o.MetadataPort != 0 {
		s.ports[metadataService] = o.MetadataPort
	}
	if o.PasswordPort != 0 {
		s.ports[passwordService] = o.PasswordPort
	}
	s.stopped, s.stop = context.WithCancel(context.Background())
	s.SetLimits(o.Limits)
	s.SetHosts(o.Hosts)
	s.http = map[service]*fasthttp.Server{
		metadataService: s.newHTTP(s.serveMetadata),
		passwordService: s.newHTTP(s.servePassword),
	}
	return s
}

// SetLimits changes what a guest may take, from its next request or connection on.
func (s *Server) SetLimits(l Limits) { s.limits.Store(&l) }

// SetHosts changes the further Host names to answer to.
func (s *Server) SetHosts(hosts []string) {
	hosts = slices.Clone(hosts)
	s.hosts.Store(&hosts)
}

// SetDevices makes the server listen on exactly these devices and addresses: it opens what is new,
// then closes what is gone with all its connections, and leaves the rest alone. What cannot be
// opened is tried again each second; Faults tells of it.
func (s *Server) SetDevices(devices []Device) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.devices = make([]Device, len(devices))
	for i, d := range devices {
		d.Networks, d.Listen = slices.Clone(d.Networks), slices.Clone(d.Listen)
		s.devices[i] = d
	}
	s.reconcile()
}

// Fault is an address that cannot be served; the server tries again by itself.
type Fault struct {
	Service string // metadata or password
	Device  string
	Address netip.AddrPort
	Err     error
}

// String is what people are told.
func (f Fault) String() string {
	return fmt.Sprintf("%s on %s, device %s: %v", f.Service, f.Address, f.Device, f.Err)
}

// Faults says why which addresses cannot be served at the moment.
func (s *Server) Faults() []Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	places := make([]place, 0, len(s.faults))
	for p := range s.faults {
		places = append(places, p)
	}
	slices.SortFunc(places, place.compare)
	faults := make([]Fault, len(places))
	for i, p := range places {
		faults[i] = s.faults[p]
	}
	return faults
}

func (p place) compare(q place) int {
	switch {
	case p.device != q.device:
		return p.device - q.device
	case p.address != q.address:
		return p.address.Compare(q.address)
	case p.service < q.service:
		return -1
	case p.service > q.service:
		return 1
	}
	return 0
}

// Last lists the last requests of the guest at that address, newest first; see Table.Last.
func (s *Server) Last(network string, ip netip.Addr) []Request { return s.table.Last(network, ip) }

// Waiting says how many requests wait for a change at the moment.
func (s *Server) Waiting() int { return len(s.table.waiting.all()) }

// reconcile makes the open listeners match s.devices. s.mu is held.
func (s *Server) reconcile() {
	wanted := make(map[place]*Device)
	for i := range s.devices {
		d := &s.devices[i]
		for _, address := range d.Listen {
			for service := range s.ports {
				wanted[place{d.Index, address, service}] = d
			}
		}
	}
	clear(s.faults)
	if err := s.openLoop(); err != nil {
		for p, d := range wanted {
			s.fault(p, d, err)
		}
		return
	}
	for p, d := range wanted {
		l := s.open[p]
		if l != nil {
			l.device.Store(d)
			continue
		}
		l, err := s.listen(p, d)
		if err != nil {
			s.fault(p, d, err)
			continue
		}
		if err := s.loop.listen(l); err != nil {
			l.close(s)
			s.fault(p, d, err)
			continue
		}
		s.open[p] = l
		s.log.Debug("listening", "service", p.service, "address", p.address, "device", d.Name)
	}
	for p, l := range s.open {
		if wanted[p] == nil {
			delete(s.open, p)
			l.close(s)
			s.log.Debug("listening ended", "service", p.service, "address", p.address, "device", l.device.Load().Name)
		}
	}
}

// fault keeps why a place cannot be served, and has it tried again. s.mu is held.
func (s *Server) fault(p place, d *Device, err error) {
	s.faults[p] = Fault{Service: string(p.service), Device: d.Name, Address: netip.AddrPortFrom(p.address, s.ports[p.service]), Err: err}
	select {
	case s.openings <- struct{}{}:
	default:
	}
}

// openLoop starts the loop if it does not run yet. s.mu is held.
func (s *Server) openLoop() (err error) {
	if s.loop != nil {
		return nil
	}
	if s.loop, err = newLoop(); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	s.running.Go(s.lead)
	return nil
}

// Run answers the requests that wait for a change and tries again what could not be opened, until
// ctx ends. Then it answers the requests that wait, ends connections with their next answer, and a
// moment later stops listening and closes those that are between two requests; one that has not had an
// answer yet may still get one. It returns nil and leaves no goroutine behind. It can be called once.
func (s *Server) Run(ctx context.Context) error {
	var again <-chan time.Time
	defer s.sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			s.shutdown()
			return nil
		case <-s.table.waiting.bell:
			for _, w := range s.table.waiting.take() {
				s.look(w)
			}
		case now := <-s.sweep.C:
			s.endExpired(now)
		case <-s.openings:
			again = time.After(retryOpening)
		case <-again:
			s.retry() // a fault that lasts comes back through s.openings
		}
	}
}

// endExpired ends the connections that have been idle for too long.
func (s *Server) endExpired(now time.Time) {
	s.mu.Lock()
	loop := s.loop
	s.mu.Unlock()
	if loop == nil {
		return
	}
	for _, c := range loop.expired(now) {
		c.expire()
	}
}

func (s *Server) retry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.reconcile()
	}
}

func (s *Server) shutdown() {
	s.leaving.Store(true)
	for _, w := range s.table.waiting.all() {
		s.finish(w)
	}
	s.linger()
	s.mu.Lock()
	s.closed = true
	open, loop := s.open, s.loop
	s.open = nil
	clear(s.faults)
	s.mu.Unlock()
	for _, l := range open {
		l.stop(s)
	}
	s.stop()
	if loop != nil {
		loop.ring()
	}
	done := make(chan struct{})
	go func() {
		s.running.Wait()
		close(done)
	}()
	select {
	case <-done:
		s.closeLoop()
		return
	case <-time.After(s.farewell.all):
	}
	for _, l := range open {
		l.endConnections((*conn).abort)
	}
	<-done
	s.closeLoop()
}

// linger serves on until there is no connection left, but not for long. A client that asks again on a
// kept connection is told that it ends, and does not find it closed with its question under way.
func (s *Server) linger() {
	end := time.After(s.farewell.linger)
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for {
		connections := 0
		s.mu.Lock()
		for _, l := range s.open {
			connections += l.count()
		}
		s.mu.Unlock()
		if connections == 0 {
			return
		}
		select {
		case <-look.C:
		case <-end:
			return
		}
	}
}

// closeLoop is called once nothing runs any more.
func (s *Server) closeLoop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.loop != nil {
		s.loop.close()
	}
}

// admit lets a connection in, or closes it where its source has too many.
func (s *Server) admit(c *conn) bool {
	limit := s.limits.Load().Connections
	for {
		e, _ := s.table.find(c.listener.device.Load().Networks, c.source.Addr())
		if e == nil {
			if !c.listener.strangers.admit(limit) {
				unix.Close(c.fd)
				s.logStranger(c, "too many connections of unknown sources")
				return false
			}
			break
		}
		s.dropDeserted(e, limit)
		switch e.admit(c, limit) {
		case gone:
			continue
		case dropped:
			unix.Close(c.fd)
			s.count.refused.Add(1)
			s.logRefusal(e, c, "too many connections")
			return false
		case overLimit:
			c.refused = true
		}
		c.entry = e
		break
	}
	if !c.listener.add(c) {
		c.abort()
		return false
	}
	return true
}

// dropDeserted ends the requests that wait and whose clients have left, where they keep the guest
// from another connection.
func (s *Server) dropDeserted(e *entry, limit int) {
	if limit <= 0 || e.open() < limit {
		return
	}
	for _, w := range e.waiters() {
		if w.conn.deserted() {
			w.conn.abort()
			s.finish(w)
		}
	}
}

// leave counts out a connection that is closed, and that was e's, or a stranger's.
func (s *Server) leave(c *conn, e *entry) {
	if e != nil {
		e.release(c)
	} else {
		c.listener.strangers.release()
	}
	c.listener.mu.Lock()
	delete(c.listener.conns, c)
	c.listener.mu.Unlock()
}

// identify tells whose request comes over the connection. The connection of a source that was
// unknown when it was opened is counted as its guest's from the first request on. ok is false where
// the address has passed to another guest: the connection is the former one's and has to end.
func (s *Server) identify(c *conn) (e *entry, n *Network, ok bool) {
	for {
		e, n = s.table.find(c.listener.device.Load().Networks, c.source.Addr())
		switch {
		case e == c.entry:
			return e, n, true
		case c.entry != nil:
			return nil, nil, e == nil
		}
		switch e.admit(c, s.limits.Load().Connections) {
		case gone:
			continue
		case dropped:
			return nil, nil, false
		case overLimit:
			c.refused = true
		}
		if !c.claim(e) {
			e.release(c)
			return nil, nil, false
		}
		c.listener.strangers.release()
		return e, n, true
	}
}

func (s *Server) logRefusal(e *entry, c *conn, why string) {
	if e.logged.now(time.Now()) {
		g := e.guest.Load()
		s.log.Info("guest refused", "service", c.listener.place.service, "vm", g.VM, "network", g.Network, "ip", g.IP, "reason", why)
	}
}

func (s *Server) logStranger(c *conn, why string) {
	if c.listener.strangers.logNow(c.source.Addr(), time.Now()) {
		s.log.Info("unknown source refused", "service", c.listener.place.service, "device", c.listener.device.Load().Name, "ip", c.source.Addr(), "reason", why)
	}
}

// guard keeps a fault of ours in one request from ending the process.
func (s *Server) guard(ctx *fasthttp.RequestCtx) {
	if fault := recover(); fault != nil {
		s.log.Error("request ended by a fault", "fault", fmt.Sprint(fault), "stack", string(debug.Stack()))
		ctx.Response.Reset()
		ctx.Error("internal error\n", fasthttp.StatusInternalServerError)
		ctx.SetConnectionClose()
	}
}
