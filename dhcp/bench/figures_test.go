package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"

	"vragent/dhcp"
	"vragent/netcfg/nstest"
)

var figures = flag.String("figures", "", "measure what fits this regular expression: cpu, known, pool, avalanche, lone, flood; takes minutes and both cores")

// lab is the router with the server that is measured, and the machine that loads it.
type lab struct {
	t      *testing.T
	router *nstest.Host
	load   *nstest.Host
	dir    string
	shim   string
}

// measured is a running server.
type measured struct {
	name string
	pid  int
	stop func()
}

var servers = []string{"vragent", "kea", "dhcpd", "dnsmasq"}

func TestFigures(t *testing.T) {
	wanted := *figures
	if wanted == "" {
		wanted = os.Getenv("VRAGENT_DHCP_FIGURES")
	}
	if wanted == "" && os.Getenv("VRAGENT_FIGURES") != "" {
		wanted = "."
	}
	if wanted == "" {
		t.Skip("measures only with VRAGENT_FIGURES=1, or some of it with -figures, such as -figures=cpu")
	}
	t.Setenv("VRAGENT_DHCP_FIGURES", wanted) // reaches the test where it runs again in its namespaces
	if !nstest.Enter(t) {
		return
	}
	l := &lab{t: t, router: nstest.Here(t), load: nstest.NewHost(t, "load"), dir: t.TempDir()}
	nstest.Pair(t, l.router, "port0", l.load, "eth0")
	l.router.Bridge(t, "eth0", "port0")
	l.router.AddAddr(t, "eth0", serverIP.String()+"/16")
	l.load.AddAddr(t, "eth0", clientIP.String()+"/16")
	l.buildShim()
	for _, part := range []struct {
		name string
		run  func()
	}{
		{"cpu", l.cpu}, {"known", l.known}, {"pool", l.pool}, {"avalanche", l.avalanches}, {"lone", l.loneClient}, {"flood", l.flood},
	} {
		if regexp.MustCompile(wanted).MatchString(part.name) {
			part.run()
		}
	}
}

// cpu compares what an exchange costs, and the memory that so many hosts take.
func (l *lab) cpu() {
	t, out := l.t, l.t.Logf
	out("CPU time of the server per exchange, 4,000 exchanges a second offered")
	for _, name := range []string{"vragent", "kea", "dhcpd"} {
		for _, hosts := range []int{1000, 10000} {
			m := l.start(name, setup{hosts: hosts})
			l.perfdhcp(hosts, "-r", "2000", "-p", "2")
			before := m.cpu(t)
			result := l.perfdhcp(hosts, "-r", "4000", "-p", "6", "-W", "500000")
			used := m.cpu(t) - before
			out("  %-8s %6d known clients: %6.1f µs an exchange, %s, resident %.1f MiB", name, hosts,
				float64(used.Microseconds())/float64(max(result.completed(), 1)), result, m.resident(t))
			m.stop()
		}
	}

}

func (l *lab) known() {
	out := l.t.Logf
	out("16,000 exchanges a second offered, 4,000 known clients")
	for _, name := range servers {
		m := l.start(name, setup{hosts: 4000})
		l.perfdhcp(4000, "-r", "2000", "-p", "2")
		out("  %-8s %s", name, l.perfdhcp(4000, "-r", "16000", "-p", "5", "-W", "500000"))
		m.stop()
	}
}

func (l *lab) pool() {
	out := l.t.Logf
	out("16,000 exchanges a second offered, pool, 4,000 clients; vragent probes and stores before each ACK")
	for _, name := range servers {
		m := l.start(name, setup{pool: true, probe: true})
		l.perfdhcp(0, "-R", "4000", "-r", "1000", "-p", "10")
		out("  %-8s %s", name, l.perfdhcp(0, "-R", "4000", "-r", "16000", "-p", "5", "-W", "500000"))
		m.stop()
	}
}

func (l *lab) avalanches() {
	out := l.t.Logf
	out("avalanche of 2,000 clients, pool")
	for _, name := range servers {
		m := l.start(name, setup{pool: true, probe: true})
		l.perfdhcp(0, "-R", "2000", "-r", "500", "-p", "12")
		out("  %-8s %s", name, l.avalanche(2000))
		m.stop()
	}
}

