package cloudstack

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
)

// Kind tells what a file is about: its name up to ".json".
type Kind string

const (
	CmdLine        Kind = "cmd_line"
	GuestNetwork   Kind = "guest_network"
	IPAssociations Kind = "ip_associations"
	IPAliases      Kind = "ip_aliases"
	DHCPEntry      Kind = "vm_dhcp_entry"
	MetaData       Kind = "vm_metadata"
	Password       Kind = "vm_password"
	DHCPConfig     Kind = "dhcp"
)

// KindOf returns the kind of the file called name, with or without a folder and a suffix behind
// ".json". Kinds that are not among the constants above belong to others.
func KindOf(name string) Kind {
	base, _, _ := strings.Cut(filepath.Base(name), ".json")
	return Kind(base)
}

// Ours tells whether nobody but the dialect needs files of this kind.
func (k Kind) Ours() bool {
	return k == DHCPEntry || k == MetaData || k == Password || k == DHCPConfig
}

// Shared tells whether the dialect reads files of this kind and other programs of the router need
// them as well.
func (k Kind) Shared() bool {
	return k == CmdLine || k == GuestNetwork || k == IPAssociations || k == IPAliases
}

// types are the values of the field "type" that a file of each kind carries.
var types = map[Kind]string{
	CmdLine: "cmdline", GuestNetwork: "guestnetwork", IPAssociations: "ips", IPAliases: "ipaliases",
	DHCPEntry: "dhcpentry", MetaData: "vmdata", Password: "vmpassword", DHCPConfig: "dhcpconfig",
}

// ErrForeign is returned for a file whose kind is not the dialect's.
var ErrForeign = errors.New("not a kind of file that vragent reads: the name must begin as the server has it, like vm_dhcp_entry.json")

// Event is the valid content of one file.
type Event struct {
	// Name is that of the file, for reports.
	Name string
	// Notes tell what was left out because it cannot be served.
	Notes []string

	body any // one of the types below
}

type (
	// cmdLine is what the router was started with.
	cmdLine map[string]string

	// tier is a network of a VPC that is plugged or unplugged.
	tier struct {
		Add       bool       `json:"add"`
		Device    string     `json:"device"`
		MAC       string     `json:"mac"` // of the router's NIC
		IP        netip.Addr `json:"ip"`  // the router's own
		Gateway   netip.Addr `json:"gateway"`
		Bits      int        `json:"bits"`
		DNS       []string   `json:"dns"`
		Domain    string     `json:"domain"`
		MTU       int        `json:"mtu"`
		NoGateway bool       `json:"no_gateway"` // another machine is the tier's gateway
	}

	// address is one of the router's own addresses, beside those of cmdLine and tier.
	address struct {
		Add     bool       `json:"add"`
		IP      netip.Addr `json:"ip"`
		Bits    int        `json:"bits"`
		Gateway netip.Addr `json:"gateway"` // of a guest range; invalid: not known yet
		Device  string     `json:"device"`
		MAC     string     `json:"mac"` // of the NIC it is on; wins over Device
		Public  bool       `json:"public"`
		NAT     bool       `json:"nat"` // the source address of guests in the world
	}
	associations []address
	aliases      []address

	// dhcpConfig names gateways by the router's address in their range.
	dhcpConfig map[netip.Addr]netip.Addr

	// lease is a NIC's address, given or taken away.
	lease struct {
		Remove   bool
		IP       netip.Addr // invalid in a removal: wherever the MAC is
		MAC      string
		Hostname string
		Gateway  netip.Addr
		Default  bool
		Seconds  int64 // 0: infinite
		NIC      []string
	}

	// vmData is all metadata of the VM with an address.
	vmData struct {
		IP   netip.Addr
		VMID string
		Rows []Row             // as they came, without the user data's content
		Meta map[string]string // what can be served
		User []byte            // nil: none
	}

	// vmPassword is a password that waits for the VM with an address.
	vmPassword struct {
		IP       netip.Addr
		Password string
	}

	// nothing is an event that changes nothing here.
	nothing struct{}
)

