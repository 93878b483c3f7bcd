package desired

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"vragent/agent/internal/strict"
	"vragent/dhcp"
)

// Powers are what the daemon was started with; a file that asks for more is rejected.
type Powers struct {
	NetAdmin bool // CAP_NET_ADMIN
}

// Network is the valid content of networks/<name>.yaml.
type Network struct {
	Name            string
	Interface       string    // the guest device by name, or
	MAC             *dhcp.MAC // by its hardware address; neither where Relay
	Gateway         netip.Prefix
	ManageAddress   bool
	ServeAs         netip.Addr // invalid: the gateway serves
	DNS             []netip.Addr
	Domain          string
	Search          []string
	NTP             []netip.Addr
	MTU             int // 0: not sent
	Routes          []dhcp.Route
	LeaseTime       time.Duration
	Pool            *Pool
	PublicInterface string     // "": the agent's
	PublicIPv4      netip.Addr // invalid: that of the public interface
	Tokens          string     // "", optional, required
	PinNeighbors    bool
	LinkLocal       bool
	VendorData      string
	Options         dhcp.Options
	VendorOptions   []VendorClass
	NextServer      netip.Addr
	Boot            []BootFile
	RapidCommit     bool
	Relay           bool
	Relays          []netip.Addr
}

// Pool is the range of addresses for unknown MACs.
type Pool struct {
	From, To netip.Addr
	Probe    bool
}

// VendorClass holds options for clients whose option 60 starts with Class.
type VendorClass struct {
	Class   string
	Options dhcp.Options
}

// BootFile names a boot file and who it is for; the first that fits is sent.
type BootFile struct {
	Arch *uint16 // option 93; nil: any
	IPXE bool    // only for a client that is iPXE already
	File string
}

// Serving returns the address that guests are served on: DHCP's server identifier, metadata and
// password server.
func (n *Network) Serving() netip.Addr {
	if n.ServeAs.IsValid() {
		return n.ServeAs
	}
	return n.Gateway.Addr()
}

// Subnet is the network's prefix without host bits.
func (n *Network) Subnet() netip.Prefix { return n.Gateway.Masked() }

// sameDevice tells whether both files name one device in the same way. Networks that name one
// device in two ways are told apart once the device is there.
func (n *Network) sameDevice(o *Network) bool {
	if n.Relay || o.Relay {
		return false
	}
	if n.Interface != "" {
		return n.Interface == o.Interface
	}
	return o.MAC != nil && *n.MAC == *o.MAC
}

// typedOptions are the keys of a network's file that stand for a DHCP option.
var typedOptions = map[uint8]string{3: "gateway", 6: "dns", 15: "domain", 26: "mtu", 42: "ntp", 119: "search", 121: "routes"}

const (
	leastLease = time.Second
	mostLease  = (1<<32 - 2) * time.Second // a larger one would read as infinite, RFC 2131 section 3.3
	defaultLT  = 12 * time.Hour
	maxVendor  = 1 << 20
	maxBoot    = 127 // the file field of a DHCP message ends with a zero byte, RFC 2131 section 2
)