// start starts a server on eth0 and waits until it answers.
func (l *lab) start(name string, s setup) *measured {
	l.t.Helper()
	dir := l.t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o666); err != nil {
			l.t.Fatal(err)
		}
		return path
	}
	var argv, env []string
	switch name {
	case "vragent":
		argv = []string{"/proc/self/exe"}
		env = []string{serverVariable + "=1", "HOSTS=" + strconv.Itoa(s.hosts), "LEASES=" + filepath.Join(dir, "leases")}
		if s.pool {
			env = append(env, "POOL=1")
		}
		if s.probe {
			env = append(env, "PROBE=1")
		}
	case "kea":
		argv = []string{"kea-dhcp4", "-c", file("kea.json", keaConfig(dir, s))}
		env = []string{"KEA_PIDFILE_DIR=" + dir, "KEA_LOCKFILE_DIR=" + dir}
	case "dhcpd":
		argv = []string{"dhcpd", "-4", "-f", "-q", "-cf", file("dhcpd.conf", dhcpdConfig(s)), "-lf", file("dhcpd.leases", ""), "-pf", filepath.Join(dir, "dhcpd.pid"), "--no-pid", "eth0"}
	case "dnsmasq":
		file("hosts", dnsmasqHosts(s))
		argv = []string{"dnsmasq", "-k", "-C", file("dnsmasq.conf", dnsmasqConfig(dir, s))}
	}
	cmd := l.router.Command(context.Background(), argv[0], argv[1:]...)
	if name == "vragent" {
		exe, err := os.Executable()
		if err != nil {
			l.t.Fatal(err)
		}
		cmd = l.router.Command(context.Background(), exe)
	}
	cmd.Env = append(os.Environ(), env...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		l.t.Fatalf("%s: %v", name, err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	m := &measured{name: name, pid: cmd.Process.Pid, stop: func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		select {
		case <-exited:
		case <-time.After(5 * time.Second):
			_ = cmd.Process.Kill()
			<-exited
		}
		if name == "vragent" {
			_, counts, _ := strings.Cut(strings.TrimSpace(log.String()), "\n")
			l.t.Logf("           (%s)", counts)
		}
	}}
	probe := newClient(l, 40)
	defer probe.close()
	mac := dhcp.MAC{2, 0, 0x77, 0, 0, 1}
	if s.hosts > 0 {
		mac = hostMAC(0)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		if _, err := probe.exchange(mac, 300*time.Millisecond); err == nil {
			return m
		}
		select {
		case <-exited:
			l.t.Fatalf("%s ended: %s", name, log.String())
		default:
		}
		if time.Now().After(deadline) {
			m.stop()
			l.t.Fatalf("%s does not answer: %s", name, log.String())
		}
	}
}

// cpu returns the processor time that the server has used.
func (m *measured) cpu(t *testing.T) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// resident returns the server's resident memory in MiB.
func (m *measured) resident(t *testing.T) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.pid))
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
	kib, _ := strconv.Atoi(string(match[1]))
	return float64(kib) / 1024
}

// buildShim makes a library that enlarges the receive buffers of the program it is loaded into.
func (l *lab) buildShim() {
	source := filepath.Join(l.dir, "shim.c")
	l.shim = filepath.Join(l.dir, "shim.so")
	code := `#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/socket.h>
int socket(int domain, int type, int protocol) {
	static int (*real)(int, int, int);
	if (!real) real = dlsym(RTLD_NEXT, "socket");
	int fd = real(domain, type, protocol), size = 4 << 20;
	if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
	return fd;
}
`
	if err := os.WriteFile(source, []byte(code), 0o666); err != nil {
		l.t.Fatal(err)
	}
	if out, err := exec.Command("cc", "-shared", "-fPIC", "-o", l.shim, source, "-ldl").CombinedOutput(); err != nil {
		l.t.Fatalf("cc: %v: %s", err, out)
	}
}

// load is what perfdhcp counted.
type load struct {
	discovers, offers, requests, acks int
	ackDelay                          string
}

func (r load) completed() int { return r.acks }

func (r load) String() string {
	lost := 100 * float64(r.discovers-r.acks) / float64(max(r.discovers, 1))
	return fmt.Sprintf("%d of %d exchanges, %.2f %% lost, REQUEST-ACK %s ms", r.acks, r.discovers, lost, r.ackDelay)
}

