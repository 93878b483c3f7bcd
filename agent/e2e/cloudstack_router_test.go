package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vragent/netcfg/nstest"
)

// cloudRouter is a router as a CloudStack management server sees it: a folder to drop files in, and
// programs to start.
type cloudRouter struct {
	*router
	bin, cache, log string
}

// cloudOriginal stands for the router's own update_config.py: it archives what it is called for, says
// so, and fails where its name says so.
const cloudOriginal = `#!/bin/sh
cd "$(dirname "$0")/../cache" || exit
echo "original $* $DEFER_CONFIG"
echo "$*" >>../originals
[ ! -e "$1" ] || { gzip "$1" && mv "$1.gz" processed/; }
case $1 in fail*) exit 3 ;; esac
`

// newCloudRouter makes plain such a router; its configuration turns the dialect on.
func newCloudRouter(t *testing.T, plain *router) *cloudRouter {
	t.Helper()
	program := buildProgram(t, "vragent-cloudstack")
	r := &cloudRouter{router: plain}
	r.bin, r.cache, r.log = r.dir+"/bin", r.dir+"/cache", r.dir+"/cloud.log"
	for _, dir := range []string{r.bin, r.cache + "/processed"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"update_config.py", "vr_cfg.sh", "vragent-extension"} {
		if err := os.Symlink(program, r.bin+"/"+name); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(r.bin+"/update_config.py.cloudstack", []byte(cloudOriginal), 0o755); err != nil {
		t.Fatal(err)
	}
	return r
}

// call starts a program as the management server does, and returns its exit status and what it said.
func (r *cloudRouter) call(t testing.TB, program string, args ...string) (status int, said string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(r.bin, program), args...)
	cmd.Env = append(os.Environ(), "VRAGENT_SOCKET="+r.dir+"/api.sock", "VRAGENT_CLOUD_BIN="+r.bin, "VRAGENT_CLOUD_DIR="+r.cache, "VRAGENT_CLOUD_LOG="+r.log)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", program, err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// copyIn puts a file where the management server does.
func (r *cloudRouter) copyIn(t testing.TB, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(r.cache, name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// update drops a file and has it taken in, which must succeed.
func (r *cloudRouter) update(t testing.TB, name, content string) {
	t.Helper()
	r.copyIn(t, name, content)
	if status, said := r.call(t, "update_config.py", name); status != 0 {
		t.Fatalf("%s: exit status %d\n%s", name, status, said)
	}
}

// sampleFile is a file as a server sends it.
func sampleFile(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile("../internal/cloudstack/testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func dhcpEntry(ip, mac string) string {
	return fmt.Sprintf(`{"host_name":"h-%s","mac_address":"%s","ipv4_address":"%s","default_gateway":"10.1.1.1","default_entry":true,"remove":false,"type":"dhcpentry"}`,
		strings.ReplaceAll(ip, ".", "-"), mac, ip)
}

// TestCloudStackRouter is a router's life, from its boot to an address that is used again.
func TestCloudStackRouter(t *testing.T) {
	buildProgram(t, "vragent-cloudstack")
	if !nstest.Enter(t) {
		return
	}
	r := newCloudRouter(t, newRouter(t))
	r.configure(t, "cloudstack: {enabled: true}\n")
	web := r.guest(t, "web-01", "eth0", "02:01:00:cb:00:02")
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	world := r.guest(t, "world", "eth2", "02:01:00:cb:00:99")
	world.AddAddr(t, "eth0", "203.0.113.1/24")
	r.SetMAC(t, "eth2", "1e:00:63:00:04:b5")
	// The address that guests are seen with is not the first one there.
	r.AddAddr(t, "eth2", "203.0.113.99/24", "203.0.113.24/24")
	r.start(t)

	r.update(t, "cmd_line.json", sampleFile(t, "cmd_line.json"))
	r.update(t, "ip_associations.json.u1", strings.ReplaceAll(sampleFile(t, "ip_associations.json.1"), `"nic_dev_id":2`, `"nic_dev_id":7`))
	metadata := sampleFile(t, "vm_metadata.json.1")
	r.update(t, "vm_metadata.json.u2", strings.ReplaceAll(metadata, `["metadata","public-ipv4","203.0.113.24"],["metadata","public-hostname","203.0.113.24"],`, ""))
	r.update(t, "vm_dhcp_entry.json.u3", sampleFile(t, "vm_dhcp_entry.json.1"))
	r.update(t, "vm_password.json.u4", sampleFile(t, "vm_password.json.1"))
	lease(t, web, "10.1.1.50")
	if got := told(t, web); got != "10.1.1.50 router=10.1.1.1 dns=10.1.1.1 192.0.2.53 198.51.100.53 domain=cs7cloud.internal hostname=web-01 lease=4294967295" {
		t.Errorf("the default NIC is told %s", got)
	}
	for name, want := range map[string]string{
		"instance-id": "0b3b9a6e-3d3d-4c55-a4f6-1f6b1f0f9d77", "VM-ID": "0b3b9a6e-3d3d-4c55-a4f6-1f6b1f0f9d77", "tier": "frontend",
		"public-ipv4": "203.0.113.24", "local-hostname": "web-01", "cloud-identifier": "CloudStack-{3f0f8d52-6f0f-4a5b-9a3d-2f7d1d0f6b10}",
	} {
		if got, err := curl(t, web, "http://10.1.1.1/latest/meta-data/"+name); err != nil || got != want {
			t.Errorf("%s = %q, %v; want %q", name, got, err, want)
		}
	}
	if got, err := web.Output(t, "sh", "-c", "curl -sSf --max-time 5 http://10.1.1.1/latest/user-data | gunzip"); err != nil || !strings.HasPrefix(got, "#cloud-config") {
		t.Errorf("user data unpacked = %q, %v", got, err)
	}
	password := func(request string) string {
		t.Helper()
		got, err := web.Output(t, "curl", "-sS", "--max-time", "5", "-H", "DomU_Request: "+request, "http://10.1.1.1:8080/")
		if err != nil {
			t.Errorf("password server: %v", err)
		}
		return got
	}
	if got := password("send_my_password") + " " + password("saved_password") + " " + password("send_my_password"); got != "Xk7&=%+q$z saved_password saved_password" {
		t.Errorf("passwords = %q", got)
	}

	// The second NIC in the network: no user data, an escaped name, keys that are null or empty. Every
	// listed name answers.
	r.update(t, "vm_dhcp_entry.json.u7", sampleFile(t, "vm_dhcp_entry.json.2"))
	r.update(t, "vm_metadata.json.u8", sampleFile(t, "vm_metadata.json.2"))
	web.SetMAC(t, "eth0", "02:01:00:cb:00:03")
	lease(t, web, "10.1.1.51")
	if got := told(t, web); got != "10.1.1.51 router= dns= domain= hostname=db-01 lease=4294967295" {
		t.Errorf("a NIC that is not the default is told %s", got)
	}
	listed, err := curl(t, web, "http://10.1.1.1/latest/meta-data/")
	if err != nil || !strings.Contains(listed, "cloud-domain-id") || strings.Contains(listed, "hypervisor-host-name") {
		t.Errorf("names = %q, %v", listed, err)
	}
	for name := range strings.Lines(listed) {
		if got, err := curl(t, web, "http://10.1.1.1/latest/meta-data/"+strings.TrimSpace(name)); err != nil {
			t.Errorf("%s = %q, %v", name, got, err)
		}
	}
	for path, want := range map[string]string{"meta-data/service-offering": `Small \u00e9dition`, "public-keys": "", "user-data": ""} {
		if got, err := curl(t, web, "http://10.1.1.1/latest/"+path); err != nil || got != want {
			t.Errorf("%s = %q, %v; want %q", path, got, err, want)
		}
	}
	web.SetMAC(t, "eth0", "02:01:00:cb:00:02")
	lease(t, web, "10.1.1.50")

	// The files that others need as well went to the original, and no others.
	if got, err := os.ReadFile(r.dir + "/originals"); err != nil || string(got) != "cmd_line.json\nip_associations.json.u1\n" {
		t.Errorf("the original was called for %q, %v", got, err)
	}
	// What was taken in is archived; to ask for it again is no fault.
	if got := gunzip(t, r.cache+"/processed/vm_password.json.u4.gz"); got != sampleFile(t, "vm_password.json.1") {
		t.Errorf("the archived password file is %q", got)
	}
	if left, _ := filepath.Glob(r.cache + "/*.json*"); len(left) > 0 {
		t.Errorf("still there: %v", left)
	}
	if status, said := r.call(t, "update_config.py", "vm_password.json.u4"); status != 0 {
		t.Errorf("a file that was taken in before: exit status %d\n%s", status, said)
	}
	// The same file dropped twice: the same password is the taken one.
	r.update(t, "vm_password.json.u4", sampleFile(t, "vm_password.json.1"))
	if got := password("send_my_password"); got != "saved_password" {
		t.Errorf("the taken password is given out again: %q", got)
	}

	// A torn file, an empty one, one that never came, a foreign one that fails.
	for _, bad := range []struct {
		name, content string
		status        int
		says          string
	}{
		{"vm_metadata.json.torn", metadata[:len(metadata)/2], 1, "rejected: is no complete JSON"},
		{"vm_dhcp_entry.json.empty", "", 1, "rejected: is empty"},
		{"vm_dhcp_entry.json.taken", strings.Replace(sampleFile(t, "vm_dhcp_entry.json.1"), "10.1.1.50", "10.1.1.1", 1), 1, "rejected: "},
		{"fail.json.u", "{}", 3, "original fail.json.u"},
	} {
		r.copyIn(t, bad.name, bad.content)
		if status, said := r.call(t, "update_config.py", bad.name); status != bad.status || !strings.Contains(said, bad.says) {
			t.Errorf("%s: exit status %d and %q, want %d and %q", bad.name, status, said, bad.status, bad.says)
		}
	}
	if status, said := r.call(t, "update_config.py", "vm_metadata.json.never"); status != 1 || !strings.Contains(said, "no such file") {
		t.Errorf("a file that never came: exit status %d and %q", status, said)
	}
	if got, err := curl(t, web, "http://10.1.1.1/latest/instance-id"); err != nil || got != "0b3b9a6e-3d3d-4c55-a4f6-1f6b1f0f9d77" {
		t.Errorf("after files that cannot be taken in: instance-id = %q, %v", got, err)
	}

	// The address goes to another VM, and the same password text is new for it.
	r.update(t, "vm_dhcp_entry.json.u5", dhcpEntry("10.1.1.50", "02:01:00:cb:00:77"))
	if got, err := curl(t, web, "http://10.1.1.1/latest/user-data"); err == nil {
		t.Errorf("the old VM still reads %q", got)
	}
	r.update(t, "vm_password.json.u6", sampleFile(t, "vm_password.json.1"))
	web.SetMAC(t, "eth0", "02:01:00:cb:00:77")
	lease(t, web, "10.1.1.50")
	if got, err := curl(t, web, "http://10.1.1.1/latest/meta-data/local-hostname"); err != nil || got != "h-10-1-1-50" {
		t.Errorf("local-hostname of the next VM = %q, %v", got, err)
	}
	if got, err := curl(t, web, "http://10.1.1.1/latest/user-data"); err == nil {
		t.Errorf("the next VM reads the user data of the one before: %q", got)
	}
	if got := password("send_my_password"); got != "Xk7&=%+q$z" {
		t.Errorf("password of the next VM = %q", got)
	}
	if log, err := os.ReadFile(r.log); err != nil || !strings.Contains(string(log), "vm_dhcp_entry.json.u5: applied") || strings.Contains(string(log), "Xk7") {
		t.Errorf("log of the router: %v\n%s", err, log)
	}
}

// told is what DHCP tells a guest.
func told(t *testing.T, g *nstest.Host) string {
	t.Helper()
	const script = "/run/udhcpc.told"
	g.WriteFile(t, script, "#!/bin/sh\n[ $1 != bound ] || echo \"$ip router=$router dns=$dns domain=$domain hostname=$hostname lease=$lease\" >/run/told\n")
	g.Run(t, "chmod", "755", script)
	g.Run(t, "timeout", "20", "udhcpc", "-q", "-n", "-i", "eth0", "-O", "hostname", "-s", script)
	return strings.TrimSpace(g.ReadFile(t, "/run/told"))
}

func gunzip(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestCloudStackFilesAtOnce has twenty programs started at the same time.
func TestCloudStackFilesAtOnce(t *testing.T) {
	buildProgram(t, "vragent-cloudstack")
	if !nstest.Enter(t) {
		return
	}
	r := newCloudRouter(t, newRouter(t))
	r.configure(t, "cloudstack: {enabled: true}\n")
	g := r.guest(t, "g", "eth0", "02:00:00:00:00:13")
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	r.start(t)
	r.copyIn(t, "cmd_line.json", sampleFile(t, "cmd_line.json")) // which none of the calls names
	const n = 20
	address := func(i int) string { return fmt.Sprintf("10.1.1.%d", 100+i) }
	files := map[string]string{}
	for i := range n {
		switch i % 2 {
		case 0:
			files[fmt.Sprintf("vm_metadata.json.%d", i)] = fmt.Sprintf(`{"vm_ip_address":"%s","vm_metadata":[["userdata","user-data","aGVsbG8="],["metadata","instance-id","vm-%d"]]}`, address(i+1), i+1)
		default:
			files[fmt.Sprintf("vm_dhcp_entry.json.%d", i)] = dhcpEntry(address(i), fmt.Sprintf("02:00:00:00:00:%02x", i))
		}
	}
	var wg sync.WaitGroup
	for name, content := range files {
		r.copyIn(t, name, content)
		wg.Go(func() {
			if status, said := r.call(t, "update_config.py", name); status != 0 {
				t.Errorf("%s: exit status %d\n%s", name, status, said)
			}
		})
	}
	wg.Wait()
	for name := range files {
		if _, err := os.Stat(r.cache + "/processed/" + name + ".gz"); err != nil {
			t.Error(err)
		}
	}
	r.applied(t)
	for i := 1; i < n; i += 2 {
		unit := fmt.Sprintf("%s/vms/10.1.1.0-24_%s/", r.drop, address(i))
		for _, file := range []string{"vm.yaml", "meta-data.yaml", "user-data"} {
			if _, err := os.Stat(unit + file); err != nil {
				t.Error(err)
			}
		}
	}
	lease(t, g, address(0x13))
	if got, err := curl(t, g, "http://10.1.1.1/latest/user-data"); err != nil || got != "hello" {
		t.Errorf("user data = %q, %v", got, err)
	}
}

// TestCloudStackRedundantRouter: the router that does not hold the guests' gateway takes everything in
// and is silent; with the address it serves at once.
func TestCloudStackRedundantRouter(t *testing.T) {
	buildProgram(t, "vragent-cloudstack")
	if !nstest.Enter(t) {
		return
	}
	r := newCloudRouter(t, newRouter(t))
	r.configure(t, "cloudstack: {enabled: true}\n")
	g := r.guest(t, "g", "eth2", "02:00:00:00:00:13")
	r.AddAddr(t, "eth2", "10.40.1.203/24")
	g.AddAddr(t, "eth0", "10.40.1.50/24")
	r.start(t)
	r.update(t, "cmd_line.json", sampleFile(t, "cmd_line.json.vpc"))
	r.update(t, "guest_network.json.u1", sampleFile(t, "guest_network.json.1"))
	r.update(t, "vm_dhcp_entry.json.u2", strings.ReplaceAll(dhcpEntry("10.40.1.50", "02:00:00:00:00:13"), "10.1.1.1", "10.40.1.1"))
	r.update(t, "vm_metadata.json.u3", `{"vm_ip_address":"10.40.1.50","vm_metadata":[["metadata","instance-id","vm-1"]]}`)
	r.update(t, "vm_password.json.u4", `{"ip_address":"10.40.1.50","password":"s3cret"}`)
	for _, url := range []string{"http://10.40.1.203/latest/instance-id", "http://10.40.1.203:8080/"} {
		if got, err := curl(t, g, url); err == nil {
			t.Errorf("the router that stands by answers %s with %q", url, got)
		}
	}
	if out, err := g.Output(t, "timeout", "20", "udhcpc", "-q", "-n", "-t", "2", "-T", "1", "-i", "eth0", "-s", "/bin/true"); err == nil {
		t.Errorf("the router that stands by gives out a lease:\n%s", out)
	}
	r.AddAddr(t, "eth2", "10.40.1.1/24")
	nstest.Poll(t, 10*time.Second, "the router serves", func() bool {
		got, err := curl(t, g, "http://10.40.1.1/latest/instance-id")
		return err == nil && got == "vm-1"
	})
	out, err := g.Output(t, "timeout", "20", "udhcpc", "-q", "-n", "-i", "eth0", "-s", "/bin/true")
	if err != nil || !strings.Contains(out, "10.40.1.50 obtained from 10.40.1.1") {
		t.Errorf("udhcpc: %v\n%s", err, out)
	}
}

// TestCloudStackRouterStarts takes an aggregated file in, with items of others between ours and one
// that fails.
func TestCloudStackRouterStarts(t *testing.T) {
	buildProgram(t, "vragent-cloudstack")
	if !nstest.Enter(t) {
		return
	}
	r := newCloudRouter(t, newRouter(t))
	r.configure(t, "cloudstack: {enabled: true}\n")
	g := r.guest(t, "g", "eth0", "02:01:00:cb:00:02")
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	r.start(t)
	r.update(t, "cmd_line.json", sampleFile(t, "cmd_line.json"))
	const name = "VR-2f6a4c1e-8b7d-4e0f-9c3a-5d1b7e9f0a09.cfg"
	whole := sampleFile(t, name)
	item := func(name, content string) string {
		return "<file>\n" + r.cache + "/" + name + "\n" + content + "\n</file>\n<script>\n/opt/cloud/bin/update_config.py " + name + "\n</script>\n"
	}
	r.copyIn(t, name, item("firewall_rules.json.1", "{}")+item("fail.json.2", "{}")+whole+item("vm_password.json.3", "{"))
	status, said := r.call(t, "vr_cfg.sh", "-c", r.cache+"/"+name)
	if status != 1 || !strings.Contains(said, "fail.json.2: exit status 3") || !strings.Contains(said, "vm_password.json.3: rejected: ") || strings.Contains(said, "firewall") {
		t.Errorf("exit status %d and %q", status, said)
	}
	lease(t, g, "10.1.1.50")
	if got, err := os.ReadFile(r.dir + "/originals"); err != nil || string(got) != "cmd_line.json\nfirewall_rules.json.1\nfail.json.2\n" {
		t.Errorf("the original was called for %q, %v", got, err)
	}
	r.copyIn(t, name, whole)
	for range 2 {
		if status, said := r.call(t, "vr_cfg.sh", "-c", r.cache+"/"+name); status != 0 || said != "" {
			t.Errorf("exit status %d and %q", status, said)
		}
	}
	if got := gunzip(t, r.cache+"/processed/"+name+".gz"); got != whole {
		t.Errorf("the archived file is %q", got)
	}
}

// TestCloudStackDiskFull: what cannot be written is not acknowledged, what was in force stays, and the
// server's next try succeeds.
func TestCloudStackDiskFull(t *testing.T) {
	buildProgram(t, "vragent-cloudstack")
	if !nstest.Enter(t) {
		return
	}
	r := newCloudRouter(t, newRouter(t))
	r.configure(t, "cloudstack: {enabled: true}\n")
	g := r.guest(t, "g", "eth0", "02:00:00:00:00:13")
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	disk := r.dir + "/drop"
	r.Run(t, "mkdir", disk)
	r.Run(t, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk)
	r.start(t)
	defer func() {
		r.stop()
		r.Run(t, "umount", disk)
	}()
	r.update(t, "cmd_line.json", sampleFile(t, "cmd_line.json"))
	r.update(t, "vm_dhcp_entry.json.1", dhcpEntry("10.1.1.50", "02:00:00:00:00:13"))
	r.update(t, "vm_metadata.json.2", `{"vm_ip_address":"10.1.1.50","vm_metadata":[["userdata","user-data","aGVsbG8="],["metadata","vm-id","1"]]}`)
	lease(t, g, "10.1.1.50")
	fill, err := os.Create(disk + "/.fill")
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 4096); err == nil; _, err = fill.Write(block) {
	}
	fill.Close()
	next := fmt.Sprintf(`{"vm_ip_address":"10.1.1.50","vm_metadata":[["userdata","user-data","%s"],["metadata","vm-id","1"]]}`, strings.Repeat("eHh4", 3000))
	r.copyIn(t, "vm_metadata.json.3", next)
	if status, said := r.call(t, "update_config.py", "vm_metadata.json.3"); status == 0 || !strings.Contains(said, "no space left on device") {
		t.Errorf("with a full disk: exit status %d and %q", status, said)
	}
	if got, err := curl(t, g, "http://10.1.1.1/latest/user-data"); err != nil || got != "hello" {
		t.Errorf("user data with a full disk = %q, %v", got, err)
	}
	if err := os.Remove(disk + "/.fill"); err != nil {
		t.Fatal(err)
	}
	if status, said := r.call(t, "update_config.py", "vm_metadata.json.3"); status != 0 {
		t.Errorf("once there is room: exit status %d and %q", status, said)
	}
	if got, err := curl(t, g, "http://10.1.1.1/latest/user-data"); err != nil || got != strings.Repeat("x", 9000) {
		t.Errorf("user data once there is room: %d bytes, %v", len(got), err)
	}
}

// TestCloudStackExtension serves a network as an extension of a newer server.
func TestCloudStackExtension(t *testing.T) {
	buildProgram(t, "vragent-cloudstack")
	if !nstest.Enter(t) {
		return
	}
	r := newCloudRouter(t, newRouter(t))
	r.configure(t, "cloudstack: {enabled: true}\n")
	g := r.guest(t, "g", "ext100", "02:00:00:00:00:0a")
	r.AddAddr(t, "ext100", "10.0.0.2/24")
	r.start(t)
	call := func(command, payload string) (int, string) {
		file := r.dir + "/payload.json"
		if err := os.WriteFile(file, []byte(`{"physical-network-extension-details":{},"network-extension-details":{},"payload":`+payload+`}`), 0o600); err != nil {
			t.Fatal(err)
		}
		return r.call(t, "vragent-extension", command, file, "60")
	}
	const network = `"network_id":"42","vlan":"100","gateway":"10.0.0.1","cidr":"10.0.0.0/24","extension_ip":"10.0.0.2","dns":"192.0.2.53","domain":"t1.internal"`
	for _, c := range [][3]string{
		{"ensure-network-device", `{"network_id":"42","current_details":"{}"}`, "{}\n"},
		{"implement-network", "{" + network + "}", ""},
		{"restore-network", "{" + network + `,"restore_data":{"dhcp_enabled":true,"userdata_enabled":true,"vms":[{"ip":"10.0.0.10","mac":"02:00:00:00:00:0a","hostname":"vm-1","default_nic":true,` +
			`"vm_data":[{"dir":"userdata","file":"user-data","content":"#!/bin/sh"},{"dir":"meta-data","file":"instance-id","content":"i-1"}]}]}}`, ""},
	} {
		if status, said := call(c[0], c[1]); status != 0 || said != c[2] {
			t.Fatalf("%s: exit status %d and %q, want 0 and %q", c[0], status, said, c[2])
		}
	}
	lease(t, g, "10.0.0.10")
	if got, err := curl(t, g, "http://10.0.0.2/latest/meta-data/instance-id"); err != nil || got != "i-1" {
		t.Errorf("instance-id = %q, %v", got, err)
	}
	if got, err := curl(t, g, "http://10.0.0.2/latest/user-data"); err != nil || got != "#!/bin/sh" {
		t.Errorf("user data = %q, %v", got, err)
	}
	if status, said := call("apply-fw-rules", "{"+network+"}"); status != 1 || !strings.Contains(said, `"status":"failed"`) {
		t.Errorf("a command of another service: exit status %d and %q", status, said)
	}
	if status, said := call("destroy-network", "{"+network+"}"); status != 0 {
		t.Errorf("destroy-network: exit status %d and %q", status, said)
	}
	if got, err := curl(t, g, "http://10.0.0.2/latest/user-data"); err == nil {
		t.Errorf("after the network's end the guest reads %q", got)
	}
	if units, err := r.client.VMs(context.Background()); err != nil || len(units) != 0 {
		t.Errorf("VMs after the network's end: %v, %v", units, err)
	}
}
