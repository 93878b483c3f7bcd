package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"vragent/agent/internal/api"
	"vragent/agent/internal/desired"
	"vragent/agent/internal/drop"
	"vragent/dhcp"
	"vragent/metadata"
)

// Explain implements api.Backend.
func (e *Engine) Explain(_ context.Context, subject string) (api.Explanation, error) {
	x := api.Explanation{Subject: subject}
	e.mu.RLock()
	v, mac, ok := e.find(subject)
	var nics []desired.NIC
	var units []drop.Unit
	if ok {
		report := e.vm(v)
		x.VM = &report
		if c := cmp.Or(v.Have, v.Want); c != nil {
			nics = c.VM.NICs
		}
		for _, nic := range nics {
			u := drop.Unit{Kind: drop.Network, Name: nic.Network}
			if nv, known := e.model.View(u); known {
				x.Networks = append(x.Networks, e.network(nv))
			}
			units = append(units, u)
		}
		units = append(units, v.Unit)
	}
	away := e.faults["shared"]
	e.mu.RUnlock()

	if !ok {
		if e.explainHalf(&x) || e.explainStranger(&x, mac) {
			return x, nil
		}
		return x, fmt.Errorf("%s: %w", subject, api.ErrUnknown)
	}
	for _, u := range units {
		x.Files = append(x.Files, files(e.Dir.List(u))...)
	}
	var past []dhcp.Exchange
	for _, nic := range nics {
		for _, entry := range e.GuestData.Entries(nic.Network, nic.IPv4) {
			x.Served = append(x.Served, api.ServedEntry{NIC: nic.IPv4.String(), Name: entry.Name, Value: entry.Value, Size: entry.Size})
		}
		if nic.MAC != nil {
			past = append(past, e.DHCP.Last(*nic.MAC)...)
		}
		for _, r := range e.Metadata.Last(nic.Network, nic.IPv4) {
			x.Requests = append(x.Requests, api.MetadataRequest{Time: r.Time, Path: r.Path, Status: r.Status, Why: r.Why})
		}
	}
	slices.SortStableFunc(past, func(a, b dhcp.Exchange) int { return b.Time.Compare(a.Time) })
	slices.SortStableFunc(x.Requests, func(a, b api.MetadataRequest) int { return b.Time.Compare(a.Time) })
	x.DHCP = exchanges(past)
	w := watch{unsettled: slices.Contains(e.Dir.Status().Unsettled, v.Unit), dhcp: e.DHCP.Faults(), metadata: e.Metadata.Faults()}
	if len(past) > 0 {
		w.newest = past[0]
	}
	if away != "" && e.passwordWaits(v) {
		w.password = away
	}
	answer(&x, w)
	return x, nil
}

// passwordWaits tells whether a VM in force has a password that this router has no record of as taken.
func (e *Engine) passwordWaits(v desired.View) bool {
	if v.Have == nil || v.Have.VM.Password == "" {
		return false
	}
	t, err := e.takenPassword(v.Unit)
	return err != nil || t == nil || !t.is(v.Have.VM.Password)
}

// find looks a subject up: a VM's name, a MAC or an address. mac is set where subject is one.
func (e *Engine) find(subject string) (v desired.View, mac *dhcp.MAC, ok bool) {
	if v, ok = e.model.View(drop.Unit{Kind: drop.VM, Name: vmName(subject)}); ok {
		return v, nil, true
	}
	ip, _ := netip.ParseAddr(subject)
	if m, err := dhcp.ParseMAC(subject); err == nil {
		mac = &m
	}
	if !ip.IsValid() && mac == nil {
		return v, nil, false
	}
	// In force first, then what is wanted: an address may be in two networks, and the first by path
	// is explained.
	var found []desired.View
	for w := range e.model.Views() {
		if w.Unit.Kind != drop.VM {
			continue
		}
		for _, c := range []*desired.Content{w.Have, w.Want} {
			if c != nil && slices.ContainsFunc(c.VM.NICs, func(n desired.NIC) bool {
				return n.IPv4 == ip || mac != nil && n.MAC != nil && *n.MAC == *mac
			}) {
				found = append(found, w)
				break
			}
		}
	}
	if len(found) == 0 {
		return v, mac, false
	}
	return slices.MinFunc(found, func(a, b desired.View) int {
		if (a.Have != nil) != (b.Have != nil) {
			if a.Have != nil {
				return -1
			}
			return 1
		}
		return compareUnits(a.Unit, b.Unit)
	}), mac, true
}

// vmName takes a VM's name as people give it, with or without its folder.
func vmName(subject string) string {
	return strings.TrimSuffix(strings.TrimPrefix(subject, "vms/"), "/")
}

