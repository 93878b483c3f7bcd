package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vragent/netcfg/nstest"
)

// cloudMAC is that of the i-th VM; it has the address vmAddress(i).
func cloudMAC(i int) string { return fmt.Sprintf("02:00:00:%02x:%02x:%02x", i>>16, i>>8&255, i&255) }

// figuresCloudRouter is a CloudStack router with room for many VMs whose daemon is a process of its
// own, and a host that stands for all guests.
func figuresCloudRouter(t *testing.T) (r *cloudRouter, g *nstest.Host, d *daemon) {
	t.Helper()
	if os.Getenv("VRAGENT_FIGURES") != "" {
		buildProgram(t, "vragent-cloudstack")
	}
	plain, g, binary := figuresRouter(t)
	if plain == nil {
		return nil, nil, nil
	}
	r = newCloudRouter(t, plain)
	text, err := os.ReadFile(r.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.config, append(text, "cloudstack: {enabled: true}\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	// All guests are one host: it takes what is sent to any of them.
	g.Run(t, "nft", "add table netdev guests; add chain netdev guests in { type filter hook ingress device eth0 priority 0; }; "+
		"add rule netdev guests in meta protocol ip meta pkttype set unicast")
	d = startDaemon(t, r.router, binary)
	r.update(t, "cmd_line.json", `{"type":"cmdline","cmd_line":{"type":"router","name":"r-1-VM","eth0ip":"10.0.0.1","eth0mask":"255.0.0.0","eth2ip":"203.0.113.2","domain":"cs1.internal","dns1":"192.0.2.53"}}`)
	return r, g, d
}

// cloudFiles are the three files of a VM, by name.
func cloudFiles(i, userData int) [3][2]string {
	user := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{'x'}, userData))
	return [3][2]string{
		{fmt.Sprintf("vm_dhcp_entry.json.%d", i), fmt.Sprintf(`{"host_name":"vm-%d","mac_address":"%s","ipv4_address":"%s","ipv6_duid":"00:03:00:01:%[2]s","default_gateway":"10.0.0.1","default_entry":true,"remove":false,"lease_time":0,"type":"dhcpentry","delete_from_processed_cache":false}`,
			i, cloudMAC(i), vmAddress(i))},
		{fmt.Sprintf("vm_metadata.json.%d", i), fmt.Sprintf(`{"vm_ip_address":"%s","vm_metadata":[["userdata","user-data","%s"],["metadata","service-offering","Medium Instance"],["metadata","availability-zone","zone-a"],["metadata","local-ipv4","%[1]s"],`+
			`["metadata","local-hostname","vm-%[3]d"],["metadata","public-ipv4","203.0.113.2"],["metadata","public-hostname","203.0.113.2"],["metadata","instance-id","id-%[3]d"],["metadata","vm-id","id-%[3]d"],`+
			`["metadata","public-keys","ssh-ed25519 AAAA%[3]d ops"],["metadata","cloud-identifier","CloudStack-{x}"],["metadata","hypervisor-host-name",""]],"type":"vmdata","delete_from_processed_cache":false}`, vmAddress(i), user, i)},
		{fmt.Sprintf("vm_password.json.%d", i), fmt.Sprintf(`{"ip_address":"%s","password":"secret%d","type":"vmpassword","delete_from_processed_cache":false}`, vmAddress(i), i)},
	}
}

// aggregate drops an aggregated file of n VMs, and returns its path.
func (r *cloudRouter) aggregate(t *testing.T, n, userData int) string {
	t.Helper()
	var b bytes.Buffer
	b.WriteString("#Apache CloudStack Virtual Router Config File\n<version>\n1.0\n</version>\n")
	for i := range n {
		for _, f := range cloudFiles(i, userData) {
			fmt.Fprintf(&b, "<file>\n/var/cache/cloud/%s\n%s\n</file>\n<script>\n/opt/cloud/bin/update_config.py %[1]s\n</script>\n", f[0], f[1])
		}
	}
	r.copyIn(t, "VR-figures.cfg", b.String())
	return r.cache + "/VR-figures.cfg"
}

