package cloudstack

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// isolatedBags are the databags of an isolated network's router, with a VM, one that was removed,
// one of which only metadata was left behind, and a VM of a network without DHCP.
func isolatedBags() Databags {
	return Databags{
		CmdLine: []byte(`{"id":"cmdline","config":{"type":"router","name":"r-1-VM","eth0ip":"10.1.1.1","eth0mask":"255.255.255.0","redundant_router":"false","domain":"cs1.internal"}}`),
		IPs: []byte(`{"id":"ips","eth0":[{"public_ip":"10.1.1.1","netmask":"255.255.255.0","nw_type":"guest","add":true,"gateway":null,"nic_dev_id":"0"}],
			"eth1":[{"public_ip":"169.254.1.2","size":"16","nw_type":"control","add":true}],
			"eth2":[{"public_ip":"203.0.113.9","netmask":"255.255.255.0","nw_type":"public","add":false,"source_nat":false},
				{"public_ip":"203.0.113.2","netmask":"255.255.255.0","nw_type":"public","add":true,"source_nat":true}]}`),
		DHCPEntry: []byte(`{"id":"dhcpentry",
			"10.1.1.50":{"host_name":"web","mac_address":"02:00:00:00:00:0a","ipv4_address":"10.1.1.50","default_gateway":"10.1.1.1","default_entry":true,"remove":false,"type":"dhcpentry"},
			"10.1.1.51":{"host_name":"old","mac_address":"02:00:00:00:00:0b","ipv4_address":"10.1.1.51","default_gateway":"10.1.1.1","default_entry":true,"remove":true,"type":"dhcpentry"}}`),
		VMData: []byte(`{"id":"vmdata",
			"10.1.1.50":[["userdata","user-data","YQ=="],["metadata","vm-id","A"],["metadata","public-keys",null]],
			"10.1.1.51":[["userdata","user-data","Yg=="],["metadata","vm-id","B"]],
			"10.1.1.60":[["metadata","vm-id","C"]]}`),
		Passwords: [][]byte{[]byte("10.1.1.50=s3=cret\n10.1.1.51=old\n10.1.1.6")},
	}
}

func (b *bench) takeOver(bags Databags) []File {
	b.t.Helper()
	files, err := bags.Files()
	if err != nil {
		b.t.Fatal(err)
	}
	results, err := b.Apply(context.Background(), files)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, r := range results {
		if r.State == Rejected {
			b.t.Errorf("%+v", r)
		}
	}
	return files
}

func TestTakeOverKnowsWhatTheDatabagsSay(t *testing.T) {
	b := newBench(t)
	files := b.takeOver(isolatedBags())
	for ip, want := range map[string]string{
		ip0: `0a A "a" s3=cret`, "10.1.1.51": "none", "10.1.1.60": `- C - -`,
	} {
		if got := b.guest(net0, ip); got != want {
			t.Errorf("%s is served as %s, want %s", ip, got, want)
		}
	}
	if got := string(b.door.files["networks/"+net0+".yaml"][net0+".yaml"]); !strings.Contains(got, "cs1.internal") {
		t.Errorf("the network is\n%s", got)
	}
	// Once more, as after an installation that failed later on.
	first := b.Guests().Guests
	b.takeOver(isolatedBags())
	if diff := cmp.Diff(first, b.Guests().Guests, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("the second time it is something else:\n%s", diff)
	}
	if again, err := Since(files, files); err != nil || len(again) != 0 {
		t.Errorf("Since() of the same = %v, %v", again, err)
	}
}

func TestWhatCameInBetweenIsTakenOverToo(t *testing.T) {
	b := newBench(t)
	before := b.takeOver(isolatedBags())
	later := isolatedBags()
	later.DHCPEntry = []byte(`{"10.1.1.70":{"host_name":"new","mac_address":"02:00:00:00:00:0d","ipv4_address":"10.1.1.70","remove":false},
		"10.1.1.50":{"host_name":"web","mac_address":"02:00:00:00:00:0a","ipv4_address":"10.1.1.50","remove":true},
		"10.1.1.51":{"remove":true}}`)
	files, err := later.Files()
	if err != nil {
		t.Fatal(err)
	}
	since, err := Since(before, files)
	if err != nil || len(since) != 2 {
		t.Fatalf("Since() gives %d files, %v; want a removal and a VM", len(since), err)
	}
	if _, err := b.Apply(context.Background(), since); err != nil {
		t.Fatal(err)
	}
	if got := b.guest(net0, ip0) + ", " + b.guest(net0, "10.1.1.70"); got != "none, 0d - - -" {
		t.Errorf("served as %s", got)
	}
}

func TestTiersAreTakenOver(t *testing.T) {
	b := newBench(t)
	b.takeOver(Databags{
		CmdLine: []byte(`{"config":{"type":"vpcrouter","name":"r-2-VM","eth1ip":"203.0.113.7"}}`),
		GuestNetwork: []byte(`{"id":"guestnetwork","eth3":[],"eth2":[{"router_guest_ip":"10.40.1.1","router_guest_gateway":"10.40.1.1","cidr":"24","domain_name":"vpc.internal","dns":"192.0.2.53"},
			{"router_guest_ip":"10.40.9.1","cidr":"24"}]}`),
		DHCPEntry: []byte(`{"10.40.1.9":{"host_name":"t","mac_address":"02:00:00:00:00:0e","remove":false,"default_gateway":"10.40.1.1"}}`),
	})
	if got := b.guest("10.40.1.0-24", "10.40.1.9"); got != "0e - - -" {
		t.Errorf("served as %s", got)
	}
	if n := b.Guests().Networks; len(n) != 1 || n[0].Subnet.String() != "10.40.1.0/24" {
		t.Errorf("networks: %v", n)
	}
}

