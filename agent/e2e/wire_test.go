package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"

	"vragent/netcfg/nstest"
)

// wire records the DHCP messages that pass a device of the router.
type wire struct {
	mu   sync.Mutex
	list []message
}

// message is one DHCP message as it went over the link.
type message struct {
	*dhcpv4.DHCPv4
	link net.HardwareAddr // that the frame went to
	from net.HardwareAddr // that it came from
	at   time.Time        // when it was seen
	to   netip.Addr
}

// listen records what passes device from now on, until the test ends.
func listen(t *testing.T, device string) *wire {
	t.Helper()
	link, err := net.InterfaceByName(device)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "packets of "+device)
	w := &wire{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		frame := make([]byte, 4096)
		for {
			n, err := f.Read(frame)
			if err != nil {
				return
			}
			if m, ok := parseFrame(frame[:n]); ok {
				w.mu.Lock()
				w.list = append(w.list, m)
				w.mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() {
		f.Close()
		<-done
		if t.Failed() {
			t.Logf("DHCP on %s:\n%s", device, w)
		}
	})
	return w
}

func parseFrame(b []byte) (message, bool) {
	const ether, udp = 14, 8
	if len(b) < ether+20 || binary.BigEndian.Uint16(b[12:]) != unix.ETH_P_IP || b[ether+9] != unix.IPPROTO_UDP {
		return message{}, false
	}
	header := int(b[ether]&15) * 4
	if len(b) < ether+header+udp {
		return message{}, false
	}
	port := binary.BigEndian.Uint16(b[ether+header+2:])
	if port != 67 && port != 68 {
		return message{}, false
	}
	m, err := dhcpv4.FromBytes(b[ether+header+udp:])
	if err != nil {
		return message{}, false
	}
	link, from := append(net.HardwareAddr(nil), b[:6]...), append(net.HardwareAddr(nil), b[6:12]...)
	return message{m, link, from, time.Now(), netip.AddrFrom4([4]byte(b[ether+16:]))}, true
}

// kind is the message's type, of a REQUEST its state as well: RFC 2131, section 4.3.2.
func (m message) kind() string {
	kind := m.MessageType()
	switch {
	case kind != dhcpv4.MessageTypeRequest:
		return kind.String()
	case m.ServerIdentifier() != nil:
		return "SELECTING"
	case m.RequestedIPAddress() != nil:
		return "INIT-REBOOT"
	case m.to == broadcast:
		return "REBINDING"
	}
	return "RENEWING"
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func (m message) String() string {
	return fmt.Sprintf("%s %s -> %s %s ciaddr %s yiaddr %s %s", m.kind(), m.ClientHWAddr, m.to, m.link, m.ClientIPAddr, m.YourIPAddr,
		strings.Join(strings.Fields(m.Options.Summary(nil)), " "))
}

func (w *wire) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	for _, m := range w.list {
		fmt.Fprintln(&b, m)
	}
	return b.String()
}

// len returns how many messages have passed, for await and find to look at later ones only.
func (w *wire) len() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.list)
}

// find returns the first message after the n first that match likes.
func (w *wire) find(n int, match func(message) bool) (message, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.list[n:] {
		if match(m) {
			return m, true
		}
	}
	return message{}, false
}

// await waits for a message of a kind from or to a client, after the n first ones.
func (w *wire) await(t *testing.T, n int, kind, mac string) message {
	t.Helper()
	return w.awaitWithin(t, n, 20*time.Second, kind, mac)
}

// awaitWithin is await for what takes its time.
func (w *wire) awaitWithin(t *testing.T, n int, timeout time.Duration, kind, mac string) message {
	t.Helper()
	var found message
	nstest.Poll(t, timeout, fmt.Sprintf("%s of %s", kind, mac), func() (ok bool) {
		found, ok = w.find(n, func(m message) bool { return m.kind() == kind && m.ClientHWAddr.String() == mac })
		return ok
	})
	return found
}

// conversation waits for a client's message of a kind and returns what it was answered, an ACK or NAK
// with the same transaction id.
func (w *wire) conversation(t *testing.T, n int, kind, mac string) (asked, answered message) {
	t.Helper()
	asked = w.await(t, n, kind, mac)
	nstest.Poll(t, 20*time.Second, fmt.Sprintf("answer to %s", asked), func() (ok bool) {
		answered, ok = w.find(n, func(m message) bool {
			return m.TransactionID == asked.TransactionID && (m.MessageType() == dhcpv4.MessageTypeAck || m.MessageType() == dhcpv4.MessageTypeNak)
		})
		return ok
	})
	return asked, answered
}
