package dhcp

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// answerTo sends raw bytes to a table and returns the raw reply.
func answerTo(t *testing.T, table *Table, packet []byte) Reply {
	t.Helper()
	reply, err := table.Answer(eth0, Packet{Message: packet, Destination: broadcastAddr, Time: noon}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

// bare is a DISCOVER up to its options.
func bare(t *testing.T) []byte {
	t.Helper()
	return message(t, web, dhcpv4.MessageTypeDiscover).ToBytes()[:offsetOptions]
}

func TestUnusualMessagesAreUnderstood(t *testing.T) {
	overloaded := bare(t)
	copy(overloaded[offsetFile:], []byte{53, 1, 1, 255})
	copy(overloaded[offsetSName:], []byte{0, 0, 55, 1, 15, 255})
	tests := map[string][]byte{
		"no End option":         append(bare(t), 53, 1, 1),
		"pad bytes between":     append(bare(t), 0, 0, 53, 1, 1, 0, 0, 0, 255),
		"type twice":            append(bare(t), 53, 1, 1, 53, 1, 1, 255),
		"in file and sname":     append(overloaded, 52, 1, 3, 255),
		"list in several parts": append(bare(t), 53, 1, 1, 55, 1, 1, 55, 1, 15, 255),
	}
	for name, packet := range tests {
		t.Run(name, func(t *testing.T) {
			if reply := answerTo(t, newTestTable(guestNetwork()), packet); reply.Type != dhcpv4.MessageTypeOffer {
				t.Errorf("answer is %v", reply.Type)
			}
		})
	}
}

func TestBrokenMessagesAreMetWithSilence(t *testing.T) {
	change := func(f func([]byte)) []byte {
		m := append(bare(t), 53, 1, 1, 255)
		f(m)
		return m
	}
	tests := map[string]struct {
		packet []byte
		want   error
	}{
		"empty":                 {nil, ErrMalformed},
		"cut in the header":     {bare(t)[:200], ErrMalformed},
		"cut in an option":      {append(bare(t), 53, 1, 1, 55, 9, 1), ErrMalformed},
		"address of five bytes": {append(bare(t), 53, 1, 3, 50, 5, 10, 1, 1, 34, 0), ErrMalformed},
		"a reply":               {change(func(m []byte) { m[0] = 2 }), ErrNotRequest},
		"token ring":            {change(func(m []byte) { m[1] = 6 }), ErrHardware},
		"infiniband":            {change(func(m []byte) { m[1], m[2] = 32, 0 }), ErrHardware},
		"group address":         {change(func(m []byte) { m[offsetCHAddr] = 1 }), ErrHardware},
		"no address":            {change(func(m []byte) { clear(m[offsetCHAddr : offsetCHAddr+6]) }), ErrHardware},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := newTestTable(guestNetwork()).Answer(eth0, Packet{Message: test.packet, Time: noon}, nil)
			if err != test.want {
				t.Errorf("Answer() error = %v, want %v", err, test.want)
			}
		})
	}
}

func TestBOOTPClientsOfKnownHosts(t *testing.T) {
	table := newTestTable(guestNetwork(func(n *Network) {
		n.NextServer, n.Boot = addr("10.1.1.9"), []BootFile{{File: "boot.img"}}
	}))
	plain := bare(t)[:offsetCookie]
	for name, packet := range map[string][]byte{"RFC 951": plain, "with vendor information": append(bare(t), 55, 1, 6, 255)} {
		t.Run(name, func(t *testing.T) {
			reply := answerTo(t, table, packet)
			m := reply.Message
			if reply.Type != dhcpv4.MessageTypeNone || len(m) != minReply || !bytes.Equal(m[offsetYIAddr:offsetGIAddr], []byte{10, 1, 1, 34, 10, 1, 1, 9}) {
				t.Errorf("reply of %d bytes: % x", len(m), m)
			}
			if got, _, _ := bytes.Cut(m[offsetFile:offsetCookie], []byte{0}); string(got) != "boot.img" {
				t.Errorf("file = %q", got)
			}
			if bytes.Contains(m[offsetCookie:], []byte{optMessageType, 1}) {
				t.Error("the reply has a DHCP message type")
			}
		})
	}
	stranger := bytes.Clone(plain)
	stranger[offsetCHAddr+5] = 77
	if _, err := table.Answer(eth0, Packet{Message: stranger, Time: noon}, nil); err != ErrUnknownHost {
		t.Errorf("unknown BOOTP client: %v", err)
	}
}

