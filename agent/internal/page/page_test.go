package page

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vragent/agent/internal/account"
	"vragent/agent/internal/api"
	"vragent/agent/internal/job"
)

// noon is when everything in these tests happens.
var noon = time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)

// world is a router that is made up.
type world struct {
	status   api.Status
	nets     []api.Network
	machines []api.VM
	asked    atomic.Int64
	faults   atomic.Pointer[[]string] // if set, those of the status
}

func (f *world) Status(context.Context) api.Status {
	f.asked.Add(1)
	s := f.status
	if faults := f.faults.Load(); faults != nil {
		s.Faults = *faults
	}
	return s
}

func (f *world) Networks(context.Context) []api.Network { return f.nets }
func (f *world) VMs(context.Context) []api.VM           { return f.machines }
func (f *world) Explain(_ context.Context, subject string) (api.Explanation, error) {
	for _, vm := range f.machines {
		if vm.Name != subject && !(len(vm.NICs) > 0 && vm.NICs[0].IPv4 == subject) {
			continue
		}
		e := api.Explanation{Subject: subject, VM: &vm, Networks: f.nets[:1], Answer: vm.Name + " gets its address and its data."}
		if vm.State == api.Rejected {
			e.Answer = vm.Name + " is served what its last good content says; its newest content is rejected."
			e.Next = "Correct what stands under obstacles; the new content comes into force by itself then."
			for _, r := range vm.Reasons {
				e.Obstacles = append(e.Obstacles, r.String())
			}
		}
		mac := vm.NICs[0].MAC
		e.DHCP = []api.DHCPExchange{
			{Time: noon.Add(-3 * time.Minute), MAC: mac, Message: "REQUEST (selecting)", Answer: "ACK", Address: vm.NICs[0].IPv4},
			{Time: noon.Add(-3 * time.Minute), MAC: mac, Message: "DISCOVER", Answer: "OFFER", Address: vm.NICs[0].IPv4},
			{Time: noon.Add(-4 * time.Minute), MAC: mac, Message: "REQUEST (init-reboot)", Answer: "NAK", Why: "10.1.1.9 is not the client's address"},
		}
		e.Requests = []api.MetadataRequest{
			{Time: noon.Add(-2 * time.Minute), Path: "/latest/user-data", Status: 200},
			{Time: noon.Add(-2 * time.Minute), Path: "/latest/meta-data/color", Status: 404, Why: "no such name"},
		}
		e.Served = []api.ServedEntry{
			{NIC: vm.NICs[0].IPv4, Name: "availability-zone", Value: "zone-1", Size: 6},
			{NIC: vm.NICs[0].IPv4, Name: "user-data", Size: 2412},
		}
		e.Files = []api.FileInfo{{Path: vm.Unit.Unit + "/vm.yaml", Size: 122, Modified: noon.Add(-26 * time.Hour)}}
		return e, nil
	}
	return api.Explanation{}, api.ErrUnknown
}

