package e2e

import (
	"strings"
	"testing"

	"vragent/netcfg/nstest"
)

const (
	macA = "02:00:4c:5f:00:0a"
	macB = "02:00:4c:5f:00:0b"
)

// vm is a vm.yaml with one NIC.
func vm(hostname, network, mac, ip string) string {
	return "hostname: " + hostname + "\nnics:\n- {network: " + network + ", mac: \"" + mac + "\", ipv4: " + ip + "}\n"
}

func TestDroppedFilesBecomeALeaseAndMetadata(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	g := r.guest(t, "a", "eth0", macA)
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	r.start(t)

	r.put(t, "networks/guest-1.yaml", "interface: eth0\ngateway: 10.1.1.1/24\ndns: [10.1.1.1]\ndomain: cs1.internal\n")
	r.put(t, "vms/web/user-data", "#cloud-config\n\x00\xff\n")
	r.put(t, "vms/web/meta-data.yaml", "instance-id: i-1\npublic-keys: ssh-ed25519 AAAA ops\n")
	r.put(t, "vms/web/vm.yaml", vm("web-1", "guest-1", macA, "10.1.1.34"))
	r.applied(t)

	out := g.Run(t, "dhclient", "-1", "-v", "-pf", "/run/dhclient.pid", "-lf", "/var/lib/dhcp/leases", "eth0")
	if !strings.Contains(out, "bound to 10.1.1.34") {
		t.Fatalf("dhclient:\n%s", out)
	}
	lease := g.ReadFile(t, "/var/lib/dhcp/leases")
	for _, want := range []string{"dhcp-server-identifier 10.1.1.1;", "routers 10.1.1.1;", `domain-name "cs1.internal";`, `host-name "web-1";`} {
		if !strings.Contains(lease, want) {
			t.Errorf("the lease lacks %s\n%s", want, lease)
		}
	}
	if got, err := curl(t, g, "http://10.1.1.1/latest/user-data"); err != nil || got != "#cloud-config\n\x00\xff\n" {
		t.Errorf("user-data = %q, %v", got, err)
	}
	listing, err := curl(t, g, "http://10.1.1.1/latest/meta-data/")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(listing) {
		if _, err := curl(t, g, "http://10.1.1.1/latest/meta-data/"+name); err != nil {
			t.Errorf("%s is listed and does not answer: %v", name, err)
		}
	}
	if got, _ := curl(t, g, "http://10.1.1.1/latest/local-hostname"); got != "web-1" {
		t.Errorf("local-hostname = %q", got)
	}

	r.put(t, "vms/web/user-data", "new")
	r.applied(t, "vms/web")
	if got, _ := curl(t, g, "http://10.1.1.1/latest/user-data"); got != "new" {
		t.Errorf("user-data after a change = %q", got)
	}
	r.stop()
	r.put(t, "vms/web/vm.yaml", "nics: 1\n")
	r.start(t)
	if got, _ := curl(t, g, "http://10.1.1.1/latest/user-data"); got != "new" {
		t.Errorf("user-data after a restart with a bad file = %q", got)
	}
	if why := r.rejected(t, "vms/web"); !strings.HasPrefix(why, "vms/web/vm.yaml:1:7: ") {
		t.Errorf("reason = %q", why)
	}
	r.remove(t, "vms/web")
	r.applied(t)
	if _, err := curl(t, g, "http://10.1.1.1/latest/user-data"); err == nil {
		t.Error("a removed VM is still served")
	}
}