func TestFiguresOfCloudStack(t *testing.T) {
	r, g, d := figuresCloudRouter(t)
	if r == nil {
		return
	}
	w := figures(t)
	const n = 2000
	path := r.aggregate(t, n, 500)
	cpu, began := d.cpu(t), time.Now()
	status, said := r.call(t, "vr_cfg.sh", "-c", path)
	took := time.Since(began)
	cpu = d.cpu(t) - cpu
	if status != 0 {
		t.Fatalf("vr_cfg.sh: exit status %d\n%s", status, said)
	}
	fmt.Fprintf(w, "aggregated start with lease, metadata and password of each, through vr_cfg.sh (CPU time of the agent)\t%d\t%.2f s (%.2f s)\t5 s\n", n, took.Seconds(), cpu.Seconds())
	g.Run(t, "ip", "addr", "replace", vmAddress(n-1)+"/8", "dev", "eth0")
	if got := get(t, clientAt(g, vmAddress(n-1)), "http://10.0.0.1/latest/instance-id"); got != fmt.Sprintf("id-%d", n-1) {
		t.Fatalf("instance-id of the last VM = %q", got)
	}
	for kind, name := range []string{"vm_dhcp_entry", "vm_metadata", "vm_password"} {
		var times []float64
		for i := range 40 {
			f := cloudFiles(i*37, 501+i)[kind]
			r.copyIn(t, f[0], f[1])
			began := time.Now()
			status, said := r.call(t, "update_config.py", f[0])
			times = append(times, float64(time.Since(began).Microseconds())/1000)
			if status != 0 {
				t.Fatalf("%s: exit status %d\n%s", f[0], status, said)
			}
		}
		slices.Sort(times)
		fmt.Fprintf(w, "update_config.py of one %s, process start included, median of 40 (the worst)\t%d\t%.1f ms (%.1f ms)\t50 ms\n", name, n, times[len(times)/2], times[len(times)-1])
	}
	d.stop(t)
}

