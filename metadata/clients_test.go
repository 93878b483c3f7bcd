package metadata_test

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/google/go-cmp/cmp"

	"vragent/metadata"
	"vragent/netcfg/nstest"
)

// linkLocal is the usual site with the full guest, where 169.254.169.254 answers too.
func linkLocal(t *testing.T, o metadata.Options) (*site, *nstest.Host, *metadata.Guest) {
	t.Helper()
	s, host := small(t, o)
	g := full(t, s)
	s.router.AddAddr(t, "eth0", "169.254.169.254/32")
	host.AddRoute(t, "169.254.169.254/32", "10.1.1.1")
	s.serve("eth0", []string{"10.1.1.1", "169.254.169.254"}, "guest-1")
	return s, host, g
}

// crawled is what cloud-init got.
type crawled struct {
	OK       bool
	ID, Host string
	Zone     string
	Keys     []string
	Password string
	UserData string
	Metadata map[string]any
	Identity map[string]any
}

// cloudInit runs one of Debian's cloud-init data sources in a host.
func cloudInit(t *testing.T, host *nstest.Host, kind, address string) crawled {
	t.Helper()
	script, err := filepath.Abs("testdata/crawl.py")
	if err != nil {
		t.Fatal(err)
	}
	host.WriteFile(t, "/etc/resolv.conf", "nameserver 127.0.0.1\n") // nobody is there, which is told at once
	out := host.Run(t, "/usr/bin/python3", script, kind, address, t.TempDir())
	var got crawled
	line := out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:]
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		t.Fatalf("cloud-init %s: %v\n%s", kind, err, out)
	}
	return got
}

func TestCloudInitCrawlsTheCloudStackShape(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	record := &passwords{wait: map[string]string{"i-2-34-VM": "s3cret"}}
	s, host, g := linkLocal(t, metadata.Options{Passwords: record, Limits: metadata.Limits{Rate: 200, Connections: 64}})
	want := crawled{
		OK: true, ID: "i-2-34-VM", Host: "web-1", Zone: "zone-1", Password: "s3cret",
		Keys: []string{"ssh-ed25519 AAAAone alice@example", "ssh-rsa AAAAtwo a comment", "ssh-rsa AAAAthree alice@example"},
	}
	gzipped := "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcb\x48\xcd\xc9\xc9\x07\x00\x86\xa6\x10\x36\x05\x00\x00\x00"
	for _, test := range []struct{ name, data, want string }{
		{"cloud-config", "#cloud-config\nhostname: web-1\n", "#cloud-config\nhostname: web-1\n"},
		{"gzip", gzipped, "base64:" + base64.StdEncoding.EncodeToString([]byte(gzipped))},
		{"UTF-8", "#!/bin/sh\necho 'Grüße, 世界'\n", "#!/bin/sh\necho 'Grüße, 世界'\n"},
		{"empty", "", ""},
		{"none", "", ""},
	} {
		next := *g
		next.UserData = content(t, []byte(test.data))
		if test.name == "none" {
			next.UserData = nil
		}
		s.table.SetGuest(&next)
		got := cloudInit(t, host, "CloudStack", "10.1.1.1")
		if got.Metadata["colour"] != nil || got.Metadata["Colour"] != "blue" || got.Metadata["public-ipv4"] != "203.0.113.7" {
			t.Errorf("%s: metadata %v", test.name, got.Metadata)
		}
		got.Metadata = nil
		want.UserData = test.want
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
		want.Password = "" // it was taken by the first crawl
	}
}

func TestCloudInitCrawlsTheEC2Shape(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host, _ := linkLocal(t, metadata.Options{})
	required := network("guest-1", "10.1.1.0/24")
	required.TokensRequired = true
	for _, kind := range []string{"Ec2", "AWS"} {
		if kind == "AWS" {
			s.table.SetNetwork(required)
		}
		got := cloudInit(t, host, kind, "169.254.169.254")
		macs, _ := json.Marshal(got.Metadata["network"])
		if !strings.Contains(string(macs), `"02:00:4c:5f:00:02":{"device-number":"1","local-ipv4s":"10.7.0.34"`) {
			t.Errorf("%s: network %s", kind, macs)
		}
		if kind == "AWS" && got.Identity["region"] != "zone-1" {
			t.Errorf("%s: identity %v", kind, got.Identity)
		}
		got.Metadata, got.Identity = nil, nil
		want := crawled{
			OK: true, ID: "i-2-34-VM", Host: "web-1", Zone: "zone-1", UserData: "#cloud-config\nhostname: web-1\n",
			Keys: []string{"ssh-ed25519 AAAAone alice@example", "ssh-rsa AAAAtwo a comment", "ssh-rsa AAAAthree alice@example"},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", kind, diff)
		}
	}
}

func TestEC2MetadataTool(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	_, host, _ := linkLocal(t, metadata.Options{})
	for option, want := range map[string]string{
		"--instance-id": "i-2-34-VM", "--local-ipv4": "10.1.1.34", "--public-ipv4": "203.0.113.7", "--local-hostname": "web-1",
		"--availability-zone": "zone-1", "--instance-type": "Small", "--user-data": "#cloud-config\nhostname: web-1",
		"--public-keys": "ssh-ed25519 AAAAone alice@example",
	} {
		if got := host.Run(t, "ec2metadata", option); !strings.Contains(got, want) {
			t.Errorf("ec2metadata %s = %q, want %q", option, got, want)
		}
	}
}

