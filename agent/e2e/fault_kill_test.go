package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vragent/agent/internal/api"
	"vragent/agent/internal/cloudstack"
	"vragent/netcfg/nstest"
)

// An actor makes changes of one kind, one after the other. Both its methods may use what it remembers:
// they are never called at once.
type actor interface {
	// act makes one change. The error is not nil where it was not acknowledged, as when the daemon was
	// killed meanwhile. What is wrong whatever was killed is for t.
	act(ctx context.Context, t *testing.T) error
	// check compares what the daemon shows after a start with what it has acknowledged.
	check(t *testing.T)
}

// TestFaultKilled kills the daemon two hundred times, at random moments under every kind of change.
// What was acknowledged holds after the next start, and nothing is served that is half of a change.
func TestFaultKilled(t *testing.T) {
	binary := fault(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "prlimit")
	const kills = 200
	rng := seeded(t)
	r := newRouter(t)
	r.configure(t, "metadata: {guest_rate: 0}\ncloudstack: {enabled: true, dir: "+r.dir+"/cloud}\n")
	r.logLevel(t, "info")
	g, strangers := r.guest(t, "g", "va", macA), r.guest(t, "strangers", "vb", macB)
	r.Bridge(t, "eth0", "va", "vb")
	r.AddAddr(t, "eth0", "10.1.1.1/24", "10.1.2.1/24")
	strangers.AddAddr(t, "eth0", "10.1.1.9/24")
	guest := func(address string) *http.Client {
		g.AddAddr(t, "eth0", address+"/24")
		return asGuest(t, g, address)
	}

	p := r.boot(t, binary)
	r.put(t, "networks/guest-1.yaml", killNetwork(0))
	actors := []actor{
		newWriter(t, r, "renamed", "10.1.1.10", guest("10.1.1.10"), true),
		newWriter(t, r, "written", "10.1.1.11", guest("10.1.1.11"), false),
		&networkWriter{r: r, guest: guest("10.1.1.12")},
		newAPIClient(r, "pushed-1", "10.1.1.13", guest("10.1.1.13")),
		newAPIClient(r, "pushed-2", "10.1.1.14", guest("10.1.1.14")),
		&administrator{r: r, ledger: newLedger(), rng: rand.New(rand.NewPCG(rng.Uint64(), 1))},
		&machines{r: r, ledger: newLedger(), station: newStation(t, strangers), rng: rand.New(rand.NewPCG(rng.Uint64(), 3))},
		&comer{r: r, guest: guest("10.1.1.16")},
		&bundler{r: r, guests: []*http.Client{guest("10.1.1.17"), guest("10.1.1.18"), guest("10.1.1.19")}},
		&reset{r: r, guest: guest("10.1.1.15"), rng: rand.New(rand.NewPCG(rng.Uint64(), 2))},
		newManagement(t, r, "10.1.2.50", guest("10.1.2.50")),
	}
	r.put(t, "vms/plain/vm.yaml", "nics: [{network: guest-1, ipv4: 10.1.1.12}]\n")
	r.put(t, "vms/reset/vm.yaml", "nics: [{network: guest-1, ipv4: 10.1.1.15}]\n")
	r.applied(t)

	for kill := range kills {
		// Each actor makes its changes until the daemon is gone, which is after so many of all.
		var acts atomic.Int64
		until := 1 + rng.Int64N(40)
		moment := time.Duration(rng.Int64N(int64(3 * time.Millisecond)))
		enough := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		var acting sync.WaitGroup
		for _, a := range actors {
			acting.Go(func() {
				for a.act(ctx, t) == nil {
					if acts.Add(1) == until {
						close(enough)
					}
				}
			})
		}
		<-enough
		time.Sleep(moment) // anywhere between two of them
		crash(t, p)
		cancel()
		acting.Wait()

		if rng.IntN(4) == 0 { // and once more while it starts
			starting := r.Start(t, binary, "run", "--config", r.config)
			time.Sleep(time.Duration(rng.Int64N(int64(60 * time.Millisecond))))
			crash(t, starting)
		}
		p = r.boot(t, binary)
		nstest.Poll(t, waitTime, "jobs to go on", func() bool {
			// Those whose acknowledgement was lost, too.
			jobs, err := r.client.Jobs(t.Context(), 0)
			return err == nil && !slices.ContainsFunc(jobs, func(j api.Job) bool { return j.State == "open" })
		})
		r.applied(t)
		for _, a := range actors {
			a.check(t)
		}
		if t.Failed() {
			t.Fatalf("after kill %d", kill+1)
		}
	}
	end(t, p)
	for _, line := range strings.Split(strings.TrimSpace(p.Output()), "\n") {
		if strings.Contains(line, "state was damaged") && !strings.Contains(line, "torn") {
			t.Errorf("kills damage the state: %s", line)
		}
	}
}