// Row is one line of a VM's metadata as the server sends it: a folder, a name and a content, which
// may be absent.
type Row [3]*string

// Parse reads the file called name. Fields that it does not know and fields that are missing are no
// fault; ErrForeign is the error where the name is not that of a kind of ours, any other error
// tells why the file cannot be taken in.
func Parse(name string, data []byte) (Event, error) {
	e := Event{Name: filepath.Base(name)}
	kind := KindOf(name)
	if !kind.Ours() && !kind.Shared() {
		return e, ErrForeign
	}
	var head struct {
		Type text `json:"type"`
	}
	if err := decode(data, &head); err != nil {
		return e, err
	}
	if t := string(head.Type); t != "" && t != types[kind] {
		return e, fmt.Errorf("the name says %s and the field type says %q; a %s file has type %q", kind, t, kind, types[kind])
	}
	var err error
	switch kind {
	case CmdLine:
		e.body, err = e.parseCmdLine(data)
	case GuestNetwork:
		e.body, err = parseTier(data)
	case IPAssociations:
		e.body, err = parseAssociations(data)
	case IPAliases:
		e.body, err = parseAliases(data)
	case DHCPEntry:
		e.body, err = e.parseLease(data)
	case MetaData:
		e.body, err = e.parseVMData(data)
	case Password:
		e.body, err = parsePassword(data)
	case DHCPConfig:
		e.body, err = parseDHCPConfig(data)
	}
	return e, err
}

// ofRouter tells whether the event is of the router and its networks, not of a guest.
func (e Event) ofRouter() bool {
	switch e.body.(type) {
	case lease, vmData, vmPassword, vmPart, nicOptions, ended, nothing:
		return false
	}
	return true
}

func (e *Event) note(format string, args ...any) {
	e.Notes = append(e.Notes, fmt.Sprintf(format, args...))
}

// decode reads one JSON object.
func decode(data []byte, v any) error {
	if len(strings.TrimSpace(string(data))) == 0 {
		return errors.New("is empty")
	}
	return unmarshal(data, v)
}

// unmarshal reads JSON. Its errors are for people who know the files and not this program.
func unmarshal(data []byte, v any) error {
	err := json.Unmarshal(data, v)
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("is no complete JSON: %w at byte %d of %d", err, syntax.Offset, len(data))
	case errors.As(err, &kind):
		want := "an object"
		if kind.Type.Kind() == reflect.Slice {
			want = "a list"
		}
		if kind.Field != "" {
			return fmt.Errorf("%s: is %s; it must be %s", kind.Field, article(kind.Value), want)
		}
		return fmt.Errorf("holds %s where %s is expected", article(kind.Value), want)
	}
	return err
}

// article puts the article before the name of a kind of JSON value.
func article(value string) string {
	switch value {
	case "array":
		return "a list"
	case "object":
		return "an object"
	}
	return "a " + value
}

func (e *Event) parseCmdLine(data []byte) (cmdLine, error) {
	var raw struct {
		CmdLine map[string]text `json:"cmd_line"`
	}
	if err := decode(data, &raw); err != nil {
		return nil, err
	}
	if len(raw.CmdLine) == 0 {
		return nil, errors.New("cmd_line: is missing")
	}
	c := make(cmdLine, len(raw.CmdLine))
	for k, v := range raw.CmdLine {
		c[k] = v.trim()
	}
	if name := c["name"]; name != "" && c.name() == "" {
		e.note("name %q of the router is no host name and is left out of /etc/hosts", name)
	}
	return c, nil
}

// name is the router's own, or "" where that is no host name: it becomes part of a file of lines.
func (c cmdLine) name() string {
	if !hostname(c["name"]) {
		return ""
	}
	return c["name"]
}

