package dhcp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"

	"vragent/netcfg/nstest"
)

// keptSockets keeps sockets as whoever starts the next process would.
type keptSockets struct {
	t       *testing.T
	kept    map[string]int
	refused error // of the last check
}

func keepSockets(t *testing.T) *keptSockets {
	k := &keptSockets{t: t, kept: make(map[string]int)}
	t.Cleanup(func() {
		for _, fd := range k.kept {
			unix.Close(fd)
		}
	})
	return k
}

func dup(t *testing.T, fd int) int {
	t.Helper()
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return copied
}

func (k *keptSockets) Open(name string, check func(int) error, open func() (int, error)) (int, error) {
	if fd, ok := k.kept[name]; ok {
		if k.refused = check(fd); k.refused == nil {
			return dup(k.t, fd), nil
		}
		k.Drop(name)
	}
	fd, err := open()
	if err == nil {
		k.kept[name] = dup(k.t, fd)
	}
	return fd, err
}

func (k *keptSockets) Drop(name string) {
	if fd, ok := k.kept[name]; ok {
		unix.Close(fd)
		delete(k.kept, name)
	}
}

// run runs a server until stop, and returns once it has started.
func (l *lab) run(opts ServerOptions, devices ...Device) (stop func()) {
	l.t.Helper()
	l.server = NewServer(l.table, opts)
	l.server.SetDevices(devices)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.server.Run(ctx) }()
	<-l.server.Started()
	return func() {
		l.t.Helper()
		cancel()
		if err := <-done; err != nil {
			l.t.Errorf("Run() = %v", err)
		}
	}
}

// discover broadcasts a DISCOVER.
func discover(t *testing.T, guest *nstest.Host, mac MAC) {
	t.Helper()
	send(t, guest, mac, dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover))
}

// send broadcasts a message of a client.
func send(t *testing.T, guest *nstest.Host, mac MAC, modifiers ...dhcpv4.Modifier) {
	t.Helper()
	message, err := dhcpv4.New(append(modifiers, dhcpv4.WithHwAddr(mac[:]), dhcpv4.WithBroadcast(true))...)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := guest.Dial(t.Context(), &net.Dialer{}, "udp4", "10.1.1.255:67")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1) }); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(message.ToBytes()); err != nil {
		t.Fatal(err)
	}
}

func TestMessageBetweenTwoServersIsAnswered(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	l := &lab{t: t, router: nstest.Here(t), table: NewTable()}
	guest := nstest.NewHost(t, "guest")
	nstest.Pair(t, l.router, "eth0", guest, "eth0")
	guest.AddAddr(t, "eth0", "10.1.1.99/24")
	l.router.AddAddr(t, "eth0", "10.1.1.1/24")
	l.table.SetNetwork(guestNetwork())
	l.setWeb("10.1.1.34")
	sockets := keepSockets(t)
	device := l.device("eth0", "guest-1")

	stop := l.run(ServerOptions{Sockets: sockets}, device)
	stop()
	if len(sockets.kept) != 1 {
		t.Fatalf("kept: %v", sockets.kept)
	}
	discover(t, guest, web)

	stop = l.run(ServerOptions{Sockets: sockets}, device)
	l.waitAnswer(web, "DISCOVER", "OFFER")
	l.server.SetDevices(nil)
	if len(sockets.kept) != 0 {
		t.Errorf("kept without a device: %v", sockets.kept)
	}
	l.server.SetDevices([]Device{device})
	if got := l.server.Serving(); len(got) != 1 {
		t.Errorf("Serving() = %v, %v", got, l.server.Faults())
	}
	stop()
}

// A stranger's message that waited for the server is answered from the pool: the leases are there before
// the message is read.
func TestStrangerBetweenTwoServersIsAnswered(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	l := &lab{t: t, router: nstest.Here(t), table: NewTable()}
	guest := nstest.NewHost(t, "guest")
	nstest.Pair(t, l.router, "eth0", guest, "eth0")
	guest.AddAddr(t, "eth0", "10.1.1.99/24")
	l.router.AddAddr(t, "eth0", "10.1.1.1/24")
	sockets, device := keepSockets(t), l.device("eth0", "guest-1")
	start := func() (stop func()) {
		l.table = NewTable()
		l.table.SetNetwork(poolNetwork(2, func(n *Network) { n.Pool.Probe = true }))
		return l.run(ServerOptions{Sockets: sockets, Leases: &memoryLeases{}}, device)
	}
	start()()
	for range 3 {
		discover(t, guest, nobody)
		stop := start()
		l.server.mu.Lock()
		port := l.server.open[device.Index]
		l.server.mu.Unlock()
		nstest.Poll(t, 10*time.Second, "the message to be heard", func() bool {
			return port.prober.any() || len(l.server.Last(nobody)) > 0
		})
		stop() // while the address is probed
		if last := l.server.Last(nobody); len(last) != 1 || last[0].Answer != "OFFER" {
			t.Errorf("Last() = %+v, want one OFFER", last)
		}
	}
}

