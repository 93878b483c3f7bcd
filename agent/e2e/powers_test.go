package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vragent/agent/internal/api"
	"vragent/netcfg/nstest"
)

// powersOfService are the capabilities of vragent.service.
const powersOfService = "+net_raw,+net_bind_service,+lease,+net_admin"

// need skips the test where a program is missing.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed", filepath.Base(p))
		}
	}
}

// startAs starts the daemon by way of setpriv, and returns once it is ready.
func (r *router) startAs(t *testing.T, binary string, setpriv ...string) *nstest.Process {
	t.Helper()
	p := r.Start(t, "setpriv", append(setpriv, binary, "run", "--config", r.config)...)
	r.client = api.Dial(r.dir + "/api.sock")
	t.Cleanup(r.client.Close)
	p.WaitFor(t, "msg=serving drop_dir", 20*time.Second)
	return p
}

// end stops a daemon as systemd does.
func end(t *testing.T, p *nstest.Process) {
	t.Helper()
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Exited():
	case <-time.After(20 * time.Second):
		t.Fatalf("the daemon does not end:\n%s", p.Output())
	}
	if err := p.Wait(); err != nil {
		t.Errorf("daemon: %v\n%s", err, p.Output())
	}
}

// TestDaemonWithoutNetAdmin: what needs the power is rejected and says so, everything else is served.
func TestDaemonWithoutNetAdmin(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "setpriv")
	r := newRouter(t)
	g := r.guest(t, "a", "eth0", macA)
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	p := r.startAs(t, binary, "--bounding-set", "-net_admin")
	r.put(t, "networks/guest-1.yaml", network)
	r.put(t, "vms/a/user-data", "mine")
	r.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	r.applied(t)
	for key, value := range map[string]string{"manage_address": "true", "pin_neighbors": "true", "link_local_metadata": "true"} {
		r.put(t, "networks/other.yaml", fmt.Sprintf("interface: eth9\ngateway: 10.9.9.1/24\n%s: %s\n", key, value))
		why := r.rejected(t, "networks/other.yaml")
		if !strings.HasPrefix(why, "networks/other.yaml:3:") || !strings.Contains(why, key) || !strings.Contains(why, "CAP_NET_ADMIN") {
			t.Errorf("%s is rejected for %q, which names no power", key, why)
		}
	}
	r.put(t, "networks/other.yaml", "interface: eth9\ngateway: 10.9.9.1/24\nmanage_address: false\npin_neighbors: false\n")
	if result := r.wait(t, "networks/other.yaml"); result.State != api.Pending {
		t.Errorf("without anything that needs the power it is %s, want pending", result.State)
	}
	g.AddAddr(t, "eth0", "10.1.1.34/24")
	if got, err := curl(t, g, "http://10.1.1.1/latest/user-data"); err != nil || got != "mine" {
		t.Errorf("user-data = %q, %v", got, err)
	}
	if entry := r.Run(t, "ip", "neighbor", "show", "10.1.1.34"); strings.Contains(entry, "PERMANENT") {
		t.Errorf("pinned without the power: %s", entry)
	}
	end(t, p)

	// With the power the same file is in force, and its default means to pin.
	p = r.startAs(t, binary)
	nstest.Poll(t, 10*time.Second, "the neighbor is pinned", func() bool {
		return strings.Contains(r.Run(t, "ip", "neighbor", "show", "10.1.1.34"), "PERMANENT")
	})
	r.put(t, "networks/managed.yaml", "interface: eth0\ngateway: 10.3.3.1/24\nmanage_address: true\n")
	r.applied(t, "networks/managed.yaml")
	end(t, p)

	// And without it again, what was in force with it is rejected, whatever the state directory holds.
	p = r.startAs(t, binary, "--bounding-set", "-net_admin")
	if why := r.rejected(t, "networks/managed.yaml"); !strings.Contains(why, "CAP_NET_ADMIN") {
		t.Errorf("after a start without the power the reason is %q", why)
	}
	r.applied(t, "networks/guest-1.yaml", "vms/a")
	if got, err := curl(t, g, "http://10.1.1.1/latest/user-data"); err != nil || got != "mine" {
		t.Errorf("user-data = %q, %v", got, err)
	}
	end(t, p)
}

