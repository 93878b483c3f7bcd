package metadata_test

import (
	"encoding/json"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vragent/metadata"
	"vragent/netcfg/nstest"
)

const twoKeys = "ssh-ed25519 AAAAone alice@example\n\nssh-rsa AAAAtwo a comment\r\nssh-rsa AAAAthree alice@example\n"

// full is a guest with all that a guest can have, in two networks.
func full(t *testing.T, s *site) *metadata.Guest {
	t.Helper()
	g := guest("guest-1", "i-2-34-VM", "10.1.1.34")
	g.Hostname = "web-1"
	g.MAC = net.HardwareAddr{2, 0, 0x4c, 0x5f, 0, 1}
	g.Meta = map[string]string{
		"public-keys": twoKeys, "availability-zone": "zone-1", "service-offering": "Small", "cloud-domain": "ROOT",
		"network": "hidden", "Colour": "blue",
	}
	g.UserData = content(t, []byte("#cloud-config\nhostname: web-1\n"))
	g.VendorData = content(t, []byte("#cloud-config\npackages: [jq]\n"))
	g.NICs = []metadata.NIC{
		{Network: "guest-1", MAC: g.MAC, IP: g.IP, Default: true},
		{Network: "storage", MAC: net.HardwareAddr{2, 0, 0x4c, 0x5f, 0, 2}, IP: netip.MustParseAddr("10.7.0.34")},
		{Network: "storage", IP: netip.MustParseAddr("10.7.0.35")},
	}
	s.table.SetNetwork(network("storage", "10.7.0.0/16"))
	s.table.SetGuest(g)
	return g
}

func TestServesTheEC2Shape(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{})
	full(t, s)
	c := client(t, host, "10.1.1.34")
	for _, test := range []struct{ path, body string }{
		{"/", "1.0\n2009-04-04\n2016-09-02\n2018-09-24\n2021-03-23\nlatest\n"},
		{"/2009-04-04/", "dynamic/\nmeta-data/\nuser-data\nvendor-data\n"},
		{"/1.0", "dynamic/\nmeta-data/\nuser-data\nvendor-data\n"},
		{"/2021-03-23/meta-data/", "Colour\navailability-zone\ncloud-domain\nhostname\ninstance-id\ninstance-type\nlocal-hostname\n" +
			"local-ipv4\nmac\nnetwork/\nplacement/\npublic-hostname\npublic-ipv4\npublic-keys/\nservice-offering\nvm-id\n"},
		{"/2009-04-04/meta-data/public-keys", "0=alice@example\n1=key-1\n2=key-2\n"},
		{"/2009-04-04/meta-data/public-keys/", "0=alice@example\n1=key-1\n2=key-2\n"},
		{"/2009-04-04/meta-data/public-keys/0/", "openssh-key\n"},
		{"/2009-04-04/meta-data/public-keys/1/openssh-key", "ssh-rsa AAAAtwo a comment"},
		{"/2009-04-04/meta-data/placement/availability-zone", "zone-1"},
		{"/2009-04-04/meta-data/hostname", "web-1"},
		{"/2009-04-04/meta-data/instance-type", "Small"},
		{"/2009-04-04/meta-data/network/interfaces/macs/", "02:00:4c:5f:00:01/\n02:00:4c:5f:00:02/\n"},
		{"/2009-04-04/meta-data/network/interfaces/macs/02:00:4c:5f:00:01/", "device-number\nlocal-ipv4s\nmac\npublic-ipv4s\nsubnet-ipv4-cidr-block\n"},
		{"/2009-04-04/meta-data/network/interfaces/macs/02:00:4c:5f:00:02/subnet-ipv4-cidr-block", "10.7.0.0/16"},
		{"/2009-04-04/meta-data/network/interfaces/macs/02:00:4c:5f:00:02/device-number", "1"},
		{"/2009-04-04/user-data", "#cloud-config\nhostname: web-1\n"},
		{"/1.0/vendor-data", "#cloud-config\npackages: [jq]\n"},
		// Beside the CloudStack shape, where that leaves room.
		{"/latest/", "dynamic/\nmeta-data/\nuser-data\nvendor-data\n"},
		{"/latest/meta-data/public-keys", twoKeys},
		{"/latest/public-keys", twoKeys},
		{"/latest/meta-data/public-keys/", "0=alice@example\n1=key-1\n2=key-2\n"},
		{"/latest/meta-data/public-keys/0/openssh-key", "ssh-ed25519 AAAAone alice@example"},
		{"/latest/meta-data/placement/availability-zone", "zone-1"},
		{"/latest/meta-data/network", "hidden"},
		{"/latest/meta-data/network/interfaces/macs/02:00:4c:5f:00:01/mac", "02:00:4c:5f:00:01"},
		{"/latest/dynamic/instance-identity/", "document\n"},
		{"/latest/vendor-data", "#cloud-config\npackages: [jq]\n"},
	} {
		if got := ask(t, c, "GET", "http://10.1.1.1"+test.path); got.Status != 200 || got.Body != test.body {
			t.Errorf("GET %s = %d %q, want %q", test.path, got.Status, got.Body, test.body)
		}
	}
	var document map[string]string
	got := ask(t, c, "GET", "http://10.1.1.1/latest/dynamic/instance-identity/document")
	if err := json.Unmarshal([]byte(got.Body), &document); err != nil || got.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("document = %v: %v", got, err)
	}
	want := map[string]string{
		"accountId": "", "architecture": "", "availabilityZone": "zone-1", "imageId": "", "instanceId": "i-2-34-VM", "instanceType": "Small",
		"privateIp": "10.1.1.34", "region": "zone-1", "version": "2017-09-30",
	}
	if diff := cmp.Diff(want, document); diff != "" {
		t.Errorf("document (-want +got):\n%s", diff)
	}
}

// Whatever a listing names answers 200: one that does not makes cloud-init drop all metadata.
func TestListingsNameWhatAnswers(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{})
	c := client(t, host, "10.1.1.34")
	var crawl func(path string) int
	crawl = func(path string) int {
		got := ask(t, c, "GET", "http://10.1.1.1"+path)
		if got.Status != 200 {
			t.Errorf("GET %s = %d", path, got.Status)
		}
		if !strings.HasSuffix(path, "/") {
			return 1
		}
		n := 0
		for line := range strings.Lines(got.Body) {
			name := strings.TrimSuffix(line, "\n")
			if number, _, ok := strings.Cut(name, "="); ok {
				name = number + "/"
			}
			if path == "/" {
				name += "/"
			}
			n += crawl(path + name)
		}
		return n
	}
	if n := crawl("/"); n < 50 {
		t.Errorf("%d leaves of a guest with nothing, want more", n)
	}
	full(t, s)
	if n := crawl("/"); n < 100 {
		t.Errorf("%d leaves of a guest with everything, want more", n)
	}
}

func TestVendorDataOfTheNetwork(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{})
	n := network("guest-1", "10.1.1.0/24")
	n.VendorData = content(t, []byte("the network's"))
	s.table.SetNetwork(n)
	c := client(t, host, "10.1.1.34")
	if got := ask(t, c, "GET", "http://10.1.1.1/latest/vendor-data"); got.Body != "the network's" {
		t.Errorf("GET = %v", got)
	}
	g := guest("guest-1", "VM-1", "10.1.1.34")
	g.VendorData = content(t, []byte("its own"))
	s.table.SetGuest(g)
	if got := ask(t, c, "GET", "http://10.1.1.1/latest/Vendor-Data"); got.Body != "its own" {
		t.Errorf("GET = %v", got)
	}
}
