package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vragent/agent/internal/api"
	"vragent/netcfg/nstest"
)

// stateFiles returns the files of the state directory that are in use.
func (r *router) stateFiles(t *testing.T) (list []string) {
	t.Helper()
	err := filepath.WalkDir(r.dir+"/state", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && (entry.Name() == "damaged" || entry.Name() == "spool") {
			return fs.SkipDir
		}
		if err == nil && entry.Type().IsRegular() {
			list = append(list, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// damage flips bytes of a file, or cuts it off, and says what it did.
func damage(t *testing.T, rng *rand.Rand, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var what string
	if rng.IntN(3) == 0 {
		n := rng.IntN(len(data))
		// A file that ends with a record is a shorter history, which nothing can tell from a true one.
		for n > 0 && bytes.HasPrefix(data[n:], []byte{0xb1, 0xc6, 0x5e, 0x8d}) {
			n--
		}
		what = fmt.Sprintf("cut to %d of %d bytes", n, len(data))
		data = data[:n]
	} else {
		var at []int
		for range 1 + rng.IntN(8) {
			at = append(at, rng.IntN(len(data)))
		}
		for _, i := range at {
			data[i] ^= byte(1 + rng.IntN(255))
		}
		what = fmt.Sprintf("bytes %v of %d flipped", at, len(data))
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return what
}

// TestFaultDamagedState: whatever bytes of the state directory are wrong, guests are served what lies in
// the drop directory; of users, leases and jobs what can be read is there, and what cannot is said.
func TestFaultDamagedState(t *testing.T) {
	binary := fault(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "prlimit")
	const vms, rounds = 6, 25
	rng := seeded(t)
	r := newRouter(t)
	r.configure(t, "metadata: {guest_rate: 0}\n")
	g := r.guest(t, "g", "eth0", macA)
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	var clients []*http.Client
	ip := func(i int) string { return fmt.Sprintf("10.1.1.%d", 10+i) }
	for i := range vms {
		g.AddAddr(t, "eth0", ip(i)+"/24")
		clients = append(clients, asGuest(t, g, ip(i)))
	}
	strangers := newStation(t, g)

	p := r.boot(t, binary)
	r.put(t, "networks/guest-1.yaml", network+"pin_neighbors: false\npool: {from: 10.1.1.100, to: 10.1.1.250, probe: false}\n")
	for i := range vms {
		r.put(t, fmt.Sprintf("vms/vm-%d/user-data", i), versioned(fmt.Sprint(i)))
		r.put(t, fmt.Sprintf("vms/vm-%d/password", i), "s3cret\n")
		r.put(t, fmt.Sprintf("vms/vm-%d/vm.yaml", i), fmt.Sprintf("hostname: vm-%d\nnics: [{network: guest-1, ipv4: %s}]\n", i, ip(i)))
	}
	r.applied(t)
	first := newLedger()
	for i := range 10 {
		r.eventually(t, "a user", func() error { return first.user(t, r, false) })
		r.eventually(t, "a lease", func() error { return first.lease(strangers, i, waitTime) })
		if err := push(r, "pushed", fmt.Sprint("pushed-", i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range vms / 2 {
		if got, err := passwordOf(clients[i], "send_my_password"); err != nil || got != "s3cret" {
			t.Fatalf("password = %q, %v", got, err)
		}
		if _, err := passwordOf(clients[i], "saved_password"); err != nil {
			t.Fatal(err)
		}
	}
	r.applied(t)
	jobs, err := r.client.Jobs(t.Context(), 0)
	if err != nil || len(jobs) == 0 {
		t.Fatalf("jobs = %+v, %v", jobs, err)
	}
	end(t, p)
	state, pristine := r.dir+"/state", r.dir+"/pristine"
	if err := os.Rename(state, pristine); err != nil {
		t.Fatal(err)
	}

	reported, kept := 0, 0
	for round := range rounds {
		if err := os.RemoveAll(state); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(state, os.DirFS(pristine)); err != nil {
			t.Fatal(err)
		}
		files := r.stateFiles(t)
		var what []string
		for _, file := range files {
			if len(what) == 0 && file == files[len(files)-1] || rng.IntN(len(files)) == 0 {
				what = append(what, strings.TrimPrefix(file, state+"/")+": "+damage(t, rng, file))
			}
		}
		failed := func(format string, args ...any) {
			t.Helper()
			t.Errorf("round %d: %s\nafter %s\nstatus says: %s", round, fmt.Sprintf(format, args...), strings.Join(what, "; "), r.faultsOf(t))
		}
		p = r.boot(t, binary)
		r.applied(t)
		for i, client := range clients {
			if got, err := ask(client, "user-data"); err != nil || versionOf(got) != fmt.Sprint(i) {
				failed("vm-%d is served %q, %v", i, got, err)
			}
			if got, err := ask(client, "local-hostname"); err != nil || got != fmt.Sprint("vm-", i) {
				failed("vm-%d has the name %q, %v", i, got, err)
			}
			want := "s3cret"
			if i < vms/2 {
				want = "saved_password"
			}
			// A password whose record is damaged is not given out.
			if got, err := passwordOf(client, "send_my_password"); err != nil || got != want {
				failed("vm-%d gets the password %q, %v; want %q", i, got, err, want)
			}
		}
		faults := r.faultsOf(t)
		said := func(store string) bool {
			return strings.Contains(faults, "/"+store+":") || strings.Contains(faults, "\n"+store+":") || strings.HasPrefix(faults, store+":")
		}
		if faults != "" {
			reported++
		}
		users, err := r.client.Users(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range users {
			if first.users[u.Name] != present {
				failed("there never was a user %s", u.Name)
			}
		}
		if len(users) < len(first.users) && !said("users") {
			failed("%d of %d users are there, and status does not say so", len(users), len(first.users))
		}
		leases, err := r.client.Leases(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for address, mac := range first.leases {
			if slices.ContainsFunc(leases, func(l api.Lease) bool { return l.IPv4 == address.String() && l.MAC == mac && l.State == "bound" }) {
				found++
			}
		}
		if found < len(first.leases) && !said("leases") {
			failed("%d of %d leases are there, and status does not say so", found, len(first.leases))
		}
		left, err := r.client.Jobs(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if len(left) < len(jobs) && !said("jobs") {
			failed("%d of %d jobs are there, and status does not say so", len(left), len(jobs))
		}
		// It works on, and keeps what is new.
		second := newLedger()
		second.next = 100
		r.eventually(t, "a user", func() error { return second.user(t, r, false) })
		r.eventually(t, "a lease", func() error { return second.lease(strangers, 100+round, waitTime) })
		crash(t, p)
		p = r.boot(t, binary)
		now, err := r.client.Users(t.Context())
		if err != nil || len(now) != len(users)+1 {
			failed("a user was added to %d, now there are %d, %v", len(users), len(now), err)
		}
		for address, mac := range second.leases {
			leases, err := r.client.Leases(t.Context())
			if err != nil || !slices.ContainsFunc(leases, func(l api.Lease) bool { return l.IPv4 == address.String() && l.MAC == mac }) {
				failed("a lease of %s after the damage is lost: %v", address, err)
			}
		}
		end(t, p)
		aside, err := filepath.Glob(state + "/*/damaged/*")
		if err != nil {
			t.Fatal(err)
		}
		kept += len(aside)
		if t.Failed() {
			return
		}
	}
	if reported == 0 {
		t.Error("no damage was ever reported")
	}
	if kept == 0 {
		t.Error("nothing that was damaged was kept aside")
	}
}
