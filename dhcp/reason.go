package dhcp

import "errors"

// Reasons for silence and for refusals. Table.Answer returns the silent ones as its error; a NAK
// carries its own in Reply.Why.
var (
	ErrMalformed   = errors.New("malformed message")
	ErrNotRequest  = errors.New("not a client's message")
	ErrHardware    = errors.New("no Ethernet address of a single card")
	ErrUnknownType = errors.New("message type that no client sends")
	ErrNoNetwork   = errors.New("no network is served for where this came from")
	ErrUnknownHost = errors.New("no host with this MAC, and no pool")
	ErrOtherServer = errors.New("the client chose another server")
	ErrRelay       = errors.New("relay that the network does not name")
	ErrNoAddress   = errors.New("names no address")
	ErrNotHolder   = errors.New("does not hold the address that it speaks of")
	ErrWrongNet    = errors.New("speaks of an address outside the network")
	ErrMoved       = errors.New("another host has this address now")
	ErrDeclined    = errors.New("declined by the client a moment ago")
	ErrRate        = errors.New("too many requests from this client")
	ErrExhausted   = errors.New("no free address in the pool")
	ErrProbing     = errors.New("the address is being probed")
	ErrStore       = errors.New("leases cannot be stored")
	ErrHeld        = errors.New("another server has given the address to somebody else")

	// ErrNoReply is no failure: the message is one that takes no reply, RELEASE or DECLINE.
	ErrNoReply = errors.New("taken note of, takes no reply")

	errWrongAddress = errors.New("asks for an address that is not this client's")
	errLeaseGone    = errors.New("has no lease of this address")
)
