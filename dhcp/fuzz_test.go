package dhcp

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// everything is a network with all that a reply can have in it.
func everything() *Network {
	uefi := uint16(7)
	return guestNetwork(func(n *Network) {
		n.Options[26], n.Options[66], n.Options[108] = []byte{5, 170}, []byte("10.1.1.9"), []byte{0, 0, 1, 44}
		n.Options[114] = []byte("https://10.1.1.1/portal")
		n.Options[224] = bytes.Repeat([]byte("long"), 100)
		n.Routes = []Route{{To: netip.MustParsePrefix("192.168.0.0/16"), Via: addr("10.1.1.254")}}
		n.Vendor = []VendorClass{{Prefix: "MSFT", Options: Options{43: {2, 4, 0, 0, 0, 1, 255}}}}
		n.NextServer = addr("10.1.1.9")
		n.Boot = []BootFile{{Arch: &uefi, File: "boot.efi"}, {IPXE: true, File: "http://10.1.1.9/boot.ipxe"}, {File: "pxelinux.0"}}
		n.RapidCommit = true
		n.Pool = &Pool{From: addr("10.1.1.200"), To: addr("10.1.1.210")}
		n.Relays = []netip.Addr{addr("192.0.2.7")}
		n.LinkLocalMetadata = true
	})
}

func seedMessages(f *testing.F) [][]byte {
	info := dhcpv4.WithOption(dhcpv4.OptRelayAgentInfo(dhcpv4.OptGeneric(dhcpv4.AgentCircuitIDSubOption, []byte("port 1")),
		dhcpv4.OptGeneric(dhcpv4.LinkSelectionSubOption, []byte{10, 1, 1, 0}), dhcpv4.OptGeneric(dhcpv4.ServerIdentifierOverrideSubOption, []byte{192, 0, 2, 7})))
	var seeds [][]byte
	for _, m := range []*dhcpv4.DHCPv4{
		message(f, web, dhcpv4.MessageTypeDiscover, dhcpv4.WithRequestedOptions(dhcpv4.OptionClasslessStaticRoute, dhcpv4.OptionDomainNameServer)),
		message(f, web, dhcpv4.MessageTypeRequest, choose("10.1.1.1"), askFor("10.1.1.34")),
		message(f, db, dhcpv4.MessageTypeRequest, using("10.1.1.35")),
		message(f, web, dhcpv4.MessageTypeInform, using("10.1.1.34")),
		message(f, web, dhcpv4.MessageTypeRelease, choose("10.1.1.1"), using("10.1.1.34")),
		message(f, nobody, dhcpv4.MessageTypeDiscover, dhcpv4.WithOption(dhcpv4.OptClassIdentifier("MSFT 5.0"))),
		message(f, nobody, dhcpv4.MessageTypeDiscover, dhcpv4.WithGeneric(dhcpv4.OptionRapidCommit, nil)),
		message(f, nobody, dhcpv4.MessageTypeRequest, askFor("10.1.1.200"), choose("10.1.1.1")),
		message(f, nobody, dhcpv4.MessageTypeDecline, askFor("10.1.1.200"), choose("10.1.1.1")),
		message(f, web, dhcpv4.MessageTypeDiscover, info, func(m *dhcpv4.DHCPv4) { m.GatewayIPAddr = net.IP{192, 0, 2, 7} }),
		message(f, web, dhcpv4.MessageTypeDiscover, dhcpv4.WithGeneric(dhcpv4.OptionMaximumDHCPMessageSize, []byte{5, 220}),
			dhcpv4.WithGeneric(dhcpv4.OptionUserClassInformation, []byte("iPXE")), dhcpv4.WithGeneric(dhcpv4.OptionClientIdentifier, bytes.Repeat([]byte{9}, 255))),
	} {
		seeds = append(seeds, m.ToBytes())
	}
	bootp := bytes.Clone(seeds[0][:offsetCookie])
	overloaded := bytes.Clone(seeds[0][:offsetOptions])
	copy(overloaded[offsetFile:], []byte{53, 1, 1, 255})
	copy(overloaded[offsetSName:], []byte{55, 2, 1, 3, 255})
	return append(seeds, bootp, append(overloaded, 52, 1, 3))
}

