package netcfg_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vragent/netcfg"
	"vragent/netcfg/nstest"
)

func TestKernelSeesLinksComeAndGo(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	k := open(t, netcfg.Options{})

	device(t, router, "eth0")
	s := await(t, k, "eth0 is up", func(s *netcfg.Snapshot) bool {
		l, _ := s.ByName("eth0")
		return l.Up
	})
	first, _ := s.ByName("eth0")
	if got, ok := s.ByMAC(router.MAC(t, "eth0")); !ok || got.Name != "eth0" || got.MTU != 1500 {
		t.Errorf("ByMAC() = %+v, %t", got, ok)
	}

	router.Down(t, "eth0")
	router.Rename(t, "eth0", "guest0")
	router.Up(t, "guest0")
	s = await(t, k, "eth0 is called guest0", func(s *netcfg.Snapshot) bool {
		l, _ := s.ByName("guest0")
		return l.Up
	})
	if _, ok := s.ByName("eth0"); ok {
		t.Error("eth0 is still there")
	}
	if got, _ := s.ByIndex(first.Index); got.Name != "guest0" {
		t.Errorf("link %d is %q, want guest0", first.Index, got.Name)
	}

	router.Delete(t, "guest0")
	device(t, router, "guest0")
	await(t, k, "guest0 was replaced", func(s *netcfg.Snapshot) bool {
		l, ok := s.ByName("guest0")
		return ok && l.Index != first.Index && l.Up
	})

	router.SetMAC(t, "guest0", "02:00:00:00:00:07")
	router.SetMTU(t, "guest0", 1400)
	await(t, k, "MAC and MTU have changed", func(s *netcfg.Snapshot) bool {
		l, ok := s.ByMAC(parseMAC(t, "02:00:00:00:00:07"))
		return ok && l.MTU == 1400
	})
}

func TestKernelSeesAddressesInTheKernelsOrder(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	device(t, router, "eth2")
	k := open(t, netcfg.Options{})

	router.Run(t, "ip", "addr", "add", "192.168.7.1/24", "dev", "eth2", "scope", "link")
	router.AddAddr(t, "eth2", "203.0.113.9/24", "198.51.100.9/24", "203.0.113.10/24")
	s := await(t, k, "the last address is there", has("eth2", "203.0.113.10"))
	if got, want := s.FirstGlobalIPv4("eth2"), netip.MustParseAddr("203.0.113.9"); got != want {
		t.Errorf("FirstGlobalIPv4() = %s, want %s", got, want)
	}
	var shown []string
	for line := range strings.Lines(router.Run(t, "ip", "-4", "-o", "addr", "show", "dev", "eth2")) {
		shown = append(shown, strings.Fields(line)[3])
	}
	var got []string
	link, _ := s.ByName("eth2")
	for _, a := range link.Addrs {
		got = append(got, a.Prefix.String())
	}
	if diff := cmp.Diff(shown, got); diff != "" {
		t.Errorf("order of addresses (-ip +snapshot):\n%s", diff)
	}

	router.DelAddr(t, "eth2", "203.0.113.9/24")
	await(t, k, "another address is the first", func(s *netcfg.Snapshot) bool {
		first := s.FirstGlobalIPv4("eth2")
		return first.IsValid() && first != netip.MustParseAddr("203.0.113.9")
	})
}

func TestKernelPublishesNothingForChangesThatDoNotShow(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	device(t, router, "eth0")
	k := open(t, netcfg.Options{})
	_, stale := k.Current()
	// Sets what is set already: the kernel announces it, and nothing is different.
	router.SetMTU(t, "eth0", 1500)
	router.Run(t, "ip", "link", "set", "eth0", "alias", "guests")
	router.Run(t, "ip", "-6", "addr", "add", "2001:db8::1/64", "dev", "eth0")
	// Events come in order: when this one shows, the others have been seen.
	router.SetMTU(t, "lo", 1600)
	s := await(t, k, "lo has changed", func(s *netcfg.Snapshot) bool {
		l, _ := s.ByName("lo")
		return l.MTU == 1600
	})
	<-stale
	if newest, _ := k.Current(); newest != s {
		t.Error("a change that does not show made a snapshot")
	}
}

