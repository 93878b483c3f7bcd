package e2e

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vragent/netcfg/nstest"
)

// limit sets a limit of a running daemon. The zero limit is none.
func limit(t *testing.T, p *nstest.Process, resource int, n uint64) {
	t.Helper()
	if err := unix.Prlimit(p.Pid(), resource, &unix.Rlimit{Cur: n, Max: unix.RLIM_INFINITY}, nil); err != nil {
		// Only root of the machine may raise a hard limit; the soft one is what counts.
		if err := unix.Prlimit(p.Pid(), resource, &unix.Rlimit{Cur: n, Max: n}, nil); err != nil {
			t.Fatalf("limit: %v", err)
		}
	}
}

// TestFaultNoDescriptorsLeft: guests that hold connections open take every descriptor that the daemon may
// have. Who is connected and who asks by DHCP is served; the rest waits, and comes by itself.
func TestFaultNoDescriptorsLeft(t *testing.T) {
	binary := fault(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "prlimit", "udhcpc")
	r := newRouter(t)
	r.configure(t, "metadata: {guest_rate: 0, guest_connections: 0}\n")
	a := r.guest(t, "a", "eth0", macA)
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	p := r.boot(t, binary)
	r.put(t, "networks/guest-1.yaml", network)
	r.put(t, "networks/guest-2.yaml", "interface: eth1\ngateway: 10.1.2.1/24\n")
	r.put(t, "vms/a/user-data", "before")
	r.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	r.put(t, "vms/b/vm.yaml", vm("b", "guest-2", macB, "10.1.2.35"))
	r.applied(t, "vms/a")
	lease(t, a, "10.1.1.34")
	kept := asGuest(t, a, "10.1.1.34")
	until(t, kept, "user-data", "before")

	limit(t, p, unix.RLIMIT_NOFILE, uint64(descriptors(t, p)+8))
	var hogs []net.Conn
	for range 40 {
		// The kernel completes a connection whether or not anybody accepts it.
		conn, err := a.Dial(t.Context(), &net.Dialer{Timeout: waitTime}, "tcp", "10.1.1.1:80")
		if err != nil {
			t.Fatal(err)
		}
		hogs = append(hogs, conn)
		defer conn.Close()
	}
	p.WaitFor(t, `msg="connection not accepted"`, waitTime)
	r.put(t, "vms/a/user-data", "after")
	p.WaitFor(t, `msg="unit cannot be read now" unit=vms/a`, waitTime)
	if got, err := ask(kept, "user-data"); err != nil || got != "before" {
		t.Errorf("over a connection that was there: %q, %v", got, err)
	}
	lease(t, a, "10.1.1.34")
	b := r.guest(t, "b", "eth1", macB)
	r.AddAddr(t, "eth1", "10.1.2.1/24")
	p.WaitFor(t, `msg="guests of a device are not served" device=eth1`, waitTime)
	if line := lineOf(p.Output(), `device=eth1 reason=`); !strings.Contains(line, "too many open files") {
		t.Errorf("the reason is %q", line)
	}

	for _, conn := range hogs {
		conn.Close()
	}
	until(t, asGuest(t, a, "10.1.1.34"), "user-data", "after")
	r.applied(t)
	nstest.Poll(t, waitTime, "no fault to be left", func() bool { return r.faultsOf(t) == "" })
	lease(t, b, "10.1.2.35")
	end(t, p)
}

// TestFaultInotifyLimits: without watches, and without any inotify instance, changes are found by looking.
func TestFaultInotifyLimits(t *testing.T) {
	binary := fault(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "prlimit")
	// The limits of this user namespace, so that nobody else's change. See namespaces(7).
	set := func(name string, n int) {
		t.Helper()
		if err := os.WriteFile("/proc/sys/user/"+name, []byte(fmt.Sprint(n)), 0); err != nil {
			t.Skipf("the kernel lets nobody limit inotify here: %v", err)
		}
	}
	const n, watches = 30, 12
	r := newRouter(t)
	r.configure(t, "metadata: {guest_rate: 0}\n")
	g := r.guest(t, "g", "eth0", macA)
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	ip := func(i int) string { return fmt.Sprintf("10.1.1.%d", 10+i) }
	for _, i := range []int{0, n - 1} {
		g.AddAddr(t, "eth0", ip(i)+"/24")
	}
	write := func(version string) {
		t.Helper()
		for i := range n {
			r.put(t, fmt.Sprintf("vms/vm-%02d/user-data", i), version)
		}
	}
	scanned := func() int {
		t.Helper()
		status, err := r.client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return status.Watch.Unwatched
	}
	check := func(version string) {
		t.Helper()
		for _, i := range []int{0, n - 1} {
			until(t, asGuest(t, g, ip(i)), "user-data", version)
		}
		r.applied(t)
	}

	set("max_inotify_watches", watches)
	p := r.boot(t, binary)
	r.put(t, "networks/guest-1.yaml", network+"pin_neighbors: false\n")
	write("1")
	for i := range n {
		r.put(t, fmt.Sprintf("vms/vm-%02d/vm.yaml", i), fmt.Sprintf("nics: [{network: guest-1, ipv4: %s}]\n", ip(i)))
	}
	check("1")
	write("2")
	check("2")
	if got := scanned(); got == 0 || got < n-watches {
		t.Errorf("status tells of %d folders without a watch; %d watches are possible for %d folders", got, watches, n)
	}
	set("max_inotify_watches", 10*n)
	nstest.Poll(t, waitTime, "every folder to have a watch", func() bool { return scanned() == 0 })
	write("3")
	check("3")
	end(t, p)

	set("max_inotify_instances", 0)
	p = r.boot(t, binary)
	if line := lineOf(p.Output(), "no inotify instance"); line == "" {
		t.Error("nothing says that there is no inotify instance")
	}
	if status, err := r.client.Status(t.Context()); err != nil || !strings.Contains(fmt.Sprint(status.Faults, status.Watch), "inotify") {
		t.Errorf("status does not speak of inotify: %+v, %v", status.Watch, err)
	}
	write("4")
	check("4")
	r.remove(t, "vms/vm-00")
	nstest.Poll(t, waitTime, "a removed VM to be gone", func() bool {
		got, err := ask(asGuest(t, g, ip(0)), "user-data")
		return err == nil && got == ""
	})
	set("max_inotify_instances", 16)
	nstest.Poll(t, waitTime, "every folder to have a watch", func() bool { return scanned() == 0 })
	r.put(t, "vms/vm-29/user-data", "5")
	until(t, asGuest(t, g, ip(n-1)), "user-data", "5")
	end(t, p)
}
