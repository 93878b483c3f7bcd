// Package nstest runs a test in namespaces of its own, so that tests of network protocols work on
// real links with real clients, need no root and leave the machine as they found it.
//
// A test starts with
//
//	func TestLease(t *testing.T) {
//		if !nstest.Enter(t) {
//			return
//		}
//		router := nstest.Here(t)
//		guest := nstest.NewHost(t, "guest")
//		nstest.Pair(t, router, "eth0", guest, "eth0")
//		router.AddAddr(t, "eth0", "10.1.1.1/24")
//		// ... start the server in this process, then:
//		guest.Run(t, "dhclient", "-1", "-v", "eth0")
//	}
//
// and then looks like this:
//
//	go test ─── the machine's own namespaces
//	  │ Enter: the same binary again, with -test.run=^TestLease$
//	  ▼
//	user, pid, mount, network, uts namespaces of the test: Here
//	┌───────────────────────────────────────────────────────────────┐
//	│ lo up; fresh /run; /etc a private copy; /sys of this network  │
//	│ the test, and the servers it starts in its own process        │
//	│                          eth0                                 │
//	└───────────────────────────┬───────────────────────────────────┘
//	                            │ Pair (veth)
//	┌───────────────────────────┴───────────────────────────────────┐
//	│                          eth0                                 │
//	│ mount, network, uts namespaces of a guest: NewHost            │
//	│ lo up; /run, /etc, /var/lib/dhcp ... its own                  │
//	│ Run, Start, Command: programs. Do: code of the test           │
//	└───────────────────────────────────────────────────────────────┘
//
// Everything ends with the test: when its process ends, for whatever reason, the kernel kills all
// that was started in its pid namespace and takes the links down with the network namespaces.
//
// The package needs the programs nsenter (util-linux) and whatever the test itself runs. It is for
// tests, benchmarks and demonstrations only.
package nstest
