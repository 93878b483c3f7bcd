package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vragent/agent/internal/api"
	"vragent/agent/internal/drop"
	"vragent/agent/internal/state"
	"vragent/dhcp"
	"vragent/metadata"
	"vragent/netcfg"
	"vragent/netcfg/nstest"
)

// rig is an engine on a drop directory and a state directory of the test's own, without any power
// over the machine's network.
type rig struct {
	*Engine
	path string
	stop func()
}

func newRig(t *testing.T, path string) *rig {
	t.Helper()
	return newRigOf(t, path, nil)
}

// newRigOf is newRig for a router of a pair.
func newRigOf(t *testing.T, path string, shared SharedTaken) *rig {
	t.Helper()
	store, report, err := state.Open(filepath.Join(path, "state"), state.Options{})
	if err != nil || !report.Empty() {
		t.Fatalf("state: %v, %v", err, report)
	}
	dir, err := drop.Open(filepath.Join(path, "drop"), drop.Options{})
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := netcfg.Open(netcfg.Options{})
	if err != nil {
		t.Fatal(err)
	}
	hosts, data := dhcp.NewTable(), metadata.NewTable()
	e := New(Parts{Dir: dir, Store: store, Kernel: kernel, DHCPTable: hosts, GuestData: data, Shared: shared,
		DHCP: dhcp.NewServer(hosts, dhcp.ServerOptions{}), Metadata: metadata.NewServer(data, metadata.Options{})}, Settings{})
	if err := errors.Join(e.Restore(), e.Load(context.Background())); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- dir.Run(ctx) }()
	go func() { done <- e.Run(ctx) }()
	r := &rig{Engine: e, path: path}
	r.stop = func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		kernel.Close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
		r.stop = func() {}
	}
	t.Cleanup(func() { r.stop() })
	return r
}

// drop puts a file in by rename and waits until its unit has been judged.
func (r *rig) drop(t *testing.T, path, content string) api.WaitResult {
	t.Helper()
	full := filepath.Join(r.path, "drop", path)
	if err := os.MkdirAll(filepath.Dir(full), 0o770); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(full+".tmp", []byte(content), 0o660); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(full+".tmp", full); err != nil {
		t.Fatal(err)
	}
	return r.settled(t)
}

func (r *rig) settled(t *testing.T) api.WaitResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	result, err := r.Wait(ctx, nil)
	if err != nil {
		t.Fatalf("wait: %v", err)
	}
	return result
}

// served returns what a guest is served, user data included.
func (r *rig) served(t *testing.T, ip string) map[string]string {
	t.Helper()
	m := make(map[string]string)
	x, err := r.Explain(context.Background(), ip)
	if err != nil {
		return m
	}
	for _, entry := range x.Served {
		m[entry.Name] = entry.Value
	}
	r.mu.RLock()
	v, _ := r.model.View(drop.Unit{Kind: drop.VM, Name: x.VM.Name})
	r.mu.RUnlock()
	if v.Have != nil && v.Have.VM.UserData != nil {
		content := &blobContent{engine: r.Engine, unit: v.Unit, name: drop.UserDataFile, blob: v.Have.VM.UserData}
		f, err := content.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		data, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		m["user-data"] = string(data)
	}
	return m
}

const (
	netFile = "interface: eth0\ngateway: 10.1.1.1/24\n"
	vmFile  = "hostname: web-1\nnics: [{network: g, mac: \"02:00:00:00:00:01\", ipv4: 10.1.1.5}]\n"
)

