package cloudstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// listen serves a dialect on a socket of the test's own.
func listen(t *testing.T, d *Dialect) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: d.Handler()}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return socket
}

func drops(t *testing.T, dir string, files ...string) (names []string) {
	t.Helper()
	for _, f := range files {
		name, data, _ := strings.Cut(f, " ")
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	return names
}

func TestTakenFilesAreArchived(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	client := Dial(listen(t, b.Dialect))
	defer client.Close()
	in := Intake{Taker: client, Archive: Archive{Dir: dir}}
	take := func(want State, names ...string) {
		t.Helper()
		results, err := in.Take(context.Background(), names, true)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range results {
			if r.State != want {
				t.Errorf("%+v, want %s", r, want)
			}
		}
	}
	take(Applied, drops(t, dir, isolated, strings.Replace(leaseFile(ip0, "0a"), ".x ", ".u1 ", 1))...)
	if left, _ := filepath.Glob(dir + "/*.json*"); len(left) > 0 {
		t.Errorf("still there: %v", left)
	}
	take(Applied, "vm_dhcp_entry.json.u1") // again: its archived copy answers
	take(Rejected, "vm_dhcp_entry.json.u2")
	take(Rejected, drops(t, dir, "vm_metadata.json.u3 {")...)
	take(Rejected, drops(t, dir, "VR-empty.cfg ", "VR-torn.cfg \x00\x00")...)
	if err := syscall.Mkfifo(dir+"/vm_metadata.json.fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	take(Rejected, "vm_metadata.json.fifo") // that nobody writes into
	if _, err := os.Stat(dir + "/vm_metadata.json.u3"); err != nil {
		t.Error("a rejected file was taken away")
	}
	cfg := "VR-u.cfg <file>\n/x/" + strings.Replace(dataFile(ip0, "A"), " ", "\n", 1) + "\n</file>\n<script>\n/opt/cloud/bin/update_config.py vm_metadata.json.x\n</script>\n"
	take(Applied, drops(t, dir, cfg)...)
	if got := b.guest(net0, ip0); got != `0a A "a" -` {
		t.Errorf("served as %s", got)
	}
	archived, _ := filepath.Glob(dir + "/processed/*.gz")
	if len(archived) != 3 {
		t.Errorf("archive: %v", archived)
	}
	g := b.Guests()
	if len(g.Guests) != 1 || !strings.Contains(string(g.DHCPHosts()), "02:00:00:00:00:0a,10.1.1.50,web,infinite") ||
		!strings.Contains(string(g.Hosts()), "10.1.1.1\tr-1-VM data-server\n10.1.1.50\tweb") {
		t.Errorf("guests = %+v\n%s%s", g, g.DHCPHosts(), g.Hosts())
	}
	var bag strings.Builder
	err := g.WriteVMData(&bag, func(unit string) ([]byte, error) { return b.door.files[unit][userFile], nil })
	if err != nil || !strings.Contains(bag.String(), `"YQ=="`) {
		t.Errorf("vmdata = %s, %v", &bag, err)
	}
}

func TestFileInTheServersFolderIsArchivedByAnyPath(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	t.Chdir(dir)
	in := Intake{Taker: b.Dialect, Archive: Archive{Dir: dir}}
	drops(t, dir, isolated)
	if results, err := in.Take(context.Background(), []string{"./cmd_line.json"}, true); err != nil || results[0].State != Applied {
		t.Fatalf("Take() = %+v, %v", results, err)
	}
	if archived, _ := filepath.Glob("processed/cmd_line.json.*.gz"); len(archived) != 1 {
		t.Errorf("archive: %v", archived)
	}
}

func TestFileTooLargeStopsNoOther(t *testing.T) {
	b := newBench(t)
	client := Dial(listen(t, b.Dialect))
	defer client.Close()
	large := make([]byte, maxFile+1)
	results, err := client.Apply(context.Background(), []File{file(isolated), {Name: "vm_metadata.json.u", Data: large}, file(leaseFile(ip0, "0a"))})
	if err != nil || len(results) != 3 {
		t.Fatalf("Apply() = %+v, %v", results, err)
	}
	if results[0].State != Applied || results[1].State != Rejected || !strings.Contains(results[1].Reason, "at most") || results[2].State != Applied {
		t.Errorf("Apply() = %+v", results)
	}
	if r, _, err := client.Call(context.Background(), "save-userdata", large); err != nil || r.State != Rejected {
		t.Errorf("Call() = %+v, %v", r, err)
	}
}

func TestArchiveIsPruned(t *testing.T) {
	a := Archive{Dir: t.TempDir(), MaxFiles: 20, MaxAge: time.Hour}
	for i := range 30 {
		if err := a.Keep(fmt.Sprintf("vm_metadata.json.%d", i), nil); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(time.Duration(i-100) * time.Second)
		if err := os.Chtimes(a.processed(fmt.Sprintf("vm_metadata.json.%d", i)), at, at); err != nil {
			t.Fatal(err)
		}
	}
	count := func() int {
		files, _ := filepath.Glob(a.Dir + "/processed/*.gz")
		return len(files)
	}
	if err := a.Prune(time.Now()); err != nil || count() != 18 || !a.Has("vm_metadata.json.29") || a.Has("vm_metadata.json.0") {
		t.Errorf("%d files left, %v; want the 18 newest", count(), err)
	}
	if err := a.Prune(time.Now().Add(25 * time.Hour)); err != nil || count() != 0 {
		t.Errorf("%d files left a day later, %v", count(), err)
	}
}

func TestClientSaysWhatIsMissing(t *testing.T) {
	c := Dial(filepath.Join(t.TempDir(), "none"))
	if _, err := c.Apply(context.Background(), []File{{Name: "x"}}); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("without a daemon: %v", err)
	}
	path := filepath.Join(t.TempDir(), "killed")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 1))
			_ = conn.Close()
		}
	}()
	if _, err := Dial(path).Apply(context.Background(), []File{{Name: "x"}}); err == nil || !strings.Contains(err.Error(), "went away") {
		t.Errorf("with one that is killed: %v", err)
	}
}

func TestGuestsOverTheSocket(t *testing.T) {
	b := newBench(t)
	client := Dial(listen(t, b.Dialect))
	defer client.Close()
	same := func() {
		t.Helper()
		got, err := client.Guests(context.Background(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(b.Guests(), got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
			t.Errorf("guests (-known +told):\n%s", diff)
		}
	}
	same()
	b.take(isolated, leaseFile(ip0, "0a"))
	same()
	b.take(dataFile(ip0, "A"), leaseFile("10.1.1.51", "0b"), `vm_metadata.json {"vm_ip_address":"10.1.1.51","vm_metadata":[["metadata","tier","<a & \u00e9>"],["metadata","public-keys",null]]}`)
	same()
	if g, err := client.Guests(context.Background(), 0); err != nil || len(g.Guests) != 2 || *g.Guests[1].Rows[0][2] != "<a & é>" || g.Guests[1].Rows[1][2] != nil {
		t.Errorf("guests = %+v, %v", g, err)
	}
}