// perfdhcp loads the server, with the MACs of known hosts if there are any.
func (l *lab) perfdhcp(hosts int, args ...string) load {
	l.t.Helper()
	if hosts > 0 {
		var list strings.Builder
		for i := range hosts {
			fmt.Fprintln(&list, hostMAC(i))
		}
		macs := filepath.Join(l.dir, "macs")
		if err := os.WriteFile(macs, []byte(list.String()), 0o666); err != nil {
			l.t.Fatal(err)
		}
		args = append(args, "-M", macs)
	}
	out := l.run(args)
	counts := regexp.MustCompile(`(?m)^sent packets: (\d+)\nreceived packets: (\d+)`).FindAllStringSubmatch(out, -1)
	delays := regexp.MustCompile(`(?m)^avg delay: ([\d.]+)`).FindAllStringSubmatch(out, -1)
	if len(counts) < 2 {
		l.t.Fatalf("perfdhcp says:\n%s", out)
	}
	var r load
	r.discovers, _ = strconv.Atoi(counts[0][1])
	r.offers, _ = strconv.Atoi(counts[0][2])
	r.requests, _ = strconv.Atoi(counts[1][1])
	r.acks, _ = strconv.Atoi(counts[1][2])
	if len(delays) > 1 {
		r.ackDelay = delays[1][1]
	}
	return r
}

// runLimit ends a run of perfdhcp that does not end by itself, as an avalanche that a server does not bear.
const runLimit = 45 * time.Second

func (l *lab) run(args []string) string {
	args = append([]string{"LD_PRELOAD=" + l.shim, "perfdhcp", "-4", "-l", clientIP.String()}, args...)
	ctx, cancel := context.WithTimeout(context.Background(), runLimit)
	defer cancel()
	cmd := l.load.Command(ctx, "env", append(args, serverIP.String())...)
	out, _ := cmd.CombinedOutput() // its status tells of lost packets, which are counted anyhow
	return string(out)
}

// avalanche is the time until all of so many clients have an address.
func (l *lab) avalanche(clients int) string {
	out := l.run([]string{"--scenario", "avalanche", "-R", strconv.Itoa(clients)})
	if match := regexp.MustCompile(`(?m)^.*took ([\d.:]+ ?\w*).*$`).FindStringSubmatch(out); match != nil {
		return strings.TrimSpace(match[0])
	}
	if out == "" {
		return fmt.Sprintf("not over after %v", runLimit)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], " | ")
}

// client makes exchanges one after the other, as a relay does, which each server answers alike.
type client struct {
	l    *lab
	conn *net.UDPConn
	xid  uint32
	buf  [2048]byte
}

// newClient binds an address of the load machine's, the last byte of which is given.
func newClient(l *lab, last byte) *client {
	ip := clientIP.As4()
	ip[3] = last
	c := &client{l: l}
	text := net.IP(ip[:]).String()
	_, _ = l.load.Output(l.t, "ip", "addr", "add", text+"/16", "dev", "eth0") // it may be there
	var err error
	l.load.Do(l.t, func() { c.conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: ip[:], Port: 67}) })
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

func (c *client) close() { _ = c.conn.Close() }

// exchange takes one client through DISCOVER and REQUEST and returns how long that took.
func (c *client) exchange(mac dhcp.MAC, timeout time.Duration) (time.Duration, error) {
	start := time.Now()
	offer, err := c.ask(mac, timeout, dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover))
	if err != nil {
		return 0, err
	}
	ack, err := c.ask(mac, timeout, dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(offer.ServerIdentifier())),
		dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(offer.YourIPAddr)))
	if err != nil {
		return 0, err
	}
	if ack.MessageType() != dhcpv4.MessageTypeAck {
		return 0, fmt.Errorf("answer is %v", ack.MessageType())
	}
	return time.Since(start), nil
}