func TestWhatWasInForceComesBackUnread(t *testing.T) {
	path := t.TempDir()
	r := newRig(t, path)
	r.drop(t, "networks/g.yaml", netFile)
	r.drop(t, "vms/web/user-data", "data\x00")
	r.drop(t, "vms/web/meta-data.yaml", "instance-id: i-1\n")
	r.drop(t, "vms/web/vm.yaml", vmFile)
	want := r.served(t, "10.1.1.5")
	if want["instance-id"] != "i-1" || want["user-data"] != "data\x00" {
		t.Fatalf("served = %v", want)
	}
	r.stop()
	again := newRig(t, path)
	if diff := cmp.Diff(want, again.served(t, "10.1.1.5")); diff != "" {
		t.Errorf("after a restart (-want +got):\n%s", diff)
	}
	if again.order != r.order {
		t.Errorf("%d contents were accepted anew; their files had not changed", again.order-r.order)
	}
}

func TestFullDiskRefusesChangesAndRecoversByItself(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	path := t.TempDir()
	if err := os.Mkdir(path+"/state", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", path+"/state", "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(path+"/state", 0) }) // after the rig has stopped, before TempDir
	r := newRig(t, path)
	r.drop(t, "networks/g.yaml", netFile)
	r.drop(t, "vms/web/user-data", "small")
	r.drop(t, "vms/web/vm.yaml", vmFile)
	big := strings.Repeat("x", 512<<10)
	result := r.drop(t, "vms/web/user-data", big)
	if web := result.Units[len(result.Units)-1]; web.State != api.Rejected || !strings.Contains(web.Reasons[0].What, "no space left on device") {
		t.Fatalf("on a full disk: %+v", result)
	}
	if got := r.served(t, "10.1.1.5")["user-data"]; got != "small" {
		t.Errorf("served on a full disk: %d bytes", len(got))
	}
	if s := r.Status(context.Background()); !strings.Contains(strings.Join(s.Faults, "\n"), "no space left") {
		t.Errorf("status says nothing of it: %q", s.Faults)
	}
	if err := unix.Mount("tmpfs", path+"/state", "tmpfs", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	nstest.Poll(t, 20*time.Second, "the refused content in force", func() bool {
		return r.served(t, "10.1.1.5")["user-data"] == big
	})
	if s := r.Status(context.Background()); strings.Contains(strings.Join(s.Faults, "\n"), "no space left") || s.VMs[api.Rejected] > 0 {
		t.Errorf("status after that: %+v", s)
	}
}

