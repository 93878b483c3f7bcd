package e2e

import (
	"archive/tar"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vragent/agent/internal/api"
	"vragent/netcfg/nstest"
)

// oldData and newData are too long for one write, and no part of one is a part of the other.
var (
	oldData = strings.Repeat("old line\n", 30_000)
	newData = strings.Repeat("new line!\n", 30_000)
)

// served makes a router with one guest, web, that is served oldData.
func served(t *testing.T) (*router, *nstest.Host) {
	t.Helper()
	r := newRouter(t)
	g := r.guest(t, "guest", "eth0", macA)
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	g.AddAddr(t, "eth0", "10.1.1.34/24")
	r.configure(t, "metadata: {guest_rate: 0}\n")
	r.start(t)
	r.put(t, "networks/guest-1.yaml", network)
	r.put(t, "vms/web/user-data", oldData)
	r.put(t, "vms/web/vm.yaml", vm("web-1", "guest-1", macA, "10.1.1.34"))
	r.applied(t)
	return r, g
}

// sh runs a shell script in a folder of the router.
func (r *router) sh(t *testing.T, dir, script string) {
	t.Helper()
	r.Run(t, "timeout", "60", "sh", "-ec", "cd "+dir+"\n"+script)
}

// watched reads user data as fast as curl can until stop, and fails the test at any answer that is
// neither of the two versions. Once the new one has been seen, the old one is a fault too.
func watched(t *testing.T, g *nstest.Host) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for isNew, last := false, false; !last; {
			last = ctx.Err() != nil
			got, err := g.Command(context.Background(), "curl", "-sSf", "--max-time", "5", "--noproxy", "*", dataURL).CombinedOutput()
			switch {
			case err != nil:
				t.Errorf("user data: %v: %s", err, got)
				return
			case string(got) == newData:
				isNew = true
			case string(got) != oldData:
				t.Errorf("user data is a mixture of %d bytes: %.40q ... %q", len(got), got, got[max(0, len(got)-40):])
				return
			case isNew:
				t.Error("user data is old again after it was new")
				return
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

func TestGuestReadsOldOrNewWhateverWrites(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r, g := served(t)
	if err := os.WriteFile(r.dir+"/new", []byte(newData), 0o644); err != nil {
		t.Fatal(err)
	}
	const file = "drop/vms/web/user-data"
	for _, writer := range []struct{ name, script string }{
		{"cp", "cp new " + file},
		{"mv", "cp new " + file + ".tmp; mv " + file + ".tmp " + file},
		{"dd bs=7000", "dd if=new of=" + file + " bs=7000 status=none"},
		{"cat, slowly", "{ head -c 100000 new; sleep 0.1; tail -c +100001 new; } >" + file},
		{"rsync", "rsync new " + file},
		{"rsync --inplace", "rsync --inplace new " + file},
		{"sed -i", "sed -i 's/old line/new line!/' " + file},
	} {
		r.put(t, "vms/web/user-data", oldData)
		r.applied(t, "vms/web")
		serves(t, g, dataURL, oldData)
		stop := watched(t, g)
		r.sh(t, r.dir, writer.script)
		r.applied(t, "vms/web")
		if got, err := curl(t, g, dataURL); got != newData {
			t.Errorf("%s: after it is in force %d bytes are served, want %d (%v)", writer.name, len(got), len(newData), err)
		}
		stop()
		if t.Failed() {
			t.Fatalf("with %s", writer.name)
		}
	}
}

// A file that a writer holds open is not served, whether it writes byte by byte or stalls.
func TestOpenFileIsServedOnlyOnceItIsClosed(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r, g := served(t)
	pipe := r.dir + "/pipe"
	r.Run(t, "mkfifo", pipe)
	inForce := oldData
	for _, name := range []string{"vms/web/user-data", "vms/other/vm.yaml"} {
		if err := os.MkdirAll(filepath.Dir(r.drop+"/"+name), 0o770); err != nil {
			t.Fatal(err)
		}
		dd := r.Start(t, "dd", "if="+pipe, "of="+r.drop+"/"+name, "bs=1", "status=none")
		feed, err := os.OpenFile(pipe, os.O_RDWR, 0) // which does not wait for dd
		if err != nil {
			t.Fatal(err)
		}
		text := "new, in two parts"
		if strings.HasSuffix(name, "vm.yaml") {
			text = vm("other", "guest-1", macB, "10.1.1.35")
		}
		half := len(text) / 2
		fmt.Fprint(feed, text[:half])
		nstest.Poll(t, waitTime, "dd to have written half", func() bool {
			info, err := os.Stat(r.drop + "/" + name)
			return err == nil && info.Size() == int64(half)
		})
		// While it stalls, all others are served and changed; what it writes is waited for.
		r.put(t, "vms/more/vm.yaml", vm("more", "guest-1", "02:00:4c:5f:00:0c", "10.1.1.36"))
		r.applied(t, "vms/more")
		unit := filepath.Dir(name)
		if result, err := r.client.Wait(t.Context(), []string{unit}, 300*time.Millisecond); err == nil && result.State == api.Applied {
			t.Errorf("%s counts as applied while it is written: %+v", unit, result)
		}
		if got, err := curl(t, g, dataURL); got != inForce {
			t.Errorf("while %s is written %d bytes are served, want the %d in force (%v)", name, len(got), len(inForce), err)
		}
		fmt.Fprint(feed, text[half:])
		feed.Close()
		select {
		case <-dd.Exited():
		case <-time.After(waitTime):
			t.Fatal("dd does not end")
		}
		r.applied(t, unit)
		inForce = "new, in two parts"
		if got, err := curl(t, g, dataURL); got != inForce {
			t.Errorf("user data = %q, %v", got, err)
		}
		r.remove(t, "vms/more")
	}
}

func TestFolderOfAVMIsMovedInRenamedAndOut(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r, g := served(t)
	const id = "http://10.1.1.1/latest/vm-id"
	serves(t, g, id, "web")
	r.sh(t, r.drop, "mv vms/web vms/renamed")
	serves(t, g, id, "renamed")
	serves(t, g, dataURL, oldData)
	r.sh(t, r.drop, "mv vms/renamed ../out")
	nstest.Poll(t, waitTime, "the guest to be unknown", func() bool {
		out, err := curl(t, g, id)
		return err != nil && strings.Contains(out, "404")
	})
	if out, err := g.Output(t, "timeout", "5", "udhcpc", "-n", "-q", "-t", "1", "-T", "1", "-i", "eth0", "-s", "/bin/true"); err == nil {
		t.Errorf("a VM whose folder was moved out gets a lease:\n%s", out)
	}
	r.sh(t, r.drop, "mv ../out vms/back")
	serves(t, g, id, "back")
	lease(t, g, "10.1.1.34")
}

func TestReplacedDropDirectoryIsFollowed(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r, g := served(t)
	r.sh(t, r.dir, "cp -r drop next; echo replaced >next/vms/web/user-data; mv drop old; mv next drop")
	serves(t, g, dataURL, "replaced\n")
	r.put(t, "vms/web/user-data", "and after it")
	serves(t, g, dataURL, "and after it")
	// The old one counts no more.
	r.sh(t, r.dir, "echo stale >old/vms/web/user-data")
	r.applied(t)
	if got, err := curl(t, g, dataURL); got != "and after it" {
		t.Errorf("user data = %q, %v", got, err)
	}
}

func TestScpOfAWholeFolder(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r, g := served(t)
	keys := t.TempDir()
	r.sh(t, keys, "ssh-keygen -q -t ed25519 -N '' -f host; ssh-keygen -q -t ed25519 -N '' -f user; mkdir -p /run/sshd")
	server := r.Start(t, "/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-h", keys+"/host", "-o", "Port=2222",
		"-o", "ListenAddress=127.0.0.1", "-o", "AuthorizedKeysFile="+keys+"/user.pub", "-o", "StrictModes=no",
		"-o", "PidFile=none", "-o", "UsePAM=no", "-o", "Subsystem=sftp internal-sftp", "-o", "PermitRootLogin=yes")
	server.WaitFor(t, "Server listening", waitTime)
	for path, text := range map[string]string{"user-data": newData, "meta-data.yaml": "colour: blue\n", "vm.yaml": vm("web-2", "guest-1", macA, "10.1.1.34")} {
		if err := os.MkdirAll(r.dir+"/web", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(r.dir+"/web/"+path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, protocol := range []string{"-s", "-O"} { // SFTP, and scp's own
		r.put(t, "vms/web/user-data", oldData)
		r.applied(t)
		stop := watched(t, g)
		r.sh(t, r.dir, fmt.Sprintf("scp %s -q -r -P 2222 -i %s/user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o IdentitiesOnly=yes web 127.0.0.1:%s/vms/",
			protocol, keys, r.drop))
		r.applied(t, "vms/web")
		stop()
		for url, want := range map[string]string{dataURL: newData, "http://10.1.1.1/latest/local-hostname": "web-2", "http://10.1.1.1/latest/colour": "blue"} {
			if got, err := curl(t, g, url); got != want {
				t.Errorf("scp %s: %s = %.40q, %v", protocol, url, got, err)
			}
		}
	}
}

func TestArchiveOfAThousandVMsComesAndGoes(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	const vms = 1000
	r, g := served(t)
	r.put(t, "networks/large.yaml", "interface: eth0\ngateway: 10.2.0.1/16\n")
	r.AddAddr(t, "eth0", "10.2.0.1/16")
	r.applied(t)
	archive := r.dir + "/vms.tar"
	f, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	for i := range vms {
		address := fmt.Sprintf("10.2.%d.%d", 1+i/200, 1+i%200)
		for _, file := range []struct{ name, text string }{
			{"user-data", "data of " + address},
			{"vm.yaml", vm("vm", "large", fmt.Sprintf("02:00:4c:60:%02x:%02x", i/256, i%256), address)},
		} {
			header := &tar.Header{Name: fmt.Sprintf("vms/i-%d/%s", i, file.name), Mode: 0o644, Size: int64(len(file.text))}
			if err := w.WriteHeader(header); err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(w, file.text)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	f.Close()

	stop := undisturbed(t, g, "http://10.1.1.1/latest/vm-id")
	r.sh(t, r.drop, "tar x -f "+archive)
	r.applied(t)
	stop()
	for _, i := range []int{0, 1, 499, vms - 1} {
		address := fmt.Sprintf("10.2.%d.%d", 1+i/200, 1+i%200)
		g.SetMAC(t, "eth0", fmt.Sprintf("02:00:4c:60:%02x:%02x", i/256, i%256))
		g.AddAddr(t, "eth0", address+"/16")
		if got, err := curl(t, g, "http://10.2.0.1/latest/user-data"); got != "data of "+address {
			t.Errorf("VM %d reads %q, %v", i, got, err)
		}
		g.DelAddr(t, "eth0", address+"/16")
	}
	r.sh(t, r.drop, "rm -rf vms")
	r.applied(t)
	for _, address := range []string{"10.2.1.1", "10.2.5.200"} {
		g.AddAddr(t, "eth0", address+"/16")
		if out, err := curl(t, g, "http://10.2.0.1/latest/user-data"); err == nil || !strings.Contains(out, "404") {
			t.Errorf("%s reads %q, %v after rm -rf, want 404", address, out, err)
		}
		g.DelAddr(t, "eth0", address+"/16")
	}
	// The folder may come again.
	g.SetMAC(t, "eth0", macA)
	r.put(t, "vms/web/vm.yaml", vm("web-1", "guest-1", macA, "10.1.1.34"))
	r.applied(t)
	serves(t, g, "http://10.1.1.1/latest/vm-id", "web")
}
