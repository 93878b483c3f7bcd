package engine

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net"
	"net/netip"
	"strings"

	"vragent/agent/internal/desired"
	"vragent/agent/internal/drop"
	"vragent/dhcp"
	"vragent/metadata"
	"vragent/netcfg"
)

// publish brings accepted moves into the tables that guests are served from. The caller holds e.mu,
// which is for the engine's own maps: readers of the tables never wait.
//
// Metadata comes before DHCP, and goes after it, so that no guest has an address without its data.
func (e *Engine) publish(moves []desired.Move) {
	grounds := make(map[string]bool) // networks whose VMs must be looked at again
	for _, mv := range moves {
		if mv.Unit.Kind != drop.Network {
			continue
		}
		e.publishNetwork(mv)
		if groundMoved(mv) {
			grounds[mv.Unit.Name] = true
		}
	}
	for _, mv := range moves {
		if mv.Unit.Kind == drop.VM {
			e.publishVM(mv)
		}
	}
	for name := range grounds {
		for c := range e.model.Users(name) {
			e.publishVM(desired.Move{Unit: c.Unit, Old: c, New: c})
		}
	}
}

// groundMoved tells whether a network's VMs may be served otherwise than before: what decides that
// is whether it is there, its addresses and its device.
func groundMoved(mv desired.Move) bool {
	if mv.Old == nil || mv.New == nil {
		return true
	}
	o, n := mv.Old.Network, mv.New.Network
	sameMAC := (o.MAC == nil) == (n.MAC == nil) && (o.MAC == nil || *o.MAC == *n.MAC)
	return o.Gateway != n.Gateway || o.ServeAs != n.ServeAs || o.Interface != n.Interface || !sameMAC || o.Relay != n.Relay
}

func (e *Engine) publishNetwork(mv desired.Move) {
	name := mv.Unit.Name
	if mv.New == nil {
		e.DHCPTable.RemoveNetwork(name)
		e.GuestData.RemoveNetwork(name)
		delete(e.public, name)
		return
	}
	n := mv.New.Network
	e.GuestData.SetNetwork(e.metadataNetwork(n))
	e.DHCPTable.SetNetwork(dhcpNetwork(n))
}

func (e *Engine) publishVM(mv desired.Move) {
	e.count(mv.Old, -1)
	e.count(mv.New, 1)
	if mv.New != nil {
		for _, g := range e.guestsOf(mv.New) {
			e.GuestData.SetGuest(g)
		}
	}
	if mv.Old != nil {
		for i := range mv.Old.VM.NICs {
			nic := &mv.Old.VM.NICs[i]
			if nic.MAC != nil && !e.serves(e.model.HolderOfMAC(nic.Network, *nic.MAC), nic) {
				e.DHCPTable.RemoveHost(nic.Network, *nic.MAC)
			}
		}
	}
	if mv.New != nil {
		for i := range mv.New.VM.NICs {
			if h := e.host(mv.New.VM, &mv.New.VM.NICs[i]); h != nil {
				e.DHCPTable.SetHost(h)
			}
		}
	}
	if mv.Old != nil {
		for i := range mv.Old.VM.NICs {
			nic := &mv.Old.VM.NICs[i]
			if !e.serves(e.model.Holder(nic.Network, nic.IPv4), nic) {
				e.GuestData.RemoveGuest(nic.Network, nic.IPv4)
			}
		}
	}
	e.pin(mv)
}

// count keeps the number of NICs in force of each network.
func (e *Engine) count(c *desired.Content, by int) {
	if c == nil {
		return
	}
	for _, nic := range c.VM.NICs {
		if e.guests[nic.Network] += by; e.guests[nic.Network] == 0 {
			delete(e.guests, nic.Network)
		}
	}
}

// serves tells whether holder, who has nic's address or MAC now, is served there.
func (e *Engine) serves(holder *desired.VM, nic *desired.NIC) bool {
	if holder == nil {
		return false
	}
	for i := range holder.NICs {
		h := &holder.NICs[i]
		if h.Network != nic.Network || h.IPv4 != nic.IPv4 && (h.MAC == nil || nic.MAC == nil || *h.MAC != *nic.MAC) {
			continue
		}
		if _, rejected := e.model.Obstacle(holder.Name, h); !rejected {
			return true
		}
	}
	return false
}

