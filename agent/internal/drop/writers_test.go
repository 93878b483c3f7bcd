package drop

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// Whatever program drops a file, only whole versions of it are ever seen.
func TestRealWriters(t *testing.T) {
	old, data := strings.Repeat("old line\n", 3000), strings.Repeat("new line\n", 5000)
	for _, c := range []struct {
		name, script string
		programs     []string
	}{
		{"cp", "cp $new $file", nil},
		{"cat", "cat $new >$file", nil},
		{"cp and mv", "cp $new $file.tmp; mv $file.tmp $file", nil},
		{"hidden copy and mv", "cp $new vms/a/.x; mv vms/a/.x $file", nil},
		{"ln -f", "ln -f $new $file", nil},
		{"dd", "dd if=$new of=$file bs=7 status=none", []string{"dd"}},
		{"dd without truncation", "dd if=$new of=$file bs=512 conv=notrunc status=none; truncate -s $(stat -c %s $new) $file", nil},
		{"sed -i", "sed -i s/old/new/ $file; head -c -1 $new >/dev/null; cp $new $file", []string{"sed"}},
		{"rsync", "rsync $new $file", []string{"rsync"}},
		{"rsync --inplace", "rsync --inplace $new $file", []string{"rsync"}},
		{"rsync -a of a folder", "mkdir src; cp $new src/user-data; printf v >src/vm.yaml; rsync -a src/ vms/a/", []string{"rsync"}},
		{"rsync --inplace --append", "head -c 9 $new >$file; rsync --inplace --append $new $file", []string{"rsync"}},
		{"vim", "vim.tiny -u NONE -es '+%s/old/new/' '+$read new.tail' +wq $file", []string{"vim.tiny"}},
		{"install", "install -m 600 $new $file", []string{"install"}},
		{"folder moved in", "mkdir .n; cp $new .n/user-data; printf v >.n/vm.yaml; mv vms/a .old; mv .n vms/a", nil},
		{"cp -r", "mkdir a; cp $new a/user-data; printf v >a/vm.yaml; cp -r a vms/", nil},
		{"tar", "mkdir a; cp $new a/user-data; printf v >a/vm.yaml; tar c a | tar x -C vms", []string{"tar"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := dropPath(t)
			a := watch(t, dir, Options{})
			write(t, dir+"/vms/a/user-data", old)
			write(t, dir+"/vms/a/vm.yaml", "v")
			vm := Unit{VM, "a"}
			a.want(vm, "user-data="+old+"\nvm.yaml=v\n")
			write(t, dir+"/new", data)
			write(t, dir+"/new.tail", strings.Repeat("new line\n", 2000))
			sh(t, dir, "new=new file=vms/a/user-data; "+c.script, c.programs...)
			a.want(vm, "user-data="+data+"\nvm.yaml=v\n")
			a.wantTree()
		})
	}
}

func TestScp(t *testing.T) {
	sshd, err := exec.LookPath("/usr/sbin/sshd")
	if err != nil {
		t.Skip("sshd is not installed")
	}
	dir, keys := dropPath(t), t.TempDir()
	sh(t, keys, "ssh-keygen -q -t ed25519 -N '' -f host; ssh-keygen -q -t ed25519 -N '' -f user; cp user.pub authorized", "ssh-keygen", "scp")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	if os.Geteuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Skipf("sshd cannot run: %v", err)
		}
	}
	server := exec.Command(sshd, "-D", "-e", "-f", "/dev/null", "-h", keys+"/host", "-o", fmt.Sprintf("Port=%d", port),
		"-o", "ListenAddress=127.0.0.1", "-o", "AuthorizedKeysFile="+keys+"/authorized", "-o", "StrictModes=no",
		"-o", "PidFile=none", "-o", "UsePAM=no", "-o", "Subsystem=sftp internal-sftp", "-o", "PermitRootLogin=yes")
	var log strings.Builder
	server.Stderr = &log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		server.Process.Kill()
		server.Wait()
	}()
	eventually(t, "sshd listens", func() bool {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	})

	a := watch(t, dir, Options{})
	data := strings.Repeat("#cloud-config\n", 20000)
	write(t, dir+"/../a/user-data", data)
	write(t, dir+"/../a/vm.yaml", "v")
	for _, protocol := range []string{"-s", "-O"} { // SFTP, and scp's own
		scp := fmt.Sprintf("scp %s -q -r -P %d -i %s/user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o IdentitiesOnly=yes a ",
			protocol, port, keys)
		for range 2 { // the second time over the first's files
			sh(t, filepath.Dir(dir), scp+"127.0.0.1:"+dir+"/vms/")
			a.want(Unit{VM, "a"}, "user-data="+data+"\nvm.yaml=v\n")
		}
		sh(t, dir, "rm -r vms/a")
	}
}