func TestAnotherReleasesRecordIsReadFromItsFiles(t *testing.T) {
	path := t.TempDir()
	r := newRig(t, path)
	r.drop(t, "networks/g.yaml", netFile)
	r.drop(t, "vms/web/user-data", "data")
	r.drop(t, "vms/web/vm.yaml", vmFile)
	want := r.served(t, "10.1.1.5")
	r.stop()

	store, _, err := state.Open(path+"/state", state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for key := range store.Keys(unitPrefix) {
		value, err := store.Get(key)
		if err != nil {
			t.Fatal(err)
		}
		var fields map[string]any
		if err := json.Unmarshal(value, &fields); err != nil {
			t.Fatal(err)
		}
		fields["format"] = recordFormat + 1
		delete(fields, "vm")
		delete(fields, "network")
		value, _ = json.Marshal(fields)
		var b state.Batch
		b.Put(key, value)
		if err := store.Commit(&b); err != nil {
			t.Fatal(err)
		}
	}
	store.Close()
	// The bad file must not take the place of the last good content.
	if err := os.WriteFile(path+"/drop/vms/web/vm.yaml", []byte("nics: 3\n"), 0o660); err != nil {
		t.Fatal(err)
	}
	again := newRig(t, path)
	if diff := cmp.Diff(want, again.served(t, "10.1.1.5")); diff != "" {
		t.Errorf("served (-want +got):\n%s", diff)
	}
}

func TestRecordThatCannotBeReadIsReplacedFromTheFiles(t *testing.T) {
	path := t.TempDir()
	r := newRig(t, path)
	r.drop(t, "networks/g.yaml", netFile)
	r.drop(t, "vms/web/vm.yaml", vmFile)
	r.stop()
	store, _, err := state.Open(path+"/state", state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var b state.Batch
	b.Put(unitPrefix+"vms/web", []byte("{"))
	b.Put(unitPrefix+"nowhere", []byte("{}"))
	if err := store.Commit(&b); err != nil {
		t.Fatal(err)
	}
	store.Close()
	again := newRig(t, path)
	if got := again.served(t, "10.1.1.5")["local-hostname"]; got != "web-1" {
		t.Errorf("local-hostname = %q", got)
	}
}

func TestTouchedFilesAreNotReadAtTheNextStart(t *testing.T) {
	path := t.TempDir()
	r := newRig(t, path)
	r.drop(t, "networks/g.yaml", netFile)
	unit := drop.Unit{Kind: drop.Network, Name: "g"}
	before := r.known[unit].fingerprint
	r.drop(t, "networks/g.yaml", netFile) // the same again, in another inode
	r.stop()
	if now := r.known[unit]; now.fingerprint == before || now.order != 1 {
		t.Errorf("known = %+v, was %q: the new fingerprint is to be kept, and nothing else", now, before)
	}
}

func TestUserDataLeavesNothingBehind(t *testing.T) {
	r := newRig(t, t.TempDir())
	r.drop(t, "networks/g.yaml", netFile)
	r.drop(t, "vms/web/vm.yaml", vmFile)
	for _, data := range []string{"one", "two", "one"} {
		r.drop(t, "vms/web/user-data", data)
		if got := r.served(t, "10.1.1.5")["user-data"]; got != data {
			t.Errorf("user data = %q, want %q", got, data)
		}
	}
	os.RemoveAll(r.path + "/drop/vms")
	r.settled(t)
	nstest.Poll(t, 20*time.Second, "all of a VM that is gone to be deleted", func() bool {
		for key := range r.Store.Keys("") {
			if strings.Contains(key, "web") {
				return false
			}
		}
		return true
	})
}

func TestPasswordIsTakenOnce(t *testing.T) {
	path := t.TempDir()
	r := newRig(t, path)
	r.drop(t, "networks/g.yaml", netFile)
	r.drop(t, "vms/web/vm.yaml", vmFile)
	r.drop(t, "vms/web/password", "s3cret\n")
	if p, ok, err := r.Password(t.Context(), "web"); err != nil || !ok || p != "s3cret" {
		t.Fatalf("password = %q, %v", p, ok)
	}
	if err := r.Taken(context.Background(), "web", "s3cret"); err != nil {
		t.Fatal(err)
	}
	r.settled(t)
	if _, err := os.Stat(path + "/drop/vms/web/password"); !os.IsNotExist(err) {
		t.Errorf("the file is still there: %v", err)
	}
	// The same text again is the taken password, before and after a restart; another one is new.
	r.drop(t, "vms/web/password", "s3cret\n")
	if p, ok, err := r.Password(t.Context(), "web"); err != nil || ok {
		t.Errorf("taken password given out again: %q", p)
	}
	r.stop()
	again := newRig(t, path)
	if p, ok, err := again.Password(t.Context(), "web"); err != nil || ok {
		t.Errorf("taken password given out after a restart: %q", p)
	}
	again.drop(t, "vms/web/password", "other\n")
	if p, ok, err := again.Password(t.Context(), "web"); err != nil || !ok || p != "other" {
		t.Errorf("new password = %q, %v", p, ok)
	}
	// An acknowledgement of an older password leaves the newer one alone.
	if err := again.Taken(context.Background(), "web", "s3cret"); err != nil {
		t.Fatal(err)
	}
	if p, ok, err := again.Password(t.Context(), "web"); err != nil || !ok || p != "other" {
		t.Errorf("new password after a late acknowledgement = %q, %v", p, ok)
	}
	// Under the name of a VM that is another one now, the same text is a new password.
	if err := again.Taken(context.Background(), "web", "other"); err != nil {
		t.Fatal(err)
	}
	again.settled(t)
	again.drop(t, "vms/web/password", "other\n")
	if err := again.Forget([]string{"vms/web", "vms/never-seen"}); err != nil {
		t.Fatal(err)
	}
	if p, ok, err := again.Password(t.Context(), "web"); err != nil || !ok || p != "other" {
		t.Errorf("password of the next VM = %q, %v", p, ok)
	}
}

func TestWaitHearsOfTheEndOfEveryBatch(t *testing.T) {
	r := newRig(t, t.TempDir())
	r.drop(t, "networks/g.yaml", netFile)
	r.drop(t, "vms/web/vm.yaml", vmFile)
	// Many waits at once, so that they begin at every moment of a batch.
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				if _, err := r.Wait(ctx, nil); err != nil {
					t.Errorf("wait: %v", err)
				}
				cancel()
			}
		})
	}
	for i := range 300 {
		if err := os.WriteFile(r.path+"/drop/vms/web/user-data", []byte(fmt.Sprint(i)), 0o660); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		if _, err := r.Wait(ctx, nil); err != nil {
			t.Errorf("wait after change %d: %v", i, err)
		}
		cancel()
		if got := r.served(t, "10.1.1.5")["user-data"]; got != fmt.Sprint(i) {
			t.Errorf("after the wait %q is served, want %d", got, i)
		}
		if t.Failed() {
			break
		}
	}
	close(stop)
	wg.Wait()
}

