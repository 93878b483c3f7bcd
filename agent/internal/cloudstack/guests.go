package cloudstack

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

const guestsPath = "/v1/cloudstack/guests"

// Guests is what the originals of a router need to know of its guests, as far as the dialect knows
// it: enough to write their databags, and what the server's health checks read.
type Guests struct {
	// Generation changes with what follows; GET with ?after=N waits for another one than N.
	Generation uint64           `json:"generation"`
	Off        bool             `json:"off,omitempty"` // nobody wants the files to be kept
	DropDir    string           `json:"drop_dir"`      // which the folders of units lie in
	Router     string           `json:"router"`        // the router's own name, a host name; "": none is known
	Networks   []NetworkSummary `json:"networks"`
	Guests     []GuestSummary   `json:"guests"`
}

// NetworkSummary is a guest network.
type NetworkSummary struct {
	Serving netip.Addr   `json:"serving"` // the address that guests are served on
	Subnet  netip.Prefix `json:"subnet"`
}

// GuestSummary is one address.
type GuestSummary struct {
	Unit     string     `json:"unit"` // its folder holds the user data
	IP       netip.Addr `json:"ip"`
	MAC      string     `json:"mac,omitempty"`
	Hostname string     `json:"hostname,omitempty"`
	Gateway  string     `json:"gateway,omitempty"`
	Default  bool       `json:"default"`
	Lease    int64      `json:"lease"`
	Rows     []Row      `json:"rows,omitempty"`
}

// Guests returns what is known of the guests, by address.
func (d *Dialect) Guests() Guests {
	out, known := d.known()
	for _, k := range known {
		s := k.summary()
		s.Rows = unpack(k.guest.Rows)
		out.Guests = append(out.Guests, s)
	}
	return out
}

// knownGuest is a guest as it is remembered; nobody changes it.
type knownGuest struct {
	ip    netip.Addr
	guest *guest
}

// summary is a guest without its rows.
func (k knownGuest) summary() GuestSummary {
	g := k.guest
	s := GuestSummary{
		Unit: guestUnit(g.Network, k.ip), IP: k.ip, MAC: g.MAC, Hostname: g.Hostname, Default: g.Default, Lease: g.Seconds,
	}
	if g.Gateway.IsValid() {
		s.Gateway = g.Gateway.String()
	}
	return s
}

// known returns the guests by address, and what is known beside them.
func (d *Dialect) known() (beside Guests, guests []knownGuest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	beside = Guests{Generation: d.gen, Off: !d.Databags, DropDir: d.DropDir, Router: d.memory.router.CmdLine.name()}
	for _, n := range d.memory.router.networks() {
		beside.Networks = append(beside.Networks, NetworkSummary{n.serving(), n.Gateway.Masked()})
	}
	for _, ip := range d.memory.addresses() {
		if g := d.memory.guests[ip]; !g.Gone && !g.Held {
			guests = append(guests, knownGuest{ip, g})
		}
	}
	return beside, guests
}

// writeGuests writes Guests as JSON, a guest at a time: all at once they would be many times what the
// agent holds else.
func (d *Dialect) writeGuests(w io.Writer) error {
	beside, known := d.known()
	beside.Guests = []GuestSummary{}
	head, err := json.Marshal(beside)
	if err != nil {
		return err
	}
	b := bufio.NewWriter(w)
	b.Write(bytes.TrimSuffix(head, []byte("]}"))) // its last field is the list
	for i, k := range known {
		if i > 0 {
			b.WriteByte(',')
		}
		line, err := json.Marshal(struct {
			GuestSummary
			Rows json.RawMessage `json:"rows,omitempty"`
		}{k.summary(), k.guest.Rows})
		if err != nil {
			return err
		}
		b.Write(line)
	}
	b.WriteString("]}\n")
	return b.Flush()
}

