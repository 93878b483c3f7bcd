package api_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vragent/agent/internal/api"
)

// fakeLeases knows what a test put in. What is released is gone.
type fakeLeases struct {
	list     []api.Lease
	networks []string // that were named at each release
	broken   error    // what ReleaseLease answers
}

func (f *fakeLeases) Leases(context.Context) []api.Lease { return f.list }

func (f *fakeLeases) ReleaseLease(_ context.Context, network string, address netip.Addr) error {
	f.networks = append(f.networks, network)
	if f.broken != nil {
		return f.broken
	}
	for i, l := range f.list {
		if l.Pool && l.IPv4 == address.String() {
			f.list = append(f.list[:i:i], f.list[i+1:]...)
			return nil
		}
	}
	return fmt.Errorf("%w: %s has no pool lease", api.ErrUnknown, address)
}

func TestClientListsAndReleasesLeases(t *testing.T) {
	ends := time.Date(2026, 11, 24, 5, 30, 0, 0, time.UTC)
	known := api.Lease{Network: "guest-1", IPv4: "10.1.1.34", MAC: "02:00:4c:5f:00:01", VM: "web", Hostname: "web-1", State: "reserved"}
	pool := api.Lease{Network: "guest-1", IPv4: "10.1.1.200", MAC: "02:00:4c:5f:00:02", Pool: true, State: "bound", Expires: &ends, LastSeen: &ends}
	leases := &fakeLeases{list: []api.Lease{known, pool}}
	c, _ := serveLocal(t, &fakeBackend{}, api.LocalOptions{Leases: leases})
	ctx := t.Context()

	got, err := c.Leases(ctx)
	if diff := cmp.Diff([]api.Lease{known, pool}, got); err != nil || diff != "" {
		t.Errorf("Leases() error %v, differs (-want +got):\n%s", err, diff)
	}
	address := netip.MustParseAddr(pool.IPv4)
	if err := c.ReleaseLease(ctx, "guest-1", address); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"guest-1"}, leases.networks); diff != "" {
		t.Errorf("networks that were named (-want +got):\n%s", diff)
	}
	if got, err := c.Leases(ctx); err != nil || !cmp.Equal([]api.Lease{known}, got) {
		t.Errorf("after the release Leases() = %+v, %v, want the known one alone", got, err)
	}
	if err := c.ReleaseLease(ctx, "", address); !errors.Is(err, api.ErrUnknown) || !strings.Contains(err.Error(), pool.IPv4) {
		t.Errorf("ReleaseLease() of what is released = %v, want ErrUnknown that names the address", err)
	}
	leases.broken = errors.New("disk full")
	if err := c.ReleaseLease(ctx, "", address); err == nil || err.Error() != "disk full" {
		t.Errorf("ReleaseLease() = %v, want what the DHCP server says", err)
	}
	leases.list = nil
	if got, err := c.Leases(ctx); err != nil || got == nil || len(got) != 0 {
		t.Errorf("Leases() = %#v, %v, want an empty list", got, err)
	}
}

func TestReleaseOfWhatIsNoAddress(t *testing.T) {
	_, path := serveLocal(t, &fakeBackend{}, api.LocalOptions{Leases: &fakeLeases{}})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, "http://vragent/v1/leases/web-1", nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	t.Cleanup(client.CloseIdleConnections)
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusBadRequest {
		t.Errorf("status %s, want 400", res.Status)
	}
}
