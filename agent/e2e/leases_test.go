package e2e

import (
	"net/netip"
	"strings"
	"testing"

	"vragent/netcfg/nstest"
)

func TestPoolLeaseSurvivesARestartAndEndsWhenReleased(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	g := r.guest(t, "stranger", "eth0", macA)
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	r.start(t)
	r.put(t, "networks/guest-1.yaml", network+"pool: {from: 10.1.1.200, to: 10.1.1.200}\n")
	r.applied(t)
	lease(t, g, "10.1.1.200")
	bound := func() string {
		t.Helper()
		leases, err := r.client.Leases(t.Context())
		if err != nil || len(leases) != 1 {
			t.Fatalf("leases = %+v, %v", leases, err)
		}
		return leases[0].IPv4 + " " + leases[0].MAC + " " + leases[0].State
	}
	if got, want := bound(), "10.1.1.200 "+macA+" bound"; got != want {
		t.Errorf("lease %q, want %q", got, want)
	}
	r.stop()
	r.start(t)
	if got, want := bound(), "10.1.1.200 "+macA+" bound"; got != want {
		t.Errorf("lease after a restart %q, want %q", got, want)
	}
	if err := r.client.ReleaseLease(t.Context(), "", netip.MustParseAddr("10.1.1.200")); err != nil {
		t.Fatal(err)
	}
	if leases, err := r.client.Leases(t.Context()); err != nil || len(leases) != 0 {
		t.Errorf("leases after the release = %+v, %v: the client has no claim to it any more", leases, err)
	}
	if err := r.client.ReleaseLease(t.Context(), "", netip.MustParseAddr("10.1.1.200")); err == nil || !strings.Contains(err.Error(), "10.1.1.200") {
		t.Errorf("second release: %v", err)
	}
	networks, err := r.client.Networks(t.Context())
	if err != nil || networks[0].PoolTotal != 1 || networks[0].PoolUsed != 0 {
		t.Errorf("networks = %+v, %v", networks, err)
	}
}
