package engine

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vragent/agent/internal/api"
)

func TestKnownNICIsListedAndItsAddressNotReleased(t *testing.T) {
	r := newRig(t, t.TempDir())
	if got := r.Leases(t.Context()); len(got) != 0 {
		t.Errorf("Leases() of an empty router = %+v", got)
	}
	r.drop(t, "networks/g.yaml", netFile)
	r.drop(t, "vms/web/vm.yaml", vmFile)
	want := []api.Lease{{Network: "g", IPv4: "10.1.1.5", MAC: "02:00:00:00:00:01", VM: "web", Hostname: "web-1", State: "reserved"}}
	if diff := cmp.Diff(want, r.Leases(t.Context())); diff != "" {
		t.Errorf("Leases() (-want +got):\n%s", diff)
	}
	for _, network := range []string{"", "g", "other"} {
		err := r.ReleaseLease(t.Context(), network, netip.MustParseAddr("10.1.1.5"))
		if !errors.Is(err, api.ErrUnknown) || !strings.Contains(err.Error(), "10.1.1.5 has no pool lease") {
			t.Errorf("ReleaseLease(%q) of a known VM's address = %v, want ErrUnknown that says so", network, err)
		}
	}
}