func TestLayoutOfReplies(t *testing.T) {
	info := []byte{1, 6, 'p', 'o', 'r', 't', ' ', '1', 151, 2, 0, 9}
	m := message(t, web, dhcpv4.MessageTypeDiscover, dhcpv4.WithGeneric(dhcpv4.OptionRelayAgentInformation, info),
		dhcpv4.WithGeneric(dhcpv4.OptionParameterRequestList, []byte{15, 3, 6}),
		dhcpv4.WithGeneric(dhcpv4.OptionClientIdentifier, []byte{255, 1, 2, 3}))
	reply := answerTo(t, newTestTable(guestNetwork()), m.ToBytes())
	var codes []byte
	var last []byte
	for area := reply.Message[offsetOptions:]; area[0] != optEnd; area = area[2+int(area[1]):] {
		codes, last = append(codes, area[0]), area[2:2+int(area[1])]
	}
	if want := []byte{53, 54, 51, 58, 59, 61, 1, 15, 3, 6, 28, 12, 82}; !bytes.Equal(codes, want) {
		t.Errorf("options in the order %v, want %v", codes, want)
	}
	if !bytes.Equal(last, info) {
		t.Errorf("option 82 = %x, want %x", last, info)
	}
	if len(reply.Message) < minReply {
		t.Errorf("reply of %d bytes", len(reply.Message))
	}
}

func TestLongOptionsFitTheClient(t *testing.T) {
	long := bytes.Repeat([]byte("0123456789"), 36) // 360 bytes: two options, RFC 3396
	n := guestNetwork(func(n *Network) { n.Options[224] = long })
	ask := dhcpv4.WithGeneric(dhcpv4.OptionParameterRequestList, []byte{224})
	for name, test := range map[string]struct {
		size     []byte
		overload bool
	}{"576": {nil, true}, "1500": {[]byte{5, 220}, false}} {
		t.Run(name, func(t *testing.T) {
			m := message(t, web, dhcpv4.MessageTypeDiscover, ask)
			limit := minMaxSize
			if test.size != nil {
				m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionMaximumDHCPMessageSize, test.size))
				limit = int(binary.BigEndian.Uint16(test.size))
			}
			reply := answerTo(t, newTestTable(n), m.ToBytes())
			if len(reply.Message)+headerSize > limit {
				t.Errorf("datagram of %d bytes, the client takes %d", len(reply.Message)+headerSize, limit)
			}
			if got := bytes.Contains(reply.Message, []byte{optOverload, 1}); got != test.overload {
				t.Errorf("overload = %v, want %v", got, test.overload)
			}
			if got := allParts(reply.Message, 224); !bytes.Equal(got, long) {
				t.Errorf("option 224 has %d bytes, want %d", len(got), len(long))
			}
		})
	}
}

// allParts joins an option's parts in the order of RFC 3396, section 5: options, file, sname.
func allParts(m []byte, code byte) []byte {
	var value []byte
	overload := byte(0)
	for i, area := range [][]byte{m[offsetOptions:], m[offsetFile:offsetCookie], m[offsetSName:offsetFile]} {
		if i > 0 && overload>>(i-1)&1 == 0 {
			continue
		}
		for len(area) > 0 && area[0] != optEnd {
			if area[0] == optPad {
				area = area[1:]
				continue
			}
			part := area[2 : 2+int(area[1])]
			switch area[0] {
			case code:
				value = append(value, part...)
			case optOverload:
				overload = part[0]
			}
			area = area[2+len(part):]
		}
	}
	return value
}