func TestKernelSurvivesAStormOfAddressChanges(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	device(t, router, "eth0")
	device(t, router, "eth1")
	// A receive buffer that certainly overflows.
	k := open(t, netcfg.Options{})
	k.ShrinkReceiveBuffer(t)

	var batch strings.Builder
	for i := range 2500 {
		fmt.Fprintf(&batch, "addr add 10.9.%d.%d/32 dev eth0\n", i/250, i%250+1)
		if i%5 != 0 {
			fmt.Fprintf(&batch, "addr del 10.9.%d.%d/32 dev eth0\n", i/250, i%250+1)
		} else {
			fmt.Fprintf(&batch, "addr add 10.9.%d.%d/32 dev eth1\n", i/250, i%250+1)
		}
	}
	batch.WriteString("addr add 10.1.1.1/24 dev eth1\n")
	file := filepath.Join(t.TempDir(), "batch")
	if err := os.WriteFile(file, []byte(batch.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	router.Run(t, "ip", "-batch", file)
	await(t, k, "both devices have the 500 addresses that the storm left", func(s *netcfg.Snapshot) bool {
		return has("eth1", "10.1.1.1")(s) && stormy(s, "eth0") == 500 && stormy(s, "eth1") == 500
	})
}

// stormy counts the addresses on a device that the storm of the test above has left there.
func stormy(s *netcfg.Snapshot, device string) int {
	count := 0
	link, _ := s.ByName(device)
	for _, a := range link.Addrs {
		if netip.MustParsePrefix("10.9.0.0/16").Contains(a.Prefix.Addr()) {
			count++
		}
	}
	return count
}

func TestKernelApplyIsQuietWhenDone(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	device(t, router, "eth0")
	router.AddAddr(t, "eth0", "10.7.7.7/24")
	k := open(t, netcfg.Options{})
	wanted := []netcfg.Address{
		address("eth0", "10.1.1.1/24"), address("eth0", "169.254.169.254/32"),
		address("eth0", "10.1.1.1/24"), address("gone0", "10.2.2.1/24"),
	}
	apply(t, k, wanted...)
	s, stale := k.Current()
	link, _ := s.ByName("eth0")
	want := []netcfg.Addr{
		{Prefix: netip.MustParsePrefix("169.254.169.254/32"), Own: true}, // the kernel sorts by scope
		{Prefix: netip.MustParsePrefix("10.7.7.7/24"), Global: true},
		{Prefix: netip.MustParsePrefix("10.1.1.1/24"), Global: true, Own: true},
	}
	if diff := cmp.Diff(want, link.Addrs, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("addresses after Apply (-want +got):\n%s", diff)
	}
	if out := router.Run(t, "ip", "addr", "show", "eth0"); !strings.Contains(out, "10.1.1.1/24 brd 10.1.1.255 scope global") {
		t.Errorf("ip shows no broadcast address of the subnet:\n%s", out)
	}

	sent := k.Sent()
	apply(t, k, wanted...)
	if got := k.Sent() - sent; got != 0 {
		t.Errorf("the second Apply sent %d messages, want 0", got)
	}
	select {
	case <-stale:
		t.Error("the second Apply made a snapshot")
	default:
	}
}

func TestKernelApplyMovesAnAddressBetweenDevices(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	device(t, router, "eth0")
	device(t, router, "eth1")
	k := open(t, netcfg.Options{})
	apply(t, k, address("eth0", "10.1.1.1/24"))
	apply(t, k, address("eth1", "10.1.1.1/24"))
	s, _ := k.Current()
	if has("eth0", "10.1.1.1")(s) || !has("eth1", "10.1.1.1")(s) {
		t.Errorf("links = %+v, want the address on eth1 alone", s.Links())
	}
}

func TestKernelApplyFollowsADevice(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	k := open(t, netcfg.Options{})
	wanted := address("eth0", "10.1.1.1/24")
	apply(t, k, wanted)
	device(t, router, "eth0")
	await(t, k, "eth0 is there", func(s *netcfg.Snapshot) bool { _, ok := s.ByName("eth0"); return ok })
	apply(t, k, wanted)
	await(t, k, "the address is there", has("eth0", "10.1.1.1"))

	// Under another name the device has no business with the address any more.
	router.Down(t, "eth0")
	router.Rename(t, "eth0", "guest0")
	await(t, k, "eth0 is called guest0", has("guest0", "10.1.1.1"))
	apply(t, k, wanted)
	await(t, k, "the address is gone", lacks("guest0", "10.1.1.1"))
}

func TestKernelApplyPutsBackWhatAnotherProgramRemoved(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	device(t, router, "eth0")
	k := open(t, netcfg.Options{})
	apply(t, k, address("eth0", "10.1.1.1/24"))
	router.DelAddr(t, "eth0", "10.1.1.1/24")
	await(t, k, "the address is gone", lacks("eth0", "10.1.1.1"))
	apply(t, k, address("eth0", "10.1.1.1/24"))
	await(t, k, "the address is back", has("eth0", "10.1.1.1"))
}

func TestKernelApplyGoesOnPastFailures(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	device(t, router, "eth0")
	router.SetMTU(t, "lo", 67) // IPv4 needs 68: such a link takes no addresses
	k := open(t, netcfg.Options{})
	apply(t, k, address("eth0", "10.3.3.1/24"))
	err := k.Apply(t.Context(), plan(
		address("lo", "10.4.4.1/24"),
		netcfg.Address{Device: "eth0"},
		address("eth0", "10.1.1.1/24"),
	))
	if err == nil || !strings.Contains(err.Error(), "add address 10.4.4.1/24 on lo") || !strings.Contains(err.Error(), "no IPv4 address") {
		t.Errorf("Apply() = %v, want both faults", err)
	}
	s, _ := k.Current()
	if !has("eth0", "10.1.1.1")(s) || has("eth0", "10.3.3.1")(s) {
		t.Errorf("links = %+v, want the rest of the plan in force", s.Links())
	}
}

func TestKernelSaysWhatItMayNotDo(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	device(t, router, "eth0")
	k := open(t, netcfg.Options{})
	withoutPower(t, func() {
		err := k.Apply(t.Context(), plan(address("eth0", "10.1.1.1/24")))
		if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "add address 10.1.1.1/24 on eth0") {
			t.Errorf("Apply() = %v, want that it is not permitted", err)
		}
	})
	router.AddAddr(t, "eth0", "10.1.1.1/24")
	await(t, k, "somebody else has added the address", has("eth0", "10.1.1.1"))
}

// withoutPower calls fn on a thread without capabilities.
func withoutPower(t *testing.T, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread ends with the goroutine
		if err := setCapabilities()(); err != nil {
			t.Error(err)
			return
		}
		fn()
	}()
	<-done
}

