package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vragent/agent/internal/api"
	"vragent/netcfg/nstest"
)

// fill takes all the room that is left on a file system, and returns what gives it back.
func fill(t *testing.T, path string) (empty func()) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 64<<10); len(block) > 0; {
		if _, err := f.Write(block); err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			block = block[:len(block)/2]
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// disk is a router whose files lie on a small disk, with a known guest and strangers.
type disk struct {
	*router
	guest    *nstest.Host
	client   *http.Client // of the guest
	station  *station
	ledger   *ledger
	stranger int
}

// after is the version of user data of a megabyte: a file system may keep some room for what a file has
// begun, and then takes smaller things though it is full.
var after = "after" + strings.Repeat("x", 1000)

func newDisk(t *testing.T) *disk {
	t.Helper()
	r := newRouter(t)
	if err := unix.Mount("tmpfs", r.dir, "tmpfs", 0, "mode=0755,size=24m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(r.dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	r.configure(t, "metadata: {guest_rate: 0}\n")
	d := &disk{router: r, ledger: newLedger()}
	d.guest = r.guest(t, "guest", "va", macA)
	strangers := r.guest(t, "strangers", "vb", macB)
	r.Bridge(t, "eth0", "va", "vb")
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	d.guest.AddAddr(t, "eth0", "10.1.1.34/24")
	strangers.AddAddr(t, "eth0", "10.1.1.36/24")
	d.client, d.station = asGuest(t, d.guest, "10.1.1.34"), newStation(t, strangers)
	return d
}

// settle puts a first state in force.
func (d *disk) settle(t *testing.T) {
	t.Helper()
	d.put(t, "networks/guest-1.yaml", network+"pool: {from: 10.1.1.100, to: 10.1.1.250, probe: false}\n")
	d.put(t, "vms/a/user-data", versioned("before"))
	d.put(t, "vms/a/password", "s3cret\n")
	d.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	d.applied(t)
	for range 3 {
		d.eventually(t, "a user", func() error { return d.ledger.user(t, d.router, false) })
		d.eventually(t, "a lease", d.lease)
	}
}

func (d *disk) lease() error {
	d.stranger++
	return d.ledger.lease(d.station, d.stranger%140, time.Second) // the pool has room for so many
}

// refuses checks that every kind of change is refused, after what there may still be room for, with a
// reason that has text in it, and that what is in force is served.
func (d *disk) refuses(t *testing.T, text string) {
	t.Helper()
	if got, err := ask(d.client, "user-data"); err != nil || versionOf(got) != "before" {
		t.Errorf("user-data = %q, %v", got, err)
	}
	lease(t, d.guest, "10.1.1.34")
	speaks(t, "user add", untilRefused(t, "user add", func() error { return d.ledger.user(t, d.router, false) }), text)
	speaks(t, "pool lease", untilRefused(t, "pool lease", d.lease), errSilence.Error())
	speaks(t, "push", untilRefused(t, "push", func() error { return push(d.router, "b", "pushed") }), text)
	if faults := d.faultsOf(t); !strings.Contains(faults, text) {
		t.Errorf("status does not say %q:\n%s", text, faults)
	}
	if _, stderr, status := d.vragent(t, buildDaemon(t), "user", "add", "nobody", "--role", "viewer"); status != 1 || !strings.Contains(stderr, text) {
		t.Errorf("vragent user add: exit status %d, %q", status, stderr)
	}
	d.ledger.check(t, d.router)
}

// push pushes a VM's host name, and returns the reason where that is refused.
func push(r *router, name, hostname string) error {
	client := overSocket(r.dir + "/api.sock")
	defer client.CloseIdleConnections()
	res, err := client.PostForm("http://vragent"+api.Path, url.Values{
		"command": {"pushVirtualMachine"}, "response": {"json"}, "id": {name}, "hostname": {hostname},
		"nics[0].network": {"guest-1"}, "nics[0].ipaddress": {"10.1.1.35"},
	})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, body)
	}
	return err
}

// recovers checks that what was refused is possible again, and that what was dropped meanwhile is in
// force without anybody touching it.
func (d *disk) recovers(t *testing.T) {
	t.Helper()
	until(t, d.client, "user-data", versioned(after))
	d.eventually(t, "a lease", d.lease)
	d.eventually(t, "a user", func() error { return d.ledger.user(t, d.router, false) })
	if err := push(d.router, "b", "recovered"); err != nil {
		t.Errorf("push: %v", err)
	}
	nstest.Poll(t, waitTime, "the push to be in force", func() bool {
		vms, err := d.router.client.VMs(t.Context())
		return err == nil && slices.ContainsFunc(vms, func(v api.VM) bool { return v.Hostname == "recovered" && v.State == api.Applied })
	})
	nstest.Poll(t, waitTime, "no fault to be left", func() bool { return d.faultsOf(t) == "" })
	if got, err := passwordOf(d.client, "saved_password"); err != nil || got != "saved_password" {
		t.Errorf("saved_password = %q, %v", got, err)
	}
	if got, err := passwordOf(d.client, "send_my_password"); err != nil || got != "saved_password" {
		t.Errorf("a password that was taken is given out: %q, %v", got, err)
	}
	d.ledger.check(t, d.router)
}

func TestFaultDiskFull(t *testing.T) {
	binary := fault(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "prlimit", "udhcpc")
	d := newDisk(t)
	p := d.boot(t, binary)
	d.settle(t)
	// The new content lies there already; it is the state directory that has no room for it.
	if err := os.WriteFile(d.drop+"/vms/a/.next", []byte(versioned(after)), 0o660); err != nil {
		t.Fatal(err)
	}
	empty := fill(t, d.dir+"/filler")
	if err := os.Rename(d.drop+"/vms/a/.next", d.drop+"/vms/a/user-data"); err != nil {
		t.Fatal(err)
	}
	speaks(t, "the change", d.rejected(t, "vms/a"), "no space left on device")
	d.refuses(t, "no space left on device")

	// Killed with the disk full, it comes back with the same.
	crash(t, p)
	p = d.boot(t, binary)
	d.refuses(t, "no space left on device")
	empty()
	d.recovers(t)
	end(t, p)
	p = d.boot(t, binary)
	d.ledger.check(t, d.router)
	end(t, p)
}

func TestFaultReadOnlyStateDirectory(t *testing.T) {
	binary := fault(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "prlimit", "udhcpc")
	d := newDisk(t)
	p := d.boot(t, binary)
	d.settle(t)
	end(t, p)

	state := d.dir + "/state"
	if err := unix.Mount(state, state, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	remount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("", state, "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(state, unix.MNT_DETACH) })
	remount(unix.MS_RDONLY)
	p = d.boot(t, binary)
	d.put(t, "vms/a/user-data", versioned(after))
	speaks(t, "the change", d.rejected(t, "vms/a"), "read-only file system")
	// A password that cannot be recorded as taken stays.
	for range 2 {
		if got, err := passwordOf(d.client, "send_my_password"); err != nil || got != "s3cret" {
			t.Errorf("password = %q, %v", got, err)
		}
		if got, err := passwordOf(d.client, "saved_password"); err != nil || got != "bad_request" {
			t.Errorf("saved_password = %q, %v; it was not saved", got, err)
		}
	}
	d.refuses(t, "read-only file system")
	remount(0)
	d.recovers(t)
	end(t, p)
}
