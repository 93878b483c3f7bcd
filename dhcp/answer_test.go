package dhcp

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

var (
	web    = MAC{2, 0, 0x4c, 0x5f, 0, 1}
	db     = MAC{2, 0, 0x4c, 0x5f, 0, 2}
	nobody = MAC{2, 0, 0x4c, 0x5f, 0, 99}

	noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	eth0 = &Device{Index: 2, Name: "eth0", MTU: 1500, Networks: []string{"guest-1"}}
)

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

func guestNetwork(change ...func(*Network)) *Network {
	n := &Network{
		Name:      "guest-1",
		Subnet:    netip.MustParsePrefix("10.1.1.0/24"),
		Gateway:   addr("10.1.1.1"),
		ServerID:  addr("10.1.1.1"),
		LeaseTime: 12 * time.Hour,
		Options: Options{
			6:  {10, 1, 1, 1},
			15: []byte("cs1.internal"),
		},
	}
	for _, f := range change {
		f(n)
	}
	return n
}

func newTestTable(n *Network) *Table {
	t := NewTable()
	t.epoch = noon
	t.now = func() time.Time { return noon }
	t.SetNetwork(n)
	t.SetHost(&Host{Network: n.Name, VM: "i-2-1-VM", Hostname: "web-1", MAC: web, IP: addr("10.1.1.34"), Default: true})
	t.SetHost(&Host{Network: n.Name, VM: "i-2-2-VM", Hostname: "db-1", MAC: db, IP: addr("10.1.1.35")})
	return t
}

// client says what a message of the library's client is like.
func message(t testing.TB, mac MAC, kind dhcpv4.MessageType, change ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{
		dhcpv4.WithHwAddr(net.HardwareAddr(mac[:])),
		dhcpv4.WithMessageType(kind),
		dhcpv4.WithTransactionID(dhcpv4.TransactionID{1, 2, 3, 4}),
	}, change...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func askFor(ip string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(ip)))
}

func choose(ip string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.ParseIP(ip)))
}

func using(ip string) dhcpv4.Modifier { return dhcpv4.WithClientIP(net.ParseIP(ip)) }

// say sends m to the table and returns the reply, parsed by the library as a client would.
func say(t testing.TB, table *Table, d *Device, m *dhcpv4.DHCPv4, change ...func(*Packet)) (Reply, *dhcpv4.DHCPv4, error) {
	t.Helper()
	p := Packet{Message: m.ToBytes(), Destination: broadcastAddr, Time: noon}
	for _, f := range change {
		f(&p)
	}
	reply, err := table.Answer(d, p, nil)
	if err != nil {
		return reply, nil, err
	}
	parsed, err := dhcpv4.FromBytes(reply.Message)
	if err != nil {
		t.Fatalf("reply does not parse: %v", err)
	}
	return reply, parsed, nil
}

