package dhcp

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// Infinite is the lease time of a lease that never ends.
const Infinite time.Duration = math.MaxInt64

// DefaultLeaseTime is that of a network that names none.
const DefaultLeaseTime = 12 * time.Hour

// Network is a guest network as DHCP serves it. It is not changed once it has been handed over.
type Network struct {
	Name    string
	Subnet  netip.Prefix
	Gateway netip.Addr // option 3
	// ServerID is the address of ours that serves the network: the source of replies and option 54.
	ServerID  netip.Addr
	LeaseTime time.Duration // 0 is DefaultLeaseTime
	// Options are sent to every client of the network: 3, 6, 12, 15, 26, 42, 119 and 121 always, the
	// others where the client asks for them or sends no list, 108 only where it asks. Cards that are
	// not a VM's default one get no 3, 6, 15 and 119.
	Options Options
	// Routes are option 121 less the default route, which default cards get by themselves.
	Routes []Route
	// Vendor options go to clients by their option 60.
	Vendor []VendorClass
	// NextServer is siaddr.
	NextServer netip.Addr
	// Boot is the list of boot files; the first that fits a client is its own.
	Boot []BootFile
	// Pool serves clients that are no hosts; nil leaves them in silence.
	Pool *Pool
	// RapidCommit lets a DISCOVER with option 80 be acknowledged at once, RFC 4039.
	RapidCommit bool
	// Relay marks a network behind relays: none of its clients is on the device itself.
	Relay bool
	// Relays are the relays' addresses where they are not in the subnet.
	Relays []netip.Addr
	// LinkLocalMetadata adds a route to 169.254.169.254 through the gateway.
	LinkLocalMetadata bool
}

// VendorClass gives options to the clients whose option 60 starts with Prefix; of several that fit,
// the longest counts. Option 60 is echoed to them.
type VendorClass struct {
	Prefix  string
	Options Options
}

// BootFile is a boot file and who it is for.
type BootFile struct {
	// Arch is the client architecture of option 93, RFC 4578; nil is any.
	Arch *uint16
	// IPXE restricts the file to clients that run iPXE already.
	IPXE bool
	File string
}

// Pool is the range of addresses for clients that are no hosts, both ends included. Addresses of
// hosts, of the gateway and of the server itself are never given from it.
type Pool struct {
	From, To netip.Addr
	// Probe asks by ARP whether an address is in use before it is offered. Behind a relay it cannot be.
	Probe bool
}

// Host is one network card of a VM. It is not changed once it has been handed over.
type Host struct {
	Network string
	VM      string
	MAC     MAC
	IP      netip.Addr
	// Hostname is option 12; empty is not sent.
	Hostname string
	// Default marks the card that carries the VM's default route and name service.
	Default bool
	// LeaseTime overrides the network's; 0 does not.
	LeaseTime time.Duration
	// Options override the network's code by code, typed ones too.
	Options Options
}