func TestSwapByTwoFilesServesBoth(t *testing.T) {
	r := newRig(t, t.TempDir())
	r.drop(t, "networks/g.yaml", netFile)
	vm := func(name, mac, ip string) string {
		return "hostname: " + name + "\nnics: [{network: g, mac: \"" + mac + "\", ipv4: " + ip + "}]\n"
	}
	r.drop(t, "vms/a/user-data", "of a")
	r.drop(t, "vms/a/vm.yaml", vm("a", "02:00:00:00:00:01", "10.1.1.5"))
	r.drop(t, "vms/b/user-data", "of b")
	r.drop(t, "vms/b/vm.yaml", vm("b", "02:00:00:00:00:02", "10.1.1.6"))
	if result := r.drop(t, "vms/a/vm.yaml", vm("a", "02:00:00:00:00:01", "10.1.1.6")); result.State != api.Rejected {
		t.Fatalf("half a swap: %+v", result)
	}
	// What is in force of a stays so while its files change once more.
	r.drop(t, "vms/a/user-data", "of a, new")
	if result := r.drop(t, "vms/b/vm.yaml", vm("b", "02:00:00:00:00:02", "10.1.1.5")); result.State != api.Applied {
		t.Fatalf("a whole swap: %+v", result)
	}
	for ip, want := range map[string]string{"10.1.1.5": "of b", "10.1.1.6": "of a, new"} {
		if got := r.served(t, ip)["user-data"]; got != want {
			t.Errorf("%s is served %q, want %q", ip, got, want)
		}
	}
}

// A guest whose connection to the management side waited for the daemon is refused before anything has
// been placed.
func TestGuestSideIsKnownOnceStateIsRestored(t *testing.T) {
	path := t.TempDir()
	r := newRig(t, path)
	r.drop(t, "networks/guest-1.yaml", "interface: lo\ngateway: 10.9.9.1/24\n")
	r.stop()
	store, _, err := state.Open(filepath.Join(path, "state"), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	kernel, err := netcfg.Open(netcfg.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	e := New(Parts{Store: store, Kernel: kernel, DHCPTable: dhcp.NewTable(), GuestData: metadata.NewTable()}, Settings{})
	if err := e.Restore(); err != nil {
		t.Fatal(err)
	}
	management := netip.MustParseAddr("192.0.2.1")
	for _, test := range []struct {
		local  netip.Addr
		device string
		want   bool
	}{
		{management, "lo", true},
		{netip.MustParseAddr("10.9.9.1"), "", true},
		{management, "eth9", false},
		{management, "", false},
	} {
		if got := e.GuestSide(test.local, test.device); got != test.want {
			t.Errorf("GuestSide(%s, %q) = %v, want %v", test.local, test.device, got, test.want)
		}
	}
}