func TestOptionsByNumberGoToThoseWhoAsk(t *testing.T) {
	n := guestNetwork(func(n *Network) {
		n.Options[66], n.Options[108], n.Options[114] = []byte("10.1.1.9"), []byte{0, 0, 1, 44}, []byte("https://portal.example/")
		n.Vendor = []VendorClass{{"MSFT", Options{43: {1}}}, {"MSFT 5", Options{43: {2}}}, {"PXE", Options{43: {3}}}}
		n.Routes = []Route{{To: netip.MustParsePrefix("10.8.0.0/16"), Via: addr("10.1.1.254")}}
	})
	tests := map[string]struct {
		list    []byte
		class   string
		with    []uint8
		without []uint8
	}{
		"no list":       {nil, "", []uint8{66, 114, 6, 121}, []uint8{108, 249, 43, 60}},
		"short list":    {[]byte{1}, "", []uint8{6, 121}, []uint8{66, 114, 108, 249}},
		"asks for all":  {[]byte{66, 108, 114, 249}, "", []uint8{66, 108, 114, 249}, []uint8{43}},
		"windows":       {[]byte{1, 43}, "MSFT 5.0", []uint8{43, 60}, []uint8{66}},
		"another class": {[]byte{1, 43}, "udhcp 1.35", nil, []uint8{43, 60}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := message(t, web, dhcpv4.MessageTypeDiscover)
			if test.list != nil {
				m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionParameterRequestList, test.list))
			}
			if test.class != "" {
				m.UpdateOption(dhcpv4.OptClassIdentifier(test.class))
			}
			_, parsed, err := say(t, newTestTable(n), eth0, m)
			if err != nil {
				t.Fatal(err)
			}
			for _, code := range test.with {
				if _, ok := parsed.Options[code]; !ok {
					t.Errorf("option %d is missing", code)
				}
			}
			for _, code := range test.without {
				if _, ok := parsed.Options[code]; ok {
					t.Errorf("option %d is sent", code)
				}
			}
			if name == "windows" && (parsed.Options[43][0] != 2 || string(parsed.Options[60]) != "MSFT 5.0") {
				t.Errorf("43 = %x, 60 = %q: want those of the longest class", parsed.Options[43], parsed.Options[60])
			}
		})
	}
}

func TestRoutesHoldTheDefaultRouteOfDefaultCardsOnly(t *testing.T) {
	route := func(text string) []byte {
		value, err := ParseOption(optRoutes, text)
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
	tests := map[string]struct {
		network      func(*Network)
		host         Options
		onDefault    string
		onOthers     string
		linkSpecific bool
	}{
		"typed": {func(n *Network) {
			n.Routes = []Route{{To: netip.MustParsePrefix("10.8.0.0/16"), Via: addr("10.1.1.254")}}
		}, nil, "10.8.0.0/16 10.1.1.254, 0.0.0.0/0 10.1.1.1", "10.8.0.0/16 10.1.1.254", false},
		"by number": {func(n *Network) { n.Options[121] = route("10.8.0.0/16 10.1.1.254, 0.0.0.0/0 10.1.1.253") }, nil,
			"10.8.0.0/16 10.1.1.254, 0.0.0.0/0 10.1.1.253", "10.8.0.0/16 10.1.1.254", false},
		"of the card": {func(n *Network) {
			n.Routes = []Route{{To: netip.MustParsePrefix("10.8.0.0/16"), Via: addr("10.1.1.254")}}
		}, Options{121: route("10.7.0.0/16 10.1.1.252")}, "10.7.0.0/16 10.1.1.252, 0.0.0.0/0 10.1.1.1", "10.7.0.0/16 10.1.1.252", false},
		"to the metadata address": {func(n *Network) { n.LinkLocalMetadata = true }, nil,
			"169.254.169.254/32 10.1.1.1, 0.0.0.0/0 10.1.1.1", "169.254.169.254/32 10.1.1.1", false},
		"with a router of the card's own": {func(n *Network) { n.LinkLocalMetadata = true }, Options{3: {10, 1, 1, 250}},
			"169.254.169.254/32 10.1.1.1, 0.0.0.0/0 10.1.1.250", "169.254.169.254/32 10.1.1.1", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			for isDefault, want := range map[bool]string{true: test.onDefault, false: test.onOthers} {
				table := newTestTable(guestNetwork(test.network))
				table.SetHost(&Host{Network: "guest-1", MAC: nobody, IP: addr("10.1.1.60"), Default: isDefault, Options: test.host})
				_, parsed, err := say(t, table, eth0, message(t, nobody, dhcpv4.MessageTypeDiscover,
					dhcpv4.WithGeneric(dhcpv4.OptionParameterRequestList, []byte{121, 249})))
				if err != nil {
					t.Fatal(err)
				}
				for _, code := range []uint8{121, 249} {
					if diff := cmp.Diff(route(want), parsed.Options[code]); diff != "" {
						t.Errorf("default %v, option %d (-want +got):\n%s", isDefault, code, diff)
					}
				}
			}
		})
	}
}

