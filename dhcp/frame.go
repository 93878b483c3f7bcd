package dhcp

import (
	"encoding/binary"
	"net/netip"
)

// headerSize is that of the IP header without options and the UDP header.
const headerSize = 20 + 8

// putHeaders writes the IP and UDP headers for the payload that follows them in packet. Both checksums
// are computed here: what a network card or a virtual link leaves to be filled in reaches some clients
// unfilled, and they drop it.
func putHeaders(packet []byte, from netip.Addr, to netip.AddrPort) {
	source, destination := from.As4(), to.Addr().As4()
	ip, udp := packet[:20], packet[20:]
	ip[0], ip[1] = 4<<4|5, 0
	binary.BigEndian.PutUint16(ip[2:], uint16(len(packet)))
	ip[4], ip[5], ip[6], ip[7] = 0, 0, 0x40, 0 // do not fragment
	ip[8], ip[9] = 64, 17                      // hops, UDP
	ip[10], ip[11] = 0, 0
	copy(ip[12:], source[:])
	copy(ip[16:], destination[:])
	binary.BigEndian.PutUint16(ip[10:], ^fold(sum(ip, 0)))

	binary.BigEndian.PutUint16(udp[0:], serverPort)
	binary.BigEndian.PutUint16(udp[2:], to.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	udp[6], udp[7] = 0, 0
	pseudo := sum(ip[12:20], uint64(17)+uint64(len(udp)))
	checksum := ^fold(sum(udp, pseudo))
	if checksum == 0 { // which would say that there is none, RFC 768
		checksum = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], checksum)
}

// sum adds the big-endian 16-bit words of b to a running sum, RFC 1071.
func sum(b []byte, total uint64) uint64 {
	for len(b) >= 4 {
		total += uint64(binary.BigEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		total += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		total += uint64(b[0]) << 8
	}
	return total
}

func fold(total uint64) uint16 {
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}