func (d *Dialect) serveGuests(w http.ResponseWriter, r *http.Request) {
	if after, err := strconv.ParseUint(r.URL.Query().Get("after"), 10, 64); err == nil {
		_, changed := d.Waiter(after)
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = d.writeGuests(w) // whoever asked has gone
}

// Empty tells whether nothing is known at all.
func (g Guests) Empty() bool { return g.Router == "" && len(g.Networks) == 0 && len(g.Guests) == 0 }

// WriteDHCPEntries writes the databag dhcpentry.json.
func (g Guests) WriteDHCPEntries(w io.Writer) error {
	return writeBag(w, "dhcpentry", func(put func(netip.Addr, any) error) error {
		for _, s := range g.Guests {
			if s.MAC == "" {
				continue
			}
			err := put(s.IP, map[string]any{
				"type": types[DHCPEntry], "host_name": s.Hostname, "mac_address": s.MAC, "ipv4_address": s.IP.String(),
				"ipv6_duid": "00:03:00:01:" + s.MAC, "default_gateway": s.Gateway, "default_entry": s.Default,
				"remove": false, "lease_time": s.Lease,
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// WriteVMData writes the databag vmdata.json; read returns the user data of a unit, nil where it has
// none. No more than one of them is held at a time.
func (g Guests) WriteVMData(w io.Writer, read func(unit string) ([]byte, error)) error {
	return writeBag(w, "vmdata", func(put func(netip.Addr, any) error) error {
		for _, s := range g.Guests {
			if len(s.Rows) == 0 {
				continue
			}
			rows := slices.Clone(s.Rows)
			for i, r := range rows {
				if r[0] == nil || *r[0] != "userdata" {
					continue
				}
				data, err := read(s.Unit)
				if err != nil {
					return fmt.Errorf("user data of %s: %w", s.IP, err)
				}
				content := base64.StdEncoding.EncodeToString(data)
				rows[i][2] = &content // an empty text says that there is none at all
				if data != nil && len(data) == 0 {
					rows[i][2] = nil
				}
			}
			if err := put(s.IP, rows); err != nil {
				return err
			}
		}
		return nil
	})
}

// writeBag writes a databag entry by entry: one address after the other, in the order of the calls.
func writeBag(w io.Writer, id string, each func(put func(netip.Addr, any) error) error) error {
	if _, err := fmt.Fprintf(w, "{\n\"id\": %q", id); err != nil {
		return err
	}
	err := each(func(ip netip.Addr, v any) error {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		if err := e.Encode(v); err != nil {
			return err
		}
		_, err := fmt.Fprintf(w, ",\n%q: %s", ip, bytes.TrimSpace(b.Bytes()))
		return err
	})
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, "\n}\n")
	return err
}

// DHCPHosts is /etc/dhcphosts.txt, which the server's health check of DHCP reads.
func (g Guests) DHCPHosts() []byte {
	var b bytes.Buffer
	for _, s := range g.Guests {
		if s.MAC == "" {
			continue
		}
		lease := "infinite"
		if s.Lease > 0 {
			lease = strconv.FormatInt(s.Lease, 10)
		}
		tag := ""
		if !s.Default {
			tag = "set:" + strings.ReplaceAll(s.IP.String(), ".", "_") + ","
		}
		fmt.Fprintf(&b, "%s,%s%s,%s,%s\n", s.MAC, tag, s.IP, s.Hostname, lease)
	}
	return b.Bytes()
}

// Hosts is /etc/hosts, which dnsmasq answers from and the server's health check of DNS reads.
func (g Guests) Hosts() []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	if g.Router != "" {
		fmt.Fprintf(&b, "127.0.1.1\t%s\n", g.Router)
	}
	for _, n := range g.Networks {
		fmt.Fprintf(&b, "%s\t%s\n", n.Serving, strings.TrimSpace(g.Router+" data-server"))
	}
	for _, s := range g.Guests {
		if s.MAC != "" && s.Hostname != "" {
			fmt.Fprintf(&b, "%s\t%s\n", s.IP, s.Hostname)
		}
	}
	return b.Bytes()
}

// Leases is a file of dnsmasq's leases that ends those of VMs that are gone: a server that begins with
// it gives each address to the VM that has it now.
func (g Guests) Leases() []byte {
	var b bytes.Buffer
	for _, s := range g.Guests {
		if s.MAC != "" {
			fmt.Fprintf(&b, "0 %s %s %s *\n", s.MAC, s.IP, cmp.Or(s.Hostname, "*"))
		}
	}
	return b.Bytes()
}

// PasswordFile is the file of the password server that listens on serving; read returns the password
// that the guest of a unit has not taken yet, or nothing.
func (g Guests) PasswordFile(serving netip.Addr, read func(unit string) ([]byte, error)) ([]byte, error) {
	var b bytes.Buffer
	for _, s := range g.Guests {
		if !slices.ContainsFunc(g.Networks, func(n NetworkSummary) bool { return n.Serving == serving && n.Subnet.Contains(s.IP) }) {
			continue
		}
		password, err := read(s.Unit)
		if err != nil {
			return nil, fmt.Errorf("password of %s: %w", s.IP, err)
		}
		if password, _, _ := strings.Cut(string(password), "\n"); password != "" {
			fmt.Fprintf(&b, "%s=%s\n", s.IP, password)
		}
	}
	return b.Bytes(), nil
}
