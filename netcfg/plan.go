package netcfg

import (
	"fmt"
	"net/netip"
)

// An Address is an IPv4 address that is wanted on a device.
type Address struct {
	Device string
	Prefix netip.Prefix // not masked: 10.1.1.1/24
}

// String returns the address as people write it, "10.1.1.1/24 on eth0".
func (a Address) String() string { return fmt.Sprintf("%s on %s", a.Prefix, a.Device) }

func (a Address) check() error {
	switch {
	case a.Device == "":
		return fmt.Errorf("address %s: no device", a.Prefix)
	case !a.Prefix.IsValid() || !a.Prefix.Addr().Is4():
		return fmt.Errorf("device %s: %s is no IPv4 address with a prefix length", a.Device, a.Prefix)
	}
	return nil
}

// A Plan is what the agent wants to be present. The zero Plan wants nothing.
type Plan struct {
	// Addresses may hold duplicates and addresses of devices that do not exist; those are added once
	// the device is there and Apply is called again. 169.254.0.0/16 is added with link scope, all
	// others with global scope.
	Addresses []Address
}

// Diff returns what is to be added to s and what is to be removed from it so that it holds all
// addresses of plan, and none of ours that is not in plan. Added are addresses in the order of plan,
// each once, that an existing device lacks; an address that is there with another prefix length is
// lacking. Removed are Own addresses in the order of s. Foreign ones are never removed.
func Diff(s *Snapshot, plan Plan) (add, remove []Address) {
	wanted := make(map[Address]bool, len(plan.Addresses))
	for _, a := range plan.Addresses {
		if wanted[a] || a.check() != nil {
			continue
		}
		wanted[a] = true
		if l, ok := s.ByName(a.Device); ok && !l.holds(a.Prefix) {
			add = append(add, a)
		}
	}
	for _, l := range s.Links() {
		for _, addr := range l.Addrs {
			if a := (Address{Device: l.Name, Prefix: addr.Prefix}); addr.Own && !wanted[a] {
				remove = append(remove, a)
			}
		}
	}
	return add, remove
}

// holds reports whether the link has exactly this address and prefix length.
func (l Link) holds(prefix netip.Prefix) bool {
	for _, a := range l.Addrs {
		if a.Prefix == prefix {
			return true
		}
	}
	return false
}
