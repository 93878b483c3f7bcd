package metadata_test

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime/pprof"
	"strconv"
	"strings"
	"testing"
	"time"

	"vragent/metadata"
	"vragent/netcfg/nstest"
)

// The figures are measured by
//
//	VRAGENT_FIGURES=1 go test -count=1 -v -run '^TestFigures' ./metadata
//
// which prints them as tables. They are no tests: nothing fails because something was slow. The
// server and its peers, nginx and Apache, run one after the other in one namespace, each in a process of
// its own, and wrk in another.
const figuresEnv = "VRAGENT_FIGURES"

// serveEnv makes TestServe a server: the value says of which kind.
const serveEnv = "VRAGENT_METADATA_SERVE"

func figures(t *testing.T) bool {
	t.Helper()
	if os.Getenv(figuresEnv) == "" {
		t.Skip("set " + figuresEnv + "=1 to measure")
	}
	return nstest.Enter(t)
}

// TestServe is the server of the figures, in a process of its own: device eth0, address 10.0.0.1, and
// as many guests from 10.8.0.0 on as its environment says, each with 2 KB of user data, which are one
// after another in one file.
func TestServe(t *testing.T) {
	kind := os.Getenv(serveEnv)
	if kind == "" {
		t.Skip("it is the server of the figures")
	}
	guests, err := strconv.Atoi(os.Getenv("VRAGENT_METADATA_GUESTS"))
	if err != nil {
		t.Fatal(err)
	}
	size, err := strconv.Atoi(os.Getenv("VRAGENT_METADATA_SIZE"))
	if err != nil {
		t.Fatal(err)
	}
	stored, err := os.Create(filepath.Join(t.TempDir(), "stored"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(stored, zeros{}, int64(guests*size)); err != nil {
		t.Fatal(err)
	}
	table := metadata.NewTable()
	n := network("guest-1", "10.8.0.0/16") // routed, or the router would need a neighbor entry for each
	n.Serving = netip.MustParseAddr("10.0.0.1")
	table.SetNetwork(n)
	address := firstGuest
	for i := range guests {
		g := guest("guest-1", fmt.Sprintf("i-2-%d-VM", i), address.String())
		g.Meta = map[string]string{"public-keys": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample user@example\n", "availability-zone": "zone-1"}
		g.UserData = &section{io.NewSectionReader(stored, int64(i*size), int64(size)), strconv.Itoa(i)}
		table.SetGuest(g)
		address = address.Next()
	}
	limits := metadata.Limits{Connections: 64}
	if rate := os.Getenv("VRAGENT_METADATA_RATE"); rate != "" {
		limits.Rate, _ = strconv.Atoi(rate)
	}
	server := metadata.NewServer(table, metadata.Options{Limits: limits})
	index, err := strconv.Atoi(os.Getenv("VRAGENT_METADATA_DEVICE"))
	if err != nil {
		t.Fatal(err)
	}
	device := metadata.Device{Index: index, Name: "eth0", Networks: []string{"guest-1"}, Listen: []netip.Addr{n.Serving}}
	if kind == "net/http" {
		fmt.Println("serving")
		t.Fatal(metadata.ServeNetHTTP(server, device, n.Serving))
	}
	server.SetDevices([]metadata.Device{device})
	if faults := server.Faults(); len(faults) > 0 {
		t.Fatal(faults)
	}
	fmt.Println("serving")
	if profile := os.Getenv("VRAGENT_METADATA_PROFILE"); profile != "" {
		f, _ := os.Create(profile)
		pprof.StartCPUProfile(f)
		time.AfterFunc(5*time.Second, pprof.StopCPUProfile)
	}
	server.Run(t.Context())
}

var firstGuest = netip.MustParseAddr("10.8.0.0")

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// section is Content that is a part of a file which stays open.
type section struct {
	*io.SectionReader
	etag string
}

func (s *section) ETag() string { return s.etag }
func (s *section) Open() (io.ReadSeekCloser, error) {
	return struct {
		io.ReadSeeker
		io.Closer
	}{io.NewSectionReader(s.SectionReader, 0, s.Size()), io.NopCloser(nil)}, nil
}

// peer is one of the servers that are measured side by side.
type peer struct {
	name    string
	process *nstest.Process
}

// bench is where the figures are measured: the router's side and the load's.
type bench struct {
	router, load *nstest.Host
}

func newBench(t *testing.T) *bench {
	b := &bench{router: nstest.Here(t), load: nstest.NewHost(t, "load")}
	nstest.Pair(t, b.router, "eth0", b.load, "eth0")
	b.router.AddAddr(t, "eth0", "10.0.0.1/24")
	b.load.AddAddr(t, "eth0", "10.0.0.2/24")
	b.router.AddRoute(t, "10.8.0.0/16", "10.0.0.2")
	b.load.Run(t, "ip", "route", "add", "local", "10.8.0.0/16", "dev", "lo")
	b.load.Run(t, "ip", "route", "replace", "10.0.0.0/24", "dev", "eth0", "src", firstGuest.String())
	return b
}

func (b *bench) ours(t *testing.T, kind string, guests, size, rate int) *peer {
	t.Helper()
	p := b.router.Start(t, "env",
		serveEnv+"="+kind, "VRAGENT_METADATA_GUESTS="+strconv.Itoa(guests), "VRAGENT_METADATA_SIZE="+strconv.Itoa(size),
		"VRAGENT_METADATA_RATE="+strconv.Itoa(rate),
		"VRAGENT_METADATA_DEVICE="+strconv.Itoa(b.router.Link(t, "eth0").Attrs().Index),
		os.Args[0], "-test.run=^TestServe$", "-test.timeout=0")
	p.WaitFor(t, "serving\n", 30*time.Second)
	return &peer{kind, p}
}

// tree lays out what nginx and Apache serve, as a CloudStack router has it.
func (b *bench) tree(t *testing.T, guests int) string {
	t.Helper()
	root := "/run/peer"
	address := firstGuest
	var names = []string{"availability-zone", "instance-id", "local-hostname", "local-ipv4", "public-hostname", "public-ipv4", "public-keys", "service-offering", "vm-id"}
	write := func(path, text string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i := range guests {
		metadata, userdata := filepath.Join(root, "www/metadata", address.String()), filepath.Join(root, "www/userdata", address.String())
		for _, name := range names {
			write(filepath.Join(metadata, name), fmt.Sprintf("i-2-%d-VM", i))
		}
		write(filepath.Join(metadata, "meta-data"), strings.Join(names, "\n")+"\n")
		write(filepath.Join(userdata, "user-data"), strings.Repeat("\x00", 2048))
		access := "Options -Indexes\nOrder Deny,Allow\nDeny from all\nAllow from " + address.String() + "\n"
		write(filepath.Join(metadata, ".htaccess"), access)
		write(filepath.Join(userdata, ".htaccess"), access)
		address = address.Next()
	}
	rules := "Options +FollowSymLinks\nRewriteEngine On\n\nRewriteRule ^user-data$  ../userdata/%{REMOTE_ADDR}/user-data [L,NC,QSA]\n"
	for _, name := range names {
		rules += "RewriteRule ^" + name + "$  ../metadata/%{REMOTE_ADDR}/" + name + " [L,NC,QSA]\n"
	}
	rules += "RewriteRule ^meta-data/(.+)$  ../metadata/%{REMOTE_ADDR}/$1 [L,NC,QSA]\nRewriteRule ^meta-data/$  ../metadata/%{REMOTE_ADDR}/meta-data [L,NC,QSA]\n"
	write(filepath.Join(root, "www/latest/.htaccess"), rules)
	return root
}

// nginx serves the tree, to each guest its own part or, for crowds, to all of them the first one's.
func (b *bench) nginx(t *testing.T, root string, crowd bool) *peer {
	t.Helper()
	config := `daemon off; master_process on; worker_processes 1; user root; pid /run/peer/nginx.pid; error_log /run/peer/nginx.log;
events { worker_connections 4096; }
http {
	sendfile on; tcp_nopush on; access_log off; default_type application/octet-stream; keepalive_requests 100000000;
	client_body_temp_path /run/peer/t1; proxy_temp_path /run/peer/t2; fastcgi_temp_path /run/peer/t3; uwsgi_temp_path /run/peer/t4; scgi_temp_path /run/peer/t5;
	server {
		listen 10.0.0.1:80;
		location = /latest/user-data { alias /run/peer/www/userdata/$remote_addr/user-data; }
		location = /latest/meta-data/ { rewrite ^ /listing last; }
		location = /listing { internal; alias /run/peer/www/metadata/$remote_addr/meta-data; }
		location /latest/meta-data/ { alias /run/peer/www/metadata/$remote_addr/; }
		location /latest/ { alias /run/peer/www/metadata/$remote_addr/; }
	}
}`
	if crowd {
		config = strings.ReplaceAll(config, "$remote_addr", firstGuest.String())
	}
	if err := os.WriteFile(filepath.Join(root, "nginx.conf"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	return b.started(t, "nginx", "/usr/sbin/nginx", "-c", filepath.Join(root, "nginx.conf"), "-e", filepath.Join(root, "nginx.log"))
}

func (b *bench) apache(t *testing.T, root string) *peer {
	t.Helper()
	config := `ServerRoot /etc/apache2
ServerName router
PidFile /run/peer/apache.pid
Mutex file:/run/peer default
ErrorLog /run/peer/apache.log
User www-data
Group www-data
Listen 10.0.0.1:80
KeepAlive On
MaxKeepAliveRequests 0
KeepAliveTimeout 5
DocumentRoot /run/peer/www
<Directory /run/peer/www>
	Options Indexes FollowSymLinks
	AllowOverride All
	Require all granted
</Directory>
`
	modules := ""
	for _, m := range []string{"mpm_event", "authz_core", "authz_host", "access_compat", "rewrite", "dir", "autoindex"} {
		modules += "LoadModule " + m + "_module /usr/lib/apache2/modules/mod_" + m + ".so\n"
	}
	if err := os.WriteFile(filepath.Join(root, "apache.conf"), []byte(modules+config), 0o644); err != nil {
		t.Fatal(err)
	}
	return b.started(t, "Apache", "/usr/sbin/apache2", "-f", filepath.Join(root, "apache.conf"), "-DFOREGROUND")
}

// started starts a peer and waits until it answers.
func (b *bench) started(t *testing.T, name, program string, args ...string) *peer {
	t.Helper()
	p := b.router.Start(t, program, args...)
	c := client(t, b.load, "")
	nstest.Poll(t, 30*time.Second, name+" to answer", func() bool {
		got, err := tryAsk(c, "GET", "http://10.0.0.1/latest/user-data")
		return err == nil && got.Status == 200 && len(got.Body) == 2048
	})
	c.CloseIdleConnections()
	return &peer{name, p}
}

// cpu is the time that a process and its descendants have computed so far.
func cpu(t testing.TB, pid int) time.Duration {
	t.Helper()
	var sum time.Duration
	for _, pid := range append(descendants(pid), pid) {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		for _, thread := range threads {
			if b, err := os.ReadFile(thread); err == nil {
				ns, _ := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
				sum += time.Duration(ns)
			}
		}
	}
	return sum
}

func descendants(pid int) []int {
	var all []int
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range files {
		b, _ := os.ReadFile(file)
		for _, field := range strings.Fields(string(b)) {
			child, _ := strconv.Atoi(field)
			all = append(append(all, child), descendants(child)...)
		}
	}
	return all
}

// resident is the memory of a process and its descendants in bytes.
func resident(t testing.TB, pid int) int64 {
	t.Helper()
	var sum int64
	for _, pid := range append(descendants(pid), pid) {
		f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if rest, ok := strings.CutPrefix(lines.Text(), "VmRSS:"); ok {
				kb, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
				sum += kb << 10
			}
		}
		f.Close()
	}
	return sum
}

var wrkRequests = regexp.MustCompile(`(\d+) requests in ([0-9.]+)s`)

// wrk loads the server for some seconds and gives the CPU time for each request and the requests in a
// second.
func (b *bench) wrk(t *testing.T, p *peer, seconds int, path string, fields ...string) (each time.Duration, rate float64) {
	t.Helper()
	args := []string{"-t1", "-c16", "-d" + strconv.Itoa(seconds) + "s"}
	for _, f := range fields {
		args = append(args, "-H", f)
	}
	before := cpu(t, p.process.Pid())
	out := b.load.Run(t, "wrk", append(args, "http://10.0.0.1"+path)...)
	used := cpu(t, p.process.Pid()) - before
	m := wrkRequests.FindStringSubmatch(out)
	if m == nil || strings.Contains(out, "Non-2xx") || strings.Contains(out, "Socket errors") {
		t.Fatalf("wrk %s against %s:\n%s", path, p.name, out)
	}
	n, _ := strconv.Atoi(m[1])
	took, _ := strconv.ParseFloat(m[2], 64)
	return used / time.Duration(n), float64(n) / took
}

func TestFiguresOfThroughput(t *testing.T) {
	if !figures(t) {
		return
	}
	b := newBench(t)
	root := b.tree(t, 1)
	seconds := 3
	if s, err := strconv.Atoi(os.Getenv("VRAGENT_FIGURES_SECONDS")); err == nil {
		seconds = s
	}
	peers := []func() *peer{
		func() *peer { return b.ours(t, "fasthttp", 1, 2048, 0) },
		func() *peer { return b.ours(t, "net/http", 1, 2048, 0) },
		func() *peer { return b.nginx(t, root, false) },
		func() *peer { return b.apache(t, root) },
	}
	loads := []struct {
		name, path string
		fields     []string
	}{
		{"2 KB user data, kept", "/latest/user-data", nil},
		{"one name, kept", "/latest/meta-data/instance-id", nil},
		{"2 KB user data, new", "/latest/user-data", []string{"Connection: close"}},
		{"one name, new", "/latest/meta-data/instance-id", []string{"Connection: close"}},
	}
	type figure struct {
		each time.Duration
		rate float64
	}
	table := make(map[string]figure)
	var names []string
	for _, start := range peers {
		p := start()
		names = append(names, p.name)
		b.wrk(t, p, 1, loads[0].path) // warm
		for _, l := range loads {
			each, rate := b.wrk(t, p, seconds, l.path, l.fields...)
			table[p.name+l.name] = figure{each, rate}
		}
		p.kill()
	}
	fmt.Printf("%-24s %-10s %12s %9s %12s %9s\n", "16 connections", "server", "CPU/request", "of nginx", "requests/s", "of nginx")
	for _, l := range loads {
		base := table["nginx"+l.name]
		for _, name := range names {
			f := table[name+l.name]
			fmt.Printf("%-24s %-10s %12v %8.2fx %12.0f %8.2fx\n", l.name, name, f.each.Round(10*time.Nanosecond),
				float64(f.each)/float64(base.each), f.rate, f.rate/base.rate)
		}
	}
}

// kill ends a peer that is done with and waits for it.
func (p *peer) kill() {
	for _, pid := range append(descendants(p.process.Pid()), p.process.Pid()) {
		if process, err := os.FindProcess(pid); err == nil {
			process.Kill()
		}
	}
	p.process.Wait()
}
