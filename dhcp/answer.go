package dhcp

import (
	"bytes"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// declineSilence is how long a host that declined its address gets no offer.
const declineSilence = 10 * time.Second

// Device is a guest device as the kernel has it now.
type Device struct {
	Index        int
	Name         string
	HardwareAddr MAC
	MTU          int
	// Networks are served on the device now: their serving address is on it. Relayed networks are
	// listed for the device that holds their serving address. A network that stands by is not
	// listed, so nothing answers for it.
	Networks []string
}

// Packet is a datagram that came to the server's port.
type Packet struct {
	Message     []byte
	Source      netip.Addr
	Destination netip.Addr
	Time        time.Time
}

// answerer puts replies together; it keeps what would else be allocated for each.
type answerer struct {
	options options
	writer  writer
	routes  []byte
	classed bool // a vendor class of the network fits the client
}

// party is who a request comes from and what serves it.
type party struct {
	scope   *scope
	network *network
	host    *host // nil is a stranger
	routed  bool  // by unicast through a router, from a client of a relayed network
}

// Answer returns the reply to a packet that came in on d, or the reason why there is none: one of the
// package's errors, never both; with ErrNoReply there may be a Lease to commit. The reply lies in buf, which Answer lets grow if it is too small, and
// shares nothing with the packet. Apart from when guests were last heard of and from the state of
// pools, Answer changes nothing and does no input or output; a Reply with a Lease must not be sent
// before that is on stable storage. It is safe for concurrent use.
func (t *Table) Answer(d *Device, p Packet, buf []byte) (Reply, error) {
	var r request
	if err := r.parse(p.Message); err != nil {
		return Reply{}, err
	}
	return t.answer(new(answerer), &r, d, &p, buf)
}

// answer is Answer for a parsed request. It returns the name of the network with a reason for silence
// too, where there is one.
func (t *Table) answer(a *answerer, r *request, d *Device, p *Packet, buf []byte) (Reply, error) {
	from, err := t.find(r, d, p)
	if err != nil {
		return Reply{}, err
	}
	reply := Reply{Network: from.network.Name}
	if from.host != nil {
		from.host.seen.Store(int64(p.Time.Sub(t.epoch)))
		err = t.answerHost(a, r, d, p, from, buf, &reply)
	} else {
		err = t.answerStranger(a, r, d, p, from, buf, &reply)
	}
	if err != nil {
		return Reply{Network: reply.Network, Lease: reply.Lease}, err
	}
	return reply, nil
}

// find tells whose request it is and which network serves it.
func (t *Table) find(r *request, d *Device, p *Packet) (party, error) {
	if r.giaddr.IsValid() {
		return t.findRelayed(r, d)
	}
	var stranger, pooled party
	direct := false
	asked := r.ciaddr
	if !asked.IsValid() {
		asked = r.requestedIP
	}
	var found party
	for _, name := range d.Networks {
		s := t.scope(name)
		if s == nil {
			continue
		}
		n := s.network.Load()
		if n == nil {
			continue
		}
		h, known := s.hosts.Load().byMAC.get(r.mac)
		if n.Relay {
			// A client behind a relay renews without it, RFC 2131, section 4.3.2.
			if !r.ciaddr.IsValid() || !n.Subnet.Contains(r.ciaddr) || !unicast(p.Destination, n) {
				continue
			}
			if known {
				return party{s, n, h, true}, nil
			}
			if stranger.scope == nil {
				stranger = party{scope: s, network: n, routed: true}
			}
			continue
		}
		direct = true
		switch {
		case known:
			found = party{scope: s, network: n, host: h}
		case r.kind != dhcpv4.MessageTypeDiscover && asked.IsValid() && n.Subnet.Contains(asked) && (stranger.scope == nil || stranger.routed):
			stranger = party{scope: s, network: n}
		case n.Pool != nil:
			pooled = party{scope: s, network: n}
		}
	}
	switch {
	case found.host != nil:
		return found, nil
	case stranger.scope != nil:
		return stranger, nil
	case pooled.scope != nil:
		return pooled, nil
	case direct:
		return party{}, ErrUnknownHost
	}
	return party{}, ErrNoNetwork
}

// findRelayed finds the network by the link that the relay selects (RFC 3527), else by the relay's own
// address, which is inside the network or one that the network names.
func (t *Table) findRelayed(r *request, d *Device) (party, error) {
	link := r.linkSelection
	if !link.IsValid() {
		link = r.giaddr
	}
	err := ErrNoNetwork
	var named party
	for _, name := range d.Networks {
		s := t.scope(name)
		if s == nil {
			continue
		}
		n := s.network.Load()
		if n == nil {
			continue
		}
		trusted := n.Subnet.Contains(r.giaddr) || n.relayedBy(r.giaddr)
		h, _ := s.hosts.Load().byMAC.get(r.mac)
		switch {
		case n.Subnet.Contains(link) && trusted:
			return party{scope: s, network: n, host: h}, nil
		case n.Subnet.Contains(link):
			err = ErrRelay
		case trusted && !r.linkSelection.IsValid() && (named.scope == nil || named.host == nil && h != nil):
			named = party{scope: s, network: n, host: h}
		}
	}
	if named.scope != nil {
		return named, nil
	}
	return party{}, err
}

func (n *network) relayedBy(relay netip.Addr) bool {
	for _, known := range n.Relays {
		if known == relay {
			return true
		}
	}
	return false
}

// unicast reports whether a datagram was sent to one address, not to all of a network.
func unicast(destination netip.Addr, n *network) bool {
	return destination.Is4() && destination != broadcastAddr && destination != netip.AddrFrom4(n.broadcast)
}

var broadcastAddr = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// serverID returns the identifier that goes into replies: the relay's where it overrides ours, RFC 5107.
func (n *network) serverID(r *request) netip.Addr {
	if r.giaddr.IsValid() && r.serverIDOver.IsValid() {
		return r.serverIDOver
	}
	return n.ServerID
}

// choseUs reports whether option 54 names this server; siaddr does not count, RFC 2131, section 4.3.2.
func (n *network) choseUs(r *request) bool {
	return r.serverID.IsValid() && (r.serverID == n.ServerID || r.serverID == n.serverID(r))
}

// answerHost serves a known card. Its address is the table's, whatever it asks for.
func (t *Table) answerHost(a *answerer, r *request, d *Device, p *Packet, from party, buf []byte, reply *Reply) error {
	h, n := from.host, from.network
	if h.moved.Load() {
		return ErrMoved
	}
	lease := n.lease
	if h.LeaseTime != 0 {
		lease = h.LeaseTime
	}
	acknowledge := func() error {
		t.holds(h, p.Time, lease)
		a.compose(r, d, from, dhcpv4.MessageTypeAck, h.IP, lease, buf, reply)
		return nil
	}
	switch r.kind {
	case dhcpv4.MessageTypeNone: // BOOTP: the binding has no end
		t.holds(h, p.Time, Infinite)
		a.compose(r, d, from, dhcpv4.MessageTypeNone, h.IP, 0, buf, reply)
		return nil

	case dhcpv4.MessageTypeDiscover:
		switch {
		case t.lasts(&h.declined, p.Time):
			return ErrDeclined
		case r.rapid && n.RapidCommit:
			return acknowledge()
		}
		a.compose(r, d, from, dhcpv4.MessageTypeOffer, h.IP, lease, buf, reply)
		return nil

	case dhcpv4.MessageTypeRequest:
		address, err := requestedAddress(r, n)
		switch {
		case err != nil:
			return err
		case address != h.IP:
			a.refuse(r, d, from, errWrongAddress, buf, reply)
			return nil
		}
		return acknowledge()

	case dhcpv4.MessageTypeDecline:
		switch {
		case r.hasServerID && !n.choseUs(r):
			return ErrOtherServer
		case r.requestedIP != h.IP:
			return ErrNotHolder
		}
		h.declined.Store(int64(p.Time.Add(declineSilence).Sub(t.epoch)))
		h.expires.Store(0)
		return ErrNoReply

	case dhcpv4.MessageTypeRelease:
		switch {
		case !t.releasedToUs(r, d, n):
			return ErrOtherServer
		case r.ciaddr != h.IP:
			return ErrNotHolder
		}
		h.expires.Store(0)
		return ErrNoReply

	case dhcpv4.MessageTypeInform:
		return a.inform(r, d, p, from, buf, reply)
	}
	return ErrUnknownType
}

// holds notes that a host's lease runs from now on.
func (t *Table) holds(h *host, now time.Time, lease time.Duration) {
	end := int64(lease)
	if lease != Infinite {
		end = int64(now.Add(lease).Sub(t.epoch))
	}
	h.expires.Store(end)
}

// requestedAddress returns the address that a REQUEST is about. The states are told apart as RFC 2131,
// section 4.3.2, has it: SELECTING by option 54, RENEWING and REBINDING by ciaddr, INIT-REBOOT by
// option 50 alone.
func requestedAddress(r *request, n *network) (netip.Addr, error) {
	switch {
	case r.hasServerID && !n.choseUs(r):
		return netip.Addr{}, ErrOtherServer
	case r.hasServerID && r.requestedIP.IsValid():
		return r.requestedIP, nil
	case r.ciaddr.IsValid():
		return r.ciaddr, nil
	case r.requestedIP.IsValid():
		return r.requestedIP, nil
	}
	return netip.Addr{}, ErrNoAddress
}

// releasedToUs takes the identifier of any network that is served on the device: who releases on a
// client's behalf may know another of our addresses. A RELEASE without one, which RFC 2131, table 5,
// does not allow and systemd-networkd sends, is ours if the lease is: address and MAC decide then.
func (t *Table) releasedToUs(r *request, d *Device, n *network) bool {
	if !r.hasServerID || n.choseUs(r) {
		return true
	}
	for _, name := range d.Networks {
		if s := t.scope(name); s != nil {
			if other := s.network.Load(); other != nil && other.choseUs(r) {
				return true
			}
		}
	}
	return false
}

// inform gives options to a client that has an address by other means, RFC 2131, section 4.3.5. The
// address must be of the network, else anybody could have replies sent anywhere.
func (a *answerer) inform(r *request, d *Device, p *Packet, from party, buf []byte, reply *Reply) error {
	if !r.ciaddr.IsValid() && from.network.Subnet.Contains(p.Source) {
		r.ciaddr = p.Source
	}
	switch {
	case !r.ciaddr.IsValid():
		return ErrNoAddress
	case !from.network.Subnet.Contains(r.ciaddr):
		return ErrWrongNet
	}
	a.compose(r, d, from, dhcpv4.MessageTypeAck, netip.Addr{}, 0, buf, reply)
	return nil
}

// refuse writes a NAK. It is broadcast, since the client's address may be wrong for its link; a relay
// is told so by the flag (RFC 2131, section 4.3.2), and only a client behind a router is told at the
// address that it has.
func (a *answerer) refuse(r *request, d *Device, from party, why error, buf []byte, reply *Reply) {
	w := &a.writer
	w.begin(buf, r, sizeLimit(r, d.MTU))
	reply.Type, reply.Why, reply.From = dhcpv4.MessageTypeNak, why, from.network.ServerID
	switch {
	case r.giaddr.IsValid():
		w.buf[offsetFlags] |= flagBroadcast >> 8
		reply.To = netip.AddrPortFrom(r.giaddr, serverPort)
	case from.routed:
		reply.To = netip.AddrPortFrom(r.ciaddr, clientPort)
	default:
		reply.To, reply.Link = netip.AddrPortFrom(broadcastAddr, clientPort), broadcastMAC
	}
	serverID := from.network.serverID(r).As4()
	w.put(optMessageType, []byte{byte(dhcpv4.MessageTypeNak)})
	w.put(optServerID, serverID[:])
	w.put(optMessage, []byte(why.Error()))
	if len(r.clientID) > 0 {
		w.put(optClientID, r.clientID)
	}
	reply.Message = w.end(r, true)
}

// compose writes an OFFER, an ACK or a BOOTP reply. Without an address it answers an INFORM.
func (a *answerer) compose(r *request, d *Device, from party, kind dhcpv4.MessageType, address netip.Addr,
	lease time.Duration, buf []byte, reply *Reply) {
	n := from.network
	w := &a.writer
	w.begin(buf, r, sizeLimit(r, d.MTU))
	reply.Type, reply.Address, reply.From = kind, address, n.ServerID
	inform := !address.IsValid()
	switch {
	case r.giaddr.IsValid():
		reply.To = netip.AddrPortFrom(r.giaddr, serverPort)
	case from.routed:
		reply.To = netip.AddrPortFrom(r.ciaddr, clientPort)
	case inform, r.ciaddr.IsValid() && r.ciaddr == address:
		reply.To, reply.Link = netip.AddrPortFrom(r.ciaddr, clientPort), r.mac
	case r.wantsBroadcast():
		reply.To, reply.Link = netip.AddrPortFrom(broadcastAddr, clientPort), broadcastMAC
	default:
		reply.To, reply.Link = netip.AddrPortFrom(address, clientPort), r.mac
	}
	if kind == dhcpv4.MessageTypeAck && r.kind != dhcpv4.MessageTypeDiscover {
		w.putAddr(offsetCIAddr, r.ciaddr)
	}
	w.putAddr(offsetYIAddr, address)
	w.putAddr(offsetSIAddr, n.NextServer)

	a.collect(r, from)
	if file, ok := n.bootFile(r); ok {
		if len(file) < offsetCookie-offsetFile { // the field ends with a zero byte
			copy(w.buf[offsetFile:], file)
		}
		if _, own := a.options.get(optBootFile); !own && r.asks(optBootFile) || len(file) >= offsetCookie-offsetFile {
			a.options.set(optBootFile, file)
		}
	}
	if kind == dhcpv4.MessageTypeNone {
		if !r.hasCookie {
			clear(w.buf[offsetCookie:])
			for len(w.buf) < minReply {
				w.buf = append(w.buf, 0)
			}
			reply.Message = w.buf
			return
		}
		a.putOptions(r)
		reply.Message = w.end(r, true)
		return
	}
	w.overload = w.buf[offsetFile] == 0
	serverID := n.serverID(r).As4()
	w.put(optMessageType, []byte{byte(kind)})
	w.put(optServerID, serverID[:])
	if !inform {
		seconds := leaseSeconds(lease)
		w.putSeconds(optLeaseTime, seconds)
		if seconds != leaseSeconds(Infinite) {
			w.putSeconds(optRenewal, seconds/2)
			w.putSeconds(optRebinding, uint32(uint64(seconds)*7/8))
		}
	}
	if r.kind == dhcpv4.MessageTypeDiscover && kind == dhcpv4.MessageTypeAck {
		w.put(optRapidCommit, nil)
	}
	if len(r.clientID) > 0 {
		w.put(optClientID, r.clientID) // RFC 6842
	}
	a.putOptions(r)
	reply.Message = w.end(r, true)
}

// putOptions writes the subnet mask, then what the client asks for in its order, then the rest.
func (a *answerer) putOptions(r *request) {
	a.putOption(optSubnetMask)
	for _, code := range r.parameters {
		a.putOption(code)
	}
	if a.classed {
		a.putOption(optVendorClass)
	}
	for _, option := range a.options.list {
		if alwaysSent[option.code] || len(r.parameters) == 0 && option.code != optIPv6Only && option.code != optMSRoutes {
			a.putOption(option.code)
		}
	}
}

func (a *answerer) putOption(code uint8) {
	if value, ok := a.options.get(code); ok && !a.options.sent[code] {
		a.options.sent[code] = true
		a.writer.put(code, value)
	}
}

// collect gathers the options that a client may get: the network's, then its vendor class's, then the
// host's own, each over the ones before.
func (a *answerer) collect(r *request, from party) {
	n, h := from.network, from.host
	o := &a.options
	o.reset()
	a.classed = false
	isDefault := h == nil || h.Default
	o.set(optSubnetMask, n.mask[:])
	if isDefault && n.Gateway.Is4() {
		o.set(optRouter, n.gateway[:])
	}
	if n.Subnet.Bits() < 31 {
		o.set(optBroadcast, n.broadcast[:])
	}
	if h != nil && len(h.hostname) > 0 {
		o.set(optHostname, h.hostname)
	}
	for _, option := range n.options {
		switch option.code {
		case optRouter, optDNS, optDomain, optSearch:
			if !isDefault {
				continue
			}
		}
		o.set(option.code, option.value)
	}
	for i := range n.vendor {
		if class := &n.vendor[i]; len(r.vendorClass) > 0 && bytes.HasPrefix(r.vendorClass, class.prefix) {
			for _, option := range class.options {
				o.set(option.code, option.value)
			}
			// Vendor options mean nothing to a client that cannot tell whose they are.
			o.set(optVendorClass, r.vendorClass)
			a.classed = true
			break
		}
	}
	if h != nil {
		for _, option := range h.options {
			o.set(option.code, option.value)
		}
	}
	a.collectRoutes(n, h, isDefault)
}

// collectRoutes adds option 121, and 249 for those who ask for that. Who takes either ignores option 3
// (RFC 3442), so that the default route of a default card is in them, and in no other card's.
func (a *answerer) collectRoutes(n *network, h *host, isDefault bool) {
	o := &a.options
	routes := &n.routes
	if h != nil && h.routes.set {
		routes = &h.routes
	}
	value := routes.raw
	if value == nil {
		a.routes = a.routes[:0]
		for _, route := range routes.list {
			a.routes = appendRoute(a.routes, route)
		}
		if n.LinkLocalMetadata && n.Gateway.Is4() {
			a.routes = appendRoute(a.routes, Route{To: metadataPrefix, Via: n.Gateway})
		}
		if len(a.routes) > 0 && isDefault {
			router, _ := o.get(optRouter)
			switch {
			case routes.toDefault.IsValid():
				a.routes = appendRoute(a.routes, Route{To: defaultPrefix, Via: routes.toDefault})
			case len(router) >= 4:
				a.routes = appendRoute(a.routes, Route{To: defaultPrefix, Via: netip.AddrFrom4([4]byte(router))})
			}
		}
		value = a.routes
	}
	if len(value) == 0 {
		return
	}
	o.set(optRoutes, value)
	if _, own := o.get(optMSRoutes); !own {
		o.set(optMSRoutes, value)
	}
}

// bootFile returns the first boot file that fits the client.
func (n *network) bootFile(r *request) ([]byte, bool) {
	for i := range n.files {
		boot := &n.files[i]
		if boot.IPXE && !r.isIPXE() || boot.Arch != nil && !r.hasArch(*boot.Arch) {
			continue
		}
		return boot.file, true
	}
	return nil, false
}