func TestKnownHostGetsItsAddressInEveryState(t *testing.T) {
	tests := map[string]struct {
		message *dhcpv4.DHCPv4
		want    dhcpv4.MessageType
		err     error
	}{
		"discover":                          {message(t, web, dhcpv4.MessageTypeDiscover), dhcpv4.MessageTypeOffer, nil},
		"discover with a wish":              {message(t, web, dhcpv4.MessageTypeDiscover, askFor("10.1.1.77")), dhcpv4.MessageTypeOffer, nil},
		"selecting us":                      {message(t, web, dhcpv4.MessageTypeRequest, choose("10.1.1.1"), askFor("10.1.1.34")), dhcpv4.MessageTypeAck, nil},
		"selecting us, wrong address":       {message(t, web, dhcpv4.MessageTypeRequest, choose("10.1.1.1"), askFor("10.1.1.35")), dhcpv4.MessageTypeNak, nil},
		"selecting another server":          {message(t, web, dhcpv4.MessageTypeRequest, choose("10.1.1.2"), askFor("10.1.1.34")), 0, ErrOtherServer},
		"selecting another, siaddr says us": {message(t, web, dhcpv4.MessageTypeRequest, choose("10.1.1.2"), askFor("10.1.1.34"), func(m *dhcpv4.DHCPv4) { m.ServerIPAddr = net.IP{10, 1, 1, 1} }), 0, ErrOtherServer},
		"init-reboot":                       {message(t, web, dhcpv4.MessageTypeRequest, askFor("10.1.1.34")), dhcpv4.MessageTypeAck, nil},
		"init-reboot, moved":                {message(t, web, dhcpv4.MessageTypeRequest, askFor("10.1.1.33")), dhcpv4.MessageTypeNak, nil},
		"init-reboot, other subnet":         {message(t, web, dhcpv4.MessageTypeRequest, askFor("192.168.1.33")), dhcpv4.MessageTypeNak, nil},
		"renew":                             {message(t, web, dhcpv4.MessageTypeRequest, using("10.1.1.34")), dhcpv4.MessageTypeAck, nil},
		"renew, moved":                      {message(t, web, dhcpv4.MessageTypeRequest, using("10.1.1.33")), dhcpv4.MessageTypeNak, nil},
		"request of nothing":                {message(t, web, dhcpv4.MessageTypeRequest), 0, ErrNoAddress},
		"inform":                            {message(t, web, dhcpv4.MessageTypeInform, using("10.1.1.34")), dhcpv4.MessageTypeAck, nil},
		"inform with another address":       {message(t, web, dhcpv4.MessageTypeInform, using("10.1.1.99")), dhcpv4.MessageTypeAck, nil},
		"inform from outside":               {message(t, web, dhcpv4.MessageTypeInform, using("192.0.2.1")), 0, ErrWrongNet},
		"inform without an address":         {message(t, web, dhcpv4.MessageTypeInform), 0, ErrNoAddress},
		"release":                           {message(t, web, dhcpv4.MessageTypeRelease, choose("10.1.1.1"), using("10.1.1.34")), 0, ErrNoReply},
		"release of another's":              {message(t, web, dhcpv4.MessageTypeRelease, choose("10.1.1.1"), using("10.1.1.35")), 0, ErrNotHolder},
		"release to another server":         {message(t, web, dhcpv4.MessageTypeRelease, choose("10.1.1.2"), using("10.1.1.34")), 0, ErrOtherServer},
		"decline":                           {message(t, web, dhcpv4.MessageTypeDecline, choose("10.1.1.1"), askFor("10.1.1.34")), 0, ErrNoReply},
		"decline of another's":              {message(t, web, dhcpv4.MessageTypeDecline, choose("10.1.1.1"), askFor("10.1.1.35")), 0, ErrNotHolder},
		"a server's message":                {message(t, web, dhcpv4.MessageTypeOffer), 0, ErrUnknownType},
		"stranger discovers":                {message(t, nobody, dhcpv4.MessageTypeDiscover), 0, ErrUnknownHost},
		"stranger reboots":                  {message(t, nobody, dhcpv4.MessageTypeRequest, askFor("10.1.1.34")), 0, ErrUnknownHost},
		"stranger renews":                   {message(t, nobody, dhcpv4.MessageTypeRequest, using("10.1.1.34")), 0, ErrUnknownHost},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			table := newTestTable(guestNetwork())
			reply, parsed, err := say(t, table, eth0, test.message)
			if !errors.Is(err, test.err) || (err == nil) != (test.err == nil) {
				t.Fatalf("Answer() error = %v, want %v", err, test.err)
			}
			if err != nil {
				return
			}
			if parsed.MessageType() != test.want {
				t.Fatalf("answer is %v, want %v", parsed.MessageType(), test.want)
			}
			if got := parsed.ServerIdentifier(); !got.Equal(net.IP{10, 1, 1, 1}) {
				t.Errorf("server identifier = %v", got)
			}
			inform := test.message.MessageType() == dhcpv4.MessageTypeInform
			wantAddress := net.IP{10, 1, 1, 34}
			if inform || test.want == dhcpv4.MessageTypeNak {
				wantAddress = net.IPv4zero.To4()
			}
			if !parsed.YourIPAddr.Equal(wantAddress) {
				t.Errorf("yiaddr = %v, want %v", parsed.YourIPAddr, wantAddress)
			}
			if got := parsed.Options.Has(dhcpv4.OptionIPAddressLeaseTime); got == (inform || test.want == dhcpv4.MessageTypeNak) {
				t.Errorf("has a lease time: %v", got)
			}
			if test.want == dhcpv4.MessageTypeNak && (reply.Link != broadcastMAC || reply.To.Addr() != broadcastAddr) {
				t.Errorf("NAK goes to %v by %v, want broadcast", reply.To, reply.Link)
			}
		})
	}
}

