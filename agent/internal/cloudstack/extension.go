package cloudstack

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A newer management server drives whoever provides DHCP and user data by an extension of type
// NetworkOrchestrator, which it starts for each event with a command, a file with a JSON document
// and a time limit. The document holds the command's own fields, all of one network, beside what the
// operator has registered for the physical network.

type (
	// subnet is a range of an extension's network. What it does not name stays as it was.
	subnet struct {
		Remove  bool       `json:"-"`
		Gateway netip.Addr `json:"gateway"`
		Bits    int        `json:"bits"`
		ServeAs netip.Addr `json:"serve_as"` // the router's own address; invalid: the gateway
		DNS     []string   `json:"dns,omitempty"`
		Domain  string     `json:"domain,omitempty"`
		Device  string     `json:"device,omitempty"`
		VLAN    string     `json:"vlan,omitempty"`
	}

	// vmPart is a part of a VM's data. The rest stays as it is.
	vmPart struct {
		IP      netip.Addr
		Rows    []Row
		User    []byte
		HasUser bool
	}

	// nicOptions are all DHCP options that are set for a NIC.
	nicOptions struct {
		NIC     string
		IP      netip.Addr // invalid: of the guest with the NIC
		Options map[string]string
	}

	// ended is the end of a network and of all in it.
	ended struct{}
)

// Call is one call of an extension.
type Call struct {
	Command string
	// Answer is what the server expects to read: one JSON object, or nothing at all.
	Answer json.RawMessage

	scope  string
	events []Event
	notes  []string
}

// deeds are the commands that vragent has something to do for, each with what adds its events to the
// call.
var deeds = map[string]func(c *Call, f fields) error{
	"implement-network":        (*Call).subnet,
	"config-dhcp-subnet":       (*Call).subnet,
	"config-dns-subnet":        (*Call).subnet,
	"remove-dhcp-subnet":       (*Call).removeSubnet,
	"shutdown-network":         (*Call).end,
	"destroy-network":          (*Call).end,
	"add-dhcp-entry":           (*Call).lease,
	"remove-dhcp-entry":        (*Call).removeLease,
	"release-nic":              (*Call).removeLease,
	"set-dhcp-options":         (*Call).options,
	"save-vm-data":             (*Call).vmData,
	"save-password":            (*Call).password,
	"save-userdata":            (*Call).userData,
	"save-sshkey":              (*Call).sshKey,
	"save-hypervisor-hostname": (*Call).hypervisor,
	"restore-network":          (*Call).restore,
}

// deviceField is the detail of a physical network's registration that names the device of guests.
const deviceField = "guestdevice"

// idle are commands that ask nothing of a program that serves DHCP and metadata.
var idle = []string{"add-dns-entry", "remove-dns-entry", "remove-dns-subnet", "prepare-nic", "implement-vpc", "shutdown-vpc"}

// ParseCall reads a call. Fields that it does not know and fields that are missing are no fault, and
// names of fields are matched without regard to case, - and _.
func ParseCall(command string, document []byte) (Call, error) {
	c := Call{Command: command}
	top, err := fieldsOf(document)
	if err != nil {
		return c, err
	}
	f := top
	if raw, ok := top["payload"]; ok {
		if f, err = fieldsOf(raw); err != nil {
			return c, fmt.Errorf("payload: %w", err)
		}
	}
	if command == "ensure-network-device" {
		c.Answer = json.RawMessage(`{}`)
		if current, err := unwrap(f["currentdetails"]); err == nil && len(current) > 0 && current[0] == '{' {
			c.Answer = compact(current)
		}
		return c, nil
	}
	deed := deeds[command]
	switch {
	case slices.Contains(idle, command):
		return c, nil
	case deed == nil:
		return c, errors.New("is no command of a service that vragent provides, which are Dhcp, Dns and UserData alone")
	}
	id := f.text("networkid").trim()
	if !scopeID(id) {
		return c, fmt.Errorf("network_id: is %q; it must be 1 to 64 of A-Z a-z 0-9 _ -", id)
	}
	c.scope = "net-" + id
	if details, err := fieldsOf(top["physicalnetworkextensiondetails"]); err == nil {
		if name, ok := details[deviceField]; ok {
			f[deviceField] = name
		}
	}
	if command != "remove-dhcp-subnet" && f.text("cidr").trim() != "" && f.text("gateway").trim() != "" {
		if err := c.subnet(f); err != nil {
			return c, err
		}
		if command == "implement-network" || command == "config-dhcp-subnet" || command == "config-dns-subnet" {
			return c, nil
		}
	}
	return c, deed(&c, f)
}