func TestBootFileByArchitectureAndIPXE(t *testing.T) {
	table := newTestTable(everything())
	with := func(code uint8, value []byte) dhcpv4.Modifier {
		return dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(code), value)
	}
	tests := map[string]struct {
		options []dhcpv4.Modifier
		want    string
	}{
		"BIOS":            {[]dhcpv4.Modifier{with(93, []byte{0, 0})}, "pxelinux.0"},
		"UEFI":            {[]dhcpv4.Modifier{with(93, []byte{0, 7})}, "boot.efi"},
		"one of several":  {[]dhcpv4.Modifier{with(93, []byte{0, 9, 0, 7})}, "boot.efi"},
		"iPXE by 175":     {[]dhcpv4.Modifier{with(93, []byte{0, 0}), with(175, []byte{177, 1, 0})}, "http://10.1.1.9/boot.ipxe"},
		"iPXE by 77":      {[]dhcpv4.Modifier{with(77, []byte("iPXE"))}, "http://10.1.1.9/boot.ipxe"},
		"iPXE, RFC 3004":  {[]dhcpv4.Modifier{with(77, []byte("\x04iPXE"))}, "http://10.1.1.9/boot.ipxe"},
		"chain loaded":    {[]dhcpv4.Modifier{with(60, []byte("PXEClient:Arch:00000")), with(77, []byte("iPXE"))}, "http://10.1.1.9/boot.ipxe"},
		"says nothing":    {nil, "pxelinux.0"},
		"asks for the 67": {[]dhcpv4.Modifier{with(55, []byte{67})}, "pxelinux.0"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, parsed, err := say(t, table, eth0, message(t, web, dhcpv4.MessageTypeDiscover, test.options...))
			if err != nil {
				t.Fatal(err)
			}
			if parsed.BootFileName != test.want || !parsed.ServerIPAddr.Equal(net.IP{10, 1, 1, 9}) {
				t.Errorf("file %q from %v, want %q", parsed.BootFileName, parsed.ServerIPAddr, test.want)
			}
			if name == "asks for the 67" && string(parsed.Options[67]) != test.want {
				t.Errorf("option 67 = %q", parsed.Options[67])
			}
		})
	}
}