func TestCardsGetTheOptionsOfTheirRole(t *testing.T) {
	n := guestNetwork(func(n *Network) {
		search, err := EncodeSearch([]string{"cs1.internal", "internal"})
		if err != nil {
			t.Fatal(err)
		}
		n.Options[42], n.Options[119] = []byte{10, 1, 1, 9}, search
		n.Options[26] = []byte{5, 170}
		n.Routes = []Route{{To: netip.MustParsePrefix("192.168.0.0/16"), Via: addr("10.1.1.254")}}
	})
	common := map[uint8][]byte{
		1: {255, 255, 255, 0}, 26: {5, 170}, 28: {10, 1, 1, 255}, 42: {10, 1, 1, 9},
		51: {0, 0, 0xa8, 0xc0}, 53: {2}, 54: {10, 1, 1, 1}, 58: {0, 0, 0x54, 0x60}, 59: {0, 0, 0x93, 0xa8},
	}
	tests := map[string]struct {
		mac  MAC
		want map[uint8][]byte
	}{
		"default": {web, map[uint8][]byte{
			3: {10, 1, 1, 1}, 6: {10, 1, 1, 1}, 12: []byte("web-1"), 15: []byte("cs1.internal"), 119: n.Options[119],
			121: {16, 192, 168, 10, 1, 1, 254, 0, 10, 1, 1, 1},
		}},
		"other": {db, map[uint8][]byte{
			12: []byte("db-1"), 121: {16, 192, 168, 10, 1, 1, 254},
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			for code, value := range common {
				test.want[code] = value
			}
			_, parsed, err := say(t, newTestTable(n), eth0, message(t, test.mac, dhcpv4.MessageTypeDiscover))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, map[uint8][]byte(parsed.Options)); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
		})
	}
}

func TestInfiniteLeaseHasNoTimers(t *testing.T) {
	table := newTestTable(guestNetwork(func(n *Network) { n.LeaseTime = Infinite }))
	_, parsed, err := say(t, table, eth0, message(t, web, dhcpv4.MessageTypeDiscover))
	if err != nil {
		t.Fatal(err)
	}
	if got := parsed.Options.Get(dhcpv4.OptionIPAddressLeaseTime); !cmp.Equal(got, []byte{255, 255, 255, 255}) {
		t.Errorf("option 51 = %v", got)
	}
	for _, code := range []dhcpv4.OptionCode{dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue} {
		if parsed.Options.Has(code) {
			t.Errorf("option %v is sent with an infinite lease", code)
		}
	}
}

func TestReplyGoesWhereTheClientHearsIt(t *testing.T) {
	broadcast := func(m *dhcpv4.DHCPv4) { m.SetBroadcast() }
	tests := map[string]struct {
		message *dhcpv4.DHCPv4
		to      string
		link    MAC
	}{
		"without an address": {message(t, web, dhcpv4.MessageTypeDiscover), "10.1.1.34:68", web},
		"broadcast flag":     {message(t, web, dhcpv4.MessageTypeDiscover, broadcast), "255.255.255.255:68", broadcastMAC},
		"renewing":           {message(t, web, dhcpv4.MessageTypeRequest, using("10.1.1.34"), broadcast), "10.1.1.34:68", web},
		"informing":          {message(t, web, dhcpv4.MessageTypeInform, using("10.1.1.77")), "10.1.1.77:68", web},
		"relayed": {message(t, web, dhcpv4.MessageTypeDiscover, func(m *dhcpv4.DHCPv4) { m.GatewayIPAddr = net.IP{10, 1, 1, 7} }),
			"10.1.1.7:67", MAC{}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			reply, _, err := say(t, newTestTable(guestNetwork()), eth0, test.message)
			if err != nil {
				t.Fatal(err)
			}
			if reply.To.String() != test.to || reply.Link != test.link {
				t.Errorf("goes to %v by %v, want %v by %v", reply.To, reply.Link, test.to, test.link)
			}
		})
	}
}