func parseNetwork(name string, data []byte, powers Powers) (*Network, []strict.Fault) {
	d, m := strict.Read(data)
	if faults := d.Faults(); len(faults) > 0 {
		return nil, faults
	}
	n := &Network{Name: name, Relay: m.Bool("relay", false)}

	device := m.Text("interface")
	n.Interface = interfaceName(m, "interface", device)
	if t := m.Text("mac"); t.Set {
		mac, err := dhcp.ParseMAC(t.Value)
		if err != nil {
			m.Faultf("mac", "%v", err)
		}
		n.MAC = &mac
	}
	switch {
	case n.Relay && (device.Set || n.MAC != nil):
		m.Faultf(firstSet(m, "interface", "mac"), "a relayed network has no device of its own; it is served where serve_as is")
	case !n.Relay && device.Set && n.MAC != nil:
		m.Faultf("mac", "name the device by interface or by mac, not by both")
	case !n.Relay && !device.Set && n.MAC == nil:
		m.Faultf("interface", "is missing; name the guest device by interface or by mac")
	}

	n.Gateway = gateway(m)
	subnet := n.Gateway.Masked()
	n.ManageAddress = m.Bool("manage_address", false)
	if n.ServeAs = address(m, "serve_as"); n.ServeAs.IsValid() && n.Gateway.IsValid() && !n.Relay {
		if why := notAHost(subnet, n.ServeAs); why != "" {
			m.Faultf("serve_as", "%s %s", n.ServeAs, why)
		}
	}
	n.DNS = addresses(m, "dns")
	n.NTP = addresses(m, "ntp")
	if t := m.Text("domain"); t.Set {
		n.Domain = domain(m, "domain", t)
	}
	for i, t := range m.Texts("search") {
		n.Search = append(n.Search, domain(m, fmt.Sprintf("search[%d]", i), t))
	}
	n.MTU = int(m.Int("mtu", 0, 68, 65535)) // 68: RFC 2132 section 5.1
	n.Routes = routes(m)
	n.LeaseTime = leaseTime(m, defaultLT)
	n.Pool = pool(m, subnet)
	n.PublicInterface = interfaceName(m, "public_interface", m.Text("public_interface"))
	n.PublicIPv4 = address(m, "public_ipv4")
	if t := m.Text("tokens"); t.Set {
		if n.Tokens = t.Value; t.Value != "optional" && t.Value != "required" {
			m.Faultf("tokens", "is %q; it must be optional or required", t.Value)
		}
	}
	n.PinNeighbors = m.Bool("pin_neighbors", powers.NetAdmin && !n.Relay)
	n.LinkLocal = m.Bool("link_local_metadata", false)
	if n.VendorData = m.Text("vendor_data").Value; len(n.VendorData) > maxVendor {
		m.Faultf("vendor_data", "is %d bytes; %d are allowed", len(n.VendorData), maxVendor)
	}
	n.Options = options(m, "options", func(code uint8) string {
		if key := typedOptions[code]; key != "" && m.Has(key) {
			return key
		}
		if code == 67 && m.Has("boot") {
			return "boot"
		}
		return ""
	})
	n.VendorOptions = vendorOptions(m)
	n.NextServer = address(m, "next_server")
	n.Boot = bootFiles(m)
	n.RapidCommit = m.Bool("rapid_commit", false)
	n.Relays = addresses(m, "relays")

	for key, asked := range map[string]bool{"manage_address": n.ManageAddress, "pin_neighbors": n.PinNeighbors, "link_local_metadata": n.LinkLocal} {
		switch {
		case !asked:
		case n.Relay:
			m.Faultf(key, "has no meaning for a relayed network, whose guests are on no device of this router")
		case !powers.NetAdmin:
			m.Faultf(key, "needs CAP_NET_ADMIN, which the daemon was started without; leave the key out or give the power (see the unit's drop-in)")
		}
	}
	if n.LinkLocal && n.Gateway.IsValid() && subnet.Contains(LinkLocalAddr) {
		m.Faultf("link_local_metadata", "%s is an address of the network %s itself", LinkLocalAddr, subnet)
	}
	if n.Relay && !n.ServeAs.IsValid() {
		m.Faultf("serve_as", "is missing; a relayed network is served on an address of this router, named by serve_as")
	}
	if !n.Relay && len(n.Relays) > 0 {
		m.Faultf("relays", "belongs to a network with relay: true")
	}
	m.Done()
	if faults := d.Faults(); len(faults) > 0 {
		return nil, faults
	}
	return n, nil
}

// Withhold takes from a network of an earlier run what needs CAP_NET_ADMIN, for a daemon that has it
// no more.
func (n *Network) Withhold() { n.ManageAddress, n.LinkLocal, n.PinNeighbors = false, false, false }

// LinkLocalAddr is where metadata clients of other clouds look for their service.
var LinkLocalAddr = netip.AddrFrom4([4]byte{169, 254, 169, 254})

func firstSet(m *strict.Mapping, keys ...string) string {
	for _, key := range keys {
		if m.Has(key) {
			return key
		}
	}
	return keys[0]
}

