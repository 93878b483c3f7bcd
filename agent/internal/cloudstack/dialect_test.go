package cloudstack

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vragent/agent/internal/desired"
	"vragent/agent/internal/drop"
)

const isolated = `cmd_line.json {"type":"cmdline","cmd_line":{"type":"router","name":"r-1-VM","eth0ip":"10.1.1.1","eth0mask":"255.255.255.0",` +
	`"eth2ip":"203.0.113.2","domain":"cs1.internal","dns1":"192.0.2.53","dns2":"10.1.1.1"}}`

func leaseFile(ip, mac string, more ...string) string {
	return fmt.Sprintf(`vm_dhcp_entry.json.x {"host_name":"web","mac_address":"02:00:00:00:00:%s","ipv4_address":"%s","default_gateway":"10.1.1.1","default_entry":true,"remove":false%s}`,
		mac, ip, strings.Join(more, ""))
}

func removeFile(ip, mac string) string {
	return strings.Replace(leaseFile(ip, mac), `"remove":false`, `"remove":true`, 1)
}

func dataFile(ip, id string) string {
	return fmt.Sprintf(`vm_metadata.json.x {"vm_ip_address":"%s","vm_metadata":[["userdata","user-data","%s"],["metadata","vm-id","%s"],["metadata","instance-id","%[3]s"]]}`,
		ip, map[string]string{"A": "YQ==", "B": "Yg=="}[id], id)
}

func passwordOf(ip, text string) string {
	return fmt.Sprintf(`vm_password.json.x {"ip_address":"%s","password":"%s","type":"vmpassword"}`, ip, text)
}

const (
	net0 = "10.1.1.0-24"
	ip0  = "10.1.1.50"
)

// TestAddressPassesOn is the promise to a VM that gets another one's address: it gets its own data
// at once and nothing of the other's, in whatever order its files come.
func TestAddressPassesOn(t *testing.T) {
	oldVM := []string{leaseFile(ip0, "0a"), dataFile(ip0, "A"), passwordOf(ip0, "old")}
	var (
		l, d, p    = leaseFile(ip0, "0b"), dataFile(ip0, "B"), passwordOf(ip0, "new")
		gone       = removeFile(ip0, "0a")
		allB, noPw = `0b B "b" new`, `0b B "b" -`
	)
	for _, test := range []struct {
		name  string
		files []string
		want  []string // after each file
	}{
		{"lease, data, password", []string{l, d, p}, []string{"0b - - -", noPw, allB}},
		{"lease, password, data", []string{l, p, d}, []string{"0b - - -", "0b - - new", allB}},
		{"data, lease, password", []string{d, l, p}, []string{`- B "b" -`, noPw, allB}},
		{"data, password, lease", []string{d, p, l}, []string{`- B "b" -`, `- B "b" new`, allB}},
		{"a password before both is the old VM's", []string{p, l, d}, []string{`0a A "a" new`, "0b - - -", noPw}},
		{"after a removal a password may come first", []string{gone, p, l, d}, []string{"none", "- - - new", "0b - - new", allB}},
		{"after a removal, data first", []string{gone, d, p, l}, []string{"none", `- B "b" -`, `- B "b" new`, allB}},
		{"a late removal of the old VM", []string{l, gone, d, p}, []string{"0b - - -", "0b - - -", noPw, allB}},
		{"a late removal between data and lease", []string{d, gone, l}, []string{`- B "b" -`, `- B "b" -`, noPw}},
		{"late data of the removed VM is not served", []string{gone, dataFile(ip0, "A"), l}, []string{"none", "none", "0b - - -"}},
		{"a VM that stops and starts", []string{gone, dataFile(ip0, "A"), leaseFile(ip0, "0a")}, []string{"none", "none", `0a A "a" -`}},
		{"the same again", oldVM, []string{`0a A "a" old`, `0a A "a" old`, `0a A "a" old`}},
		{"data of the same VM again", []string{dataFile(ip0, "A")}, []string{`0a A "a" old`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, restart := range []bool{false, true} {
				b := newBench(t)
				b.take(append([]string{isolated}, oldVM...)...)
				if got := b.guest(net0, ip0); got != `0a A "a" old` {
					t.Fatalf("the old VM is served as %s", got)
				}
				for i, f := range test.files {
					if restart {
						b.restart()
					}
					b.take(f)
					if got := b.guest(net0, ip0); got != test.want[i] {
						t.Errorf("restart %v: after %s: served as %s, want %s", restart, f, got, test.want[i])
					}
				}
				// All at once comes to the same.
				b = newBench(t)
				b.take(append([]string{isolated}, oldVM...)...)
				var all []File
				for _, f := range test.files {
					all = append(all, file(f))
				}
				if _, err := b.Apply(context.Background(), all); err != nil {
					t.Fatal(err)
				}
				if got, want := b.guest(net0, ip0), test.want[len(test.want)-1]; got != want {
					t.Errorf("in one batch: served as %s, want %s", got, want)
				}
			}
		})
	}
}