func parseTier(data []byte) (t tier, err error) {
	var raw struct {
		Add     *flag `json:"add"`
		MAC     text  `json:"mac_address"`
		Device  text  `json:"device"`
		IP      text  `json:"router_guest_ip"`
		Netmask text  `json:"router_guest_netmask"`
		Gateway text  `json:"router_guest_gateway"`
		CIDR    text  `json:"cidr"`
		DNS     text  `json:"dns"`
		Domain  text  `json:"domain_name"`
		MTU     text  `json:"mtu"`
		IsGW    *flag `json:"is_vr_guest_gateway"`
	}
	if err := decode(data, &raw); err != nil {
		return t, err
	}
	t = tier{
		Add: raw.Add == nil || bool(*raw.Add), Device: raw.Device.trim(), MAC: strings.ToLower(raw.MAC.trim()),
		Domain: raw.Domain.trim(), DNS: list(raw.DNS.trim()), MTU: mtu(raw.MTU.trim()),
		NoGateway: raw.IsGW != nil && !bool(*raw.IsGW),
	}
	if t.Device == "" {
		return t, errors.New("device: is missing")
	}
	if t.IP, err = ipv4("router_guest_ip", raw.IP); err != nil && t.Add {
		return t, err
	}
	if !t.Add {
		return t, nil
	}
	t.Gateway = t.IP
	if raw.Gateway.trim() != "" {
		if t.Gateway, err = ipv4("router_guest_gateway", raw.Gateway); err != nil {
			return t, err
		}
	}
	mask := raw.CIDR
	if mask.trim() == "" {
		mask = raw.Netmask
	}
	t.Bits, err = bits("cidr", mask)
	return t, err
}

func parseAssociations(data []byte) (associations, error) {
	var raw struct {
		IPs []*struct {
			IP      text  `json:"public_ip"`
			Add     *flag `json:"add"`
			NAT     flag  `json:"source_nat"`
			Gateway text  `json:"gateway"`
			Netmask text  `json:"netmask"`
			MAC     text  `json:"vif_mac_address"`
			NIC     text  `json:"nic_dev_id"`
			Type    text  `json:"nw_type"`
			Private flag  `json:"is_private_gateway"`
		} `json:"ip_address"`
	}
	if err := decode(data, &raw); err != nil {
		return nil, err
	}
	var out associations
	for i, r := range raw.IPs {
		if r == nil {
			continue
		}
		a := address{Add: r.Add == nil || bool(*r.Add), MAC: strings.ToLower(r.MAC.trim()), NAT: bool(r.NAT)}
		kind := strings.ToLower(r.Type.trim())
		a.Public = kind == "" || kind == "public"
		if !a.Public && kind != "guest" || bool(r.Private) {
			continue // control and private gateways are no network of guests
		}
		if n := r.NIC.trim(); n != "" {
			a.Device = "eth" + n
		}
		var err error
		if a.IP, err = ipv4(fmt.Sprintf("ip_address[%d].public_ip", i), r.IP); err != nil {
			return nil, err
		}
		if !a.Public {
			if a.Bits, err = bits(fmt.Sprintf("ip_address[%d].netmask", i), r.Netmask); err != nil && a.Add {
				return nil, err
			}
			a.Gateway = anIPv4(r.Gateway)
		}
		out = append(out, a)
	}
	return out, nil
}