// Validate returns everything that keeps n from being served, joined.
func (n *Network) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if !n.Subnet.IsValid() || !n.Subnet.Addr().Is4() {
		fault("subnet %s is no IPv4 network", n.Subnet)
	}
	if !n.ServerID.Is4() {
		fault("server identifier %s is no IPv4 address", n.ServerID)
	}
	if n.Gateway.IsValid() && !n.Gateway.Is4() {
		fault("gateway %s is no IPv4 address", n.Gateway)
	}
	if n.NextServer.IsValid() && !n.NextServer.Is4() {
		fault("next server %s is no IPv4 address", n.NextServer)
	}
	if n.LeaseTime < 0 {
		fault("lease time %s is negative", n.LeaseTime)
	}
	for _, relay := range n.Relays {
		if !relay.Is4() {
			fault("relay %s is no IPv4 address", relay)
		}
	}
	if len(n.Routes) > 0 {
		if _, err := EncodeRoutes(n.Routes); err != nil {
			faults = append(faults, err)
		}
	}
	for _, boot := range n.Boot {
		if boot.File == "" || len(boot.File) > math.MaxUint8 {
			fault("boot file %q has %d bytes: want 1 to 255", boot.File, len(boot.File))
		}
	}
	for _, class := range n.Vendor {
		if class.Prefix == "" {
			fault("vendor class without a name")
		}
		faults = append(faults, class.Options.validate()...)
	}
	if pool := n.Pool; pool != nil {
		switch {
		case !pool.From.Is4() || !pool.To.Is4():
			fault("pool %s to %s: no IPv4 addresses", pool.From, pool.To)
		case !n.Subnet.Contains(pool.From) || !n.Subnet.Contains(pool.To):
			fault("pool %s to %s is not inside %s", pool.From, pool.To, n.Subnet)
		case pool.To.Less(pool.From):
			fault("pool %s to %s ends before it starts", pool.From, pool.To)
		}
	}
	faults = append(faults, n.Options.validate()...)
	return errors.Join(faults...)
}

// Validate returns everything that keeps h from being served, joined.
func (h *Host) Validate() error {
	var faults []error
	if err := h.MAC.check(); err != nil {
		faults = append(faults, fmt.Errorf("MAC address %s %w", h.MAC, err))
	}
	if !h.IP.Is4() {
		faults = append(faults, fmt.Errorf("address %s is no IPv4 address", h.IP))
	}
	if h.LeaseTime < 0 {
		faults = append(faults, fmt.Errorf("lease time %s is negative", h.LeaseTime))
	}
	if len(h.Hostname) > math.MaxUint8 {
		faults = append(faults, fmt.Errorf("host name of %d bytes: at most 255 fit", len(h.Hostname)))
	}
	faults = append(faults, h.Options.validate()...)
	return errors.Join(faults...)
}

func (o Options) validate() []error {
	var faults []error
	for _, option := range o.sorted() {
		if err := settable(option.code); err != nil {
			faults = append(faults, err)
		}
		if len(option.value) > maxOption {
			faults = append(faults, fmt.Errorf("option %s is %d bytes long, at most %d fit",
				optionName(option.code), len(option.value), maxOption))
		}
	}
	return faults
}

// Table holds the networks and hosts that are served. Its Set and Remove methods cost the same
// whatever the number of hosts, and readers never wait for them. All methods are safe for concurrent
// use; changes take effect in the order of the calls.
type Table struct {
	mu     sync.Mutex // of writers
	scopes atomic.Pointer[trie[string, *scope]]
	queue  *journal
	// leasesKnown is false until a server has read the leases; a table without a server needs none.
	leasesKnown atomic.Bool
	// shared says that other servers have part in the store of leases. It is set before the first packet.
	shared bool
	// current is true while the server is told what others write to the store.
	current atomic.Bool
	// storeDown is the end of the time without new leases after a failed commit, since epoch.
	storeDown atomic.Int64
	epoch     time.Time // where times of day are kept as durations

	// now is the clock that Set methods use for what they end; Server sets it to its own.
	now func() time.Time
}

// NewTable returns a table without networks.
func NewTable() *Table {
	t := &Table{now: time.Now, queue: newJournal()}
	t.epoch = t.now()
	t.leasesKnown.Store(true)
	t.scopes.Store(&trie[string, *scope]{})
	return t
}

// scope is a network with its hosts and the state of its pool. Hosts may come before their network.
type scope struct {
	name    string
	network atomic.Pointer[network]
	hosts   atomic.Pointer[hostSet]
	pool    *pool
}

// hostSet is all hosts of one network.
type hostSet struct {
	byMAC trie[MAC, *host]
	byIP  trie[uint32, *host]
}

