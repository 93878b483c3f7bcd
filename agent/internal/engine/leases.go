package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

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
	if network == "" {
		var err error
		if network, err = e.leasingNetwork(address); err != nil {
			return err
		}
	}
	err := e.DHCP.ReleaseLease(ctx, network, address)
	if errors.Is(err, dhcp.ErrNoLease) {
		return noLease(address)
	}
	return err
}

// leasingNetwork returns the network that has a pool lease of an address. Tenants may use the same
// addresses, and a lease that was not meant must not end.
func (e *Engine) leasingNetwork(address netip.Addr) (string, error) {
	var networks []string
	for _, b := range e.DHCPTable.Bindings("") {
		if b.Pool && b.IP == address && slices.Contains([]string{"offered", "bound", "declined"}, b.State) {
			networks = append(networks, b.Network)
		}
	}
	switch len(networks) {
	case 0:
		return "", noLease(address)
	case 1:
		return networks[0], nil
	}
	return "", fmt.Errorf("%s is leased in networks %s: name one by --network", address, strings.Join(networks, ", "))
}

func noLease(address netip.Addr) error {
	return fmt.Errorf("%w: %s has no pool lease (a known VM's address is taken away by removing the VM)", api.ErrUnknown, address)
}
