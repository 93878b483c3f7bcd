package desired

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"vragent/agent/internal/drop"
	"vragent/agent/internal/strict"
	"vragent/dhcp"
)

// VM is the valid content of a VM's folder, without the bytes of its user data and vendor data,
// which stay in files.
type VM struct {
	Name       string
	Hostname   string
	NICs       []NIC
	Meta       map[string]string // of meta-data.yaml
	UserData   *Blob             // nil: no such file
	VendorData *Blob
	Password   string // as dropped; "": none
}

// NIC is one NIC of a VM.
type NIC struct {
	Network   string
	MAC       *dhcp.MAC // nil: only metadata is served for the address
	IPv4      netip.Addr
	Default   bool
	LeaseTime time.Duration // 0: the network's
	Options   dhcp.Options  // over the network's, code by code
	// Where the file says so, for faults that show only beside other units.
	At, MACAt, IPv4At strict.Pos
}

// Blob stands for bytes that are not kept in memory.
type Blob struct {
	Size int64
	Hash string // SHA-256, hexadecimal
}

const maxPassword = 1024

var (
	metaName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)
	// These are served from elsewhere, whatever meta-data.yaml says.
	reservedMeta = map[string]bool{"meta-data": true, "user-data": true, "vendor-data": true, "api": true, "dynamic": true, ".": true, "..": true}
	hostPattern  = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`) // RFC 1123 section 2.1
)

func parseVM(name string, data []byte) (*VM, []strict.Fault) {
	d, m := strict.Read(data)
	if faults := d.Faults(); len(faults) > 0 {
		return nil, faults
	}
	vm := &VM{Name: name}
	if t := m.Text("hostname"); t.Set {
		vm.Hostname = strings.TrimSuffix(t.Value, ".")
		if !validHostname(vm.Hostname) {
			m.Faultf("hostname", "is %q; it must be a host name of letters, digits and hyphens, like web-1", t.Value)
		}
	}
	for _, n := range m.List("nics") {
		nic := NIC{Network: n.Text("network").Value, Default: n.Bool("default", true), At: n.Pos, MACAt: n.At("mac"), IPv4At: n.At("ipv4")}
		if !drop.ValidName(nic.Network) {
			n.Faultf("network", "is %q; it must be the name of a network, that of its file without .yaml", nic.Network)
		}
		if t := n.Text("mac"); t.Set {
			mac, err := dhcp.ParseMAC(t.Value)
			if err != nil {
				n.Faultf("mac", "%v", err)
			}
			nic.MAC = &mac
		}
		nic.IPv4 = address(n, "ipv4")
		if !n.Has("ipv4") {
			n.Faultf("ipv4", "is missing; it must be the NIC's address, like 10.1.1.34")
		}
		nic.LeaseTime = leaseTime(n, 0)
		nic.Options = options(n, "options", func(code uint8) string {
			if code == 12 && vm.Hostname != "" {
				return "hostname"
			}
			return ""
		})
		n.Done()
		for i := range vm.NICs {
			other := &vm.NICs[i]
			if other.Network != nic.Network {
				continue
			}
			if other.IPv4 == nic.IPv4 && nic.IPv4.IsValid() {
				n.Faultf("ipv4", "%s is that of nics[%d] in the same network", nic.IPv4, i)
			}
			if other.MAC != nil && nic.MAC != nil && *other.MAC == *nic.MAC {
				n.Faultf("mac", "%s is that of nics[%d] in the same network", nic.MAC, i)
			}
		}
		vm.NICs = append(vm.NICs, nic)
	}
	if len(vm.NICs) == 0 && !m.Faulty("nics") {
		m.Faultf("nics", "is missing; a VM needs at least one NIC ({network: ..., mac: ..., ipv4: ...})")
	}
	m.Done()
	if faults := d.Faults(); len(faults) > 0 {
		return nil, faults
	}
	return vm, nil
}

func validHostname(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if !hostPattern.MatchString(label) {
			return false
		}
	}
	return true
}

func parseMeta(data []byte) (map[string]string, []strict.Fault) {
	d, m := strict.Read(data)
	if faults := d.Faults(); len(faults) > 0 {
		return nil, faults
	}
	meta := make(map[string]string)
	lower := make(map[string]string)
	for _, l := range m.Entries() {
		switch folded := strings.ToLower(l.Key); {
		case l.Sub != nil:
			d.Faultf(l.Pos, "%s: is a mapping; the file is flat: name and text", l.Key)
		case !metaName.MatchString(l.Key):
			d.Faultf(l.KeyPos, "name %q; a name is 1 to 128 of A-Z a-z 0-9 . _ -", l.Key)
		case reservedMeta[folded]:
			d.Faultf(l.KeyPos, "name %q is not free; choose another one", l.Key)
		case lower[folded] != "":
			d.Faultf(l.KeyPos, "name %q differs from %q only by case; guests are served names without regard to case", l.Key, lower[folded])
		default:
			lower[folded] = l.Key
			meta[l.Key] = l.Text
		}
	}
	if faults := d.Faults(); len(faults) > 0 {
		return nil, faults
	}
	return meta, nil
}

// parsePassword takes the one line of a password file.
func parsePassword(data []byte) (string, []strict.Fault) {
	line := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	fault := func(format string, args ...any) (string, []strict.Fault) {
		return "", []strict.Fault{{Line: 1, Column: 1, What: fmt.Sprintf(format, args...)}}
	}
	switch {
	case line == "":
		return fault("is empty; the file holds one line, the password")
	case len(line) > maxPassword:
		return fault("is %d bytes; %d are allowed", len(line), maxPassword)
	case !utf8.ValidString(line) || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fault("must be one line of text without control characters")
	case line == "saved_password" || line == "bad_request":
		return fault("is a word of the password protocol itself, which no guest would take for a password")
	}
	return line, nil
}
