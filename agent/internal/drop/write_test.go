package drop

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func mustPut(t testing.TB, d *Dir, e Edit) {
	t.Helper()
	if err := d.Put(t.Context(), e); err != nil {
		t.Fatal(err)
	}
}

// set makes an edit from pairs of a name and its text.
func set(u Unit, pairs ...string) Edit {
	e := Edit{Unit: u, Set: make(map[string][]byte)}
	for i := 0; i < len(pairs); i += 2 {
		e.Set[pairs[i]] = []byte(pairs[i+1])
	}
	return e
}

// wantNoLeftovers tells of hidden names of ours.
func wantNoLeftovers(t testing.TB, dir string) {
	t.Helper()
	for _, folder := range []string{networksFolder, vmsFolder} {
		entries, err := os.ReadDir(filepath.Join(dir, folder))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".") {
				t.Errorf("left over: %s/%s", folder, e.Name())
			}
		}
	}
}

func TestPutChangesOnlyWhatItNames(t *testing.T) {
	dir := dropPath(t)
	a := watch(t, dir, Options{})
	vm, net := Unit{VM, "a"}, Unit{Network, "n"}
	mustPut(t, a.Dir, set(vm, VMFile, "v", UserDataFile, "u", PasswordFile, "p"))
	a.want(vm, "password=p\nuser-data=u\nvm.yaml=v\n")
	write(t, dir+"/vms/a/meta-data.yaml", "by ssh")
	write(t, dir+"/vms/a/user-data.tmp", "under way")
	e := set(vm, VMFile, "v2")
	e.Clear = []string{PasswordFile, VendorDataFile}
	mustPut(t, a.Dir, e)
	a.want(vm, "meta-data.yaml=by ssh\nuser-data=u\nvm.yaml=v2\n")
	rename(t, dir+"/vms/a/user-data.tmp", dir+"/vms/a/user-data")
	a.want(vm, "meta-data.yaml=by ssh\nuser-data=under way\nvm.yaml=v2\n")

	mustPut(t, a.Dir, set(net, "n.yaml", "1"))
	mustPut(t, a.Dir, set(net, "n.yaml", "2"))
	a.want(net, "n.yaml=2\n")
	for range 2 {
		if err := a.Remove(t.Context(), net); err != nil {
			t.Fatal(err)
		}
		if err := a.Remove(t.Context(), vm); err != nil {
			t.Fatal(err)
		}
	}
	a.want(net, "")
	a.want(vm, "")
	wantNoLeftovers(t, dir)
	sh(t, dir, "rm -r networks vms")
	mustPut(t, a.Dir, set(vm, VMFile, "again"))
	a.want(vm, "vm.yaml=again\n")
	a.wantTree()
}

