package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vragent/agent/internal/cloudstack"
)

// fakeAgent is an agent that takes everything in and knows what a test says.
type fakeAgent struct {
	mu      sync.Mutex
	known   cloudstack.Guests
	changed chan struct{} // closed when known changes
	taken   []string
	left    int
	ended   int    // how often the networks of an extension were left
	reject  string // the file that is rejected
}

func newFakeAgent() *fakeAgent { return &fakeAgent{changed: make(chan struct{})} }

func (a *fakeAgent) set(g cloudstack.Guests) {
	a.mu.Lock()
	defer a.mu.Unlock()
	g.Generation = a.known.Generation + 1
	a.known = g
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *fakeAgent) Guests(ctx context.Context, after uint64) (cloudstack.Guests, error) {
	for {
		a.mu.Lock()
		g, changed := a.known, a.changed
		a.mu.Unlock()
		if g.Generation != after || after == 0 {
			return g, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return g, ctx.Err()
		}
	}
}

func (a *fakeAgent) Apply(_ context.Context, files []cloudstack.File) ([]cloudstack.Result, error) {
	var out []cloudstack.Result
	for _, f := range files {
		r := cloudstack.Result{Name: f.Name, State: cloudstack.Applied}
		if f.Name == a.reject {
			r.State, r.Reason = cloudstack.Rejected, "for the test"
		}
		a.taken = append(a.taken, f.Name)
		out = append(out, r)
	}
	return out, nil
}

func (a *fakeAgent) Leave(context.Context) error {
	a.left++
	a.set(cloudstack.Guests{})
	return nil
}

func (a *fakeAgent) LeaveExtension(context.Context) error {
	a.ended++
	return nil
}

// place is a router in a folder, with programs that are only noted.
type place struct {
	*site
	t      *testing.T
	agent  *fakeAgent
	out    *bytes.Buffer
	mu     sync.Mutex
	calls  []string
	failAt int    // the call that fails, from 1; 0: none
	fail   string // or the command line that does
	active string
}

