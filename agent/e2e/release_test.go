package e2e

import (
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vragent/agent/internal/state"
	"vragent/netcfg/nstest"
)

// Releases that follow each other read each other's state: testdata/release-1 is a state directory and
// its drop directory as release 1 left them, and testdata/state.golden is the shape of what this release
// writes. A new key, a new field or another type in there is a decision: the release before this one has
// to read it. See CONTRIBUTING.md.
//
//	go test ./agent/e2e -run TestStateThatThisReleaseWrites -update
var update = flag.Bool("update", false, "write the golden files anew")

const (
	releaseDir  = "testdata/release-1"
	stateGolden = "testdata/state.golden"
)

// keepJobs is a configuration under which nothing in the golden state directory grows too old.
func keepJobs(t *testing.T, r *router) {
	t.Helper()
	r.configure(t, "")
	r.edit(t, "api.sock}", "api.sock, job_retention: 87600h}")
}

// fillState makes an agent keep something of each kind.
func fillState(t *testing.T, r *router, g *nstest.Host, binary string) {
	t.Helper()
	r.put(t, "networks/guest-1.yaml", network+"domain: cs1.internal\nlease_time: infinite\npin_neighbors: false\npool: {from: 10.1.1.200, to: 10.1.1.250}\nroutes: [{to: 192.168.0.0/16, via: 10.1.1.254}]\noptions: {66: boot}\n")
	r.put(t, "vms/a/user-data", "data of a")
	r.put(t, "vms/a/vendor-data", "vendor data of a")
	r.put(t, "vms/a/meta-data.yaml", "service-offering: small\n")
	r.put(t, "vms/a/password", "s3cret\n")
	r.put(t, "vms/a/vm.yaml", vm("a-1", "guest-1", macA, "10.1.1.34"))
	r.put(t, "vms/b/vm.yaml", vm("last-good", "guest-1", macB, "10.1.1.35"))
	r.applied(t)
	g.AddAddr(t, "eth0", "10.1.1.34/24", "10.1.1.35/24")
	askPassword(t, g, "10.1.1.34", "saved_password")
	if _, err := newStation(t, g).lease("02:00:00:00:00:01", waitTime); err != nil {
		t.Fatal(err)
	}
	if _, stderr, status := r.vragent(t, binary, "user", "add", "ops", "--role", "operator"); status != 0 {
		t.Fatal(stderr)
	}
	push := pusher(r)
	if state := r.ended(t, push(t, "a", "cHVzaGVk")); state != "done" {
		t.Fatalf("push: %s", state)
	}
	r.put(t, "vms/b/vm.yaml", "nics: none\n")
	r.rejected(t, "vms/b")
}