func TestMACMovesToAnotherAddress(t *testing.T) {
	b := newBench(t)
	b.take(isolated, leaseFile(ip0, "0a"), dataFile(ip0, "A"), leaseFile("10.1.1.51", "0a"))
	if got := b.guest(net0, ip0); got != "none" {
		t.Errorf("the old address is served as %s", got)
	}
	if got := b.guest(net0, "10.1.1.51"); got != "0a - - -" {
		t.Errorf("the new address is served as %s", got)
	}
	// Two VMs change places.
	b.take(leaseFile("10.1.1.60", "0b"), leaseFile("10.1.1.51", "0b"), leaseFile("10.1.1.60", "0a"))
	if got := b.guest(net0, "10.1.1.51") + ", " + b.guest(net0, "10.1.1.60"); got != "0b - - -, 0a - - -" {
		t.Errorf("after a swap: %s", got)
	}
}

func (b *bench) network(name string) *desired.Network {
	b.t.Helper()
	n := b.door.model.Network(name)
	if n == nil {
		b.t.Fatalf("no network %s; there are %v", name, slices.Sorted(keys(b.door.files)))
	}
	return n
}

func keys(m map[string]map[string][]byte) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func sample(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestNetworks(t *testing.T) {
	shared := `cmd_line.json {"cmd_line":{"type":"dhcpsrvr","name":"r-88-VM","eth0ip":"172.20.4.9","eth0mask":"255.255.252.0","gateway":"172.20.4.1","domain":"shared.example.net","dnssearchorder":"example.net,lab.example.net","dns1":"192.0.2.53","useextdns":"true"}}`
	vpc := `cmd_line.json {"cmd_line":{"type":"vpcrouter","redundant_router":"1","eth1ip":"203.0.113.7"}}`
	plain := strings.Replace(vpc, `"redundant_router":"1",`, "", 1)
	tier := `guest_network.json.u {"add":true,"mac_address":"02:01:00:db:00:2c","device":"eth2","router_guest_ip":"10.40.1.203","router_guest_netmask":"255.255.255.0","router_guest_gateway":"10.40.1.1","cidr":"24","dns":"192.0.2.53,198.51.100.53","domain_name":"vpc-blue.internal","mtu":1450,"type":"guestnetwork"}`
	unplug := strings.Replace(tier, `"add":true`, `"add":false`, 1)
	for _, test := range []struct {
		name, network string
		files         []string
		want          string // device gateway serving dns domain public
	}{
		{"isolated", net0, []string{isolated}, "eth0 10.1.1.1/24 10.1.1.1 [10.1.1.1 192.0.2.53] cs1.internal eth2"},
		{"isolated, redundant", net0, []string{strings.Replace(isolated, `"eth0ip":"10.1.1.1"`, `"eth0ip":"10.1.1.7","redundant_router":"1","guestgw":"10.1.1.1","guestcidrsize":"24"`, 1)},
			"eth0 10.1.1.1/24 10.1.1.1 [10.1.1.1 192.0.2.53] cs1.internal eth2"},
		{"public address on another device", net0, []string{isolated, `ip_associations.json {"ip_address":[{"public_ip":"203.0.113.2","source_nat":true,"add":true,"nic_dev_id":3,"nw_type":"Public"}]}`},
			"eth0 10.1.1.1/24 10.1.1.1 [10.1.1.1 192.0.2.53] cs1.internal eth3"},
		{"shared", "172.20.4.0-22", []string{shared}, "eth0 172.20.4.1/22 172.20.4.9 [192.0.2.53] shared.example.net "},
		{"tier of a redundant pair", "10.40.1.0-24", []string{vpc, tier}, "eth2 10.40.1.1/24 10.40.1.1 [10.40.1.1 192.0.2.53 198.51.100.53] vpc-blue.internal eth1"},
		{"tier before the command line", "10.40.1.0-24", []string{tier, vpc}, "eth2 10.40.1.1/24 10.40.1.1 [10.40.1.1 192.0.2.53 198.51.100.53] vpc-blue.internal eth1"},
		{"tier that another machine routes", "10.40.1.0-24", []string{plain, tier}, "eth2 10.40.1.1/24 10.40.1.203 [10.40.1.203 192.0.2.53 198.51.100.53] vpc-blue.internal eth1"},
		{"tier out and in again", "10.40.1.0-24", []string{vpc, tier, unplug, tier}, "eth2 10.40.1.1/24 10.40.1.1 [10.40.1.1 192.0.2.53 198.51.100.53] vpc-blue.internal eth1"},
		{"range with its gateway in dhcp.json", "172.20.8.0-24", []string{shared, `ip_aliases.json {"aliases":[null,{"revoke":false,"ip_address":"172.20.8.9","netmask":"255.255.255.0"}]}`,
			`dhcp.json {"whatever":[{"router_ip_address":"172.20.8.9","gateway":"172.20.8.1"}]}`}, "eth0 172.20.8.1/24 172.20.8.9 [192.0.2.53] shared.example.net "},
		{"range with its gateway from a guest", "172.20.8.0-24", []string{shared, `ip_aliases.json {"aliases":[{"revoke":false,"ip_address":"172.20.8.9","netmask":"255.255.255.0"}]}`,
			strings.Replace(leaseFile("172.20.8.30", "0c"), "10.1.1.1", "172.20.8.1", 1)}, "eth0 172.20.8.1/24 172.20.8.9 [192.0.2.53] shared.example.net "},
		{"range after its guest", "172.20.8.0-24", []string{shared, strings.Replace(leaseFile("172.20.8.30", "0c"), "10.1.1.1", "172.20.8.1", 1),
			`ip_aliases.json {"aliases":[{"revoke":false,"ip_address":"172.20.8.9","netmask":"255.255.255.0"}]}`}, "eth0 172.20.8.1/24 172.20.8.9 [192.0.2.53] shared.example.net "},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			for _, f := range test.files {
				b.take(f)
				b.restart()
			}
			n := b.network(test.network)
			got := fmt.Sprint(n.Interface, " ", n.Gateway, " ", n.Serving(), " ", n.DNS, " ", n.Domain, " ", n.PublicInterface)
			if got != test.want {
				t.Errorf("network = %s, want %s", got, test.want)
			}
			if len(n.VendorOptions) != 1 || n.VendorOptions[0].Class != "MSFT" {
				t.Errorf("vendor options = %v", n.VendorOptions)
			}
		})
	}

	t.Run("unplugged", func(t *testing.T) {
		b := newBench(t)
		b.take(vpc, tier, leaseFile("10.40.1.9", "0c"), strings.Replace(unplug, "00:2c", "00:2d", 1))
		b.network("10.40.1.0-24") // the removal was another NIC's
		b.take(unplug)
		if b.door.model.Network("10.40.1.0-24") != nil {
			t.Error("the network is still there")
		}
		b.take(tier)
		if got := b.guest("10.40.1.0-24", "10.40.1.9"); got != "0c - - -" {
			t.Errorf("its guest is served as %s", got)
		}
	})
}