// explainHalf explains a VM that does not exist yet: its vm.yaml is missing, or is being written.
func (e *Engine) explainHalf(x *api.Explanation) bool {
	u := drop.Unit{Kind: drop.VM, Name: vmName(x.Subject)}
	if !drop.ValidName(u.Name) {
		return false
	}
	list := e.Dir.List(u)
	if len(list) == 0 {
		return false
	}
	x.Files = files(list)
	if slices.Contains(e.Dir.Status().Unsettled, u) {
		x.Answer = fmt.Sprintf("%s is being written: somebody has a file of it open. Until that is closed nothing of it is served.", u.Path())
		x.Next = fmt.Sprintf("Wait for the writer, or see who it is: fuser -v %s/%s/*", e.Dir.Path(), u.Path())
		return true
	}
	x.Answer = fmt.Sprintf("%s has no vm.yaml, and a VM exists once it has one: nothing of it is served.", u.Path())
	x.Next = fmt.Sprintf("Drop %s/vm.yaml.", u.Path())
	return true
}

// explainStranger explains a guest that is in no VM's file: who holds a pool lease, or has asked in vain.
func (e *Engine) explainStranger(x *api.Explanation, mac *dhcp.MAC) bool {
	ip, _ := netip.ParseAddr(x.Subject)
	for _, b := range e.DHCPTable.Bindings("") {
		if !b.Pool || b.IP != ip && (mac == nil || b.MAC != *mac) {
			continue
		}
		x.DHCP = exchanges(e.DHCP.Last(b.MAC))
		switch b.State {
		case "bound":
			x.Answer = fmt.Sprintf("No VM has the MAC %s; it has the address %s from the pool of %s, and no data.", b.MAC, b.IP, b.Network)
		case "offered":
			x.Answer = fmt.Sprintf("No VM has the MAC %s; it was offered %s from the pool of %s and has not taken it yet.", b.MAC, b.IP, b.Network)
			x.Next = "See whether another DHCP server answers there: a client takes one offer of several."
		case "declined":
			x.Answer = fmt.Sprintf("%s of the pool of %s is kept from everybody for a while: it is in use by somebody without a lease, or a client said so.", b.IP, b.Network)
			x.Next = fmt.Sprintf("Look for who has %s, or leave it out of the pool in networks/%s.yaml.", b.IP, b.Network)
		default:
			x.Answer = fmt.Sprintf("No VM has the MAC %s; its lease of %s from the pool of %s is over (%s).", b.MAC, b.IP, b.Network, b.State)
			x.Next = "It gets the same address again when it asks, if that is free. See whether its DHCP client runs."
		}
		return true
	}
	if mac == nil {
		return false
	}
	past := e.DHCP.Last(*mac)
	if len(past) == 0 {
		return false
	}
	x.DHCP = exchanges(past)
	x.Answer = fmt.Sprintf("No VM in force has the MAC %s, and it has no lease from a pool: it gets silence (%s).", mac, cmp.Or(past[0].Why, "its lease has ended"))
	x.Next = advice(past[0])
	return true
}

func files(list []drop.FileInfo) []api.FileInfo {
	var out []api.FileInfo
	for _, f := range list {
		out = append(out, api.FileInfo{Path: f.Path, Size: f.Size, Modified: f.Modified})
	}
	return out
}

func exchanges(list []dhcp.Exchange) []api.DHCPExchange {
	out := make([]api.DHCPExchange, 0, len(list))
	for _, x := range list {
		d := api.DHCPExchange{Time: x.Time, Network: x.Network, Device: x.Device, MAC: x.MAC.String(), Message: x.Message, Answer: cmp.Or(x.Answer, "none"), Why: x.Why}
		if x.Address.IsValid() {
			d.Address = x.Address.String()
		}
		out = append(out, d)
	}
	return out
}

// watch is what an answer takes into account beside what it shows.
type watch struct {
	unsettled bool          // somebody writes the VM's files
	newest    dhcp.Exchange // of all NICs; without a time where there was none
	dhcp      []dhcp.Fault
	metadata  []metadata.Fault
	password  string // why a password that waits is told to nobody: the pair's store is away
}

