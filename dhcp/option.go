package dhcp

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"sort"
	"strconv"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Options holds encoded option values by code. It is not changed once it has been handed over.
type Options map[uint8][]byte

// maxOption bounds one option's value: more does not fit into any Ethernet frame beside the rest.
const maxOption = 1024

// Route is one entry of option 121.
type Route struct {
	To  netip.Prefix
	Via netip.Addr
}

// settable returns the reason why an option cannot be set by hand.
func settable(code uint8) error {
	switch {
	case code == optPad || code == optEnd:
		return fmt.Errorf("option %d is part of the packet format", code)
	case code == optSubnetMask || code == optBroadcast:
		return fmt.Errorf("option %d follows from the network's address and cannot be set", code)
	case code >= optRequestedIP && code <= optRebinding, code == optClientID, code == optRelayInfo:
		return fmt.Errorf("option %d belongs to the protocol and cannot be set; options 2 to 254 can, "+
			"but for 28, 50 to 59, 61 and 82", code)
	}
	return nil
}

// valueKind is how an option's text is written.
type valueKind int

const (
	kindBytes  valueKind = iota // the text's own bytes
	kindString                  // one or more bytes of text
	kindAddr
	kindAddrs
	kindAddrPairs
	kindFlag
	kindUint8
	kindUint16
	kindUint16s
	kindUint32
	kindInt32
	kindRoutes
	kindSearch
	kindDomain
	kindURL
	kindSIP
)

// optionKinds says how the RFCs define the options that people set; RFC 2132 where no other is named.
var optionKinds = map[uint8]valueKind{
	2: kindInt32, 3: kindAddrs, 4: kindAddrs, 5: kindAddrs, 6: kindAddrs, 7: kindAddrs, 8: kindAddrs,
	9: kindAddrs, 10: kindAddrs, 11: kindAddrs, 12: kindString, 13: kindUint16, 14: kindString,
	15: kindDomain, 16: kindAddr, 17: kindString, 18: kindString, 19: kindFlag, 20: kindFlag,
	21: kindAddrPairs, 22: kindUint16, 23: kindUint8, 24: kindUint32, 25: kindUint16s, 26: kindUint16,
	27: kindFlag, 29: kindFlag, 30: kindFlag, 31: kindFlag, 32: kindAddr, 33: kindAddrPairs,
	34: kindFlag, 35: kindUint32, 36: kindFlag, 37: kindUint8, 38: kindUint32, 39: kindFlag,
	40: kindString, 41: kindAddrs, 42: kindAddrs, 44: kindAddrs, 45: kindAddrs, 46: kindUint8,
	47: kindString, 48: kindAddrs, 49: kindAddrs, 60: kindString, 62: kindString, 64: kindString,
	65: kindAddrs, 66: kindString, 67: kindString, 68: kindAddrs, 69: kindAddrs, 70: kindAddrs,
	71: kindAddrs, 72: kindAddrs, 73: kindAddrs, 74: kindAddrs, 75: kindAddrs, 76: kindAddrs,
	100: kindString, 101: kindString, // RFC 4833
	108: kindUint32,  // RFC 8925
	112: kindAddrs,   // NetInfo
	113: kindString,  // NetInfo
	114: kindURL,     // RFC 8910
	116: kindFlag,    // RFC 2563
	117: kindUint16s, // RFC 2937
	118: kindAddr,    // RFC 3011
	119: kindSearch,  // RFC 3397
	120: kindSIP,     // RFC 3361
	121: kindRoutes,  // RFC 3442
	138: kindAddrs,   // RFC 5417
	150: kindAddrs,   // RFC 5859
	209: kindString,  // RFC 5071, as are the next two
	210: kindString,
	211: kindUint32,
	249: kindRoutes, // Microsoft's number for 121
	252: kindString, // web proxy auto-discovery
}

// optionRanges are the smallest and largest values of numbers that the RFCs bound.
var optionRanges = map[uint8][2]uint64{
	13: {1, math.MaxUint16},
	22: {576, math.MaxUint16},
	23: {1, math.MaxUint8},
	25: {68, math.MaxUint16},
	26: {68, math.MaxUint16},
	37: {1, math.MaxUint8},
	46: {1, 8},
}