func (c *client) ask(mac dhcp.MAC, timeout time.Duration, change ...dhcpv4.Modifier) (*dhcpv4.DHCPv4, error) {
	c.xid++
	xid := dhcpv4.TransactionID{byte(c.xid >> 24), byte(c.xid >> 16), byte(c.xid >> 8), byte(c.xid)}
	giaddr := c.conn.LocalAddr().(*net.UDPAddr).IP
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(mac[:]), dhcpv4.WithTransactionID(xid), dhcpv4.WithGatewayIP(giaddr)}, change...)...)
	if err != nil {
		return nil, err
	}
	if _, err := c.conn.WriteToUDP(m.ToBytes(), &net.UDPAddr{IP: serverIP.AsSlice(), Port: 67}); err != nil {
		return nil, err
	}
	if err := c.conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	for {
		n, _, err := c.conn.ReadFromUDP(c.buf[:])
		if err != nil {
			return nil, err
		}
		if reply, err := dhcpv4.FromBytes(c.buf[:n]); err == nil && reply.TransactionID == xid {
			return reply, nil
		}
	}
}

// loneClient compares an exchange from the pool, with its sync, to one of a known client and a sync.
func (l *lab) loneClient() {
	l.t.Logf("one client alone, vragent, medians")
	m := l.start("vragent", setup{hosts: 1, pool: true, probe: true})
	defer m.stop()
	c := newClient(l, 41)
	defer c.close()
	measure := func(mac dhcp.MAC) time.Duration {
		var times []time.Duration
		for range 400 {
			if took, err := c.exchange(mac, 2*time.Second); err == nil {
				times = append(times, took)
			}
		}
		return median(times)
	}
	known, pooled := measure(hostMAC(0)), measure(dhcp.MAC{2, 0, 0x77, 0, 0, 2})
	f, err := os.OpenFile(filepath.Join(l.dir, "sync"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	var syncs []time.Duration
	for range 400 {
		start := time.Now()
		if _, err := f.Write(make([]byte, 60)); err != nil {
			l.t.Fatal(err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			l.t.Fatal(err)
		}
		syncs = append(syncs, time.Since(start))
	}
	l.t.Logf("  DISCOVER to ACK, known client    %v", known)
	l.t.Logf("  one append and fdatasync         %v", median(syncs))
	l.t.Logf("  DISCOVER to ACK from the pool    %v", pooled)
}

// flood measures known clients while another guest on the device sends 100,000 packets a second.
func (l *lab) flood() {
	guest := nstest.NewHost(l.t, "flooder")
	nstest.Pair(l.t, l.router, "port1", guest, "eth0")
	l.router.Run(l.t, "ip", "link", "set", "port1", "master", "eth0")
	l.router.Up(l.t, "port1")
	guest.AddAddr(l.t, "eth0", "10.66.0.3/16")
	for _, kind := range []string{"none", "one MAC", "random MACs"} {
		l.t.Logf("known clients' exchanges while a guest floods: %s", kind)
		for _, name := range []string{"vragent", "kea"} {
			m := l.start(name, setup{hosts: 1000})
			stop, sent := make(chan struct{}), make(chan int, 1)
			if kind != "none" {
				l.startFlood(guest, kind == "random MACs", stop, sent)
			}
			c := newClient(l, 42)
			var times []time.Duration
			lost := 0
			end := time.Now().Add(5 * time.Second)
			for i := 0; time.Now().Before(end); i++ {
				took, err := c.exchange(hostMAC(i%1000), time.Second)
				if err != nil {
					lost++
					continue
				}
				times = append(times, took)
			}
			c.close()
			close(stop)
			rate := 0
			if kind != "none" {
				rate = <-sent / 5
			}
			slices.Sort(times)
			if len(times) == 0 {
				times = []time.Duration{0}
			}
			l.t.Logf("  %-8s %6d packets a second of flood; %6d exchanges, median %v, 99th percentile %v, lost %d", name, rate,
				len(times), median(times), times[len(times)*99/100], lost)
			m.stop()
		}
	}
}

// startFlood sends broadcasts of DISCOVER at 100,000 a second until stop closes, then says how many.
func (l *lab) startFlood(guest *nstest.Host, random bool, stop chan struct{}, sent chan int) {
	var conn *net.UDPConn
	var err error
	guest.Do(l.t, func() { conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IP{10, 66, 0, 3}, Port: 68}) })
	if err != nil {
		l.t.Fatal(err)
	}
	m, err := dhcpv4.New(dhcpv4.WithHwAddr(net.HardwareAddr{2, 0, 0x55, 0, 0, 1}), dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover))
	if err != nil {
		l.t.Fatal(err)
	}
	packet := m.ToBytes()
	go func() {
		defer conn.Close()
		count := 0
		to := &net.UDPAddr{IP: net.IPv4bcast, Port: 67}
		start := time.Now()
		for {
			select {
			case <-stop:
				sent <- count
				return
			default:
			}
			due := int(time.Since(start) / (10 * time.Microsecond))
			if count >= due {
				time.Sleep(100 * time.Microsecond)
			}
			for ; count < due; count++ {
				if random {
					packet[31], packet[32], packet[33] = byte(count>>16), byte(count>>8), byte(count)
				}
				_, _ = conn.WriteToUDP(packet, to)
			}
		}
	}()
}

