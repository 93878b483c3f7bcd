package e2e

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"

	"vragent/netcfg/nstest"
)

// TestExplainFollowsAGuest has guests do what leaves them without an address, and asks why each time. The
// causes that need no guest are TestAnswerTellsWhyAndWhatToDo's.
func TestExplainFollowsAGuest(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	const known, first, second = macA, "02:00:4c:5f:00:91", "02:00:4c:5f:00:92"
	const patience = time.Second
	r := newRouter(t)
	a, b := r.guest(t, "a", "eth0", macA), r.guest(t, "b", "eth1", macB)
	nstest.Pair(t, r.Host, "eth2", nstest.NewHost(t, "c"), "eth0")
	for _, x := range []struct {
		host            *nstest.Host
		device, address string
	}{{r.Host, "eth0", "10.1.1.1/24"}, {r.Host, "eth1", "10.2.1.1/24"}, {r.Host, "eth2", "10.3.1.1/24"}, {a, "eth0", "10.1.1.99/24"}, {b, "eth0", "10.2.1.99/24"}} {
		x.host.AddAddr(t, x.device, x.address)
	}
	r.start(t)
	r.put(t, "networks/guest-1.yaml", network+"pool: {from: 10.1.1.200, to: 10.1.1.200, probe: false}\n")
	r.put(t, "networks/guest-2.yaml", "interface: eth1\ngateway: 10.2.1.1/24\n")
	r.put(t, "vms/a/vm.yaml", vm("a", "guest-1", known, "10.1.1.34"))
	r.applied(t)
	onLink, elsewhere := newStation(t, a), newStation(t, b)

	// tells asks until all parts are in what is told: a reply is on its way before its exchange is noted.
	tells := func(subject string, parts ...string) {
		t.Helper()
		var text string
		nstest.Poll(t, waitTime, "explain "+subject+" to tell "+strings.Join(parts, ", "), func() bool {
			x, err := r.client.Explain(t.Context(), subject)
			if err != nil {
				return false
			}
			text = strings.Join(append([]string{x.Answer, x.Next}, x.Obstacles...), "\n")
			for _, part := range parts {
				if !strings.Contains(text, part) {
					return false
				}
			}
			return true
		})
	}
	say := func(s *station, mac string, kind dhcpv4.MessageType, more ...dhcpv4.Modifier) {
		t.Helper()
		hardware, err := net.ParseMAC(mac)
		if err != nil {
			t.Fatal(err)
		}
		m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(hardware), dhcpv4.WithMessageType(kind), dhcpv4.WithBroadcast(true)}, more...)...)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.conn.WriteTo(m.ToBytes(), servers); err != nil {
			t.Fatal(err)
		}
	}
	server := func(ip string) dhcpv4.Modifier {
		return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.ParseIP(ip)))
	}
	for _, subject := range []string{"10.1.1.200", first} {
		if _, err := r.client.Explain(t.Context(), subject); err == nil {
			t.Errorf("%s is explained, of which nothing is known", subject)
		}
	}

	tells("a", "nothing has been heard by DHCP from "+known, "link of eth0")
	if _, err := onLink.lease(known, waitTime); err != nil {
		t.Fatal(err)
	}
	tells("a", "gets its address and its data")

	say(elsewhere, known, dhcpv4.MessageTypeDiscover)
	tells("a", "asks on eth1, and its NIC is in guest-1 on eth0", "name the network of eth1")
	say(onLink, known, dhcpv4.MessageTypeRequest, server("10.1.1.77"), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.ParseIP("10.1.1.34"))))
	tells("a", "the client chose another server", "Find the other DHCP server on the link of eth0")
	say(onLink, known, dhcpv4.MessageTypeRequest, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.ParseIP("10.1.1.35"))))
	tells("a", "was refused", "restart its DHCP client")
	say(onLink, known, dhcpv4.MessageTypeRelease, server("10.1.1.1"), dhcpv4.WithClientIP(net.ParseIP("10.1.1.34")))
	tells("a", "has given its address back")
	say(onLink, known, dhcpv4.MessageTypeDecline, server("10.1.1.1"), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.ParseIP("10.1.1.34"))))
	tells("a", "has declined its address", "Look for who has the address")
	say(onLink, known, dhcpv4.MessageTypeDiscover)
	tells("a", "declined by the client a moment ago", "ten seconds")

	// Strangers, and the pool.
	say(elsewhere, first, dhcpv4.MessageTypeDiscover)
	tells(first, "gets silence", "no host with this MAC, and no pool", "Drop a VM with mac: "+first)
	say(onLink, first, dhcpv4.MessageTypeDiscover)
	tells(first, "was offered 10.1.1.200 from the pool of guest-1", "another DHCP server")
	leased, err := onLink.lease(first, waitTime)
	if err != nil || leased != netip.MustParseAddr("10.1.1.200") {
		t.Fatalf("lease of the pool: %s, %v", leased, err)
	}
	for _, subject := range []string{first, "10.1.1.200"} {
		tells(subject, "has the address 10.1.1.200 from the pool of guest-1")
	}
	if _, err := onLink.lease(second, patience); !errors.Is(err, errSilence) {
		t.Errorf("of a pool that is given away %s gets: %v", second, err)
	}
	tells(second, "no free address in the pool", "Widen the pool in networks/guest-1.yaml")
	if err := onLink.release(first, leased, "10.1.1.1"); err != nil {
		t.Fatal(err)
	}
	tells(first, "its lease of 10.1.1.200 from the pool of guest-1 is over (released)")

	// Another program on the port of a device.
	var lc net.ListenConfig
	lc.Control = func(_, _ string, c syscall.RawConn) error {
		var err error
		control := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), "eth2") })
		return errors.Join(control, err)
	}
	squatter, err := lc.ListenPacket(context.Background(), "udp4", ":67")
	if err != nil {
		t.Fatal(err)
	}
	defer squatter.Close()
	r.put(t, "networks/guest-3.yaml", "interface: eth2\ngateway: 10.3.1.1/24\n")
	r.put(t, "vms/c/vm.yaml", vm("c", "guest-3", "02:00:4c:5f:00:93", "10.3.1.34"))
	r.applied(t)
	tells("c", "DHCP does not work on eth2", "ss -ulpn")
	squatter.Close()
	tells("c", "nothing has been heard by DHCP")
}
