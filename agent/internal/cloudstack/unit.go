package cloudstack

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Files of a VM's folder.
const (
	vmFile       = "vm.yaml"
	metaFile     = "meta-data.yaml"
	userFile     = "user-data"
	vendorFile   = "vendor-data"
	passwordFile = "password"
)

// header says to whoever opens a file why editing it is in vain.
const header = "# Written by vragent from what the CloudStack management server sends; the next event overwrites it.\n"

func networkUnit(name string) string { return "networks/" + name + ".yaml" }

// guestUnit is the unit of an address in a network.
func guestUnit(network string, ip netip.Addr) string { return "vms/" + network + "_" + ip.String() }

// file returns the content of the network's file.
func (n *network) file() []byte {
	var b bytes.Buffer
	b.WriteString(header)
	put := func(key, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%s: %s\n", key, value)
		}
	}
	put("interface", quote(n.Device))
	put("gateway", n.Gateway.String())
	if n.ServeAs.IsValid() {
		put("serve_as", n.ServeAs.String())
	}
	put("dns", flow(n.DNS))
	if n.Domain != "" {
		put("domain", quote(n.Domain))
	}
	put("search", flow(n.Search))
	if n.MTU > 0 {
		fmt.Fprintf(&b, "mtu: %d\n", n.MTU)
	}
	put("lease_time", "infinite")
	if n.Public != "" {
		put("public_interface", quote(n.Public))
	}
	if n.NAT.IsValid() {
		put("public_ipv4", n.NAT.String())
	}
	// Windows is asked to give its lease back when it shuts down ([MS-DHCPE] section 2.2.5).
	put("vendor_options", `{"MSFT": {43: {hex: "020400000001ff"}}}`)
	if n.Boot {
		put("next_server", n.serving().String())
		put("boot", `[{file: "pxelinux.0"}]`)
	}
	return b.Bytes()
}

// vm returns the content of a guest's vm.yaml. in is its network, nil while there is none.
func (g *guest) vm(ip netip.Addr, in *network) []byte {
	var b bytes.Buffer
	b.WriteString(header)
	if g.Hostname != "" {
		fmt.Fprintf(&b, "hostname: %s\n", quote(g.Hostname))
	}
	fmt.Fprintf(&b, "nics:\n  - network: %s\n", quote(g.Network))
	if g.MAC != "" {
		fmt.Fprintf(&b, "    mac: %s\n", quote(g.MAC))
	}
	fmt.Fprintf(&b, "    ipv4: %s\n", ip)
	if g.MAC != "" && !g.Default {
		b.WriteString("    default: false\n")
	}
	if g.Seconds > 0 {
		fmt.Fprintf(&b, "    lease_time: %ds\n", g.Seconds)
	}
	options := maps.Clone(g.Options)
	// The server names a gateway for each NIC. As a rule it is the network's.
	if in != nil && g.Default && g.Gateway.IsValid() && g.Gateway != in.Gateway.Addr() && in.Gateway.Masked().Contains(g.Gateway) {
		if options == nil {
			options = make(map[string]string)
		}
		if _, set := options["3"]; !set {
			options["3"] = g.Gateway.String()
		}
	}
	var list []string
	for _, code := range slices.Sorted(maps.Keys(options)) {
		list = append(list, code+": "+quote(options[code]))
	}
	if len(list) > 0 {
		fmt.Fprintf(&b, "    options: {%s}\n", strings.Join(list, ", "))
	}
	return b.Bytes()
}

// metaYAML returns the content of meta-data.yaml.
func metaYAML(meta map[string]string) []byte {
	var b bytes.Buffer
	b.WriteString(header)
	for _, name := range slices.Sorted(maps.Keys(meta)) {
		fmt.Fprintf(&b, "%s: %s\n", quote(name), quote(meta[name]))
	}
	return b.Bytes()
}

func flow(items []string) string {
	if len(items) == 0 {
		return ""
	}
	quoted := make([]string, len(items))
	for i, s := range items {
		quoted[i] = quote(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// quote writes any text as a double-quoted scalar of YAML (YAML 1.2 section 5.7).
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < 0x80 && r >= ' ' && r != 0x7f, r >= 0xa0 && r != utf8.RuneError && unicode.IsPrint(r):
			b.WriteRune(r)
		case r <= 0xff:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
