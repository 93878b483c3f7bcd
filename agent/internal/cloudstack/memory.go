package cloudstack

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Memory is what events before have said, as far as events to come depend on it. The drop directory
// holds everything else. A Memory is not safe for concurrent use.
type Memory struct {
	router router
	guests map[netip.Addr]*guest // values are never changed, only replaced
	byMAC  map[string]netip.Addr
}

// router is what the server has said of the router and its networks.
type router struct {
	// Scope is the network of an extension that this is about, with its Subnets; "": the router of a
	// management server.
	Scope   string                  `json:"scope,omitempty"`
	Subnets map[netip.Prefix]subnet `json:"subnets,omitempty"`

	CmdLine  cmdLine                   `json:"cmd_line,omitempty"`
	Tiers    map[string]tier           `json:"tiers,omitempty"`    // by device
	Ranges   map[netip.Addr]address    `json:"ranges,omitempty"`   // further guest ranges, by the router's address in them
	Gateways map[netip.Addr]netip.Addr `json:"gateways,omitempty"` // of dhcp.json
	Public   map[netip.Addr]address    `json:"public,omitempty"`   // public addresses
	MTUs     map[string]int            `json:"mtus,omitempty"`     // of devices, where it is not Ethernet's 1500
}

// guest is what is known of the VM that has an address, or had it last.
//
// A VM makes itself known by a lease, with its MAC, and by its metadata, with its id, in either
// order. The first of the two that is another than before begins a new VM and ends the old one; the
// second joins it. So MAC or VMID is empty while only the other half has come.
type guest struct {
	Network string `json:"network"` // the unit's, which is unplaced while there is none for the address

	MAC      string     `json:"mac,omitempty"`
	Hostname string     `json:"hostname,omitempty"`
	Default  bool       `json:"default,omitempty"`
	Gateway  netip.Addr `json:"gateway"`
	Seconds  int64      `json:"seconds,omitempty"`
	// NIC names the same one in commands of an extension that have no address, and Options are what
	// such a command sets: texts by DHCP option.
	NIC     []string          `json:"nic,omitempty"`
	Options map[string]string `json:"options,omitempty"`

	VMID    string `json:"vm_id,omitempty"`
	HasData bool   `json:"has_data,omitempty"`
	// Rows are packed, as nobody but a router's own scripts needs them, and theirs are many words.
	Rows json.RawMessage `json:"rows,omitempty"`

	// Gone: the VM was removed; there is no unit, and MAC and VMID are those it had.
	Gone bool `json:"gone,omitempty"`
	// Held: metadata of a removed VM came again without a lease. It lies in the unit's folder, which
	// has no vm.yaml and so is not served, until that VM gets its lease back.
	Held bool `json:"held,omitempty"`
	// Expect is the MAC that the removed VM of Held had.
	Expect string `json:"expect,omitempty"`
}

// unplaced is the network of addresses that are in no network known yet. There is never a file for
// it, so that its units are pending.
const unplaced = "unplaced"

// NewMemory returns the memory of a router that nothing has been said of.
func NewMemory() *Memory {
	return &Memory{guests: make(map[netip.Addr]*guest), byMAC: make(map[string]netip.Addr)}
}

// Keys of a Store: one for the router, one for each address.
const (
	routerKey   = "router"
	guestPrefix = "guest/"
	scopePrefix = "network/" // and the scope's name, before its own router and guests
)

// cutScope splits the key of an entry that belongs to a network of an extension.
func cutScope(key string) (scope, rest string, ok bool) {
	if key, ok = strings.CutPrefix(key, scopePrefix); !ok {
		return "", "", false
	}
	return strings.Cut(key, "/")
}

// prefix is what the keys of this memory begin with.
func (m *Memory) prefix() string {
	if m.router.Scope == "" {
		return ""
	}
	return scopePrefix + m.router.Scope + "/"
}

// load takes in one entry of a Store.
func (m *Memory) load(key string, value []byte) error {
	if key == routerKey {
		var r router
		if err := json.Unmarshal(value, &r); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		r.Scope = m.router.Scope
		m.router = r
		return nil
	}
	ip, err := netip.ParseAddr(strings.TrimPrefix(key, guestPrefix))
	if err != nil {
		return fmt.Errorf("%s: is no key of this memory", key)
	}
	g := &guest{}
	if err := json.Unmarshal(value, g); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	m.set(ip, g)
	return nil
}

func (m *Memory) set(ip netip.Addr, g *guest) {
	if old := m.guests[ip]; old.serves() && m.byMAC[old.MAC] == ip {
		delete(m.byMAC, old.MAC)
	}
	if g == nil {
		delete(m.guests, ip)
		return
	}
	m.guests[ip] = g
	if g.serves() {
		m.byMAC[g.MAC] = ip
	}
}

// waiting tells which guest ranges of the event cannot be served yet, and what they wait for.
func (m *Memory) waiting(e Event) []Verdict {
	var list []address
	var out []Verdict
	switch b := e.body.(type) {
	case subnet:
		if !b.Remove && place(m.router.networks(), b.Gateway) == nil {
			out = append(out, Verdict{State: Pending, Reasons: []string{fmt.Sprintf(
				"no device of this router has the address of network %s yet: set it up, or name the device in the registration's detail guest_device", m.router.Scope)}})
		}
	case associations:
		list = b
	case aliases:
		list = b
	}
	for _, a := range list {
		if a.Add && !a.Public && place(m.router.networks(), a.IP) == nil {
			out = append(out, Verdict{State: Pending, Reasons: []string{fmt.Sprintf(
				"%s/%d is a range whose gateway is not known yet: dhcp.json, or the default_gateway of a VM in it, tells", a.IP, a.Bits)}})
		}
	}
	return out
}

// pack is rows as a guest keeps them.
func pack(rows []Row) json.RawMessage {
	if len(rows) == 0 {
		return nil
	}
	data, err := json.Marshal(rows)
	if err != nil {
		panic("cloudstack: rows: " + err.Error()) // texts always can be
	}
	return data
}

// unpack is the inverse of pack. What is no rows is none.
func unpack(data json.RawMessage) []Row {
	var rows []Row
	if len(data) == 0 || json.Unmarshal(data, &rows) != nil {
		return nil
	}
	return slices.DeleteFunc(rows, func(r Row) bool { return r[0] == nil || r[1] == nil })
}

// serves tells whether the address is given to a MAC.
func (g *guest) serves() bool { return g != nil && !g.Gone && g.MAC != "" }

// addresses returns the addresses that something is known of, in order.
func (m *Memory) addresses() []netip.Addr {
	return slices.SortedFunc(maps.Keys(m.guests), netip.Addr.Compare)
}

// values are the entries of a Store that the step changes.
func (s *Step) values() (map[string][]byte, error) {
	values := make(map[string][]byte)
	prefix := s.memory.prefix()
	switch {
	case s.router == nil:
	case s.router.Scope != "" && len(s.router.Subnets) == 0:
		values[prefix+routerKey] = nil
	default:
		data, err := json.Marshal(s.router)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", routerKey, err)
		}
		values[prefix+routerKey] = data
	}
	for ip, g := range s.guests {
		key := prefix + guestPrefix + ip.String()
		if g == nil {
			values[key] = nil
			continue
		}
		data, err := json.Marshal(g)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		values[key] = data
	}
	return values, nil
}