// owners are the two ways in which a Kernel knows what is its own.
func owners(t *testing.T, test func(t *testing.T, opts netcfg.Options)) {
	t.Run("by mark", func(t *testing.T) { test(t, netcfg.Options{}) })
	t.Run("by record", func(t *testing.T) {
		test(t, netcfg.Unmarked(netcfg.Options{RecordFile: filepath.Join(t.TempDir(), "addresses")}))
	})
}

func TestKernelKeepsOwnershipOverARestart(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	owners(t, func(t *testing.T, opts netcfg.Options) {
		device(t, router, "eth0")
		defer router.Delete(t, "eth0")
		router.AddAddr(t, "eth0", "10.1.1.1/24", "10.4.4.4/24")
		first, stop := start(t, opts)
		defer stop()
		apply(t, first, address("eth0", "10.1.1.1/24"), address("eth0", "10.2.2.1/24"))
		want := []netcfg.Address{address("eth0", "10.2.2.1/24")}
		same := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
		if diff := cmp.Diff(want, first.Owned(), same); diff != "" {
			t.Errorf("owned (-want +got):\n%s", diff)
		}
		stop() // tells the kernel nothing, as kill -9 does

		second := open(t, opts)
		if diff := cmp.Diff(want, second.Owned(), same); diff != "" {
			t.Errorf("owned after a restart (-want +got):\n%s", diff)
		}
		apply(t, second)
		s, _ := second.Current()
		if has("eth0", "10.2.2.1")(s) || !has("eth0", "10.1.1.1")(s) || !has("eth0", "10.4.4.4")(s) {
			t.Errorf("links = %+v, want the two foreign addresses", s.Links())
		}
	})
}