// writer writes a VM's user data over and over.
type writer struct {
	r       *router
	name    string
	guest   *http.Client
	rename  bool
	version int
}

func newWriter(t *testing.T, r *router, name, ip string, guest *http.Client, rename bool) *writer {
	r.put(t, "vms/"+name+"/user-data", versioned("0"))
	r.put(t, "vms/"+name+"/vm.yaml", fmt.Sprintf("nics: [{network: guest-1, ipv4: %s}]\n", ip))
	return &writer{r: r, name: name, guest: guest, rename: rename}
}

func (w *writer) act(ctx context.Context, t *testing.T) error {
	w.version++
	path := w.r.drop + "/vms/" + w.name + "/user-data"
	data := []byte(versioned(strconv.Itoa(w.version)))
	var err error
	if w.rename {
		err = errors.Join(os.WriteFile(path+".tmp", data, 0o660), os.Rename(path+".tmp", path))
	} else {
		err = os.WriteFile(path, data, 0o660)
	}
	if err != nil {
		t.Error(err)
		return err
	}
	// What is served meanwhile is whole, and no version that never was.
	if got, err := ask(w.guest, "user-data"); err == nil {
		if n, err := strconv.Atoi(versionOf(got)); err != nil || n > w.version {
			t.Errorf("%s is served %d bytes of version %q while version %d is written", w.name, len(got), versionOf(got), w.version)
		}
	}
	return ctx.Err()
}

func (w *writer) check(t *testing.T) {
	t.Helper()
	if got, err := ask(w.guest, "user-data"); err != nil || versionOf(got) != strconv.Itoa(w.version) {
		t.Errorf("%s is served version %q, %v; its file is version %d", w.name, versionOf(got), err, w.version)
	}
}

// networkWriter writes a network's file over and over.
type networkWriter struct {
	r       *router
	guest   *http.Client
	version int
}

func killNetwork(version int) string {
	return network + fmt.Sprintf("pin_neighbors: false\npool: {from: 10.1.1.100, to: 10.1.1.250, probe: false}\nvendor_data: version %d\n", version)
}

func (w *networkWriter) act(ctx context.Context, t *testing.T) error {
	w.version++
	w.r.put(t, "networks/guest-1.yaml", killNetwork(w.version))
	_, err := ask(w.guest, "vendor-data") // which paces it
	return errors.Join(err, ctx.Err())
}

func (w *networkWriter) check(t *testing.T) {
	t.Helper()
	if got, err := ask(w.guest, "vendor-data"); err != nil || got != fmt.Sprint("version ", w.version) {
		t.Errorf("vendor data is %q, %v; the network's file has version %d", got, err, w.version)
	}
}

// apiClient pushes a VM over the API; its host name and its user data tell the version.
type apiClient struct {
	r     *router
	unit  *pushed
	guest *http.Client
}

func newAPIClient(r *router, name, ip string, guest *http.Client) *apiClient {
	return &apiClient{r: r, unit: &pushed{name: name, ip: ip}, guest: guest}
}