func TestDeclinedAddressIsOfferedAgainAfterTenSeconds(t *testing.T) {
	table := newTestTable(guestNetwork())
	at := func(d time.Duration) func(*Packet) { return func(p *Packet) { p.Time = noon.Add(d) } }
	if _, _, err := say(t, table, eth0, message(t, web, dhcpv4.MessageTypeDecline, choose("10.1.1.1"), askFor("10.1.1.34")), at(0)); err != ErrNoReply {
		t.Fatal(err)
	}
	if _, _, err := say(t, table, eth0, message(t, web, dhcpv4.MessageTypeDiscover), at(9*time.Second)); err != ErrDeclined {
		t.Errorf("after 9 s: %v, want %v", err, ErrDeclined)
	}
	if _, _, err := say(t, table, eth0, message(t, web, dhcpv4.MessageTypeDiscover), at(10*time.Second)); err != nil {
		t.Errorf("after 10 s: %v", err)
	}
}

func TestHostsSwapAddressesOneByOne(t *testing.T) {
	table := newTestTable(guestNetwork())
	table.SetHost(&Host{Network: "guest-1", MAC: web, IP: addr("10.1.1.35"), Default: true})
	if _, _, err := say(t, table, eth0, message(t, db, dhcpv4.MessageTypeDiscover)); err != ErrMoved {
		t.Errorf("db, whose address web has now: %v, want %v", err, ErrMoved)
	}
	table.SetHost(&Host{Network: "guest-1", MAC: db, IP: addr("10.1.1.34")})
	for mac, want := range map[MAC]string{web: "10.1.1.35", db: "10.1.1.34"} {
		reply, _, err := say(t, table, eth0, message(t, mac, dhcpv4.MessageTypeDiscover))
		if err != nil || reply.Address.String() != want {
			t.Errorf("%s gets %v, %v; want %s", mac, reply.Address, err, want)
		}
	}
	table.RemoveHost("guest-1", web)
	if _, _, err := say(t, table, eth0, message(t, web, dhcpv4.MessageTypeRequest, using("10.1.1.35"))); err != ErrUnknownHost {
		t.Errorf("removed host: %v, want %v", err, ErrUnknownHost)
	}
}

func TestOverlappingNetworksAreToldApartByDevice(t *testing.T) {
	table := newTestTable(guestNetwork())
	table.SetNetwork(guestNetwork(func(n *Network) { n.Name = "guest-2" }))
	table.SetHost(&Host{Network: "guest-2", MAC: web, IP: addr("10.1.1.99"), Default: true})
	eth1 := &Device{Index: 3, Name: "eth1", MTU: 1500, Networks: []string{"guest-2"}}
	for device, want := range map[*Device]string{eth0: "10.1.1.34", eth1: "10.1.1.99"} {
		reply, _, err := say(t, table, device, message(t, web, dhcpv4.MessageTypeDiscover))
		if err != nil || reply.Address.String() != want {
			t.Errorf("on %s: %v, %v; want %s", device.Name, reply.Address, err, want)
		}
	}
	standby := &Device{Index: 4, Name: "eth2"}
	if _, _, err := say(t, table, standby, message(t, web, dhcpv4.MessageTypeDiscover)); err != ErrNoNetwork {
		t.Errorf("standing by: %v, want %v", err, ErrNoNetwork)
	}
}