// ParseOption encodes text as the RFC of the option defines it, where that is known, and else takes
// the bytes themselves. Lists are separated by commas or blanks; a route is "to via", as in
// "192.168.0.0/16 10.1.1.254". The error says what is allowed. Options that belong to the protocol or
// follow from the network (0, 1, 28, 50 to 59, 61, 82, 255) are refused.
func ParseOption(code uint8, text string) ([]byte, error) {
	if err := settable(code); err != nil {
		return nil, err
	}
	value, err := encodeText(code, text)
	if err == nil && len(value) > maxOption {
		err = fmt.Errorf("is %d bytes long, at most %d fit", len(value), maxOption)
	}
	if err != nil {
		return nil, fmt.Errorf("option %s: %w", optionName(code), err)
	}
	return value, nil
}

// ParseOptionHex decodes an option's raw value; blanks and colons between bytes are allowed. It
// refuses the codes that ParseOption refuses.
func ParseOptionHex(code uint8, hexText string) ([]byte, error) {
	if err := settable(code); err != nil {
		return nil, err
	}
	value, err := hex.DecodeString(strings.NewReplacer(":", "", " ", "").Replace(hexText))
	switch {
	case err != nil:
		err = fmt.Errorf("%q is no hexadecimal text: want two digits for each byte", hexText)
	case len(value) == 0:
		err = errors.New("is empty: want at least one byte")
	case len(value) > maxOption:
		err = fmt.Errorf("is %d bytes long, at most %d fit", len(value), maxOption)
	default:
		return value, nil
	}
	return nil, fmt.Errorf("option %s: %w", optionName(code), err)
}

// optionName is the code with the name that the RFCs give it.
func optionName(code uint8) string {
	var list dhcpv4.OptionCodeList // only its parser gives the library's codes by number
	if err := list.FromBytes([]byte{code}); err != nil || len(list) != 1 {
		return strconv.Itoa(int(code))
	}
	name := list[0].String()
	if strings.HasPrefix(strings.ToLower(name), "unknown") {
		return strconv.Itoa(int(code))
	}
	return fmt.Sprintf("%d (%s)", code, name)
}

func encodeText(code uint8, text string) ([]byte, error) {
	switch kind := optionKinds[code]; kind {
	case kindAddr, kindAddrs, kindAddrPairs:
		addrs, err := parseAddrs(text)
		switch {
		case err != nil:
			return nil, err
		case kind == kindAddr && len(addrs) != 1:
			return nil, fmt.Errorf("has %d addresses, want one", len(addrs))
		case kind == kindAddrPairs && len(addrs)%2 != 0:
			return nil, errors.New("want pairs of addresses")
		}
		return EncodeAddrs(addrs)
	case kindFlag:
		switch strings.ToLower(text) {
		case "1", "true", "yes", "on":
			return []byte{1}, nil
		case "0", "false", "no", "off":
			return []byte{0}, nil
		}
		return nil, fmt.Errorf("%q is neither true nor false", text)
	case kindUint8:
		n, err := parseNumber(code, text, math.MaxUint8)
		return []byte{byte(n)}, err
	case kindUint16:
		n, err := parseNumber(code, text, math.MaxUint16)
		return binary.BigEndian.AppendUint16(nil, uint16(n)), err
	case kindUint16s:
		var value []byte
		for _, field := range splitList(text) {
			n, err := parseNumber(code, field, math.MaxUint16)
			if err != nil {
				return nil, err
			}
			value = binary.BigEndian.AppendUint16(value, uint16(n))
		}
		if len(value) == 0 {
			return nil, errors.New("is empty: want numbers")
		}
		return value, nil
	case kindUint32:
		n, err := parseNumber(code, text, math.MaxUint32)
		return binary.BigEndian.AppendUint32(nil, uint32(n)), err
	case kindInt32:
		n, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("%q is no number of seconds from -2147483648 to 2147483647", text)
		}
		return binary.BigEndian.AppendUint32(nil, uint32(n)), nil
	case kindRoutes:
		routes, err := parseRoutes(text)
		if err != nil {
			return nil, err
		}
		return EncodeRoutes(routes)
	case kindSearch:
		return EncodeSearch(splitList(text))
	case kindDomain:
		return EncodeDomain(text)
	case kindURL:
		return EncodeURL(text)
	case kindSIP:
		// RFC 3361: an encoding byte, then addresses or names.
		if addrs, err := parseAddrs(text); err == nil {
			value, err := EncodeAddrs(addrs)
			return append([]byte{1}, value...), err
		}
		var value []byte
		for _, name := range splitList(text) {
			labels, err := encodeName(name)
			if err != nil {
				return nil, err
			}
			value = append(value, labels...)
		}
		if len(value) == 0 {
			return nil, errors.New("is empty: want addresses or names")
		}
		return append([]byte{0}, value...), nil
	}
	if text == "" {
		return nil, errors.New("is empty: want at least one byte")
	}
	return []byte(text), nil
}

