package dhcp

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"

	"vragent/netcfg/nstest"
)

func TestPoolOnTheWire(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	l := &lab{t: t, router: nstest.Here(t), table: NewTable()}
	guest, squatter := nstest.NewHost(t, "guest"), nstest.NewHost(t, "squatter")
	nstest.Pair(t, l.router, "eth0", guest, "eth0")
	nstest.Pair(t, l.router, "eth1", squatter, "eth0")
	l.router.Bridge(t, "br0", "eth0", "eth1")
	guest.SetMAC(t, "eth0", nobody.String())
	l.router.AddAddr(t, "br0", "10.1.1.1/24")
	squatter.AddAddr(t, "eth0", "10.1.1.200/24")
	l.table.SetNetwork(poolNetwork(2, func(n *Network) { n.Pool.Probe = true }))
	store := &memoryLeases{}
	l.start(ServerOptions{Leases: store}, l.device("br0", "guest-1"))
	client := guest.Start(t, "dhclient", "-d", "-v", "-pf", "/run/dhclient.pid", "-lf", "/run/dhclient.leases", "eth0")
	client.WaitFor(t, "bound to 10.1.1.201", 30*time.Second)
	if use, _ := l.table.PoolUse("guest-1"); use.Declined != 1 {
		t.Errorf("PoolUse() = %+v, want the squatter's address in quarantine", use)
	}
	store.mu.Lock()
	lease := store.leases["guest-1 10.1.1.201"]
	store.mu.Unlock()
	if lease.MAC != nobody || lease.State != LeaseBound {
		t.Errorf("stored lease = %+v", lease)
	}
	guest.Run(t, "dhclient", "-r", "-pf", "/run/dhclient.pid", "-lf", "/run/dhclient.leases", "eth0")
	l.waitAnswer(nobody, "RELEASE", "")
	nstest.Poll(t, 10*time.Second, "release in the store", func() bool {
		store.mu.Lock()
		defer store.mu.Unlock()
		return store.leases["guest-1 10.1.1.201"].State == LeaseReleased
	})
}

func TestDeviceThatIsMadeAnewIsServedAgain(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	l, _ := newLab(t, ServerOptions{})
	l.setWeb("10.1.1.34")
	old := l.device("eth0", "guest-1")

	l.router.Down(t, "eth0") // a flap does not end the socket
	l.router.Up(t, "eth0")

	l.router.Delete(t, "eth0")
	l.server.SetDevices(nil)
	if got := l.server.Serving(); len(got) != 0 {
		t.Errorf("Serving() = %v", got)
	}
	guest := nstest.NewHost(t, "guest2")
	nstest.Pair(t, l.router, "eth0", guest, "eth0")
	guest.SetMAC(t, "eth0", web.String())
	l.router.AddAddr(t, "eth0", "10.1.1.1/24")
	device := l.device("eth0", "guest-1")
	if device.Index == old.Index {
		t.Fatal("the new device has the old index")
	}
	l.server.SetDevices([]Device{device})
	l.server.SetDevices([]Device{device}) // once more changes nothing
	client := guest.Start(t, "dhclient", "-d", "-v", "-pf", "/run/dhclient.pid", "-lf", "/run/dhclient.leases", "eth0")
	client.WaitFor(t, "bound to 10.1.1.34", 30*time.Second)
}

func TestFlapKeepsTheDeviceServed(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	l, guest := newLab(t, ServerOptions{})
	l.setWeb("10.1.1.34")
	for range 3 {
		l.router.Down(t, "eth0")
		l.router.Up(t, "eth0")
	}
	client := guest.Start(t, "dhclient", "-d", "-v", "-pf", "/run/dhclient.pid", "-lf", "/run/dhclient.leases", "eth0")
	client.WaitFor(t, "bound to 10.1.1.34", 30*time.Second)
}

func TestAnotherServerOnThePortIsAFault(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	l, _ := newLab(t, ServerOptions{})
	other := nstest.NewHost(t, "other")
	nstest.Pair(t, l.router, "eth1", other, "eth0")
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	// As other servers do; it takes eth1 alone.
	if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.BindToDevice(fd, "eth1"),
		unix.Bind(fd, &unix.SockaddrInet4{Port: serverPort})); err != nil {
		t.Fatal(err)
	}
	l.server.SetDevices([]Device{l.device("eth0", "guest-1"), l.device("eth1", "guest-1")})
	faults := l.server.Faults()
	if len(faults) != 1 || faults[0].Device != "eth1" || !strings.Contains(faults[0].Err.Error(), "UDP port 67 on eth1 is taken") {
		t.Errorf("Faults() = %v", faults)
	}
	if got := l.server.Serving(); !slices.Equal(got, []string{"eth0"}) {
		t.Errorf("Serving() = %v", got)
	}
	if err := unix.Close(fd); err != nil {
		t.Fatal(err)
	}
	l.waitServing("eth1")
	if faults := l.server.Faults(); len(faults) != 0 {
		t.Errorf("Faults() = %v", faults)
	}
}