// FuzzAnswer sends any bytes as if they came from a guest. Whatever they are, a reply is well formed,
// fits its client, and goes to nobody but the network and its relays.
func FuzzAnswer(f *testing.F) {
	for _, seed := range seedMessages(f) {
		f.Add(seed, uint32(0), uint32(0xffffffff))
		f.Add(seed, uint32(0x0a010122), uint32(0x0a010101))
	}
	n := everything()
	f.Fuzz(func(t *testing.T, packet []byte, source, destination uint32) {
		if len(packet) > packetSize {
			return
		}
		table := newTestTable(n)
		table.SetNetwork(&Network{Name: "relayed", Subnet: netip.MustParsePrefix("10.9.0.0/16"), Gateway: addr("10.9.0.1"),
			ServerID: addr("192.0.2.1"), Relay: true, Relays: []netip.Addr{addr("192.0.2.8")}, Pool: &Pool{From: addr("10.9.1.0"), To: addr("10.9.1.9")}})
		device := &Device{Index: 2, Name: "eth0", MTU: 1500, Networks: []string{"guest-1", "relayed"}}
		before := bytes.Clone(packet)
		for range 2 { // what the first leaves behind, the second meets
			reply, err := table.Answer(device, Packet{Message: packet, Source: numberAddr(source), Destination: numberAddr(destination), Time: noon}, nil)
			if !bytes.Equal(before, packet) {
				t.Fatal("Answer changed the packet")
			}
			if err != nil {
				if reply.Message != nil {
					t.Fatalf("Answer() = both a reply and %v", err)
				}
				continue
			}
			checkReply(t, packet, &reply, n)
		}
	})
}

func checkReply(t *testing.T, packet []byte, reply *Reply, n *Network) {
	t.Helper()
	var r request
	if err := r.parse(packet); err != nil {
		t.Fatalf("reply to a request that does not parse: %v", err)
	}
	m := reply.Message
	if len(m) < minReply || len(m)+headerSize > 1500 {
		t.Fatalf("reply of %d bytes", len(m))
	}
	if limit := max(r.maxSize, minMaxSize); len(m)+headerSize > limit && len(r.relayInfo) < 128 {
		t.Errorf("reply of %d bytes to a client that takes datagrams of %d", len(m), limit)
	}
	if m[0] != 2 || !bytes.Equal(m[offsetXID:offsetSecs], packet[offsetXID:offsetSecs]) || !bytes.Equal(m[offsetCHAddr:offsetSName], packet[offsetCHAddr:offsetSName]) {
		t.Error("reply has another operation, transaction or client")
	}
	to := reply.To.Addr()
	inside := to == broadcastAddr && reply.Link == broadcastMAC || n.Subnet.Contains(to) ||
		netip.MustParsePrefix("10.9.0.0/16").Contains(to) || to == addr("192.0.2.7") || to == addr("192.0.2.8")
	if !inside {
		t.Errorf("reply goes to %v", reply.To)
	}
	if reply.Type == dhcpv4.MessageTypeNone {
		return
	}
	if m[offsetOptions] != optMessageType {
		t.Errorf("first option is %d", m[offsetOptions])
	}
	parsed, err := dhcpv4.FromBytes(m)
	if err != nil {
		t.Fatalf("reply does not parse: %v\n%x", err, m)
	}
	if parsed.MessageType() != reply.Type || parsed.ServerIdentifier() == nil {
		t.Errorf("reply is %v from %v", parsed.MessageType(), parsed.ServerIdentifier())
	}
	if r.hasRelay && !bytes.Equal(parsed.Options.Get(dhcpv4.OptionRelayAgentInformation), r.relayInfo) {
		t.Errorf("option 82 = %x, want %x", parsed.Options.Get(dhcpv4.OptionRelayAgentInformation), r.relayInfo)
	}
	// The parser of the package must read what its writer writes, overloaded fields too.
	m[0] = 1
	var again request
	if err := again.parse(m); err != nil || again.kind != reply.Type {
		t.Errorf("own parser: %v, %v", again.kind, err)
	}
}

