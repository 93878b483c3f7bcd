package dhcp

import (
	"encoding/binary"
	"math"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// UDP ports, RFC 2131, section 4.1.
const (
	serverPort = 67
	clientPort = 68
)

// Reply is what is to be sent.
type Reply struct {
	// Type is OFFER, ACK or NAK; MessageTypeNone is the reply to a BOOTP request.
	Type    dhcpv4.MessageType
	Network string
	// Message is the UDP payload. It lies in the buffer that was given to Answer.
	Message []byte
	// Address is what the client gets; the zero Addr in a NAK and in the reply to an INFORM.
	Address netip.Addr
	// From is the server identifier, the source address of the datagram.
	From netip.Addr
	// To is the destination of the datagram.
	To netip.AddrPort
	// Link is the Ethernet destination of a frame on the device; where it is zero, the datagram is
	// routed.
	Link MAC
	// Lease is to be committed to stable storage before the reply may leave; nil where nothing is.
	Lease *Lease
	// Why is the reason for a NAK.
	Why error

	claim *claim // of Lease, where an acknowledgement waits for it
}

// options is the set of options that a client may get, while a reply is being put together.
type options struct {
	list []option
	at   [256]uint8 // by code: place in list, from 1
	sent [256]bool
}

func (o *options) reset() {
	o.list = o.list[:0]
	clear(o.at[:])
	clear(o.sent[:])
}

// set adds an option or replaces the one of the same code.
func (o *options) set(code uint8, value []byte) {
	if at := o.at[code]; at != 0 {
		o.list[at-1].value = value
		return
	}
	if len(o.list) == math.MaxUint8 {
		return // every code that can be set has a place
	}
	o.list = append(o.list, option{code, value})
	o.at[code] = uint8(len(o.list))
}

func (o *options) get(code uint8) ([]byte, bool) {
	if at := o.at[code]; at != 0 {
		return o.list[at-1].value, true
	}
	return nil, false
}

// alwaysSent are the options that a client gets whether it asks for them or not.
var alwaysSent = [256]bool{
	optSubnetMask: true, optRouter: true, optDNS: true, optHostname: true, optDomain: true, optMTU: true,
	optBroadcast: true, optNTP: true, optSearch: true, optRoutes: true,
}

// writer puts a message together in a buffer: the header, the options, and where these do not fit the
// file and server name fields (option 52).
type writer struct {
	buf      []byte // from the start of the message
	limit    int    // of buf, before options 52 and 82 and the End option
	overload bool   // allowed
	file     int    // bytes of the file field that options take
	sname    int
}

// begin writes the header of a reply to r.
func (w *writer) begin(buf []byte, r *request, limit int) {
	var header [offsetOptions]byte
	w.buf = append(buf[:0], header[:]...)
	w.buf[0] = 2 // BOOTREPLY
	w.buf[1], w.buf[2] = 1, 6
	copy(w.buf[offsetXID:offsetSecs], r.header[offsetXID:])
	copy(w.buf[offsetFlags:offsetCIAddr], r.header[offsetFlags:])
	copy(w.buf[offsetGIAddr:offsetSName], r.header[offsetGIAddr:])
	copy(w.buf[offsetCookie:], cookie[:])
	w.limit, w.overload, w.file, w.sname = limit, false, 0, 0
}

func (w *writer) putAddr(offset int, addr netip.Addr) {
	if addr.Is4() {
		four := addr.As4()
		copy(w.buf[offset:], four[:])
	}
}

// rooms returns the free bytes of the main area, the file and the server name field.
func (w *writer) rooms() [3]int {
	rooms := [3]int{w.limit - len(w.buf)}
	if w.overload { // each field keeps a byte for its End option
		rooms[1] = offsetCookie - offsetFile - 1 - w.file
		rooms[2] = offsetFile - offsetSName - 1 - w.sname
	}
	return rooms
}

func (w *writer) putIn(area int, code uint8, value []byte) {
	switch area {
	case 0:
		w.buf = append(append(w.buf, code, byte(len(value))), value...)
	case 1:
		field := w.buf[offsetFile+w.file:]
		field[0], field[1] = code, byte(len(value))
		copy(field[2:], value)
		w.file += 2 + len(value)
	case 2:
		field := w.buf[offsetSName+w.sname:]
		field[0], field[1] = code, byte(len(value))
		copy(field[2:], value)
		w.sname += 2 + len(value)
	}
}

// put writes an option into the first area that has room for it. One that is too long for a single
// option or for each area alone is divided, RFC 3396, section 5; one that does not fit at all is left
// out, which put reports.
func (w *writer) put(code uint8, value []byte) bool {
	rooms := w.rooms()
	if len(value) <= math.MaxUint8 {
		for area, room := range rooms {
			if room >= 2+len(value) {
				w.putIn(area, code, value)
				return true
			}
		}
	}
	capacity := 0
	for _, room := range rooms {
		if room > 0 {
			capacity += max(0, room-2*((room+math.MaxUint8+1)/(math.MaxUint8+2)))
		}
	}
	if capacity < len(value) {
		return false
	}
	for area, room := range rooms {
		for room > 2 && len(value) > 0 {
			part := min(len(value), room-2, math.MaxUint8)
			w.putIn(area, code, value[:part])
			value, room = value[part:], room-2-part
		}
	}
	return true
}

func (w *writer) putSeconds(code uint8, seconds uint32) {
	var value [4]byte
	binary.BigEndian.PutUint32(value[:], seconds)
	w.put(code, value[:])
}

// end closes the message: option 52 where fields were used, option 82 byte for byte and last
// (RFC 3046, section 2.2), End, and pad bytes up to the size that every client and relay takes.
func (w *writer) end(r *request, options bool) []byte {
	if options {
		var overload byte
		if w.file > 0 {
			w.buf[offsetFile+w.file] = optEnd
			overload |= 1
		}
		if w.sname > 0 {
			w.buf[offsetSName+w.sname] = optEnd
			overload |= 2
		}
		if overload != 0 {
			w.buf = append(w.buf, optOverload, 1, overload)
		}
		if r.hasRelay {
			info := r.relayInfo
			for {
				part := min(len(info), math.MaxUint8)
				w.buf = append(append(w.buf, optRelayInfo, byte(part)), info[:part]...)
				if info = info[part:]; len(info) == 0 {
					break
				}
			}
		}
	}
	w.buf = append(w.buf, optEnd)
	for len(w.buf) < minReply {
		w.buf = append(w.buf, optPad)
	}
	return w.buf
}

// sizeLimit returns the size that a reply's message may have before options 52, 82 and End.
func sizeLimit(r *request, mtu int) int {
	if r.kind == dhcpv4.MessageTypeNone {
		return minReply - 1 // RFC 951: the vendor field has 64 bytes
	}
	if mtu < minMaxSize {
		mtu = 1500
	}
	// Option 57 counts the IP and UDP headers for some clients and not for others: it does here.
	datagram := min(max(r.maxSize, minMaxSize), mtu)
	tail := 3 + 1 // options 52 and End
	if r.hasRelay {
		tail += len(r.relayInfo) + 2*(len(r.relayInfo)/math.MaxUint8+1)
	}
	// Whatever the relay adds, there is room for what no client can do without.
	return max(datagram-headerSize-tail, offsetOptions+128)
}

// leaseSeconds is a lease time as option 51 has it.
func leaseSeconds(d time.Duration) uint32 {
	if d == Infinite || d/time.Second >= math.MaxUint32 {
		return math.MaxUint32
	}
	return uint32(max(d/time.Second, 1))
}
