package netcfg

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// body joins the parts of a message as they go over the wire.
func body(parts ...nl.NetlinkRequestData) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p.Serialize()...)
	}
	return b
}

func addrHead(bits, scope uint8) *nl.IfAddrmsg {
	head := nl.NewIfAddrmsg(unix.AF_INET)
	head.Index, head.Prefixlen, head.Scope = 7, bits, scope
	return head
}

// cutOff is an attribute of seven bytes, the last of its message: the padding is missing.
type cutOff struct{}

func (cutOff) Len() int { return 7 }

func (cutOff) Serialize() []byte {
	return append(binary.NativeEndian.AppendUint16(nil, 7), byte(unix.IFA_LABEL), 0, 'e', 't', 'h')
}

func ip(s string) []byte { return netip.MustParseAddr(s).AsSlice() }

func TestParseAddr(t *testing.T) {
	local := nl.NewRtAttr(unix.IFA_LOCAL, ip("10.1.1.1"))
	tests := []struct {
		name string
		in   []byte
		want Addr
		ok   bool
	}{
		{"plain", body(addrHead(24, 0), local), Addr{Prefix: netip.MustParsePrefix("10.1.1.1/24"), Global: true}, true},
		{"link scope", body(addrHead(32, unix.RT_SCOPE_LINK), local), Addr{Prefix: netip.MustParsePrefix("10.1.1.1/32")}, true},
		{"ours", body(addrHead(24, 0), local, nl.NewRtAttr(ifaProto, []byte{Protocol})), Addr{Prefix: netip.MustParsePrefix("10.1.1.1/24"), Global: true, Own: true}, true},
		{"the kernel's", body(addrHead(24, 0), local, nl.NewRtAttr(ifaProto, []byte{1})), Addr{Prefix: netip.MustParsePrefix("10.1.1.1/24"), Global: true}, true},
		{"point to point", body(addrHead(32, 0), nl.NewRtAttr(unix.IFA_ADDRESS, ip("10.1.1.2")), local), Addr{Prefix: netip.MustParsePrefix("10.1.1.1/32"), Global: true}, true},
		{"last attribute without padding", body(addrHead(24, 0), local, cutOff{}), Addr{Prefix: netip.MustParsePrefix("10.1.1.1/24"), Global: true}, true},
		{"no address", body(addrHead(24, 0)), Addr{}, false},
		{"too long a prefix", body(addrHead(33, 0), local), Addr{}, false},
		{"IPv6", body(nl.NewIfAddrmsg(unix.AF_INET6), nl.NewRtAttr(unix.IFA_ADDRESS, ip("2001:db8::1"))), Addr{}, false},
		{"an IPv6 address by mistake", body(addrHead(24, 0), nl.NewRtAttr(unix.IFA_LOCAL, ip("2001:db8::1"))), Addr{}, false},
		{"cut off", body(addrHead(24, 0))[:5], Addr{}, false},
		{"nothing", nil, Addr{}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			index, got, ok := parseAddr(test.in)
			if ok != test.ok || ok && (got != test.want || index != 7) {
				t.Errorf("parseAddr() = %d, %+v, %t, want 7, %+v, %t", index, got, ok, test.want, test.ok)
			}
		})
	}
}

