package dhcp

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"vragent/netcfg/nstest"
)

// lab is a router with a server and its guests, in the namespaces of one test.
type lab struct {
	t      *testing.T
	router *nstest.Host
	table  *Table
	server *Server
}

// newLab starts a server in this process for the network guest-1 on eth0, with a guest behind it.
func newLab(t *testing.T, opts ServerOptions, change ...func(*Network)) (*lab, *nstest.Host) {
	t.Helper()
	l := &lab{t: t, router: nstest.Here(t), table: NewTable()}
	guest := nstest.NewHost(t, "guest")
	nstest.Pair(t, l.router, "eth0", guest, "eth0")
	guest.SetMAC(t, "eth0", web.String())
	l.router.AddAddr(t, "eth0", "10.1.1.1/24")
	l.table.SetNetwork(guestNetwork(change...))
	l.start(opts, l.device("eth0", "guest-1"))
	return l, guest
}

// start runs a server for devices until the test ends.
func (l *lab) start(opts ServerOptions, devices ...Device) {
	l.t.Helper()
	l.server = NewServer(l.table, opts)
	l.server.SetDevices(devices)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.server.Run(ctx) }()
	l.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Errorf("Run() = %v", err)
		}
	})
	for _, device := range devices {
		l.waitServing(device.Name)
	}
}

func (l *lab) device(name string, networks ...string) Device {
	attrs := l.router.Link(l.t, name).Attrs()
	return Device{Index: attrs.Index, Name: name, HardwareAddr: MAC(attrs.HardwareAddr), MTU: attrs.MTU, Networks: networks}
}

func (l *lab) waitServing(device string) {
	l.t.Helper()
	nstest.Poll(l.t, 10*time.Second, "serving "+device, func() bool {
		return slices.Contains(l.server.Serving(), device)
	})
}

func (l *lab) setWeb(ip string) {
	l.table.SetHost(&Host{Network: "guest-1", VM: "i-2-1-VM", Hostname: "web-1", MAC: web, IP: netip.MustParseAddr(ip), Default: true})
}

// waitAnswer waits until the newest answers to a message of a MAC are the given one.
func (l *lab) waitAnswer(mac MAC, message, answer string) Exchange {
	l.t.Helper()
	var last Exchange
	nstest.Poll(l.t, 20*time.Second, message+" answered by "+answer, func() bool {
		for _, e := range l.server.Last(mac) {
			if e.Message == message && e.Answer == answer {
				last = e
				return true
			}
		}
		return false
	})
	return last
}

func TestServerOnTheWire(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	l, guest := newLab(t, ServerOptions{})
	l.setWeb("10.1.1.34")
	out := guest.Run(t, "dhclient", "-1", "-v", "-pf", "/run/dhclient.pid", "eth0")
	if !strings.Contains(out, "DHCPACK of 10.1.1.34 from 10.1.1.1") {
		t.Errorf("dhclient says:\n%s", out)
	}
	out = guest.Run(t, "ip", "-4", "addr", "show", "eth0")
	if !strings.Contains(out, "inet 10.1.1.34/24") {
		t.Errorf("address:\n%s", out)
	}
	guest.Run(t, "dhclient", "-r", "-v", "-pf", "/run/dhclient.pid", "eth0")
	l.waitAnswer(web, "RELEASE", "")
}
