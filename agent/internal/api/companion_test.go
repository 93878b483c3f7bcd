package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"vragent/agent/internal/account"
	"vragent/agent/internal/api"
	"vragent/agent/internal/api/wire"
	"vragent/agent/internal/job"
)

// lab is a companion API with everything behind it, served on loopback.
type lab struct {
	t      testing.TB
	router *fakeRouter
	store  *memStore // of users, keys and jobs
	spool  string
	log    *logText

	users     *account.Users
	directory *account.Directory
	jobs      *job.Queue
	companion *api.Companion
	url       string
	stop      func()
}

// logText keeps what is logged.
type logText struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// labOptions are what a test wants otherwise.
type labOptions struct {
	limits   api.Limits
	jobLimit time.Duration
	now      func() time.Time
	idle     bool // nobody carries out jobs
}

func newLab(t testing.TB, opts labOptions) *lab {
	l := &lab{t: t, router: newFakeRouter(), store: newMemStore(), spool: filepath.Join(t.TempDir(), "spool"), log: &logText{}}
	l.router.drop("networks/guest-1.yaml", "guest-1.yaml", "interface: eth0\ngateway: 10.1.1.1/24\n")
	l.start(opts)
	return l
}

// start starts the API on what is in the store: also a second time, as after a restart.
func (l *lab) start(opts labOptions) {
	t := l.t
	log := slog.New(slog.NewTextHandler(l.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	check := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	var err error
	l.directory, err = account.OpenDirectory(l.store, log)
	check(err)
	l.users, err = account.Open(account.Options{Store: l.store, Authenticators: []account.Authenticator{l.directory}, Links: l.directory,
		HashCost: bcrypt.MinCost, FailTime: -1, Log: log, Now: opts.now})
	check(err)
	l.jobs, err = job.OpenQueue(job.Options{Store: l.store, Limit: opts.jobLimit, Now: opts.now, Log: log})
	check(err)
	l.companion = api.NewCompanion(api.CompanionOptions{Backend: l.router, Drop: l.router, Users: l.users, Directory: l.directory, Jobs: l.jobs, Spool: l.spool, Limits: opts.limits, Log: log})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	l.url = "http://" + ln.Addr().String() + api.Path

	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := api.Serve(ctx, ln, l.companion.Remote(nil, nil), api.HeaderFor(1<<20), log); err != nil {
			t.Errorf("Serve() = %v", err)
		}
	})
	if !opts.idle {
		running.Go(func() {
			if err := l.companion.Run(ctx); err != nil {
				t.Errorf("Run() = %v", err)
			}
		})
	}
	l.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(l.stop)
}

// user makes a user with keys.
func (l *lab) user(name string, role account.Role) account.User {
	l.t.Helper()
	u, err := l.users.Add(context.Background(), account.User{Name: name, Role: role}, "")
	if err != nil {
		l.t.Fatal(err)
	}
	if u, err = l.users.NewKeys(u.ID); err != nil {
		l.t.Fatal(err)
	}
	return u
}

// reply is an answer of the API.
type reply struct {
	status int
	header http.Header
	text   string
	name   string // of the envelope
	body   wire.Object
}

// get returns a value by the names that lead to it.
func (r reply) get(names ...string) any {
	var v any = r.body
	for _, name := range names {
		switch o := v.(type) {
		case wire.Object:
			v = o.Get(name)
		case []wire.Object:
			if len(o) == 0 {
				return nil
			}
			v = o[0].Get(name)
		default:
			return nil
		}
	}
	return v
}