func median(times []time.Duration) time.Duration {
	if len(times) == 0 {
		return 0
	}
	times = slices.Clone(times)
	slices.Sort(times)
	return times[len(times)/2]
}

func keaConfig(dir string, s setup) string {
	type object = map[string]any
	network := object{"subnet": subnet.String(), "id": 1, "interface": "eth0", "option-data": []object{
		{"name": "routers", "data": serverIP.String()}, {"name": "domain-name-servers", "data": serverIP.String()},
		{"name": "domain-name", "data": "bench.internal"},
	}}
	if s.pool {
		network["pools"] = []object{{"pool": poolFrom.String() + " - " + poolTo.String()}}
	}
	reservations := []object{}
	for i := range s.hosts {
		reservations = append(reservations, object{"hw-address": hostMAC(i).String(), "ip-address": hostIP(i).String(), "hostname": fmt.Sprintf("vm-%d", i)})
	}
	network["reservations"] = reservations
	config, err := json.Marshal(object{"Dhcp4": object{
		"interfaces-config":            object{"interfaces": []string{"eth0"}, "dhcp-socket-type": "raw"},
		"lease-database":               object{"type": "memfile", "persist": true, "name": filepath.Join(dir, "kea.leases"), "lfc-interval": 0},
		"valid-lifetime":               3600,
		"host-reservation-identifiers": []string{"hw-address"},
		"subnet4":                      []object{network},
		"loggers":                      []object{{"name": "kea-dhcp4", "severity": "FATAL", "output_options": []object{{"output": "stderr"}}}},
	}})
	if err != nil {
		panic(err)
	}
	return string(config)
}

func dhcpdConfig(s setup) string {
	var b strings.Builder
	fmt.Fprintf(&b, "default-lease-time 3600; max-lease-time 3600; authoritative; log-facility local7;\nsubnet 10.66.0.0 netmask 255.255.0.0 {\n"+
		"option routers %s; option domain-name-servers %s; option domain-name \"bench.internal\";\n", serverIP, serverIP)
	if s.pool {
		fmt.Fprintf(&b, "range %s %s;\n", poolFrom, poolTo)
	}
	b.WriteString("}\n")
	for i := range s.hosts {
		fmt.Fprintf(&b, "host h%d { hardware ethernet %s; fixed-address %s; }\n", i, hostMAC(i), hostIP(i))
	}
	return b.String()
}

func dnsmasqConfig(dir string, s setup) string {
	config := fmt.Sprintf("port=0\ninterface=eth0\nbind-dynamic\nuser=root\nno-ping\nquiet-dhcp\nlog-facility=/dev/null\ndhcp-authoritative\n"+
		"dhcp-leasefile=%s/dnsmasq.leases\ndhcp-lease-max=100000\ndhcp-hostsfile=%s/hosts\ndhcp-option=3,%s\ndhcp-option=6,%s\ndomain=bench.internal\n",
		dir, dir, serverIP, serverIP)
	if s.pool {
		return config + fmt.Sprintf("dhcp-range=%s,%s,255.255.0.0,1h\n", poolFrom, poolTo)
	}
	return config + "dhcp-range=10.66.0.0,static,255.255.0.0,1h\n"
}

func dnsmasqHosts(s setup) string {
	var b strings.Builder
	for i := range s.hosts {
		fmt.Fprintf(&b, "%s,%s\n", hostMAC(i), hostIP(i))
	}
	return b.String()
}