// TestFiguresOfCloudStackMemory compares what serves guests on a router: vragent, and dnsmasq for
// names, with what they take the place of. Memory is the proportional set size of all processes:
// what they share counts once.
func TestFiguresOfCloudStackMemory(t *testing.T) {
	r, g, d := figuresCloudRouter(t)
	if r == nil {
		return
	}
	w := figures(t)
	const n, userData, clients, requests = 1000, 500, 200, 10_000
	if status, said := r.call(t, "vr_cfg.sh", "-c", r.aggregate(t, n, userData)); status != 0 {
		t.Fatalf("vr_cfg.sh: exit status %d\n%s", status, said)
	}
	for i := range clients { // the kernel keeps 1,024 neighbors
		g.Run(t, "ip", "addr", "replace", vmAddress(i)+"/8", "dev", "eth0")
	}
	load := func() {
		t.Helper()
		list := make([]*http.Client, clients)
		for i := range list {
			list[i] = clientAt(g, vmAddress(i))
			list[i].Transport.(*http.Transport).DisableKeepAlives = true // as curl and cloud-init do
		}
		for i := range requests {
			c := i % clients
			if got := get(t, list[c], "http://10.0.0.1/latest/user-data"); len(got) != userData {
				t.Fatalf("user data of %d bytes", len(got))
			}
			if i%10 == 0 {
				if got := getPassword(t, list[c]); got != fmt.Sprintf("secret%d", c) {
					t.Fatalf("password of VM %d = %q", c, got)
				}
			}
		}
	}
	var leases bytes.Buffer
	for i := range n {
		fmt.Fprintf(&leases, "%s,%s,vm-%d,infinite\n", cloudMAC(i), vmAddress(i), i)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(r.dir+"/dhcphosts.txt", leases.String())
	const dnsmasqFor = "no-resolv\nexpand-hosts\ndomain=cs1.internal\nlocalise-queries\nbind-interfaces\nlisten-address=10.0.0.1\nuser=root\n"
	dnsmasq := func(more string) *exec.Cmd {
		write(r.dir+"/dnsmasq.conf", dnsmasqFor+more)
		return r.Command(t.Context(), "dnsmasq", "--keep-in-foreground", "--conf-file="+r.dir+"/dnsmasq.conf", "--pid-file=", "--dhcp-leasefile="+r.dir+"/leases")
	}
	resolves := func() {
		t.Helper()
		nstest.Poll(t, 20*time.Second, "dnsmasq resolves names", func() bool { return resolvesAt(g, "vm-999.cs1.internal", vmAddress(999)) })
	}

	keep := r.Command(t.Context(), buildProgram(t, "vragent-cloudstack"), "keep")
	keep.Env = append(os.Environ(), "VRAGENT_SOCKET="+r.dir+"/api.sock")
	keeper := begin(t, keep)
	nstest.Poll(t, 20*time.Second, "the databags are written", func() bool {
		bag, err := os.ReadFile("/etc/cloudstack/vmdata.json")
		return err == nil && bytes.Contains(bag, []byte(vmAddress(n-1)))
	})
	names := begin(t, dnsmasq(""))
	resolves()
	load()
	ours, dns := memoryOf(t, d.cmd.Process.Pid), memoryOf(t, names.Process.Pid)
	fmt.Fprintf(w, "memory of all that serves guests, 500 bytes of user data each, after 10,000 requests\t%d\t%.1f MB\t40 MB\n", n, mb(ours+dns))
	fmt.Fprintf(w, "  of which vragent, dnsmasq for names alone\t%d\t%.1f MB, %.1f MB\t\n", n, mb(ours), mb(dns))
	fmt.Fprintf(w, "  beside it vragent-cloudstack keep, which serves no guest\t%d\t%.1f MB\t\n", n, mb(memoryOf(t, keeper.Process.Pid)))
	finish(t, keeper)
	finish(t, names)
	d.stop(t)

	// The old way, with the files that it makes of the same events.
	r.Run(t, "mount", "-t", "tmpfs", "tmpfs", "/var/www")
	r.Run(t, "mount", "-t", "tmpfs", "tmpfs", "/var/cache")
	r.Run(t, "chmod", "755", "/var/www", "/var/cache")
	rows := []string{"service-offering", "availability-zone", "local-ipv4", "local-hostname", "public-ipv4", "public-hostname", "instance-id", "vm-id", "public-keys", "cloud-identifier"}
	var passwords, rules strings.Builder
	rules.WriteString("Options +FollowSymLinks\nRewriteEngine On\nRewriteRule ^user-data$ ../userdata/%{REMOTE_ADDR}/user-data [L,NC,QSA]\n")
	for _, name := range rows {
		fmt.Fprintf(&rules, "RewriteRule ^%s$ ../metadata/%%{REMOTE_ADDR}/%[1]s [L,NC,QSA]\n", name)
	}
	rules.WriteString("RewriteRule ^meta-data/(.+)$ ../metadata/%{REMOTE_ADDR}/$1 [L,NC,QSA]\nRewriteRule ^meta-data/$ ../metadata/%{REMOTE_ADDR}/meta-data [L,NC,QSA]\n")
	for i := range n {
		ip := vmAddress(i)
		for _, dir := range []string{"metadata", "userdata"} {
			write("/var/www/html/"+dir+"/"+ip+"/.htaccess", "Options -Indexes\nOrder Deny,Allow\nDeny from all\nAllow from "+ip+"\n")
		}
		write("/var/www/html/userdata/"+ip+"/user-data", strings.Repeat("x", userData))
		for _, name := range rows {
			write("/var/www/html/metadata/"+ip+"/"+name, "some text")
		}
		write("/var/www/html/metadata/"+ip+"/meta-data", strings.Join(rows, "\n"))
		fmt.Fprintf(&passwords, "%s=secret%d\n", ip, i)
	}
	write("/var/www/html/latest/.htaccess", rules.String())
	write("/var/cache/cloud/passwords-10.0.0.1", passwords.String())
	write("/etc/apache2/ports.conf", "")
	r.Run(t, "sh", "-c", "rm -f /etc/apache2/sites-enabled/* && ln -sf ../mods-available/rewrite.load /etc/apache2/mods-enabled/")
	write("/etc/apache2/sites-enabled/vhost.conf", "ServerName router\nListen 10.0.0.1:80\n<VirtualHost 10.0.0.1:80>\nDocumentRoot /var/www/html\n"+
		"<Directory /var/www/html>\nOptions -Indexes +FollowSymLinks\nAllowOverride All\nRequire all granted\n</Directory>\n</VirtualHost>\n")
	for _, dir := range []string{"/run/apache2", "/run/lock/apache2", "/var/cache/log"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	apache := r.Command(t.Context(), "apache2", "-DFOREGROUND")
	apache.Env = append(os.Environ(), "APACHE_RUN_USER=www-data", "APACHE_RUN_GROUP=www-data", "APACHE_RUN_DIR=/run/apache2",
		"APACHE_PID_FILE=/run/apache2/apache2.pid", "APACHE_LOCK_DIR=/run/lock/apache2", "APACHE_LOG_DIR=/var/cache/log")
	old := []*exec.Cmd{
		begin(t, dnsmasq("dhcp-range=set:i,10.0.0.1,static,255.0.0.0\ndhcp-hostsfile="+r.dir+"/dhcphosts.txt\ndhcp-ignore=tag:!known\ndhcp-option=vendor:MSFT,2,1i\ndhcp-lease-max=2100\n")),
		begin(t, apache),
		begin(t, r.Command(t.Context(), "/usr/bin/python3", "../../packaging/cloudstack/standins/bin/passwd_server_ip.py", "10.0.0.1")),
	}
	resolves()
	client := clientAt(g, vmAddress(0))
	for _, url := range []string{"http://10.0.0.1/latest/user-data", "http://10.0.0.1:8080/"} {
		nstest.Poll(t, 20*time.Second, url+" answers", func() bool {
			res, err := client.Get(url)
			if err != nil {
				return false
			}
			res.Body.Close()
			return res.StatusCode == http.StatusOK
		})
	}
	load()
	var parts []string
	sum := 0
	for _, cmd := range old {
		m := memoryOf(t, cmd.Process.Pid)
		sum += m
		parts = append(parts, fmt.Sprintf("%.1f MB", mb(m)))
	}
	fmt.Fprintf(w, "the same of dnsmasq, Apache and the password server\t%d\t%.1f MB\t\n", n, mb(sum))
	fmt.Fprintf(w, "  of which each\t%d\t%s\t\n", n, strings.Join(parts, ", "))
	for _, cmd := range old {
		finish(t, cmd)
	}
}

func mb(bytes int) float64 { return float64(bytes) / (1 << 20) }

// begin starts a server, which finish ends.
func begin(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s:\n%s", cmd.Path, out.String())
		}
	})
	return cmd
}

func finish(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if cmd.ProcessState != nil {
		t.Fatalf("%s has ended: %s", cmd.Path, cmd.ProcessState)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait() // its status is that of the signal
}

// getPassword asks as a guest's script does.
func getPassword(t *testing.T, client *http.Client) string {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://10.0.0.1:8080/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header["DomU_Request"] = []string{"send_my_password"}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// memoryOf is the proportional set size of a process and all that it has started, in bytes.
func memoryOf(t *testing.T, pid int) int {
	t.Helper()
	sum := 0
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			sum = kb << 10
		}
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range tasks {
		children, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, child := range strings.Fields(string(children)) {
			n, err := strconv.Atoi(child)
			if err != nil {
				t.Fatal(err)
			}
			sum += memoryOf(t, n)
		}
	}
	return sum
}

// resolvesAt tells whether a name has the address for who asks the router.
func resolvesAt(g *nstest.Host, name, address string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return g.Dial(ctx, &net.Dialer{}, network, "10.0.0.1:53")
	}}
	got, err := resolver.LookupHost(ctx, name)
	return err == nil && slices.Contains(got, address)
}