func (p *apiClient) act(ctx context.Context, t *testing.T) error {
	client := overSocket(p.r.dir + "/api.sock")
	defer client.CloseIdleConnections()
	err := p.unit.push(client)
	if err != nil && !errors.Is(err, errNoAnswer) {
		t.Error(err)
	}
	before, err1 := ask(p.guest, "local-hostname")
	data, err2 := ask(p.guest, "user-data")
	after, err3 := ask(p.guest, "local-hostname")
	if errors.Join(err1, err2, err3) == nil && before != "" && before == after && versionOf(data) != before {
		t.Errorf("%s has the host name %s and user data of %q", p.unit.name, before, versionOf(data))
	}
	return errors.Join(err, ctx.Err())
}

func (p *apiClient) check(t *testing.T) {
	t.Helper()
	for _, id := range p.unit.jobs {
		j, err := p.r.client.Job(t.Context(), id)
		if err != nil {
			t.Errorf("an acknowledged job of %s is lost: %v", p.unit.name, err)
			continue
		}
		if j.State != "done" {
			t.Errorf("job %s of %s is %s: %s", id, p.unit.name, j.State, j.Error)
		}
	}
	p.unit.jobs = nil // it is done, and its outcome is checked below each time
	hostname, err := ask(p.guest, "local-hostname")
	if err != nil || p.unit.acked > 0 && !p.unit.allowed(hostname) {
		t.Errorf("%s has the host name %q (%v), pushes %d to %d were not lost", p.unit.name, hostname, err, p.unit.acked, p.unit.tried)
	}
	if data, err := ask(p.guest, "user-data"); err != nil || hostname != "" && versionOf(data) != hostname {
		t.Errorf("%s has the host name %q and user data of %q, %v", p.unit.name, hostname, versionOf(data), err)
	}
}

// administrator adds and removes users.
type administrator struct {
	r      *router
	ledger *ledger
	rng    *rand.Rand
}

func (a *administrator) act(ctx context.Context, t *testing.T) error {
	return errors.Join(a.ledger.user(t, a.r, a.rng.IntN(2) == 0), ctx.Err())
}

func (a *administrator) check(t *testing.T) { t.Helper(); a.ledger.checkUsers(t, a.r) }

// machines are strangers that take addresses of the pool and renew them; now and then somebody ends the
// lease of one.
type machines struct {
	r       *router
	ledger  *ledger
	station *station
	rng     *rand.Rand
	n       int
}

func (m *machines) act(ctx context.Context, t *testing.T) error {
	if m.rng.IntN(4) == 0 {
		return errors.Join(m.ledger.release(ctx, m.r), ctx.Err())
	}
	m.n++
	err := m.ledger.lease(m.station, m.n%140, 200*time.Millisecond)
	if err != nil && !errors.Is(err, errSilence) {
		t.Error(err)
	}
	return errors.Join(err, ctx.Err())
}

func (m *machines) check(t *testing.T) { t.Helper(); m.ledger.checkLeases(t, m.r) }

// comer is a VM whose folder is moved in and out.
type comer struct {
	r     *router
	guest *http.Client
	n     int
	there bool
}

func (c *comer) act(ctx context.Context, t *testing.T) error {
	folder := c.r.drop + "/vms/comer"
	if c.there {
		c.there = false
		if err := os.Rename(folder, c.r.drop+"/vms/.gone"); err != nil {
			t.Error(err)
		}
		_, err := ask(c.guest, "local-hostname") // which paces it
		return errors.Join(err, ctx.Err())
	}
	c.n++
	coming := c.r.drop + "/vms/.coming"
	err := errors.Join(
		os.RemoveAll(c.r.drop+"/vms/.gone"), os.RemoveAll(coming), os.Mkdir(coming, 0o770),
		os.WriteFile(coming+"/user-data", []byte(versioned(strconv.Itoa(c.n))), 0o660),
		os.WriteFile(coming+"/vm.yaml", fmt.Appendf(nil, "hostname: comer-%d\nnics: [{network: guest-1, ipv4: 10.1.1.16}]\n", c.n), 0o660),
		os.Rename(coming, folder),
	)
	if err != nil {
		t.Error(err)
		return err
	}
	c.there = true
	_, err = ask(c.guest, "local-hostname")
	return errors.Join(err, ctx.Err())
}