func parseNumber(code uint8, text string, largest uint64) (uint64, error) {
	low, high := uint64(0), largest
	if bounds, ok := optionRanges[code]; ok {
		low, high = bounds[0], bounds[1]
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("%q is no number from %d to %d", text, low, high)
	}
	if code == 46 && n&(n-1) != 0 { // RFC 2132, section 8.7
		return 0, fmt.Errorf("%q is no NetBIOS node type: want 1, 2, 4 or 8", text)
	}
	return n, nil
}

func splitList(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' })
}

func parseAddrs(text string) ([]netip.Addr, error) {
	var addrs []netip.Addr
	for _, field := range splitList(text) {
		addr, err := netip.ParseAddr(field)
		if err != nil || !addr.Is4() {
			return nil, fmt.Errorf("%q is no IPv4 address", field)
		}
		addrs = append(addrs, addr)
	}
	if len(addrs) == 0 {
		return nil, errors.New("is empty: want IPv4 addresses")
	}
	return addrs, nil
}

func parseRoutes(text string) ([]Route, error) {
	fields := splitList(text)
	var routes []Route
	for len(fields) > 0 {
		if len(fields) > 2 && fields[1] == "via" {
			fields = append(fields[:1:1], fields[2:]...)
		}
		if len(fields) < 2 {
			return nil, fmt.Errorf("route %q has no gateway: want pairs such as 192.168.0.0/16 10.1.1.254", fields[0])
		}
		to, err := netip.ParsePrefix(fields[0])
		if err != nil {
			return nil, fmt.Errorf("%q is no IPv4 network such as 192.168.0.0/16", fields[0])
		}
		via, err := netip.ParseAddr(fields[1])
		if err != nil {
			return nil, fmt.Errorf("%q is no IPv4 address", fields[1])
		}
		routes = append(routes, Route{To: to, Via: via})
		fields = fields[2:]
	}
	if len(routes) == 0 {
		return nil, errors.New("is empty: want pairs such as 192.168.0.0/16 10.1.1.254")
	}
	return routes, nil
}

// EncodeAddrs encodes a list of IPv4 addresses, as options 3, 6 and 42 have it.
func EncodeAddrs(addrs []netip.Addr) ([]byte, error) {
	if len(addrs) == 0 {
		return nil, errors.New("want at least one address")
	}
	value := make([]byte, 0, 4*len(addrs))
	for _, addr := range addrs {
		if !addr.Is4() {
			return nil, fmt.Errorf("%s is no IPv4 address", addr)
		}
		value = append(value, addr.AsSlice()...)
	}
	return value, nil
}

// EncodeRoutes encodes classless static routes, RFC 3442. Bits beyond a prefix's length are dropped.
func EncodeRoutes(routes []Route) ([]byte, error) {
	if len(routes) == 0 {
		return nil, errors.New("want at least one route")
	}
	var value []byte
	for _, route := range routes {
		if !route.To.IsValid() || !route.To.Addr().Is4() {
			return nil, fmt.Errorf("route to %s: no IPv4 network", route.To)
		}
		if !route.Via.Is4() {
			return nil, fmt.Errorf("route to %s: gateway %s is no IPv4 address", route.To, route.Via)
		}
		value = appendRoute(value, route)
	}
	return value, nil
}

func appendRoute(value []byte, route Route) []byte {
	network := route.To.Masked().Addr().As4()
	via := route.Via.As4()
	value = append(value, byte(route.To.Bits()))
	value = append(value, network[:(route.To.Bits()+7)/8]...)
	return append(value, via[:]...)
}