func gateway(m *strict.Mapping) netip.Prefix {
	t := m.Text("gateway")
	if !t.Set {
		m.Faultf("gateway", "is missing; it must be the guests' gateway with its prefix length, like 10.1.1.1/24")
		return netip.Prefix{}
	}
	p, err := netip.ParsePrefix(t.Value)
	switch {
	case err != nil || !p.Addr().Is4():
		m.Faultf("gateway", "is %q; it must be an IPv4 address with its prefix length, like 10.1.1.1/24", t.Value)
	case p.Bits() < 8 || p.Bits() > 30:
		m.Faultf("gateway", "prefix length %d; it must be 8 to 30", p.Bits())
	case !usable(p.Addr()):
		m.Faultf("gateway", "%s is no address of a host", p.Addr())
	default:
		if why := notAHost(p.Masked(), p.Addr()); why != "" {
			m.Faultf("gateway", "%s %s", p.Addr(), why)
			break
		}
		return p
	}
	return netip.Prefix{}
}

// usable tells whether a could be a host's address anywhere.
func usable(a netip.Addr) bool {
	return a.Is4() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255}) && a.As4()[0] < 240 && a.As4()[0] > 0
}

// notAHost tells why a cannot be a host's address in subnet, or "".
func notAHost(subnet netip.Prefix, a netip.Addr) string {
	switch {
	case !subnet.Contains(a):
		return fmt.Sprintf("is outside %s", subnet)
	case a == subnet.Addr():
		return fmt.Sprintf("is the network address of %s", subnet)
	case a == broadcast(subnet):
		return fmt.Sprintf("is the broadcast address of %s", subnet)
	}
	return ""
}