func TestGuestWaitsForItsNetwork(t *testing.T) {
	b := newBench(t)
	if r := b.one(leaseFile(ip0, "0a")); r.State != Pending {
		t.Errorf("lease without a network: %+v, want pending", r)
	}
	b.take(dataFile(ip0, "A"), passwordOf(ip0, "pw"))
	b.restart()
	b.take(isolated)
	if got := b.guest(net0, ip0); got != `0a A "a" pw` {
		t.Errorf("served as %s", got)
	}
	if got := b.guest(unplaced, ip0); got != "none" {
		t.Errorf("it is left behind as %s", got)
	}
	// The same in one batch.
	b = newBench(t)
	if _, err := b.Apply(context.Background(), []File{file(leaseFile(ip0, "0a")), file(dataFile(ip0, "A")), file(isolated), file(passwordOf(ip0, "pw"))}); err != nil {
		t.Fatal(err)
	}
	if got := b.guest(net0, ip0) + ", " + b.guest(unplaced, ip0); got != `0a A "a" pw, none` {
		t.Errorf("in one batch: %s", got)
	}
}

func TestLeaseFields(t *testing.T) {
	nic := func(b *bench) desired.NIC {
		u, _ := drop.ParsePath("vms/" + net0 + "_" + ip0)
		view, _ := b.door.model.View(u)
		if view.Have == nil {
			t.Fatalf("no unit; faults %v", view.Faults)
		}
		return view.Have.VM.NICs[0]
	}
	b := newBench(t)
	b.take(isolated, leaseFile(ip0, "0a", `,"lease_time":3600,"unknown":{"a":[1]}`))
	if n := nic(b); n.LeaseTime.Seconds() != 3600 || !n.Default || len(n.Options) != 0 {
		t.Errorf("NIC = %+v", n)
	}
	b.take(strings.Replace(leaseFile(ip0, "0a", `,"lease_time":0`), `"default_entry":true`, `"default_entry":false`, 1))
	if n := nic(b); n.LeaseTime != 0 || n.Default {
		t.Errorf("NIC = %+v, want the network's lease time and no default", n)
	}
	b.take(strings.Replace(leaseFile(ip0, "0a"), `"default_gateway":"10.1.1.1"`, `"default_gateway":"10.1.1.254"`, 1))
	if got := nic(b).Options[3]; !slices.Equal(got, []byte{10, 1, 1, 254}) {
		t.Errorf("option 3 = %v", got)
	}
	if r := b.one(strings.Replace(leaseFile(ip0, "0a"), `"web"`, `"bad_name"`, 1)); r.State != Applied || len(r.Notes) != 1 {
		t.Errorf("an odd host name: %+v", r)
	}
}

