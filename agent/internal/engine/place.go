package engine

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"vragent/agent/internal/desired"
	"vragent/agent/internal/drop"
	"vragent/dhcp"
	"vragent/metadata"
	"vragent/netcfg"
)

// place is where a network is served at the moment.
type place struct {
	device  string // "" where it is missing
	index   int
	serving bool   // the serving address is there
	why     string // not serving: why, and what to do
}

// place puts networks on the devices that the kernel has now, and addresses where files ask for them.
// It is called after every change of either; where nothing has changed, nothing happens.
func (e *Engine) place() {
	e.placing.Lock()
	defer e.placing.Unlock()
	for {
		snapshot, stale := e.Kernel.Current()
		e.placeOn(snapshot)
		select {
		case <-stale: // what was just added shows in the next one
		default:
			return
		}
	}
}

func (e *Engine) placeOn(snapshot *netcfg.Snapshot) {
	e.mu.Lock()
	networks := slices.SortedFunc(e.model.Networks(), func(a, b *desired.Network) int {
		return compareUnits(drop.Unit{Kind: drop.Network, Name: a.Name}, drop.Unit{Kind: drop.Network, Name: b.Name})
	})
	places := locate(networks, snapshot)
	moved := !maps.Equal(places, e.places)
	for _, n := range networks {
		p := places[n.Name]
		if was, ok := e.places[n.Name]; !ok || was != p {
			e.Log.Info("network placed", "network", n.Name, "device", p.device, "serving", p.serving, "why", p.why)
		}
		device := ""
		if n.PinNeighbors && p.device != "" {
			device = p.device
		}
		e.repin(n.Name, device)
		if public := e.publicAddress(n); public != e.public[n.Name] {
			e.GuestData.SetNetwork(e.metadataNetwork(n))
		}
	}
	for name := range e.pins {
		if _, ok := places[name]; !ok {
			e.repin(name, "")
		}
	}
	e.places = places
	e.mu.Unlock()

	e.DHCP.SetDevices(dhcpDevices(networks, places, snapshot))
	e.Metadata.SetDevices(metadataDevices(networks, places, snapshot))
	err := e.Kernel.Apply(context.Background(), plan(networks, places))
	e.mu.Lock()
	if err != nil {
		if e.faults["addresses"] != err.Error() {
			e.Log.Error("addresses cannot be put in place", "err", err)
		}
		e.faults["addresses"] = err.Error()
	} else {
		delete(e.faults, "addresses")
	}
	e.mu.Unlock()
	if moved {
		e.announce()
	}
}

// locate finds the place of each network. Of networks that turn out to share a device and cannot,
// since their files name it in different ways, the first by name is served.
func locate(networks []*desired.Network, snapshot *netcfg.Snapshot) map[string]place {
	places := make(map[string]place, len(networks))
	var placed []*desired.Network
	for _, n := range networks {
		p := place{}
		var link netcfg.Link
		var found bool
		switch {
		case n.Relay:
			if links := snapshot.Holding(n.Serving()); len(links) > 0 {
				link, found = links[0], true
			}
		case n.MAC != nil:
			link, found = snapshot.ByMAC(hardware(n.MAC))
		default:
			link, found = snapshot.ByName(n.Interface)
		}
		switch {
		case !found && n.Relay:
			p.why = fmt.Sprintf("stands by: no device has its serving address %s", n.Serving())
		case !found && n.MAC != nil:
			p.why = fmt.Sprintf("waits for its device: none has the address %s", n.MAC)
		case !found:
			p.why = fmt.Sprintf("waits for its device: there is no %s", n.Interface)
		case link.Has(n.Serving()):
			p.serving = true
		default:
			p.why = fmt.Sprintf("stands by: its serving address %s is not on %s", n.Serving(), link.Name)
		}
		if found {
			p.device, p.index = link.Name, link.Index
			for _, other := range placed {
				if places[other.Name].index == link.Index && n.Subnet().Overlaps(other.Subnet()) && n.Relay == other.Relay {
					p = place{why: fmt.Sprintf("waits for its device: %s is served there, and %s overlaps %s", other.Name, n.Subnet(), other.Subnet())}
					break
				}
			}
		}
		if p.device != "" {
			placed = append(placed, n)
		}
		places[n.Name] = p
	}
	return places
}

func dhcpDevices(networks []*desired.Network, places map[string]place, snapshot *netcfg.Snapshot) []dhcp.Device {
	devices := make(map[int]*dhcp.Device)
	for _, n := range networks {
		p := places[n.Name]
		link, ok := snapshot.ByIndex(p.index)
		if !p.serving || !ok {
			continue
		}
		d := devices[p.index]
		if d == nil {
			d = &dhcp.Device{Index: link.Index, Name: link.Name, MTU: link.MTU}
			copy(d.HardwareAddr[:], link.MAC)
			devices[p.index] = d
		}
		d.Networks = append(d.Networks, n.Name)
	}
	return sorted(devices)
}

func metadataDevices(networks []*desired.Network, places map[string]place, snapshot *netcfg.Snapshot) []metadata.Device {
	devices := make(map[int]*metadata.Device)
	for _, n := range networks {
		p := places[n.Name]
		link, ok := snapshot.ByIndex(p.index)
		if !p.serving || !ok {
			continue
		}
		d := devices[p.index]
		if d == nil {
			d = &metadata.Device{Index: link.Index, Name: link.Name}
			devices[p.index] = d
		}
		d.Networks = append(d.Networks, n.Name)
		for _, a := range listenOn(n) {
			if !slices.Contains(d.Listen, a) {
				d.Listen = append(d.Listen, a)
			}
		}
	}
	return sorted(devices)
}

func sorted[D any](devices map[int]*D) []D {
	list := make([]D, 0, len(devices))
	for _, index := range slices.Sorted(maps.Keys(devices)) {
		list = append(list, *devices[index])
	}
	return list
}

// listenOn returns the addresses that a network's guests find metadata on.
func listenOn(n *desired.Network) []netip.Addr {
	if n.LinkLocal {
		return []netip.Addr{n.Serving(), desired.LinkLocalAddr}
	}
	return []netip.Addr{n.Serving()}
}

// plan returns the addresses that files ask the agent for. 169.254.169.254 is on a device only while
// a serving address is.
func plan(networks []*desired.Network, places map[string]place) netcfg.Plan {
	var plan netcfg.Plan
	for _, n := range networks {
		p := places[n.Name]
		if p.device == "" {
			continue
		}
		if n.ManageAddress {
			plan.Addresses = append(plan.Addresses, netcfg.Address{Device: p.device, Prefix: netip.PrefixFrom(n.Serving(), n.Gateway.Bits())})
		}
		if n.LinkLocal && p.serving {
			plan.Addresses = append(plan.Addresses, netcfg.Address{Device: p.device, Prefix: netip.PrefixFrom(desired.LinkLocalAddr, 32)})
		}
	}
	return plan
}
