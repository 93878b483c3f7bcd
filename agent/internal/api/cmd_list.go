package api

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vragent/agent/internal/account"
	"vragent/agent/internal/api/wire"
)

var stateFields = []answerField{
	{"state", kindString, "applied, pending or rejected"}, {"reason", kindString, "why it is not applied"}, {"inforce", kindBool, "whether some content of it is in force, perhaps an older one"},
}

var vmFields = slices.Concat([]answerField{
	{"id", kindString, "the VM's name in the drop directory"}, {"name", kindString, "the same"}, {"hostname", kindString, "its host name"}, {"nic", kindMap, "its NICs"},
}, stateFields)

var networkFields = slices.Concat([]answerField{
	{"id", kindString, "the network's name in the drop directory"}, {"name", kindString, "the same"}, {"gateway", kindString, "its gateway"}, {"cidr", kindString, "its addresses"},
	{"device", kindString, "the router's device"}, {"servingaddress", kindString, "where guests are served"}, {"standby", kindBool, "whether that address is elsewhere now"}, {"guests", kindInteger, "NICs in force"},
}, stateFields)

var routerFields = slices.Concat([]answerField{
	{"id", kindString, "the router's id"}, {"name", kindString, "its host name"}, {"version", kindString, "of vragent"}, {"created", kindDate, "since when the daemon runs"},
}, stateFields)

// addState appends what every resource tells of its state.
func addState(o *wire.Object, u Unit) {
	o.Add("state", string(u.State))
	if len(u.Reasons) > 0 {
		o.Add("reason", reasons(u))
	}
	*o = append(*o, wire.Field{Name: "inforce", Value: u.InForce})
	if !u.Since.IsZero() {
		o.Add("statesince", wire.Date(u.Since))
	}
}

func vmObject(vm VM) wire.Object {
	var o wire.Object
	o.Add("id", vm.Name)
	o.Add("name", vm.Name)
	o.Add("displayname", vm.Name)
	o.Add("hostname", vm.Hostname)
	o.Add("account", string(account.Admin))
	o.Add("domainid", account.DomainID)
	o.Add("domain", account.Domain)
	addState(&o, vm.Unit)
	nics := []wire.Object{}
	for i, n := range vm.NICs {
		nic := wire.Object{{Name: "id", Value: fmt.Sprintf("%s_%d", vm.Name, i)}}
		nic.Add("networkid", n.Network)
		nic.Add("networkname", n.Network)
		nic.Add("macaddress", n.MAC)
		nic.Add("ipaddress", n.IPv4)
		nic = append(nic, wire.Field{Name: "isdefault", Value: n.Default}, wire.Field{Name: "served", Value: n.Served})
		nic.Add("why", n.Why)
		nic.Add("lastseen", date(n.LastSeen))
		nic.Add("leaseends", date(n.LeaseEnds))
		nics = append(nics, nic)
	}
	return append(o, wire.Field{Name: "nic", Value: nics})
}

func date(t *time.Time) string {
	if t == nil {
		return ""
	}
	return wire.Date(*t)
}

func networkObject(n Network) wire.Object {
	var o wire.Object
	o.Add("id", n.Name)
	o.Add("name", n.Name)
	o.Add("displaytext", n.Name)
	o.Add("account", string(account.Admin))
	o.Add("domainid", account.DomainID)
	o.Add("domain", account.Domain)
	addState(&o, n.Unit)
	o.Add("gateway", n.Gateway)
	o.Add("cidr", n.Subnet)
	if p, err := netip.ParsePrefix(n.Subnet); err == nil && p.Addr().Is4() {
		mask := ^uint32(0) << (32 - p.Bits())
		o.Add("netmask", netip.AddrFrom4([4]byte{byte(mask >> 24), byte(mask >> 16), byte(mask >> 8), byte(mask)}).String())
	}
	o.Add("device", n.Device)
	o.Add("servingaddress", n.Serving)
	o = append(o, wire.Field{Name: "standby", Value: n.Standby}, wire.Field{Name: "guests", Value: n.Guests})
	if n.PoolTotal > 0 {
		o = append(o, wire.Field{Name: "pooltotal", Value: n.PoolTotal}, wire.Field{Name: "poolused", Value: n.PoolUsed})
	}
	return o
}