// add makes an event part of the call.
func (c *Call) add(e Event, body any, err error) error {
	if err != nil {
		return err
	}
	e.Name, e.body = c.Command, body
	c.events = append(c.events, e)
	c.notes = append(c.notes, e.Notes...)
	return nil
}

func (c *Call) subnet(f fields) error {
	cidr, err := netip.ParsePrefix(f.text("cidr").trim())
	if err != nil || !cidr.Addr().Is4() {
		return fmt.Errorf("cidr: is %q; it must be an IPv4 network such as 10.1.1.0/24", f.text("cidr"))
	}
	gateway, err := ipv4("gateway", f.text("gateway"))
	if err != nil {
		return err
	}
	if !cidr.Masked().Contains(gateway) {
		return fmt.Errorf("gateway: %s is outside %s, the cidr", gateway, cidr.Masked())
	}
	s := subnet{
		Gateway: gateway, Bits: cidr.Bits(), ServeAs: anIPv4(f.text("extensionip")), DNS: list(f.text("dns").trim()),
		Domain: f.text("domain").trim(), Device: f.text(deviceField).trim(), VLAN: f.text("vlan").trim(),
	}
	if s.ServeAs == s.Gateway {
		s.ServeAs = netip.Addr{}
	}
	return c.add(Event{}, s, nil)
}

func (c *Call) removeSubnet(f fields) error {
	s := subnet{Remove: true, ServeAs: anIPv4(f.text("extensionip"))}
	if cidr, err := netip.ParsePrefix(f.text("cidr").trim()); err == nil && cidr.Addr().Is4() {
		s.Gateway, s.Bits = cidr.Addr(), cidr.Bits()
	}
	return c.add(Event{}, s, nil)
}

func (c *Call) end(fields) error {
	c.events = nil // its subnet does not come first
	return c.add(Event{}, ended{}, nil)
}

func (c *Call) lease(f fields) error { return c.leaseOf(f, false) }

func (c *Call) removeLease(f fields) error { return c.leaseOf(f, true) }

func (c *Call) leaseOf(f fields, remove bool) error {
	var e Event
	raw := rawLease{
		Remove: flag(remove), Hostname: f.text("hostname"), MAC: f.text("mac"), IP: f.text("ip"),
		Gateway: f.text("gateway"), Lease: f.text("leasetime"),
	}
	if value, ok := f["defaultnic"]; ok {
		raw.Default = new(flag)
		if err := json.Unmarshal(value, raw.Default); err != nil {
			return fmt.Errorf("default_nic: %w", err)
		}
	}
	body, err := e.lease(raw)
	if l, ok := body.(lease); ok {
		for _, name := range []string{"nicid", "nicuuid"} {
			if id := f.text(name).trim(); id != "" {
				l.NIC = append(l.NIC, id)
			}
		}
		body = l
	}
	return c.add(e, body, err)
}

func (c *Call) options(f fields) error {
	raw, err := unwrap(f["options"])
	if err != nil {
		return fmt.Errorf("options: %w", err)
	}
	var options map[string]text
	if err := decode(raw, &options); err != nil {
		return fmt.Errorf("options: %w", err)
	}
	o := nicOptions{NIC: f.text("nicid").trim(), IP: anIPv4(f.text("ip")), Options: make(map[string]string)}
	if o.NIC == "" {
		o.NIC = f.text("nicuuid").trim()
	}
	for code, value := range options {
		n, err := strconv.ParseUint(strings.TrimSpace(code), 10, 8)
		if err != nil {
			return fmt.Errorf("options: %q is no code of a DHCP option", code)
		}
		if value != "" {
			o.Options[strconv.FormatUint(n, 10)] = string(value)
		}
	}
	return c.add(Event{}, o, nil)
}

func (c *Call) vmData(f fields) error {
	return c.vmDataOf(f.text("ip"), f["vmdata"])
}

