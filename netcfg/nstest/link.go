package nstest

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Pair makes a veth pair, its ends named aName in a and bName in b, both up.
func Pair(t testing.TB, a *Host, aName string, b *Host, bName string) {
	t.Helper()
	// The far end must be told its namespace when it is made, for both ends may have one name.
	attrs := netlink.NewLinkAttrs()
	attrs.Name = aName
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: b.namespace()}
	if err := a.links.LinkAdd(veth); err != nil {
		t.Fatalf("veth %s %s - %s %s: %v", a.name, aName, b.name, bName, err)
	}
	a.Up(t, aName)
	b.Up(t, bName)
}

// namespace returns a reference to the host's network namespace that netlink messages can carry.
func (h *Host) namespace() netlink.NsFd {
	return netlink.NsFd(h.files[unix.CLONE_NEWNET].Fd())
}

// Bridge makes a bridge that is up and takes ports, links of the host, into it. It forwards at once, for
// it runs no spanning tree. Without ports it is a link that leads nowhere.
func (h *Host) Bridge(t testing.TB, name string, ports ...string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := h.links.LinkAdd(bridge); err != nil {
		t.Fatalf("host %s: bridge %s: %v", h.name, name, err)
	}
	for _, port := range ports {
		if err := h.links.LinkSetMaster(h.Link(t, port), bridge); err != nil {
			t.Fatalf("host %s: bridge %s: port %s: %v", h.name, name, port, err)
		}
	}
	h.Up(t, name)
}

// Link returns the link of that name.
func (h *Host) Link(t testing.TB, name string) netlink.Link {
	t.Helper()
	link, err := h.links.LinkByName(name)
	if err != nil {
		t.Fatalf("host %s: link %s: %v", h.name, name, err)
	}
	return link
}

// MAC returns the hardware address of a link.
func (h *Host) MAC(t testing.TB, name string) net.HardwareAddr {
	t.Helper()
	return h.Link(t, name).Attrs().HardwareAddr
}

// SetMAC gives a link a hardware address, colon form.
func (h *Host) SetMAC(t testing.TB, name, mac string) {
	t.Helper()
	addr, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	h.do(t, "set MAC of", name, h.links.LinkSetHardwareAddr(h.Link(t, name), addr))
}

// SetMTU sets the largest packet of a link, in bytes.
func (h *Host) SetMTU(t testing.TB, name string, mtu int) {
	t.Helper()
	h.do(t, "set MTU of", name, h.links.LinkSetMTU(h.Link(t, name), mtu))
}

// Up sets a link up.
func (h *Host) Up(t testing.TB, name string) {
	t.Helper()
	h.do(t, "set up", name, h.links.LinkSetUp(h.Link(t, name)))
}

// Down sets a link down.
func (h *Host) Down(t testing.TB, name string) {
	t.Helper()
	h.do(t, "set down", name, h.links.LinkSetDown(h.Link(t, name)))
}

// Rename gives a link another name. It need not be down (since Linux 6.1; older kernels insist for
// veth links).
func (h *Host) Rename(t testing.TB, name, to string) {
	t.Helper()
	h.do(t, "rename", name, h.links.LinkSetName(h.Link(t, name), to))
}

// Delete removes a link; the other end of a pair goes with it.
func (h *Host) Delete(t testing.TB, name string) {
	t.Helper()
	h.do(t, "delete", name, h.links.LinkDel(h.Link(t, name)))
}

// AddAddr adds addresses such as 10.1.1.1/24 to a link.
func (h *Host) AddAddr(t testing.TB, name string, prefixes ...string) {
	t.Helper()
	link := h.Link(t, name)
	for _, prefix := range prefixes {
		h.do(t, "add address "+prefix+" to", name, h.links.AddrAdd(link, addr(t, prefix)))
	}
}

// DelAddr removes addresses from a link.
func (h *Host) DelAddr(t testing.TB, name string, prefixes ...string) {
	t.Helper()
	link := h.Link(t, name)
	for _, prefix := range prefixes {
		h.do(t, "remove address "+prefix+" from", name, h.links.AddrDel(link, addr(t, prefix)))
	}
}

// AddRoute adds a route through a neighbor: to is a prefix such as 192.168.0.0/16, or 0.0.0.0/0.
func (h *Host) AddRoute(t testing.TB, to, via string) {
	t.Helper()
	dst, err := netip.ParsePrefix(to)
	if err != nil {
		t.Fatal(err)
	}
	gateway, err := netip.ParseAddr(via)
	if err != nil {
		t.Fatal(err)
	}
	route := &netlink.Route{Dst: ipNet(dst), Gw: gateway.AsSlice()}
	h.do(t, "add route to", to, h.links.RouteAdd(route))
}

func (h *Host) do(t testing.TB, what, name string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("host %s: %s %s: %v", h.name, what, name, err)
	}
}

func addr(t testing.TB, prefix string) *netlink.Addr {
	t.Helper()
	p, err := netip.ParsePrefix(prefix)
	if err != nil {
		t.Fatal(err)
	}
	return &netlink.Addr{IPNet: ipNet(p)}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