// A file that somebody has open for writing is never seen, whatever the pause.
func TestStalledWriter(t *testing.T) {
	dir := dropPath(t)
	a := watch(t, dir, Options{})
	vm := Unit{VM, "a"}
	write(t, dir+"/vms/a/vm.yaml", "v")
	write(t, dir+"/vms/a/user-data", "old")
	a.want(vm, "user-data=old\nvm.yaml=v\n")

	f, err := os.OpenFile(dir+"/vms/a/user-data", os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		fmt.Fprintf(f, "part %d\n", i)
		eventually(t, "the unit counts as unsettled", func() bool {
			s := a.Status().Unsettled
			return len(s) == 1 && s[0] == vm
		})
		open, err := a.Barrier(t.Context(), []Unit{vm, {VM, "b"}})
		if err != nil || len(open) != 1 || open[0] != vm {
			t.Fatalf("Barrier() = %v, %v, want the unit that is being written", open, err)
		}
		if got := a.text(vm); got != "user-data=old\nvm.yaml=v\n" {
			t.Fatalf("seen while it is written: %q", got)
		}
	}
	// Another file of the unit waits for the whole of it, other units do not.
	write(t, dir+"/vms/a/password", "secret")
	write(t, dir+"/vms/b/vm.yaml", "b")
	eventually(t, "the other unit is seen", func() bool { return a.text(Unit{VM, "b"}) == "vm.yaml=b\n" })
	if got := a.text(vm); got != "user-data=old\nvm.yaml=v\n" {
		t.Fatalf("seen while it is written: %q", got)
	}
	f.Close()
	a.settle()
	if got := a.text(vm); !strings.Contains(got, "part 19\n\nvm.yaml=v\n") || !strings.HasPrefix(got, "password=secret\n") {
		t.Errorf("seen after it was written: %q", got)
	}
}

