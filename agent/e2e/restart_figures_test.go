package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"vragent/netcfg/nstest"
)

func TestFiguresOfRestarts(t *testing.T) {
	r, _, binary := figuresRouter(t)
	if r == nil {
		return
	}
	const restarts, vms = 20, 1000
	w := figures(t)
	g := nstest.NewHost(t, "load")
	nstest.Pair(t, r.Host, "eth1", g, "eth0")
	r.AddAddr(t, "eth1", "10.1.1.1/24")
	r.edit(t, "metadata: {guest_rate: 0}", "metadata: {guest_rate: 0, guest_connections: 0}")
	u := startUnit(t, r, binary)
	r.put(t, "networks/g.yaml", figuresNetwork)
	r.unpack(t, vms, 500)
	putLoadGuests(t, r, g, "eth1")
	l := startLoad(t, r, g, clientPatience)
	for range restarts {
		l.more(t)
		u.restart(t)
	}
	l.more(t)
	l.stop()
	u.end(t, syscall.SIGTERM)
	for _, row := range []struct {
		what, unit string
		is         func(what string) bool
	}{
		{"failed HTTP requests of guests", "requests", func(what string) bool {
			return strings.Contains(what, "GET") || strings.Contains(what, "PUT") || strings.Contains(what, "password")
		}},
		{"lost DHCP exchanges", "exchanges", func(what string) bool { return strings.HasPrefix(what, "DHCP") }},
		{"failed requests to the API", "requests", func(what string) bool {
			return strings.HasPrefix(what, "push") || strings.HasPrefix(what, "list") || strings.HasPrefix(what, "vragent")
		}},
	} {
		done, failed := 0, 0
		var longest time.Duration
		for what, n := range l.done {
			if !row.is(what) {
				continue
			}
			done += n
			failed += len(l.failures[what])
			if !strings.Contains(what, "waits") {
				longest = max(longest, l.longest[what])
			}
			for _, err := range l.failures[what] {
				t.Errorf("%s: %v", what, err)
			}
		}
		fmt.Fprintf(w, "%s during %d restarts under load, of %d %s; the longest took %d ms\t%d\t%d\t0\n",
			row.what, restarts, done, row.unit, longest.Milliseconds(), vms, failed)
	}
}