// answer says in a sentence or two how a known VM fares, and what to do about it. x has everything else.
func answer(x *api.Explanation, w watch) {
	vm := x.VM
	device := make(map[string]string, len(x.Networks))
	for _, n := range x.Networks {
		device[n.Name] = n.Device
	}
	for _, r := range vm.Reasons {
		x.Obstacles = append(x.Obstacles, r.String())
	}
	if w.unsettled {
		x.Obstacles = append(x.Obstacles, vm.Unit.Unit+": somebody has a file open for writing; what is written comes into force once it is closed")
	}
	// A device may have been renamed since; the network tells whether it is another one.
	meant := slices.ContainsFunc(vm.NICs, func(n api.NIC) bool { return n.MAC == w.newest.MAC.String() && n.Network == w.newest.Network })
	served, asking, silent, elsewhere := 0, 0, "", ""
	var fault *dhcp.Fault
	for _, nic := range vm.NICs {
		if nic.Why != "" && !slices.ContainsFunc(x.Obstacles, func(o string) bool { return strings.Contains(o, nic.Why) }) {
			x.Obstacles = append(x.Obstacles, fmt.Sprintf("NIC %s: %s", nic.IPv4, nic.Why))
		}
		if !nic.Served {
			continue
		}
		served++
		if nic.MAC == "" {
			x.Obstacles = append(x.Obstacles, fmt.Sprintf("NIC %s: has no mac, so it gets no address by DHCP, only data", nic.IPv4))
			continue
		}
		asking++
		if nic.LastSeen == nil {
			silent = nic.MAC
		}
		if nic.MAC == w.newest.MAC.String() && !meant && w.newest.Device != "" && w.newest.Device != device[nic.Network] {
			elsewhere = fmt.Sprintf("%s asks on %s, and its NIC is in %s on %s", nic.MAC, w.newest.Device, nic.Network, device[nic.Network])
		}
		if i := slices.IndexFunc(w.dhcp, func(f dhcp.Fault) bool { return f.Device != "" && f.Device == device[nic.Network] }); i >= 0 {
			fault = &w.dhcp[i]
			x.Obstacles = append(x.Obstacles, fmt.Sprintf("DHCP on %s: %v", fault.Device, fault.Err))
		}
	}
	for _, n := range x.Networks {
		for _, f := range w.metadata {
			// Another device may have the same addresses.
			at := f.Address.Addr()
			if f.Device == n.Device && (at.String() == n.Serving || at == desired.LinkLocalAddr) && !slices.Contains(x.Obstacles, f.String()) {
				x.Obstacles = append(x.Obstacles, f.String())
			}
		}
	}
	if w.password != "" {
		x.Obstacles = append(x.Obstacles, "password: "+w.password)
	}

	switch {
	case vm.State == api.Rejected && !vm.InForce:
		x.Answer = fmt.Sprintf("%s is rejected and nothing of it is in force: it gets no address and no data.", vm.Name)
		x.Next = "Correct what stands in the way; the VM comes into force by itself then."
	case vm.State == api.Rejected && served > 0:
		x.Answer = fmt.Sprintf("%s is served what its last good content says; its newest content is rejected.", vm.Name)
		x.Next = "Correct what stands in the way; the new content comes into force by itself then."
	case served == 0:
		x.Answer = fmt.Sprintf("%s is known, and none of its NICs is served at the moment.", vm.Name)
		x.Next = "See to what stands in the way; nothing needs to be dropped again."
	case served < len(vm.NICs):
		x.Answer = fmt.Sprintf("%d of %d NICs of %s are served.", served, len(vm.NICs), vm.Name)
		x.Next = "See to what stands in the way; nothing needs to be dropped again."
	case fault != nil:
		x.Answer = fmt.Sprintf("%s is in force, but DHCP does not work on %s: %v.", vm.Name, fault.Device, fault.Err)
		x.Next = "See vragent status; the daemon tries again by itself."
		if errors.Is(fault.Err, syscall.EADDRINUSE) {
			x.Next = "Another program has UDP port 67: ss -ulpn 'sport = 67' names it. End it; the daemon tries again by itself."
		} else if errors.Is(fault.Err, syscall.EPERM) || errors.Is(fault.Err, syscall.EACCES) {
			x.Next = "Give the daemon the power that vragent status misses (systemctl edit vragent), and restart it."
		}
	case elsewhere != "":
		x.Answer = fmt.Sprintf("%s is on another link than its files say: %s.", vm.Name, elsewhere)
		x.Next = fmt.Sprintf("Put the guest's NIC on the link that its network is on, or name the network of %s in %s/vm.yaml.", w.newest.Device, vm.Unit.Unit)
	case asking == 0:
		x.Answer = fmt.Sprintf("%s gets its data; no NIC of it has a mac, so that it gets no address by DHCP.", vm.Name)
		x.Next = fmt.Sprintf("If it should, name the mac of its NIC in %s/vm.yaml.", vm.Unit.Unit)
	case !w.newest.Time.IsZero() && w.newest.Answer == "" && !errors.Is(w.newest.Reason, dhcp.ErrNoReply):
		x.Answer = fmt.Sprintf("%s is served; its last DHCP message (%s) got no answer: %s.", vm.Name, w.newest.Message, w.newest.Why)
		x.Next = advice(w.newest)
	case w.newest.Message == "DECLINE":
		x.Answer = fmt.Sprintf("%s is served, and has declined its address: somebody else on the link of %s has it.", vm.Name, w.newest.Device)
		x.Next = advice(dhcp.Exchange{Device: w.newest.Device, Reason: dhcp.ErrDeclined})
	case w.newest.Message == "RELEASE":
		x.Answer = fmt.Sprintf("%s is served, and has given its address back; it is kept for it.", vm.Name)
		x.Next = "If the guest should have an address, start its DHCP client."
	case w.newest.Answer == "NAK":
		x.Answer = fmt.Sprintf("%s is served; its last DHCP request was refused: %s. It asks anew and gets its own address.", vm.Name, w.newest.Why)
		x.Next = "If it does not ask anew, restart its DHCP client; addresses in its own configuration come first there."
	case silent != "":
		x.Answer = fmt.Sprintf("%s is served, and nothing has been heard by DHCP from %s since the daemon started.", vm.Name, silent)
		x.Next = fmt.Sprintf("If the guest should have an address, see whether its DHCP client runs, whether its NIC is on the link of %s, and whether its MAC is the one in %s/vm.yaml.", deviceOf(x), vm.Unit.Unit)
	default:
		x.Answer = fmt.Sprintf("%s gets its address and its data.", vm.Name)
	}
	if w.password != "" && served > 0 { // whatever else there is: neither cures the other
		x.Answer += " Its password is held back: the etcd that the pair of routers shares cannot be used."
		x.Next = strings.TrimSpace(x.Next + " For the password, have an etcd of shared_state.etcd answer this router: vragent status names them, and why they do not. A guest that asks then is told it.")
	}
}

