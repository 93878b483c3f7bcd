package dhcp

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Bounds of what is remembered. Strangers have a part of their own, so that one who invents addresses
// drives no guest out.
const (
	exchangesPerGuest = 8
	guestsKnown       = 4096
	strangersKnown    = 1024
)

// Exchange is one message of a client and what came of it.
type Exchange struct {
	Time    time.Time
	Network string // empty where none was found
	Device  string
	MAC     MAC
	Message string // DISCOVER, REQUEST, ... or BOOTP
	State   string // of a REQUEST: selecting, init-reboot, renewing or rebinding
	Answer  string // OFFER, ACK, NAK or BOOTP; empty is silence
	Address netip.Addr
	Why     string // of a NAK or of silence
	Reason  error  // what Why says, for errors.Is
}

// exchange is an Exchange before it is put into words.
type exchange struct {
	time    time.Time
	network string
	device  string
	message dhcpv4.MessageType
	answer  dhcpv4.MessageType
	silent  bool
	state   requestState
	address netip.Addr
	why     error
}

// history remembers the last exchanges of the guests that were heard of last.
type history struct {
	mu        sync.Mutex
	guests    pastGuests
	strangers pastGuests
}

type pastGuests struct {
	limit int
	byMAC map[MAC]*list.Element // of *pastGuest
	order *list.List            // the one that was heard of last first
}

type pastGuest struct {
	mac  MAC
	ring [exchangesPerGuest]exchange
	next int // place of the next exchange
	full bool
}

func newHistory() *history {
	return &history{
		guests:    pastGuests{limit: guestsKnown, byMAC: make(map[MAC]*list.Element), order: list.New()},
		strangers: pastGuests{limit: strangersKnown, byMAC: make(map[MAC]*list.Element), order: list.New()},
	}
}

// add remembers an exchange of a guest, or of a stranger: one who has no network.
func (h *history) add(mac MAC, e exchange, stranger bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	past := &h.guests
	if stranger {
		past = &h.strangers
	}
	element, ok := past.byMAC[mac]
	switch {
	case ok:
		past.order.MoveToFront(element)
	case past.order.Len() < past.limit:
		element = past.order.PushFront(&pastGuest{mac: mac})
		past.byMAC[mac] = element
	default:
		element = past.order.Back()
		oldest := element.Value.(*pastGuest)
		delete(past.byMAC, oldest.mac)
		*oldest = pastGuest{mac: mac}
		past.byMAC[mac] = element
		past.order.MoveToFront(element)
	}
	guest := element.Value.(*pastGuest)
	guest.ring[guest.next] = e
	guest.next = (guest.next + 1) % exchangesPerGuest
	guest.full = guest.full || guest.next == 0
}

// last returns the exchanges of a MAC, newest first.
func (h *history) last(mac MAC) []Exchange {
	h.mu.Lock()
	defer h.mu.Unlock()
	var exchanges []Exchange
	for _, past := range []*pastGuests{&h.guests, &h.strangers} {
		if element, ok := past.byMAC[mac]; ok {
			exchanges = append(exchanges, element.Value.(*pastGuest).newestFirst()...)
		}
	}
	// A card that became known, or ceased to be, is in both.
	for i := 1; i < len(exchanges); i++ {
		for j := i; j > 0 && exchanges[j].Time.After(exchanges[j-1].Time); j-- {
			exchanges[j], exchanges[j-1] = exchanges[j-1], exchanges[j]
		}
	}
	return exchanges[:min(len(exchanges), exchangesPerGuest)]
}

func (g *pastGuest) newestFirst() []Exchange {
	count := g.next
	if g.full {
		count = exchangesPerGuest
	}
	exchanges := make([]Exchange, 0, count)
	for i := 1; i <= count; i++ {
		e := &g.ring[(g.next-i+exchangesPerGuest)%exchangesPerGuest]
		out := Exchange{Time: e.time, Network: e.network, Device: e.device, MAC: g.mac, Address: e.address,
			Message: messageName(e.message), State: requestStates[e.state]}
		if !e.silent {
			out.Answer = messageName(e.answer)
		}
		if e.why != nil {
			out.Why, out.Reason = e.why.Error(), e.why
		}
		exchanges = append(exchanges, out)
	}
	return exchanges
}

// requestState is the state of a client that sends a REQUEST, RFC 2131, section 4.3.2.
type requestState uint8

const (
	stateNone requestState = iota
	stateSelecting
	stateInitReboot
	stateRenewing
	stateRebinding
)

var requestStates = [...]string{"", "selecting", "init-reboot", "renewing", "rebinding"}

// stateOf tells a REQUEST's state by what it holds and where it was sent.
func stateOf(r *request, p *Packet) requestState {
	switch {
	case r.kind != dhcpv4.MessageTypeRequest:
		return stateNone
	case r.hasServerID:
		return stateSelecting
	case !r.ciaddr.IsValid():
		return stateInitReboot
	case p.Destination == broadcastAddr || r.giaddr.IsValid():
		return stateRebinding
	}
	return stateRenewing
}

func messageName(kind dhcpv4.MessageType) string {
	if kind == dhcpv4.MessageTypeNone {
		return "BOOTP"
	}
	return kind.String()
}
