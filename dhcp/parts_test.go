package dhcp

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

func TestParseMAC(t *testing.T) {
	for _, text := range []string{"02:00:4c:5f:00:01", "02-00-4C-5F-00-01", "0200.4c5f.0001"} {
		if got, err := ParseMAC(text); err != nil || got != web {
			t.Errorf("ParseMAC(%q) = %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "02:00:4c:5f:00", "02:00:4c:5f:00:0g", "02:00-4c:5f:00:01", "01:00:5e:00:00:01",
		"ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "2:0:4c:5f:0:1", "02004c5f0001", "020:0.4c5f.001"} {
		if got, err := ParseMAC(text); err == nil {
			t.Errorf("ParseMAC(%q) = %v", text, got)
		}
	}
}

func TestParseOption(t *testing.T) {
	good := map[string]struct {
		code uint8
		text string
		want []byte
	}{
		"addresses":      {6, "10.1.1.1, 10.1.1.2", []byte{10, 1, 1, 1, 10, 1, 1, 2}},
		"mtu":            {26, "1450", []byte{5, 170}},
		"flag":           {19, "yes", []byte{1}},
		"time offset":    {2, "-3600", []byte{255, 255, 241, 240}},
		"plateau table":  {25, "68, 1500", []byte{0, 68, 5, 220}},
		"routes":         {121, "10.8.0.0/13 via 10.1.1.9", []byte{13, 10, 8, 10, 1, 1, 9}},
		"domain":         {15, "cs1.internal.", []byte("cs1.internal")},
		"search":         {119, "a.b", []byte{1, 'a', 1, 'b', 0}},
		"sip names":      {120, "a.b", []byte{0, 1, 'a', 1, 'b', 0}},
		"sip addresses":  {120, "10.1.1.1", []byte{1, 10, 1, 1, 1}},
		"portal":         {114, "https://10.1.1.1/x", []byte("https://10.1.1.1/x")},
		"tftp server":    {66, "10.1.1.9", []byte("10.1.1.9")},
		"v6-only":        {108, "300", []byte{0, 0, 1, 44}},
		"unknown: bytes": {224, "any", []byte("any")},
	}
	for name, test := range good {
		if got, err := ParseOption(test.code, test.text); err != nil || !cmp.Equal(got, test.want) {
			t.Errorf("%s: ParseOption(%d, %q) = %v, %v; want %v", name, test.code, test.text, got, err, test.want)
		}
	}
	bad := map[string]struct {
		code uint8
		text string
		says string
	}{
		"IPv6":              {6, "2001:db8::1", "no IPv4 address"},
		"too small":         {26, "60", "from 68 to 65535"},
		"node type":         {46, "3", "1, 2, 4 or 8"},
		"half a route":      {121, "10.8.0.0/16", "has no gateway"},
		"relative URL":      {114, "/portal", "no URL"},
		"bad name":          {15, "a..b", "no domain name"},
		"empty":             {66, "", "is empty"},
		"the protocol's":    {53, "1", "belongs to the protocol"},
		"the network's":     {1, "255.0.0.0", "follows from the network"},
		"the packet format": {255, "x", "packet format"},
		"too long":          {224, strings.Repeat("x", 2000), "at most 1024"},
	}
	for name, test := range bad {
		if got, err := ParseOption(test.code, test.text); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: ParseOption(%d, %q) = %v, %v; want an error that says %q", name, test.code, test.text, got, err, test.says)
		}
	}
	for code := range 256 {
		refused := code <= 1 || code == 28 || code >= 50 && code <= 59 || code == 61 || code == 82 || code == 255
		if _, err := ParseOptionHex(uint8(code), "0a:01"); (err != nil) != refused {
			t.Errorf("ParseOptionHex(%d) error = %v", code, err)
		}
	}
	for _, text := range []string{"", "0", "zz"} {
		if _, err := ParseOptionHex(43, text); err == nil {
			t.Errorf("ParseOptionHex(43, %q) is accepted", text)
		}
	}
}

func TestSearchListReadsAsTheLibraryReadsIt(t *testing.T) {
	names := []string{"cs1.internal", "apps.cs1.internal", "Internal", "example.org"}
	value, err := EncodeSearch(names)
	if err != nil {
		t.Fatal(err)
	}
	labels, err := rfc1035label.FromBytes(value)
	if err != nil {
		t.Fatal(err)
	}
	// Names are compressed without regard to case.
	if diff := cmp.Diff([]string{"cs1.internal", "apps.cs1.internal", "internal", "example.org"}, labels.Labels); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	if plain := 2 * len(strings.Join(names, "..")); len(value) >= plain {
		t.Errorf("list of %d bytes is not compressed", len(value))
	}
}

func TestRoutesReadAsTheLibraryReadsThem(t *testing.T) {
	value, err := EncodeRoutes([]Route{
		{netip.MustParsePrefix("10.20.30.40/12"), addr("10.1.1.9")}, {netip.MustParsePrefix("0.0.0.0/0"), addr("10.1.1.1")},
		{netip.MustParsePrefix("192.0.2.1/32"), addr("10.1.1.2")},
	})
	if err != nil {
		t.Fatal(err)
	}
	var routes dhcpv4.Routes
	if err := routes.FromBytes(value); err != nil {
		t.Fatal(err)
	}
	got := make([]string, len(routes))
	for i, route := range routes {
		got[i] = route.Dest.String() + " " + route.Router.String()
	}
	if diff := cmp.Diff([]string{"10.16.0.0/12 10.1.1.9", "0.0.0.0/0 10.1.1.1", "192.0.2.1/32 10.1.1.2"}, got); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
}

func TestValidateNamesEverything(t *testing.T) {
	n := &Network{Name: "x", Subnet: netip.MustParsePrefix("2001:db8::/64"), LeaseTime: -1, Options: Options{53: {1}},
		Pool: &Pool{From: addr("10.0.0.9"), To: addr("10.0.0.1")}, Boot: []BootFile{{}}, Vendor: []VendorClass{{}},
		Routes: []Route{{}}, Relays: []netip.Addr{{}}, Gateway: addr("::1"), NextServer: addr("::1")}
	err := n.Validate()
	if err == nil {
		t.Fatal("an invalid network passes")
	}
	for _, part := range []string{"subnet", "server identifier", "gateway", "next server", "lease time", "relay", "route", "boot file", "vendor class", "pool", "option 53"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("Validate() does not speak of the %s:\n%v", part, err)
		}
	}
	table := NewTable()
	table.SetNetwork(n) // is taken as absent
	table.SetHost(&Host{Network: "x", MAC: web, IP: addr("::1")})
	if got := table.Bindings(""); len(got) != 0 {
		t.Errorf("Bindings() = %v", got)
	}
}