// manyVMs is a router with n VMs, some of them in trouble.
func manyVMs(n int) *world {
	f := &world{status: api.Status{
		Version: "1.4.0", Started: noon.Add(-9 * 24 * time.Hour), DropDir: "/var/lib/vragent/drop",
		Networks: map[api.State]int{api.Applied: 3, api.Pending: 1}, VMs: map[api.State]int{},
	}}
	unit := func(name string, s api.State) api.Unit {
		return api.Unit{Unit: name, State: s, InForce: s != api.Pending, Since: noon.Add(-50 * time.Minute)}
	}
	f.nets = []api.Network{
		{Unit: unit("networks/guest-1.yaml", api.Applied), Name: "guest-1", Device: "eth0", Subnet: "10.1.0.0/16", Gateway: "10.1.1.1", Serving: "10.1.1.1", Guests: n, PoolTotal: 51, PoolUsed: 37},
		{Unit: unit("networks/guest-2.yaml", api.Applied), Name: "guest-2", Device: "eth1", Subnet: "10.2.0.0/24", Gateway: "10.2.0.1", Serving: "10.2.0.1", Standby: true, Guests: 12},
		{Unit: unit("networks/shared.yaml", api.Applied), Name: "shared", Device: "eth3", Subnet: "192.168.40.0/22", Gateway: "192.168.40.1", Serving: "192.168.40.7", Guests: 340},
		{Unit: unit("networks/lab.yaml", api.Pending), Name: "lab", Device: "eth4", Subnet: "10.9.0.0/24", Gateway: "10.9.0.1", Serving: "10.9.0.1"},
	}
	f.nets[3].Reasons = []api.Fault{{File: "networks/lab.yaml", Line: 1, Column: 12, What: "there is no device eth4"}}
	hosts := []string{"web", "db", "cache", "worker", "mail"}
	for i := range n {
		vm := api.VM{Name: fmt.Sprintf("i-2-%d-VM", i+1), Hostname: fmt.Sprintf("%s-%d", hosts[i%5], i/5+1)}
		vm.Unit = unit("vms/"+vm.Name, api.Applied)
		seen, ends := noon.Add(-time.Duration(i%300)*time.Minute), noon.Add(time.Duration(12*60-i%300)*time.Minute)
		nic := api.NIC{Network: "guest-1", MAC: fmt.Sprintf("02:00:4c:5f:%02x:%02x", i/256, i%256), IPv4: fmt.Sprintf("10.1.%d.%d", 2+i/250, 1+i%250), Default: true, Served: true}
		if i%7 != 6 {
			nic.LastSeen, nic.LeaseEnds = &seen, &ends
		}
		vm.NICs = []api.NIC{nic}
		switch {
		case i == 3:
			vm.NICs = append(vm.NICs, api.NIC{Network: "shared", MAC: "02:00:4c:60:00:03", IPv4: "192.168.40.33", Served: true, LastSeen: &seen, LeaseEnds: &ends})
		case i%2500 == 4:
			vm.State = api.Rejected
			vm.Reasons = []api.Fault{{File: vm.Unit.Unit + "/vm.yaml", Line: 5, Column: 11, What: "10.1.9.300 is no IPv4 address"}}
		case i%5000 == 7:
			vm.State, vm.InForce = api.Pending, false
			vm.Reasons = []api.Fault{{File: vm.Unit.Unit + "/vm.yaml", Line: 3, Column: 14, What: "nics[0]: there is no network lab-2"}}
			vm.NICs[0].Served, vm.NICs[0].Why, vm.NICs[0].LastSeen, vm.NICs[0].LeaseEnds = false, "the VM is not in force", nil, nil
		}
		f.status.VMs[vm.State]++
		if vm.State != api.Applied {
			f.status.Units = append(f.status.Units, vm.Unit)
		}
		f.machines = append(f.machines, vm)
	}
	f.status.Units = append(f.status.Units, f.nets[3].Unit)
	return f
}

// keptJobs are jobs, the newest first.
type keptJobs []job.Job

func (k keptJobs) List(keep func(job.Job) (ok, more bool)) (list []job.Job, err error) {
	for _, j := range k {
		ok, more := keep(j)
		if ok {
			list = append(list, j)
		}
		if !more {
			break
		}
	}
	return list, nil
}

func someJobs(n int) keptJobs {
	var list keptJobs
	for i := range n {
		j := job.Job{ID: fmt.Sprintf("5b1d0c5e-0000-4000-8000-%012d", n-i), Command: "pushVirtualMachine", Kind: "VirtualMachine",
			Name: fmt.Sprintf("i-2-%d-VM", n-i), User: "management", Created: noon.Add(-time.Duration(i+1) * 4 * time.Minute), State: job.Done}
		switch i {
		case 0:
			j.Command, j.Name, j.State, j.Percent, j.Note = "pushBundle", "", job.Open, 62, "412 of 660 units are in force"
		case 3:
			j.State, j.Text = job.Failed, "vms/i-2-5-VM/vm.yaml:5:11: 10.1.9.300 is no IPv4 address"
		}
		list = append(list, j)
	}
	return list
}

// records are users' records, in memory.
type records map[string][]byte

func (m records) Commit(changes map[string][]byte) error {
	for k, v := range changes {
		m[k] = v
	}
	return nil
}

func (m records) Each(prefix string, fn func(string, []byte) error) error { return nil }

const password = "correct horse battery"

// router serves the page of a world, with one user, vera.
type router struct {
	*httptest.Server
	world *world
	users *account.Users
	log   *strings.Builder
	later atomic.Int64 // how far the clock is from noon
}

