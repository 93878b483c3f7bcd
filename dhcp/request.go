package dhcp

import (
	"encoding/binary"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Sizes of the BOOTP header and places of its fields, RFC 951 and RFC 2131, section 2.
const (
	offsetXID     = 4
	offsetSecs    = 8
	offsetFlags   = 10
	offsetCIAddr  = 12
	offsetYIAddr  = 16
	offsetSIAddr  = 20
	offsetGIAddr  = 24
	offsetCHAddr  = 28
	offsetSName   = 44
	offsetFile    = 108
	offsetCookie  = 236
	offsetOptions = 240

	flagBroadcast = 0x8000
	minReply      = 300 // shorter ones are dropped by some relays and clients; RFC 1542, section 2.1
	minMaxSize    = 576 // of an IP datagram that every client takes; RFC 2131, section 2
)

// Options that the server itself reads or writes.
const (
	optPad            = 0
	optSubnetMask     = 1
	optRouter         = 3
	optDNS            = 6
	optHostname       = 12
	optDomain         = 15
	optMTU            = 26
	optBroadcast      = 28
	optNTP            = 42
	optRequestedIP    = 50
	optLeaseTime      = 51
	optOverload       = 52
	optMessageType    = 53
	optServerID       = 54
	optParameterList  = 55
	optMessage        = 56
	optMaxSize        = 57
	optRenewal        = 58
	optRebinding      = 59
	optVendorClass    = 60
	optClientID       = 61
	optBootFile       = 67
	optUserClass      = 77
	optRapidCommit    = 80
	optRelayInfo      = 82
	optArch           = 93
	optIPv6Only       = 108
	optSearch         = 119
	optRoutes         = 121
	optIPXE           = 175
	optMSRoutes       = 249
	optEnd            = 255
	relayLinkSelect   = 5  // RFC 3527
	relayServerIDOver = 11 // RFC 5107
)

var cookie = [4]byte{99, 130, 83, 99}

// request is a view of a client's message: its slices point into the packet and are valid as long as
// that is.
type request struct {
	kind      dhcpv4.MessageType // MessageTypeNone is BOOTP
	flags     uint16
	mac       MAC
	ciaddr    netip.Addr // the zero Addr where the field is 0.0.0.0, as everywhere here
	giaddr    netip.Addr
	header    []byte // all up to the options
	hasCookie bool

	requestedIP netip.Addr
	serverID    netip.Addr
	hasServerID bool // also when it is 0.0.0.0, which names nobody
	parameters  []byte
	maxSize     int // option 57, 0 where absent
	clientID    []byte
	hostname    []byte
	vendorClass []byte
	userClass   []byte
	arch        []byte
	relayInfo   []byte
	hasRelay    bool
	rapid       bool
	ipxe        bool

	linkSelection netip.Addr // of option 82
	serverIDOver  netip.Addr
}

// parse reads message into r. It takes what real clients send: no End option, pad bytes anywhere,
// options that continue in the file and server name fields (option 52) and options in several parts
// (RFC 3396). It returns an error that is one of the package's reasons for silence.
func (r *request) parse(message []byte) error {
	*r = request{}
	if len(message) < offsetCookie {
		return ErrMalformed
	}
	if message[0] != 1 { // BOOTREQUEST
		return ErrNotRequest
	}
	copy(r.mac[:], message[offsetCHAddr:])
	if message[1] != 1 || message[2] != 6 || r.mac.check() != nil {
		return ErrHardware
	}
	r.header = message[:offsetCookie]
	r.flags = binary.BigEndian.Uint16(message[offsetFlags:])
	r.ciaddr = addrAt(message, offsetCIAddr)
	r.giaddr = addrAt(message, offsetGIAddr)
	if len(message) < offsetOptions || [4]byte(message[offsetCookie:]) != cookie {
		return nil // plain BOOTP, RFC 951
	}
	r.hasCookie = true

	overload, err := r.parseOptions(message[offsetOptions:], 0)
	if err != nil {
		return err
	}
	if overload&1 != 0 {
		if _, err := r.parseOptions(message[offsetFile:offsetCookie], overload); err != nil {
			return err
		}
	}
	if overload&2 != 0 {
		if _, err := r.parseOptions(message[offsetSName:offsetFile], overload); err != nil {
			return err
		}
	}
	if r.hasRelay {
		r.parseRelayInfo()
	}
	return nil
}

// parseOptions reads one area of options and returns what option 52 said in it.
func (r *request) parseOptions(area []byte, overload byte) (byte, error) {
	for len(area) > 0 {
		code := area[0]
		if code == optEnd {
			break
		}
		if code == optPad {
			area = area[1:]
			continue
		}
		if len(area) < 2 || len(area) < 2+int(area[1]) {
			return 0, ErrMalformed
		}
		value := area[2 : 2+int(area[1]) : 2+int(area[1])]
		area = area[2+len(value):]
		switch code {
		case optMessageType:
			if len(value) != 1 || value[0] == 0 {
				return 0, ErrMalformed
			}
			if r.kind == dhcpv4.MessageTypeNone {
				r.kind = dhcpv4.MessageType(value[0])
			}
		case optRequestedIP:
			if len(value) != 4 {
				return 0, ErrMalformed
			}
			r.requestedIP = addrAt(value, 0)
		case optServerID:
			if len(value) != 4 {
				return 0, ErrMalformed
			}
			r.serverID, r.hasServerID = addrAt(value, 0), true
		case optOverload:
			if len(value) == 1 && overload == 0 {
				overload = value[0]
			}
		case optMaxSize:
			if len(value) == 2 {
				r.maxSize = int(binary.BigEndian.Uint16(value))
			}
		case optParameterList:
			r.parameters = joinParts(r.parameters, value)
		case optClientID:
			r.clientID = joinParts(r.clientID, value)
		case optHostname:
			r.hostname = joinParts(r.hostname, value)
		case optVendorClass:
			r.vendorClass = joinParts(r.vendorClass, value)
		case optUserClass:
			r.userClass = joinParts(r.userClass, value)
		case optArch:
			r.arch = joinParts(r.arch, value)
		case optRelayInfo:
			r.relayInfo, r.hasRelay = joinParts(r.relayInfo, value), true
		case optRapidCommit:
			r.rapid = true
		case optIPXE:
			r.ipxe = true
		}
	}
	return overload, nil
}

// joinParts joins the parts of a long option, RFC 3396, section 7. What it returns is no longer than
// the packet.
func joinParts(head, tail []byte) []byte {
	if len(head) == 0 {
		return tail
	}
	return append(head[:len(head):len(head)], tail...)
}

func (r *request) parseRelayInfo() {
	for info := r.relayInfo; len(info) >= 2 && len(info) >= 2+int(info[1]); info = info[2+int(info[1]):] {
		value := info[2 : 2+int(info[1])]
		switch {
		case info[0] == relayLinkSelect && len(value) == 4:
			r.linkSelection = addrAt(value, 0)
		case info[0] == relayServerIDOver && len(value) == 4:
			r.serverIDOver = addrAt(value, 0)
		}
	}
}

// asks reports whether the client's parameter request list names code.
func (r *request) asks(code byte) bool {
	for _, parameter := range r.parameters {
		if parameter == code {
			return true
		}
	}
	return false
}

// wantsBroadcast is the broadcast flag, RFC 2131, section 4.1.
func (r *request) wantsBroadcast() bool { return r.flags&flagBroadcast != 0 }

// isIPXE tells iPXE by what it sends, not by option 60, which stays PXEClient when it was chain loaded.
// Some firmware length-prefixes the user class as RFC 3004 says, iPXE does not.
func (r *request) isIPXE() bool {
	class := string(r.userClass)
	return r.ipxe || class == "iPXE" || class == "\x04iPXE"
}

// hasArch reports whether the client is of the given architecture, RFC 4578, section 2.1.
func (r *request) hasArch(arch uint16) bool {
	for list := r.arch; len(list) >= 2; list = list[2:] {
		if binary.BigEndian.Uint16(list) == arch {
			return true
		}
	}
	return false
}

// addrAt returns the address at an offset, and the zero Addr for 0.0.0.0.
func addrAt(b []byte, offset int) netip.Addr {
	four := [4]byte(b[offset : offset+4])
	if four == [4]byte{} {
		return netip.Addr{}
	}
	return netip.AddrFrom4(four)
}