// host is a Host with what is known of it. Times are durations since the table's epoch.
type host struct {
	*Host
	options  []option // less 121
	routes   routeSet
	hostname []byte
	seen     atomic.Int64 // last heard of; 0 never
	expires  atomic.Int64 // end of the last lease that was acknowledged; 0 none
	declined atomic.Int64 // end of the silence after a DECLINE
	moved    atomic.Bool  // another host has the address now
}

// network is a Network with what can be encoded ahead.
type network struct {
	*Network
	options   []option // less 121
	routes    routeSet
	mask      [4]byte
	broadcast [4]byte
	gateway   [4]byte
	lease     time.Duration
	vendor    []vendorClass
	files     []bootFile
}

type vendorClass struct {
	prefix  []byte
	options []option
}

type bootFile struct {
	BootFile
	file []byte
}

var (
	defaultPrefix  = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	metadataPrefix = netip.MustParsePrefix("169.254.169.254/32")
)

func (t *Table) scope(name string) *scope {
	s, _ := t.scopes.Load().get(name)
	return s
}

// ensureScope returns the scope of a name, a new one where there is none. The caller holds t.mu.
func (t *Table) ensureScope(name string) *scope {
	if s := t.scope(name); s != nil {
		return s
	}
	s := &scope{name: name}
	s.pool = newPool(s, t.queue)
	s.hosts.Store(&hostSet{})
	scopes := t.scopes.Load().with(name, s)
	t.scopes.Store(&scopes)
	return s
}

// dropScope forgets a scope that nothing is known of any more. The caller holds t.mu.
func (t *Table) dropScope(s *scope) {
	if s.network.Load() == nil && s.hosts.Load().byMAC.size == 0 && s.pool.empty() {
		scopes := t.scopes.Load().without(s.name)
		t.scopes.Store(&scopes)
	}
}

// SetNetwork adds a network or replaces the one of the same name; its hosts and pool leases stay. One
// that does not pass Validate is taken as absent.
func (t *Table) SetNetwork(n *Network) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.ensureScope(n.Name)
	if n.Validate() != nil {
		s.network.Store(nil)
		return
	}
	compiled := compileNetwork(n)
	s.pool.configure(compiled)
	s.network.Store(compiled)
}

// RemoveNetwork ends service for a network at once. Its hosts are kept for when it comes back, as are
// its pool leases.
func (t *Table) RemoveNetwork(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.scope(name); s != nil {
		s.network.Store(nil)
		t.dropScope(s)
	}
}

// SetHost adds a host or replaces the one of the same MAC in its network. A host that had the address
// before is not answered any more. A pool lease of the address or of the MAC ends. A host that does
// not pass Validate is not taken.
func (t *Table) SetHost(h *Host) {
	if h.Validate() != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.ensureScope(h.Network)
	old := s.hosts.Load()
	entry := &host{Host: h, hostname: []byte(h.Hostname)}
	entry.options, entry.routes = splitRoutes(h.Options)
	hosts := hostSet{byIP: old.byIP}
	if was, ok := old.byMAC.get(h.MAC); ok {
		entry.seen.Store(was.seen.Load())
		if was.IP == h.IP {
			entry.expires.Store(was.expires.Load())
			entry.declined.Store(was.declined.Load())
		} else if ip := addrNumber(was.IP); hosts.holder(ip) == was {
			hosts.byIP = hosts.byIP.without(ip)
		}
	}
	ip := addrNumber(h.IP)
	former := hosts.holder(ip)
	hosts.byMAC = old.byMAC.with(h.MAC, entry)
	hosts.byIP = hosts.byIP.with(ip, entry)
	if former != nil && former.MAC != h.MAC {
		former.moved.Store(true)
	}
	s.hosts.Store(&hosts)
	s.pool.evict(h.IP, h.MAC, t.now())
	if was, ok := old.byMAC.get(h.MAC); ok && was.IP != h.IP {
		s.pool.vacated(was.IP, t.now())
	}
}