// TestNameOfTheRouter: it becomes part of /etc/hosts, which must not get lines of somebody else's by it.
func TestNameOfTheRouter(t *testing.T) {
	for name, known := range map[string]bool{
		"r-1-VM": true, "r-1.example.net": true, `r-1-VM\n192.0.2.66 example.net`: false, "r 1": false, "r_1": false, "#": false,
	} {
		b := newBench(t)
		r := b.one(strings.Replace(isolated, "r-1-VM", name, 1))
		want := ""
		if known {
			want = name
		}
		if got := b.Guests().Router; r.State != Applied || len(r.Notes) > 0 == known || got != want {
			t.Errorf("%s: router %q, result %+v", name, got, r)
		}
		if hosts := string(b.Guests().Hosts()); strings.Contains(hosts, "192.0.2.66") || !strings.Contains(hosts, strings.TrimSpace(want+" data-server")+"\n") {
			t.Errorf("%s: /etc/hosts is\n%s", name, hosts)
		}
	}
}

func TestMetadataValues(t *testing.T) {
	b := newBench(t)
	rows := `["metadata","service-offering","Small \\u00e9dition"],["metadata","availability-zone","Z\u00fcrich"],` +
		`["metadata","public-keys",null],["metadata","cloud-identifier",""],["metadata","../../etc/passwd","x"],["metadata","a b","x"],` +
		`["metadata","x.*","x"],["metadata","user-data","x"],["metadata"," tier","front\n\u0007\ud83d\ude00\u0085"],["metadata","Key","1"],["metadata","key","2"],` +
		`["metadata","number",7],["password","vm_password","x"],["metadata","vm-id","A"],[null,"x","y"],[]`
	r := b.one(`vm_metadata.json {"vm_ip_address":"10.1.1.50","vm_metadata":[` + rows + `]}`)
	if r.State != Pending || len(r.Notes) != 6 {
		t.Errorf("result = %+v, want pending with 6 notes", r)
	}
	b.take(isolated)
	u, _ := drop.ParsePath("vms/" + net0 + "_" + ip0)
	view, _ := b.door.model.View(u)
	want := map[string]string{
		"service-offering": `Small \u00e9dition`, "availability-zone": "Zürich", "public-keys": "",
		"tier": "front\n\a😀\u0085", "key": "2", "number": "7", "vm-id": "A",
	}
	if diff := cmp.Diff(want, view.Have.VM.Meta); diff != "" {
		t.Errorf("metadata (-want +got):\n%s", diff)
	}
	// What the router's own scripts would be told of.
	for _, row := range b.Guests().Guests[0].Rows {
		if *row[0] != "metadata" || strings.Contains(*row[1], "/") {
			t.Errorf("row %q of folder %q is passed on", *row[1], *row[0])
		}
	}
}

// TestEveryKindOfFile has each of them alone and in an aggregated file, with a suffix and without, with
// fields that nobody knows and with nulls in the place of what may be missing.
func TestEveryKindOfFile(t *testing.T) {
	files := map[string]string{
		"cmd_line":        sample(t, "cmd_line.json"),
		"guest_network":   sample(t, "guest_network.json.1"),
		"ip_associations": sample(t, "ip_associations.json.1"),
		"ip_aliases":      `{"aliases":[{"revoke":false,"ip_address":"172.20.8.9","netmask":"255.255.255.0","count":1}],"type":"ipaliases"}`,
		"vm_dhcp_entry":   sample(t, "vm_dhcp_entry.json.1"),
		"vm_metadata":     sample(t, "vm_metadata.json.1"),
		"vm_password":     sample(t, "vm_password.json.1"),
		"dhcp":            `{"entries":[{"router_ip_address":"172.20.8.9","gateway":"172.20.8.1","netmask":"255.255.255.0","first_ip_of_subnet":"172.20.8.2"}],"type":"dhcpconfig"}`,
	}
	const uuid = ".0d5b1c1e-52c4-4b6d-9a40-0f7f3d6a1b11"
	for kind, content := range files {
		if k := Kind(kind); k.Ours() == k.Shared() {
			t.Errorf("%s is ours %v and shared %v", kind, k.Ours(), k.Shared())
		}
		content = strings.TrimSpace(strings.Join(strings.Fields(content), " "))
		odd := strings.Replace(content, "{", `{"unknown":{"a":[null,1]},"mtu":null,"dns":null,"domain_name":null,"lease_time":null,"delete_from_processed_cache":null,`, 1)
		odd = strings.NewReplacer(`[{`, `[null,{"unknown":[],`, `,"type"`, `,"kind"`).Replace(odd)
		for _, name := range []string{kind + ".json", kind + ".json" + uuid} {
			for what, text := range map[string]string{"as the server sends it": content, "with odd fields": odd} {
				b := newBench(t)
				if r := b.one(name + " " + text); r.State == Rejected {
					t.Errorf("%s %s: %+v", name, what, r)
				}
				alone := b.door.files
				b = newBench(t)
				dir := t.TempDir()
				drops(t, dir, "VR-1.cfg #\n<version>\n1.0\n</version>\n<file>\n/var/cache/cloud/"+name+"\n"+text+"\n</file>\n<script>\n/opt/cloud/bin/update_config.py "+name+"\n</script>\n")
				results, err := Intake{Taker: b.Dialect, Archive: Archive{Dir: dir}}.Take(context.Background(), []string{"VR-1.cfg"}, true)
				if err != nil || len(results) != 1 || results[0].State == Rejected {
					t.Errorf("%s %s, aggregated: %+v, %v", name, what, results, err)
				}
				if diff := cmp.Diff(alone, b.door.files); diff != "" {
					t.Errorf("%s %s: an aggregated file makes something else of it (-alone +aggregated):\n%s", name, what, diff)
				}
			}
		}
	}
}