func TestBrokenDatabagIsNamed(t *testing.T) {
	for _, test := range []struct {
		bags Databags
		want string
	}{
		{Databags{DHCPEntry: []byte(`{"id":"dhcpen`)}, "databag dhcpentry.json: unexpected EOF"},
		{Databags{VMData: []byte(`{"10.1.1.5":3}`)}, `databag vmdata.json: json: cannot unmarshal number into Go value of type [][]interface {} in "10.1.1.5"`},
		{Databags{DHCPEntry: []byte(`{"10.1.1.5":{}}`)}, "databag dhcpentry.json has guests, but neither"},
		{Databags{CmdLine: []byte(`[]`)}, "databag cmdline.json: json: cannot unmarshal array"},
	} {
		if _, err := test.bags.Files(); err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("Files() = %v, want %s", err, test.want)
		}
	}
}

// TestWhatIsKeptCanBeTakenOver writes the files of the router's own scripts, and begins anew from them.
func TestWhatIsKeptCanBeTakenOver(t *testing.T) {
	b := newBench(t)
	b.takeOver(isolatedBags())
	bags, cache := t.TempDir(), t.TempDir()
	g := b.Guests()
	read := func(file string) func(string) ([]byte, error) {
		return func(unit string) ([]byte, error) { return b.door.files[unit][file], nil }
	}
	var entries, data bytes.Buffer
	if err := g.WriteDHCPEntries(&entries); err != nil {
		t.Fatal(err)
	}
	if err := g.WriteVMData(&data, read(userFile)); err != nil {
		t.Fatal(err)
	}
	passwords, err := g.PasswordFile(g.Networks[0].Serving, read(passwordFile))
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string][]byte{
		bags + "/cmdline.json": isolatedBags().CmdLine, bags + "/dhcpentry.json": entries.Bytes(), bags + "/vmdata.json": data.Bytes(),
		cache + "/passwords-10.1.1.1": passwords,
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again, err := ReadDatabags(bags, cache)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Leave(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := b.guest(net0, ip0); got != "none" || len(b.door.files) != 0 || len(b.store) != 0 || !b.Guests().Empty() {
		t.Errorf("after Leave() it is served as %s; left are %v, %v", got, b.door.files, b.store)
	}
	b.restart()
	b.takeOver(again)
	if got := b.guest(net0, ip0); got != `0a A "a" s3=cret` {
		t.Errorf("served as %s", got)
	}
	if got, want := string(g.Leases()), "0 02:00:00:00:00:0a 10.1.1.50 web *\n"; got != want {
		t.Errorf("Leases() = %q, want %q", got, want)
	}
	if _, err := ReadDatabags(filepath.Join(bags, "none"), cache); err != nil {
		t.Errorf("without databags: %v", err)
	}
}

func TestLeaveThatFailsForgetsNothing(t *testing.T) {
	b := newBench(t)
	b.takeOver(isolatedBags())
	kept := len(b.store)
	b.door.full = true
	if err := b.Leave(context.Background()); err == nil || len(b.store) != kept || b.Guests().Empty() {
		t.Errorf("Leave() = %v; %d of %d entries are left", err, len(b.store), kept)
	}
	b.door.full = false
	for range 2 {
		if err := b.Leave(context.Background()); err != nil || len(b.store) != 0 {
			t.Errorf("Leave() = %v; left are %v", err, b.store)
		}
	}
}

func TestClientHearsOfChanges(t *testing.T) {
	b := newBench(t)
	b.DropDir = "/drop"
	client := Dial(listen(t, b.Dialect))
	defer client.Close()
	ctx := context.Background()
	first, err := client.Guests(ctx, 0)
	if err != nil || !first.Empty() || !first.Off || first.DropDir != "/drop" {
		t.Fatalf("Guests() = %+v, %v", first, err)
	}
	type answer struct {
		guests Guests
		err    error
	}
	next := make(chan answer)
	go func() {
		g, err := client.Guests(ctx, first.Generation)
		next <- answer{g, err}
	}()
	b.takeOver(isolatedBags())
	got := <-next
	// It hears of the first change of several, or of all.
	for got.err == nil && len(got.guests.Guests) == 0 {
		got.guests, got.err = client.Guests(ctx, got.guests.Generation)
	}
	if got.err != nil || got.guests.Router != "r-1-VM" || got.guests.Guests[0].MAC != "02:00:00:00:00:0a" || len(got.guests.Guests[0].Rows) != 3 {
		t.Errorf("Guests() = %+v, %v", got.guests, got.err)
	}
	if err := client.Leave(ctx); err != nil || !b.Guests().Empty() {
		t.Errorf("Leave() = %v", err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := client.Guests(ended, b.Guests().Generation); err == nil {
		t.Error("Guests() does not end with its context")
	}
}

func FuzzDatabags(f *testing.F) {
	b := isolatedBags()
	f.Add(b.CmdLine, b.IPs, b.DHCPEntry, b.VMData, b.Passwords[0])
	f.Fuzz(func(t *testing.T, cmdline, ips, entries, data, passwords []byte) {
		files, err := Databags{CmdLine: cmdline, GuestNetwork: ips, IPs: ips, DHCPEntry: entries, VMData: data, Passwords: [][]byte{passwords}}.Files()
		if err != nil {
			return
		}
		for _, file := range files {
			if k := KindOf(file.Name); !k.Ours() && !k.Shared() {
				t.Errorf("a file of kind %q", k)
			}
			_, _ = Parse(file.Name, file.Data)
		}
		if again, err := Since(files, files); err != nil || len(again) > 0 {
			t.Errorf("Since() = %v, %v", again, err)
		}
	})
}