func TestLeaseRecord(t *testing.T) {
	for _, want := range []Lease{
		{Network: "guest-1", IP: addr("10.1.1.200"), MAC: web, ClientID: []byte{255, 0}, Hostname: "h\xff", State: LeaseBound, Start: noon, Expiry: noon.Add(time.Hour)},
		{IP: addr("10.1.1.200"), State: LeaseForgotten, Start: noon},
	} {
		record, err := want.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var got Lease
		if err := got.UnmarshalBinary(record); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateApproxTime(0)); diff != "" {
			t.Errorf("record (-want +got):\n%s", diff)
		}
		for i := range record {
			if err := got.UnmarshalBinary(record[:i]); err == nil {
				t.Errorf("a record cut at %d is read", i)
			}
		}
	}
}

func TestTrieIsAMap(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var now trie[int, int]
	model := map[int]int{}
	for step := 1; step <= 20000; step++ {
		key := random.IntN(3000)
		before := now
		if random.IntN(3) == 0 {
			now = now.without(key)
			if want, had := model[key]; had {
				if got, ok := before.get(key); !ok || got != want {
					t.Fatalf("step %d: an older trie changed", step)
				}
			}
			delete(model, key)
		} else {
			now = now.with(key, step)
			model[key] = step
		}
		if got, ok := now.get(key); ok != (model[key] != 0) || got != model[key] {
			t.Fatalf("step %d: get(%d) = %d, %v; want %d", step, key, got, ok, model[key])
		}
	}
	got := map[int]int{}
	for key, value := range now.all {
		got[key] = value
	}
	if diff := cmp.Diff(model, got); diff != "" || now.size != len(model) {
		t.Errorf("size %d, want %d; entries (-want +got):\n%s", now.size, len(model), diff)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	h := newHistory()
	for i := range 20 {
		h.add(web, exchange{time: noon.Add(time.Duration(i) * time.Second), network: "guest-1", device: "eth0", message: dhcpv4.MessageTypeDiscover, silent: true, why: ErrDeclined}, false)
	}
	last := h.last(web)
	if len(last) != exchangesPerGuest || !last[0].Time.Equal(noon.Add(19*time.Second)) || !last[7].Time.Equal(noon.Add(12*time.Second)) {
		t.Errorf("last() = %+v", last)
	}
	if last[0].Message != "DISCOVER" || last[0].Answer != "" || last[0].Why != ErrDeclined.Error() {
		t.Errorf("newest = %+v", last[0])
	}
	for i := range 3 * strangersKnown {
		h.add(stranger(i), exchange{time: noon}, true)
	}
	if len(h.last(web)) == 0 {
		t.Error("strangers drove a guest out")
	}
	if got := h.strangers.order.Len(); got != strangersKnown || len(h.strangers.byMAC) != strangersKnown {
		t.Errorf("%d strangers are remembered, want %d", got, strangersKnown)
	}
}

func TestLimiterBoundsEachClient(t *testing.T) {
	l := new(limiter)
	allowed := 0
	for range 5 * clientBurst {
		if l.allow(web, noon) {
			allowed++
		}
	}
	if allowed != clientBurst {
		t.Errorf("a flood of one instant is allowed %d messages, want %d", allowed, clientBurst)
	}
	if !l.allow(db, noon) {
		t.Error("another client suffers by it")
	}
	allowed = 0
	for i := range 20000 { // two seconds of it
		if l.allow(web, noon.Add(time.Duration(i)*100*time.Microsecond)) {
			allowed++
		}
	}
	if allowed < 19*clientRate/10 || allowed > 2*clientRate+1 {
		t.Errorf("over two seconds %d messages are allowed, want about %d", allowed, 2*clientRate)
	}
}

func TestPaceTellsFastFromSlow(t *testing.T) {
	for name, test := range map[string]struct {
		every time.Duration
		want  bool
	}{"10,000 a second": {100 * time.Microsecond, true}, "1,000 a second": {time.Millisecond, false}} {
		t.Run(name, func(t *testing.T) {
			var p pace
			now, got := noon, false
			for range 500 {
				now = now.Add(test.every)
				got = p.busy(1, now)
			}
			if got != test.want {
				t.Errorf("busy() = %v", got)
			}
			if p.busy(1, now.Add(time.Second)) {
				t.Error("busy after a second of silence")
			}
		})
	}
}
