package cloudstack

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// network is a guest network as the router serves it.
type network struct {
	Name    string
	Device  string
	Gateway netip.Prefix // the guests' gateway in its subnet
	ServeAs netip.Addr   // the router's own address where it is not the gateway
	DNS     []string
	Domain  string
	Search  []string
	MTU     int
	Public  string     // the public device
	NAT     netip.Addr // the public address that guests are seen with; invalid: the device's
	Boot    bool       // guests may boot from dnsmasq's TFTP server
}

// serving is the address that guests are served on.
func (n *network) serving() netip.Addr {
	if n.ServeAs.IsValid() {
		return n.ServeAs
	}
	return n.Gateway.Addr()
}

// defaultDomain is what guests are told where the server names no domain.
const defaultDomain = "cloudnine.internal"

// networks returns the guest networks that follow from what is known of the router, by name.
func (r *router) networks() []network {
	var out []network
	add := func(n network) {
		for i := range out {
			if out[i].Gateway.Overlaps(n.Gateway) {
				return // an address more in a range that is served already
			}
		}
		subnet := n.Gateway.Masked()
		n.Name = fmt.Sprintf("%s-%d", subnet.Addr(), subnet.Bits())
		if r.Scope != "" {
			n.Name = r.Scope + "-" + n.Name
		}
		n.Public, n.NAT = r.public()
		if n.MTU == 0 {
			n.MTU = r.MTUs[n.Device]
		}
		out = append(out, n)
	}
	for _, p := range slices.SortedFunc(maps.Keys(r.Subnets), comparePrefixes) {
		if n, ok := r.subnetNetwork(r.Subnets[p]); ok {
			add(n)
		}
	}
	kind := r.CmdLine["type"]
	if kind == "" || kind == "vpcrouter" {
		for _, device := range slices.Sorted(maps.Keys(r.Tiers)) {
			add(r.tierNetwork(r.Tiers[device]))
		}
	}
	if kind != "vpcrouter" {
		if n, ok := r.ownNetwork(); ok {
			add(n)
		}
		for _, ip := range slices.SortedFunc(maps.Keys(r.Ranges), netip.Addr.Compare) {
			if n, ok := r.rangeNetwork(r.Ranges[ip]); ok {
				add(n)
			}
		}
	}
	slices.SortFunc(out, func(a, b network) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (r *router) redundant() bool {
	switch strings.ToLower(r.CmdLine["redundant_router"]) {
	case "", "0", "false", "no":
		return false
	}
	return true
}

// public returns the public device, and the source address of guests in the world where the server
// has named it: a device may hold others before it.
func (r *router) public() (device string, nat netip.Addr) {
	switch r.CmdLine["type"] {
	case "router":
		device = "eth2"
	case "vpcrouter":
		device = "eth1"
	}
	for _, ip := range slices.SortedFunc(maps.Keys(r.Public), netip.Addr.Compare) {
		if a := r.Public[ip]; a.NAT {
			return cmp.Or(a.Device, device), ip
		}
	}
	return device, netip.Addr{}
}

// resolvers is what guests are told to ask: the router first, unless it is told to keep out of it,
// then others.
func (r *router) resolvers(own netip.Addr, others ...string) []string {
	var out []string
	if r.CmdLine["useextdns"] != "true" {
		out = append(out, own.String())
	}
	for _, s := range others {
		if a := anIPv4(text(s)); a.IsValid() && !slices.Contains(out, a.String()) {
			out = append(out, a.String())
		}
	}
	return out
}

// tierNetwork is a VPC's network. In a redundant pair the gateway is the address that moves, and
// whoever has it serves.
func (r *router) tierNetwork(t tier) network {
	n := network{
		Device: t.Device, Gateway: netip.PrefixFrom(t.Gateway, t.Bits), MTU: t.MTU, Domain: domainOr(t.Domain),
	}
	if t.IP != t.Gateway && (t.NoGateway || !r.redundant()) {
		n.ServeAs = t.IP
	}
	n.DNS = r.resolvers(n.serving(), t.DNS...)
	return n
}

// ownNetwork is the network of an isolated or shared network's router, which is told of it in its
// command line alone.
func (r *router) ownNetwork() (network, bool) {
	c := r.CmdLine
	ip := anIPv4(text(c["eth0ip"]))
	size, err := bits("eth0mask", text(c["eth0mask"]))
	if !ip.IsValid() || err != nil || c["type"] != "router" && c["type"] != "dhcpsrvr" {
		return network{}, false
	}
	n := network{Device: "eth0", Gateway: netip.PrefixFrom(ip, size)}
	if vip := anIPv4(text(c["guestgw"])); vip.IsValid() && r.redundant() {
		if vs, err := bits("guestcidrsize", text(c["guestcidrsize"])); err == nil {
			size = vs
		}
		n.Gateway = netip.PrefixFrom(vip, size)
	} else if c["type"] == "dhcpsrvr" {
		if gw := anIPv4(text(c["gateway"])); gw.IsValid() && n.Gateway.Contains(gw) && gw != ip {
			n.Gateway, n.ServeAs = netip.PrefixFrom(gw, size), ip
		}
	}
	r.common(&n)
	return n, true
}

// rangeNetwork is a further range of a shared network. Nothing says its gateway but other files.
func (r *router) rangeNetwork(a address) (network, bool) {
	p := netip.PrefixFrom(a.IP, a.Bits)
	gw := a.Gateway
	// What the server says of the range counts more than what a guest in it made us think.
	if g, ok := r.Gateways[a.IP]; ok && p.Masked().Contains(g) {
		gw = g
	}
	if !gw.IsValid() || !p.Masked().Contains(gw) {
		return network{}, false
	}
	n := network{Device: cmp.Or(a.Device, "eth0"), Gateway: netip.PrefixFrom(gw, a.Bits)}
	if gw != a.IP {
		n.ServeAs = a.IP
	}
	r.common(&n)
	return n, true
}

func (r *router) common(n *network) {
	c := r.CmdLine
	n.DNS = r.resolvers(n.serving(), c["dns1"], c["dns2"])
	n.Domain = domainOr(c["domain"])
	for _, s := range list(c["dnssearchorder"]) {
		if s = strings.TrimSuffix(s, "."); domainName(s) {
			n.Search = append(n.Search, s)
		}
	}
	n.Boot = true
}

func domainOr(s string) string {
	if s = strings.TrimSuffix(s, "."); domainName(s) {
		return s
	}
	return defaultDomain
}

// place returns the network that an address is in, or nil.
func place(networks []network, ip netip.Addr) *network {
	for i := range networks {
		if networks[i].Gateway.Masked().Contains(ip) {
			return &networks[i]
		}
	}
	return nil
}
