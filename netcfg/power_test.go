package netcfg_test

import (
	"os"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vragent/netcfg"
	"vragent/netcfg/nstest"
)

// powers reads the powers on a thread of its own after prepare has changed the thread.
func powers(t *testing.T, prepare func() error) netcfg.Powers {
	t.Helper()
	type result struct {
		powers netcfg.Powers
		err    error
	}
	results := make(chan result)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		err := prepare()
		var p netcfg.Powers
		if err == nil {
			p, err = netcfg.ReadPowers()
		}
		results <- result{p, err}
	}()
	r := <-results
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.powers
}

// setCapabilities leaves the calling thread these effective capabilities.
func setCapabilities(capabilities ...uint) func() error {
	return func() error {
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&head, &data[0]); err != nil {
			return err
		}
		data[0].Effective, data[1].Effective = 0, 0
		for _, c := range capabilities {
			data[c/32].Effective |= 1 << (c % 32)
		}
		return unix.Capset(&head, &data[0])
	}
}

func TestPowersFollowCapabilities(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	tests := []struct {
		name    string
		prepare func() error
		want    netcfg.Powers
	}{
		{"all of a user namespace", func() error { return nil }, netcfg.Powers{NetAdmin: true, NetRaw: true, NetBindService: true}},
		{"none", setCapabilities(), netcfg.Powers{}},
		{"without NET_ADMIN", setCapabilities(unix.CAP_NET_RAW, unix.CAP_NET_BIND_SERVICE), netcfg.Powers{NetRaw: true, NetBindService: true}},
		// Leases ask for the first user namespace, and this one is not.
		{"LEASE", setCapabilities(unix.CAP_LEASE), netcfg.Powers{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, powers(t, test.prepare)); diff != "" {
				t.Errorf("powers (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPowersOfAnUnprivilegedPortRange(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	const setting = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
	if err := os.WriteFile(setting, []byte("67"), 0o644); err != nil {
		t.Fatal(err)
	}
	want := netcfg.Powers{NetBindService: true}
	if diff := cmp.Diff(want, powers(t, setCapabilities())); diff != "" {
		t.Errorf("powers (-want +got):\n%s", diff)
	}
}

// TestPowersNeedTheOwnerOfTheNetwork keeps the network namespace and enters a user namespace below its
// owner's: all capabilities there are none over the network.
func TestPowersNeedTheOwnerOfTheNetwork(t *testing.T) {
	if os.Getenv("NETCFG_POWERS") != "" {
		p, err := netcfg.ReadPowers()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(netcfg.Powers{}, p); diff != "" {
			t.Errorf("powers (-want +got):\n%s", diff)
		}
		return
	}
	if !nstest.Enter(t) {
		return
	}
	out, err := nstest.Here(t).Output(t, "unshare", "--user", "--map-root-user", "env", "NETCFG_POWERS=1",
		os.Args[0], "-test.run=^"+t.Name()+"$")
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
