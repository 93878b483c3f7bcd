package netcfg_test

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"vragent/netcfg"
	"vragent/netcfg/nstest"
)

// pollLimit bounds waiting for what nothing announces; no test takes long unless it fails.
const pollLimit = 20 * time.Second

// open returns a Kernel that follows the namespace of the test until the test ends.
func open(t *testing.T, opts netcfg.Options) *netcfg.Kernel {
	t.Helper()
	k, stop := start(t, opts)
	t.Cleanup(stop)
	return k
}

// start is open for tests that end the Kernel themselves, by stop; twice does no harm.
func start(t *testing.T, opts netcfg.Options) (k *netcfg.Kernel, stop func()) {
	t.Helper()
	k, err := netcfg.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	return k, func() {
		if cancel == nil {
			return
		}
		cancel()
		cancel = nil
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		k.Close()
	}
}

// await waits until a snapshot is as ok wants it, and returns it.
func await(t *testing.T, k *netcfg.Kernel, what string, ok func(*netcfg.Snapshot) bool) *netcfg.Snapshot {
	t.Helper()
	timeout := time.After(pollLimit)
	for {
		s, stale := k.Current()
		if ok(s) {
			return s
		}
		select {
		case <-stale:
		case <-timeout:
			t.Fatalf("no snapshot shows that %s; the last has %+v", what, s.Links())
		}
	}
}

func has(device, addr string) func(*netcfg.Snapshot) bool {
	return func(s *netcfg.Snapshot) bool {
		l, _ := s.ByName(device)
		return l.Has(netip.MustParseAddr(addr))
	}
}

func lacks(device, addr string) func(*netcfg.Snapshot) bool {
	return func(s *netcfg.Snapshot) bool { return !has(device, addr)(s) }
}

func address(device, prefix string) netcfg.Address {
	return netcfg.Address{Device: device, Prefix: netip.MustParsePrefix(prefix)}
}

func plan(addresses ...netcfg.Address) netcfg.Plan { return netcfg.Plan{Addresses: addresses} }

// apply applies a plan that must work.
func apply(t *testing.T, k *netcfg.Kernel, addresses ...netcfg.Address) {
	t.Helper()
	if err := k.Apply(t.Context(), plan(addresses...)); err != nil {
		t.Fatal(err)
	}
}

// device makes a link that is up and leads nowhere.
func device(t *testing.T, router *nstest.Host, name string) {
	t.Helper()
	nstest.Pair(t, router, name, nstest.NewHost(t, "guest-"+name), "eth0")
}

func parseMAC(t *testing.T, s string) net.HardwareAddr {
	t.Helper()
	mac, err := net.ParseMAC(s)
	if err != nil {
		t.Fatal(err)
	}
	return mac
}
