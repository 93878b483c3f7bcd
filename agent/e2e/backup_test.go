package e2e

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"vragent/netcfg/nstest"
)

// TestBackupBringsBackWhatNoDropDirectoryHolds: users with their keys, pool leases and taken passwords,
// into an empty state directory.
func TestBackupBringsBackWhatNoDropDirectoryHolds(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "setpriv", "udhcpc", "wget")
	r := newRouter(t)
	a, stranger := r.guest(t, "a", "va", macA), r.guest(t, "stranger", "vb", macB)
	r.Bridge(t, "eth0", "va", "vb")
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	p := r.startAs(t, binary)
	vragent := func(want int, args ...string) (stdout, stderr string) {
		t.Helper()
		stdout, stderr, status := r.vragent(t, binary, args...)
		if status != want {
			t.Errorf("vragent %q: exit status %d, want %d\n%s%s", args, status, want, stdout, stderr)
		}
		return stdout, stderr
	}
	says := func(text, part string) {
		t.Helper()
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in\n%s", part, text)
		}
	}
	password := func(request string) string {
		t.Helper()
		return a.Run(t, "wget", "-q", "-O", "-", "--header", "DomU_Request: "+request, "http://10.1.1.1:8080/")
	}
	r.put(t, "networks/guest-1.yaml", network+"pool: {from: 10.1.1.200, to: 10.1.1.210}\n")
	r.put(t, "vms/a/password", "s3cret\n")
	r.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	r.applied(t)
	lease(t, a, "10.1.1.34")
	lease(t, stranger, "10.1.1.200")
	if got := password("send_my_password"); got != "s3cret" {
		t.Fatalf("password = %q", got)
	}
	password("saved_password")
	keys, _ := vragent(0, "user", "add", "ops", "--role", "operator")

	file := r.dir + "/backup"
	stdout, _ := vragent(0, "backup", file)
	says(stdout, "saved: 1 user, 1 pool lease, 1 taken password to "+file)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the backup is %v, %v", info.Mode(), err)
	}
	saved, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(saved), "s3cret") {
		t.Error("a password is in the backup in clear")
	}
	stdout, stderr := vragent(0, "backup", "-")
	says(stderr, "1 pool lease")
	if len(stdout) != len(saved) {
		t.Errorf("standard output is another backup:\n%s", stdout)
	}
	// A backup that fails leaves the one that is there, and nothing else.
	vragent(1, "backup", r.dir+"/missing/backup")
	pipe := r.dir + "/pipe"
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	_, stderr = vragent(1, "backup", pipe)
	says(stderr, pipe+": is no regular file")
	if info, err := os.Lstat(pipe); err != nil || info.Mode().Type() != fs.ModeNamedPipe {
		t.Errorf("what is no regular file was replaced: %v, %v", info, err)
	}
	_, stderr = vragent(1, "restore", file)
	says(stderr, "systemctl stop vragent")
	later := r.guest(t, "later", "vc", "02:00:4c:5f:00:0c")
	r.Run(t, "ip", "link", "set", "vc", "master", "eth0")
	lease(t, later, "10.1.1.201")
	vragent(0, "user", "add", "late", "--role", "viewer")
	end(t, p)
	vragent(69, "backup", file)
	if now, err := os.ReadFile(file); err != nil || string(now) != string(saved) {
		t.Errorf("the backup has changed, %v", err)
	}

	// What cannot be restored changes nothing.
	bad := r.dir + "/bad"
	for name, test := range map[string]struct{ data, want string }{
		"cut short":  {string(saved[:len(saved)-100]), "is damaged: it is cut short in line"},
		"changed":    {strings.Replace(string(saved), "guest-1", "guest-2", 1), "is damaged: its checksum is wrong"},
		"too new":    {strings.Replace(string(saved), "backup 1", "backup 7", 1), "was written by a newer release, in format 7"},
		"other file": {network, "is no backup of vragent"},
	} {
		if err := os.WriteFile(bad, []byte(test.data), 0o600); err != nil {
			t.Fatal(err)
		}
		_, stderr := vragent(1, "restore", bad)
		if !strings.Contains(stderr, bad+": "+test.want) {
			t.Errorf("%s: %q, want %q", name, stderr, test.want)
		}
	}

	// Over a state directory that knows more: leases and taken passwords stay, users are the backup's.
	stdout, _ = vragent(0, "restore", file)
	says(stdout, "restored: 1 user, 1 pool lease, 1 taken password from "+file)
	says(stdout, "1 user: removed, not in the backup")
	says(stdout, "1 taken password: not changed")
	p = r.startAs(t, binary)
	leased := func() (list []string) {
		t.Helper()
		leases, err := r.client.Leases(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range leases {
			if l.Pool {
				list = append(list, l.IPv4+" "+l.MAC+" "+l.State)
			}
		}
		return list
	}
	if got := strings.Join(leased(), ", "); got != "10.1.1.200 "+macB+" bound, 10.1.1.201 02:00:4c:5f:00:0c bound" {
		t.Errorf("leases = %s", got)
	}
	end(t, p)

	// Into nothing, twice.
	if err := os.RemoveAll(r.dir + "/state"); err != nil {
		t.Fatal(err)
	}
	_, stderr = vragent(1, "restore", file)
	says(stderr, "start vragent once")
	if err := os.Mkdir(r.dir+"/state", 0o700); err != nil {
		t.Fatal(err)
	}
	vragent(0, "restore", file)
	vragent(0, "restore", file)
	r.put(t, "vms/a/password", "s3cret\n")
	p = r.startAs(t, binary)
	if got := strings.Join(leased(), ", "); got != "10.1.1.200 "+macB+" bound" {
		t.Errorf("leases = %s", got)
	}
	if got := password("send_my_password"); got != "saved_password" {
		t.Errorf("a password that was taken is given out again: %q", got)
	}
	users, err := r.client.Users(t.Context())
	if err != nil || len(users) != 1 || users[0].Name != "ops" || users[0].Role != "operator" || !users[0].Keys {
		t.Errorf("users = %+v, %v", users, err)
	}
	again, _ := vragent(0, "backup", "-")
	if record := func(backup string) string { return strings.Split(backup, "\n")[2] }; record(again) != record(string(saved)) {
		t.Errorf("the user of %q is restored as another one:\n%s", keys, again)
	}
	lease(t, stranger, "10.1.1.200")
	end(t, p)
}

