package cloudstack

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
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
	Generation uint64         `json:"generation"`
	Router     string         `json:"router"`      // the router's own name
	DataServer []netip.Addr   `json:"data_server"` // the addresses that guests are served on
	Guests     []GuestSummary `json:"guests"`
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
	d.mu.Lock()
	defer d.mu.Unlock()
	out := Guests{Generation: d.gen, Router: d.memory.router.CmdLine["name"]}
	for _, n := range d.memory.router.networks() {
		out.DataServer = append(out.DataServer, n.serving())
	}
	for _, ip := range d.memory.addresses() {
		g := d.memory.guests[ip]
		if g.Gone || g.Held {
			continue
		}
		s := GuestSummary{
			Unit: guestUnit(g.Network, ip), IP: ip, MAC: g.MAC, Hostname: g.Hostname, Default: g.Default, Lease: g.Seconds, Rows: g.Rows,
		}
		if g.Gateway.IsValid() {
			s.Gateway = g.Gateway.String()
		}
		out.Guests = append(out.Guests, s)
	}
	return out
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
	answer(w, http.StatusOK, d.Guests())
}

// DHCPEntries is the databag dhcpentry.json.
func (g Guests) DHCPEntries() ([]byte, error) {
	bag := map[string]any{"id": "dhcpentry"}
	for _, s := range g.Guests {
		if s.MAC == "" {
			continue
		}
		bag[s.IP.String()] = map[string]any{
			"type": "dhcpentry", "host_name": s.Hostname, "mac_address": s.MAC, "ipv4_address": s.IP.String(),
			"ipv6_duid": "00:03:00:01:" + s.MAC, "default_gateway": s.Gateway, "default_entry": s.Default,
			"remove": false, "lease_time": s.Lease,
		}
	}
	return json.MarshalIndent(bag, "", "  ")
}

// VMData is the databag vmdata.json; read returns the user data of a unit, nil where it has none.
func (g Guests) VMData(read func(unit string) ([]byte, error)) ([]byte, error) {
	bag := map[string]any{"id": "vmdata"}
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
				return nil, fmt.Errorf("user data of %s: %w", s.IP, err)
			}
			content := base64.StdEncoding.EncodeToString(data)
			switch {
			case data == nil: // none at all, which an empty text says
				rows[i][2] = &content
			case len(data) == 0:
				rows[i][2] = nil
			default:
				rows[i][2] = &content
			}
		}
		bag[s.IP.String()] = rows
	}
	return json.MarshalIndent(bag, "", "  ")
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
	for _, a := range g.DataServer {
		fmt.Fprintf(&b, "%s\t%s\n", a, strings.TrimSpace(g.Router+" data-server"))
	}
	for _, s := range g.Guests {
		if s.MAC != "" && s.Hostname != "" {
			fmt.Fprintf(&b, "%s\t%s\n", s.IP, s.Hostname)
		}
	}
	return b.Bytes()
}