// vmDataOf adds all data of a VM, and a password where one is among it.
func (c *Call) vmDataOf(address text, raw json.RawMessage) error {
	ip, err := ipv4("ip", address)
	if err != nil {
		return err
	}
	rows, password, err := vmRows(raw)
	if err != nil {
		return fmt.Errorf("vm_data of %s: %w", ip, err)
	}
	var e Event
	v, err := e.sortRows(rows)
	v.IP = ip
	if err := c.add(e, v, err); err != nil {
		return err
	}
	if password != "" {
		return c.add(Event{}, vmPassword{ip, password}, nil)
	}
	return nil
}

func (c *Call) password(f fields) error {
	ip, err := ipv4("ip", f.text("ip"))
	return c.add(Event{}, vmPassword{ip, string(f.text("password"))}, err)
}

func (c *Call) userData(f fields) error {
	ip, err := ipv4("ip", f.text("ip"))
	part := vmPart{IP: ip, HasUser: true}
	if t := string(f.text("userdata")); t != "" {
		part.User = []byte(t)
		if data, ok := encoded(t, true); ok {
			part.User = data
		}
	}
	return c.add(Event{}, part, err)
}

func (c *Call) sshKey(f fields) error { return c.row(f, "public-keys", "sshkey") }

func (c *Call) hypervisor(f fields) error {
	return c.row(f, "hypervisor-host-name", "hypervisorhostname")
}

// row adds one row of a VM's metadata.
func (c *Call) row(f fields, name, field string) error {
	ip, err := ipv4("ip", f.text("ip"))
	dir, content := "metadata", string(f.text(field))
	return c.add(Event{}, vmPart{IP: ip, Rows: []Row{{&dir, &name, &content}}}, err)
}

// restore adds all VMs of a network. Those that it does not name stay: one may have come while the
// server was writing its list.
func (c *Call) restore(f fields) error {
	raw, err := unwrap(f["restoredata"])
	if err != nil {
		return fmt.Errorf("restore_data: %w", err)
	}
	data, err := fieldsOf(raw)
	if err != nil {
		return fmt.Errorf("restore_data: %w", err)
	}
	enabled := func(name string) bool {
		value, ok := data[name]
		on := flag(true)
		return !ok || json.Unmarshal(value, &on) == nil && bool(on)
	}
	leases, userData := enabled("dhcpenabled"), enabled("userdataenabled")
	var vms []json.RawMessage
	if raw, ok := data["vms"]; !ok {
		return errors.New("restore_data: vms: is missing")
	} else if err := unmarshal(raw, &vms); err != nil {
		return fmt.Errorf("restore_data: vms: %w", err)
	}
	for i, raw := range vms {
		vm, err := fieldsOf(raw)
		if err != nil {
			return fmt.Errorf("restore_data: vms[%d]: %w", i, err)
		}
		if _, named := vm["gateway"]; !named {
			vm["gateway"] = f["gateway"]
		}
		if leases && vm.text("mac").trim() != "" {
			if err := c.lease(vm); err != nil {
				return fmt.Errorf("restore_data: vms[%d]: %w", i, err)
			}
		}
		if rows := bytes.TrimSpace(vm["vmdata"]); userData && len(rows) > 0 && !bytes.Equal(rows, []byte("null")) {
			if err := c.vmDataOf(vm.text("ip"), rows); err != nil {
				return fmt.Errorf("restore_data: vms[%d]: %w", i, err)
			}
		}
	}
	return nil
}

// fields are those of a JSON object, by their names in lower case without - and _.
type fields map[string]json.RawMessage

// fieldsOf reads an object, or a text that holds one.
func fieldsOf(raw json.RawMessage) (fields, error) {
	raw, err := unwrap(raw)
	if err != nil {
		return nil, err
	}
	var m map[string]json.RawMessage
	if err := decode(raw, &m); err != nil {
		return nil, err
	}
	f := make(fields, len(m))
	for name, value := range m {
		f[strings.NewReplacer("-", "", "_", "").Replace(strings.ToLower(name))] = value
	}
	return f, nil
}

// text is a field as text; "" where it is missing or no scalar.
func (f fields) text(name string) text {
	var t text
	if raw, ok := f[name]; ok && t.UnmarshalJSON(raw) != nil {
		return ""
	}
	return t
}

// unwrap returns an object or a list that may have been written into a text, as it is or by base64.
func unwrap(raw json.RawMessage) (json.RawMessage, error) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || raw[0] != '"' {
		return raw, nil
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, err
	}
	if s = strings.TrimSpace(s); s == "" || s[0] == '{' || s[0] == '[' {
		return json.RawMessage(s), nil
	}
	if data, err := base64.StdEncoding.DecodeString(s); err == nil {
		if data = bytes.TrimSpace(data); len(data) > 0 && (data[0] == '{' || data[0] == '[') {
			return data, nil
		}
	}
	return nil, errors.New("is a text that holds no JSON")
}