// decodeRoutes is the opposite of EncodeRoutes; ok is false where value is none of its results.
func decodeRoutes(value []byte) (routes []Route, ok bool) {
	for len(value) > 0 {
		bits := int(value[0])
		significant := (bits + 7) / 8
		if bits > 32 || len(value) < 1+significant+4 {
			return nil, false
		}
		var network [4]byte
		copy(network[:], value[1:1+significant])
		via := [4]byte(value[1+significant:])
		routes = append(routes, Route{
			To:  netip.PrefixFrom(netip.AddrFrom4(network), bits),
			Via: netip.AddrFrom4(via),
		})
		value = value[1+significant+4:]
	}
	return routes, len(routes) > 0
}

// EncodeMTU encodes option 26; RFC 2132, section 5.1, allows 68 and more.
func EncodeMTU(mtu int) ([]byte, error) {
	if mtu < 68 || mtu > math.MaxUint16 {
		return nil, fmt.Errorf("mtu %d is not from 68 to 65535", mtu)
	}
	return binary.BigEndian.AppendUint16(nil, uint16(mtu)), nil
}

// EncodeDomain encodes option 15, one domain name as text without the dot at its end.
func EncodeDomain(name string) ([]byte, error) {
	name = strings.TrimSuffix(name, ".")
	if _, err := encodeName(name); err != nil {
		return nil, err
	}
	return []byte(name), nil
}

// EncodeHostname encodes option 12: one label or a full name, of letters, digits and hyphens.
func EncodeHostname(name string) ([]byte, error) {
	name = strings.TrimSuffix(name, ".")
	if _, err := encodeName(name); err != nil {
		return nil, err
	}
	if strings.Contains(name, "_") {
		return nil, fmt.Errorf("%q is no host name: letters, digits, hyphens and dots are allowed", name)
	}
	return []byte(name), nil
}

// EncodeURL encodes option 114, RFC 8910, section 2.1.
func EncodeURL(text string) ([]byte, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme == "" || u.Host == "" && u.Opaque == "" || len(text) > 255 {
		return nil, fmt.Errorf("%q is no URL of at most 255 bytes, such as https://10.1.1.1/portal", text)
	}
	return []byte(text), nil
}

// EncodeSearch encodes option 119, a list of domain names with RFC 1035 compression, as RFC 3397 has
// it.
func EncodeSearch(names []string) ([]byte, error) {
	if len(names) == 0 {
		return nil, errors.New("want at least one domain")
	}
	var value []byte
	places := make(map[string]int) // of the names and their tails that have been written
	for _, name := range names {
		name = strings.TrimSuffix(name, ".")
		if _, err := encodeName(name); err != nil {
			return nil, err
		}
		for name != "" {
			key := strings.ToLower(name)
			if place, ok := places[key]; ok {
				value = binary.BigEndian.AppendUint16(value, 0xc000|uint16(place))
				break
			}
			if len(value) < 0x4000 {
				places[key] = len(value)
			}
			label, tail, _ := strings.Cut(name, ".")
			value = append(append(value, byte(len(label))), label...)
			name = tail
			if name == "" {
				value = append(value, 0)
			}
		}
	}
	if len(value) > maxOption {
		return nil, fmt.Errorf("search list takes %d bytes, at most %d fit", len(value), maxOption)
	}
	return value, nil
}

// encodeName encodes a domain name as labels, RFC 1035, section 3.1, and checks its characters.
func encodeName(name string) ([]byte, error) {
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > 253 {
		return nil, fmt.Errorf("%q is no domain name: want 1 to 253 characters", name)
	}
	var value []byte
	for label := range strings.SplitSeq(name, ".") {
		if len(label) < 1 || len(label) > 63 {
			return nil, fmt.Errorf("%q is no domain name: each part has 1 to 63 characters", name)
		}
		for i := range len(label) {
			c := label[i]
			letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_'
			if !letter && (c != '-' || i == 0 || i == len(label)-1) {
				return nil, fmt.Errorf("%q is no domain name: letters, digits, hyphens inside and dots are allowed", name)
			}
		}
		value = append(append(value, byte(len(label))), label...)
	}
	return append(value, 0), nil
}

// option is one option on its way into a packet.
type option struct {
	code  uint8
	value []byte
}

// sorted returns the options by rising code.
func (o Options) sorted() []option {
	list := make([]option, 0, len(o))
	for code, value := range o {
		list = append(list, option{code, value})
	}
	sort.Slice(list, func(i, j int) bool { return list[i].code < list[j].code })
	return list
}