func serve(t *testing.T, w *world, jobs Jobs) *router {
	t.Helper()
	users, err := account.Open(account.Options{Store: records{}, HashCost: 4, FailTime: -1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := users.Add(t.Context(), account.User{Name: "vera", Role: account.Viewer}, password); err != nil {
		t.Fatal(err)
	}
	r := &router{world: w, users: users, log: &strings.Builder{}}
	mux := http.NewServeMux()
	mux.Handle(Path, New(Options{Reports: w, Sessions: users, Jobs: jobs, Router: "r-14-VM",
		Now: func() time.Time { return noon.Add(time.Duration(r.later.Load())) }, Log: slog.New(slog.NewTextHandler(r.log, nil))}))
	r.Server = httptest.NewServer(mux)
	t.Cleanup(r.Close)
	return r
}

// browser is a client with cookies that follows no redirect.
func browser(t *testing.T) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// loggedIn is a browser in which vera has logged in.
func (r *router) loggedIn(t *testing.T) *http.Client {
	t.Helper()
	c := browser(t)
	res := r.post(t, c, "/client/login", url.Values{"name": {"vera"}, "password": {password}}, "")
	if res.StatusCode != http.StatusSeeOther {
		t.Fatalf("login: %s", res.Status)
	}
	return c
}

// post sends a form as a browser does from a page of that origin; empty is our own.
func (r *router) post(t *testing.T, c *http.Client, path string, form url.Values, origin string) *http.Response {
	t.Helper()
	if origin == "" {
		origin = r.URL
	}
	req, err := http.NewRequest("POST", r.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Origin", origin)
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	return res
}

func (r *router) get(t *testing.T, c *http.Client, path string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest("GET", r.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

var (
	tags   = regexp.MustCompile(`(?s)<[^>]*>`)
	spaces = regexp.MustCompile(`\s+`)
)

// words are what a view says, without its markup.
func words(body string) string { return spaces.ReplaceAllString(tags.ReplaceAllString(body, " "), " ") }

func TestViewsAreBehindLogin(t *testing.T) {
	r := serve(t, manyVMs(3), someJobs(3))
	for _, path := range []string{"/client/", "/client/vms", "/client/networks", "/client/jobs", "/client/explain?subject=i-2-1-VM", "/client/nothing"} {
		res, body := r.get(t, browser(t), path)
		to := res.Header.Get("Location")
		if res.StatusCode != http.StatusSeeOther || !strings.HasPrefix(to, "/client/login") || strings.Contains(body, "guest-1") {
			t.Errorf("%s: %s to %q", path, res.Status, to)
		}
		if res, _ := r.get(t, browser(t), path, fragment, "live"); res.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s, the live part: %s, want 401", path, res.Status)
		}
	}
	if r.world.asked.Load() != 0 {
		t.Error("reports were made for strangers")
	}
}

func TestLoginLeadsBackToTheView(t *testing.T) {
	r := serve(t, manyVMs(3), nil)
	c := browser(t)
	res, _ := r.get(t, c, "/client/vms?q=web&page=2")
	next := strings.TrimPrefix(res.Header.Get("Location"), "/client/login?next=")
	next, err := url.QueryUnescape(next)
	if err != nil {
		t.Fatal(err)
	}
	res = r.post(t, c, "/client/login", url.Values{"name": {"vera"}, "password": {password}, "next": {next}}, "")
	if got, want := res.Header.Get("Location"), "/client/vms?q=web&page=2"; got != want {
		t.Errorf("login leads to %q, want %q", got, want)
	}
	cookie := res.Cookies()[0]
	if !cookie.HttpOnly || cookie.SameSite != http.SameSiteLaxMode || cookie.Path != "/client/" {
		t.Errorf("cookie = %v", cookie)
	}
	if res, _ := r.get(t, c, "/client/vms"); res.StatusCode != http.StatusOK {
		t.Errorf("after login: %s", res.Status)
	}
	if res, _ := r.get(t, c, "/client/login"); res.Header.Get("Location") != "/client/" {
		t.Errorf("login again: %s to %q", res.Status, res.Header.Get("Location"))
	}
}

func TestLoginLeadsNowhereElse(t *testing.T) {
	for _, next := range []string{
		"", "https://evil.example/client/", "//evil.example/client/", "/\\evil.example", "/client/../etc", "/other", "client/vms",
		"/client/login", "/client/logout", "javascript:alert(1)", "/client//evil", "/client/\\evil", "/client/%5cevil", ":", "http:/client/vms",
	} {
		if got := ownPath(next); got != Path {
			t.Errorf("ownPath(%q) = %q, want %q", next, got, Path)
		}
	}
	for _, next := range []string{"/client/", "/client/vms", "/client/explain?subject=02%3A00"} {
		if got := ownPath(next); got != next {
			t.Errorf("ownPath(%q) = %q", next, got)
		}
	}
}

func FuzzLoginLeadsNowhereElse(f *testing.F) {
	for _, seed := range []string{"/client/vms?q=a", "//evil.example", "/client/%2e%2e/x", "/client/?\r\nSet-Cookie: a=b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, next string) {
		got := ownPath(next)
		u, err := url.Parse(got)
		if err != nil || u.Host != "" || u.Scheme != "" || !strings.HasPrefix(got, Path) || strings.ContainsAny(got, "\\\r\n") || strings.Contains(u.Path, "..") && strings.Contains(u.Path, "/../") {
			t.Errorf("ownPath(%q) = %q", next, got)
		}
	})
}

func TestRefusedLoginSaysNotWhy(t *testing.T) {
	r := serve(t, manyVMs(1), nil)
	for _, name := range []string{"vera", "nobody", `"><script>alert(1)</script>`} {
		req, _ := http.NewRequest("POST", r.URL+"/client/login", strings.NewReader(url.Values{"name": {name}, "password": {"guess-guess"}}.Encode()))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		res, err := browser(t).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusUnauthorized || len(res.Cookies()) > 0 || !strings.Contains(words(string(body)), "Wrong name or password.") {
			t.Errorf("%s: %s, cookies %v", name, res.Status, res.Cookies())
		}
		if strings.Contains(string(body), "guess-guess") || strings.Contains(string(body), "<script>alert") {
			t.Errorf("%s: the answer repeats what it must not", name)
		}
	}
	if got := r.log.String(); !strings.Contains(got, "msg=audit user=vera from=127.0.0.1 command=login by=page outcome=refused") || strings.Contains(got, "guess-guess") {
		t.Errorf("log:\n%s", got)
	}
}

func TestFormsOfOtherSitesAreRefused(t *testing.T) {
	r := serve(t, manyVMs(1), nil)
	c := r.loggedIn(t)
	for _, path := range []string{"/client/logout", "/client/login"} {
		res := r.post(t, c, path, url.Values{"name": {"vera"}, "password": {password}}, "https://evil.example")
		if res.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %s, want 403", path, res.Status)
		}
	}
	if res, _ := r.get(t, c, "/client/"); res.StatusCode != http.StatusOK {
		t.Errorf("afterwards: %s", res.Status)
	}
}

func TestLogoutEndsTheSession(t *testing.T) {
	r := serve(t, manyVMs(1), nil)
	c := r.loggedIn(t)
	base, _ := url.Parse(r.URL + "/client/")
	old := c.Jar.Cookies(base)
	if res, _ := r.get(t, c, "/client/logout"); res.StatusCode == http.StatusSeeOther {
		t.Error("a GET logs out")
	}
	res := r.post(t, c, "/client/logout", nil, "")
	if res.Header.Get("Location") != "/client/login?ended" {
		t.Errorf("logout: %s to %q", res.Status, res.Header.Get("Location"))
	}
	again := browser(t)
	again.Jar.SetCookies(base, old)
	if res, _ := r.get(t, again, "/client/"); res.StatusCode != http.StatusSeeOther {
		t.Errorf("with the old cookie: %s", res.Status)
	}
}

func TestDisabledUserSeesNothingMore(t *testing.T) {
	r := serve(t, manyVMs(1), nil)
	c := r.loggedIn(t)
	vera, err := r.users.Named("vera")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.users.Update(vera.ID, func(u *account.User) error { u.State = account.Disabled; return nil }); err != nil {
		t.Fatal(err)
	}
	if res, _ := r.get(t, c, "/client/"); res.StatusCode != http.StatusSeeOther {
		t.Errorf("a disabled user gets %s", res.Status)
	}
}

func TestAnswersAllowNothingFromElsewhere(t *testing.T) {
	r := serve(t, manyVMs(1), nil)
	c := r.loggedIn(t)
	for _, path := range []string{"/client/", "/client/login", "/client/nothing"} {
		res, body := r.get(t, c, path)
		policy := res.Header.Get("Content-Security-Policy")
		if !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") {
			t.Errorf("%s: policy %q", path, policy)
		}
		if res.Header.Get("Cache-Control") != "no-store" || res.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: headers %v", path, res.Header)
		}
		if regexp.MustCompile(`(?i)<script>|style=|\son[a-z]+=|https?://`).MatchString(body) {
			t.Errorf("%s: a script or style in the page, or something of elsewhere", path)
		}
	}
	_, body := r.get(t, c, "/client/")
	for _, asset := range regexp.MustCompile(`/client/assets/[^"]+`).FindAllString(body, -1) {
		res, _ := r.get(t, browser(t), asset)
		if res.StatusCode != http.StatusOK || !strings.Contains(res.Header.Get("Cache-Control"), "immutable") || res.Header.Get("Content-Type") == "" {
			t.Errorf("%s: %s %v", asset, res.Status, res.Header)
		}
	}
}