func TestUserData(t *testing.T) {
	for _, test := range []struct{ name, json, want string }{
		{"text", `"aGVsbG8="`, "hello"},
		{"without padding", `"aGVsbG8"`, "hello"},
		{"broken into lines", `"aGVs\nbG8=\n"`, "hello"},
		{"binary", `"H4sIAP8="`, "\x1f\x8b\x08\x00\xff"},
		{"null is an empty file", `null`, ""},
		{"empty is none", `""`, "none"},
		{"behind its end", `"aGVsbG8=aGVsbG8="`, "hello"},
		{"padded in the middle", `"aGVs=bG8="`, "hello"},
		{"characters of no alphabet", `"a-G_V s.bG8"`, "hello"},
		{"no base64", `"a"`, "rejected"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			b.take(isolated)
			r := b.one(`vm_metadata.json {"vm_ip_address":"10.1.1.50","vm_metadata":[["userdata","user-data",` + test.json + `]]}`)
			got := "none"
			if data, ok := b.door.files["vms/"+net0+"_"+ip0][userFile]; ok {
				got = string(data)
			}
			if r.State == Rejected {
				got = "rejected"
			}
			if got != test.want {
				t.Errorf("user data = %q, want %q", got, test.want)
			}
		})
	}
}

func TestFilesThatCannotBeTakenIn(t *testing.T) {
	b := newBench(t)
	b.take(isolated, leaseFile(ip0, "0a"), dataFile(ip0, "A"))
	whole := dataFile(ip0, "B")
	for _, f := range []string{
		"vm_metadata.json.u ", "vm_metadata.json.u " + strings.TrimPrefix(whole[:len(whole)-9], "vm_metadata.json.x "),
		"vm_metadata.json.u null", "vm_metadata.json.u []", `vm_metadata.json.u {"type":"dhcpentry"}`,
		`vm_metadata.json.u {"vm_ip_address":"10.1.1.x"}`, `vm_dhcp_entry.json.u {"ipv4_address":"10.1.1.50"}`,
		`firewall_rules.json.u {}`, `vm_dhcp_entry.json {"mac_address":"02:00:00:00:00:0d","ipv4_address":"10.1.1.1"}`,
		passwordOf(ip0, "saved_password"), `guest_network.json {"device":"eth2","router_guest_ip":"10.1.2.1","cidr":"44"}`,
	} {
		if r := b.one(f); r.State != Rejected || r.Reason == "" {
			t.Errorf("%s: %+v, want rejected with a reason", f, r)
		}
		if got := b.guest(net0, ip0); got != `0a A "a" -` {
			t.Fatalf("after %s: served as %s", f, got)
		}
	}
	b.door.full = true
	if r, err := b.Apply(context.Background(), []File{file(leaseFile(ip0, "0b"))}); err == nil {
		t.Errorf("with a full disk: %+v, want an error", r)
	}
	b.door.full = false
	b.take(leaseFile(ip0, "0b"))
	if got := b.guest(net0, ip0); got != "0b - - -" {
		t.Errorf("the server's second try: served as %s", got)
	}
}

func TestOneFaultStopsNoOtherFile(t *testing.T) {
	b := newBench(t)
	b.take(isolated)
	taken := Change{Unit: "vms/other", Files: map[string][]byte{vmFile: []byte("nics: [{network: 10.1.1.0-24, ipv4: 10.1.1.51}]")}}
	if err := b.door.Put(context.Background(), []Change{taken}); err != nil {
		t.Fatal(err)
	}
	results, err := b.Apply(context.Background(), []File{
		file(leaseFile(ip0, "0a")), file("vm_metadata.json torn"), file(leaseFile("10.1.1.51", "0b")), file(dataFile(ip0, "A")),
	})
	if err != nil {
		t.Fatal(err)
	}
	var states []State
	for _, r := range results {
		states = append(states, r.State)
	}
	if want := []State{Applied, Rejected, Rejected, Applied}; !slices.Equal(states, want) {
		t.Errorf("states = %v, want %v (%+v)", states, want, results)
	}
	if got := b.guest(net0, ip0); got != `0a A "a" -` {
		t.Errorf("served as %s", got)
	}

	// Nor does it make those beside it slow.
	many := []File{file(leaseFile("10.1.1.51", "0b"))}
	for i := range 200 {
		many = append(many, file(strings.Replace(leaseFile(fmt.Sprintf("10.1.1.%d", 53+i), "00"), "00:00:00:00", fmt.Sprintf("00:00:01:%02x", i), 1)))
	}
	puts := b.door.puts
	results, err = b.Apply(context.Background(), many)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range results {
		if (r.State == Rejected) != (i == 0) {
			t.Errorf("file %d: %+v", i, r)
		}
	}
	if got := b.door.puts - puts; got > 8 {
		t.Errorf("%d writes for 200 files beside one that is rejected", got)
	}
}

