package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vragent/netcfg/nstest"
)

// crawl runs cloud-init's CloudStack data source, lets it find the router by itself, and prints what it got.
const crawl = `
import base64, json, os, sys
from cloudinit import distros, helpers
from cloudinit.sources import DataSourceCloudStack as cloudstack

scratch = sys.argv[1]
for folder in ("cloud/seed", "run"):
    os.makedirs(os.path.join(scratch, folder), exist_ok=True)
paths = helpers.Paths({"cloud_dir": scratch + "/cloud", "run_dir": scratch + "/run", "templates_dir": "/etc/cloud/templates"})
distro = distros.fetch("debian")("debian", {}, paths)
config = {"datasource": {"CloudStack": {"max_wait": 10, "timeout": 5}}, "datasource_list": ["CloudStack"]}
source = cloudstack.DataSourceCloudStack(config, distro, paths)
ok = source._get_data()

def plain(data):
    return base64.b64encode(data if isinstance(data, bytes) else data.encode()).decode()

print(json.dumps({
    "ok": ok, "router": source.vr_addr, "id": source.get_instance_id(), "host": source.get_hostname().hostname,
    "zone": source.availability_zone, "keys": [key for key in source.get_public_ssh_keys() if key],
    "password": source.get_config_obj().get("password"), "userdata": plain(source.userdata_raw),
    "parts": [plain(part.get_payload(decode=True)) for part in source.get_userdata().walk() if not part.is_multipart()],
    "metadata": source.metadata,
}))
`

// crawled is what cloud-init found.
type crawled struct {
	OK               bool
	Router, ID, Host string
	Zone, Password   string
	Keys             []string
	UserData         []byte
	Parts            [][]byte // of the user data, after cloud-init has unpacked it
	Metadata         map[string]any
}

// cloudInit runs cloud-init's data source in a guest.
func cloudInit(t *testing.T, g *nstest.Host) crawled {
	t.Helper()
	g.WriteFile(t, "/run/crawl.py", crawl)
	out := g.Run(t, "timeout", "60", "/usr/bin/python3", "/run/crawl.py", t.TempDir())
	var got crawled
	line := out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:]
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		t.Fatalf("cloud-init: %v\n%s", err, out)
	}
	return got
}

func gzipped(t *testing.T, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestCloudInitFindsTheRouterByItsLease(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	g := r.guest(t, "guest", "eth0", macA)
	// A shared network: the gateway is somebody else, so only the server identifier leads to the agent.
	r.AddAddr(t, "eth0", "10.1.1.2/24")
	r.start(t)
	r.put(t, "networks/guest-1.yaml", network+"serve_as: 10.1.1.2\ndomain: cs1.internal\n")
	const keys = "ssh-ed25519 AAAAone alice@example\nssh-rsa AAAAtwo a comment\n"
	r.put(t, "vms/web/meta-data.yaml", "instance-id: i-2-34-VM\navailability-zone: zone-1\ncloud-domain: ROOT/tenant\npublic-keys: |\n  "+
		strings.ReplaceAll(strings.TrimSpace(keys), "\n", "\n  ")+"\n")
	r.put(t, "vms/web/password", "s3cret\n")
	r.put(t, "vms/web/user-data", "#cloud-config\n")
	r.put(t, "vms/web/vm.yaml", vm("web-1", "guest-1", macA, "10.1.1.34"))
	r.applied(t)

	g.Run(t, "timeout", "30", "dhclient", "-1", "-v", "-pf", "/run/dhclient.pid", "-lf", "/var/lib/dhcp/dhclient.eth0.leases", "eth0")
	g.WriteFile(t, "/etc/resolv.conf", "nameserver 127.0.0.1\n") // nobody is there, which is told at once

	const script = "#!/bin/sh\necho 'Grüße, 世界'\n"
	want := crawled{
		OK: true, Router: "10.1.1.2", ID: "i-2-34-VM", Host: "web-1", Zone: "zone-1", Password: "s3cret",
		Keys: strings.Split(strings.TrimSpace(keys), "\n"),
	}
	for _, test := range []struct{ name, data, part string }{
		{"cloud-config", "#cloud-config\nhostname: web-1\n", "#cloud-config\nhostname: web-1\n"},
		{"gzip", string(gzipped(t, script)), script},
		{"UTF-8", script, script},
		{"empty", "", ""},
		{"none", "", ""},
	} {
		if test.name == "none" {
			r.remove(t, "vms/web/user-data")
		} else {
			r.put(t, "vms/web/user-data", test.data)
		}
		r.applied(t, "vms/web")
		got := cloudInit(t, g)
		if got.Metadata["cloud-domain"] != "ROOT/tenant" || got.Metadata["local-ipv4"] != "10.1.1.34" {
			t.Errorf("%s: metadata %v", test.name, got.Metadata)
		}
		if len(got.Parts) != 1 || strings.TrimSpace(string(got.Parts[0])) != strings.TrimSpace(test.part) {
			t.Errorf("%s: cloud-init makes of it %q, want %q", test.name, got.Parts, test.part)
		}
		if string(got.UserData) != test.data {
			t.Errorf("%s: user data %q, want %q", test.name, got.UserData, test.data)
		}
		got.Metadata, got.UserData, got.Parts = nil, nil, nil
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
		want.Password = "" // the first boot took it
	}

	// Without keys and names of its own a guest boots as well.
	r.remove(t, "vms/web/meta-data.yaml")
	r.applied(t, "vms/web")
	got := cloudInit(t, g)
	if !got.OK || got.ID != "web" || got.Host != "web-1" || len(got.Keys) != 0 {
		t.Errorf("without meta-data.yaml: %+v", got)
	}
}