func TestOverviewSaysWhatNeedsSomebody(t *testing.T) {
	good := &world{status: api.Status{DropDir: "/drop", Started: noon.Add(-time.Minute)}}
	waiting := manyVMs(3)
	trouble := manyVMs(10_000)
	trouble.status.Faults = []string{"DHCP on eth9: address already in use"}
	trouble.status.Config.Faults = []api.Fault{{File: "/etc/vragent/agent.yaml", Line: 3, Column: 1, What: "unknown key lgo"}}
	for _, tt := range []struct {
		name  string
		world *world
		jobs  Jobs
		want  []string
	}{
		{"nothing there", good, someJobs(0), []string{"All is well", "No networks yet. One file for each goes into /drop/networks/ .", "No jobs.", "no network has a pool"}},
		{"waiting", waiting, nil, []string{"All is well; one unit waits", "networks/lab.yaml:1:12: there is no device eth4", "standing by", "37 of 51"}},
		{"trouble", trouble, someJobs(9), []string{"6 things need attention", "10,000", "4 rejected", "2 pending", "address already in use",
			"agent.yaml:3:1: unknown key lgo The configuration before stays in force.", "vms/i-2-5-VM/vm.yaml:5:11: 10.1.9.300 is no IPv4 address", "62 %", "Running for 9 days version 1.4.0"}},
	} {
		r := serve(t, tt.world, tt.jobs)
		_, body := r.get(t, r.loggedIn(t), "/client/")
		for _, want := range tt.want {
			if !strings.Contains(words(body), want) {
				t.Errorf("%s: %q is missing in:\n%s", tt.name, want, words(body))
			}
		}
	}
}