// What a change takes is counted from the last change of the files, not from when somebody looks at them.
func TestContentTellsSinceWhenItHasSettled(t *testing.T) {
	dir := dropPath(t)
	d, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	running.Go(func() { d.Run(ctx) })
	defer running.Wait()
	defer cancel()
	// notice has everything noticed that has happened.
	notice := func() {
		t.Helper()
		if _, err := d.Barrier(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	next := func() (Content, time.Time) {
		t.Helper()
		notice()
		if _, err := d.Next(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		given := time.Now()
		c, err := d.Read(Unit{VM, "a"})
		if err != nil {
			t.Fatal(err)
		}
		return c, given
	}
	within := func(what string, c Content, from, to time.Time) {
		t.Helper()
		if c.SettledAt.Before(from) || c.SettledAt.After(to) {
			t.Errorf("%s: settled %v after the change, which was given out after %v", what, c.SettledAt.Sub(from), to.Sub(from))
		}
	}

	write(t, dir+"/vms/.a/vm.yaml", "v")
	changed := time.Now()
	rename(t, dir+"/vms/.a", dir+"/vms/a")
	c, given := next()
	within("a folder moved in", c, changed, given)

	f, err := os.OpenFile(dir+"/vms/a/user-data", os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(f, "written")
	// It is given out once it is quiet; whoever reads it is told that it has not settled.
	notice()
	if _, err := d.Next(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Read(Unit{VM, "a"}); !errors.Is(err, ErrUnsettled) {
		t.Fatalf("Read() of a file that is being written = %v, want %v", err, ErrUnsettled)
	}
	written := time.Now()
	eventually(t, "somebody has looked since", func() bool { return d.settledAt(Unit{VM, "a"}).After(written) })
	f.Close()
	c, given = next()
	within("a file closed long after it was written", c, written, given)

	changed = time.Now()
	os.RemoveAll(dir + "/vms/a")
	c, given = next()
	within("a folder removed", c, changed, given)

	// A change while the unit is given out counts for the next time.
	write(t, dir+"/vms/.a/vm.yaml", "v")
	rename(t, dir+"/vms/.a", dir+"/vms/a")
	next()
	changed = time.Now()
	write(t, dir+"/vms/a/vm.yaml", "w")
	notice()
	noticed := time.Now()
	c, _ = next()
	within("a change while the one before was read", c, changed, noticed)
}

func TestSlowWriterNeverShowsAHalf(t *testing.T) {
	dir := dropPath(t)
	a := watch(t, dir, Options{})
	write(t, dir+"/vms/a/vm.yaml", "v")
	a.settle()
	sh(t, dir, "i=0; { while [ $i -lt 60 ]; do printf '%0100d' $i; sleep 0.02; i=$((i+1)); done; } >vms/a/user-data")
	a.settle()
	a.mu.Lock()
	defer a.mu.Unlock()
	if got := len(a.seen[Unit{VM, "a"}].Files[UserDataFile].Data); got != 6000 {
		t.Errorf("seen %d bytes, want 6000", got)
	}
	// The first version, perhaps an empty one that the shell had just made, and
	// the last.
	if a.handed > 8 {
		t.Errorf("read %d times while it was written", a.handed)
	}
}

func TestFileSystemWithoutLeasesTakesQuietTime(t *testing.T) {
	dir := dropPath(t)
	write(t, dir+"/vms/old/vm.yaml", "was there")
	past := time.Now().Add(-time.Hour)
	os.Chtimes(dir+"/vms/old/vm.yaml", past, past)
	refuse := func(int) error { return unix.EINVAL }
	a := watch(t, dir, Options{lease: refuse})
	vm := Unit{VM, "a"}
	write(t, dir+"/vms/a/vm.yaml", "first")
	f, err := os.OpenFile(dir+"/vms/a/vm.yaml", os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("second")
	f.Close()
	a.want(vm, "vm.yaml=second\n")
	if n := a.handedOut(); n > 12 {
		t.Errorf("read %d times", n)
	}
	if !a.Status().QuietTime {
		t.Error("Status() does not tell of the quiet time")
	}
	a.want(Unit{VM, "old"}, "vm.yaml=was there\n")
}

func (a *agent) handedOut() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.handed
}

// unpack writes an archive of VMs and unpacks it with tar into the drop
// directory.
func unpack(t testing.TB, dir string, vms int) {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "vms.tar")
	f, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	add := func(h tar.Header, data string) {
		h.Size = int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		w.Write([]byte(data))
	}
	for i := range vms {
		name := fmt.Sprintf("vms/i-%d/", i)
		add(tar.Header{Name: name, Mode: 0o755, Typeflag: tar.TypeDir}, "")
		add(tar.Header{Name: name + UserDataFile, Mode: 0o644}, fmt.Sprintf("data %d", i))
		add(tar.Header{Name: name + MetaDataFile, Mode: 0o644}, "instance-id: x\n")
		add(tar.Header{Name: name + VMFile, Mode: 0o644}, fmt.Sprintf("nics %d", i))
	}
	w.Close()
	sh(t, dir, "tar x -f "+archive, "tar")
}

func TestArchiveOfManyVMsOverARunningAgent(t *testing.T) {
	vms := 10000
	if testing.Short() {
		vms = 1000
	}
	dir := dropPath(t)
	a := watch(t, dir, Options{})
	unpack(t, dir, vms)
	a.settle()
	if got := len(a.view()); got != vms {
		t.Errorf("%d VMs seen, want %d", got, vms)
	}
	a.wantTree()
	if s := a.Status(); s.Watched != vms || s.Unwatched != 0 {
		t.Errorf("Status() = %+v", s)
	}
	sh(t, dir, "rm -rf vms")
	a.settle()
	if view := a.view(); len(view) != 0 {
		t.Errorf("%d VMs seen after rm -rf", len(view))
	}
	if s := a.Status(); s.Watched != 0 {
		t.Errorf("Status() = %+v", s)
	}
	write(t, dir+"/vms/again/vm.yaml", "v")
	a.want(Unit{VM, "again"}, "vm.yaml=v\n")
}

func TestReplacedFolders(t *testing.T) {
	for _, c := range []struct{ name, script string }{
		{"vms moved away and back", "mv vms v; mv v vms"},
		{"vms replaced", "cp -r vms .v; printf c >.v/b/vm.yaml; rm -r .v/a; mv vms .old; mv .v vms"},
		{"vms removed and made again", "rm -r vms; mkdir -p vms/a; printf again >vms/a/vm.yaml"},
		{"vms emptied by another folder", "mv vms .v; mkdir vms"},
		{"networks replaced", "mv networks .n; mkdir networks; printf m >networks/m.yaml"},
		{"networks and vms gone", "rm -r networks vms"},
		{"directory moved away and back", "mv ../drop ../d; mv ../d ../drop"},
		{"directory replaced", "cp -r ../drop ../d; rm -r ../d/vms/a ../d/networks; mv ../drop ../old; mv ../d ../drop"},
		{"directory removed and made again", "cp -r ../drop ../d; rm -r ../d/vms/a; rm -r ../drop; mv ../d ../drop"},
		{"folder of a VM replaced", "cp -r vms/a .a; printf new >.a/vm.yaml; mv vms/a .b; mv .a vms/a"},
		{"folders of VMs swapped", "mv vms/a .a; mv vms/b vms/a; mv .a vms/b"},
		{"folder of a VM removed and made again", "rm -r vms/a; mkdir vms/a; printf new >vms/a/vm.yaml"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := dropPath(t)
			write(t, dir+"/networks/n.yaml", "n")
			write(t, dir+"/vms/a/vm.yaml", "a")
			write(t, dir+"/vms/b/vm.yaml", "b")
			a := watch(t, dir, Options{})
			sh(t, dir, c.script)
			eventually(t, "the directory is back", func() bool { return !a.Status().Missing })
			a.wantTree()
			for _, name := range []string{"vms/a/vm.yaml", "vms/b/user-data", "networks/n.yaml"} {
				write(t, dir+"/"+name, "afterwards")
				a.wantTree()
			}
			if s := a.Status(); s.Watched != 2 {
				t.Errorf("Status() = %+v, want two watches", s)
			}
		})
	}
}

func TestFoldersBeyondTheWatchLimitAreScanned(t *testing.T) {
	dir := dropPath(t)
	for i := range 20 {
		write(t, fmt.Sprintf("%s/vms/i-%d/vm.yaml", dir, i), "v")
	}
	a := watch(t, dir, Options{MaxWatches: 5})
	eventually(t, "status tells", func() bool { s := a.Status(); return s.Watched == 5 && s.Unwatched == 15 })
	for i := range 20 {
		write(t, fmt.Sprintf("%s/vms/i-%d/vm.yaml", dir, i), "w") // the same size
		write(t, fmt.Sprintf("%s/vms/i-%d/user-data", dir, i), "u")
	}
	a.wantTree()
	for i := range 20 {
		write(t, fmt.Sprintf("%s/vms/i-%d/vm.yaml", dir, i), "x")
	}
	eventually(t, "changes are seen without a barrier", func() bool {
		for i := range 20 {
			if a.text(Unit{VM, fmt.Sprintf("i-%d", i)}) != "user-data=u\nvm.yaml=x\n" {
				return false
			}
		}
		return true
	})
	sh(t, dir, "rm -r vms/i-1?")
	a.wantTree()
	eventually(t, "watches go to those that are left", func() bool { s := a.Status(); return s.Watched == 5 && s.Unwatched == 5 })
	sh(t, dir, "rm -r vms/i-[1-5]")
	eventually(t, "all are watched again", func() bool { s := a.Status(); return s.Watched == 5 && s.Unwatched == 0 })
	write(t, dir+"/vms/i-9/vm.yaml", "y")
	a.wantTree()
}

func TestWithoutInotifyAllIsScanned(t *testing.T) {
	dir := dropPath(t)
	write(t, dir+"/vms/a/vm.yaml", "v")
	var instances atomic.Bool // whether the kernel has any left
	a := watch(t, dir, Options{watcher: func() (*fsnotify.Watcher, error) {
		if !instances.Load() {
			return nil, unix.EMFILE
		}
		return newWatcher()
	}})
	eventually(t, "status says so", func() bool { s := a.Status(); return s.Unwatched == 1 && s.Notes != nil })
	a.want(Unit{VM, "a"}, "vm.yaml=v\n")
	write(t, dir+"/vms/a/vm.yaml", "w")
	write(t, dir+"/vms/b/vm.yaml", "b")
	write(t, dir+"/networks/n.yaml", "n")
	a.wantTree()
	write(t, dir+"/networks/n.yaml", "o")
	sh(t, dir, "mv vms/b vms/c; cp -r vms .v; rm -r vms; mv .v vms")
	a.wantTree()
	sh(t, dir, "rm -r vms/a networks")
	a.wantTree()
	write(t, dir+"/vms/d/vm.yaml", "d")
	eventually(t, "changes are seen without a barrier", func() bool { return a.text(Unit{VM, "d"}) == "vm.yaml=d\n" })

	instances.Store(true)
	eventually(t, "folders are watched", func() bool { s := a.Status(); return s.Watched == 2 && s.Unwatched == 0 })
	write(t, dir+"/vms/d/vm.yaml", "e")
	a.wantTree()
}

// Random changes by every means, then the agent's view is that of a fresh scan.
func TestRandomChanges(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			dir := dropPath(t)
			opts := Options{}
			if seed%2 == 1 {
				opts.MaxWatches = 3
			}
			a := watch(t, dir, opts)
			rng := rand.New(rand.NewPCG(seed, 0))
			name := func() string { return fmt.Sprintf("%s/vms/%c", dir, 'a'+rng.IntN(8)) }
			file := func() string { return name() + "/" + vmFiles[rng.IntN(len(vmFiles))] }
			for round := range 15 {
				for range 40 {
					switch rng.IntN(12) {
					case 0:
						os.RemoveAll(name())
					case 1:
						os.Rename(name(), name())
					case 2:
						os.Rename(name(), dir+"/.out")
						os.Rename(dir+"/.out", name())
						os.RemoveAll(dir + "/.out")
					case 3:
						os.Remove(file())
					case 4:
						os.Rename(file(), file())
					case 5:
						os.WriteFile(fmt.Sprintf("%s/networks/%c.yaml", dir, 'a'+rng.IntN(3)), []byte(fmt.Sprint(rng.IntN(9))), 0o644)
					case 6:
						os.Remove(fmt.Sprintf("%s/networks/%c.yaml", dir, 'a'+rng.IntN(3)))
					case 7:
						if rng.IntN(10) == 0 {
							os.Rename(dir+"/vms", dir+"/.vms")
							if rng.IntN(2) == 0 {
								os.Rename(dir+"/.vms", dir+"/vms")
							}
							os.Mkdir(dir+"/vms", 0o755)
							os.RemoveAll(dir + "/.vms")
						}
					default:
						f := file()
						os.MkdirAll(filepath.Dir(f), 0o755)
						os.WriteFile(f, []byte(fmt.Sprint(rng.IntN(9))), 0o644)
					}
				}
				if round%3 == 2 {
					a.wantTree()
				}
			}
		})
	}
}