// RemoveHost removes a host; from then on its MAC is unknown.
func (t *Table) RemoveHost(network string, mac MAC) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.scope(network)
	if s == nil {
		return
	}
	old := s.hosts.Load()
	was, ok := old.byMAC.get(mac)
	if !ok {
		return
	}
	hosts := hostSet{byMAC: old.byMAC.without(mac), byIP: old.byIP}
	if ip := addrNumber(was.IP); hosts.holder(ip) == was {
		hosts.byIP = hosts.byIP.without(ip)
	}
	s.hosts.Store(&hosts)
	s.pool.vacated(was.IP, t.now())
	t.dropScope(s)
}

// lasts reports whether a time since epoch is set and still to come.
func (t *Table) lasts(end *atomic.Int64, now time.Time) bool {
	at := end.Load()
	return at != 0 && time.Duration(at) > now.Sub(t.epoch)
}

// load takes a lease from the store.
func (t *Table) load(l Lease, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ensureScope(l.Network).pool.load(l, now, t.shared)
}

// probes reports whether a network that is served on d has a pool whose addresses are to be probed.
func (t *Table) probes(d *Device) bool {
	for _, name := range d.Networks {
		if s := t.scope(name); s != nil && s.network.Load() != nil && s.pool.probing() {
			return true
		}
	}
	return false
}

// holder returns the host that has an address; nil is none.
func (h *hostSet) holder(ip uint32) *host {
	holder, _ := h.byIP.get(ip)
	return holder
}

// reserved reports whether an address belongs to a host of the scope.
func (s *scope) reserved(ip uint32) bool { return s.hosts.Load().holder(ip) != nil }

func compileNetwork(n *Network) *network {
	c := &network{Network: n, lease: n.LeaseTime}
	if c.lease == 0 {
		c.lease = DefaultLeaseTime
	}
	maskBits := uint32(math.MaxUint32) << (32 - n.Subnet.Bits())
	first := addrNumber(n.Subnet.Masked().Addr())
	c.mask = numberAddr(maskBits).As4()
	c.broadcast = numberAddr(first | ^maskBits).As4()
	c.options, c.routes = splitRoutes(n.Options)
	for _, route := range n.Routes {
		c.routes.add(route)
	}
	if n.Gateway.Is4() {
		c.gateway = n.Gateway.As4()
	}
	for _, class := range n.Vendor {
		c.vendor = append(c.vendor, vendorClass{prefix: []byte(class.Prefix), options: class.Options.sorted()})
	}
	sort.SliceStable(c.vendor, func(i, j int) bool { return len(c.vendor[i].prefix) > len(c.vendor[j].prefix) })
	for _, boot := range n.Boot {
		c.files = append(c.files, bootFile{BootFile: boot, file: []byte(boot.File)})
	}
	return c
}

// routeSet is option 121 with the default route apart, which depends on the card.
type routeSet struct {
	set       bool // by number; it then replaces another set
	list      []Route
	toDefault netip.Addr // the gateway of a default route among them
	raw       []byte     // a value that is no option 121 by RFC 3442 but was set so
}

func (s *routeSet) add(route Route) {
	if route.To.Bits() == 0 {
		s.toDefault = route.Via
		return
	}
	s.list = append(s.list, route)
}

// splitRoutes takes option 121 out of options.
func splitRoutes(options Options) (rest []option, routes routeSet) {
	for _, option := range options.sorted() {
		if option.code != optRoutes {
			rest = append(rest, option)
			continue
		}
		routes.set = true
		list, ok := decodeRoutes(option.value)
		if !ok {
			routes.raw = option.value
		}
		for _, route := range list {
			routes.add(route)
		}
	}
	return rest, routes
}

func addrNumber(addr netip.Addr) uint32 {
	four := addr.As4()
	return uint32(four[0])<<24 | uint32(four[1])<<16 | uint32(four[2])<<8 | uint32(four[3])
}

func numberAddr(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}