func TestVMsAreFoundAmongTenThousand(t *testing.T) {
	r := serve(t, manyVMs(10_000), nil)
	c := r.loggedIn(t)
	for _, tt := range []struct {
		query string
		rows  int
		want  []string
	}{
		{"", 50, []string{"all 10,000", "1 to 50 of 10,000", "rejected 4", "pending 2"}},
		{"?page=200", 50, []string{"9,951 to 10,000 of 10,000", "i-2-10000-VM"}},
		{"?page=100000", 50, []string{"9,951 to 10,000 of 10,000"}},
		{"?page=-1", 50, []string{"1 to 50 of 10,000"}},
		{"?page=x", 50, []string{"1 to 50 of 10,000"}},
		{"?state=rejected", 4, []string{"vms/i-2-5-VM/vm.yaml:5:11", "Its last good content stays in force."}},
		{"?state=pending", 2, []string{"not served"}},
		{"?state=nonsense", 50, nil},
		{"?q=i-2-1234-VM", 1, []string{"i-2-1234-VM", "10.1.6.234"}},
		{"?q=+WEB-17+", 112, nil}, // page of 50
		{"?q=02:00:4c:5f:01:00", 1, []string{"i-2-257-VM"}},
		{"?q=192.168.40.33", 1, []string{"i-2-4-VM", "shared"}},
		{"?q=nothing", 0, []string{"No VM fits. Show all"}},
	} {
		_, body := r.get(t, c, "/client/vms"+tt.query)
		if got, want := strings.Count(body, "/client/explain?subject="), min(tt.rows, perPage); got != want {
			t.Errorf("%q: %d rows, want %d", tt.query, got, want)
		}
		for _, want := range tt.want {
			if !strings.Contains(words(body), want) {
				t.Errorf("%q: %q is missing in:\n%s", tt.query, want, words(body))
			}
		}
	}
	_, body := r.get(t, c, "/client/vms?q=web&state=applied&page=2")
	for _, link := range []string{"/client/vms?page=3&amp;q=web&amp;state=applied", "/client/vms?q=web&amp;state=pending", `value="web"`} {
		if !strings.Contains(body, link) {
			t.Errorf("%s is missing", link)
		}
	}
}