// TestFramesOnTheWire looks at what a client without an address receives, and that its checksums are whole.
func TestFramesOnTheWire(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	l, guest := newLab(t, ServerOptions{})
	l.setWeb("10.1.1.34")
	index := guest.Link(t, "eth0").Attrs().Index
	var fd int
	var err error
	guest.Do(t, func() {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(hostToNetwork16(unix.ETH_P_IP)))
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: hostToNetwork16(unix.ETH_P_IP), Ifindex: index}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10})); err != nil {
		t.Fatal(err)
	}
	for _, broadcast := range []bool{false, true} {
		m := message(t, web, dhcpv4.MessageTypeDiscover)
		want, to := web, addr("10.1.1.34")
		if broadcast {
			m.SetBroadcast()
			want, to = broadcastMAC, broadcastAddr
		}
		payload := m.ToBytes()
		frame := make([]byte, 14+headerSize, 14+headerSize+len(payload))
		copy(frame, broadcastMAC[:])
		copy(frame[6:], web[:])
		frame[12], frame[13] = 8, 0
		frame = append(frame, payload...)
		putHeaders(frame[14:], netip.IPv4Unspecified(), netip.AddrPortFrom(broadcastAddr, serverPort))
		binary.BigEndian.PutUint16(frame[14+20:], serverPort) // the source port does not matter
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: index, Halen: 6}); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 2048)
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				t.Fatalf("no reply: %v", err)
			}
			if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			ip := buf[14:n]
			if MAC(buf) != want || netip.AddrFrom4([4]byte(ip[16:20])) != to {
				t.Errorf("reply goes to %v and %v, want %v and %v", MAC(buf), net.IP(ip[16:20]), want, to)
			}
			if fold(sum(ip[:20], 0)) != 0xffff || fold(sum(ip[20:], sum(ip[12:20], 17+uint64(len(ip)-20)))) != 0xffff {
				t.Error("a checksum is wrong")
			}
			break
		}
	}
}

// TestFloodIsCountedAndOthersAreServed sends more than one client may ask for, then asks for another.
func TestFloodIsCountedAndOthersAreServed(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	l, guest := newLab(t, ServerOptions{})
	l.setWeb("10.1.1.34")
	guest.AddAddr(t, "eth0", "10.1.1.77/24")
	var conn *net.UDPConn
	var err error
	guest.Do(t, func() {
		conn, err = net.DialUDP("udp4", &net.UDPAddr{IP: net.IP{10, 1, 1, 77}, Port: 68}, &net.UDPAddr{IP: net.IP{10, 1, 1, 1}, Port: 67})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	flood := message(t, db, dhcpv4.MessageTypeDiscover).ToBytes()
	for l.server.Stats().Messages["DISCOVER"]["limited"] == 0 {
		for range 500 {
			if _, err := conn.Write(flood); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := conn.Write(message(t, web, dhcpv4.MessageTypeDiscover).ToBytes()); err != nil {
		t.Fatal(err)
	}
	l.waitAnswer(web, "DISCOVER", "OFFER")
}

// TestPerfdhcpGetsUniqueAddresses has perfdhcp bind many clients at once and compare their addresses.
func TestPerfdhcpGetsUniqueAddresses(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	l, load := newLab(t, ServerOptions{Leases: &memoryLeases{}})
	load.AddAddr(t, "eth0", "10.1.1.2/24")
	l.table.SetNetwork(poolNetwork(50, func(n *Network) { n.Pool.Probe = true }))
	for name, args := range map[string][]string{
		"rate":      {"-4", "-u", "-R", "1000000", "-r", "40", "-n", "40", "-W", "500000", "-l", "10.1.1.2", "10.1.1.1"},
		"avalanche": {"-4", "-s", "7", "--scenario", "avalanche", "-R", "10", "-b", "mac=02:00:00:aa:00:00", "-l", "10.1.1.2", "10.1.1.1"},
	} {
		out, err := load.Output(t, "perfdhcp", args...)
		if err != nil || name == "rate" && strings.Count(out, "non unique addresses: 0") != 2 {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	used := map[netip.Addr]bool{}
	for _, b := range l.table.Bindings("guest-1") {
		if b.State == "bound" {
			used[b.IP] = true
		}
	}
	if len(used) < 41 || len(used) > 50 {
		t.Errorf("%d addresses are bound, by 40 clients and up to 10 others", len(used))
	}
}

// TestDevicesComeAndGoUnderAFlood closes and opens a port while its worker is busy with an exhausted pool:
// neither waits for the other for ever.
func TestDevicesComeAndGoUnderAFlood(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	l, guest := newLab(t, ServerOptions{Leases: &memoryLeases{}})
	l.table.SetNetwork(poolNetwork(1))
	guest.AddAddr(t, "eth0", "10.1.1.77/24")
	var conn *net.UDPConn
	var err error
	guest.Do(t, func() { conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IP{10, 1, 1, 77}, Port: 68}) })
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stop, done := make(chan struct{}), make(chan struct{})
	packet := message(t, nobody, dhcpv4.MessageTypeDiscover).ToBytes()
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			binary.BigEndian.PutUint32(packet[offsetCHAddr+2:], uint32(i))
			_, _ = conn.WriteToUDP(packet, &net.UDPAddr{IP: net.IP{10, 1, 1, 1}, Port: 67}) // nobody may listen now
		}
	}()
	device := l.device("eth0", "guest-1")
	for range 30 {
		before := l.server.Stats().Messages["DISCOVER"]["silent"]
		nstest.Poll(t, 20*time.Second, "the flood to be heard", func() bool {
			return l.server.Stats().Messages["DISCOVER"]["silent"] > before
		})
		l.server.SetDevices(nil)
		l.server.SetDevices([]Device{device})
	}
	close(stop)
	<-done
}