func (c *comer) check(t *testing.T) {
	t.Helper()
	hostname, err1 := ask(c.guest, "local-hostname")
	data, err2 := ask(c.guest, "user-data")
	want, version := "", ""
	if c.there {
		want, version = fmt.Sprint("comer-", c.n), strconv.Itoa(c.n)
	}
	if errors.Join(err1, err2) != nil || hostname != want || versionOf(data) != version {
		t.Errorf("the guest that comes and goes has the host name %q and user data of %q, %v, %v; want %q", hostname, versionOf(data), err1, err2, want)
	}
}

// bundler pushes three VMs in one bundle.
type bundler struct {
	r            *router
	guests       []*http.Client
	tried, acked int
	jobs         []string
}

func (b *bundler) act(ctx context.Context, t *testing.T) error {
	b.tried++
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	add := func(name, content string) {
		if err := errors.Join(
			w.WriteHeader(&tar.Header{Name: name, Mode: 0o660, Size: int64(len(content)), Typeflag: tar.TypeReg}),
			second(io.WriteString(w, content)),
		); err != nil {
			t.Error(err)
		}
	}
	for i := range b.guests {
		version := fmt.Sprint("bundle-", b.tried)
		add(fmt.Sprintf("vms/bundle-%d/user-data", i), versioned(version))
		add(fmt.Sprintf("vms/bundle-%d/vm.yaml", i), fmt.Sprintf("hostname: %s\nnics: [{network: guest-1, ipv4: 10.1.1.%d}]\n", version, 17+i))
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	job, err := b.r.client.PushBundle(ctx, &archive, fmt.Sprintf("%x", sha256.Sum256(archive.Bytes())), false)
	if err != nil {
		return err
	}
	b.acked = b.tried
	b.jobs = append(b.jobs, job)
	_, err = ask(b.guests[0], "local-hostname")
	return errors.Join(err, ctx.Err())
}

func second[T any](_ T, err error) error { return err }

func (b *bundler) check(t *testing.T) {
	t.Helper()
	for _, id := range b.jobs {
		if j, err := b.r.client.Job(t.Context(), id); err != nil || j.State != "done" {
			t.Errorf("job %s of a bundle is %q, %s, %v", id, j.State, j.Error, err)
		}
	}
	b.jobs = nil
	for i, guest := range b.guests {
		hostname, err1 := ask(guest, "local-hostname")
		data, err2 := ask(guest, "user-data")
		n, _ := strconv.Atoi(strings.TrimPrefix(hostname, "bundle-")) // zero where there is none yet
		if errors.Join(err1, err2) != nil || n < b.acked || n > b.tried || hostname != "" && versionOf(data) != hostname {
			t.Errorf("VM %d of the bundle has the host name %q and user data of %q, %v, %v; bundles %d to %d were not lost", i, hostname, versionOf(data), err1, err2, b.acked, b.tried)
		}
	}
}

// reset is a guest whose password is set again and again, and that takes it.
type reset struct {
	r     *router
	guest *http.Client
	rng   *rand.Rand
	n     int
	state outcome // present: it waits; absent: it was taken
}

func (p *reset) password() string { return fmt.Sprint("secret-", p.n) }

func (p *reset) act(ctx context.Context, t *testing.T) error {
	if p.state == absent && p.rng.IntN(2) == 0 {
		// The same once more, as a management server that repeats itself does: it stays taken.
		p.r.put(t, "vms/reset/password", p.password()+"\n")
		return errors.Join(p.taken(t), ctx.Err())
	}
	p.n++
	p.r.put(t, "vms/reset/password", p.password()+"\n")
	p.state = present
	for got := ""; got != p.password(); {
		var err error
		if got, err = passwordOf(p.guest, "send_my_password"); errors.Join(err, ctx.Err()) != nil {
			return errors.Join(err, ctx.Err())
		}
	}
	p.state = unknown
	got, err := passwordOf(p.guest, "saved_password")
	if err != nil || got != "saved_password" {
		return errors.Join(err, fmt.Errorf("saved_password: %q", got))
	}
	p.state = absent
	return errors.Join(p.taken(t), ctx.Err())
}

// taken checks that a password that was taken is not given out again.
func (p *reset) taken(t *testing.T) error {
	got, err := passwordOf(p.guest, "send_my_password")
	if err == nil && got != "saved_password" {
		t.Errorf("%s was taken, and the guest gets %q", p.password(), got)
	}
	return err
}

func (p *reset) check(t *testing.T) {
	t.Helper()
	got, err := passwordOf(p.guest, "send_my_password")
	waits, gone := got == p.password(), got == "saved_password"
	if err != nil || p.n > 0 && (p.state == present && !waits || p.state == absent && !gone || !waits && !gone) {
		t.Errorf("%s is in state %d, and the guest gets %q, %v", p.password(), p.state, got, err)
	}
}

// management is a CloudStack management server: each event of a VM tells its version twice.
type management struct {
	r            *router
	ip           string
	guest        *http.Client
	tried, acked int
}

func newManagement(t *testing.T, r *router, ip string, guest *http.Client) *management {
	t.Helper()
	m := &management{r: r, ip: ip, guest: guest}
	err := m.apply(t.Context(), "cmd_line.json", map[string]any{"type": "cmdline", "cmd_line": map[string]string{
		"name": "r-1-VM", "eth0ip": "10.1.2.1", "eth0mask": "255.255.255.0", "dhcprange": "10.1.2.1", "type": "router", "domain": "cs.internal",
	}})
	if err != nil {
		t.Fatal(err)
	}
	err = m.apply(t.Context(), "vm_dhcp_entry.json", map[string]any{
		"host_name": "cs", "mac_address": macA, "ipv4_address": ip, "default_gateway": "10.1.2.1", "default_entry": true, "type": "dhcpentry",
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// apply hands a file to the daemon, and returns nil once it is in force.
func (m *management) apply(ctx context.Context, name string, content any) error {
	data, err := json.Marshal(content)
	if err != nil {
		return err
	}
	client := cloudstack.Dial(m.r.dir + "/api.sock")
	defer client.Close()
	results, err := client.Apply(ctx, []cloudstack.File{{Name: name, Data: data}})
	if err != nil {
		return err
	}
	if len(results) != 1 || results[0].State != cloudstack.Applied {
		return fmt.Errorf("%w: %s: %+v", errRejected, name, results)
	}
	return nil
}

var errRejected = errors.New("not applied")

func (m *management) act(ctx context.Context, t *testing.T) error {
	m.tried++
	err := m.apply(ctx, "vm_metadata.json", map[string]any{"vm_ip_address": m.ip, "type": "vmdata", "vm_metadata": [][]string{
		{"metadata", "vm-id", "cs"}, {"metadata", "tier", strconv.Itoa(m.tried)}, {"metadata", "zone", strconv.Itoa(m.tried)},
	}})
	if err == nil {
		m.acked = m.tried
	} else if errors.Is(err, errRejected) {
		t.Error(err)
	}
	return errors.Join(err, ctx.Err())
}

func (m *management) check(t *testing.T) {
	t.Helper()
	tier, err1 := askAt(m.guest, "10.1.2.1", "tier")
	zone, err2 := askAt(m.guest, "10.1.2.1", "zone")
	n, _ := strconv.Atoi(tier) // zero where there is none yet
	if errors.Join(err1, err2) != nil || tier != zone || n < m.acked || n > m.tried {
		t.Errorf("of CloudStack's guest tier is %q and zone %q, %v, %v; versions %d to %d were not lost", tier, zone, err1, err2, m.acked, m.tried)
	}
}
