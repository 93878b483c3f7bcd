package cloudstack

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Databags are what a router's own scripts know of it and of its guests. A nil field is a file that
// there is none of.
type Databags struct {
	CmdLine, GuestNetwork, IPs, DHCPEntry, VMData []byte

	// Passwords are the password servers' files, with those that no guest has taken yet.
	Passwords [][]byte
}

// ReadDatabags reads the databags in the folder bags and the password servers' files in cache.
func ReadDatabags(bags, cache string) (Databags, error) {
	var b Databags
	for name, content := range map[string]*[]byte{
		"cmdline": &b.CmdLine, "guestnetwork": &b.GuestNetwork, "ips": &b.IPs, "dhcpentry": &b.DHCPEntry, "vmdata": &b.VMData,
	} {
		data, err := os.ReadFile(filepath.Join(bags, name+".json"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return b, err
		}
		*content = data
	}
	files, err := filepath.Glob(filepath.Join(cache, "passwords-*"))
	if err != nil {
		return b, err
	}
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			return b, err
		}
		b.Passwords = append(b.Passwords, data)
	}
	return b, nil
}

// Files returns what the management server would have to send for the dialect to know what the
// databags say: the router first, then its networks and addresses, then each VM. Left out are VMs
// that were removed, of which the databags keep metadata for ever.
func (b Databags) Files() ([]File, error) {
	var files []File
	add := func(kind Kind, suffix string, body any) error {
		data, err := json.Marshal(body)
		if err == nil {
			files = append(files, File{Name: string(kind) + ".json." + suffix, Data: data})
		}
		return err
	}

	var cmdline struct {
		Config map[string]any `json:"config"`
	}
	if err := readBag("cmdline", b.CmdLine, &cmdline); err != nil {
		return nil, err
	}
	if len(cmdline.Config) > 0 {
		if err := add(CmdLine, "databag", map[string]any{"type": types[CmdLine], "cmd_line": cmdline.Config}); err != nil {
			return nil, err
		}
	}

	tiers, err := entries[[]map[string]any]("guestnetwork", b.GuestNetwork)
	if err != nil {
		return nil, err
	}
	for _, device := range slices.Sorted(maps.Keys(tiers)) {
		if len(tiers[device]) == 0 {
			continue
		}
		tier := tiers[device][0] // which is the one that the scripts look at
		tier["type"], tier["add"], tier["device"] = types[GuestNetwork], true, device
		if err := add(GuestNetwork, device, tier); err != nil {
			return nil, err
		}
	}

	addresses, err := entries[[]map[string]any]("ips", b.IPs)
	if err != nil {
		return nil, err
	}
	var live []map[string]any
	for _, device := range slices.Sorted(maps.Keys(addresses)) {
		for _, a := range addresses[device] {
			if added, ok := a["add"].(bool); ok && !added {
				continue // a removal, which stays in the list
			}
			a["nic_dev_id"] = strings.TrimPrefix(device, "eth")
			// The device is what the scripts have made of the NIC's address.
			delete(a, "vif_mac_address")
			if mask, ok := a["netmask"].(string); !ok || mask == "" {
				a["netmask"] = a["size"]
			}
			live = append(live, a)
		}
	}
	if len(live) > 0 {
		if err := add(IPAssociations, "databag", map[string]any{"type": types[IPAssociations], "ip_address": live}); err != nil {
			return nil, err
		}
	}

	leases, err := entries[map[string]any]("dhcpentry", b.DHCPEntry)
	if err != nil {
		return nil, err
	}
	data, err := entries[[][]any]("vmdata", b.VMData)
	if err != nil {
		return nil, err
	}
	if len(leases) > 0 && len(cmdline.Config) == 0 && len(tiers) == 0 {
		return nil, errors.New("databag dhcpentry.json has guests, but neither cmdline.json nor guestnetwork.json names a network for them")
	}
	passwords := b.passwords()
	guests := make(map[string]bool) // whether the VM is there
	for ip := range data {
		guests[ip] = true
	}
	for ip, l := range leases {
		removed, _ := l["remove"].(bool)
		guests[ip] = !removed
	}
	for _, ip := range slices.SortedFunc(maps.Keys(guests), compareAddresses) {
		if !guests[ip] {
			continue
		}
		if l, ok := leases[ip]; ok {
			l["type"], l["ipv4_address"] = types[DHCPEntry], ip
			if err := add(DHCPEntry, ip, l); err != nil {
				return nil, err
			}
		}
		if rows, ok := data[ip]; ok {
			if err := add(MetaData, ip, map[string]any{"type": types[MetaData], "vm_ip_address": ip, "vm_metadata": rows}); err != nil {
				return nil, err
			}
		}
		if p, ok := passwords[ip]; ok {
			if err := add(Password, ip, map[string]any{"type": types[Password], "ip_address": ip, "password": p}); err != nil {
				return nil, err
			}
		}
	}
	return files, nil
}

// passwords returns those of the password servers' files, by address. A line that was torn before
// its = is none, as it was for the server itself.
func (b Databags) passwords() map[string]string {
	all := make(map[string]string)
	for _, file := range b.Passwords {
		for line := range strings.Lines(string(file)) {
			if ip, password, ok := strings.Cut(strings.TrimRight(line, "\r\n"), "="); ok {
				all[ip] = password
			}
		}
	}
	return all
}

// Since returns what has to be sent for the dialect to know files where it knew before: what is new
// or says something else, and a removal for each lease that is there no more. What is in force is
// not sent again, as newer things may have come over it since.
func Since(before, files []File) ([]File, error) {
	known := make(map[string][]byte, len(before))
	for _, f := range before {
		known[f.Name] = f.Data
	}
	var out, changed []File
	for _, f := range files {
		if old, ok := known[f.Name]; !ok || !bytes.Equal(old, f.Data) {
			changed = append(changed, f)
		}
		delete(known, f.Name)
	}
	for _, f := range before {
		if _, gone := known[f.Name]; !gone || KindOf(f.Name) != DHCPEntry {
			continue
		}
		var lease map[string]any
		if err := json.Unmarshal(f.Data, &lease); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
		lease["remove"] = true
		data, err := json.Marshal(lease)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
		out = append(out, File{Name: f.Name, Data: data})
	}
	return append(out, changed...), nil
}

func readBag(name string, data []byte, v any) error {
	if data == nil {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("databag %s.json: %w", name, err)
	}
	return nil
}

// entries reads a databag that is a map, beside its own name.
func entries[V any](name string, data []byte) (map[string]V, error) {
	var raw map[string]json.RawMessage
	if err := readBag(name, data, &raw); err != nil {
		return nil, err
	}
	out := make(map[string]V, len(raw))
	for key, value := range raw {
		if key == "id" {
			continue
		}
		var v V
		if err := readBag(name, value, &v); err != nil {
			return nil, fmt.Errorf("%w in %q", err, key)
		}
		out[key] = v
	}
	return out, nil
}

// compareAddresses puts addresses in order, and what is none behind them.
func compareAddresses(a, b string) int {
	x, _ := netip.ParseAddr(a)
	y, _ := netip.ParseAddr(b)
	if c := y.BitLen() - x.BitLen(); c != 0 && (x.BitLen() == 0 || y.BitLen() == 0) {
		return c
	}
	if c := x.Compare(y); c != 0 {
		return c
	}
	return strings.Compare(a, b)
}