func TestRelayedRequests(t *testing.T) {
	far := func(name, subnet string, relays ...netip.Addr) *Network {
		prefix := netip.MustParsePrefix(subnet)
		return &Network{Name: name, Subnet: prefix, Gateway: prefix.Addr().Next(), ServerID: addr("192.0.2.1"), Relay: true, Relays: relays}
	}
	table := newTestTable(guestNetwork())
	table.SetNetwork(far("far-1", "10.9.0.0/24"))
	table.SetNetwork(far("far-2", "10.10.0.0/24", addr("192.0.2.7")))
	table.SetHost(&Host{Network: "far-1", MAC: web, IP: addr("10.9.0.34"), Default: true})
	table.SetHost(&Host{Network: "far-2", MAC: web, IP: addr("10.10.0.34"), Default: true})
	d := &Device{Index: 2, Name: "eth0", MTU: 1500, Networks: []string{"guest-1", "far-1", "far-2"}}
	by := func(ip string) dhcpv4.Modifier {
		return func(m *dhcpv4.DHCPv4) { m.GatewayIPAddr = net.ParseIP(ip).To4() }
	}
	info := func(value ...byte) dhcpv4.Modifier {
		return dhcpv4.WithGeneric(dhcpv4.OptionRelayAgentInformation, value)
	}
	discover, request := dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest
	unicast := func(p *Packet) { p.Destination, p.Source = addr("192.0.2.1"), addr("10.9.0.34") }
	tests := map[string]struct {
		message *dhcpv4.DHCPv4
		packet  func(*Packet)
		to      string
		address string
		kind    dhcpv4.MessageType
		id      string
		err     error
	}{
		"by the gateway":          {message(t, web, discover, by("10.9.0.1")), nil, "10.9.0.1:67", "10.9.0.34", dhcpv4.MessageTypeOffer, "192.0.2.1", nil},
		"by a named relay":        {message(t, web, discover, by("192.0.2.7")), nil, "192.0.2.7:67", "10.10.0.34", dhcpv4.MessageTypeOffer, "192.0.2.1", nil},
		"link selection":          {message(t, web, discover, by("192.0.2.7"), info(5, 4, 10, 10, 0, 0)), nil, "192.0.2.7:67", "10.10.0.34", dhcpv4.MessageTypeOffer, "192.0.2.1", nil},
		"link of another's":       {message(t, web, discover, by("192.0.2.7"), info(5, 4, 10, 9, 0, 0)), nil, "", "", 0, "", ErrRelay},
		"unknown relay":           {message(t, web, discover, by("198.51.100.1")), nil, "", "", 0, "", ErrNoNetwork},
		"of a direct network":     {message(t, web, discover, by("10.1.1.7")), nil, "10.1.1.7:67", "10.1.1.34", dhcpv4.MessageTypeOffer, "10.1.1.1", nil},
		"server-id override":      {message(t, web, discover, by("10.9.0.1"), info(11, 4, 10, 9, 0, 1)), nil, "10.9.0.1:67", "10.9.0.34", dhcpv4.MessageTypeOffer, "10.9.0.1", nil},
		"chosen by the override":  {message(t, web, request, by("10.9.0.1"), info(11, 4, 10, 9, 0, 1), choose("10.9.0.1"), askFor("10.9.0.34")), nil, "10.9.0.1:67", "10.9.0.34", dhcpv4.MessageTypeAck, "10.9.0.1", nil},
		"NAK through the relay":   {message(t, web, request, by("10.9.0.1"), askFor("10.9.0.77")), nil, "10.9.0.1:67", "", dhcpv4.MessageTypeNak, "192.0.2.1", nil},
		"renewal past the relay":  {message(t, web, request, using("10.9.0.34")), unicast, "10.9.0.34:68", "10.9.0.34", dhcpv4.MessageTypeAck, "192.0.2.1", nil},
		"NAK past the relay":      {message(t, web, request, using("10.9.0.77")), unicast, "10.9.0.77:68", "", dhcpv4.MessageTypeNak, "192.0.2.1", nil},
		"override without giaddr": {message(t, web, discover, info(11, 4, 10, 9, 0, 1)), nil, "10.1.1.34:68", "10.1.1.34", dhcpv4.MessageTypeOffer, "10.1.1.1", nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if test.packet == nil {
				test.packet = func(*Packet) {}
			}
			reply, parsed, err := say(t, table, d, test.message, test.packet)
			if err != test.err {
				t.Fatalf("Answer() error = %v, want %v", err, test.err)
			}
			if err != nil {
				return
			}
			address := ""
			if reply.Address.IsValid() {
				address = reply.Address.String()
			}
			if reply.Type != test.kind || reply.To.String() != test.to || address != test.address || parsed.ServerIdentifier().String() != test.id {
				t.Errorf("%v of %q to %v from %v, want %v of %q to %s from %s", reply.Type, address, reply.To, parsed.ServerIdentifier(),
					test.kind, test.address, test.to, test.id)
			}
			if relayed := !test.message.GatewayIPAddr.IsUnspecified(); relayed && test.kind == dhcpv4.MessageTypeNak && !parsed.IsBroadcast() {
				t.Error("a relayed NAK has no broadcast flag")
			}
			if want := test.message.Options.Get(dhcpv4.OptionRelayAgentInformation); !bytes.Equal(parsed.Options.Get(dhcpv4.OptionRelayAgentInformation), want) {
				t.Errorf("option 82 is not echoed")
			}
		})
	}
}

func TestChecksumsAreComplete(t *testing.T) {
	for _, size := range []int{300, 301, 548} {
		packet := make([]byte, headerSize+size)
		for i := range packet {
			packet[i] = byte(i * 7)
		}
		putHeaders(packet, addr("10.1.1.1"), netip.MustParseAddrPort("10.1.1.34:68"))
		if got := int(binary.BigEndian.Uint16(packet[2:])); got != len(packet) || !bytes.Equal(packet[16:20], []byte{10, 1, 1, 34}) {
			t.Fatalf("header = % x", packet[:28])
		}
		if got := fold(sum(packet[:20], 0)); got != 0xffff {
			t.Errorf("IP checksum leaves %#x", got)
		}
		if got := fold(sum(packet[20:], sum(packet[12:20], 17+uint64(len(packet)-20)))); got != 0xffff {
			t.Errorf("UDP checksum leaves %#x", got)
		}
	}
}
