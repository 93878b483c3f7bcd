package dhcp

import (
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// answerStranger serves a client that is no host from the network's pool, and leaves it in silence where
// there is none.
func (t *Table) answerStranger(a *answerer, r *request, d *Device, p *Packet, from party, buf []byte, reply *Reply) error {
	n, pool, now := from.network, from.scope.pool, p.Time
	if n.Pool == nil {
		return ErrUnknownHost
	}
	if r.kind != dhcpv4.MessageTypeInform && !t.leasesKnown.Load() {
		return ErrStore
	}
	cutOff := t.cutOff(now)
	c := &client{mac: r.mac, clientID: r.clientID, hostname: r.hostname}
	switch r.kind {
	case dhcpv4.MessageTypeDiscover:
		if cutOff || t.lasts(&t.storeDown, now) {
			return ErrStore
		}
		address, err := pool.offer(c, r.requestedIP, now)
		if err != nil {
			return err
		}
		if !r.rapid || !n.RapidCommit {
			a.compose(r, d, from, dhcpv4.MessageTypeOffer, address, n.lease, buf, reply)
			return nil
		}
		if reply.Lease, reply.claim, err = pool.bind(c, address, true, t.keep(n.lease), now); err != nil {
			return ErrExhausted // a host took it just now
		}
		a.compose(r, d, from, dhcpv4.MessageTypeAck, address, n.lease, buf, reply)
		return nil

	case dhcpv4.MessageTypeRequest:
		address, err := requestedAddress(r, n)
		if err != nil {
			if err == ErrOtherServer {
				pool.withdraw(r.mac, now)
			}
			return err
		}
		if !r.hasServerID && r.ciaddr.IsValid() && !n.Subnet.Contains(address) {
			return ErrWrongNet // a lease of somebody else's: RFC 2131, section 4.3.2, RENEWING and REBINDING
		}
		if cutOff {
			// What is not known here may be known to the store, so nobody is refused.
			left := time.Duration(0)
			if !r.hasServerID {
				left = pool.extend(r.mac, address, n.lease, now)
			}
			if left == 0 {
				return ErrStore
			}
			a.compose(r, d, from, dhcpv4.MessageTypeAck, address, left, buf, reply)
			return nil
		}
		reply.Lease, reply.claim, err = pool.bind(c, address, r.hasServerID, t.keep(n.lease), now)
		if err != nil {
			// All addresses of the network are ours to give: nobody else could answer.
			a.refuse(r, d, from, err, buf, reply)
			return nil
		}
		a.compose(r, d, from, dhcpv4.MessageTypeAck, address, n.lease, buf, reply)
		return nil

	case dhcpv4.MessageTypeDecline:
		if r.hasServerID && !n.choseUs(r) {
			return ErrOtherServer
		}
		lease, err := pool.decline(r.mac, r.requestedIP, now)
		if err != nil {
			return err
		}
		reply.Lease = lease
		return ErrNoReply

	case dhcpv4.MessageTypeRelease:
		if !t.releasedToUs(r, d, n) {
			return ErrOtherServer
		}
		lease, err := pool.giveUp(r.mac, r.ciaddr, now)
		if err != nil {
			return err
		}
		reply.Lease = lease
		return ErrNoReply

	case dhcpv4.MessageTypeInform:
		return a.inform(r, d, p, from, buf, reply)

	case dhcpv4.MessageTypeNone:
		return ErrUnknownHost // BOOTP has no leases that end, RFC 1534
	}
	return ErrUnknownType
}