// guestsOf returns what metadata serves for a VM's NICs.
func (e *Engine) guestsOf(c *desired.Content) []*metadata.Guest {
	vm := c.VM
	nics := make([]metadata.NIC, len(vm.NICs))
	for i, nic := range vm.NICs {
		nics[i] = metadata.NIC{Network: nic.Network, MAC: hardware(nic.MAC), IP: nic.IPv4, Default: nic.Default}
	}
	var generation uint64
	if k := e.known[c.Unit]; k != nil {
		generation = k.generation
	}
	data := func(name string, b *desired.Blob) metadata.Content {
		if b == nil {
			return nil
		}
		return &blobContent{engine: e, unit: c.Unit, name: name, blob: b}
	}
	userData, vendorData := data(drop.UserDataFile, vm.UserData), data(drop.VendorDataFile, vm.VendorData)
	var list []*metadata.Guest
	for i := range vm.NICs {
		nic := &vm.NICs[i]
		if _, rejected := e.model.Obstacle(vm.Name, nic); rejected {
			continue
		}
		list = append(list, &metadata.Guest{
			Network: nic.Network, VM: vm.Name, Generation: generation,
			IP: nic.IPv4, MAC: nics[i].MAC, Default: nic.Default,
			Hostname: vm.Hostname, Meta: vm.Meta, UserData: userData, VendorData: vendorData, NICs: nics,
		})
	}
	return list
}

func hardware(mac *dhcp.MAC) net.HardwareAddr {
	if mac == nil {
		return nil
	}
	return net.HardwareAddr(mac[:])
}

// host returns what DHCP serves for a NIC, or nil where it serves nothing.
func (e *Engine) host(vm *desired.VM, nic *desired.NIC) *dhcp.Host {
	if nic.MAC == nil {
		return nil
	}
	if _, rejected := e.model.Obstacle(vm.Name, nic); rejected {
		return nil
	}
	return &dhcp.Host{
		Network: nic.Network, VM: vm.Name, Hostname: vm.Hostname, MAC: *nic.MAC, IP: nic.IPv4,
		Default: nic.Default, LeaseTime: nic.LeaseTime, Options: nic.Options,
	}
}

// metadataNetwork returns a network as metadata serves it. The caller holds e.mu for writing.
func (e *Engine) metadataNetwork(n *desired.Network) *metadata.Network {
	e.public[n.Name] = e.publicAddress(n)
	m := &metadata.Network{
		Name: n.Name, Subnet: n.Subnet(), Domain: n.Domain,
		Gateway: n.Gateway.Addr(), Serving: n.Serving(),
		PublicIPv4:     e.public[n.Name],
		TokensRequired: n.Tokens == "required" || n.Tokens == "" && e.settings.TokensRequired,
		LinkLocal:      n.LinkLocal, Relay: n.Relay,
	}
	if n.VendorData != "" {
		m.VendorData = text(n.VendorData)
	}
	return m
}

// publicAddress returns the address that the network names, or else the first global one of its
// public interface.
func (e *Engine) publicAddress(n *desired.Network) netip.Addr {
	if n.PublicIPv4.IsValid() {
		return n.PublicIPv4
	}
	device := n.PublicInterface
	if device == "" {
		device = e.settings.PublicInterface
	}
	snapshot, _ := e.Kernel.Current()
	return snapshot.FirstGlobalIPv4(device)
}