func broadcast(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

func address(m *strict.Mapping, key string) netip.Addr {
	t := m.Text(key)
	if !t.Set || t.Value == "" {
		return netip.Addr{}
	}
	return parseAddress(m, key, t)
}

func addresses(m *strict.Mapping, key string) []netip.Addr {
	var list []netip.Addr
	for i, t := range m.Texts(key) {
		if a := parseAddress(m, fmt.Sprintf("%s[%d]", key, i), t); a.IsValid() {
			list = append(list, a)
		}
	}
	return list
}

func parseAddress(m *strict.Mapping, key string, t strict.Text) netip.Addr {
	a, err := netip.ParseAddr(t.Value)
	if err != nil || !usable(a) {
		m.FaultAt(t.Pos, key, "is %q; it must be an IPv4 address of a host, like 10.1.1.9", t.Value)
		return netip.Addr{}
	}
	return a
}

var (
	interfacePattern = regexp.MustCompile(`^[^\s/:%]{1,15}$`) // the kernel's own rule, dev_valid_name
	labelPattern     = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$`)
)

func interfaceName(m *strict.Mapping, key string, t strict.Text) string {
	if t.Value != "" && (!interfacePattern.MatchString(t.Value) || t.Value == "." || t.Value == "..") {
		m.Faultf(key, "is %q; it must be the name of a network device, like eth0", t.Value)
	}
	if t.Set && t.Value == "" && key == "interface" {
		m.Faultf(key, "is empty; it must be the name of a network device, like eth0")
	}
	return t.Value
}

// domain checks a domain name; RFC 1035 section 2.3.4 sets the lengths.
func domain(m *strict.Mapping, key string, t strict.Text) string {
	name := strings.TrimSuffix(t.Value, ".")
	if !validDomain(name) {
		m.FaultAt(t.Pos, key, "is %q; it must be a domain name, like cs1.internal", t.Value)
	}
	return name
}

func validDomain(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if !labelPattern.MatchString(label) {
			return false
		}
	}
	return true
}

func routes(m *strict.Mapping) []dhcp.Route {
	var list []dhcp.Route
	for _, r := range m.List("routes") {
		to, via := r.Text("to"), r.Text("via")
		r.Done()
		p, err := netip.ParsePrefix(to.Value)
		switch {
		case !to.Set:
			r.Faultf("to", "is missing; it must be a network, like 192.168.0.0/16")
			continue
		case err != nil || !p.Addr().Is4():
			r.Faultf("to", "is %q; it must be a network, like 192.168.0.0/16", to.Value)
			continue
		case p != p.Masked():
			r.Faultf("to", "%s has host bits set; did you mean %s?", p, p.Masked())
			continue
		}
		gw, err := netip.ParseAddr(via.Value)
		switch {
		case !via.Set:
			r.Faultf("via", "is missing; it must be the address of a router, or 0.0.0.0 for a network on the link")
			continue
		case err != nil || !gw.IsUnspecified() && !usable(gw):
			r.Faultf("via", "is %q; it must be the address of a router, or 0.0.0.0 for a network on the link", via.Value)
			continue
		}
		list = append(list, dhcp.Route{To: p, Via: gw})
	}
	return list
}

// leaseTime reads lease_time, which may be the word infinite.
func leaseTime(m *strict.Mapping, def time.Duration) time.Duration {
	if m.Literal("lease_time") == "infinite" {
		return dhcp.Infinite
	}
	return m.Duration("lease_time", def, leastLease, mostLease)
}

func pool(m *strict.Mapping, subnet netip.Prefix) *Pool {
	if !m.Has("pool") {
		return nil
	}
	s := m.Mapping("pool")
	p := &Pool{From: address(s, "from"), To: address(s, "to"), Probe: s.Bool("probe", true)}
	s.Done()
	for key, a := range map[string]netip.Addr{"from": p.From, "to": p.To} {
		switch {
		case !s.Has(key):
			s.Faultf(key, "is missing; it must be an address of the network")
		case !a.IsValid() || !subnet.IsValid():
		default:
			if why := notAHost(subnet, a); why != "" {
				s.Faultf(key, "%s %s", a, why)
			}
		}
	}
	if p.From.IsValid() && p.To.IsValid() && p.To.Less(p.From) {
		s.Faultf("to", "%s comes before from, %s", p.To, p.From)
	}
	return p
}

// options reads options by code; taken names the typed key that stands for a code, if any.
func options(m *strict.Mapping, key string, taken func(code uint8) string) dhcp.Options {
	s := m.Mapping(key)
	var opts dhcp.Options
	for _, l := range s.Entries() {
		code, err := strconv.ParseUint(l.Key, 10, 8)
		if err != nil || strconv.FormatUint(code, 10) != l.Key {
			s.FaultAt(l.KeyPos, l.Key, "is no option code; it must be a number from 2 to 254")
			continue
		}
		if typed := taken(uint8(code)); typed != "" {
			s.FaultAt(l.KeyPos, l.Key, "is what %s sets; name the option once", typed)
			continue
		}
		value, err := optionValue(uint8(code), l)
		if err != nil {
			s.FaultAt(l.Pos, l.Key, "%v", err)
			continue
		}
		if opts == nil {
			opts = make(dhcp.Options)
		}
		opts[uint8(code)] = value
	}
	return opts
}

// optionValue takes text as the option's RFC defines it, or {hex: "..."} as it is.
func optionValue(code uint8, l strict.Entry) ([]byte, error) {
	if l.Sub == nil {
		return dhcp.ParseOption(code, l.Text)
	}
	hex := l.Sub.Literal("hex")
	if !l.Sub.Has("hex") {
		return nil, fmt.Errorf("must be text or {hex: \"0a01\"}")
	}
	l.Sub.Done()
	return dhcp.ParseOptionHex(code, hex)
}

func vendorOptions(m *strict.Mapping) []VendorClass {
	s := m.Mapping("vendor_options")
	var list []VendorClass
	for _, l := range s.Entries() {
		if l.Sub == nil || l.Key == "" || len(l.Key) > 255 {
			s.FaultAt(l.KeyPos, l.Key, "must be the start of a vendor class (option 60) with its options, like MSFT: {43: {hex: \"01\"}}")
			continue
		}
		class := VendorClass{Class: l.Key, Options: options(s, l.Key, func(code uint8) string {
			if code == 60 {
				return "the vendor class itself"
			}
			return ""
		})}
		list = append(list, class)
	}
	return list
}

func bootFiles(m *strict.Mapping) []BootFile {
	var list []BootFile
	for _, b := range m.List("boot") {
		f := BootFile{IPXE: b.Bool("ipxe", false), File: b.Text("file").Value}
		if b.Has("arch") {
			arch := uint16(b.Int("arch", 0, 0, 65535)) // RFC 4578 section 2.1
			f.Arch = &arch
		}
		b.Done()
		if f.File == "" || len(f.File) > maxBoot || strings.ContainsRune(f.File, 0) {
			b.Faultf("file", "is %d bytes; it must be the name or URL of a boot file of 1 to %d bytes", len(f.File), maxBoot)
		}
		list = append(list, f)
	}
	return list
}