func TestAWSClient(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host, _ := linkLocal(t, metadata.Options{})
	transport := client(t, host, "10.1.1.34").Transport
	counted := &methods{next: transport}
	newClient := func() *imds.Client { return imds.New(imds.Options{HTTPClient: &http.Client{Transport: counted}}) }
	check := func(name string, c *imds.Client) {
		t.Helper()
		region, err := c.GetRegion(t.Context(), &imds.GetRegionInput{})
		if err != nil || region.Region != "zone-1" {
			t.Errorf("%s: GetRegion() = %+v, %v", name, region, err)
		}
		id, err := c.GetMetadata(t.Context(), &imds.GetMetadataInput{Path: "instance-id"})
		if err != nil {
			t.Fatalf("%s: GetMetadata() = %v", name, err)
		}
		if b, err := io.ReadAll(id.Content); err != nil || string(b) != "i-2-34-VM" {
			t.Errorf("%s: instance-id = %q, %v", name, b, err)
		}
		root, err := c.GetMetadata(t.Context(), &imds.GetMetadataInput{})
		if err != nil {
			t.Errorf("%s: GetMetadata() of the root = %v", name, err)
		} else {
			root.Content.Close()
		}
		data, err := c.GetUserData(t.Context(), &imds.GetUserDataInput{})
		if err != nil {
			t.Fatalf("%s: GetUserData() = %v", name, err)
		}
		if b, err := io.ReadAll(data.Content); err != nil || !strings.HasPrefix(string(b), "#cloud-config") {
			t.Errorf("%s: user data = %q, %v", name, b, err)
		}
	}
	check("version 2, tokens optional", newClient())
	if counted.n["PUT"] == 0 {
		t.Error("the client asked for no token")
	}
	required := network("guest-1", "10.1.1.0/24")
	required.TokensRequired = true
	s.table.SetNetwork(required)
	c := newClient()
	check("version 2, tokens required", c)

	// A server with another key, as after a restart: the client asks for a new token at the 401.
	s.server.SetDevices(nil)
	again := &site{t: t, table: s.table, router: s.router, server: metadata.NewServer(s.table, metadata.Options{})}
	again.server.SetDevices(s.devices)
	check("after a restart with a new key", c)
	again.server.SetDevices(nil)
	s.serve("eth0", []string{"10.1.1.1", "169.254.169.254"}, "guest-1")

	// A token that is refused for good makes the client fall back to version 1.
	s.table.SetNetwork(network("guest-1", "10.1.1.0/24"))
	proxied := imds.New(imds.Options{
		HTTPClient: &http.Client{Transport: forwarding{transport}}, EnableFallback: aws.TrueTernary,
	})
	check("version 1, since a proxy is in the way", proxied)
}

// methods counts requests by method.
type methods struct {
	next http.RoundTripper
	n    map[string]int
}

func (m *methods) RoundTrip(r *http.Request) (*http.Response, error) {
	if m.n == nil {
		m.n = make(map[string]int)
	}
	m.n[r.Method]++
	return m.next.RoundTrip(r)
}

// forwarding adds what a proxy adds.
type forwarding struct{ next http.RoundTripper }

func (f forwarding) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("X-Forwarded-For", "192.0.2.1")
	return f.next.RoundTrip(r)
}

func TestOrdinaryClients(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	_, host, g := linkLocal(t, metadata.Options{})
	folder := t.TempDir()
	file := filepath.Join(folder, "user-data")
	body, err := g.UserData.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	want, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{
		{"curl", "-sf", "-o", file, "http://10.1.1.1/latest/user-data"},
		{"curl", "-sf0", "-o", file, "http://10.1.1.1/latest/user-data"},
		{"curl", "-sf", "--path-as-is", "-o", file, "http://169.254.169.254/2009-04-04/user-data"},
		{"wget", "-q", "-O", file, "http://10.1.1.1/latest/user-data"},
		{"busybox", "wget", "-q", "-O", file, "http://10.1.1.1/latest/user-data"},
	} {
		os.Remove(file)
		host.Run(t, command[0], command[1:]...)
		if got, err := os.ReadFile(file); err != nil || string(got) != string(want) {
			t.Errorf("%q got %q, %v, want %q", command, got, err, want)
		}
	}
	// What was broken off is fetched from there on.
	if err := os.WriteFile(file, want[:10], 0o600); err != nil {
		t.Fatal(err)
	}
	host.Run(t, "curl", "-sf", "-C", "-", "-o", file, "http://10.1.1.1/latest/user-data")
	if got, err := os.ReadFile(file); err != nil || string(got) != string(want) {
		t.Errorf("curl -C - got %q, %v, want %q", got, err, want)
	}
	host.Run(t, "wget", "-q", "-c", "-O", file, "http://10.1.1.1/latest/user-data")
	// The guest agent of a shell: a loop around this.
	etag := strings.TrimSpace(host.Run(t, "sh", "-c", `curl -sfI http://10.1.1.1/latest/public-keys | tr -d '\r' | sed -n 's/^Etag: //Ip'`))
	if got := host.Run(t, "curl", "-sf", "-w", "%{http_code}", "-H", "If-None-Match: "+etag, "http://10.1.1.1/latest/public-keys"); got != "304" {
		t.Errorf("curl with the ETag %s = %q", etag, got)
	}
	if got := host.Run(t, "curl", "-sf", "http://10.1.1.1/latest/vm-id?wait=1"); got != "i-2-34-VM" {
		t.Errorf("curl that waits = %q", got)
	}
}