func TestParseNeighbor(t *testing.T) {
	head := func(state uint16) *netlink.Ndmsg {
		return &netlink.Ndmsg{Family: unix.AF_INET, Index: 7, State: state}
	}
	dst := nl.NewRtAttr(netlink.NDA_DST, ip("10.1.1.34"))
	mac := nl.NewRtAttr(netlink.NDA_LLADDR, []byte("\x02\x00\x00\x00\x00\x01"))
	ours := nl.NewRtAttr(netlink.NDA_PROTOCOL, []byte{Protocol})
	tests := []struct {
		name string
		in   []byte
		want neighborEntry
		ok   bool
	}{
		{"learned", body(head(netlink.NUD_REACHABLE), dst, mac), neighborEntry{mac: "\x02\x00\x00\x00\x00\x01"}, true},
		{"permanent", body(head(netlink.NUD_PERMANENT), dst, mac), neighborEntry{mac: "\x02\x00\x00\x00\x00\x01", permanent: true}, true},
		{"ours", body(head(netlink.NUD_PERMANENT), dst, mac, ours), neighborEntry{mac: "\x02\x00\x00\x00\x00\x01", permanent: true, own: true}, true},
		// Somebody has made an entry of ours a learned one: what it was is over.
		{"ours once", body(head(netlink.NUD_STALE), dst, mac, ours), neighborEntry{mac: "\x02\x00\x00\x00\x00\x01"}, true},
		{"unanswered", body(head(netlink.NUD_FAILED), dst), neighborEntry{}, true},
		{"IPv6", body(&netlink.Ndmsg{Family: unix.AF_INET6, Index: 7}, nl.NewRtAttr(netlink.NDA_DST, ip("2001:db8::1"))), neighborEntry{}, false},
		{"no address", body(head(netlink.NUD_REACHABLE), mac), neighborEntry{}, false},
		{"nothing", nil, neighborEntry{}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			index, addr, got, ok := parseNeighbor(test.in)
			if ok != test.ok || ok && (got != test.want || index != 7 || addr != netip.MustParseAddr("10.1.1.34")) {
				t.Errorf("parseNeighbor() = %d, %s, %+v, %t, want %+v, %t", index, addr, got, ok, test.want, test.ok)
			}
		})
	}
}

func TestDecide(t *testing.T) {
	const one, two = "\x02\x00\x00\x00\x00\x01", "\x02\x00\x00\x00\x00\x02"
	learned := neighborEntry{mac: one}
	ours := neighborEntry{mac: one, permanent: true, own: true}
	foreign := neighborEntry{mac: one, permanent: true}
	tests := []struct {
		name string
		have neighborEntry
		want string
		do   neighborAction
	}{
		{"nothing there", neighborEntry{}, one, setEntry},
		{"learned, even the right one", learned, one, setEntry},
		{"ours and right", ours, one, leaveEntry},
		{"ours and wrong", ours, two, setEntry},
		{"foreign and wrong", foreign, two, foreignEntry},
		// It does what is wanted now, but its owner may take it away at any time.
		{"foreign and right", foreign, one, foreignEntry},
		{"not wanted: nothing there", neighborEntry{}, "", leaveEntry},
		{"not wanted: learned", learned, "", leaveEntry},
		{"not wanted: ours", ours, "", removeEntry},
		{"not wanted: foreign", foreign, "", leaveEntry},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := decide(test.have, test.want); got != test.do {
				t.Errorf("decide() = %d, want %d", got, test.do)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(body(addressMessage(7, netip.MustParsePrefix("10.1.1.1/24"))...))
	f.Add(body(&netlink.Ndmsg{Family: unix.AF_INET, Index: 7, State: netlink.NUD_PERMANENT}, nl.NewRtAttr(netlink.NDA_DST, ip("10.1.1.34"))))
	f.Add(body(addrHead(24, 0), cutOff{}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, addr, ok := parseAddr(b); ok && (!addr.Prefix.IsValid() || !addr.Prefix.Addr().Is4()) {
			t.Errorf("parseAddr() = %v", addr)
		}
		if link, ok := parseLink(b); ok && (link.Index <= 0 || link.Name == "") {
			t.Errorf("parseLink() = %v", link)
		}
		if _, addr, _, ok := parseNeighbor(b); ok && !addr.Is4() {
			t.Errorf("parseNeighbor() = %v", addr)
		}
	})
}

func TestLastAddr(t *testing.T) {
	for prefix, want := range map[string]string{
		"10.1.1.1/24": "10.1.1.255", "10.1.1.1/30": "10.1.1.3", "10.1.2.1/8": "10.255.255.255", "10.1.1.1/0": "255.255.255.255",
	} {
		if got, _ := netip.AddrFromSlice(lastAddr(netip.MustParsePrefix(prefix))); got.String() != want {
			t.Errorf("lastAddr(%s) = %s, want %s", prefix, got, want)
		}
	}
}
