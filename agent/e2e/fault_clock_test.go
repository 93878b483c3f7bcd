package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"vragent/netcfg/nstest"
)

// testClock is the machine's clock after somebody has set it, and after time has passed.
type testClock struct {
	set    atomic.Int64 // what the wall clock was set forward by, in seconds
	passed atomic.Int64 // for both clocks, in nanoseconds
}

// now returns the time as time.Now does once the wall clock was set: the monotonic reading that goes with
// it has not moved. There is no other way to make one than to reach into it; TestFaultClockSteps begins by
// checking that it is what it should be.
func (c *testClock) now() time.Time {
	t := time.Now().Add(time.Duration(c.passed.Load()))
	const nanosecondBits = 30 // of time.Time's first word: seconds, then nanoseconds
	parts := (*struct {
		wall uint64
		ext  int64
		loc  *time.Location
	})(unsafe.Pointer(&t))
	parts.wall = uint64(int64(parts.wall) + c.set.Load()<<nanosecondBits)
	return t
}

// TestFaultClockSteps sets the wall clock a day forward and then back, under a pool of one address. Its
// lease ends when its time has passed, and not before; everything else goes on.
func TestFaultClockSteps(t *testing.T) {
	fault(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "udhcpc")
	const day = 24 * 60 * 60
	clock := new(testClock)
	before := clock.now()
	clock.set.Store(day)
	if after := clock.now(); after.Sub(before) > time.Minute || after.Unix()-before.Unix() < day {
		t.Fatalf("the clock cannot be set here: %v, then %v", before, after)
	}
	clock.set.Store(0)

	r := newRouter(t)
	r.now = clock.now
	r.configure(t, "metadata: {guest_rate: 50}\n")
	a, strangers := r.guest(t, "a", "va", macA), r.guest(t, "strangers", "vb", macB)
	r.Bridge(t, "eth0", "va", "vb")
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	strangers.AddAddr(t, "eth0", "10.1.1.36/24")
	station := newStation(t, strangers)
	const first, second = "02:00:4c:70:00:01", "02:00:4c:70:00:02"
	address := netip.MustParseAddr("10.1.1.200")
	r.start(t)
	r.put(t, "networks/guest-1.yaml", network+"lease_time: 2h\npool: {from: 10.1.1.200, to: 10.1.1.200, probe: false}\n")
	r.put(t, "vms/a/user-data", "0")
	r.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	r.applied(t)
	lease(t, a, "10.1.1.34")
	client := asGuest(t, a, "10.1.1.34")

	gets := func(mac string) {
		t.Helper()
		if got, err := station.lease(mac, waitTime); err != nil || got != address {
			t.Errorf("%s gets %s, %v", mac, got, err)
		}
	}
	silent := func(mac string) {
		t.Helper()
		if got, err := station.lease(mac, 300*time.Millisecond); !errors.Is(err, errSilence) || got.IsValid() {
			t.Errorf("%s is offered %s, %v: another one has its lease", mac, got, err)
		}
	}
	// left is for how long a lease is said to last.
	left := func(mac string) time.Duration {
		t.Helper()
		leases, err := r.client.Leases(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range leases {
			if l.MAC == mac && l.State == "bound" && l.Expires != nil {
				return l.Expires.Sub(clock.now().Round(0))
			}
		}
		t.Errorf("%s has no lease: %+v", mac, leases)
		return 0
	}
	version := 0
	goesOn := func() {
		t.Helper()
		lease(t, a, "10.1.1.34")
		version++
		r.put(t, "vms/a/user-data", fmt.Sprint(version))
		until(t, client, "user-data", fmt.Sprint(version))
		if _, err := r.client.AddUser(t.Context(), fmt.Sprint("user-", version), "viewer"); err != nil {
			t.Error(err)
		}
		if err := push(r, "pushed", fmt.Sprint("pushed-", version)); err != nil {
			t.Error(err)
		}
		r.applied(t)
		for _, mac := range []string{first, macA} {
			if got := left(mac); got < time.Hour || got > 2*time.Hour {
				t.Errorf("the lease of %s is said to last %v; a part of its two hours is over", mac, got)
			}
		}
	}

	gets(first)
	silent(second)
	goesOn()
	for _, set := range []int64{day, -day} {
		seen := strings.Count(r.log.String(), "the clock was set")
		clock.set.Store(set)
		silent(second)
		nstest.Poll(t, waitTime, "the step to be noticed", func() bool { return strings.Count(r.log.String(), "the clock was set") > seen })
		goesOn()
		// A restart goes by the records, which have followed.
		r.stop()
		r.start(t)
		goesOn()
		silent(second)
		gets(first)
	}
	// Half of its time passes, and all of it; the wall clock is still a day behind.
	clock.passed.Add(int64(time.Hour))
	silent(second)
	clock.passed.Add(int64(time.Hour + time.Minute))
	gets(second)
	silent(first)
	r.stop()
}