// FuzzParseRequest compares the parser with the library's, where that reads a message.
func FuzzParseRequest(f *testing.F) {
	for _, seed := range seedMessages(f) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		var r request
		err := r.parse(packet)
		m, libraryErr := dhcpv4.FromBytes(packet)
		if err != nil || libraryErr != nil || m.Options.Has(dhcpv4.OptionOptionOverload) {
			return
		}
		if got := m.Options.Get(dhcpv4.OptionDHCPMessageType); len(got) == 1 && byte(r.kind) != got[0] {
			t.Errorf("type = %v, library says %v", r.kind, got)
		}
		for _, option := range []struct {
			code dhcpv4.OptionCode
			got  []byte
		}{
			{dhcpv4.OptionParameterRequestList, r.parameters}, {dhcpv4.OptionClientIdentifier, r.clientID},
			{dhcpv4.OptionHostName, r.hostname}, {dhcpv4.OptionClassIdentifier, r.vendorClass},
			{dhcpv4.OptionUserClassInformation, r.userClass}, {dhcpv4.OptionClientSystemArchitectureType, r.arch},
			{dhcpv4.OptionRelayAgentInformation, r.relayInfo},
		} {
			if want := m.Options.Get(option.code); !bytes.Equal(option.got, want) {
				t.Errorf("%v = %x, library says %x", option.code, option.got, want)
			}
		}
	})
}

// FuzzLease reads any bytes as a record; one that is read is written again as it was.
func FuzzLease(f *testing.F) {
	record, err := Lease{Network: "guest-1", IP: addr("10.1.1.200"), MAC: web, ClientID: []byte{1, 2}, Hostname: "h",
		State: LeaseBound, Start: noon, Expiry: noon.Add(time.Hour)}.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(record)
	f.Fuzz(func(t *testing.T, record []byte) {
		var l Lease
		if l.UnmarshalBinary(record) != nil {
			return
		}
		again, err := l.MarshalBinary()
		if err != nil || !bytes.Equal(again, record) {
			t.Errorf("record %x is written as %x, %v", record, again, err)
		}
		table := newTestTable(everything())
		table.load(l, noon)
	})
}

// FuzzParseOption reads any text; what is accepted fits into a packet.
func FuzzParseOption(f *testing.F) {
	for code, text := range map[uint8]string{3: "10.1.1.1, 10.1.1.2", 26: "1450", 119: "a.example b.a.example", 121: "10.0.0.0/8 via 10.1.1.1",
		120: "sip.example", 114: "https://portal.example/", 19: "yes", 21: "10.0.0.0 255.0.0.0", 25: "68 1500", 2: "-3600", 46: "8", 224: "any"} {
		f.Add(code, text)
	}
	f.Fuzz(func(t *testing.T, code uint8, text string) {
		value, err := ParseOption(code, text)
		if err == nil && (len(value) == 0 || len(value) > maxOption) {
			t.Errorf("ParseOption(%d, %q) = %x", code, text, value)
		}
		if _, err := ParseOptionHex(code, text); err == nil && settable(code) != nil {
			t.Errorf("ParseOptionHex(%d) is accepted", code)
		}
	})
}

// FuzzServerPath is FuzzAnswer for the way through a server: a worker with its journal, without sockets.
func FuzzServerPath(f *testing.F) {
	for _, seed := range seedMessages(f) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		table := newTestTable(everything())
		server := NewServer(table, ServerOptions{Leases: &memoryLeases{}, Now: func() time.Time { return noon }})
		if err := server.ReloadLeases(); err != nil {
			t.Fatal(err)
		}
		p := &port{sender: &sender{frames: -1, routed: -1}, prober: newProber()}
		p.sender.hold()
		p.device.Store(eth0)
		w := &worker{server: server, port: p}
		for range 2 {
			w.answer(eth0, &Packet{Message: packet, Destination: broadcastAddr, Time: noon})
			w.out.count = 0
			server.commit(context.Background(), new(outbox))
		}
	})
}