// TestPutClearsWhatCameMeanwhile has an edit clear a file of a VM that was not there when the edit was
// staged, beside one that clears what never was.
func TestPutClearsWhatCameMeanwhile(t *testing.T) {
	dir := dropPath(t)
	a := watch(t, dir, Options{})
	vm, other := Unit{VM, "a"}, Unit{VM, "b"}
	second, third := set(vm, VMFile, "2"), set(other, VMFile, "3")
	second.Clear, third.Clear = []string{PasswordFile, VendorDataFile}, []string{PasswordFile}
	err := a.PutAll(t.Context(), slices.Values([]Edit{set(vm, VMFile, "1", PasswordFile, "p", UserDataFile, "u"), second, third}), func(u Unit, err error) {
		if err != nil {
			t.Errorf("%s: %v", u.Path(), err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	a.want(vm, "user-data=u\nvm.yaml=2\n")
	a.want(other, "vm.yaml=3\n")
	wantNoLeftovers(t, dir)
}

func TestPutRefusesWhatCouldNotBeRead(t *testing.T) {
	dir := dropPath(t)
	a := watch(t, dir, Options{})
	vm := Unit{VM, "a"}
	for _, e := range []Edit{
		{},
		{Unit: vm},
		set(Unit{VM, "../a"}, VMFile, "v"),
		set(Unit{VM, ".a"}, VMFile, "v"),
		set(Unit{VM, "a.tmp"}, VMFile, "v"),
		set(Unit{"site", "a"}, VMFile, "v"),
		set(vm, "../vm.yaml", "v"),
		set(vm, "userdata", "v"),
		set(vm, MetaDataFile, strings.Repeat("x", 64<<10+1)),
		set(Unit{Network, "n"}, VMFile, "v"),
		{Unit: vm, Set: map[string][]byte{VMFile: nil}, Clear: []string{VMFile}},
		{Unit: vm, Set: map[string][]byte{VMFile: nil}, Remove: true},
		{Unit: vm, Clear: []string{"/etc/passwd"}},
	} {
		if err := a.Put(t.Context(), e); err == nil {
			t.Errorf("Put(%+v) succeeds", e)
		}
	}
	if got := onDisk(t, dir); len(got) != 0 {
		t.Errorf("on disk: %v", got)
	}
	wantNoLeftovers(t, dir)
}

// Files that are dropped over SSH while the API pushes are not lost, and what
// is pushed is not either.
func TestPutBesideOtherWriters(t *testing.T) {
	dir := dropPath(t)
	a := watch(t, dir, Options{})
	vm := Unit{VM, "a"}
	mustPut(t, a.Dir, set(vm, VMFile, "v"))
	const rounds = 200
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range rounds {
			if err := a.Put(context.Background(), set(vm, VMFile, fmt.Sprint(i), UserDataFile, fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Go(func() {
		for i := range rounds {
			write(t, dir+"/vms/a/meta-data.yaml.tmp", fmt.Sprint(i))
			rename(t, dir+"/vms/a/meta-data.yaml.tmp", dir+"/vms/a/meta-data.yaml")
		}
	})
	f, err := os.OpenFile(dir+"/vms/a/password", os.O_CREATE|os.O_WRONLY, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	for i := range rounds {
		fmt.Fprintln(f, i)
	}
	wg.Wait()
	f.Close()
	a.settle()
	last := fmt.Sprint(rounds - 1)
	text := a.text(vm)
	if !strings.HasPrefix(text, "meta-data.yaml="+last+"\npassword=0\n1\n") ||
		!strings.HasSuffix(text, "\n"+last+"\n\nuser-data="+last+"\nvm.yaml="+last+"\n") {
		t.Errorf("seen: %q", text)
	}
	a.wantTree()
}

// Whenever Read looks, a change of several files is there whole or not at all.
func TestReadNeverSeesHalfAPut(t *testing.T) {
	d, err := Open(dropPath(t), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	vm := Unit{VM, "a"}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(stop)
		for i := range 300 {
			mustPut(t, d, set(vm, VMFile, fmt.Sprint(i), UserDataFile, fmt.Sprint(i), MetaDataFile, fmt.Sprint(i)))
		}
	})
	for {
		select {
		case <-stop:
			wg.Wait()
			return
		default:
		}
		c, err := d.Read(vm)
		if err != nil || !c.Exists {
			continue
		}
		v := string(c.Files[VMFile].Data)
		if string(c.Files[UserDataFile].Data) != v || string(c.Files[MetaDataFile].Data) != v {
			t.Fatalf("Read() = %q", c.text())
		}
	}
}

func TestPutAllSharesSyncs(t *testing.T) {
	dir := dropPath(t)
	a := watch(t, dir, Options{})
	syncs := 0
	a.syncs.call = func(fd int) error { syncs++; return unix.Syncfs(fd) }
	const vms = 2000
	edits := func(yield func(Edit) bool) {
		for i := range vms {
			u := Unit{VM, fmt.Sprintf("i-%d", i)}
			if i%500 == 7 {
				u.Name = "not valid"
			}
			if !yield(set(u, VMFile, fmt.Sprint(i), UserDataFile, fmt.Sprint(i))) {
				return
			}
		}
	}
	var order []string
	failed := 0
	err := a.PutAll(t.Context(), edits, func(u Unit, err error) {
		order = append(order, u.Name)
		if err != nil {
			failed++
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(order) != vms || failed != 4 || order[6] != "i-6" || order[vms-1] != "i-1999" {
		t.Errorf("PutAll() did %d edits, %d of them failed; want %d and 4 in order", len(order), failed, vms)
	}
	if syncs > 10 {
		t.Errorf("%d syncs for %d edits", syncs, vms)
	}
	a.settle()
	if got := len(a.view()); got != vms-4 {
		t.Errorf("%d VMs seen, want %d", got, vms-4)
	}
}

func TestPutAllStopsWithItsContext(t *testing.T) {
	dir := dropPath(t)
	a := watch(t, dir, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	err := a.PutAll(ctx, func(yield func(Edit) bool) {
		for i := 0; yield(set(Unit{VM, fmt.Sprint(i)}, VMFile, "v")); i++ {
			if i == groupEdits+10 {
				cancel()
			}
		}
	}, func(_ Unit, err error) {
		if err == nil {
			n++
		}
	})
	if !errors.Is(err, context.Canceled) || n != groupEdits {
		t.Errorf("PutAll() = %v after %d edits, want to be canceled after %d", err, n, groupEdits)
	}
	if got := len(onDisk(t, dir)); got != n {
		t.Errorf("%d VMs on disk, want %d", got, n)
	}
	wantNoLeftovers(t, dir)
}

func TestPutFailsWholeWhenTheDiskDoes(t *testing.T) {
	dir := dropPath(t)
	a := watch(t, dir, Options{})
	vm := Unit{VM, "a"}
	mustPut(t, a.Dir, set(vm, VMFile, "v", UserDataFile, "u"))
	a.syncs.call = func(int) error { return syscall.EIO }
	if err := a.Put(t.Context(), set(vm, VMFile, "v2", UserDataFile, "u2")); !errors.Is(err, syscall.EIO) {
		t.Fatalf("Put() = %v, want EIO", err)
	}
	a.syncs.call = unix.Syncfs
	a.want(vm, "user-data=u\nvm.yaml=v\n")
	wantNoLeftovers(t, dir)
}

func TestChangeThatTheDiskStopsIsCompletedLater(t *testing.T) {
	dir := dropPath(t)
	a := watch(t, dir, Options{})
	vm := Unit{VM, "a"}
	mustPut(t, a.Dir, set(vm, VMFile, "v", UserDataFile, "u"))
	a.want(vm, "user-data=u\nvm.yaml=v\n")
	// A folder in the way of the file stands for the disk.
	sh(t, dir, "rm vms/a/vm.yaml; mkdir -p vms/a/vm.yaml/x")
	err := a.Put(t.Context(), set(vm, VMFile, "v2", UserDataFile, "u2"))
	if !errors.Is(err, ErrUnfinished) {
		t.Fatalf("Put() = %v, want ErrUnfinished", err)
	}
	if _, err := a.Read(vm); !errors.Is(err, ErrUnfinished) {
		t.Fatalf("Read() of half a change = %v, want ErrUnfinished", err)
	}
	sh(t, dir, "rm -r vms/a/vm.yaml")
	a.want(vm, "user-data=u2\nvm.yaml=v2\n")
	wantNoLeftovers(t, dir)
}

func TestDroppedFilesAreOpenToTheGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files to a group")
	}
	dir := dropPath(t)
	group := "nogroup"
	d, err := Open(dir, Options{Group: group})
	if err != nil {
		t.Skipf("no group %s: %v", group, err)
	}
	defer d.Close()
	if notes := d.Status().Notes; len(notes) > 0 {
		t.Skipf("no access control lists here: %v", notes)
	}
	sh(t, dir, "umask 077; mkdir -p vms/a; echo v >vms/a/vm.yaml; echo n >networks/n.yaml; mkdir x; echo u >x/user-data; cp x/user-data vms/a/")
	mustPut(t, d, set(Unit{VM, "b"}, VMFile, "v"))
	mustPut(t, d, set(Unit{Network, "m"}, "m.yaml", "v"))
	var st unix.Stat_t
	if err := unix.Stat(dir+"/vms/a", &st); err != nil || int(st.Gid) != d.gid || st.Mode&0o2070 != 0o2070 {
		t.Errorf("vms/a has group %d and mode %o (%v), want %d and g=rwxs", st.Gid, st.Mode, err, d.gid)
	}
	// Somebody of the group reads, replaces and removes all of it.
	sh(t, dir, `chmod a+x .. ../.. ../../.. 2>/dev/null || :
		setpriv --reuid 65533 --regid `+strconv.Itoa(d.gid)+` --clear-groups sh -euc '
			cat vms/*/* networks/* >/dev/null
			echo v2 >vms/a/.n; mv vms/a/.n vms/a/vm.yaml
			echo u2 >vms/a/user-data
			rm -r vms/a vms/b networks/n.yaml networks/m.yaml'`, "setpriv")
	if got := onDisk(t, dir); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

func TestReadOnlyTouchesNothing(t *testing.T) {
	dir := dropPath(t)
	if _, err := os.Stat(dir); err == nil {
		t.Fatal("there already")
	}
	d, err := Open(dir, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Scan(t.Context()); !errors.Is(err, ErrMissing) {
		t.Errorf("Scan() = %v, want ErrMissing", err)
	}
	d.Close()
	if _, err := os.Stat(dir); err == nil {
		t.Error("Open() made the directory")
	}
	write(t, dir+"/vms/a/vm.yaml", "v")
	write(t, dir+"/vms/.put-a-X/vm.yaml", "half")
	d, err = Open(dir, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	units, err := d.Scan(t.Context())
	if err != nil || !slices.Equal(units, []Unit{{VM, "a"}}) {
		t.Errorf("Scan() = %v, %v", units, err)
	}
	if err := d.Put(t.Context(), set(Unit{VM, "b"}, VMFile, "v")); err == nil {
		t.Error("Put() succeeds")
	}
	if _, err := os.Stat(dir + "/vms/.put-a-X/vm.yaml"); err != nil {
		t.Errorf("another process's change is gone: %v", err)
	}
}

// TestMain also is the agent that TestKilledWhileWriting kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv("DROP_TEST_WRITER"); dir != "" {
		writeUntilKilled(dir)
	}
	os.Exit(m.Run())
}

const killedVMs = 4

// writeUntilKilled changes VMs in turn, all files of one to the same number,
// and prints what is done.
func writeUntilKilled(dir string) {
	d, err := Open(dir, Options{})
	if err != nil {
		panic(err)
	}
	first, err := strconv.Atoi(os.Getenv("DROP_TEST_FIRST"))
	if err != nil {
		panic(err)
	}
	var wg sync.WaitGroup
	for vm := range killedVMs {
		wg.Go(func() {
			for n := first; ; n++ {
				u := Unit{VM, fmt.Sprint(vm)}
				text := fmt.Sprint(n)
				e := set(u, VMFile, text, UserDataFile, text, MetaDataFile, text)
				switch n % 10 {
				case 3:
					delete(e.Set, MetaDataFile)
					e.Clear = []string{MetaDataFile}
				case 7:
					e = Edit{Unit: u, Remove: true}
				}
				if err := d.Put(context.Background(), e); err != nil {
					panic(err)
				}
				fmt.Printf("%d %d\n", vm, n)
			}
		})
	}
	wg.Wait()
}

func TestKilledWhileWriting(t *testing.T) {
	dir := dropPath(t)
	first := 0
	for round := range 25 {
		acked := make([]int, killedVMs)
		for vm := range acked {
			acked[vm] = first - 1
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "DROP_TEST_WRITER="+dir, "DROP_TEST_FIRST="+fmt.Sprint(first))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			var vm, number int
			if _, err := fmt.Sscan(lines.Text(), &vm, &number); err != nil {
				t.Fatalf("%q: %v", lines.Text(), err)
			}
			acked[vm] = number
			if n == round*7%60 {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()

		d, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		wantNoLeftovers(t, dir)
		for vm, n := range acked {
			u := Unit{VM, fmt.Sprint(vm)}
			c, err := d.Read(u)
			if err != nil {
				t.Fatal(err)
			}
			before := numbered(n)
			if n < first {
				before = ""
			}
			// What was acknowledged, or the change after it.
			if got := c.text(); got != before && got != numbered(n+1) {
				t.Fatalf("round %d from %d: VM %d after %d was acknowledged: %q", round, first, vm, n, got)
			}
			if err := d.Remove(t.Context(), u); err != nil {
				t.Fatal(err)
			}
		}
		d.Close()
		first = slices.Max(acked) + 2
	}
}

// numbered is how a VM reads after change n of writeUntilKilled.
func numbered(n int) string {
	switch {
	case n < 0 || n%10 == 7:
		return ""
	case n%10 == 3:
		return fmt.Sprintf("user-data=%d\nvm.yaml=%d\n", n, n)
	default:
		return fmt.Sprintf("meta-data.yaml=%d\nuser-data=%d\nvm.yaml=%d\n", n, n, n)
	}
}

func TestStatAgreesWithRead(t *testing.T) {
	dir := dropPath(t)
	d, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	seen := make(map[string]string)
	for i, script := range []string{
		"mkdir vms/a", "echo u >vms/a/user-data", "echo v >vms/a/vm.yaml", "echo w >vms/a/vm.yaml", "echo more >>vms/a/vm.yaml",
		"touch vms/a/userdata", "rm vms/a/user-data", "mv vms/a vms/b; cp -r vms/b vms/a", "rm vms/a/vm.yaml; ln -s x vms/a/vm.yaml", "rm -r vms/a",
	} {
		sh(t, dir, script)
		c, err := d.Read(Unit{VM, "a"})
		if err != nil {
			t.Fatal(err)
		}
		fingerprint, exists, err := d.Stat(Unit{VM, "a"})
		if err != nil || fingerprint != c.Fingerprint || exists != c.Exists {
			t.Errorf("Stat() after %q = %q, %t, %v; Read() %q, %t", script, fingerprint, exists, err, c.Fingerprint, c.Exists)
		}
		if c.Exists {
			if before, ok := seen[fingerprint]; ok {
				t.Errorf("step %d: the fingerprint is that after %q", i, before)
			}
			seen[fingerprint] = script
		}
	}
}

func TestUnitPaths(t *testing.T) {
	for path, want := range map[string]Unit{
		"networks/guest-1.yaml":      {Network, "guest-1"},
		"vms/i-2-34-VM":              {VM, "i-2-34-VM"},
		"vms/i-2-34-VM/":             {VM, "i-2-34-VM"},
		"vms/i-2-34-VM/user-data":    {VM, "i-2-34-VM"},
		"vms/a.yaml":                 {VM, "a.yaml"},
		"networks/a.b.yaml":          {Network, "a.b"},
		"networks/a.yml":             {},
		"networks/.yaml":             {},
		"networks/.a.yaml":           {},
		"networks/a.yaml/b":          {},
		"vms":                        {},
		"vms/..":                     {},
		"vms/../networks/guest.yaml": {Network, "guest"},
		"vms/a b":                    {},
		"vms/a.tmp":                  {},
		"vms/a~/vm.yaml":             {},
		"other/a":                    {},
		"":                           {},
	} {
		u, err := ParsePath(path)
		if diff := cmp.Diff(want, u); diff != "" || (err != nil) != (want == Unit{}) {
			t.Errorf("ParsePath(%q) = %v, %v, want %v", path, u, err, want)
		}
		if err == nil {
			if again, err := ParsePath(u.Path()); again != u || err != nil {
				t.Errorf("ParsePath(%q) = %v, %v, want %v", u.Path(), again, err, u)
			}
		}
	}
}

func FuzzParsePath(f *testing.F) {
	for _, seed := range []string{"networks/a.yaml", "vms/a/vm.yaml", "../vms/a", "vms/a\x00", "vms/\xff", strings.Repeat("a/", 200)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		u, err := ParsePath(path)
		if err != nil {
			return
		}
		if !u.valid() {
			t.Fatalf("ParsePath(%q) = %+v, which cannot exist", path, u)
		}
		joined := filepath.Join("/drop", u.Path())
		if !strings.HasPrefix(joined, "/drop/"+u.Kind.folder()+"/") || strings.Count(joined, "/") != 3 {
			t.Fatalf("ParsePath(%q) leads to %s", path, joined)
		}
		if again, err := ParsePath(u.Path()); err != nil || again != u {
			t.Fatalf("ParsePath(%q) = %v, %v, want %v", u.Path(), again, err, u)
		}
	})
}