// advice is the next step where a DHCP message got no answer.
func advice(e dhcp.Exchange) string {
	is := func(reasons ...error) bool {
		return slices.ContainsFunc(reasons, func(r error) bool { return errors.Is(e.Reason, r) })
	}
	network := cmp.Or(e.Network, "NETWORK")
	switch {
	case is(dhcp.ErrOtherServer):
		return fmt.Sprintf("Find the other DHCP server on the link of %s and stop it: tcpdump -eni %[1]s udp port 67 shows its answers.", e.Device)
	case is(dhcp.ErrDeclined):
		return fmt.Sprintf("Look for who has the address on the link of %s, and give it another; from ten seconds after the decline on it is offered again.", e.Device)
	case is(dhcp.ErrRate):
		return "See why its DHCP client asks so often; it is answered again once it asks less."
	case is(dhcp.ErrNoNetwork):
		return fmt.Sprintf("Nothing is served on %s: see vragent networks, and correct interface or subnet of the network that should be there.", e.Device)
	case is(dhcp.ErrUnknownHost):
		return fmt.Sprintf("Drop a VM with mac: %s in a network of %s, give that a pool, or look for a mistyped MAC in vragent vms.", e.MAC, e.Device)
	case is(dhcp.ErrExhausted):
		return fmt.Sprintf("Widen the pool in networks/%s.yaml, shorten its lease_time, or end a lease: vragent leases release IP.", network)
	case is(dhcp.ErrProbing):
		return "Nothing: it is offered an address as soon as one is known to be free, within a second or two."
	case is(dhcp.ErrStore):
		return "See vragent status for what keeps leases from being stored; it goes on by itself then. Known VMs are served meanwhile."
	case is(dhcp.ErrHeld, dhcp.ErrMoved):
		return "Nothing: its client asks anew and gets another address. If it does not, restart it."
	case is(dhcp.ErrRelay):
		return fmt.Sprintf("Name the relay's address in relays of networks/%s.yaml.", network)
	case is(dhcp.ErrMalformed, dhcp.ErrNotRequest, dhcp.ErrHardware, dhcp.ErrUnknownType):
		return fmt.Sprintf("Its DHCP client does not keep to RFC 2131: tcpdump -vvveni %s udp port 67 shows what it sends.", e.Device)
	case is(dhcp.ErrNotHolder, dhcp.ErrWrongNet, dhcp.ErrNoAddress):
		return "Its client keeps to an address of another network or another time: restart it, so that it asks anew."
	}
	return "Restart its DHCP client, if it does not ask anew by itself."
}

func deviceOf(x *api.Explanation) string {
	for _, n := range x.Networks {
		if n.Device != "" {
			return n.Device
		}
	}
	return "its network's device"
}