func listVMs(c *call) (wire.Object, error) {
	var ids []string
	if list := c.params.Get("ids"); list != "" {
		ids = strings.Split(list, ",")
	}
	// One VM by its id is found without looking at the others.
	if id := c.params.Get("id"); id != "" {
		vm, err := c.opts.Drop.VM(c.http.Context(), id)
		var found []VM
		if err == nil && c.wantsVM(vm, ids) {
			found = append(found, vm)
		}
		return page(c, "virtualmachine", found, vmObject)
	}
	vms := slices.DeleteFunc(slices.Clone(c.opts.Backend.VMs(c.http.Context())), func(vm VM) bool { return !c.wantsVM(vm, ids) })
	slices.SortFunc(vms, func(a, b VM) int { return strings.Compare(a.Name, b.Name) })
	return page(c, "virtualmachine", vms, vmObject)
}

func (c *call) wantsVM(vm VM, ids []string) bool {
	network := c.params.Get("networkid")
	return c.is("state", string(vm.State)) &&
		(c.is("name", vm.Name) || c.is("name", vm.Hostname)) &&
		(ids == nil || slices.Contains(ids, vm.Name)) &&
		(network == "" || slices.ContainsFunc(vm.NICs, func(n NIC) bool { return n.Network == network })) &&
		c.keyword(vm.Name, vm.Hostname)
}

func listNetworks(c *call) (wire.Object, error) {
	id := c.params.Get("id")
	networks := slices.DeleteFunc(slices.Clone(c.opts.Backend.Networks(c.http.Context())), func(n Network) bool {
		return id != "" && id != n.Name || !c.is("name", n.Name) || !c.is("state", string(n.State)) || !c.keyword(n.Name)
	})
	slices.SortFunc(networks, func(a, b Network) int { return strings.Compare(a.Name, b.Name) })
	return page(c, "network", networks, networkObject)
}

// listRouters shows the one router that answers. Its state is that of its worst unit.
func listRouters(c *call) (wire.Object, error) {
	status, name := c.opts.Backend.Status(c.http.Context()), routerName()
	unit := Unit{State: Applied, InForce: true}
	for _, units := range []map[State]int{status.Networks, status.VMs} {
		switch {
		case units[Rejected] > 0:
			unit.State = Rejected
		case units[Pending] > 0 && unit.State == Applied:
			unit.State = Pending
		}
	}
	for _, u := range status.Units {
		if u.State == Rejected || u.State == Pending {
			unit.Reasons = append(unit.Reasons, Fault{What: fmt.Sprintf("%s is %s", u.Unit, u.State)})
		}
	}
	for _, f := range status.Faults {
		unit.Reasons = append(unit.Reasons, Fault{What: f})
	}
	unit.Reasons = append(unit.Reasons, status.Config.Faults...)
	if len(status.Faults)+len(status.Config.Faults) > 0 {
		unit.State = Rejected
	}
	const shown = 10
	if more := len(unit.Reasons) - shown; more > 0 {
		unit.Reasons = append(unit.Reasons[:shown], Fault{What: fmt.Sprintf("and %d more", more)})
	}
	var routers []wire.Object
	id := routerID(name)
	if c.is("id", id) && c.is("name", name) && c.is("state", string(unit.State)) && c.keyword(name) {
		var o wire.Object
		o.Add("id", id)
		o.Add("name", name)
		o.Add("role", "VIRTUAL_ROUTER")
		o.Add("version", status.Version)
		o.Add("created", wire.Date(status.Started))
		o.Add("account", string(account.Admin))
		o.Add("domainid", account.DomainID)
		o.Add("domain", account.Domain)
		addState(&o, unit)
		routers = append(routers, o)
	}
	return page(c, "router", routers, func(o wire.Object) wire.Object { return o })
}

// routerID makes an id of the router's name, the same at each start: a UUID of version 8, RFC
// 9562 section 5.8.
func routerID(name string) string {
	b := sha256.Sum256([]byte("vragent router " + name))
	b[6] = b[6]&0x0f | 0x80
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