// Two strangers are in the middle of it when the server is restarted: one has its offer, and the other
// one's DISCOVER comes before the REQUEST.
func TestOfferOutlivesItsServer(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	l := &lab{t: t, router: nstest.Here(t)}
	guest := nstest.NewHost(t, "guest")
	nstest.Pair(t, l.router, "eth0", guest, "eth0")
	guest.AddAddr(t, "eth0", "10.1.1.99/24")
	l.router.AddAddr(t, "eth0", "10.1.1.1/24")
	sockets, device := keepSockets(t), l.device("eth0", "guest-1")
	start := func() (stop func()) {
		l.table = NewTable()
		l.table.SetNetwork(poolNetwork(2))
		return l.run(ServerOptions{Sockets: sockets, Leases: &memoryLeases{}}, device)
	}
	other := MAC{2, 0, 0, 0, 0, 99}
	stop := start()
	discover(t, guest, nobody)
	first := l.waitAnswer(nobody, "DISCOVER", "OFFER").Address
	stop()
	if _, ok := sockets.kept[offersName]; !ok {
		t.Fatalf("kept: %v", sockets.kept)
	}
	discover(t, guest, other)
	send(t, guest, nobody, dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 1, 1, 1))), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(first.AsSlice())))

	stop = start()
	if got := l.waitAnswer(nobody, "REQUEST", "ACK").Address; got != first {
		t.Errorf("ACK of %s, want %s", got, first)
	}
	if got := l.waitAnswer(other, "DISCOVER", "OFFER").Address; got == first {
		t.Errorf("%s is offered to both", got)
	}
	if _, ok := sockets.kept[offersName]; ok {
		t.Error("offers that were read are still kept")
	}
	stop()
}

func TestOffersAreReadAsTheyWereLeft(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	table := NewTable()
	table.SetNetwork(poolNetwork(4))
	before := table.scope("guest-1").pool
	for i := range 3 {
		c := client{mac: MAC{2, 0, 0, 0, 0, byte(i)}, clientID: []byte{1, byte(i)}, hostname: []byte("h")}
		if _, err := before.offer(&c, netip.Addr{}, now); err != nil {
			t.Fatal(err)
		}
	}
	var file []byte
	for _, l := range before.offers(now) {
		record, err := l.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		file = append(append(file, 0, byte(len(record))), record...)
	}
	offers, err := parseOffers(file)
	if err != nil || len(offers) != 3 {
		t.Fatalf("parseOffers() = %v, %v", offers, err)
	}
	for n := range len(file) {
		if some, err := parseOffers(file[:n]); err == nil && len(some) == 3 {
			t.Errorf("%d of %d bytes read as the whole", n, len(file))
		}
	}

	next := NewTable()
	next.SetNetwork(poolNetwork(4))
	after := next.scope("guest-1").pool
	taken := after.byMAC
	if _, _, err := after.bind(&client{mac: MAC{2, 0, 0, 0, 0, 9}}, offers[1].IP, true, time.Hour, now); err != nil {
		t.Fatal(err)
	}
	for i := range offers {
		after.reoffer(&offers[i], now.Add(time.Second))
	}
	if s := taken[offers[0].MAC]; s == nil || s.state != slotOffered || !s.end.Equal(now.Add(offerHold)) {
		t.Errorf("first offer = %+v", s)
	}
	if s := taken[offers[1].MAC]; s != nil {
		t.Errorf("an address that is another's by now is offered: %+v", s)
	}
	after.reoffer(&offers[1], now.Add(offerHold)) // its time is over
	if got := len(after.offers(now)); got != 2 {
		t.Errorf("%d offers", got)
	}
}

func TestSocketThatIsNotTheServersIsRefused(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	for _, name := range []string{"eth0", "eth1"} {
		nstest.Pair(t, router, name, nstest.NewHost(t, name), "eth0")
	}
	l := &lab{t: t, router: router, table: NewTable()}
	eth0, eth1 := l.device("eth0", "guest-1"), l.device("eth1", "guest-1")
	udp := func(device int, address netip.AddrPort, options ...int) func() (int, error) {
		return func() (int, error) {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			for _, option := range options {
				err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1))
			}
			return fd, errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, device),
				unix.Bind(fd, &unix.SockaddrInet4{Port: int(address.Port()), Addr: address.Addr().As4()}))
		}
	}
	other := func(family, kind, protocol int) func() (int, error) {
		return func() (int, error) { return unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol) }
	}
	any67 := netip.MustParseAddrPort("0.0.0.0:67")
	for name, test := range map[string]struct {
		open  func() (int, error)
		right bool
	}{
		"its own":        {open: func() (int, error) { return openSocket("eth0", eth0.Index) }, right: true},
		"bare":           {open: udp(eth0.Index, any67), right: true},
		"another device": {open: udp(eth1.Index, any67)},
		"every device":   {open: udp(0, any67)},
		"another port":   {open: udp(eth0.Index, netip.MustParseAddrPort("0.0.0.0:68"))},
		"an address":     {open: udp(eth0.Index, netip.MustParseAddrPort("127.0.0.1:67"))},
		"shared":         {open: udp(eth0.Index, any67, unix.SO_REUSEADDR)},
		"not bound":      {open: other(unix.AF_INET, unix.SOCK_DGRAM, 0)},
		"TCP":            {open: other(unix.AF_INET, unix.SOCK_STREAM, 0)},
		"IPv6":           {open: other(unix.AF_INET6, unix.SOCK_DGRAM, 0)},
		"frames":         {open: other(unix.AF_PACKET, unix.SOCK_DGRAM, 0)},
		"no socket":      {open: func() (int, error) { return unix.EpollCreate1(unix.EPOLL_CLOEXEC) }},
	} {
		t.Run(name, func(t *testing.T) {
			fd, err := test.open()
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if err := checkSocket(fd, "eth0", eth0.Index); (err == nil) != test.right {
				t.Errorf("checkSocket() = %v", err)
			}
			if !test.right {
				return
			}
			if info, err := unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO); err != nil || info != 1 {
				t.Errorf("IP_PKTINFO = %d, %v", info, err)
			}
		})
	}
}