// send sends a request with an already complete query and reads the JSON answer.
func (l *lab) send(client *http.Client, method, query string, body io.Reader, contentType string) reply {
	l.t.Helper()
	target := l.url
	if query != "" {
		target += "?" + query
	}
	req, err := http.NewRequest(method, target, body)
	if err != nil {
		l.t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := client.Do(req)
	if err != nil {
		l.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	r := reply{status: res.StatusCode, header: res.Header, text: string(text)}
	if strings.HasPrefix(res.Header.Get("Content-Type"), "application/json") {
		var envelope wire.Object
		if err := json.Unmarshal(text, &envelope); err != nil {
			l.t.Fatalf("answer %q: %v", text, err)
		}
		if len(envelope) != 1 {
			l.t.Fatalf("answer %q has %d top-level keys, want 1", text, len(envelope))
		}
		r.name = envelope[0].Name
		r.body, _ = envelope[0].Value.(wire.Object)
	}
	return r
}

// params makes a query of pairs: name, value, name, value.
func params(pairs ...string) map[string]string {
	m := map[string]string{"response": "json"}
	for i := 0; i+1 < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

// signed signs p as u and returns it as a query.
func signed(u account.User, p map[string]string) string {
	p["apiKey"] = u.APIKey
	values := url.Values{}
	for name, v := range p {
		values.Set(name, v)
	}
	values.Set("signature", wire.Sign(wire.NewParams(p), u.SecretKey))
	return values.Encode()
}

// call sends a signed GET.
func (l *lab) call(u account.User, command string, pairs ...string) reply {
	l.t.Helper()
	p := params(pairs...)
	p["command"] = command
	return l.send(http.DefaultClient, http.MethodGet, signed(u, p), nil, "")
}

// ok sends a signed GET that must succeed.
func (l *lab) ok(u account.User, command string, pairs ...string) reply {
	l.t.Helper()
	r := l.call(u, command, pairs...)
	if r.status != http.StatusOK {
		l.t.Fatalf("%s = %d %s", command, r.status, r.text)
	}
	return r
}

// wait waits for the job that an answer names, and returns the answer of queryAsyncJobResult.
func (l *lab) wait(u account.User, r reply) reply {
	l.t.Helper()
	id, _ := r.get("jobid").(string)
	if id == "" {
		l.t.Fatalf("no job in answer %d %s", r.status, r.text)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if _, err := l.jobs.Wait(ctx, id); err != nil {
		l.t.Fatalf("job %s: %v", id, err)
	}
	return l.ok(u, "queryAsyncJobResult", "jobid", id)
}

// browser is a client with cookies.
func browser() *http.Client {
	jar, err := cookiejar.New(nil)
	if err != nil {
		panic(err)
	}
	return &http.Client{Jar: jar}
}

func TestPushedVMTakesEffect(t *testing.T) {
	l := newLab(t, labOptions{})
	op := l.user("op", account.Operator)

	accepted := l.ok(op, "pushVirtualMachine", "id", "web", "hostname", "web-1", "nics[0].network", "guest-1", "nics[0].macaddress", "02:00:4c:5f:00:01",
		"nics[0].ipaddress", "10.1.1.34", "nics[0].leasetime", "12h", "metadata[0].key", "rack", "metadata[0].value", "r2: \"x\"\nand more", "userdata", "aGVsbG8", "publickeys", "ssh-ed25519 AAAA me\n", "password", "s3cret")
	done := l.wait(op, accepted)
	if got := done.get("jobstatus"); got != int64(1) {
		t.Fatalf("job = %s", done.text)
	}
	if got := done.get("jobresult", "virtualmachine", "state"); got != "applied" {
		t.Errorf("state %v, want applied", got)
	}
	want := map[string]string{
		"vm.yaml":        "hostname: web-1\nnics:\n  - network: guest-1\n    mac: 02:00:4c:5f:00:01\n    ipv4: 10.1.1.34\n    lease_time: 12h\n",
		"meta-data.yaml": "rack: \"r2: \\\"x\\\"\\nand more\"\npublic-keys: \"ssh-ed25519 AAAA me\\n\"\n",
		"user-data":      "hello",
		"password":       "s3cret\n",
	}
	for name, text := range want {
		if got := l.router.text("vms/web", name); got != text {
			t.Errorf("%s is\n%s\nwant\n%s", name, got, text)
		}
	}

	// What is not named stays, an empty value removes.
	l.wait(op, l.ok(op, "pushVirtualMachine", "id", "web", "nics[0].ipaddress", "10.1.1.35", "userdata", "", "metadata[0].key", "rack"))
	want = map[string]string{
		"vm.yaml":        "hostname: web-1\nnics:\n  - network: guest-1\n    mac: 02:00:4c:5f:00:01\n    ipv4: 10.1.1.35\n    lease_time: 12h\n",
		"meta-data.yaml": "public-keys: \"ssh-ed25519 AAAA me\\n\"\n",
		"user-data":      "",
		"password":       "s3cret\n",
	}
	for name, text := range want {
		if got := l.router.text("vms/web", name); got != text {
			t.Errorf("after the second push %s is\n%s\nwant\n%s", name, got, text)
		}
	}

	list := l.ok(op, "listVirtualMachines", "id", "web")
	if got := list.get("virtualmachine", "nic", "ipaddress"); got != "10.1.1.35" {
		t.Errorf("listVirtualMachines = %s", list.text)
	}
	l.wait(op, l.ok(op, "removeVirtualMachine", "id", "web"))
	if list := l.ok(op, "listVirtualMachines", "id", "web"); list.text != `{"listvirtualmachinesresponse":{}}`+"\n" {
		t.Errorf("a removed VM is listed: %s", list.text)
	}
	if log := l.log.String(); strings.Contains(log, "s3cret") || strings.Contains(log, op.SecretKey) || strings.Contains(log, "aGVsbG8") {
		t.Error("a secret is in the log")
	}
	if log := l.log.String(); !strings.Contains(log, "command=pushVirtualMachine resource=web job="+accepted.get("jobid").(string)+" outcome=accepted") {
		t.Errorf("no audit line of the push in\n%s", log)
	}
}

func TestRejectedPushLeavesTheDropDirectoryAsItWas(t *testing.T) {
	l := newLab(t, labOptions{})
	op := l.user("op", account.Operator)
	l.router.drop("vms/db", "vm.yaml", "nics: [{network: guest-1, ipv4: 10.1.1.5}]\n")

	done := l.wait(op, l.ok(op, "pushVirtualMachine", "id", "web", "nics[0].network", "guest-1", "nics[0].ipaddress", "10.1.1.5"))
	if done.get("jobstatus") != int64(2) || done.get("jobresult", "errorcode") != int64(431) || !strings.Contains(done.text, "that of vms/db") {
		t.Errorf("job = %s, want failed with the unit's reason", done.text)
	}
	if got := l.router.text("vms/web", "vm.yaml"); got != "" {
		t.Errorf("a rejected push was written: %s", got)
	}
}

func TestJobWaitsForItsNetwork(t *testing.T) {
	l := newLab(t, labOptions{})
	op := l.user("op", account.Operator)
	accepted := l.ok(op, "pushVirtualMachine", "id", "web", "nics[0].network", "guest-2", "nics[0].ipaddress", "10.2.1.5")
	id := accepted.get("jobid").(string)
	eventually(t, func() string {
		j := l.ok(op, "queryAsyncJobResult", "jobid", id)
		if j.get("jobstatus") == int64(0) && j.get("jobnote") == "waits: vms/web: network guest-2 is not there" {
			return ""
		}
		return j.text
	})
	l.wait(op, l.ok(op, "pushNetwork", "id", "guest-2", "definition", "interface: eth1\ngateway: 10.2.1.1/24\n"))
	if done := l.wait(op, accepted); done.get("jobstatus") != int64(1) {
		t.Errorf("job = %s, want done", done.text)
	}
	// The network is in use now.
	done := l.wait(op, l.ok(op, "removeNetwork", "id", "guest-2"))
	if done.get("jobresultcode") != int64(536) {
		t.Errorf("job = %s, want 536", done.text)
	}
	done = l.wait(op, l.ok(op, "removeNetwork", "id", "guest-2", "forced", "true"))
	if done.get("jobresult", "success") != true {
		t.Errorf("job = %s, want success", done.text)
	}
}

func TestJobSaysWhatBecomesOfItWhenItsTimeIsOver(t *testing.T) {
	l := newLab(t, labOptions{jobLimit: 50 * time.Millisecond})
	op := l.user("op", account.Operator)
	done := l.wait(op, l.ok(op, "pushVirtualMachine", "id", "web", "nics[0].network", "guest-2", "nics[0].ipaddress", "10.2.1.5"))
	text, _ := done.get("jobresult", "errortext").(string)
	if done.get("jobstatus") != int64(2) || !strings.Contains(text, "network guest-2 is not there") || !strings.Contains(text, "still takes effect by itself") {
		t.Errorf("job = %s", done.text)
	}
}

// eventually polls until check returns "", for ten seconds.
func eventually(t testing.TB, check func() string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		what := check()
		if what == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestBadRequests(t *testing.T) {
	l := newLab(t, labOptions{})
	admin, viewer := l.user("root", account.Admin), l.user("view", account.Viewer)
	long := strings.Repeat("QUFB", 32768/3+1)
	tests := []struct {
		name string
		got  reply
		code int
		env  string
		text string
	}{
		{"no command", l.call(admin, ""), 400, "errorresponse", "no command sent"},
		{"unknown command", l.call(admin, "listEverything"), 432, "errorresponse", "does not exist"},
		{"wrong case", l.call(admin, "listusers"), 432, "errorresponse", "does not exist"},
		{"not his role", l.call(viewer, "pushNetwork", "id", "x"), 432, "pushnetworkresponse", "not available for user view"},
		{"missing parameter", l.call(admin, "deleteUser"), 431, "deleteuserresponse", "Unable to execute API command deleteuser due to missing parameter id"},
		{"unknown user", l.call(admin, "deleteUser", "id", "zzz"), 431, "deleteuserresponse", "Invalid parameter id value=zzz"},
		{"not a number", l.call(admin, "listUsers", "page", "x", "pagesize", "1"), 431, "listusersresponse", "invalid value x for parameter page"},
		{"page alone", l.call(admin, "listUsers", "page", "1"), 431, "listusersresponse", `"pagesize" parameter is required when "page" is specified`},
		{"pagesize alone", l.call(admin, "listUsers", "pagesize", "1"), 431, "listusersresponse", `"page" parameter is required when "pagesize" is specified`},
		{"page too large", l.call(admin, "listUsers", "page", "1", "pagesize", "501"), 431, "listusersresponse", "Page size can't exceed max allowed page size value: 500"},
		{"unknown job", l.call(admin, "queryAsyncJobResult", "jobid", "x"), 431, "queryasyncjobresultresponse", "Unable to find a job by id x"},
		{"control character", l.call(admin, "listUsers", "keyword", "a\x01b"), 431, "errorresponse", "illegal ASCII non-printable characters for parameter keyword"},
		{"path as a name", l.call(admin, "pushVirtualMachine", "id", "../x"), 431, "pushvirtualmachineresponse", "want 1 to 128 of"},
		{"hidden name", l.call(admin, "pushNetwork", "id", ".x", "definition", "a"), 431, "pushnetworkresponse", "want 1 to 128 of"},
		{"new VM without a NIC", l.call(admin, "pushVirtualMachine", "id", "new", "hostname", "x"), 431, "pushvirtualmachineresponse", "needs at least one NIC"},
		{"bad MAC", l.call(admin, "pushVirtualMachine", "id", "new", "nics[0].macaddress", "x"), 431, "pushvirtualmachineresponse", "nics[0].macaddress"},
		{"unknown field", l.call(admin, "pushVirtualMachine", "id", "new", "nics[0].foo", "x"), 431, "pushvirtualmachineresponse", "nics[0].foo"},
		{"not an entry", l.call(admin, "pushVirtualMachine", "id", "new", "nics[x].network", "x"), 431, "pushvirtualmachineresponse", "not of the form nics[N].field"},
		{"path as metadata", l.call(admin, "pushVirtualMachine", "id", "new", "metadata[0].key", "a/b"), 431, "pushvirtualmachineresponse", "metadata name"},
		{"not base64", l.call(admin, "updateVirtualMachine", "id", "new", "userdata", "?"), 431, "updatevirtualmachineresponse", "User data is not base64 encoded."},
		{"user data too long", l.call(admin, "updateVirtualMachine", "id", "new", "userdata", long), 431, "updatevirtualmachineresponse", "32768 bytes after decoding are allowed by HTTP GET, userdata has 32769"},
		{"no VM to update", l.call(admin, "updateVirtualMachine", "id", "new"), 431, "updatevirtualmachineresponse", "entity does not exist"},
		{"no VM to remove", l.call(admin, "removeVirtualMachine", "id", "new"), 431, "removevirtualmachineresponse", "entity does not exist"},
		{"bundle by GET", l.call(admin, "pushBundle", "sha256", strings.Repeat("0", 64)), 405, "pushbundleresponse", "HTTP POST"},
		{"login by GET", l.call(admin, "login", "username", "x", "password", "y"), 405, "loginresponse", "Please use HTTP POST"},
		{"other method", l.send(http.DefaultClient, http.MethodPut, "response=json", nil, ""), 405, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.got.status != tt.code {
				t.Errorf("status %d, want %d: %s", tt.got.status, tt.code, tt.got.text)
			}
			if tt.env == "" {
				return
			}
			if tt.got.name != tt.env || tt.got.get("errorcode") != int64(tt.code) {
				t.Errorf("answer %s, want errorcode %d in %s", tt.got.text, tt.code, tt.env)
			}
			text, _ := tt.got.get("errortext").(string)
			if !strings.Contains(text, tt.text) {
				t.Errorf("errortext %q, want %q in it", text, tt.text)
			}
			if tt.got.header.Get("X-Description") == "" {
				t.Error("no X-Description")
			}
		})
	}
}

func TestSignatures(t *testing.T) {
	l := newLab(t, labOptions{})
	u := l.user("op", account.Operator)
	other := l.user("other", account.Operator)
	format := func(d time.Duration) string { return wire.Date(time.Now().Add(d)) }
	tests := []struct {
		name   string
		params map[string]string
		key    account.User
		want   int
	}{
		{"version 1", params("command", "listApis"), u, 200},
		{"version 3", params("command", "listApis", "signatureVersion", "3", "expires", format(time.Minute)), u, 200},
		{"version 3, RFC 3339", params("command", "listApis", "signatureversion", "3", "expires", time.Now().Add(time.Minute).Format(time.RFC3339)), u, 200},
		{"expired", params("command", "listApis", "signatureVersion", "3", "expires", format(-time.Minute)), u, 401},
		{"expired, version 1", params("command", "listApis", "expires", format(-time.Minute)), u, 401},
		{"version 3 without expires", params("command", "listApis", "signatureVersion", "3"), u, 401},
		{"no time", params("command", "listApis", "signatureVersion", "3", "expires", "tomorrow"), u, 401},
		{"another's secret", params("command", "listApis"), account.User{APIKey: u.APIKey, SecretKey: other.SecretKey}, 401},
		{"unknown key", params("command", "listApis"), account.User{APIKey: "x", SecretKey: u.SecretKey}, 401},
		{"unknown key and command", params("command", "x"), account.User{APIKey: "x"}, 401},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if r := l.send(http.DefaultClient, http.MethodGet, signed(tt.key, tt.params), nil, ""); r.status != tt.want {
				t.Errorf("status %d, want %d: %s", r.status, tt.want, r.text)
			}
		})
	}
	t.Run("changed after signing", func(t *testing.T) {
		query := signed(u, params("command", "listUsers", "keyword", "a"))
		if r := l.send(http.DefaultClient, http.MethodGet, strings.Replace(query, "keyword=a", "keyword=b", 1), nil, ""); r.status != 401 {
			t.Errorf("status %d, want 401", r.status)
		}
	})
	t.Run("in a form", func(t *testing.T) {
		if r := l.send(http.DefaultClient, http.MethodPost, "", strings.NewReader(signed(u, params("command", "listUsers"))), "application/x-www-form-urlencoded"); r.status != 200 {
			t.Errorf("status %d, want 200: %s", r.status, r.text)
		}
	})
	t.Run("nothing", func(t *testing.T) {
		if r := l.send(http.DefaultClient, http.MethodGet, "command=listUsers&response=json", nil, ""); r.status != 401 || r.get("cserrorcode") != nil {
			t.Errorf("answer %d %s, want 401 without a cserrorcode", r.status, r.text)
		}
	})
	t.Run("disabled", func(t *testing.T) {
		if _, err := l.users.SetState(u.ID, account.Disabled); err != nil {
			t.Fatal(err)
		}
		if r := l.call(u, "listApis"); r.status != 401 {
			t.Errorf("status %d, want 401", r.status)
		}
	})
}

func TestXMLIsTheDefault(t *testing.T) {
	l := newLab(t, labOptions{})
	u := l.user("root", account.Admin)
	xml := func(command string, pairs ...string) string {
		p := params(pairs...)
		delete(p, "response")
		p["command"] = command
		r := l.send(http.DefaultClient, http.MethodGet, signed(u, p), nil, "")
		if got := r.header.Get("Content-Type"); got != "text/xml; charset=UTF-8" {
			t.Errorf("content type %q", got)
		}
		return r.text
	}
	tests := []struct{ name, got, want string }{
		{"list", xml("listUsers"), `<listusersresponse cloud-stack-version="4.20.0.0"><count>1</count><user><id>`},
		{"empty list", xml("listUsers", "keyword", "nobody"), `<listusersresponse cloud-stack-version="4.20.0.0"></listusersresponse>`},
		{"error", xml("deleteUser"), `<deleteuserresponse cloud-stack-version="4.20.0.0"><errorcode>431</errorcode><cserrorcode>4350</cserrorcode><errortext>`},
		{"job", xml("pushNetwork", "id", "a", "definition", "x"), `<pushnetworkresponse cloud-stack-version="4.20.0.0"><jobid>`},
	}
	for _, tt := range tests {
		if !strings.HasPrefix(tt.got, `<?xml version="1.0" encoding="UTF-8"?>`+tt.want) {
			t.Errorf("%s: got %s, want it to begin with %s", tt.name, tt.got, tt.want)
		}
	}
}

func TestListApisShowsWhatARoleMayCall(t *testing.T) {
	l := newLab(t, labOptions{})
	for _, role := range account.Roles() {
		u := l.user(string(role), role)
		r := l.ok(u, "listApis", "listall", "true")
		apis := r.get("api").([]wire.Object)
		if int64(len(apis)) != r.get("count") {
			t.Errorf("%s: count %v of %d", role, r.get("count"), len(apis))
		}
		listed := map[string]bool{}
		for _, a := range apis {
			listed[a.Get("name").(string)] = true
			for _, name := range []string{"description", "isasync", "params", "response"} {
				if a.Get(name) == nil {
					t.Errorf("%v has no %s; CloudMonkey needs it", a.Get("name"), name)
				}
			}
		}
		// Without parameters a command is refused for want of them, or works; what is not listed
		// does not exist.
		for _, name := range []string{"pushVirtualMachine", "pushBundle", "createUser", "listVirtualMachines", "addLdapConfiguration", "queryAsyncJobResult", "getVirtualMachineUserData"} {
			if got := l.call(u, name).status != 432; got != listed[name] {
				t.Errorf("%s: %s is listed: %v, and may be called: %v", role, name, listed[name], got)
			}
		}
	}
}

func TestPaging(t *testing.T) {
	l := newLab(t, labOptions{})
	u := l.user("root", account.Admin)
	for i := range 7 {
		l.router.drop(fmt.Sprintf("vms/vm-%d", i), "vm.yaml", fmt.Sprintf("hostname: host-%d\nnics: [{network: guest-1, ipv4: 10.1.1.%d}]\n", i, 10+i))
	}
	tests := []struct {
		name  string
		pairs []string
		count any
		first any
		n     int
	}{
		{"all", nil, int64(7), "vm-0", 7},
		{"second page", []string{"page", "2", "pagesize", "3"}, int64(7), "vm-3", 3},
		{"last page", []string{"page", "3", "pagesize", "3"}, int64(7), "vm-6", 1},
		{"beyond", []string{"page", "4", "pagesize", "3"}, int64(7), nil, 0},
		{"far beyond", []string{"page", "9223372036854775807", "pagesize", "500"}, int64(7), nil, 0},
		{"unlimited", []string{"pagesize", "-1"}, int64(7), "vm-0", 7},
		{"keyword", []string{"keyword", "HOST-3"}, int64(1), "vm-3", 1},
		{"name", []string{"name", "host-4"}, int64(1), "vm-4", 1},
		{"ids", []string{"ids", "vm-1,vm-2"}, int64(2), "vm-1", 2},
		{"state", []string{"state", "pending"}, nil, nil, 0},
		{"network", []string{"networkid", "guest-1", "id", "vm-5"}, int64(1), "vm-5", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := l.ok(u, "listVirtualMachines", tt.pairs...)
			vms, _ := r.get("virtualmachine").([]wire.Object)
			if r.get("count") != tt.count || len(vms) != tt.n || tt.n > 0 && vms[0].Get("id") != tt.first {
				t.Errorf("answer %s", r.text)
			}
		})
	}
}

func TestRateLimit(t *testing.T) {
	l := newLab(t, labOptions{limits: api.Limits{Rate: 5}})
	viewer, admin := l.user("view", account.Viewer), l.user("root", account.Admin)
	limited := false
	for range 200 {
		r := l.call(viewer, "listNetworks")
		if r.status == 429 {
			limited = true
			if text, _ := r.get("errortext").(string); !strings.HasPrefix(text, "The given user has reached his/her account api limit, please retry after [") {
				t.Errorf("errortext %q", text)
			}
			break
		}
	}
	if !limited {
		t.Error("200 requests at once were not limited")
	}
	for range 20 {
		if r := l.call(admin, "listNetworks"); r.status != 200 {
			t.Fatalf("an administrator got %d", r.status)
		}
	}
}

func TestSessions(t *testing.T) {
	l := newLab(t, labOptions{})
	if _, err := l.users.Add(t.Context(), account.User{Name: "bob", Role: account.Operator}, "p@ss"); err != nil {
		t.Fatal(err)
	}
	client := browser()
	post := func(pairs ...string) reply {
		t.Helper()
		values := url.Values{}
		for name, v := range params(pairs...) {
			values.Set(name, v)
		}
		return l.send(client, http.MethodPost, "", strings.NewReader(values.Encode()), "application/x-www-form-urlencoded")
	}
	for name, pairs := range map[string][]string{
		"wrong password": {"username", "bob", "password", "x"},
		"unknown name":   {"username", "eve", "password", "p@ss"},
		"other domain":   {"username", "bob", "password", "p@ss", "domain", "/other"},
	} {
		r := post(append([]string{"command", "login"}, pairs...)...)
		if r.status != 531 || r.name != "loginresponse" || !strings.Contains(r.text, "Failed to authenticate user") {
			t.Errorf("%s: answer %d %s", name, r.status, r.text)
		}
	}
	r := post("command", "login", "username", "bob", "password", "p@ss", "domain", "/")
	key, _ := r.get("sessionkey").(string)
	if r.status != 200 || key == "" || r.get("type") != "0" || r.get("timeout") != int64(1800) {
		t.Fatalf("login = %d %s", r.status, r.text)
	}
	for _, c := range r.header.Values("Set-Cookie") {
		if !strings.Contains(c, "Path=/client") || !strings.Contains(c, "HttpOnly") {
			t.Errorf("cookie %q", c)
		}
	}
	query := "command=listApis&response=json&sessionkey=" + url.QueryEscape(key)
	if r := l.send(client, http.MethodGet, query, nil, ""); r.status != 200 {
		t.Errorf("with the session: %d %s", r.status, r.text)
	}
	if r := l.send(http.DefaultClient, http.MethodGet, query, nil, ""); r.status != 401 {
		t.Errorf("with the key alone: %d", r.status)
	}
	if r := l.send(client, http.MethodGet, "command=listApis&response=json", nil, ""); r.status != 401 {
		t.Errorf("with the cookies alone: %d", r.status)
	}
	if r := post("command", "logout", "sessionkey", key); r.get("description") != "success" {
		t.Errorf("logout = %s", r.text)
	}
	if r := l.send(client, http.MethodGet, query, nil, ""); r.status != 401 {
		t.Errorf("after logout: %d", r.status)
	}
}

func TestPasswordIsShownOnce(t *testing.T) {
	clock := &fakeClock{now: time.Now()}
	l := newLab(t, labOptions{now: clock.Now})
	asker, admin := l.user("op", account.Operator), l.user("root", account.Admin)
	l.router.drop("vms/web", "vm.yaml", "nics: [{network: guest-1, ipv4: 10.1.1.5}]\n")

	accepted := l.ok(asker, "resetPasswordForVirtualMachine", "id", "web")
	// Another user sees the job without it, and does not use it up.
	if r := l.wait(admin, accepted); r.get("jobstatus") != int64(1) || r.get("jobresult", "virtualmachine", "password") != nil {
		t.Errorf("another user sees %s", r.text)
	}
	password, _ := l.wait(asker, accepted).get("jobresult", "virtualmachine", "password").(string)
	if got := l.router.text("vms/web", "password"); len(password) < 10 || got != password+"\n" {
		t.Errorf("password %q, and the file has %q", password, got)
	}
	if r := l.wait(asker, accepted); r.get("jobresult", "virtualmachine", "password") != nil {
		t.Errorf("shown twice: %s", r.text)
	}
	for name, text := range map[string]string{"log": l.log.String(), "store": l.store.texts()} {
		if strings.Contains(text, password) {
			t.Errorf("the password is still in the %s", name)
		}
	}

	// Nobody asks for ten minutes.
	accepted = l.ok(asker, "resetPasswordForVirtualMachine", "id", "web", "password", "tell-nobody")
	eventually(t, func() string {
		if j, err := l.jobs.Get(accepted.get("jobid").(string)); err != nil || j.State != job.Done {
			return fmt.Sprintf("job %v, %v", j, err)
		}
		return ""
	})
	clock.add(10 * time.Minute)
	if err := l.jobs.Sweep(); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(l.store.texts(), "tell-nobody") {
		t.Error("the password is still in the store after ten minutes")
	}
}

// fakeClock is a clock that a test sets.
type fakeClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func TestUserDataForms(t *testing.T) {
	l := newLab(t, labOptions{limits: api.Limits{UserData: 100, UserDataGet: 10}})
	u := l.user("op", account.Operator)
	l.router.drop("vms/web", "vm.yaml", "nics: [{network: guest-1, ipv4: 10.1.1.5}]\n")
	data := []byte{0xfb, 0xff, 0xfe, 0}
	for name, text := range map[string]string{"padded": "+//+AA==", "not padded": "+//+AA", "URL alphabet": "-__-AA", "encoded once more": "%2B//%2BAA%3D%3D", "in lines": "+//+\r\nAA==\n"} {
		t.Run(name, func(t *testing.T) {
			l.ok(u, "resetUserDataForVirtualMachine", "id", "web")
			if r := l.ok(u, "updateVirtualMachine", "id", "web", "userdata", text); r.get("virtualmachine", "id") != "web" {
				t.Errorf("answer %s", r.text)
			}
			if got := l.router.text("vms/web", "user-data"); got != string(data) {
				t.Errorf("user data %x, want %x", got, data)
			}
			if r := l.ok(u, "getVirtualMachineUserData", "virtualmachineid", "web"); r.get("virtualmachineuserdata", "userdata") != "+//+AA==" {
				t.Errorf("answer %s", r.text)
			}
		})
	}
	// A POST may be longer than a GET.
	long := strings.Repeat("QUJD", 10)
	if r := l.call(u, "updateVirtualMachine", "id", "web", "userdata", long); r.status != 431 {
		t.Errorf("GET of 30 bytes: %d", r.status)
	}
	form := signed(u, params("command", "updateVirtualMachine", "id", "web", "userdata", long, "details[0].rack", "r1", "details[0].SSH.PublicKey", "ssh x"))
	if r := l.send(http.DefaultClient, http.MethodPost, "", strings.NewReader(form), "application/x-www-form-urlencoded"); r.status != 200 {
		t.Errorf("POST of 30 bytes: %d %s", r.status, r.text)
	}
	if got, want := l.router.text("vms/web", "meta-data.yaml"), "public-keys: ssh x\nrack: r1\n"; got != want {
		t.Errorf("metadata %q, want %q", got, want)
	}
}