// vm returns what is in force of a guest.
func (b *bench) vm(network, ip string) *desired.VM {
	b.t.Helper()
	u, _ := drop.ParsePath("vms/" + network + "_" + ip)
	view, ok := b.door.model.View(u)
	if !ok || view.Have == nil {
		b.t.Fatalf("%s is not in force", u.Path())
	}
	return view.Have.VM
}

func TestServersSamples(t *testing.T) {
	b := newBench(t)
	for _, name := range []string{"cmd_line.json", "vm_dhcp_entry.json.1", "vm_dhcp_entry.json.2", "vm_metadata.json.1", "vm_metadata.json.2", "vm_password.json.1", "ip_associations.json.1"} {
		b.take(name + " " + sample(t, name))
		b.restart()
	}
	n := b.network(net0)
	if n.PublicIPv4.String() != "203.0.113.24" || n.PublicInterface != "eth2" || n.Boot == nil || n.NextServer.String() != "10.1.1.1" {
		t.Errorf("network = %+v", n)
	}
	web, db := b.vm(net0, "10.1.1.50"), b.vm(net0, "10.1.1.51")
	if web.Hostname != "web-01" || web.Password != "Xk7&=%+q$z" || web.Meta["tier"] != "frontend" || !strings.Contains(web.Meta["public-keys"], "\nssh-rsa") {
		t.Errorf("web-01 = %+v", web)
	}
	if _, known := db.Meta["hypervisor-host-name"]; known || db.NICs[0].Default || db.Meta["service-offering"] != `Small \u00e9dition` || db.Meta["cloud-domain"] != "ROOT" {
		t.Errorf("db-01 = %+v", db)
	}
	if data, ok := b.door.files["vms/"+net0+"_10.1.1.51"][userFile]; !ok || len(data) > 0 {
		t.Errorf("user data that is null is %q, %v; want an empty file", data, ok)
	}
	if data := b.door.files["vms/"+net0+"_10.1.1.50"][userFile]; !bytes.HasPrefix(data, []byte("\x1f\x8b")) {
		t.Errorf("compressed user data is %q", data)
	}
	b.take("vm_dhcp_entry.json.3 " + sample(t, "vm_dhcp_entry.json.3"))
	if got := b.guest(net0, "10.1.1.50"); got != "none" {
		t.Errorf("the removed VM is served as %s", got)
	}

	vpc := newBench(t)
	vpc.take("cmd_line.json "+sample(t, "cmd_line.json.vpc"), "guest_network.json.1 "+sample(t, "guest_network.json.1"))
	if n := vpc.network("10.40.1.0-24"); n.Serving().String() != "10.40.1.1" || n.Interface != "eth2" || n.MTU != 1450 || n.PublicInterface != "eth1" || n.Boot != nil {
		t.Errorf("tier of a redundant pair = %+v", n)
	}
	shared := newBench(t)
	shared.take("cmd_line.json " + sample(t, "cmd_line.json.shared"))
	if n := shared.network("172.20.4.0-22"); n.Serving().String() != "172.20.4.9" || n.Gateway.String() != "172.20.4.1/22" || len(n.Search) != 2 {
		t.Errorf("shared network = %+v", n)
	}
}

func TestAggregatedSample(t *testing.T) {
	const name = "VR-2f6a4c1e-8b7d-4e0f-9c3a-5d1b7e9f0a09.cfg"
	b := newBench(t)
	b.take(isolated)
	dir := t.TempDir()
	drops(t, dir, name+" "+sample(t, name))
	results, err := Intake{Taker: b.Dialect, Archive: Archive{Dir: dir}}.Take(context.Background(), []string{name}, true)
	if err != nil || len(results) != 2 || results[0].State != Applied || results[1].State != Applied {
		t.Fatalf("Take() = %+v, %v", results, err)
	}
	if web, db := b.vm(net0, "10.1.1.50"), b.vm(net0, "10.1.1.51"); web.Hostname != "web-01" || db.Meta["local-hostname"] != "db-01" {
		t.Errorf("web-01 = %+v, db-01 = %+v", web, db)
	}
}

