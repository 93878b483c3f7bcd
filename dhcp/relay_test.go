package dhcp

import (
	"bufio"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"vragent/netcfg/nstest"
)

// TestRealRelays serves a guest two hops away:
//
//	router eth0 192.0.2.1 ── 192.0.2.2 eth0 relay eth1 10.9.0.1 ── eth0 guest
//
// The guest binds through the relay and renews past it, by unicast through a router; when its reservation
// moves, the NAK finds it there.
func TestRealRelays(t *testing.T) {
	t.Parallel()
	relays := map[string][]string{
		"dhcrelay": {"dhcrelay", "-4", "-d", "-a", "-iu", "eth0", "-id", "eth1", "192.0.2.1"},
		"dnsmasq": {"dnsmasq", "-k", "--conf-file=/dev/null", "--port=0", "--user=root", "--log-facility=-", "--log-dhcp",
			"--dhcp-relay=10.9.0.1,192.0.2.1"},
	}
	for name, command := range relays {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if !nstest.Enter(t) {
				return
			}
			l := &lab{t: t, router: nstest.Here(t), table: NewTable()}
			relay, guest := nstest.NewHost(t, "relay"), nstest.NewHost(t, "guest")
			nstest.Pair(t, l.router, "eth0", relay, "eth0")
			nstest.Pair(t, relay, "eth1", guest, "eth0")
			guest.SetMAC(t, "eth0", web.String())
			l.router.AddAddr(t, "eth0", "192.0.2.1/24")
			relay.AddAddr(t, "eth0", "192.0.2.2/24")
			relay.AddAddr(t, "eth1", "10.9.0.1/24")
			l.router.AddRoute(t, "10.9.0.0/24", "192.0.2.2")
			relay.WriteFile(t, "/proc/sys/net/ipv4/ip_forward", "1")
			l.table.SetNetwork(&Network{Name: "guest-1", Subnet: netip.MustParsePrefix("10.9.0.0/24"), Gateway: addr("10.9.0.1"),
				ServerID: addr("192.0.2.1"), LeaseTime: 8 * time.Second, Relay: true})
			l.start(ServerOptions{}, l.device("eth0", "guest-1"))
			l.setWeb("10.9.0.34")
			agent := relay.Start(t, command[0], command[1:]...)
			if name == "dhcrelay" {
				agent.WaitFor(t, "Sending on   Socket/fallback", 10*time.Second)
			} else {
				agent.WaitFor(t, "DHCP relay from 10.9.0.1 to 192.0.2.1", 10*time.Second)
			}
			client := guest.Start(t, "dhclient", "-d", "-v", "-pf", "/run/dhclient.pid", "eth0")
			client.WaitFor(t, "bound to 10.9.0.34", 30*time.Second)
			l.waitState(web, "renewing", "ACK", time.Time{})
			l.setWeb("10.9.0.55")
			client.WaitFor(t, "DHCPNAK from 192.0.2.1", 30*time.Second)
			client.WaitFor(t, "bound to 10.9.0.55", 30*time.Second)
		})
	}
}

// TestIPXEBoots starts iPXE's ROM in QEMU on a tap device. The ROM is a PXE client that says it is iPXE, so
// the file that is its own comes before the one for all.
func TestIPXEBoots(t *testing.T) {
	t.Parallel()
	if !nstest.Enter(t) {
		return
	}
	l := &lab{t: t, router: nstest.Here(t), table: NewTable()}
	l.router.Run(t, "ip", "tuntap", "add", "tap0", "mode", "tap")
	l.router.AddAddr(t, "tap0", "10.1.1.1/24")
	l.router.Up(t, "tap0")
	l.table.SetNetwork(guestNetwork(func(n *Network) {
		n.NextServer = addr("10.1.1.1")
		n.Boot = []BootFile{{IPXE: true, File: "http://10.1.1.1/boot.ipxe"}, {File: "pxelinux.0"}}
	}))
	l.setWeb("10.1.1.34")
	l.start(ServerOptions{}, l.device("tap0", "guest-1"))
	asked := listenHTTP(t, "10.1.1.1:80")
	qemu := l.router.Start(t, "qemu-system-x86_64", "-machine", "pc,accel=tcg", "-m", "64", "-display", "none", "-serial", "none",
		"-monitor", "none", "-boot", "n", "-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no",
		"-device", "e1000,netdev=n0,mac="+web.String())
	select {
	case line := <-asked:
		if !strings.HasPrefix(line, "GET /boot.ipxe ") {
			t.Errorf("iPXE asks for %q", line)
		}
	case <-qemu.Exited():
		t.Fatalf("QEMU ended: %s", qemu.Output())
	case <-time.After(90 * time.Second):
		t.Fatalf("iPXE asked for no file; its exchanges: %+v", l.server.Last(web))
	}
}

// listenHTTP takes connections and passes on the first line of each.
func listenHTTP(t *testing.T, address string) <-chan string {
	t.Helper()
	listener, err := net.Listen("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	lines := make(chan string, 8)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if line, err := bufio.NewReader(conn).ReadString('\n'); err == nil {
				select {
				case lines <- line:
				default:
				}
			}
			conn.Close()
		}
	}()
	return lines
}
