package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

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

// TestFaultMemoryIsBounded sends what takes memory, from everybody who may send: the daemon takes a
// bounded amount and goes on.
func TestFaultMemoryIsBounded(t *testing.T) {
	fault(t)
	binary := buildWith(t, "vragent") // the race detector needs far more than any router has
	if !nstest.Enter(t) {
		return
	}
	need(t, "prlimit", "udhcpc")
	rng := seeded(t)
	r := newRouter(t)
	r.configure(t, "")
	r.edit(t, "api.sock}", "api.sock, listen: \"127.0.0.1:9443\"}")
	r.logLevel(t, "info")
	a, hostile := r.guest(t, "a", "va", macA), r.guest(t, "hostile", "vb", macB)
	r.Bridge(t, "eth0", "va", "vb")
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	hostile.AddAddr(t, "eth0", "10.1.1.35/24")
	p := r.boot(t, binary)
	r.put(t, "networks/guest-1.yaml", network+"pool: {from: 10.1.1.100, to: 10.1.1.250, probe: false}\n")
	r.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	r.put(t, "vms/b/vm.yaml", vm("b", "guest-1", macB, "10.1.1.35"))
	large := strings.Repeat("a", 1<<20)
	for i := range 60 {
		r.put(t, fmt.Sprintf("vms/large-%d/user-data", i), large)
		r.put(t, fmt.Sprintf("vms/large-%d/vm.yaml", i), fmt.Sprintf("nics: [{network: guest-1, ipv4: 10.1.1.%d}]\n", 40+i))
	}
	r.applied(t)
	lease(t, a, "10.1.1.34")
	fmt.Printf("HWM after 60 MiB of user data %d MB, data %d MB\n", memory(t, p, "VmHWM")>>20, memory(t, p, "VmData")>>20)

	// Clients of DHCP that never were.
	station := newStation(t, hostile)
	for i := range 30_000 {
		packet := make([]byte, 300)
		copy(packet, []byte{1, 1, 6, 0, byte(i), byte(i >> 8), 3, 4})
		copy(packet[28:], []byte{2, 0, byte(rng.IntN(256)), byte(rng.IntN(256)), byte(rng.IntN(256)), byte(rng.IntN(256))})
		copy(packet[236:], []byte{99, 130, 83, 99, 53, 1, 1, 255})
		if _, err := station.conn.WriteTo(packet, servers); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Printf("after DHCP: HWM %d MB, data %d MB\n", memory(t, p, "VmHWM")>>20, memory(t, p, "VmData")>>20)

	// Requests that never end, as many as are let in.
	var held []net.Conn
	hold := func(dial func() (net.Conn, error), n int, begin string) {
		t.Helper()
		var work sync.WaitGroup
		var mu sync.Mutex
		for range n {
			work.Go(func() {
				conn, err := dial()
				if err != nil {
					return // full
				}
				_, _ = io.Copy(conn, io.LimitReader(io.MultiReader(strings.NewReader(begin), endless{}), 2<<20))
				mu.Lock()
				held = append(held, conn)
				mu.Unlock()
			})
		}
		work.Wait()
	}
	hold(func() (net.Conn, error) {
		return hostile.Dial(context.Background(), &net.Dialer{Timeout: waitTime}, "tcp", "10.1.1.1:80")
	}, 200, "GET /latest/user-data HTTP/1.1\r\nHost: 10.1.1.1\r\nX: ")
	fmt.Printf("after HTTP: HWM %d MB, data %d MB\n", memory(t, p, "VmHWM")>>20, memory(t, p, "VmData")>>20)
	hold(func() (net.Conn, error) { return net.DialTimeout("tcp", "127.0.0.1:9443", waitTime) }, 200,
		"GET /client/api?command=login&x=")
	fmt.Printf("after API: HWM %d MB, data %d MB\n", memory(t, p, "VmHWM")>>20, memory(t, p, "VmData")>>20)
	_ = bytes.Clone
	_ = unix.RLIMIT_DATA
	for _, c := range held {
		c.Close()
	}
	lease(t, a, "10.1.1.34")
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