// TestPublicAddress pins which device and which of its addresses guests are told of: the one that
// the world sees them with, wherever the NIC is by now.
func TestPublicAddress(t *testing.T) {
	nic := func(name, mac string) Link { return Link{Name: name, MAC: mac, MTU: 1500} }
	const file = `ip_associations.json {"ip_address":[{"public_ip":"203.0.113.20","source_nat":false,"add":true,"nic_dev_id":2,"nw_type":"Public"},` +
		`{"public_ip":"203.0.113.24","source_nat":true,"add":true,"vif_mac_address":"1E:00:63:00:04:b5","nic_dev_id":2,"nw_type":"Public"}]}`
	for _, test := range []struct {
		name  string
		links []Link
		files []string
		want  string
	}{
		{"nothing is said of it", nil, nil, "eth2 invalid IP"},
		{"no NIC has the MAC", []Link{nic("eth2", "02:00:00:00:00:02")}, []string{file}, "eth2 203.0.113.24"},
		{"the MAC is that of another NIC", []Link{nic("br0", "1e:00:63:00:04:b5"), nic("eth3", "1e:00:63:00:04:b5")}, []string{file}, "eth3 203.0.113.24"},
		{"the address goes", nil, []string{file, strings.ReplaceAll(file, `"add":true`, `"add":false`)}, "eth2 invalid IP"},
		{"another becomes the source", nil, []string{file, strings.ReplaceAll(strings.ReplaceAll(file, `"source_nat":true`, `"source_nat":0`), `"source_nat":false`, `"source_nat":1`)}, "eth2 203.0.113.20"},
		{"it belongs to a private gateway", nil, []string{strings.ReplaceAll(file, `"add"`, `"is_private_gateway":true,"add"`)}, "eth2 invalid IP"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			b.links = test.links
			for _, f := range append([]string{isolated}, test.files...) {
				b.take(f)
				b.restart()
			}
			if n := b.network(net0); fmt.Sprint(n.PublicInterface, " ", n.PublicIPv4) != test.want {
				t.Errorf("public interface and address = %s %s, want %s", n.PublicInterface, n.PublicIPv4, test.want)
			}
		})
	}
}

func TestGuestsAreToldTheMTUOfTheirLink(t *testing.T) {
	b := newBench(t)
	b.links = []Link{{Name: "eth0", MTU: 1450}, {Name: "eth1", MTU: 9000}, {Name: "eth2", MTU: 1500}}
	b.take(isolated)
	if n := b.network(net0); n.MTU != 1450 {
		t.Errorf("MTU = %d, want 1450", n.MTU)
	}
	b.links[0].MTU = 1500
	b.take(isolated)
	if n := b.network(net0); n.MTU != 0 {
		t.Errorf("MTU = %d, want none", n.MTU)
	}
}

func TestTierMovesToAnotherDevice(t *testing.T) {
	tier := func(device, mac string) string {
		return `guest_network.json.u {"add":true,"mac_address":"` + mac + `","device":"` + device + `","router_guest_ip":"10.40.1.1","router_guest_netmask":"255.255.255.0","type":"guestnetwork"}`
	}
	b := newBench(t)
	b.take(tier("eth2", "02:00:00:00:00:2c"), leaseFile("10.40.1.9", "0c"), tier("eth3", "02:00:00:00:00:2d"))
	if n := b.network("10.40.1.0-24"); n.Interface != "eth3" {
		t.Errorf("the tier is on %s, want eth3", n.Interface)
	}
	// What unplugs the NIC before came late.
	b.take(strings.Replace(tier("eth2", "02:00:00:00:00:2c"), `"add":true`, `"add":false`, 1))
	if got := b.guest("10.40.1.0-24", "10.40.1.9"); got != "0c - - -" {
		t.Errorf("its guest is served as %s", got)
	}
}

func TestRangeWaitsForItsGateway(t *testing.T) {
	shared := "cmd_line.json " + sample(t, "cmd_line.json.shared")
	const alias = `ip_aliases.json {"aliases":[{"revoke":false,"ip_address":"172.20.8.9","netmask":"255.255.255.0","count":1}],"type":"ipaliases"}`
	guest := strings.Replace(leaseFile("172.20.8.30", "0c"), `"10.1.1.1"`, `"172.20.9.1"`, 1) // it names one outside
	b := newBench(t)
	b.take(shared)
	for _, f := range []string{alias, guest} {
		if r := b.one(f); r.State != Pending || r.Reason == "" {
			t.Errorf("%s: %+v, want pending and why", f, r)
		}
	}
	b.take(strings.Replace(guest, "172.20.9.1", "172.20.8.254", 1))
	if n := b.network("172.20.8.0-24"); n.Gateway.String() != "172.20.8.254/24" || n.Serving().String() != "172.20.8.9" {
		t.Errorf("network = %+v, want the guest's gateway", n)
	}
	// The server's own word counts more than what a guest made us think.
	b.take(`dhcp.json {"entries":[{"router_ip_address":"172.20.8.9","gateway":"172.20.8.1","netmask":"255.255.255.0"}],"type":"dhcpconfig"}`)
	if n := b.network("172.20.8.0-24"); n.Gateway.String() != "172.20.8.1/24" {
		t.Errorf("gateway = %s, want that of dhcp.json", n.Gateway)
	}
	if got := b.guest("172.20.8.0-24", "172.20.8.30"); got != "0c - - -" {
		t.Errorf("its guest is served as %s", got)
	}
	b.take(strings.Replace(alias, `"revoke":false`, `"revoke":true`, 1))
	if b.door.model.Network("172.20.8.0-24") != nil {
		t.Error("the range is still served after it was revoked")
	}
}