func compact(raw json.RawMessage) json.RawMessage {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return json.RawMessage(`{}`)
	}
	return b.Bytes()
}

// scopeID tells whether s can be part of a unit's name and of a key.
func scopeID(s string) bool {
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-')
	})
}

// vmRow is one piece of a VM's data as an extension gets it.
type vmRow struct {
	Dir     *text `json:"dir"`
	File    *text `json:"file"`
	Content *text `json:"content"`
}

// vmRows reads a VM's data as rows of a router's file, and takes the password out. The server sends
// contents as plain text; earlier drafts of the interface had them in base64, which is told from
// plain text by all of them being so.
func vmRows(raw json.RawMessage) (rows [][]*text, password string, err error) {
	if raw, err = unwrap(raw); err != nil {
		return nil, "", err
	}
	var list []vmRow
	if len(raw) == 0 {
		return nil, "", errors.New("is missing")
	}
	if err := unmarshal(raw, &list); err != nil {
		return nil, "", err
	}
	plain := false
	for _, r := range list {
		if r.Content != nil && *r.Content != "" {
			_, ok := encoded(string(*r.Content), r.dir() == "userdata")
			plain = plain || !ok
		}
	}
	for _, r := range list {
		dir, name, content := r.dir(), r.file(), r.Content
		if content != nil && *content != "" && !plain {
			data, _ := encoded(string(*content), dir == "userdata")
			decoded := text(data)
			content = &decoded
		}
		switch {
		case dir == "password":
			if content != nil {
				password = string(*content)
			}
			continue
		case dir == "userdata" && content != nil && *content != "":
			again := text(base64.StdEncoding.EncodeToString([]byte(*content)))
			content = &again
		}
		d, n := text(dir), text(name)
		rows = append(rows, []*text{&d, &n, content})
	}
	return rows, password, nil
}

// dir is the folder as a router's files name it.
func (r vmRow) dir() string {
	if r.Dir == nil {
		return ""
	}
	switch d := r.Dir.trim(); d {
	case "meta-data", "meta_data":
		return "metadata"
	case "user-data", "user_data":
		return "userdata"
	default:
		return d
	}
}

// file is the name as a router's files have it: without the folders of EC2.
func (r vmRow) file() string {
	if r.File == nil {
		return ""
	}
	switch f := r.File.trim(); f {
	case "public-keys/0/openssh-key":
		return "public-keys"
	case "placement/availability-zone":
		return "availability-zone"
	default:
		return f
	}
}

// encoded returns what s stands for in base64, where it can be nothing but that: it decodes to text,
// or, in user data, to something that is compressed.
func encoded(s string, userData bool) ([]byte, bool) {
	data, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(data) == 0 {
		return nil, false
	}
	if userData && bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		return data, true
	}
	odd := func(c rune) bool {
		return c == utf8.RuneError || unicode.IsControl(c) && !strings.ContainsRune("\t\n\r", c)
	}
	return data, utf8.Valid(data) && !strings.ContainsFunc(string(data), odd)
}

// Call takes one call of an extension in, and returns what became of it, as Apply does for a file.
func (d *Dialect) Call(ctx context.Context, command string, document []byte) (Result, json.RawMessage, error) {
	result := Result{Name: command, State: Applied}
	call, err := ParseCall(command, document)
	if err != nil {
		result.State, result.Reason = Rejected, err.Error()
		d.tell(result)
		return result, nil, nil
	}
	result.Notes = call.notes
	if len(call.events) == 0 {
		return result, call.Answer, nil
	}
	result.Name += " " + call.scope
	done, err := d.begin(ctx)
	if err != nil {
		return result, nil, err
	}
	defer done()
	m := d.scope(call.scope)
	if err := m.find(call.events); err != nil {
		result.State, result.Reason = Rejected, err.Error()
		d.tell(result)
		return result, nil, nil
	}
	at := make([]int, len(call.events))
	results := make([]Result, len(call.events))
	for i := range at {
		at[i], results[i].State = i, Applied
	}
	if err := d.take(ctx, m, call.events, at, results); err != nil {
		return result, nil, err
	}
	for _, r := range results {
		result.worsen([]Verdict{{State: r.State, Reasons: slices.DeleteFunc([]string{r.Reason}, func(s string) bool { return s == "" })}})
	}
	d.tell(result)
	return result, call.Answer, nil
}

