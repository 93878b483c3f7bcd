package cloudstack

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Link is a device of the router as it is now.
type Link struct {
	Name  string
	MAC   string // lower case, with colons
	MTU   int
	Addrs []netip.Addr
}

// Links lists the devices of the router.
func Links() ([]Link, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	out := make([]Link, 0, len(list))
	for _, l := range list {
		link := Link{Name: l.Name, MAC: l.HardwareAddr.String(), MTU: l.MTU}
		addrs, err := l.Addrs()
		if err != nil {
			continue // it has gone meanwhile
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				link.Addrs = append(link.Addrs, p.Addr())
			}
		}
		out = append(out, link)
	}
	return out, nil
}

// links is what devices of the router say of themselves: an event without a file.
type links []Link

// byMAC returns the NIC with a MAC, or "". A VLAN or a bridge above a NIC has the same MAC, so that
// only names of NICs count.
func (l links) byMAC(mac string) string {
	for _, link := range l {
		if mac != "" && link.MAC == mac && strings.HasPrefix(link.Name, "eth") {
			return link.Name
		}
	}
	return ""
}

// byAddress returns the device that holds one of the addresses, or else the one device of a VLAN by
// its name, or "".
func (l links) byAddress(vlan string, addrs ...netip.Addr) string {
	for _, link := range l {
		if slices.ContainsFunc(addrs, func(a netip.Addr) bool { return slices.Contains(link.Addrs, a) }) {
			return link.Name
		}
	}
	found := ""
	for _, link := range l {
		if vlan == "" || !strings.HasSuffix(link.Name, "."+vlan) && !strings.HasSuffix(link.Name, "-"+vlan) && link.Name != "vlan"+vlan {
			continue
		}
		if found != "" {
			return ""
		}
		found = link.Name
	}
	return found
}

// resolve returns the event as it stands among the devices that are there. A MAC names a device, and
// where it is that of none the number does.
func (l links) resolve(body any) any {
	switch b := body.(type) {
	case associations:
		b = slices.Clone(b)
		for i := range b {
			if name := l.byMAC(b[i].MAC); name != "" {
				b[i].Device = name
			}
		}
		return b
	case subnet:
		if b.Device == "" {
			b.Device = l.byAddress(b.VLAN, b.ServeAs, b.Gateway)
		}
		return b
	}
	return body
}

// mtus are those of devices where guests have to know, since it is not what they take for granted.
func (l links) mtus() map[string]int {
	out := make(map[string]int)
	for _, link := range l {
		if link.MTU != 1500 && mtu(strconv.Itoa(link.MTU)) != 0 {
			out[link.Name] = link.MTU
		}
	}
	return out
}