// dhcpNetwork returns a network as DHCP serves it. Its typed values were checked when the file was
// parsed, so they can be encoded.
func dhcpNetwork(n *desired.Network) *dhcp.Network {
	d := &dhcp.Network{
		Name: n.Name, Subnet: n.Subnet(), Gateway: n.Gateway.Addr(), ServerID: n.Serving(),
		LeaseTime: n.LeaseTime, Routes: n.Routes, Options: make(dhcp.Options, len(n.Options)+5),
		NextServer: n.NextServer, RapidCommit: n.RapidCommit,
		Relay: n.Relay, Relays: n.Relays, LinkLocalMetadata: n.LinkLocal,
	}
	for code, value := range n.Options {
		d.Options[code] = value
	}
	set := func(code uint8, present bool, encode func() ([]byte, error)) {
		if !present {
			return
		}
		if value, err := encode(); err == nil {
			d.Options[code] = value
		}
	}
	set(6, len(n.DNS) > 0, func() ([]byte, error) { return dhcp.EncodeAddrs(n.DNS) })
	set(15, n.Domain != "", func() ([]byte, error) { return dhcp.EncodeDomain(n.Domain) })
	set(26, n.MTU > 0, func() ([]byte, error) { return dhcp.EncodeMTU(n.MTU) })
	set(42, len(n.NTP) > 0, func() ([]byte, error) { return dhcp.EncodeAddrs(n.NTP) })
	set(119, len(n.Search) > 0, func() ([]byte, error) { return dhcp.EncodeSearch(n.Search) })
	if n.Pool != nil {
		d.Pool = &dhcp.Pool{From: n.Pool.From, To: n.Pool.To, Probe: n.Pool.Probe}
	}
	for _, v := range n.VendorOptions {
		d.Vendor = append(d.Vendor, dhcp.VendorClass{Prefix: v.Class, Options: v.Options})
	}
	for _, b := range n.Boot {
		d.Boot = append(d.Boot, dhcp.BootFile{Arch: b.Arch, IPXE: b.IPXE, File: b.File})
	}
	return d
}

// pin keeps permanent neighbor entries in step with a VM's NICs. The caller holds e.mu.
func (e *Engine) pin(mv desired.Move) {
	if mv.Old != nil {
		for i := range mv.Old.VM.NICs {
			nic := &mv.Old.VM.NICs[i]
			if device := e.pins[nic.Network]; device != "" && nic.MAC != nil && e.model.Holder(nic.Network, nic.IPv4) == nil {
				e.Kernel.RemoveNeighbor(device, nic.IPv4)
			}
		}
	}
	if mv.New != nil {
		for i := range mv.New.VM.NICs {
			nic := &mv.New.VM.NICs[i]
			device := e.pins[nic.Network]
			if device == "" || nic.MAC == nil {
				continue
			}
			if _, rejected := e.model.Obstacle(mv.New.VM.Name, nic); !rejected {
				e.Kernel.SetNeighbor(netcfg.Neighbor{Device: device, IP: nic.IPv4, MAC: hardware(nic.MAC)})
			}
		}
	}
}

// repin moves the neighbor entries of a network to another device, "" for none. The caller holds
// e.mu.
func (e *Engine) repin(network, device string) {
	old := e.pins[network]
	if old == device {
		return
	}
	if device == "" {
		delete(e.pins, network)
	} else {
		e.pins[network] = device
	}
	for c := range e.model.Users(network) {
		for i := range c.VM.NICs {
			nic := &c.VM.NICs[i]
			if nic.Network != network || nic.MAC == nil {
				continue
			}
			if old != "" {
				e.Kernel.RemoveNeighbor(old, nic.IPv4)
			}
			if _, rejected := e.model.Obstacle(c.VM.Name, nic); device != "" && !rejected {
				e.Kernel.SetNeighbor(netcfg.Neighbor{Device: device, IP: nic.IPv4, MAC: hardware(nic.MAC)})
			}
		}
	}
}

// text serves a network's vendor data, which stands in its file. It implements metadata.Content.
type text string

func (t text) Size() int64 { return int64(len(t)) }

func (t text) ETag() string {
	sum := sha256.Sum256([]byte(t))
	return hex.EncodeToString(sum[:16])
}

func (t text) Open() (io.ReadSeekCloser, error) { return nopCloser{strings.NewReader(string(t))}, nil }

type nopCloser struct{ io.ReadSeeker }

func (nopCloser) Close() error { return nil }
