package metadata_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vragent/metadata"
	"vragent/netcfg/nstest"
)

// file is Content in a file of its own.
type file struct {
	path string
	size int64
	etag string
}

func content(t testing.TB, data []byte) metadata.Content {
	t.Helper()
	path := filepath.Join(t.TempDir(), "content")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return &file{path: path, size: int64(len(data)), etag: hex.EncodeToString(sum[:])}
}

func (f *file) Size() int64                      { return f.size }
func (f *file) ETag() string                     { return f.etag }
func (f *file) Open() (io.ReadSeekCloser, error) { return os.Open(f.path) }

// log collects what a server logs.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// site is a router with a server, in the test's own namespace, and guests' segments on it.
type site struct {
	t      *testing.T
	table  *metadata.Table
	server *metadata.Server
	log    *log
	router *nstest.Host
	end    func() // stops the server and waits for it

	devices []metadata.Device
}

// newSite starts a server without devices. The test must be inside.
func newSite(t *testing.T, o metadata.Options) *site {
	t.Helper()
	s := &site{t: t, table: metadata.NewTable(), log: new(log), router: nstest.Here(t)}
	s.start(o)
	t.Cleanup(func() { s.end() })
	return s
}

// start starts a server without devices.
func (s *site) start(o metadata.Options) {
	o.Logger = slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s.server = metadata.NewServer(s.table, o)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func(server *metadata.Server) {
		defer close(ended)
		if err := server.Run(ctx); err != nil {
			s.t.Errorf("Run() = %v", err)
		}
	}(s.server)
	s.end = func() {
		cancel()
		<-ended
	}
}

// segment makes a device of the router with an address, and a host at its other end with further
// ones. It is not served before serve is called.
func (s *site) segment(device, address string, host *nstest.Host, sources ...string) {
	s.t.Helper()
	nstest.Pair(s.t, s.router, device, host, "eth0")
	s.router.AddAddr(s.t, device, address)
	host.AddAddr(s.t, "eth0", sources...)
}

// serve has the server serve networks on a device.
func (s *site) serve(device string, listen []string, networks ...string) {
	s.t.Helper()
	d := metadata.Device{Index: s.router.Link(s.t, device).Attrs().Index, Name: device, Networks: networks}
	for _, a := range listen {
		d.Listen = append(d.Listen, netip.MustParseAddr(a))
	}
	s.devices = append(slices.DeleteFunc(s.devices, func(o metadata.Device) bool { return o.Name == device }), d)
	s.server.SetDevices(s.devices)
	if faults := s.server.Faults(); len(faults) != 0 {
		s.t.Fatalf("Faults() = %v", faults)
	}
}

// network is a network as the agent would describe it, its gateway the first address.
func network(name, subnet string) *metadata.Network {
	prefix := netip.MustParsePrefix(subnet)
	gateway := prefix.Masked().Addr().Next()
	return &metadata.Network{
		Name: name, Subnet: prefix, Gateway: gateway, Serving: gateway, Domain: "cs1.internal",
		PublicIPv4: netip.MustParseAddr("203.0.113.7"),
	}
}

func guest(network, vm, ip string) *metadata.Guest {
	return &metadata.Guest{
		Network: network, VM: vm, Generation: 1, IP: netip.MustParseAddr(ip), Default: true,
		Hostname: strings.ToLower(vm), Domain: "cs1.internal",
	}
}

// small is the usual site: a guest VM-1 at 10.1.1.34 in a network guest-1 on eth0, whose segment has
// 10.1.1.34, 10.1.1.35 and 10.1.1.99.
func small(t *testing.T, o metadata.Options) (*site, *nstest.Host) {
	t.Helper()
	s := newSite(t, o)
	host := nstest.NewHost(t, "guest")
	s.segment("eth0", "10.1.1.1/24", host, "10.1.1.34/24", "10.1.1.35/24", "10.1.1.99/24")
	s.table.SetNetwork(network("guest-1", "10.1.1.0/24"))
	s.table.SetGuest(guest("guest-1", "VM-1", "10.1.1.34"))
	s.serve("eth0", []string{"10.1.1.1"}, "guest-1")
	return s, host
}

// client is an HTTP client of one host with one source address.
func client(t testing.TB, host *nstest.Host, source string) *http.Client {
	t.Helper()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return dial(ctx, host, source, address)
		},
		DisableCompression: true,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

func dial(ctx context.Context, host *nstest.Host, source, address string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	if source != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(source)}
	}
	return host.Dial(ctx, dialer, "tcp4", address)
}

// answer is a response with its body.
type answer struct {
	Status int
	Body   string
	Header http.Header
}

// ask makes a request with further header fields, name and value by turns. The field Host sets the
// request's host.
func ask(t testing.TB, c *http.Client, method, url string, fields ...string) answer {
	t.Helper()
	a, err := tryAsk(c, method, url, fields...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return a
}

func tryAsk(c *http.Client, method, url string, fields ...string) (answer, error) {
	r, err := http.NewRequest(method, url, nil)
	if err != nil {
		return answer{}, err
	}
	for i := 0; i < len(fields); i += 2 {
		if fields[i] == "Host" {
			r.Host = fields[i+1]
		} else {
			r.Header.Set(fields[i], fields[i+1])
		}
	}
	response, err := c.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return answer{}, fmt.Errorf("body: %w", err)
	}
	return answer{Status: response.StatusCode, Body: string(body), Header: response.Header}, nil
}

// halfClose has raw end its sending side after the request.
const halfClose = true

// raw sends bytes over a connection of their own and gives all that comes back until the server
// closes it, which it is given some time for.
func raw(t testing.TB, host *nstest.Host, source, address, request string, halfClose ...bool) string {
	t.Helper()
	c, err := dial(context.Background(), host, source, address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(c, request) // the server may have seen enough before the end
	if len(halfClose) > 0 {
		c.(*net.TCPConn).CloseWrite()
	}
	reply, err := io.ReadAll(bufio.NewReader(c))
	if err != nil && len(reply) == 0 {
		return err.Error()
	}
	return string(reply)
}