// find fills in the addresses of NICs that are named otherwise.
func (m *Memory) find(events []Event) error {
	for i := range events {
		o, ok := events[i].body.(nicOptions)
		if !ok || o.IP.IsValid() {
			continue
		}
		for _, ip := range m.addresses() {
			if g := m.guests[ip]; g.serves() && o.NIC != "" && slices.Contains(g.NIC, o.NIC) {
				o.IP = ip
			}
		}
		if !o.IP.IsValid() {
			return fmt.Errorf("nic_id: no VM of this network has the NIC %q; add-dhcp-entry with its nic_id or nic_uuid comes first", o.NIC)
		}
		events[i].body = o
	}
	return nil
}

func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// foldSubnet takes a range in, or out.
func (r *router) foldSubnet(s subnet) {
	key := netip.PrefixFrom(s.Gateway, s.Bits).Masked()
	if s.Remove {
		maps.DeleteFunc(r.Subnets, func(p netip.Prefix, old subnet) bool {
			if s.Gateway.IsValid() {
				return p == key
			}
			serving := old.ServeAs
			if !serving.IsValid() {
				serving = old.Gateway
			}
			return !s.ServeAs.IsValid() || serving == s.ServeAs
		})
		return
	}
	if old, ok := r.Subnets[key]; ok {
		if len(s.DNS) == 0 {
			s.DNS = old.DNS
		}
		if s.Domain == "" {
			s.Domain = old.Domain
		}
		if s.Device == "" {
			s.Device = old.Device
		}
		if !s.ServeAs.IsValid() && s.Gateway == old.Gateway {
			s.ServeAs = old.ServeAs
		}
	}
	r.Subnets[key] = s
}

// subnetNetwork is a range of an extension's network, once its device is known.
func (r *router) subnetNetwork(s subnet) (network, bool) {
	n := network{Device: s.Device, Gateway: netip.PrefixFrom(s.Gateway, s.Bits), ServeAs: s.ServeAs}
	for _, server := range s.DNS {
		if a := anIPv4(text(server)); a.IsValid() && !slices.Contains(n.DNS, a.String()) {
			n.DNS = append(n.DNS, a.String())
		}
	}
	if domain := strings.TrimSuffix(s.Domain, "."); domainName(domain) {
		n.Domain = domain
	}
	return n, s.Device != ""
}

func (s *Step) foldPart(p vmPart) {
	g := s.guest(p.IP)
	if g == nil || g.Gone {
		g = &guest{Network: s.clear(p.IP, g)}
	}
	files := make(map[string][]byte)
	if p.HasUser {
		files[userFile] = p.User
	}
	if len(p.Rows) > 0 {
		rows := unpack(g.Rows)
		for _, row := range p.Rows {
			rows = slices.DeleteFunc(rows, func(old Row) bool {
				return *old[0] == *row[0] && strings.EqualFold(strings.TrimSpace(*old[1]), *row[1])
			})
			rows = append(rows, row)
		}
		g.Rows = pack(rows)
		files[metaFile] = metaYAML(metaOf(rows))
	}
	s.setGuest(p.IP, g)
	s.write(p.IP, files)
}

// metaOf is what can be served of rows.
func metaOf(rows []Row) map[string]string {
	list := make([][]*text, len(rows))
	for i, r := range rows {
		list[i] = []*text{(*text)(r[0]), (*text)(r[1]), (*text)(r[2])}
	}
	v, _ := new(Event).sortRows(list) // rows that are remembered have been read before
	return v.Meta
}

func (s *Step) foldOptions(o nicOptions) {
	g := s.guest(o.IP)
	if !g.serves() {
		return
	}
	g.Options = o.Options
	s.setGuest(o.IP, g)
	s.write(o.IP, nil)
}

func (s *Step) foldEnd() {
	for _, ip := range s.known() {
		if g := s.guest(ip); g != nil && !g.Gone {
			s.remove(guestUnit(g.Network, ip))
		}
		s.setGuest(ip, nil)
	}
	s.changeRouter(func(r *router) { clear(r.Subnets) }, false)
}