// TestRestoreWritesAsTheOwnerOfTheState: root restores, and the daemon's user can go on with it.
func TestRestoreWritesAsTheOwnerOfTheState(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "setpriv")
	if ids, err := os.ReadFile("/proc/self/uid_map"); err != nil || strings.Fields(string(ids))[2] == "1" {
		t.Skip("only root can bring other users into the test's namespace")
	}
	r := newRouter(t)
	p := r.startAs(t, binary)
	if _, err := r.client.AddUser(t.Context(), "ops", "operator"); err != nil {
		t.Fatal(err)
	}
	if _, stderr, status := r.vragent(t, binary, "backup", r.dir+"/backup"); status != 0 {
		t.Fatal(stderr)
	}
	end(t, p)
	const owner = 64123
	r.Run(t, "chmod", "755", filepath.Dir(r.dir), r.dir)
	if err := errors.Join(os.RemoveAll(r.dir+"/state"), os.Mkdir(r.dir+"/state", 0o700), os.Chown(r.dir+"/state", owner, owner)); err != nil {
		t.Fatal(err)
	}
	if _, stderr, status := r.vragent(t, binary, "restore", r.dir+"/backup"); status != 0 {
		t.Fatal(stderr)
	}
	files := 0
	err := filepath.WalkDir(r.dir+"/state", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != owner || st.Gid != owner || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s belongs to %d:%d and has mode %v", path, st.Uid, st.Gid, info.Mode())
		}
		files++
		return nil
	})
	if err != nil || files < 3 {
		t.Errorf("%d files and folders, %v", files, err)
	}
}
