package dhcp

import (
	"testing"
	"time"
	"unsafe"
)

// afterSetting returns a moment as time.Now gives it once the wall clock was set forward by so much: the
// monotonic reading has not moved. Nothing of package time makes one, so this reaches into it.
func afterSetting(t *testing.T, at time.Time, forward time.Duration) time.Time {
	t.Helper()
	set := at
	// The seconds of the first word lie above 30 bits of nanoseconds.
	*(*uint64)(unsafe.Pointer(&set)) += uint64(int64(forward/time.Second) << 30)
	if set.Sub(at) != 0 || set.Round(0).Sub(at.Round(0)) != forward {
		t.Fatalf("%v set forward by %v is %v", at, forward, set)
	}
	return set
}

func TestClockThatIsSetIsNoticedOnce(t *testing.T) {
	began := time.Now()
	c := &clock{began}
	later := began.Add(72 * time.Hour)
	for _, test := range []struct {
		set  time.Duration
		want bool
	}{
		{0, false}, {10 * time.Second, false}, {24 * time.Hour, true}, {24 * time.Hour, false},
		{-24 * time.Hour, true}, {-24*time.Hour + 10*time.Second, false}, {0, true},
	} {
		if got := c.stepped(afterSetting(t, later, test.set)); got != test.want {
			t.Errorf("set to %v: stepped() = %v, want %v", test.set, got, test.want)
		}
	}
}

func TestRecordsFollowAClockThatIsSet(t *testing.T) {
	began := time.Now()
	for _, forward := range []time.Duration{24 * time.Hour, -24 * time.Hour} {
		table := newTestTable(everything())
		p := newPool(table.ensureScope("guest-1"), newJournal())
		bound := p.slotAt(addrNumber(addr("10.1.1.200")))
		bound.mac = web
		p.set(bound, slotBound, began.Add(2*time.Hour))
		forever := p.slotAt(addrNumber(addr("10.1.1.201")))
		p.set(forever, slotBound, time.Time{})
		underWay := p.slotAt(addrNumber(addr("10.1.1.202")))
		p.set(underWay, slotBound, began.Add(2*time.Hour))
		underWay.undo = new(slotUndo)

		now := afterSetting(t, began.Add(time.Hour), forward)
		p.restate(now)
		entries := p.journal.all()
		if len(entries) != 1 || entries[0].lease.IP != addr("10.1.1.200") || entries[0].lease.MAC != web || entries[0].lease.State != LeaseBound {
			t.Fatalf("set by %v: %d records, want that of 10.1.1.200", forward, len(entries))
		}
		if got, want := entries[0].lease.Expiry.Round(0), began.Add(2*time.Hour+forward).Round(0); !got.Equal(want) {
			t.Errorf("set by %v: the record ends at %v, want %v", forward, got, want)
		}
		if left := bound.end.Sub(now); left != time.Hour {
			t.Errorf("set by %v: the lease has %v left, want an hour", forward, left)
		}
	}
}
