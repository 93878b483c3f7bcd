package drop

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// agent reads a drop directory as the engine does and remembers what it saw.
type agent struct {
	*Dir
	t testing.TB

	mu       sync.Mutex
	seen     map[Unit]Content
	handed   int
	refuse   error // what the last Read said, if it failed
	finished chan struct{}
}

// watch opens dir and follows it until the test ends.
func watch(t testing.TB, dir string, opts Options) *agent {
	t.Helper()
	d, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{Dir: d, t: t, seen: make(map[Unit]Content), finished: make(chan struct{})}
	units, err := d.Scan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := d.Run(ctx); err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	for _, u := range units {
		a.take(u)
	}
	wg.Go(func() {
		for {
			units, err := d.Next(ctx, 256)
			if err != nil {
				return
			}
			for _, u := range units {
				a.take(u)
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return a
}

func (a *agent) take(u Unit) {
	c, err := a.Read(u)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.handed++
	a.refuse = err
	if err != nil {
		return
	}
	if !c.Exists {
		delete(a.seen, u)
		return
	}
	a.seen[u] = c
}

// text is a unit's content in a comparable form: "" if it is not there.
func (c Content) text() string {
	if !c.Exists {
		return ""
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c.Files)) {
		fmt.Fprintf(&b, "%s=%s\n", name, c.Files[name].Data)
	}
	for _, f := range c.Faults {
		fmt.Fprintf(&b, "fault %s: %s\n", f.File, f.What)
	}
	for _, n := range c.Notes {
		fmt.Fprintf(&b, "note %s\n", n)
	}
	return b.String()
}

func (a *agent) text(u Unit) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.seen[u].text()
}

func (a *agent) view() map[Unit]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	view := make(map[Unit]string, len(a.seen))
	for u, c := range a.seen {
		view[u] = c.text()
	}
	return view
}

// settle waits until the agent has seen all that is there now.
func (a *agent) settle() {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for {
		open, err := a.Barrier(ctx, nil)
		if err != nil {
			a.t.Fatalf("Barrier() = %v", err)
		}
		if len(open) == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// want waits until all is settled and compares the unit with text.
func (a *agent) want(u Unit, text string) {
	a.t.Helper()
	a.settle()
	if diff := cmp.Diff(text, a.text(u)); diff != "" {
		a.t.Fatalf("%v (-want +got):\n%s", u, diff)
	}
}

// wantTree waits until all is settled and compares everything with the disk.
func (a *agent) wantTree() {
	a.t.Helper()
	a.settle()
	if diff := cmp.Diff(onDisk(a.t, a.Path()), a.view()); diff != "" {
		a.t.Fatalf("what the agent has seen (-disk +agent):\n%s", diff)
	}
}

// onDisk reads the directory afresh.
func onDisk(t testing.TB, dir string) map[Unit]string {
	t.Helper()
	d, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	units, err := d.Scan(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[Unit]string)
	for _, u := range units {
		c, err := d.Read(u)
		if err != nil {
			t.Fatal(err)
		}
		if c.Exists {
			all[u] = c.text()
		}
	}
	return all
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still waiting: %s", what)
		}
	}
}

func write(t testing.TB, path, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func rename(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// sh runs a shell script in dir; the test is skipped if a program is missing.
func sh(t testing.TB, dir, script string, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed", p)
		}
	}
	cmd := exec.Command("sh", "-euc", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

func dropPath(t testing.TB) string { return filepath.Join(t.TempDir(), "drop") }

func TestDroppedFilesAreSeen(t *testing.T) {
	dir := dropPath(t)
	a := watch(t, dir, Options{})
	net, vm := Unit{Network, "guest-1"}, Unit{VM, "i-2-34-VM"}

	write(t, dir+"/networks/guest-1.yaml", "gateway")
	a.want(net, "guest-1.yaml=gateway\n")
	write(t, dir+"/vms/i-2-34-VM/user-data", "data")
	a.want(vm, "")
	write(t, dir+"/vms/i-2-34-VM/vm.yaml", "nics")
	a.want(vm, "user-data=data\nvm.yaml=nics\n")
	write(t, dir+"/vms/i-2-34-VM/vm.yaml", "other nics")
	a.want(vm, "user-data=data\nvm.yaml=other nics\n")
	if err := os.Remove(dir + "/vms/i-2-34-VM/user-data"); err != nil {
		t.Fatal(err)
	}
	a.want(vm, "vm.yaml=other nics\n")
	rename(t, dir+"/vms/i-2-34-VM", dir+"/vms/moved")
	a.want(vm, "")
	a.want(Unit{VM, "moved"}, "vm.yaml=other nics\n")
	write(t, dir+"/vms/moved/user-data", "after the move")
	a.want(Unit{VM, "moved"}, "user-data=after the move\nvm.yaml=other nics\n")
	if err := os.Remove(dir + "/networks/guest-1.yaml"); err != nil {
		t.Fatal(err)
	}
	a.want(net, "")
	a.wantTree()
}

func TestNamesOfCopiesUnderWayAreNeverRead(t *testing.T) {
	dir := dropPath(t)
	a := watch(t, dir, Options{})
	for _, name := range []string{
		"networks/.hidden.yaml", "networks/n.yaml.tmp", "networks/n.yaml~", "networks/n.yaml.swp", "networks/n.tmp.yaml~",
		"networks/n.yml", "networks/in valid.yaml", "vms/.hidden/vm.yaml", "vms/v.tmp/vm.yaml", "vms/v~/vm.yaml",
		"vms/v.swp/vm.yaml", "vms/in valid/vm.yaml", "vms/file",
	} {
		write(t, dir+"/"+name, "x")
	}
	a.settle()
	if view := a.view(); len(view) != 0 {
		t.Errorf("seen: %v, want nothing", view)
	}
	write(t, dir+"/vms/v/vm.yaml", "v")
	for _, name := range []string{".vm.yaml.swp", "vm.yaml~", "user-data.tmp", ".user-data.abcdef", "password.swp"} {
		write(t, dir+"/vms/v/"+name, "x")
	}
	a.want(Unit{VM, "v"}, "vm.yaml=v\n")
}

func TestFaultsAndNotesOfAUnit(t *testing.T) {
	dir := dropPath(t)
	a := watch(t, dir, Options{})
	for _, c := range []struct{ name, script, want string }{
		{"file is a link", "ln -s /etc/passwd user-data",
			"vm.yaml=v\nfault vms/x/user-data: a symbolic link is not allowed, only a regular file\n"},
		{"stray link", "ln -s /etc/passwd more",
			"vm.yaml=v\nfault vms/x/more: a symbolic link is not allowed in a VM's folder\n"},
		{"pipe", "mkfifo password",
			"vm.yaml=v\nfault vms/x/password: a pipe is not allowed, only a regular file\n"},
		{"folder", "mkdir user-data",
			"vm.yaml=v\nfault vms/x/user-data: a folder is not allowed, only a regular file\n"},
		{"largest meta-data", "head -c 65537 /dev/zero >meta-data.yaml",
			"vm.yaml=v\nfault vms/x/meta-data.yaml: has 65537 bytes, allowed are 65536\n"},
		{"largest user-data", "head -c 1048577 /dev/zero >user-data",
			"vm.yaml=v\nfault vms/x/user-data: has 1048577 bytes, allowed are 1048576\n"},
		{"nearly right name", "touch userdata Meta_Data.yml",
			"vm.yaml=v\nnote Meta_Data.yml is not read; did you mean meta-data.yaml?\nnote userdata is not read; did you mean user-data?\n"},
		{"other names", "touch readme; mkdir sub",
			"vm.yaml=v\nnote readme is not read\nnote sub is a folder, which is not read\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a.t = t
			sh(t, dir, "rm -rf vms/x; mkdir .new; cd .new; printf v >vm.yaml; "+c.script+"; mv ../.new ../vms/x")
			a.want(Unit{VM, "x"}, c.want)
		})
	}
	a.t = t
	sh(t, dir, "rm -rf vms/x; mkdir elsewhere; ln -s ../elsewhere vms/x")
	a.want(Unit{VM, "x"}, "fault vms/x: a symbolic link is not allowed in place of a VM's folder\n")
	sh(t, dir, "rm vms/x; mkdir networks/n.yaml")
	a.want(Unit{Network, "n"}, "fault networks/n.yaml: a folder is not allowed, only a regular file\n")
}

func TestReadErrorsAreNoVerdict(t *testing.T) {
	dir := dropPath(t)
	a := watch(t, dir, Options{})
	write(t, dir+"/vms/a/vm.yaml", "a")
	a.want(Unit{VM, "a"}, "vm.yaml=a\n")
	rename(t, dir, dir+".away")
	if _, err := a.Read(Unit{VM, "a"}); !errors.Is(err, ErrMissing) {
		t.Fatalf("Read() = %v, want ErrMissing", err)
	}
	if _, _, err := a.Stat(Unit{VM, "a"}); !errors.Is(err, ErrMissing) {
		t.Fatalf("Stat() = %v, want ErrMissing", err)
	}
	eventually(t, "status says so", func() bool { return a.Status().Missing })
	rename(t, dir+".away", dir)
	a.want(Unit{VM, "a"}, "vm.yaml=a\n")
	if a.Status().Missing {
		t.Error("Status() still says that the directory is missing")
	}
}