// TestDaemonAsItsOwnUser runs the daemon with the user, group and powers of its service, while root drops
// files with a umask that leaves others nothing.
func TestDaemonAsItsOwnUser(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "setpriv", "dhclient", "setfacl")
	if ids, err := os.ReadFile("/proc/self/uid_map"); err != nil || strings.Fields(string(ids))[2] == "1" {
		t.Skip("only root can bring other users into the test's namespace")
	}
	r := newRouter(t)
	const id = "64123"
	for file, line := range map[string]string{"/etc/group": "vragent:x:" + id + ":\n", "/etc/passwd": "vragent:x:" + id + ":" + id + "::/:/bin/false\n"} {
		f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(line); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	r.Run(t, "chmod", "755", filepath.Dir(r.dir), r.dir)
	r.Run(t, "chown", id+":"+id, r.dir) // as its folders below /var/lib and /run are
	g := r.guest(t, "a", "eth0", macA)
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	service := []string{"--reuid", id, "--regid", id, "--clear-groups",
		"--inh-caps", "-all," + powersOfService, "--ambient-caps", "-all," + powersOfService, "--bounding-set", "-all," + powersOfService, "--no-new-privs"}
	p := r.startAs(t, binary, service...)
	status, err := r.client.Status(t.Context())
	if err != nil || len(status.Faults) > 0 {
		t.Errorf("status: faults %q, %v", status.Faults, err)
	}
	for power, there := range status.Powers {
		// The kernel counts CAP_LEASE in the machine's own user namespace only. Here a file of root's is
		// complete when it has not changed for a second.
		if !there && power != "lease" {
			t.Errorf("the daemon lacks %s", power)
		}
	}

	// drop writes as root with the tightest umask.
	drop := func(path, content string) {
		t.Helper()
		cmd := exec.Command("sh", "-c", `umask 077 && mkdir -p "${1%/*}" && cat >"$1"`, "sh", filepath.Join(r.drop, path))
		cmd.Stdin = strings.NewReader(content)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("drop %s: %v\n%s", path, err, out)
		}
	}
	drop("networks/guest-1.yaml", network+"manage_address: true\n")
	drop("vms/a/user-data", "mine")
	drop("vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	r.applied(t)
	if out := g.Run(t, "dhclient", "-1", "-v", "-pf", "/run/dhclient.pid", "-lf", "/var/lib/dhcp/leases", "eth0"); !strings.Contains(out, "bound to 10.1.1.34") {
		t.Errorf("dhclient:\n%s", out)
	}
	if got, err := curl(t, g, "http://10.1.1.1/latest/user-data"); err != nil || got != "mine" {
		t.Errorf("user-data = %q, %v", got, err)
	}

	// A file that the daemon may not read is rejected, and the last good content stays.
	drop("vms/a/user-data", "secret")
	r.Run(t, "setfacl", "-b", r.drop+"/vms/a/user-data")
	r.Run(t, "chmod", "000", r.drop+"/vms/a/user-data")
	nstest.Poll(t, 10*time.Second, "the file is rejected", func() bool { return r.wait(t, "vms/a").State == api.Rejected })
	if why := r.rejected(t, "vms/a"); why != "vms/a/user-data: cannot be read: permission denied" {
		t.Errorf("reason = %q", why)
	}
	end(t, p)
	p = r.startAs(t, binary, service...)
	r.rejected(t, "vms/a")
	if _, err := curl(t, g, "http://10.1.1.1/latest/user-data"); err != nil {
		t.Errorf("nothing of a VM is in force that has a file which cannot be read: %v", err)
	}
	r.Run(t, "chmod", "640", r.drop+"/vms/a/user-data")
	r.Run(t, "chgrp", id, r.drop+"/vms/a/user-data")
	r.applied(t, "vms/a")
	if got, err := curl(t, g, "http://10.1.1.1/latest/user-data"); err != nil || got != "secret" {
		t.Errorf("user-data once it can be read = %q, %v", got, err)
	}

	// The daemon can remove what root has dropped.
	drop("vms/a/password", "s3cret\n")
	r.applied(t, "vms/a")
	if got, err := g.Output(t, "wget", "-q", "-O", "-", "--header", "DomU_Request: send_my_password", "http://10.1.1.1:8080/"); err != nil || got != "s3cret" {
		t.Errorf("password = %q, %v", got, err)
	}
	if got, err := g.Output(t, "wget", "-q", "-O", "-", "--header", "DomU_Request: saved_password", "http://10.1.1.1:8080/"); err != nil || got != "saved_password" {
		t.Errorf("saved_password = %q, %v", got, err)
	}
	nstest.Poll(t, 10*time.Second, "the password's file is removed", func() bool {
		_, err := os.Lstat(r.drop + "/vms/a/password")
		return os.IsNotExist(err)
	})
	end(t, p)
}