// askPassword asks the password server as a guest.
func askPassword(t *testing.T, g *nstest.Host, address, request string) string {
	t.Helper()
	answer, err := passwordOf(clientAt(g, address), request)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func TestStateThatThisReleaseWrites(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	keepJobs(t, r)
	g := r.guest(t, "g", "eth0", macA)
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	u := startUnit(t, r, binary)
	fillState(t, r, g, binary)
	u.end(t, syscall.SIGTERM)
	if _, err := os.Stat(releaseDir); *update && os.IsNotExist(err) {
		for _, dir := range []string{"state", "drop"} {
			if err := os.CopyFS(filepath.Join(releaseDir, dir), os.DirFS(filepath.Join(r.dir, dir))); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := shape(t, filepath.Join(r.dir, "state"))
	if *update {
		if err := os.WriteFile(stateGolden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(stateGolden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("what is written has changed (-want +got):\n%s\nThe release before this one has to read it, for a downgrade. If it does: go test ./agent/e2e -run TestStateThatThisReleaseWrites -update", diff)
	}
}

// shape tells what is in a state directory: the format of each store, its keys, and the fields of its
// records with their types.
func shape(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	for _, name := range []string{"jobs", "leases", "units", "users"} {
		folder := filepath.Join(dir, name)
		formats := make(map[uint32]bool)
		for _, path := range segments(t, folder) {
			head, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			formats[binary.LittleEndian.Uint32(head[8:])] = true
		}
		fmt.Fprintf(&b, "%s, format %v\n", name, slices.Sorted(maps.Keys(formats)))
		store, report, err := state.Open(folder, state.Options{})
		if err != nil || !report.Empty() {
			t.Fatalf("%s: %s, %v", name, report, err)
		}
		lines := make(map[string]bool)
		err = store.Each("", -1, func(key string, value []byte) error {
			key = constant(key)
			line := func(what string) { lines["\t"+key+": "+what] = true }
			var fields any
			switch kind, _, _ := strings.Cut(key, "/"); {
			case kind == "data" || kind == "key":
				line("bytes")
			case kind == "lease":
				line(fmt.Sprint("format ", value[0]))
			case json.Unmarshal(value, &fields) != nil:
				line("neither bytes nor JSON")
			default:
				list(fields, "", line)
			}
			return nil
		})
		if err = joinClose(err, store); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, line := range slices.Sorted(maps.Keys(lines)) {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

func joinClose(err error, store *state.Store) error {
	if closed := store.Close(); err == nil {
		err = closed
	}
	return err
}

func segments(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no segments in %s: %v", dir, err)
	}
	return paths
}

// constant replaces what differs from run to run in a key: identifiers and hashes.
func constant(key string) string {
	parts := strings.Split(key, "/")
	for i, part := range parts {
		if len(part) >= 32 {
			parts[i] = "*"
		}
	}
	return strings.Join(parts, "/")
}

// list names the fields of a JSON value and their types. The result of a job is the API's affair.
func list(v any, path string, line func(string)) {
	switch v := v.(type) {
	case map[string]any:
		if path == ".result" {
			line(path + " object")
			return
		}
		for name, field := range v {
			list(field, path+"."+name, line)
		}
	case []any:
		for _, element := range v {
			list(element, path+"[]", line)
		}
	case nil:
		line(path + " null")
	default:
		line(fmt.Sprintf("%s %T", path, v))
	}
}

// release puts the golden directories in the router's place.
func release(t *testing.T, r *router) {
	t.Helper()
	keepJobs(t, r)
	if err := os.CopyFS(r.dir, os.DirFS(releaseDir)); err != nil {
		t.Fatal(err)
	}
}

func TestStateOfTheFirstReleaseIsServed(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	release(t, r)
	g := r.guest(t, "g", "eth0", macA)
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	g.AddAddr(t, "eth0", "10.1.1.34/24", "10.1.1.35/24")
	u := startUnit(t, r, binary)
	for _, ask := range []struct{ address, path, want string }{
		{"10.1.1.34", "user-data", "pushed"},
		{"10.1.1.34", "vendor-data", "vendor data of a"},
		{"10.1.1.34", "service-offering", "small"},
		{"10.1.1.34", "local-hostname", "a-1"},
		{"10.1.1.35", "local-hostname", "last-good"}, // its file is bad, so its record is all there is
	} {
		if got := get(t, clientAt(g, ask.address), "http://10.1.1.1/latest/"+ask.path); got != ask.want {
			t.Errorf("%s of %s = %q, want %q", ask.path, ask.address, got, ask.want)
		}
	}
	r.rejected(t, "vms/b")
	if got := askPassword(t, g, "10.1.1.34", "send_my_password"); got != "saved_password" {
		t.Errorf("password = %q, want that it was taken", got)
	}
	r.put(t, "vms/a/password", "s3cret\n")
	r.applied(t, "vms/a")
	if got := askPassword(t, g, "10.1.1.34", "send_my_password"); got != "saved_password" {
		t.Errorf("the same password again = %q, want that it was taken", got)
	}
	leases, err := r.client.Leases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bound := false
	for _, l := range leases {
		bound = bound || l.IPv4 == "10.1.1.200" && l.MAC == "02:00:00:00:00:01" && l.State == "bound"
	}
	if !bound {
		t.Errorf("leases = %+v, want that of 10.1.1.200", leases)
	}
	users, err := r.client.Users(t.Context())
	if err != nil || len(users) != 1 || users[0].Name != "ops" || users[0].Role != "operator" || !users[0].Keys {
		t.Errorf("users = %+v, %v", users, err)
	}
	jobs, err := r.client.Jobs(t.Context(), 0)
	if err != nil || len(jobs) != 1 || jobs[0].Unit != "vms/a" || jobs[0].State != "done" {
		t.Errorf("jobs = %+v, %v", jobs, err)
	}
	u.end(t, syscall.SIGTERM)
}

// A state directory of which one store is of a later release is refused as a whole, and not touched.
func TestStateOfALaterReleaseIsRefusedAndLeft(t *testing.T) {
	t.Parallel()
	daemon := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	for _, store := range []string{"jobs", "leases", "units", "users"} {
		t.Run(store, func(t *testing.T) {
			r := newRouter(t)
			release(t, r)
			path := segments(t, filepath.Join(r.dir, "state", store))[0]
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			const version, sum, salt, end = 8, 12, 16, 32 // of the header's fields
			binary.LittleEndian.PutUint32(data[version:], 2)
			castagnoli := crc32.MakeTable(crc32.Castagnoli)
			binary.LittleEndian.PutUint32(data[sum:], crc32.Update(crc32.Checksum(data[:sum], castagnoli), castagnoli, data[salt:end]))
			// Opened, a store with a torn end is cut.
			if err := os.WriteFile(path, append(data, "torn"...), 0o600); err != nil {
				t.Fatal(err)
			}
			before := tree(t, r.dir)
			_, stderr, status := r.vragent(t, daemon, "run")
			if status != 1 || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "/state/"+store) ||
				!strings.Contains(stderr, "format 2, this release reads 1: written by a newer release") {
				t.Errorf("exit status %d, %q", status, stderr)
			}
			if diff := cmp.Diff(before, tree(t, r.dir)); diff != "" {
				t.Errorf("the refused state was changed (-before +after):\n%s", diff)
			}
		})
	}
}

// tree returns the files below dir with what is in them.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		content := d.Type().String()
		if d.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = string(data)
		}
		files[strings.TrimPrefix(path, dir)] = content
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
