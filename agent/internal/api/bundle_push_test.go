package api_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vragent/agent/internal/account"
	"vragent/agent/internal/api"
	"vragent/agent/internal/api/wire"
	"vragent/agent/internal/job"
)

// tarOf makes an archive of files, given as name, content, name, content.
func tarOf(t testing.TB, pairs ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i+1 < len(pairs); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: pairs[i], Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(pairs[i+1]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(pairs[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// pushBundle sends an archive that is signed as it should be, except for what pairs say.
func (l *lab) pushBundle(u account.User, archive []byte, pairs ...string) reply {
	l.t.Helper()
	sum := sha256.Sum256(archive)
	p := params("command", "pushBundle", "sha256", hex.EncodeToString(sum[:]), "expires", wire.Date(time.Now().Add(time.Minute)), "signatureVersion", "3")
	for name, v := range params(pairs...) {
		p[name] = v
	}
	for name, v := range p {
		if v == "" {
			delete(p, name)
		}
	}
	return l.send(http.DefaultClient, http.MethodPost, signed(u, p), bytes.NewReader(archive), "application/x-tar")
}

func vmFile(address string) string {
	return "nics: [{network: guest-1, ipv4: " + address + "}]\n"
}

func TestBundleMerges(t *testing.T) {
	l := newLab(t, labOptions{})
	op := l.user("op", account.Operator)
	l.router.drop("vms/old", "vm.yaml", vmFile("10.1.1.9"))
	l.router.drop("vms/old", "user-data", "kept")
	done := l.wait(op, l.pushBundle(op, tarOf(t, "vms/old/vm.yaml", vmFile("10.1.1.10"), "vms/new/vm.yaml", vmFile("10.1.1.9"), "vms/new/user-data", "#!/bin/sh\n")))
	if done.get("jobstatus") != int64(1) || done.get("jobresult", "bundle", "virtualmachines") != int64(2) || done.get("jobprocstatus") != int64(100) {
		t.Fatalf("job = %s", done.text)
	}
	for _, f := range []struct{ unit, name, want string }{
		{"vms/old", "vm.yaml", vmFile("10.1.1.10")}, {"vms/old", "user-data", "kept"}, {"vms/new", "vm.yaml", vmFile("10.1.1.9")}, {"vms/new", "user-data", "#!/bin/sh\n"},
	} {
		if got := l.router.text(f.unit, f.name); got != f.want {
			t.Errorf("%s/%s is %q, want %q", f.unit, f.name, got, f.want)
		}
	}
	if left, err := os.ReadDir(l.spool); err != nil || len(left) > 0 {
		t.Errorf("left in the spool: %v, %v", left, err)
	}
}

func TestBundleReplaces(t *testing.T) {
	l := newLab(t, labOptions{})
	op := l.user("op", account.Operator)
	l.router.drop("vms/gone", "vm.yaml", vmFile("10.1.1.9"))
	l.router.drop("vms/stays", "vm.yaml", vmFile("10.1.1.8"))
	l.router.drop("vms/stays", "user-data", "gone")
	l.router.drop("vms/bad", "vm.yaml", vmFile("10.1.1.7"))
	done := l.wait(op, l.pushBundle(op, tarOf(t, "networks/guest-1.yaml", "gateway: 10.1.1.1/24\n", "vms/stays/vm.yaml", vmFile("10.1.1.8"), "vms/bad/vm.yaml", vmFile("10.9.9.9")), "mode", "replace"))
	text, _ := done.get("jobresult", "errortext").(string)
	if done.get("jobstatus") != int64(2) || !strings.Contains(text, "1 of 3 units are rejected") || !strings.Contains(text, "vms/bad: vms/bad: ipv4 10.9.9.9 is outside of network guest-1") {
		t.Errorf("job = %s", done.text)
	}
	for _, f := range []struct{ unit, name, want string }{
		{"vms/gone", "vm.yaml", ""}, {"vms/stays", "user-data", ""}, {"vms/bad", "vm.yaml", vmFile("10.1.1.7")}, {"networks/guest-1.yaml", "guest-1.yaml", "gateway: 10.1.1.1/24\n"},
	} {
		if got := l.router.text(f.unit, f.name); got != f.want {
			t.Errorf("%s/%s is %q, want %q", f.unit, f.name, got, f.want)
		}
	}
}

func TestBundleWaitsForItsNetworks(t *testing.T) {
	l := newLab(t, labOptions{})
	op := l.user("op", account.Operator)
	accepted := l.pushBundle(op, tarOf(t, "vms/a/vm.yaml", vmFile("10.1.1.8"), "vms/b/vm.yaml", "nics: [{network: guest-2, ipv4: 10.2.1.5}]\n"))
	id, _ := accepted.get("jobid").(string)
	note := func() string {
		j := l.ok(op, "queryAsyncJobResult", "jobid", id)
		if note, _ := j.get("jobnote").(string); !strings.HasPrefix(note, "1 of 2 units wait, vms/b: ") {
			return j.text
		}
		return ""
	}
	eventually(t, note)
	// Also across a restart, and without being written again.
	l.stop()
	l.router.drop("vms/a", "vm.yaml", vmFile("10.1.1.99"))
	l.start(labOptions{})
	eventually(t, note)
	l.wait(op, l.ok(op, "pushNetwork", "id", "guest-2", "definition", "gateway: 10.2.1.1/24\n"))
	if done := l.wait(op, accepted); done.get("jobstatus") != int64(1) {
		t.Errorf("job = %s", done.text)
	}
	if got := l.router.text("vms/a", "vm.yaml"); got != vmFile("10.1.1.99") {
		t.Errorf("a change made since is lost: %s", got)
	}
}

func TestBundleIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	l := newLab(t, labOptions{limits: api.Limits{Bundle: 1 << 20}})
	op := l.user("op", account.Operator)
	good := tarOf(t, "vms/a/vm.yaml", vmFile("10.1.1.8"))
	tests := []struct {
		name string
		got  reply
		code int
		text string
	}{
		{"other body", l.pushBundle(op, good, "sha256", strings.Repeat("0", 64)), 431, "was announced"},
		{"not a sum", l.pushBundle(op, good, "sha256", "x"), 431, "for parameter sha256"},
		{"no sum", l.pushBundle(op, good, "sha256", ""), 431, "missing parameter sha256"},
		{"no end", l.pushBundle(op, good, "expires", "", "signatureVersion", ""), 431, "missing parameter expires"},
		{"expired", l.pushBundle(op, good, "expires", wire.Date(time.Now().Add(-time.Minute))), 401, "unable to verify"},
		{"unknown mode", l.pushBundle(op, good, "mode", "x"), 431, "for parameter mode"},
		{"leaves the tree", l.pushBundle(op, tarOf(t, "vms/../../x", "y")), 431, `"vms/../../x": leaves the tree`},
		{"too large", l.pushBundle(op, make([]byte, 2<<20)), 431, "1048576 are allowed"},
		{"another's", l.pushBundle(account.User{APIKey: op.APIKey, SecretKey: "x"}, good), 401, "unable to verify"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if text, _ := tt.got.get("errortext").(string); tt.got.status != tt.code || !strings.Contains(text, tt.text) {
				t.Errorf("answer %d %s, want %d with %q", tt.got.status, tt.got.text, tt.code, tt.text)
			}
		})
	}
	if len(l.router.puts) > 0 {
		t.Errorf("written: %v", l.router.puts)
	}
	if left, err := os.ReadDir(l.spool); err != nil || len(left) > 0 {
		t.Errorf("left in the spool: %v, %v", left, err)
	}
	if jobs, err := l.jobs.List(func(job.Job) (bool, bool) { return true, true }); err != nil || len(jobs) > 0 {
		t.Errorf("jobs: %v, %v", jobs, err)
	}
}

func TestLeftoversInTheSpoolAreRemovedAtAStart(t *testing.T) {
	l := newLab(t, labOptions{idle: true})
	op := l.user("op", account.Operator)
	accepted := l.pushBundle(op, tarOf(t, "vms/a/vm.yaml", vmFile("10.1.1.8")))
	stray := filepath.Join(l.spool, ".bundle-123")
	if err := os.WriteFile(stray, []byte("broke off"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.stop()
	l.start(labOptions{})
	if done := l.wait(op, accepted); done.get("jobstatus") != int64(1) {
		t.Errorf("job = %s", done.text)
	}
	eventually(t, func() string {
		if left, err := os.ReadDir(l.spool); err != nil || len(left) > 0 {
			return fmt.Sprintf("left in the spool: %v, %v", left, err)
		}
		return ""
	})
}

// After a restart requests wait in the API's socket, so that a bundle may come before jobs are looked
// through for what the last run left behind.
func TestAnUploadUnderWayIsNoLeftover(t *testing.T) {
	l := newLab(t, labOptions{idle: true})
	op := l.user("op", account.Operator)
	accepted := l.pushBundle(op, tarOf(t, "vms/a/vm.yaml", vmFile("10.1.1.8")))
	upload := filepath.Join(l.spool, ".bundle-123")
	if err := os.WriteFile(upload, []byte("half of it"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := l.companion.Run(ctx); err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	if done := l.wait(op, accepted); done.get("jobstatus") != int64(1) {
		t.Errorf("job = %s", done.text)
	}
	cancel()
	running.Wait()
	if _, err := os.Stat(upload); err != nil {
		t.Errorf("the upload: %v", err)
	}
}

func TestThousandsInOneBundle(t *testing.T) {
	l := newLab(t, labOptions{})
	op := l.user("op", account.Operator)
	const n = 2000
	var files []string
	for i := range n {
		files = append(files, fmt.Sprintf("vms/vm-%d/vm.yaml", i), fmt.Sprintf("nics: [{network: wide, ipv4: 10.9.%d.%d}]\n", i/250, 1+i%250), fmt.Sprintf("vms/vm-%d/user-data", i), strings.Repeat("x", 1000))
	}
	files = append(files, "networks/wide.yaml", "gateway: 10.9.255.254/16\n")
	done := l.wait(op, l.pushBundle(op, tarOf(t, files...)))
	if done.get("jobstatus") != int64(1) || done.get("jobresult", "bundle", "virtualmachines") != int64(n) {
		t.Fatalf("job = %s", done.text)
	}
	// One at a time against the others, a bundle of 2,000 is judged once.
	if l.router.judged != 1 {
		t.Errorf("judged %d times", l.router.judged)
	}
}

// TestAcknowledgedPushesSurviveRestarts lets 20 clients push while the agent is stopped and
// started; every acknowledged job is found and carried out, in its order.
func TestAcknowledgedPushesSurviveRestarts(t *testing.T) {
	l := newLab(t, labOptions{})
	op := l.user("root", account.Admin)
	l.router.drop("networks/wide.yaml", "wide.yaml", "gateway: 10.9.255.254/16\n")
	const clients, pushes = 20, 15
	var mu sync.RWMutex // held for writing while the agent restarts
	last := make([]string, clients)
	ids := make([][]string, clients)
	var pushing sync.WaitGroup
	for c := range clients {
		pushing.Go(func() {
			for n := range pushes {
				data := fmt.Sprintf("dGVzdC%02d", n) // base64 of something
				mu.RLock()
				r := l.call(op, "pushVirtualMachine", "id", fmt.Sprintf("vm-%d", c), "nics[0].network", "wide", "nics[0].ipaddress", fmt.Sprintf("10.9.1.%d", c+1), "userdata", data)
				mu.RUnlock()
				id, _ := r.get("jobid").(string)
				if id == "" {
					t.Errorf("answer %d %s", r.status, r.text)
					continue
				}
				ids[c] = append(ids[c], id)
				last[c] = data
			}
		})
	}
	for range 5 {
		mu.Lock()
		l.stop()
		l.start(labOptions{})
		mu.Unlock()
	}
	pushing.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for c := range clients {
		for _, id := range ids[c] {
			if j, err := l.jobs.Wait(ctx, id); err != nil || j.State != job.Done {
				t.Errorf("client %d: job %+v, %v", c, j, err)
			}
		}
		r := l.ok(op, "getVirtualMachineUserData", "virtualmachineid", fmt.Sprintf("vm-%d", c))
		if got := r.get("virtualmachineuserdata", "userdata"); got != last[c] {
			t.Errorf("client %d: user data %v, want that of its last push, %s", c, got, last[c])
		}
	}
}

func TestPushesShareWhatTheyCan(t *testing.T) {
	l := newLab(t, labOptions{})
	op := l.user("op", account.Operator)
	hold := make(chan struct{})
	l.router.hold = hold
	var accepted []reply
	for i := range 30 {
		accepted = append(accepted, l.ok(op, "pushVirtualMachine", "id", fmt.Sprintf("vm-%d", i), "nics[0].network", "guest-1", "nics[0].ipaddress", fmt.Sprintf("10.1.1.%d", 10+i)))
	}
	close(hold)
	for _, r := range accepted {
		if done := l.wait(op, r); done.get("jobstatus") != int64(1) {
			t.Errorf("job = %s", done.text)
		}
	}
	if l.router.judged > 3 {
		t.Errorf("30 waiting pushes were judged %d times, want them together", l.router.judged)
	}
}

func TestAStalledWriterHoldsUpItsOwnUnitOnly(t *testing.T) {
	l := newLab(t, labOptions{})
	op := l.user("op", account.Operator)
	setWriting := func(unit string) {
		l.router.mu.Lock()
		defer l.router.mu.Unlock()
		l.router.writing = unit
	}
	push := func(name, address string) reply {
		return l.ok(op, "pushVirtualMachine", "id", name, "nics[0].network", "guest-1", "nics[0].ipaddress", address)
	}
	setWriting("vms/web")
	slow, second := push("web", "10.1.1.5"), push("db", "10.1.1.6")
	if done := l.wait(op, second); done.get("jobstatus") != int64(1) {
		t.Errorf("another unit's job = %s", done.text)
	}
	eventually(t, func() string {
		j := l.ok(op, "queryAsyncJobResult", "jobid", slow.get("jobid").(string))
		if j.get("jobnote") != "waits for a file that somebody else is writing" {
			return j.text
		}
		return ""
	})
	setWriting("")
	if done := l.wait(op, slow); done.get("jobstatus") != int64(1) {
		t.Errorf("job = %s", done.text)
	}
}

func TestFailedWritesEndTheirJobs(t *testing.T) {
	l := newLab(t, labOptions{})
	op := l.user("op", account.Operator)
	l.router.broken = errors.New("write vms/web: no space left on device")
	done := l.wait(op, l.ok(op, "pushVirtualMachine", "id", "web", "nics[0].network", "guest-1", "nics[0].ipaddress", "10.1.1.5"))
	if done.get("jobresultcode") != int64(530) || !strings.Contains(done.text, "no space left on device") {
		t.Errorf("job = %s", done.text)
	}
	done = l.wait(op, l.pushBundle(op, tarOf(t, "vms/a/vm.yaml", vmFile("10.1.1.8"))))
	if done.get("jobresultcode") != int64(530) || !strings.Contains(done.text, "no space left on device") {
		t.Errorf("job = %s", done.text)
	}
	// Nothing is promised that cannot be kept.
	l.store.broken = errors.New("no space left on device")
	if r := l.call(op, "pushVirtualMachine", "id", "web", "nics[0].network", "guest-1", "nics[0].ipaddress", "10.1.1.5"); r.status != 530 || !strings.Contains(r.text, "no space left") {
		t.Errorf("answer %d %s", r.status, r.text)
	}
	l.store.broken = nil
}

func TestUpdateAnswersWhenItIsInForceOrPending(t *testing.T) {
	l := newLab(t, labOptions{})
	op := l.user("op", account.Operator)
	l.router.drop("vms/web", "vm.yaml", "# mine\nnics:\n  - {network: guest-2, ipv4: 10.2.1.5} # soon\n")
	r := l.ok(op, "updateVirtualMachine", "id", "web", "userdata", "YQ==", "details[0].rack", "r1")
	if r.name != "updatevirtualmachineresponse" || r.get("virtualmachine", "state") != "pending" {
		t.Errorf("answer %s", r.text)
	}
	if l.router.text("vms/web", "user-data") != "a" || l.router.text("vms/web", "meta-data.yaml") != "rack: r1\n" {
		t.Error("not written")
	}
	// A push edits what people wrote; their comments stay.
	l.wait(op, l.ok(op, "pushNetwork", "id", "guest-2", "definition", "gateway: 10.2.1.1/24\n"))
	l.wait(op, l.ok(op, "pushVirtualMachine", "id", "web", "hostname", "x"))
	if got, want := l.router.text("vms/web", "vm.yaml"), "# mine\nnics:\n  - {network: guest-2, ipv4: 10.2.1.5} # soon\nhostname: x\n"; got != want {
		t.Errorf("vm.yaml is\n%s\nwant\n%s", got, want)
	}
	// A NIC is removed by an empty network, and the last one stays.
	l.wait(op, l.ok(op, "pushVirtualMachine", "id", "web", "nics[1].network", "guest-1", "nics[1].ipaddress", "10.1.1.6", "nics[1].default", "false"))
	l.wait(op, l.ok(op, "pushVirtualMachine", "id", "web", "nics[0].network", ""))
	if got, want := l.router.text("vms/web", "vm.yaml"), "# mine\nnics:\n  - network: guest-1\n    ipv4: 10.1.1.6\n    default: false\nhostname: x\n"; got != want {
		t.Errorf("vm.yaml is\n%s\nwant\n%s", got, want)
	}
	for _, pairs := range [][]string{{"nics[0].network", ""}, {"nics[7].network", "guest-1"}} {
		if done := l.wait(op, l.ok(op, "pushVirtualMachine", append([]string{"id", "web"}, pairs...)...)); done.get("jobresultcode") != int64(431) {
			t.Errorf("%v: job = %s", pairs, done.text)
		}
	}
}

func TestUserCommands(t *testing.T) {
	l := newLab(t, labOptions{})
	root, op := l.user("root", account.Admin), l.user("op", account.Operator)
	made := l.ok(root, "createUser", "account", "viewer", "username", "bob", "password", "p@ss", "email", "b@x", "firstname", "Bob", "lastname", "B")
	id, _ := made.get("user", "id").(string)
	for name, want := range map[string]any{"username": "bob", "account": "viewer", "state": "enabled", "usersource": "native", "accounttype": int64(0)} {
		if got := made.get("user", name); got != want {
			t.Errorf("%s = %v, want %v", name, got, want)
		}
	}
	if r := l.call(root, "createUser", "account", "viewer", "username", "BOB", "password", "x", "email", "b", "firstname", "B", "lastname", "B"); r.status != 431 {
		t.Errorf("same name: %d %s", r.status, r.text)
	}
	keys := l.ok(root, "registerUserKeys", "id", id)
	bob := account.User{ID: id, APIKey: keys.get("userkeys", "apikey").(string), SecretKey: keys.get("userkeys", "secretkey").(string)}
	if got := l.ok(root, "getUserKeys", "id", id); got.get("userkeys", "secretkey") != bob.SecretKey {
		t.Errorf("getUserKeys = %s", got.text)
	}
	if got := l.ok(root, "getUser", "userapikey", bob.APIKey); got.get("user", "id") != id {
		t.Errorf("getUser = %s", got.text)
	}
	if got := l.ok(root, "listUsers"); got.get("count") != int64(3) || strings.Contains(got.text, "secretkey") {
		t.Errorf("listUsers = %s", got.text)
	}

	// Others see and change themselves only.
	if got := l.ok(bob, "listUsers"); got.get("count") != int64(1) || got.get("user", "username") != "bob" {
		t.Errorf("listUsers of bob = %s", got.text)
	}
	for _, r := range []reply{
		l.call(bob, "getUserKeys", "id", op.ID), l.call(bob, "registerUserKeys", "id", op.ID), l.call(bob, "updateUser", "id", op.ID, "email", "x"), l.call(bob, "getUser", "userapikey", op.APIKey),
		l.call(bob, "updateUser", "id", id, "password", "new"), l.call(bob, "updateUser", "id", id, "password", "new", "currentpassword", "wrong"),
	} {
		if r.status != 431 {
			t.Errorf("%s: answer %d %s", r.name, r.status, r.text)
		}
	}
	if r := l.call(bob, "updateUser", "id", id, "username", "boss"); r.status != 531 {
		t.Errorf("own name: %d", r.status)
	}
	l.ok(bob, "updateUser", "id", id, "password", "new", "currentpassword", "p@ss", "email", "new@x")
	if _, u, err := l.users.Login(t.Context(), "bob", "new"); err != nil || u.Email != "new@x" {
		t.Errorf("Login() = %v, %v", u, err)
	}

	done := l.wait(root, l.ok(root, "disableUser", "id", id))
	if done.get("jobresult", "user", "state") != "disabled" {
		t.Errorf("job = %s", done.text)
	}
	if r := l.call(bob, "listUsers"); r.status != 401 {
		t.Errorf("a disabled user got %d", r.status)
	}
	if got := l.ok(root, "enableUser", "id", id); got.get("user", "state") != "enabled" {
		t.Errorf("enableUser = %s", got.text)
	}
	if got := l.ok(root, "lockUser", "id", id); got.get("user", "state") != "locked" {
		t.Errorf("lockUser = %s", got.text)
	}
	for _, r := range []reply{l.call(root, "disableUser", "id", root.ID), l.call(root, "deleteUser", "id", root.ID), l.call(root, "lockUser", "id", root.ID)} {
		if r.status != 531 {
			t.Errorf("the last administrator: %d %s", r.status, r.text)
		}
	}
	if got := l.ok(root, "deleteUser", "id", id); got.text != `{"deleteuserresponse":{"success":true}}`+"\n" {
		t.Errorf("deleteUser = %s", got.text)
	}
	if got := l.ok(root, "listAccounts"); got.get("count") != int64(3) || got.get("account", "name") != "admin" {
		t.Errorf("listAccounts = %s", got.text)
	}
	if log := l.log.String(); strings.Contains(log, "p@ss") || strings.Contains(log, bob.SecretKey) || !strings.Contains(log, "command=createUser resource=bob outcome=done") {
		t.Errorf("log:\n%s", log)
	}
}

func TestJobsAreSeenByTheirAccount(t *testing.T) {
	l := newLab(t, labOptions{})
	root, op, viewer := l.user("root", account.Admin), l.user("op", account.Operator), l.user("view", account.Viewer)
	accepted := l.ok(op, "pushNetwork", "id", "guest-2", "definition", "gateway: 10.2.1.1/24\n")
	l.wait(op, accepted)
	if r := l.call(viewer, "queryAsyncJobResult", "jobid", accepted.get("jobid").(string)); r.status != 431 {
		t.Errorf("another account got %d %s", r.status, r.text)
	}
	for u, want := range map[*account.User]any{&root: int64(1), &op: int64(1), &viewer: nil} {
		if r := l.ok(*u, "listAsyncJobs"); r.get("count") != want {
			t.Errorf("%s sees %s", u.Name, r.text)
		}
	}
	if r := l.ok(op, "listAsyncJobs", "jobstatus", "0"); r.get("count") != nil {
		t.Errorf("open jobs: %s", r.text)
	}
	if r := l.ok(op, "listAsyncJobs", "startdate", "2999-01-01"); r.get("count") != nil {
		t.Errorf("jobs of the future: %s", r.text)
	}
}

func TestLocalCallersAreAdministrators(t *testing.T) {
	l := newLab(t, labOptions{})
	client, _ := serveLocal(t, l.router, api.LocalOptions{Companion: l.companion})
	ctx := t.Context()
	keys, err := client.AddUser(ctx, "first", "admin")
	if err != nil {
		t.Fatal(err)
	}
	first := account.User{APIKey: keys.APIKey, SecretKey: keys.SecretKey}
	l.ok(first, "listUsers")
	if _, err := client.AddUser(ctx, "x", "boss"); err == nil || !strings.Contains(err.Error(), "want admin, operator or viewer") {
		t.Errorf("AddUser(boss) = %v", err)
	}
	if _, err := client.AddUser(ctx, "first", "viewer"); err == nil {
		t.Error("AddUser() took a name twice")
	}
	if keys, err = client.NewKeys(ctx, "first"); err != nil {
		t.Fatal(err)
	}
	if r := l.call(first, "listUsers"); r.status != 401 {
		t.Errorf("old keys: %d", r.status)
	}
	if users, err := client.Users(ctx); err != nil || len(users) != 1 || users[0].Role != "admin" || !users[0].Keys {
		t.Errorf("Users() = %v, %v", users, err)
	}
	if err := client.RemoveUser(ctx, "first"); err == nil {
		t.Error("the last administrator was removed")
	}
	if err := client.RemoveUser(ctx, "x"); !errors.Is(err, api.ErrUnknown) {
		t.Errorf("RemoveUser(unknown) = %v", err)
	}
	archive := tarOf(t, "vms/a/vm.yaml", vmFile("10.1.1.8"))
	sum := sha256.Sum256(archive)
	id, err := client.PushBundle(ctx, bytes.NewReader(archive), hex.EncodeToString(sum[:]), false)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if j, err := client.Job(ctx, id); err != nil || j.State != "done" {
			return fmt.Sprintf("job %+v, %v", j, err)
		}
		return ""
	})
	if jobs, err := client.Jobs(ctx, 10); err != nil || len(jobs) != 1 || jobs[0].ID != id || jobs[0].Completed == nil {
		t.Errorf("Jobs() = %+v, %v", jobs, err)
	}
	if _, err := client.PushBundle(ctx, strings.NewReader("x"), strings.Repeat("0", 64), true); err == nil || !strings.Contains(err.Error(), "bundle: ") {
		t.Errorf("PushBundle(no archive) = %v", err)
	}
	if _, err := client.Job(ctx, "x"); !errors.Is(err, api.ErrUnknown) {
		t.Errorf("Job(unknown) = %v", err)
	}
}
