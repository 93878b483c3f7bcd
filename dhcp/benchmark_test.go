package dhcp

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// crowd is a table with that many hosts.
func crowd(size int) (*Table, func(int) *Host) {
	table := NewTable()
	table.SetNetwork(guestNetwork(func(n *Network) {
		n.Subnet, n.ServerID, n.Gateway = netip.MustParsePrefix("10.0.0.0/8"), addr("10.0.0.1"), addr("10.0.0.1")
	}))
	host := func(i int) *Host {
		return &Host{Network: "guest-1", Hostname: "vm", MAC: MAC{2, 0, 1, byte(i >> 16), byte(i >> 8), byte(i)},
			IP: numberAddr(addrNumber(addr("10.1.0.0")) + uint32(i)), Default: true}
	}
	for i := range size {
		table.SetHost(host(i))
	}
	return table, host
}

// BenchmarkAnswer is the pure part of a DISCOVER: parsing, look-up and the reply.
func BenchmarkAnswer(b *testing.B) {
	for _, size := range []int{100, 10000, 50000} {
		b.Run(fmt.Sprintf("hosts=%d", size), func(b *testing.B) {
			table, host := crowd(size)
			m := message(b, host(0).MAC, dhcpv4.MessageTypeDiscover, dhcpv4.WithRequestedOptions(
				dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer, dhcpv4.OptionDomainName))
			packet := Packet{Message: m.ToBytes(), Destination: broadcastAddr, Time: noon}
			var r request
			a, buf := new(answerer), make([]byte, 0, packetSize)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				mac := host(i % size).MAC
				copy(packet.Message[offsetCHAddr:], mac[:])
				if err := r.parse(packet.Message); err != nil {
					b.Fatal(err)
				}
				if _, err := table.answer(a, &r, eth0, &packet, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSetHost is one VM's change, which must not cost more where there are more VMs.
func BenchmarkSetHost(b *testing.B) {
	for _, size := range []int{100, 10000, 50000} {
		b.Run(fmt.Sprintf("hosts=%d", size), func(b *testing.B) {
			table, host := crowd(size)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				table.SetHost(host(i % size))
			}
		})
	}
}