func newPlace(t *testing.T, files map[string]string) *place {
	t.Helper()
	p := &place{t: t, agent: newFakeAgent(), out: &bytes.Buffer{}}
	p.site = &site{root: t.TempDir(), daemon: p.agent, start: p.call, out: p.out, now: func() time.Time { return time.Unix(1e9, 0).UTC() }}
	for _, dir := range []string{"/etc", binDir, unitsDir} {
		if err := os.MkdirAll(p.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for path, text := range files {
		p.write(path, text)
	}
	return p
}

func (p *place) write(path, text string) {
	p.t.Helper()
	if err := os.MkdirAll(filepath.Dir(p.path(path)), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(p.path(path), []byte(text), 0o755); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) read(path string) string {
	data, err := os.ReadFile(p.path(path))
	if err != nil {
		return "none"
	}
	return string(data)
}

func (p *place) call(_ context.Context, name string, args ...string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, strings.Join(append([]string{strings.TrimPrefix(name, p.root)}, args...), " "))
	if len(p.calls) == p.failAt || p.fail != "" && p.calls[len(p.calls)-1] == p.fail {
		return "", errors.New("fails for the test")
	}
	if name == "systemctl" && args[0] == "list-units" && strings.HasPrefix(p.active, strings.TrimSuffix(args[len(args)-1], "*.service")) {
		return p.active + " loaded active running\n", nil
	}
	return "", nil
}

// called tells how often programs were started with such a command line.
func (p *place) called(line string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, c := range p.calls {
		if strings.Contains(c, line) {
			n++
		}
	}
	return n
}

// tree is all files, with what they say or where they lead, but the package's own.
func (p *place) tree() map[string]string {
	p.t.Helper()
	out := make(map[string]string)
	err := filepath.WalkDir(p.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name := strings.TrimPrefix(path, p.root)
		if strings.HasPrefix(name, ownDir) {
			return nil
		}
		if to, err := os.Readlink(path); err == nil {
			out[name] = "-> " + to
			return nil
		}
		out[name] = p.read(name)
		return nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

// liveRouter are the files of one, as far as they matter here.
func liveRouter() map[string]string {
	return map[string]string{
		binDir + "/update_config.py":                 "original update",
		binDir + "/vr_cfg.sh":                        "original aggregated",
		binDir + "/configure.py":                     "original configure",
		unitsDir + "/cloud-password-server@.service": "[Service]",
		dnsmasqFile:                                         "conf-dir=/etc/dnsmasq.d\n",
		dnsmasqDir + "/cloud.conf":                          "dhcp-range=set:x,10.1.1.1,static\nlisten-address=10.1.1.1\n",
		bagsDir + "/cmdline.json":                           `{"config":{"type":"router"}}`,
		bagsDir + "/dhcpentry.json":                         `{"10.1.1.50":{"mac_address":"02:00:00:00:00:0a"}}`,
		cacheDir + "/passwords-10.1.1.1":                    "10.1.1.50=secret\n10.1.1.60=taken\n",
		leasesFile:                                          "0 02:00:00:00:00:0b 10.1.1.50 old *\n",
		websiteDir + "/userdata/10.1.1.60/user-data":        "old",
		websiteDir + "/metadata/10.1.1.60/meta-data":        "old",
		websiteDir + "/latest/.htaccess":                    "rules",
		hostsFile:                                           "127.0.0.1 localhost\n",
		"/etc/systemd/system/dnsmasq.service.d/other.conf":  "[Service]",
		"/etc/vragent/agent.d/60-of-the-administrator.yaml": "log: {level: debug}\n",
	}
}

func TestEnter(t *testing.T) {
	p := newPlace(t, liveRouter())
	p.active = "apache2.service"
	if status := p.command(context.Background(), []string{"enter"}); status != 0 {
		t.Fatalf("status %d: %s", status, p.out)
	}
	if got, want := strings.Join(p.agent.taken, " "), "cmd_line.json.databag vm_dhcp_entry.json.10.1.1.50 vm_password.json.10.1.1.50"; got != want {
		t.Errorf("taken over: %s, want %s", got, want)
	}
	for path, want := range map[string]string{
		binDir + "/update_config.py":                         standIn("update_config.py").script,
		binDir + "/update_config.py.cloudstack":              "original update",
		binDir + "/vr_cfg.sh.cloudstack":                     "original aggregated",
		binDir + "/configure.py":                             "original configure",
		unitsDir + "/cloud-password-server@.service":         "-> /dev/null",
		unitsDir + "/cloud-password-server@.service" + aside: "[Service]",
		unitsDir + "/apache2.service":                        "-> /dev/null",
		agentFile:                                            agentConfig,
		dropInFile:                                           dropIn,
	} {
		if got := p.tree()[path]; got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	if got, want := p.read(filteredDir+"/dnsmasq.d/cloud.conf"), "# vragent answers DHCP: dhcp-range=set:x,10.1.1.1,static\nlisten-address=10.1.1.1\n"; got != want {
		t.Errorf("dnsmasq sees %q, want %q", got, want)
	}
	// The diversions come last, when everything else is done.
	last := slices.IndexFunc(p.calls, func(c string) bool { return strings.HasPrefix(c, "dpkg-divert") })
	if stop := slices.Index(p.calls, "systemctl stop apache2.service"); stop < 0 || stop > last {
		t.Errorf("programs started: %q", p.calls)
	}

	// Once more changes nothing, and takes nothing over.
	before, taken := p.tree(), len(p.agent.taken)
	if status := p.command(context.Background(), []string{"enter"}); status != 0 {
		t.Fatalf("status %d: %s", status, p.out)
	}
	if diff := cmp.Diff(before, p.tree()); diff != "" || len(p.agent.taken) != taken {
		t.Errorf("the second time:\n%s%v", diff, p.agent.taken[taken:])
	}
}

// TestEnterThatFailsLeavesTheOldWay has each program fail that is started on the way, one at a time.
func TestEnterThatFailsLeavesTheOldWay(t *testing.T) {
	whole := newPlace(t, liveRouter())
	whole.active = "apache2.service"
	if err := whole.enter(context.Background()); err != nil {
		t.Fatal(err)
	}
	for n := range len(whole.calls) {
		t.Run(whole.calls[n], func(t *testing.T) {
			p := newPlace(t, liveRouter())
			p.active = "apache2.service"
			before := p.tree()
			p.failAt = n + 1
			if err := p.enter(context.Background()); err == nil || !strings.Contains(err.Error(), "fails for the test") {
				t.Fatalf("enter() = %v", err)
			}
			if diff := cmp.Diff(before, p.tree()); diff != "" {
				t.Errorf("it leaves behind:\n%s", diff)
			}
			added := p.called("dpkg-divert --quiet --package vragent-cloudstack --add")
			if strings.Contains(whole.calls[n], "--add") {
				added-- // it failed
			}
			if removed := p.called("--remove"); removed != added {
				t.Errorf("%d diversions were added and %d removed", added, removed)
			}
			if p.called("systemctl stop apache2") > p.called("systemctl start apache2") {
				t.Error("Apache stays stopped")
			}
			if p.agent.ended != 0 {
				t.Error("networks of an extension are gone, which were there before")
			}
			if rec := p.readRecord(); rec.InForce || rec.Problem == "" || len(rec.Stands) > 0 {
				t.Errorf("recorded is %+v", rec)
			}
			// And once it works again, it works.
			p.failAt = 0
			if err := p.enter(context.Background()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(whole.tree(), p.tree()); diff != "" {
				t.Errorf("tried again it differs:\n%s", diff)
			}
		})
	}
}

func TestEnterRefusesWhatCannotBeServed(t *testing.T) {
	for _, test := range []struct {
		name, file, text, reject, want string
	}{
		{"a databag that is broken", bagsDir + "/vmdata.json", "{", "", "databag vmdata.json"},
		{"a lease that is rejected", "/x", "", "vm_dhcp_entry.json.10.1.1.50", "what the databags say as vm_dhcp_entry.json.10.1.1.50 cannot be served: for the test"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPlace(t, liveRouter())
			p.write(test.file, test.text)
			p.agent.reject = test.reject
			before := p.tree()
			if err := p.enter(context.Background()); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("enter() = %v, want %s", err, test.want)
			}
			if diff := cmp.Diff(before, p.tree()); diff != "" || p.agent.left != 1 {
				t.Errorf("it leaves behind:\n%s", diff)
			}
		})
	}
}

func guestsOf(t *testing.T, dropDir string) cloudstack.Guests {
	t.Helper()
	folder, name := "userdata", "user-data"
	return cloudstack.Guests{
		DropDir: dropDir, Router: "r-1-VM",
		Networks: []cloudstack.NetworkSummary{{Serving: netip.MustParseAddr("10.1.1.1"), Subnet: netip.MustParsePrefix("10.1.1.0/24")}},
		Guests: []cloudstack.GuestSummary{{
			Unit: "vms/n_10.1.1.50", IP: netip.MustParseAddr("10.1.1.50"), MAC: "02:00:00:00:00:0c", Hostname: "web", Gateway: "10.1.1.1", Default: true,
			Rows: []cloudstack.Row{{&folder, &name, nil}},
		}},
	}
}

func TestLeavePutsEverythingBack(t *testing.T) {
	p := newPlace(t, liveRouter())
	p.active = "apache2.service"
	before := p.tree()
	if err := p.enter(context.Background()); err != nil {
		t.Fatal(err)
	}
	p.write("/drop/vms/n_10.1.1.50/user-data", "today")
	p.write("/drop/vms/n_10.1.1.50/password", "new\n")
	p.agent.set(guestsOf(t, "/drop"))
	if status := p.command(context.Background(), []string{"leave"}); status != 0 {
		t.Fatalf("status %d: %s", status, p.out)
	}
	after := p.tree()
	for path, want := range map[string]string{
		cacheDir + "/passwords-10.1.1.1": "10.1.1.50=new\n",
		leasesFile:                       "0 02:00:00:00:00:0c 10.1.1.50 web *\n",
		dhcpHosts:                        "02:00:00:00:00:0c,10.1.1.50,web,infinite\n",
	} {
		if after[path] != want {
			t.Errorf("%s is %q, want %q", path, after[path], want)
		}
	}
	if !strings.Contains(after[bagsDir+"/vmdata.json"], "dG9kYXk=") || !strings.Contains(after[bagsDir+"/dhcpentry.json"], "02:00:00:00:00:0c") ||
		!strings.Contains(after[hostsFile], "10.1.1.50\tweb\n") {
		t.Errorf("the databags are not those of today: %v", after)
	}
	for path := range after {
		if strings.HasPrefix(path, "/drop/") || strings.HasPrefix(path, bagsDir) || path == dhcpHosts || path == hostsFile || path == leasesFile || strings.HasPrefix(path, cacheDir) {
			delete(after, path)
		}
	}
	for path := range before {
		if strings.HasPrefix(path, bagsDir) || path == hostsFile || path == leasesFile || strings.HasPrefix(path, cacheDir) ||
			strings.HasPrefix(path, websiteDir+"/userdata/") || strings.HasPrefix(path, websiteDir+"/metadata/") {
			delete(before, path)
		}
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("not as it was:\n%s", diff)
	}
	if p.agent.left != 1 || p.agent.ended != 1 || p.called("systemctl start apache2.service") != 1 ||
		p.called("configure.py vm_dhcp_entry.json") != 2 || p.called("configure.py vm_metadata.json") != 1 || p.called("--remove") != 2 {
		t.Errorf("programs started: %q", p.calls)
	}
	// A router that is not taken over is left as it is.
	if err := p.leave(context.Background()); err != nil {
		t.Error(err)
	}
}

// TestOnlyRegularFilesOfUnitsAreRead: the daemon's group writes into their folders, and root reads.
func TestOnlyRegularFilesOfUnitsAreRead(t *testing.T) {
	const unit, file = "/drop/vms/n_10.1.1.50", "/drop/vms/n_10.1.1.50/user-data"
	for name, test := range map[string]struct {
		put  func(p *place) error
		want string
	}{
		"a link":          {func(p *place) error { return os.Symlink(p.path("/secret/user-data"), p.path(file)) }, "user-data is no regular file"},
		"a pipe":          {func(p *place) error { return unix.Mkfifo(p.path(file), 0o666) }, "user-data is no regular file"},
		"a folder":        {func(p *place) error { return os.Mkdir(p.path(file), 0o755) }, "user-data is no regular file"},
		"a linked folder": {func(p *place) error { return relink(p, unit, "/secret") }, "n_10.1.1.50 is no folder"},
		"a file as a folder": {func(p *place) error {
			return errors.Join(os.Remove(p.path(unit)), os.WriteFile(p.path(unit), nil, 0o644))
		}, "n_10.1.1.50 is no folder"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t, map[string]string{"/secret/user-data": "for root alone"})
			if err := errors.Join(os.MkdirAll(p.path(unit), 0o755), test.put(p)); err != nil {
				t.Fatal(err)
			}
			_, _, err := p.keepFiles(guestsOf(t, "/drop"))
			if err == nil || !strings.Contains(err.Error(), "user data of 10.1.1.50") || !strings.Contains(err.Error(), test.want) {
				t.Errorf("keepFiles() = %v, want that %s", err, test.want)
			}
			if got := p.read(bagsDir + "/vmdata.json"); got != "none" {
				t.Errorf("vmdata.json is %s", got)
			}
			if got := p.read(hostsFile); !strings.Contains(got, "10.1.1.50\tweb\n") {
				t.Errorf("the other files are not kept: %s", got)
			}
		})
	}
	p := newPlace(t, nil)
	if data, err := p.unitFile(guestsOf(t, "/drop"), "user-data")("vms/n_10.1.1.50"); data != nil || err != nil {
		t.Errorf("a unit that is not there: %q, %v", data, err)
	}
}

// relink puts a link to target in the place of an empty folder.
func relink(p *place, folder, target string) error {
	return errors.Join(os.Remove(p.path(folder)), os.Symlink(p.path(target), p.path(folder)))
}

func TestLeaveThatCannotKeepTheFilesChangesNothing(t *testing.T) {
	p := newPlace(t, liveRouter())
	if err := p.enter(context.Background()); err != nil {
		t.Fatal(err)
	}
	p.agent.set(guestsOf(t, "/drop"))
	if err := errors.Join(os.RemoveAll(p.path(bagsDir)), os.WriteFile(p.path(bagsDir), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	before := p.tree()
	if err := p.leave(context.Background()); err == nil {
		t.Error("leave() says that all went well")
	}
	after := p.tree()
	for _, path := range []string{hostsFile, dhcpHosts} { // these are true, however it ends
		delete(before, path)
		delete(after, path)
	}
	if diff := cmp.Diff(before, after); diff != "" || !p.readRecord().InForce || p.agent.left != 0 {
		t.Errorf("changed is:\n%s", diff)
	}
}

// TestLeaveGoesOn has each program fail that is started once the scripts are in force again.
func TestLeaveGoesOn(t *testing.T) {
	leave := func(t *testing.T, failing string) *place {
		p := newPlace(t, liveRouter())
		p.active = "apache2.service"
		if err := p.enter(context.Background()); err != nil {
			t.Fatal(err)
		}
		p.agent.set(guestsOf(t, "/drop"))
		p.calls, p.fail = nil, failing
		if err := p.leave(context.Background()); err != nil {
			t.Error(err)
		}
		return p
	}
	whole := leave(t, "")
	for _, call := range whole.calls {
		if strings.HasPrefix(call, "dpkg-divert") {
			continue
		}
		t.Run(call, func(t *testing.T) {
			p := leave(t, call)
			if diff := cmp.Diff(whole.tree(), p.tree()); diff != "" {
				t.Errorf("it differs:\n%s", diff)
			}
			if !strings.Contains(p.out.String(), "fails for the test") {
				t.Errorf("nothing said: %s", p.out)
			}
		})
	}
}

func TestARecordThatCannotBeRead(t *testing.T) {
	p := newPlace(t, liveRouter())
	if err := p.enter(context.Background()); err != nil {
		t.Fatal(err)
	}
	p.write(recordFile, "{")
	p.write(binDir+"/update_config.py", "patched")
	if err := p.enter(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !p.ours(standIn("update_config.py")) {
		t.Error("what was replaced is not put back")
	}
	p.write(recordFile, "{")
	if err := p.leave(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := p.read(binDir + "/update_config.py"); got != "patched" {
		t.Errorf("update_config.py is %q", got)
	}
}

func TestLeaveWithoutAnAgent(t *testing.T) {
	p := newPlace(t, liveRouter())
	if err := p.enter(context.Background()); err != nil {
		t.Fatal(err)
	}
	bag := p.read(bagsDir + "/dhcpentry.json")
	p.daemon = goneAgent{p.agent}
	if err := p.leave(context.Background()); err != nil {
		t.Fatal(err)
	}
	if p.read(binDir+"/update_config.py") != "original update" || p.read(bagsDir+"/dhcpentry.json") != bag || !strings.Contains(p.out.String(), "stay as they are") {
		t.Errorf("%s\n%v", p.out, p.tree())
	}
}

type goneAgent struct{ *fakeAgent }

func (goneAgent) Guests(context.Context, uint64) (cloudstack.Guests, error) {
	return cloudstack.Guests{}, cloudstack.ErrNoDaemon
}

func TestAMaskOfTheAdministratorStays(t *testing.T) {
	p := newPlace(t, liveRouter())
	if err := os.Symlink("/dev/null", p.path(unitsDir+"/apache2.service")); err != nil {
		t.Fatal(err)
	}
	for _, do := range []func(context.Context) error{p.enter, p.leave} {
		if err := do(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := p.tree()[unitsDir+"/apache2.service"]; got != "-> /dev/null" {
			t.Errorf("apache2.service is %q", got)
		}
	}
}

func TestWhatIsReplacedIsPutBack(t *testing.T) {
	p := newPlace(t, liveRouter())
	if err := p.enter(context.Background()); err != nil {
		t.Fatal(err)
	}
	replace := map[string]func(path string) error{
		"put in its place": func(path string) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			return os.WriteFile(path, []byte("patched"), 0o755)
		},
		"written over": func(path string) error { return os.WriteFile(path, []byte("patched"), 0o755) },
		"without the right to be run": func(path string) error {
			return errors.Join(os.WriteFile(path, []byte("patched"), 0o755), os.Chmod(path, 0o644))
		},
	}
	times := 0
	for name, do := range replace {
		t.Run(name, func(t *testing.T) {
			if err := do(p.path(binDir + "/update_config.py")); err != nil {
				t.Fatal(err)
			}
			if err := p.enter(context.Background()); err != nil {
				t.Fatal(err)
			}
			times++
			if p.read(binDir+"/update_config.py") != standIn("update_config.py").script || p.read(binDir+"/update_config.py"+aside) != "patched" {
				t.Errorf("%v", p.tree())
			}
			if st := p.readRecord().Stands[binDir+"/update_config.py"]; st.Times != times || st.Replaced.IsZero() {
				t.Errorf("recorded is %+v", st)
			}
		})
	}
	// A unit that is there again may have been started.
	if err := errors.Join(os.Remove(p.path(unitsDir+"/cloud-password-server@.service")), os.WriteFile(p.path(unitsDir+"/cloud-password-server@.service"), []byte("[new]"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := p.enter(context.Background()); err != nil {
		t.Fatal(err)
	}
	if tree := p.tree(); tree[unitsDir+"/cloud-password-server@.service"] != "-> /dev/null" || tree[unitsDir+"/cloud-password-server@.service"+aside] != "[new]" ||
		p.called("systemctl stop apache2.service cloud-password-server@*.service") != 1 {
		t.Errorf("%v\n%q", tree, p.calls)
	}
	// What another release of ours has put there is nobody's original.
	p.write(binDir+"/update_config.py", standMark+" something older\n")
	if err := p.enter(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := p.read(binDir + "/update_config.py" + aside); got != "patched" || !p.ours(standIn("update_config.py")) {
		t.Errorf("the original is %q", got)
	}
	if st := p.readRecord().Stands[binDir+"/update_config.py"]; st.Times != times {
		t.Errorf("an upgrade counts as a patch: %+v", st)
	}
}

func TestWithoutOriginals(t *testing.T) {
	p := newPlace(t, nil)
	if err := p.enter(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !p.ours(standIn("update_config.py")) || !p.ours(standIn("vr_cfg.sh")) {
		t.Errorf("%v", p.tree())
	}
	if err := p.leave(context.Background()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{}, p.tree()); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

// poll waits until it is so.
func poll(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestKeep(t *testing.T) {
	p := newPlace(t, map[string]string{hostsFile: "127.0.0.1 localhost\n", dhcpHosts: "old\n"})
	p.write("/drop/vms/n_10.1.1.50/user-data", "one")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.keep(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	says := func(path, text string) func() bool {
		return func() bool { return strings.Contains(p.read(path), text) }
	}
	off := guestsOf(t, "/drop")
	off.Off = true
	p.agent.set(off)
	p.agent.set(guestsOf(t, "/drop"))
	poll(t, "the names", says(hostsFile, "10.1.1.1\tr-1-VM data-server\n10.1.1.50\tweb\n"))
	poll(t, "dnsmasq to read them", func() bool { return p.called("systemctl try-reload-or-restart dnsmasq.service") == 1 })
	for path, text := range map[string]string{
		bagsDir + "/dhcpentry.json": "02:00:00:00:00:0c", bagsDir + "/vmdata.json": "b25l", dhcpHosts: "02:00:00:00:00:0c,10.1.1.50,web,infinite\n",
	} {
		poll(t, path, says(path, text))
		p.write(path, "somebody else's")
		poll(t, path+" again", says(path, text))
	}
	if err := os.Remove(p.path(dhcpHosts)); err != nil {
		t.Fatal(err)
	}
	poll(t, "a file that was removed", says(dhcpHosts, "web"))
	p.agent.set(cloudstack.Guests{}) // it has been left, and knows nothing
	next := guestsOf(t, "/drop")
	next.Guests[0].Hostname = "renamed"
	p.agent.set(next)
	poll(t, "the next change", says(hostsFile, "renamed"))
}

func TestFilesThatSayTheSameStayUntouched(t *testing.T) {
	p := newPlace(t, nil)
	g := guestsOf(t, "/drop")
	for _, want := range []bool{true, false} {
		if _, hosts, err := p.keepFiles(g); err != nil || hosts != want {
			t.Errorf("keepFiles() = %v, %v; want %v", hosts, err, want)
		}
	}
	before, _, err := p.keepFiles(g)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.keepFiles(g); err != nil || p.foreign(before) {
		t.Errorf("the files were written again, %v", err)
	}
	p.write(hostsFile, p.read(hostsFile)+"more\n")
	if !p.foreign(before) {
		t.Error("what somebody else wrote is not noticed")
	}
	if _, hosts, err := p.keepFiles(g); err != nil || !hosts || strings.Contains(p.read(hostsFile), "more") {
		t.Errorf("a longer file stays: %v, %v", hosts, err)
	}
	// Nothing known is no reason to write that there is nothing.
	if _, hosts, err := p.keepFiles(cloudstack.Guests{}); err != nil || hosts {
		t.Errorf("keepFiles() of nothing = %v, %v", hosts, err)
	}
}

func TestWithoutDHCP(t *testing.T) {
	for _, test := range []struct{ name, conf, want string }{
		{"a range", "dhcp-range=set:interface-eth0-0,10.1.1.1,static", "# vragent answers DHCP: dhcp-range=set:interface-eth0-0,10.1.1.1,static\n"},
		{"with blanks", "  dhcp-range = 10.1.1.1 , 10.1.1.9\n", "# vragent answers DHCP: dhcp-range = 10.1.1.1 , 10.1.1.9\n"},
		{"a relay", "dhcp-relay=10.1.1.1,10.9.9.9", "# vragent answers DHCP: dhcp-relay=10.1.1.1,10.9.9.9\n"},
		{"ranges of IPv6 stay", "dhcp-range=tag:x,fd00::1,fd00::9,64\ndhcp-range=::,constructor:eth0,ra-only\n", "dhcp-range=tag:x,fd00::1,fd00::9,64\ndhcp-range=::,constructor:eth0,ra-only\n"},
		{"comments and others stay", "#dhcp-range=10.1.1.1,static\ndhcp-rangefinder=1\nlisten-address=10.1.1.1\nenable-tftp\n", "#dhcp-range=10.1.1.1,static\ndhcp-rangefinder=1\nlisten-address=10.1.1.1\nenable-tftp\n"},
		{"what is included is another", "conf-file=/a\nconf-dir=/b/,*.conf\nconf-dir=/same\n", "conf-file=/copy/a\nconf-dir=/copy/b,*.conf\nconf-dir=/same\n"},
		{"no newline at the end", "port=0", "port=0\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := withoutDHCP([]byte(test.conf), func(path string) string {
				if path == "/same" {
					return path
				}
				return "/copy" + filepath.Clean(path)
			})
			if string(got) != test.want {
				t.Errorf("withoutDHCP() = %q, want %q", got, test.want)
			}
		})
	}
}

func TestIncludedFilesAreFiltered(t *testing.T) {
	p := newPlace(t, map[string]string{
		dnsmasqFile:            "conf-dir=/etc/dnsmasq.d/,*.conf\nconf-dir=/etc/more\nconf-file=/etc/one\n",
		dnsmasqDir + "/a.conf": "dhcp-range=10.1.1.1,static\n",
		"/etc/more/b":          "dhcp-range=10.1.1.2,static\nconf-file=/etc/one\n",
		"/etc/one":             "dhcp-range=10.1.1.3,static\nconf-file=/etc/one\nconf-file=/etc/none\n",
	})
	for range 2 { // the second time over the first one's
		if err := p.site.dnsmasq(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	ranges := 0
	err := filepath.WalkDir(p.path(filteredDir), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text := p.read(strings.TrimPrefix(path, p.root))
		if strings.Contains(text, "\ndhcp-range") || strings.HasPrefix(text, "dhcp-range") {
			t.Errorf("%s is %q", path, text)
		}
		ranges += strings.Count(text, "dhcp-range")
		return nil
	})
	if err != nil || ranges != 3 {
		t.Errorf("%d ranges found, %v", ranges, err)
	}
	main := p.read(filteredDir + "/dnsmasq.conf")
	if !strings.HasPrefix(main, "conf-dir=/etc/dnsmasq.d/,*.conf\nconf-dir="+filteredDir+"/included/") {
		t.Errorf("dnsmasq.conf is %q", main)
	}
}

func TestCommandLine(t *testing.T) {
	for _, args := range [][]string{nil, {"enter", "x"}, {"else"}} {
		p := newPlace(t, nil)
		if status := p.command(context.Background(), args); status != 64 || p.out.String() != commandUsage {
			t.Errorf("%q: status %d, %q", args, status, p.out)
		}
	}
}

func TestRunningScriptsAreFound(t *testing.T) {
	p := newPlace(t, map[string]string{
		"/proc/12/cmdline": "/usr/bin/python3\x00/opt/cloud/bin/update_config.py.cloudstack\x00x\x00",
		"/proc/13/cmdline": "grep\x00/opt/cloud/bin/update_config.py.cloudstack\x00",
	})
	scripts := map[string]bool{binDir + "/update_config.py": true}
	if got := p.running(scripts); got != "" {
		t.Errorf("running() = %q for the original in its new place", got)
	}
	p.write("/proc/14/cmdline", "/usr/bin/python3\x00/opt/cloud/bin/update_config.py\x00x\x00")
	if got := p.running(scripts); got != binDir+"/update_config.py" {
		t.Errorf("running() = %q", got)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if got := p.wait(ctx, time.Hour); got == "" {
		t.Error("wait() does not say that it still runs")
	}
	if err := os.Remove(p.path("/proc/14/cmdline")); err != nil {
		t.Fatal(err)
	}
	if got := p.wait(context.Background(), time.Hour); got != "" {
		t.Errorf("wait() = %q", got)
	}
}

func FuzzWithoutDHCP(f *testing.F) {
	f.Add([]byte("dhcp-range=set:interface-eth0-0,10.1.1.1,static\n  dhcp-relay = 10.1.1.1,10.9.9.9\nconf-dir=/b/,*.conf\n#x\r\ndhcp-range=fd00::1,64"))
	f.Fuzz(func(t *testing.T, conf []byte) {
		same := func(path string) string { return filepath.Clean(path) }
		out := withoutDHCP(conf, same)
		for line := range strings.Lines(string(out)) {
			option, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			if option = strings.TrimSpace(option); (option == "dhcp-range" || option == "dhcp-relay") && !ofIPv6(value) {
				t.Errorf("left in: %q", line)
			}
		}
		if again := withoutDHCP(out, same); !bytes.Equal(again, out) {
			t.Errorf("filtered again it is %q, not %q", again, out)
		}
	})
}
