package netcfg

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Protocol is the number by which the kernel remembers that this agent added an address or a neighbor
// entry: attributes IFA_PROTO and NDA_PROTOCOL. The kernel itself uses 1 to 3; no other program is known
// to use this one.
const Protocol = 118

// ifaProto is IFA_PROTO of linux/if_addr.h (5.18), which x/sys does not name.
const ifaProto = 11

// conn is a netlink socket for requests. It may be used by several goroutines; they take turns.
type conn struct {
	socket *nl.SocketHandle
	sent   atomic.Uint64 // requests so far, to show in tests that nothing was sent
}

// dial opens a conn in the network namespace of the calling thread.
func dial() (*conn, error) {
	s, err := nl.GetNetlinkSocketAt(-1, -1, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	// The kernel answers at once. A lost answer must not hang the agent.
	timeout := unix.NsecToTimeval((10 * time.Second).Nanoseconds())
	if err := errors.Join(s.SetSendTimeout(&timeout), s.SetReceiveTimeout(&timeout)); err != nil {
		s.Close()
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	return &conn{socket: &nl.SocketHandle{Socket: s}}, nil
}

func (c *conn) close() { c.socket.Close() }

// execute sends a request and returns the bodies of the messages of type answer (0: none expected).
func (c *conn) execute(request, flags int, answer uint16, data ...nl.NetlinkRequestData) ([][]byte, error) {
	c.sent.Add(1)
	req := nl.NewNetlinkRequest(request, flags)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: c.socket}
	for _, d := range data {
		req.AddData(d)
	}
	return req.Execute(unix.NETLINK_ROUTE, answer)
}

// dump is execute for lists. A list that changed while it was read is read again; one that keeps
// changing is returned as it is, since the change that disturbed it will be announced as well.
func (c *conn) dump(request int, answer uint16, data ...nl.NetlinkRequestData) ([][]byte, error) {
	for try := 0; ; try++ {
		list, err := c.execute(request, unix.NLM_F_DUMP, answer, data...)
		if errors.Is(err, nl.ErrDumpInterrupted) {
			if try < 3 {
				continue
			}
			err = nil
		}
		return list, err
	}
}

// readLinks lists all links with their IPv4 addresses. own tells which addresses are ours; if it is nil
// their marks do.
func (c *conn) readLinks(own func(index int, prefix netip.Prefix) bool) (*Snapshot, error) {
	list, err := c.dump(unix.RTM_GETLINK, unix.RTM_NEWLINK, nl.NewIfInfomsg(unix.AF_UNSPEC))
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var links []Link
	at := map[int]int{}
	for _, m := range list {
		if link, ok := parseLink(m); ok {
			at[link.Index] = len(links)
			links = append(links, link)
		}
	}
	list, err = c.dump(unix.RTM_GETADDR, unix.RTM_NEWADDR, nl.NewIfAddrmsg(unix.AF_INET))
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, m := range list {
		index, addr, ok := parseAddr(m)
		if !ok {
			continue
		}
		if i, known := at[index]; known {
			if own != nil {
				addr.Own = own(index, addr.Prefix)
			}
			links[i].Addrs = append(links[i].Addrs, addr)
		}
	}
	return NewSnapshot(links), nil
}

// parseLink reads the body of an RTM_NEWLINK message. It returns false for what cannot be a link.
func parseLink(m []byte) (link Link, ok bool) {
	if len(m) < unix.SizeofIfInfomsg {
		return Link{}, false
	}
	link.Index = int(int32(binary.NativeEndian.Uint32(m[4:8])))
	link.Up = binary.NativeEndian.Uint32(m[8:12])&unix.IFF_UP != 0
	for kind, value := range attributes(m[unix.SizeofIfInfomsg:]) {
		switch {
		case kind == unix.IFLA_IFNAME:
			link.Name = unix.ByteSliceToString(value)
		case kind == unix.IFLA_ADDRESS:
			link.MAC = slices.Clone(value)
		case kind == unix.IFLA_MTU && len(value) == 4:
			link.MTU = int(binary.NativeEndian.Uint32(value))
		case kind == unix.IFLA_MASTER && len(value) == 4:
			link.Master = int(binary.NativeEndian.Uint32(value))
		}
	}
	return link, link.Index > 0 && link.Name != ""
}

// parseAddr reads the body of an RTM_NEWADDR message. It returns false for what is no IPv4 address.
func parseAddr(m []byte) (index int, addr Addr, ok bool) {
	if len(m) < unix.SizeofIfAddrmsg {
		return 0, Addr{}, false
	}
	family, bits, scope := m[0], int(m[1]), m[3]
	if family != unix.AF_INET || bits > 32 {
		return 0, Addr{}, false
	}
	index = int(binary.NativeEndian.Uint32(m[4:8]))
	addr.Global = scope == unix.RT_SCOPE_UNIVERSE
	for kind, value := range attributes(m[unix.SizeofIfAddrmsg:]) {
		switch kind {
		case unix.IFA_LOCAL: // the link's own; IFA_ADDRESS is the far end's on a point-to-point link
			if ip, ok := netip.AddrFromSlice(value); ok && ip.Is4() {
				addr.Prefix = netip.PrefixFrom(ip, bits)
			}
		case ifaProto:
			addr.Own = len(value) == 1 && value[0] == Protocol
		}
	}
	return index, addr, addr.Prefix.IsValid()
}

// addAddress adds an address to a link and marks it. It returns EEXIST if the link has it.
func (c *conn) addAddress(index int, prefix netip.Prefix) error {
	data := addressMessage(index, prefix)
	if bits := prefix.Bits(); bits < 31 { // shorter subnets have no broadcast address, RFC 3021
		data = append(data, nl.NewRtAttr(unix.IFA_BROADCAST, lastAddr(prefix)))
	}
	data = append(data, nl.NewRtAttr(ifaProto, []byte{Protocol}))
	_, err := c.execute(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK, 0, data...)
	return err
}

// removeAddress removes an address from a link. It returns EADDRNOTAVAIL if the link does not have it.
func (c *conn) removeAddress(index int, prefix netip.Prefix) error {
	_, err := c.execute(unix.RTM_DELADDR, unix.NLM_F_ACK, 0, addressMessage(index, prefix)...)
	return err
}

func addressMessage(index int, prefix netip.Prefix) []nl.NetlinkRequestData {
	head := nl.NewIfAddrmsg(unix.AF_INET)
	head.Index, head.Prefixlen = uint32(index), uint8(prefix.Bits())
	if prefix.Addr().IsLinkLocalUnicast() {
		head.Scope = unix.RT_SCOPE_LINK
	}
	ip := prefix.Addr().AsSlice()
	return []nl.NetlinkRequestData{head, nl.NewRtAttr(unix.IFA_LOCAL, ip), nl.NewRtAttr(unix.IFA_ADDRESS, ip)}
}

// lastAddr returns the subnet's broadcast address.
func lastAddr(prefix netip.Prefix) []byte {
	ip := prefix.Addr().As4()
	value := binary.BigEndian.Uint32(ip[:]) | (1<<(32-prefix.Bits()) - 1)
	return binary.BigEndian.AppendUint32(nil, value)
}

// promote tells the kernel whether the other addresses of a subnet survive when the first one of that
// subnet is removed from the link (net.ipv4.conf.*.promote_secondaries). By netlink, because a hardened
// daemon cannot write below /proc/sys.
func (c *conn) promote(index int, on bool) error {
	value := uint32(0)
	if on {
		value = 1
	}
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Index = int32(index)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	conf := spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(inetConf, nil)
	conf.AddRtAttr(promoteSecondaries, nl.Uint32Attr(value))
	_, err := c.execute(unix.RTM_SETLINK, unix.NLM_F_ACK, 0, head, spec)
	return err
}

const (
	inetConf           = 1  // IFLA_INET_CONF of linux/if_link.h
	promoteSecondaries = 20 // IPV4_DEVCONF_PROMOTE_SECONDARIES of linux/ip.h
)

// promotes tells whether the kernel does so already for this link.
func (c *conn) promotes(index int) (bool, error) {
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Index = int32(index)
	list, err := c.execute(unix.RTM_GETLINK, 0, unix.RTM_NEWLINK, head)
	if err != nil || len(list) == 0 || len(list[0]) < unix.SizeofIfInfomsg {
		return false, err
	}
	value := list[0][unix.SizeofIfInfomsg:]
	for _, kind := range []uint16{unix.IFLA_AF_SPEC, unix.AF_INET, inetConf} {
		value = attribute(value, kind)
	}
	// An array of 32-bit values, setting n at place n-1.
	if at := (promoteSecondaries - 1) * 4; len(value) >= at+4 {
		return binary.NativeEndian.Uint32(value[at:]) != 0, nil
	}
	return false, nil
}

// neighbors lists the entries of a link.
func (c *conn) neighbors(index int) (map[netip.Addr]neighborEntry, error) {
	list, err := c.dump(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, &netlink.Ndmsg{Family: unix.AF_INET},
		nl.NewRtAttr(netlink.NDA_IFINDEX, nl.Uint32Attr(uint32(index))))
	if err != nil {
		return nil, err
	}
	entries := make(map[netip.Addr]neighborEntry, len(list))
	for _, m := range list {
		if i, ip, entry, ok := parseNeighbor(m); ok && i == index {
			entries[ip] = entry
		}
	}
	return entries, nil
}

// neighbor returns the entry for one address on a link, the zero entry if there is none.
func (c *conn) neighbor(index int, ip netip.Addr) (neighborEntry, error) {
	head := &netlink.Ndmsg{Family: unix.AF_INET, Index: uint32(index)}
	list, err := c.execute(unix.RTM_GETNEIGH, 0, unix.RTM_NEWNEIGH, head, nl.NewRtAttr(netlink.NDA_DST, ip.AsSlice()))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return neighborEntry{}, nil
	}
	if err != nil {
		return neighborEntry{}, err
	}
	for _, m := range list {
		if _, _, entry, ok := parseNeighbor(m); ok {
			return entry, nil
		}
	}
	return neighborEntry{}, fmt.Errorf("neighbor %s: the kernel's answer cannot be read", ip)
}