// TestTakenPasswordEndsWithItsVM: the record that a guest has its password is the old VM's, and a new
// one may be given the same text.
func TestTakenPasswordEndsWithItsVM(t *testing.T) {
	const unit = "vms/" + net0 + "_" + ip0
	for _, test := range []struct {
		name  string
		files []string
		keeps bool
	}{
		{"another MAC", []string{leaseFile(ip0, "0b")}, false},
		{"another id", []string{dataFile(ip0, "B")}, false},
		{"removed", []string{removeFile(ip0, "0a")}, false},
		{"the same VM again", []string{leaseFile(ip0, "0a"), dataFile(ip0, "A"), passwordOf(ip0, "old")}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			b.take(isolated, leaseFile(ip0, "0a"), dataFile(ip0, "A"), passwordOf(ip0, "old"))
			b.door.taken[unit] = "old"
			b.take(test.files...)
			if _, kept := b.door.taken[unit]; kept != test.keeps {
				t.Errorf("the record is kept: %v, want %v", kept, test.keeps)
			}
		})
	}
}

func TestAggregated(t *testing.T) {
	items, err := Aggregated([]byte("#Apache\n<version>\n1.0\n</version>\n<file>\n/c/vm_dhcp_entry.json.u\n  {\"a\":  \"*\"}  \n</file>\n<script>\n/opt/cloud/bin/update_config.py vm_dhcp_entry.json.u false\n</script>\n" +
		"<script>\n/opt/cloud/bin/ipassoc.sh -a 'x y'\n</script>\n<file>\n/c/torn\n{"))
	if err == nil || len(items) != 3 {
		t.Fatalf("Aggregated() = %+v, %v, want three items and that the file breaks off", items, err)
	}
	if items[0].Path != "/c/vm_dhcp_entry.json.u" || string(items[0].Data) != "{\"a\":  \"*\"}\n" {
		t.Errorf("file = %+v", items[0])
	}
	if args, ok := items[1].UpdateConfig(); !ok || !slices.Equal(args, []string{"vm_dhcp_entry.json.u", "false"}) {
		t.Errorf("UpdateConfig() = %v, %v", args, ok)
	}
	if args, ok := items[2].UpdateConfig(); ok {
		t.Errorf("UpdateConfig() of another script = %v", args)
	}
}

func FuzzApply(f *testing.F) {
	for _, s := range []string{isolated, leaseFile(ip0, "0a"), dataFile(ip0, "A"), passwordOf(ip0, "x"),
		`guest_network.json {"device":"eth2","router_guest_ip":"10.1.2.1","cidr":24}`, `ip_aliases.json {"aliases":[{"ip_address":"10.9.0.1","netmask":"24"}]}`,
		`ip_associations.json {"ip_address":[{"public_ip":"10.8.0.1","nw_type":"guest","netmask":"16","gateway":"10.8.0.2"}]}`, `dhcp.json {"x":[{}]}`} {
		name, data, _ := strings.Cut(s, " ")
		f.Add(name, []byte(data))
	}
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		b := newBench(t)
		b.take(isolated, leaseFile(ip0, "0a"), dataFile(ip0, "A"))
		// Whatever the file says, the units that are in force parse, and a restart remembers the same.
		for range 2 {
			if _, err := b.Apply(t.Context(), []File{{Name: name, Data: data}}); err != nil {
				t.Fatal(err)
			}
			for unit, files := range b.door.files {
				if c := parse(unit, files); len(c.Faults) > 0 {
					t.Fatalf("%s: %v", unit, c.Faults)
				}
			}
		}
		before := b.Guests()
		b.restart()
		after := b.Guests()
		before.Generation, after.Generation = 0, 0
		if diff := cmp.Diff(before, after, cmp.Comparer(func(a, b interface{ String() string }) bool { return a.String() == b.String() })); diff != "" {
			t.Fatalf("after a restart:\n%s", diff)
		}
	})
}

func FuzzAggregated(f *testing.F) {
	f.Add([]byte("<file>\nx\n{}\n</file>\n<script>\nupdate_config.py x\n</script>\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		items, _ := Aggregated(data)
		for _, i := range items {
			i.UpdateConfig()
		}
	})
}