func parseAliases(data []byte) (aliases, error) {
	var raw struct {
		Aliases []*struct {
			Revoke  flag `json:"revoke"`
			IP      text `json:"ip_address"`
			Netmask text `json:"netmask"`
		} `json:"aliases"`
	}
	if err := decode(data, &raw); err != nil {
		return nil, err
	}
	var out aliases
	for i, r := range raw.Aliases {
		if r == nil {
			continue
		}
		a := address{Add: !bool(r.Revoke)}
		var err error
		if a.IP, err = ipv4(fmt.Sprintf("aliases[%d].ip_address", i), r.IP); err != nil {
			return nil, err
		}
		if a.Bits, err = bits(fmt.Sprintf("aliases[%d].netmask", i), r.Netmask); err != nil && a.Add {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// parseDHCPConfig takes the entries of every list in the file: what the server calls the list is
// not known for all releases.
func parseDHCPConfig(data []byte) (dhcpConfig, error) {
	var raw map[string]json.RawMessage
	if err := decode(data, &raw); err != nil {
		return nil, err
	}
	out := make(dhcpConfig)
	for _, v := range raw {
		var entries []struct {
			IP      text `json:"router_ip_address"`
			Gateway text `json:"gateway"`
		}
		if json.Unmarshal(v, &entries) != nil {
			continue
		}
		for _, r := range entries {
			ip, gw := anIPv4(r.IP), anIPv4(r.Gateway)
			if ip.IsValid() && gw.IsValid() {
				out[ip] = gw
			}
		}
	}
	return out, nil
}

// rawLease is a NIC as the server writes it.
type rawLease struct {
	Add      *flag `json:"add"`
	Remove   flag  `json:"remove"`
	Hostname text  `json:"host_name"`
	MAC      text  `json:"mac_address"`
	IP       text  `json:"ipv4_address"`
	Gateway  text  `json:"default_gateway"`
	Default  *flag `json:"default_entry"`
	Lease    text  `json:"lease_time"`
}

func (e *Event) parseLease(data []byte) (any, error) {
	var raw rawLease
	if err := decode(data, &raw); err != nil {
		return nil, err
	}
	return e.lease(raw)
}

// lease checks a NIC.
func (e *Event) lease(raw rawLease) (any, error) {
	l := lease{
		Remove:   bool(raw.Remove) || raw.Add != nil && !bool(*raw.Add),
		Hostname: strings.TrimSuffix(raw.Hostname.trim(), "."), Gateway: anIPv4(raw.Gateway),
		Default: raw.Default == nil || bool(*raw.Default),
	}
	mac, err := net.ParseMAC(raw.MAC.trim())
	if err != nil || len(mac) != 6 {
		return nil, fmt.Errorf("mac_address: is %q; it must be an Ethernet address", raw.MAC)
	}
	l.MAC = mac.String()
	if raw.IP.trim() == "" {
		if !l.Remove {
			e.note("it names no IPv4 address, and vragent serves none but IPv4")
			return nothing{}, nil
		}
	} else if l.IP, err = ipv4("ipv4_address", raw.IP); err != nil {
		return nil, err
	}
	if s := raw.Lease.trim(); s != "" {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil || math.IsNaN(f) || f != math.Trunc(f) {
			return nil, fmt.Errorf("lease_time: is %q; it must be a number of seconds", s)
		}
		// 0xffffffff stands for infinity itself, RFC 2131 section 3.3.
		if f > 0 && f < math.MaxUint32 {
			l.Seconds = int64(f)
		}
	}
	if l.Hostname != "" && !hostname(l.Hostname) {
		e.note("host name %q is no host name by RFC 1123 and is not given to the guest by DHCP", l.Hostname)
		l.Hostname = ""
	}
	return l, nil
}

func parsePassword(data []byte) (any, error) {
	var raw struct {
		IP       text `json:"ip_address"`
		Password text `json:"password"`
	}
	if err := decode(data, &raw); err != nil {
		return nil, err
	}
	ip, err := ipv4("ip_address", raw.IP)
	return vmPassword{ip, string(raw.Password)}, err
}

// parseVMData sorts a VM's rows: which names are served, and what the VM is. A content that is null
// is an empty text, one that is an empty text says that there is no such name: so the server means
// it, and so the router has always served it.
func (e *Event) parseVMData(data []byte) (any, error) {
	var raw struct {
		IP   text      `json:"vm_ip_address"`
		Rows [][]*text `json:"vm_metadata"`
	}
	if err := decode(data, &raw); err != nil {
		return nil, err
	}
	ip, err := ipv4("vm_ip_address", raw.IP)
	if err != nil {
		return nil, err
	}
	v, err := e.sortRows(raw.Rows)
	v.IP = ip
	return v, err
}

// sortRows sorts rows of a VM's data.
func (e *Event) sortRows(rows [][]*text) (v vmData, err error) {
	v.Meta = make(map[string]string)
	instance := ""
	names := make(map[string]string) // by their lower-case form, which is how guests ask
	for i, r := range rows {
		if len(r) < 2 || r[0] == nil || r[1] == nil {
			e.note("row %d of vm_metadata has no name", i)
			continue
		}
		var content *text
		if len(r) > 2 {
			content = r[2]
		}
		dir, name := string(*r[0]), string(*r[1])
		row := Row{&dir, &name, (*string)(content)}
		switch dir {
		case "userdata":
			if name != "user-data" && name != "user_data" {
				continue
			}
			row[2] = nil
			if v.User, err = userData(content); err != nil {
				return v, err
			}
		case "metadata":
			served := strings.TrimSpace(name)
			folded := strings.ToLower(served)
			if why := unservable(served); why != "" {
				e.note("metadata name %q %s and is left out", name, why)
				if strings.ContainsAny(served, "/\x00") || strings.Trim(served, ".") == "" {
					continue // nor is the router's own script to make a path of it
				}
				break
			}
			// Of two rows with one name the later one counts; they were files once, one over the other.
			delete(v.Meta, names[folded])
			if content == nil {
				v.Meta[served] = ""
			} else if *content != "" {
				v.Meta[served] = string(*content)
			} else {
				break
			}
			names[folded] = served
			switch folded {
			case "vm-id":
				v.VMID = v.Meta[served]
			case "instance-id":
				instance = v.Meta[served]
			}
		case "password":
			continue // for a configuration drive
		default:
			e.note("%q of folder %q is left out: metadata and userdata are the folders that are served", name, dir)
			continue
		}
		v.Rows = append(v.Rows, row)
	}
	if v.VMID == "" {
		v.VMID = instance
	}
	return v, nil
}

// unservable tells why a metadata name cannot be that of something served, or "".
func unservable(name string) string {
	if name == "" {
		return "is empty"
	}
	if len(name) > 128 {
		return "is longer than 128 bytes"
	}
	for i := range len(name) {
		if c := name[i]; !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-') {
			return "is not of A-Z a-z 0-9 . _ - alone"
		}
	}
	switch strings.ToLower(name) {
	case ".", "..", "meta-data", "user-data", "vendor-data", "api", "dynamic":
		return "is taken by something else"
	}
	return ""
}

func hostname(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if c := label[i]; !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-') {
				return false
			}
		}
	}
	return true
}