// setNeighbor makes a permanent entry of ours, whatever there was.
func (c *conn) setNeighbor(index int, ip netip.Addr, mac string) error {
	head := &netlink.Ndmsg{Family: unix.AF_INET, Index: uint32(index), State: netlink.NUD_PERMANENT}
	_, err := c.execute(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK, 0, head,
		nl.NewRtAttr(netlink.NDA_DST, ip.AsSlice()),
		nl.NewRtAttr(netlink.NDA_LLADDR, []byte(mac)),
		nl.NewRtAttr(netlink.NDA_PROTOCOL, []byte{Protocol}))
	return err
}

func (c *conn) removeNeighbor(index int, ip netip.Addr) error {
	head := &netlink.Ndmsg{Family: unix.AF_INET, Index: uint32(index)}
	_, err := c.execute(unix.RTM_DELNEIGH, unix.NLM_F_ACK, 0, head, nl.NewRtAttr(netlink.NDA_DST, ip.AsSlice()))
	return err
}

// parseNeighbor reads the body of an RTM_NEWNEIGH message. It returns false for what is no IPv4 neighbor.
func parseNeighbor(m []byte) (index int, ip netip.Addr, entry neighborEntry, ok bool) {
	if len(m) < unix.SizeofNdMsg || m[0] != unix.AF_INET {
		return 0, netip.Addr{}, neighborEntry{}, false
	}
	index = int(binary.NativeEndian.Uint32(m[4:8]))
	state := binary.NativeEndian.Uint16(m[8:10])
	entry.permanent = state&netlink.NUD_PERMANENT != 0
	for kind, value := range attributes(m[unix.SizeofNdMsg:]) {
		switch kind {
		case netlink.NDA_DST:
			ip, _ = netip.AddrFromSlice(value)
		case netlink.NDA_LLADDR:
			entry.mac = string(value)
		case netlink.NDA_PROTOCOL:
			entry.own = entry.permanent && len(value) == 1 && value[0] == Protocol
		}
	}
	return index, ip, entry, ip.Is4()
}

// attributes walks over the netlink attributes in b, without copying, up to the first broken one. The
// library's reader panics on an attribute that ends without padding.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	const head, align, flags = unix.SizeofRtAttr, unix.RTA_ALIGNTO, unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER
	return func(yield func(kind uint16, value []byte) bool) {
		for len(b) >= head {
			length := int(binary.NativeEndian.Uint16(b))
			kind := binary.NativeEndian.Uint16(b[2:]) &^ flags
			if length < head || length > len(b) || !yield(kind, b[head:length]) {
				return
			}
			b = b[min(len(b), (length+align-1)&^(align-1)):]
		}
	}
}

// attribute returns the value of the first attribute of that kind in b, nil if there is none.
func attribute(b []byte, kind uint16) []byte {
	for k, value := range attributes(b) {
		if k == kind {
			return value
		}
	}
	return nil
}
