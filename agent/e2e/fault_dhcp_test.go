package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"

	"vragent/netcfg/nstest"
)

// station is a DHCP client that plays any number of machines on one device of a guest.
type station struct{ conn *net.UDPConn }

// newStation opens the client's port on a guest's eth0, which has to have an address.
func newStation(t *testing.T, g *nstest.Host) *station {
	t.Helper()
	var fd int
	var err error
	g.Do(t, func() {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return
		}
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "eth0"),
			unix.Bind(fd, &unix.SockaddrInet4{Port: 68}),
		)
	})
	if err != nil {
		t.Fatalf("client's port: %v", err)
	}
	f := os.NewFile(uintptr(fd), "client's port")
	defer f.Close()
	conn, err := net.FilePacketConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &station{conn.(*net.UDPConn)}
}

var servers = net.UDPAddrFromAddrPort(netip.AddrPortFrom(broadcast, 67))

// errSilence is returned where nobody has answered.
var errSilence = errors.New("no answer")

// ask sends a message and returns the answer. It says it again each second, as clients do: a busy network
// may lose it.
func (s *station) ask(m *dhcpv4.DHCPv4, wait time.Duration) (*dhcpv4.DHCPv4, error) {
	buf := make([]byte, 2048)
	for end := time.Now().Add(wait); time.Now().Before(end); {
		if _, err := s.conn.WriteTo(m.ToBytes(), servers); err != nil {
			return nil, err
		}
		if err := s.conn.SetReadDeadline(time.Now().Add(min(time.Until(end), time.Second))); err != nil {
			return nil, err
		}
		for {
			n, _, err := s.conn.ReadFrom(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return nil, err
			}
			if answer, err := dhcpv4.FromBytes(buf[:n]); err == nil && answer.TransactionID == m.TransactionID {
				return answer, nil
			}
		}
	}
	return nil, errSilence
}

// lease gets an address for a MAC. Where the REQUEST was not answered it returns the address that was
// asked for, and errSilence: the lease may have been recorded.
func (s *station) lease(mac string, wait time.Duration) (netip.Addr, error) {
	hardware, err := net.ParseMAC(mac)
	if err != nil {
		return netip.Addr{}, err
	}
	discover, err := dhcpv4.NewDiscovery(hardware, dhcpv4.WithBroadcast(true))
	if err != nil {
		return netip.Addr{}, err
	}
	offer, err := s.ask(discover, wait)
	if err != nil {
		return netip.Addr{}, err
	}
	address, _ := netip.AddrFromSlice(offer.YourIPAddr.To4())
	request, err := dhcpv4.NewRequestFromOffer(offer, dhcpv4.WithBroadcast(true))
	if err != nil {
		return netip.Addr{}, err
	}
	answer, err := s.ask(request, wait)
	if err != nil {
		return address, err
	}
	if answer.MessageType() != dhcpv4.MessageTypeAck {
		return address, fmt.Errorf("%s asks for %s and gets %s", mac, address, answer.MessageType())
	}
	return address, nil
}