func TestKernelDisownsWhatSomebodyElseAddsAgain(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	owners(t, func(t *testing.T, opts netcfg.Options) {
		device(t, router, "eth0")
		defer router.Delete(t, "eth0")
		k, stop := start(t, opts)
		defer stop()
		apply(t, k, address("eth0", "10.1.1.1/24"))
		router.DelAddr(t, "eth0", "10.1.1.1/24")
		await(t, k, "the address is gone", lacks("eth0", "10.1.1.1"))
		router.AddAddr(t, "eth0", "10.1.1.1/24")
		await(t, k, "the address is back", has("eth0", "10.1.1.1"))
		apply(t, k)
		if s, _ := k.Current(); !has("eth0", "10.1.1.1")(s) {
			t.Error("a foreign address was removed")
		}
	})
}

func TestKernelRemovesNoForeignAddressOfTheSameSubnet(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	const setting = "/proc/sys/net/ipv4/conf/eth0/promote_secondaries"
	for _, promote := range []string{"0\n", "1\n"} {
		t.Run("promote_secondaries="+promote[:1], func(t *testing.T) {
			device(t, router, "eth0")
			defer router.Delete(t, "eth0")
			if err := os.WriteFile(setting, []byte(promote), 0o644); err != nil {
				t.Fatal(err)
			}
			k, stop := start(t, netcfg.Options{})
			defer stop()
			apply(t, k, address("eth0", "10.1.1.1/24"))
			router.AddAddr(t, "eth0", "10.1.1.5/24") // secondary to ours
			apply(t, k, address("eth0", "10.1.1.2/24"))
			s := await(t, k, "the address was exchanged", lacks("eth0", "10.1.1.1"))
			if !has("eth0", "10.1.1.5")(s) || !has("eth0", "10.1.1.2")(s) {
				t.Errorf("links = %+v, want 10.1.1.5 and 10.1.1.2 to stay", s.Links())
			}
			if got, err := os.ReadFile(setting); err != nil || string(got) != promote {
				t.Errorf("promote_secondaries = %q, %v, want %q as before", got, err, promote)
			}
		})
	}
}

func TestKernelAddsNothingItCannotRecord(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	device(t, router, "eth0")
	dir := t.TempDir()
	k := open(t, netcfg.Unmarked(netcfg.Options{RecordFile: filepath.Join(dir, "sub", "addresses")}))
	if err := k.Apply(t.Context(), plan(address("eth0", "10.1.1.1/24"))); err == nil {
		t.Error("Apply() = nil, want the fault of the record")
	}
	if s, _ := k.Current(); has("eth0", "10.1.1.1")(s) {
		t.Error("the address was added")
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	apply(t, k, address("eth0", "10.1.1.1/24"))
	if got := k.Owned(); !slices.Equal(got, []netcfg.Address{address("eth0", "10.1.1.1/24")}) {
		t.Errorf("Owned() = %v", got)
	}
}

func TestKernelWithABrokenRecordOwnsNothing(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	device(t, router, "eth0")
	tests := []struct {
		name string
		harm func(good string) string
		said bool
	}{
		{"cut off", func(good string) string { return good[:len(good)-5] }, true},
		{"of another boot", func(good string) string { return strings.Replace(good, `"boot":"`, `"boot":"0`, 1) }, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "addresses")
			var log strings.Builder
			opts := netcfg.Unmarked(netcfg.Options{RecordFile: file, Log: slog.New(slog.NewTextHandler(&log, nil))})
			first, stop := start(t, opts)
			defer stop()
			apply(t, first, address("eth0", "10.1.1.1/24"))
			stop()
			defer router.DelAddr(t, "eth0", "10.1.1.1/24")
			good, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(test.harm(string(good))), 0o600); err != nil {
				t.Fatal(err)
			}

			second, stop := start(t, opts)
			defer stop()
			apply(t, second)
			stop()
			if s, _ := second.Current(); !has("eth0", "10.1.1.1")(s) {
				t.Error("an address that nobody owns was removed")
			}
			if said := strings.Contains(log.String(), file); said != test.said {
				t.Errorf("log = %s", &log)
			}
		})
	}
}
