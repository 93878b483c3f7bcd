package e2e

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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

// Tenants may use the same addresses: the release of one tenant's lease never ends the other's.
func TestReleaseOfAnAddressInTwoNetworksNamesOne(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	guests := []*nstest.Host{r.guest(t, "a", "eth0", macA), r.guest(t, "b", "eth1", macB)}
	r.start(t)
	for i, device := range []string{"eth0", "eth1"} {
		r.AddAddr(t, device, "10.1.1.1/24")
		r.put(t, "networks/of-"+device+".yaml", "interface: "+device+"\ngateway: 10.1.1.1/24\npool: {from: 10.1.1.200, to: 10.1.1.200, probe: false}\n")
		r.applied(t)
		lease(t, guests[i], "10.1.1.200")
	}
	address := netip.MustParseAddr("10.1.1.200")
	if err := r.client.ReleaseLease(t.Context(), "", address); err == nil || !strings.Contains(err.Error(), "of-eth0, of-eth1") {
		t.Errorf("release without a network: %v, want both networks named", err)
	}
	if err := r.client.ReleaseLease(t.Context(), "of-eth1", address); err != nil {
		t.Fatal(err)
	}
	leases, err := r.client.Leases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var bound []string
	for _, l := range leases {
		if l.State == "bound" {
			bound = append(bound, l.Network)
		}
	}
	if diff := cmp.Diff([]string{"of-eth0"}, bound); diff != "" {
		t.Errorf("networks whose lease is bound (-want +got):\n%s", diff)
	}
}
