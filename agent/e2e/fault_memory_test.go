package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vragent/netcfg/nstest"
)

// memory returns a line of /proc/PID/status in bytes: VmHWM, VmData.
func memory(t *testing.T, p *nstest.Process, name string) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatalf("no %s in the status of a process", name)
	return 0
}

// hold opens n connections and sends a request on each that has no end, up to size bytes. They stay open
// until the test ends, where the daemon does not close them.
func hold(t *testing.T, n, size int, begin string, dial func() (net.Conn, error)) {
	t.Helper()
	var work sync.WaitGroup
	for range n {
		work.Go(func() {
			conn, err := dial()
			if err != nil {
				return // there are enough of them
			}
			t.Cleanup(func() { conn.Close() })
			_ = conn.SetWriteDeadline(time.Now().Add(waitTime))
			// What it does not want to hear it need not read.
			_, _ = io.Copy(conn, io.LimitReader(io.MultiReader(strings.NewReader(begin), endless{}), int64(size)))
		})
	}
	work.Wait()
}

// TestFaultMemoryReached sends what takes memory, from everybody who may send, to a daemon that may have
// no more than a small router has. It stays far below. Then its limit is set to what it has, and root
// makes it need more: it ends, and with the next start all that it acknowledged is there.
func TestFaultMemoryReached(t *testing.T) {
	fault(t)
	binary := buildWith(t, "vragent") // the race detector needs far more than any router has
	if !nstest.Enter(t) {
		return
	}
	need(t, "prlimit", "udhcpc")
	const router, bound = 256 << 20, 96 << 20
	rng := seeded(t)
	r := newRouter(t)
	r.configure(t, "")
	r.edit(t, "api.sock}", "api.sock, listen: \"127.0.0.1:9443\"}")
	r.logLevel(t, "info")
	a, hostile := r.guest(t, "a", "va", macA), r.guest(t, "hostile", "vb", macB)
	r.Bridge(t, "eth0", "va", "vb")
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	hostile.AddAddr(t, "eth0", "10.1.1.35/24")
	p := r.boot(t, binary, fmt.Sprint("--data=", router))
	r.put(t, "networks/guest-1.yaml", network+"pool: {from: 10.1.1.100, to: 10.1.1.250, probe: false}\n")
	r.put(t, "vms/a/user-data", "mine")
	r.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	r.put(t, "vms/b/vm.yaml", vm("b", "guest-1", macB, "10.1.1.35"))
	large := strings.Repeat("a", 1<<20)
	for i := range 60 {
		r.put(t, fmt.Sprintf("vms/large-%d/user-data", i), large)
		r.put(t, fmt.Sprintf("vms/large-%d/vm.yaml", i), fmt.Sprintf("nics: [{network: guest-1, ipv4: 10.1.1.%d}]\n", 40+i))
	}
	r.applied(t)
	station, ledger := newStation(t, hostile), newLedger()
	for i := range 20 {
		r.eventually(t, "a user", func() error { return ledger.user(t, r, false) })
		r.eventually(t, "a lease", func() error { return ledger.lease(station, i, time.Second) })
	}

	// Clients of DHCP that never were.
	for i := range 30_000 {
		packet := make([]byte, 300)
		copy(packet, []byte{1, 1, 6, 0, byte(i), byte(i >> 8), 3, 4})
		copy(packet[28:], []byte{2, 0, byte(rng.IntN(256)), byte(rng.IntN(256)), byte(rng.IntN(256)), byte(rng.IntN(256))})
		copy(packet[236:], []byte{99, 130, 83, 99, 53, 1, 1, 255})
		if _, err := station.conn.WriteTo(packet, servers); err != nil {
			t.Fatal(err)
		}
	}
	// Requests that never end, of a guest and of anybody who reaches the API.
	hold(t, 200, 2<<20, "GET /latest/user-data HTTP/1.1\r\nHost: 10.1.1.1\r\nX: ", func() (net.Conn, error) {
		return hostile.Dial(context.Background(), &net.Dialer{Timeout: waitTime}, "tcp", "10.1.1.1:80")
	})
	api := func() (net.Conn, error) { return net.DialTimeout("tcp", "127.0.0.1:9443", waitTime) }
	hold(t, 32, 4<<20, "GET /client/api?command=login&x=", api)
	hold(t, 32, 4<<20, "POST /client/api HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 1073741824\r\n\r\ncommand=", api)
	if got := memory(t, p, "VmHWM"); got > bound {
		t.Errorf("the daemon had %d MiB of memory, want %d or less", got>>20, bound>>20)
	} else {
		t.Logf("the daemon had %d MiB of memory", got>>20)
	}
	until(t, asGuest(t, hostile, "10.1.1.35"), "local-hostname", "b")
	lease(t, a, "10.1.1.34")
	ledger.check(t, r)

	// Root may send what it likes.
	limit(t, p, unix.RLIMIT_DATA, uint64(memory(t, p, "VmData")))
	hold(t, 300, 2<<20, "GET /client/api?command=login&x=", func() (net.Conn, error) { return net.DialTimeout("unix", r.dir+"/api.sock", waitTime) })
	select {
	case <-p.Exited():
	case <-time.After(waitTime):
		t.Fatalf("the daemon lives without memory:\n%s", p.Output())
	}
	if err := p.Wait(); err == nil || !strings.Contains(p.Output(), "memory") {
		t.Errorf("the daemon ended with %v, and does not say why:\n%s", err, p.Output())
	}
	p = r.boot(t, binary)
	ledger.check(t, r)
	lease(t, a, "10.1.1.34")
	if got, err := curl(t, a, "http://10.1.1.1/latest/user-data"); err != nil || got != "mine" {
		t.Errorf("user-data = %q, %v", got, err)
	}
	end(t, p)
}

// endless is a text without an end.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}