func TestJobsArePaged(t *testing.T) {
	r := serve(t, manyVMs(1), someJobs(120))
	c := r.loggedIn(t)
	for _, tt := range []struct {
		query string
		rows  int
		want  string
	}{
		{"", 50, "1 to 50 Next"},
		{"?page=3", 20, "101 to 120 Next"},
		{"?page=4", 0, "No job fits."},
		{"?state=failed", 1, "10.1.9.300 is no IPv4 address"},
		{"?state=open", 1, "412 of 660 units are in force"},
		{"?state=done&page=3", 18, "← Previous"},
	} {
		_, body := r.get(t, c, "/client/jobs"+tt.query)
		if got := strings.Count(body, `data-label="Job"`); got != tt.rows {
			t.Errorf("%q: %d jobs, want %d", tt.query, got, tt.rows)
		}
		if !strings.Contains(words(body), tt.want) {
			t.Errorf("%q: %q is missing in:\n%s", tt.query, tt.want, words(body))
		}
	}
}

func TestExplainShowsWhyAGuestGetsWhatItGets(t *testing.T) {
	r := serve(t, manyVMs(100), nil)
	c := r.loggedIn(t)
	for _, tt := range []struct {
		subject string
		status  int
		want    []string
	}{
		{"i-2-1-VM", 200, []string{"i-2-1-VM gets its address and its data.", "REQUEST (selecting) ACK 10.1.2.1", "NAK", "10.1.1.9 is not the client&#39;s address", "/latest/meta-data/color", "no such name", "availability-zone", "2.4 KiB", "vms/i-2-1-VM/vm.yaml"}},
		{"10.1.2.5", 200, []string{"its newest content is rejected.", "Next: Correct what stands under obstacles", "In the way", "10.1.9.300 is no IPv4 address"}},
		{"mail-2", 404, []string{"Nothing is known of mail-2", "Did you mean one of these?", "i-2-10-VM"}},
		{"02:ff:ff:ff:ff:ff", 404, []string{"no such client was heard of"}},
		{"<script>alert(1)</script>", 404, []string{"&lt;script&gt;"}},
		{"", 200, []string{"Name a guest in the search box"}},
	} {
		res, body := r.get(t, c, "/client/explain?subject="+url.QueryEscape(tt.subject))
		if res.StatusCode != tt.status {
			t.Errorf("%q: %s, want %d", tt.subject, res.Status, tt.status)
		}
		for _, want := range tt.want {
			if !strings.Contains(words(body), want) {
				t.Errorf("%q: %q is missing in:\n%s", tt.subject, want, words(body))
			}
		}
	}
}

func TestNothingChangesByThePage(t *testing.T) {
	r := serve(t, manyVMs(1), nil)
	c := r.loggedIn(t)
	for _, path := range []string{"/client/", "/client/vms", "/client/networks", "/client/jobs", "/client/explain"} {
		if res := r.post(t, c, path, nil, ""); res.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("POST %s: %s, want 405", path, res.Status)
		}
	}
}

func TestReportsAreMadeOnceForAllWhoLook(t *testing.T) {
	r := serve(t, manyVMs(1), nil)
	c := r.loggedIn(t)
	for range 5 {
		r.get(t, c, "/client/vms")
	}
	if got := r.world.asked.Load(); got != 1 {
		t.Errorf("reports were made %d times, want once", got)
	}
}

func TestWords(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{ago(0), "just now"}, {ago(59 * time.Second), "59 s ago"}, {ago(90 * time.Minute), "1 h ago"}, {ago(-time.Hour), "just now"},
		{ago(47 * time.Hour), "47 h ago"}, {ago(49 * time.Hour), "2 days ago"}, {until(5 * time.Minute), "in 5 min"}, {until(-5 * time.Minute), "5 min ago"},
		{count(0), "0"}, {count(999), "999"}, {count(1000), "1,000"}, {count(1234567), "1,234,567"}, {count(-1000), "-1,000"}, {count(-100), "-100"},
		{size(1023), "1023 B"}, {size(1536), "1.5 KiB"}, {size(3 << 20), "3.0 MiB"},
	} {
		if tt.got != tt.want {
			t.Errorf("%q, want %q", tt.got, tt.want)
		}
	}
}
