package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"vragent/agent/internal/api"
	"vragent/dhcp"
)

var _ api.Leases = (*Engine)(nil)

// Leases implements api.Leases.
func (e *Engine) Leases(context.Context) []api.Lease {
	var list []api.Lease
	for _, b := range e.DHCPTable.Bindings("") {
		l := api.Lease{Network: b.Network, IPv4: b.IP.String(), VM: b.VM, Hostname: b.Hostname, Pool: b.Pool, State: b.State}
		if b.MAC != (dhcp.MAC{}) {
			l.MAC = b.MAC.String()
		}
		if !b.Expiry.IsZero() {
			l.Expires = &b.Expiry
		}
		if !b.Seen.IsZero() {
			l.LastSeen = &b.Seen
		}
		list = append(list, l)
	}
	return list
}

// ReleaseLease implements api.Leases.
func (e *Engine) ReleaseLease(ctx context.Context, network string, address netip.Addr) error {
	err := e.DHCP.ReleaseLease(ctx, network, address)
	if errors.Is(err, dhcp.ErrNoLease) {
		return fmt.Errorf("a pool lease of %s is %w (a known VM's address is taken away by removing the VM)", address, api.ErrUnknown)
	}
	return err
}
