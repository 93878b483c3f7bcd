package metadata

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// Content is bytes that never change, kept in a file and not in memory. All methods are safe for
// concurrent use.
type Content interface {
	// Size is the number of bytes.
	Size() int64
	// ETag is the text of the strong entity tag, without its quotes. Equal tags mean equal bytes.
	ETag() string
	// Open gives the bytes from their beginning; what it returns stays readable whatever replaces
	// the content meanwhile. It fails with fs.ErrNotExist where the content was replaced before
	// the call: the guest's entry in the table is then a newer one.
	Open() (io.ReadSeekCloser, error)
}

// Guest is one NIC of a VM, which is who asks: what is served to its address in its network.
// A Guest and all that it refers to must not be changed once it is in a Table.
type Guest struct {
	Network string
	VM      string
	// Generation tells this VM from an earlier one of the same name: it stays the same for as
	// long as the VM exists, however its content changes.
	Generation uint64

	IP      netip.Addr
	MAC     net.HardwareAddr // empty where it is not known
	Default bool             // the VM's default NIC

	Hostname string
	Domain   string // where it is empty, the network's

	// Meta are the names of meta-data.yaml. They come before derived values.
	Meta       map[string]string
	UserData   Content // nil: none
	VendorData Content // nil: the network's

	NICs []NIC // all of the VM, this one too, in the order of its file
}

// NIC is what the guest can read about one NIC of its VM.
type NIC struct {
	Network string
	MAC     net.HardwareAddr // empty: the NIC is not shown, since its MAC would be its name
	IP      netip.Addr
	Default bool
}

// Network is a guest network. It must not be changed once it is in a Table.
type Network struct {
	Name   string
	Subnet netip.Prefix // tells to which of a device's networks a source address belongs
	Domain string

	Gateway netip.Addr
	Serving netip.Addr // the address that the router serves on, often the gateway

	// PublicIPv4 is the first global address of the network's public interface, or the zero
	// Addr while there is none.
	PublicIPv4 netip.Addr

	// TokensRequired refuses requests without an EC2 session token.
	TokensRequired bool
	// LinkLocal says that 169.254.169.254 answers in this network too.
	LinkLocal bool
	// Relay says that guests are behind a DHCP relay, one or more hops away.
	Relay bool

	VendorData Content // for VMs without their own; nil: none
}

// key is what a guest is known by: the network is told by the device that a request comes in on.
type key struct {
	network string
	ip      netip.Addr
}

// Table holds what is served to whom. There is one writer at a time; readers never wait for it.
// The cost of a change does not depend on how many guests there are, except that SetNetwork looks
// at the requests of that network which wait for a change.
type Table struct {
	networks sync.Map // name -> *Network
	guests   sync.Map // key -> *entry
	waiting  waiting
}

// NewTable returns an empty table.
func NewTable() *Table {
	return &Table{waiting: waiting{bell: make(chan struct{}, 1)}}
}

// SetNetwork adds a network or replaces the one of that name. Guests of the network see the new
// values with their next request.
func (t *Table) SetNetwork(n *Network) {
	t.networks.Store(n.Name, n)
	t.waiting.wakeNetwork(n.Name)
}

// RemoveNetwork takes a network away. Its guests stay in the table and are unknown until the
// network is back.
func (t *Table) RemoveNetwork(name string) {
	t.networks.Delete(name)
	t.waiting.wakeNetwork(name)
}

// SetGuest adds a guest or replaces the one with that address. Where the address passes to another
// VM, or to another generation of the same one, all connections of the old one are closed and
// nothing that was kept about it is passed on.
func (t *Table) SetGuest(g *Guest) {
	k := key{g.Network, g.IP}
	old := t.entry(k)
	if old != nil {
		if was := old.guest.Load(); was.VM == g.VM && was.Generation == g.Generation {
			old.guest.Store(g)
			t.waiting.wakeGuest(k)
			return
		}
	}
	e := &entry{key: k}
	e.guest.Store(g)
	t.guests.Store(k, e)
	if old != nil {
		old.retire()
	}
	t.waiting.wakeGuest(k)
}

// RemoveGuest takes the guest with that address away and closes its connections.
func (t *Table) RemoveGuest(network string, ip netip.Addr) {
	k := key{network, ip}
	if old, ok := t.guests.LoadAndDelete(k); ok {
		old.(*entry).retire()
		t.waiting.wakeGuest(k)
	}
}

// Entry is one name that a guest is served, for people to read.
type Entry struct {
	Name  string
	Value string // empty for user data and vendor data
	Size  int64  // in bytes
}

// Entries lists what the guest is served at /latest/, metadata in the order of its listing. It is
// nil where the guest or its network is unknown. A password is never in it.
func (t *Table) Entries(network string, ip netip.Addr) []Entry {
	v, ok := t.view(network, ip)
	if !ok {
		return nil
	}
	var entries []Entry
	for _, name := range v.names() {
		value, _ := v.value(name)
		entries = append(entries, Entry{Name: name, Value: value, Size: int64(len(value))})
	}
	for _, c := range v.files() {
		entries = append(entries, Entry{Name: c.name, Size: c.node.file.Size()})
	}
	return entries
}

// Last lists the last requests of the guest at that address, newest first. Only the last few are
// kept, and none of an address's former holder.
func (t *Table) Last(network string, ip netip.Addr) []Request {
	if e := t.entry(key{network, ip}); e != nil {
		return e.history.newestFirst()
	}
	return nil
}

func (t *Table) network(name string) *Network {
	if n, ok := t.networks.Load(name); ok {
		return n.(*Network)
	}
	return nil
}

func (t *Table) entry(k key) *entry {
	if e, ok := t.guests.Load(k); ok {
		return e.(*entry)
	}
	return nil
}

// find tells which guest has the source address in one of these networks. Subnets of the networks
// on one device do not overlap.
func (t *Table) find(networks []string, source netip.Addr) (*entry, *Network) {
	for _, name := range networks {
		n := t.network(name)
		if n == nil || !n.Subnet.Contains(source) {
			continue
		}
		if e := t.entry(key{name, source}); e != nil {
			return e, n
		}
	}
	return nil, nil
}

// view gives what is served to an address at this moment.
func (t *Table) view(network string, ip netip.Addr) (view, bool) {
	e, n := t.entry(key{network, ip}), t.network(network)
	if e == nil || n == nil {
		return view{}, false
	}
	return view{table: t, guest: e.guest.Load(), network: n}, true
}

// entry is a guest's place in the table, with what is kept about the guest while it has the
// address. An address that passes to another VM gets a new entry.
type entry struct {
	key     key
	guest   atomic.Pointer[Guest]
	rate    bucket
	history history
	logged  onceAMinute // refusals
	told    onceAMinute // passwords
	failed  onceAMinute // content that cannot be read

	mu      sync.Mutex
	retired bool
	conns   map[*conn]struct{}
	handed  [32]byte // digest of the password that was given out last, see password.go
}