// domainName tells whether s can be a network's domain.
func domainName(s string) bool { return s != "" && hostname(strings.ReplaceAll(s, "_", "x")) }

func ipv4(field string, t text) (netip.Addr, error) {
	if a := anIPv4(t); a.IsValid() {
		return a, nil
	}
	if t.trim() == "" {
		return netip.Addr{}, fmt.Errorf("%s: is missing", field)
	}
	return netip.Addr{}, fmt.Errorf("%s: is %q; it must be an IPv4 address", field, t)
}

// anIPv4 returns the address of a host, or the zero value.
func anIPv4(t text) netip.Addr {
	a, err := netip.ParseAddr(t.trim())
	if err != nil || !a.Is4() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
		return netip.Addr{}
	}
	return a
}

// bits reads a prefix length, as such or as a dotted mask.
func bits(field string, t text) (int, error) {
	s := t.trim()
	if n, err := strconv.Atoi(s); err == nil && n >= 0 && n <= 32 {
		return n, nil
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Is4() {
		b := a.As4()
		if ones, size := net.IPMask(b[:]).Size(); size == 32 {
			return ones, nil
		}
	}
	return 0, fmt.Errorf("%s: is %q; it must be a network mask", field, s)
}

func mtu(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 68 || n > 65535 { // RFC 2132 section 5.1
		return 0
	}
	return n
}

// list splits at commas and leaves out what is empty.
func list(s string) []string {
	var out []string
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}
