package dhcp

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vragent/netcfg/nstest"
)

// clientProgram is a DHCP client as distributions ship it.
type clientProgram struct {
	name string
	// start runs the client in the foreground on eth0; stop ends it, with or without a RELEASE.
	start func(t *testing.T, guest *nstest.Host) *nstest.Process
	stop  func(t *testing.T, guest *nstest.Host, client *nstest.Process, release bool)
	// reboots says that the client asks for its old address when it is started again.
	reboots bool
	// bound is what the client writes once it has kept its lease for the next start.
	bound string
	// releases says that the client can be made to send a RELEASE.
	releases bool
	// declines says that start makes the client look whether its address is in use.
	declines bool
}

func end(t *testing.T, client *nstest.Process, sig syscall.Signal) {
	t.Helper()
	if err := client.Signal(sig); err != nil {
		t.Errorf("signal: %v", err)
	}
	select {
	case <-client.Exited():
	case <-time.After(10 * time.Second):
		t.Errorf("client did not end:\n%s", client.Output())
	}
}

var clientPrograms = []clientProgram{
	{
		name: "dhclient", reboots: true, bound: "bound to", releases: true,
		start: func(t *testing.T, guest *nstest.Host) *nstest.Process {
			return guest.Start(t, "dhclient", "-d", "-v", "-pf", "/run/dhclient.pid", "-lf", "/run/dhclient.leases", "eth0")
		},
		stop: func(t *testing.T, guest *nstest.Host, client *nstest.Process, release bool) {
			if release {
				guest.Run(t, "dhclient", "-r", "-v", "-pf", "/run/dhclient.pid", "-lf", "/run/dhclient.leases", "eth0")
				<-client.Exited()
				return
			}
			end(t, client, syscall.SIGKILL)
		},
	},
	{
		name: "udhcpc", releases: true, declines: true,
		start: func(t *testing.T, guest *nstest.Host) *nstest.Process {
			script := filepath.Join("/run", "udhcpc.script")
			guest.WriteFile(t, script, `#!/bin/sh
case "$1" in
deconfig) ip -4 addr flush dev "$interface"; ip link set "$interface" up ;;
bound|renew) ip -4 addr replace "$ip/$mask" dev "$interface"; [ -n "$router" ] && ip route replace default via "$router" ;;
esac
exit 0
`)
			guest.Run(t, "chmod", "+x", script)
			return guest.Start(t, "udhcpc", "-f", "-i", "eth0", "-s", script, "-a", "-t", "10", "-T", "1", "-A", "1", "-O", "121", "-O", "search")
		},
		stop: func(t *testing.T, guest *nstest.Host, client *nstest.Process, release bool) {
			if release {
				if err := client.Signal(syscall.SIGUSR2); err != nil {
					t.Error(err)
				}
				client.WaitFor(t, "entering released state", 10*time.Second)
			}
			end(t, client, syscall.SIGKILL)
		},
	},
	{
		name: "dhcpcd", reboots: true, releases: true, declines: true,
		start: func(t *testing.T, guest *nstest.Host) *nstest.Process {
			return guest.Start(t, "dhcpcd", "-B", "-4", "-d", "--nogateway", "--nohook", "resolv.conf", "eth0")
		},
		stop: func(t *testing.T, guest *nstest.Host, client *nstest.Process, release bool) {
			if release {
				guest.Run(t, "dhcpcd", "-4", "-k", "eth0")
				<-client.Exited()
				return
			}
			end(t, client, syscall.SIGKILL)
		},
	},
	{
		name: "systemd-networkd", releases: true,
		start: func(t *testing.T, guest *nstest.Host) *nstest.Process {
			guest.WriteFile(t, "/etc/systemd/network/10-eth0.network",
				"[Match]\nName=eth0\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n[DHCPv4]\nClientIdentifier=mac\nSendRelease=yes\n")
			// Its user need not be mapped in the test's user namespace.
			guest.Run(t, "sed", "-i", "s/^systemd-network:x:[0-9]*:[0-9]*:/systemd-network:x:0:0:/", "/etc/passwd")
			// With /sys read-only it takes itself for in a container, where no udev runs.
			guest.Run(t, "mount", "-o", "remount,ro,bind", "/sys")
			guest.Run(t, "mkdir", "-p", "/run/systemd/netif")
			return guest.Start(t, "env", "SYSTEMD_LOG_LEVEL=debug", "SYSTEMD_LOG_TARGET=console", "/usr/lib/systemd/systemd-networkd")
		},
		stop: func(t *testing.T, guest *nstest.Host, client *nstest.Process, release bool) {
			if release {
				end(t, client, syscall.SIGTERM)
				return
			}
			end(t, client, syscall.SIGKILL)
		},
	},
	{
		name: "NetworkManager",
		start: func(t *testing.T, guest *nstest.Host) *nstest.Process {
			guest.WriteFile(t, "/run/bus.conf", `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`)
			guest.Run(t, "mkdir", "-p", "/run/dbus", "/run/NetworkManager")
			if _, err := os.Stat("/run/dbus/system_bus_socket"); err != nil {
				bus := guest.Start(t, "dbus-daemon", "--config-file=/run/bus.conf", "--nofork", "--nopidfile", "--print-address")
				bus.WaitFor(t, "unix:path", 10*time.Second)
			}
			guest.WriteFile(t, "/etc/NetworkManager/NetworkManager.conf", "[main]\nplugins=keyfile\ndhcp=internal\ndns=none\n[keyfile]\nunmanaged-devices=none\n[device]\nmatch-device=*\nmanaged=1\n")
			guest.WriteFile(t, "/etc/NetworkManager/system-connections/eth0.nmconnection",
				"[connection]\nid=eth0\nuuid=7a1ee3a4-6b1c-4a36-9c8d-2f4f7f6f2f01\ntype=ethernet\ninterface-name=eth0\n[ethernet]\n[ipv4]\nmethod=auto\n[ipv6]\nmethod=disabled\n")
			guest.Run(t, "chmod", "600", "/etc/NetworkManager/system-connections/eth0.nmconnection")
			guest.Run(t, "mount", "-o", "remount,ro,bind", "/sys")
			return guest.Start(t, "NetworkManager", "--no-daemon", "--log-level=DEBUG")
		},
		stop: func(t *testing.T, guest *nstest.Host, client *nstest.Process, release bool) {
			end(t, client, syscall.SIGKILL)
		},
	},
}

func waitAddress(t *testing.T, guest *nstest.Host, ip string) {
	t.Helper()
	nstest.Poll(t, 60*time.Second, "address "+ip, func() bool {
		out, err := guest.Output(t, "ip", "-4", "addr", "show", "eth0")
		return err == nil && strings.Contains(out, "inet "+ip+"/24")
	})
}

// waitState waits for a REQUEST in the given state with the given answer, of those after since.
func (l *lab) waitState(mac MAC, state, answer string, since time.Time) {
	l.t.Helper()
	nstest.Poll(l.t, 90*time.Second, "REQUEST in "+state+" answered by "+answer, func() bool {
		for _, e := range l.server.Last(mac) {
			if e.Time.After(since) && e.State == state && e.Answer == answer {
				return true
			}
		}
		return false
	})
}

// TestRealClientsThroughALease takes each client through bind, reboot, renewal, a reservation that moves
// and a release.
func TestRealClientsThroughALease(t *testing.T) {
	t.Parallel()
	for _, program := range clientPrograms {
		t.Run(program.name, func(t *testing.T) {
			t.Parallel()
			if !nstest.Enter(t) {
				return
			}
			short := func(n *Network) { n.LeaseTime = 8 * time.Second }
			l, guest := newLab(t, ServerOptions{}, short)
			l.setWeb("10.1.1.34")
			if program.reboots { // with a lease that has not run out by then
				l.table.SetNetwork(guestNetwork())
			}
			client := program.start(t, guest)
			waitAddress(t, guest, "10.1.1.34")
			again := time.Now()
			if program.reboots {
				if program.bound != "" {
					client.WaitFor(t, program.bound, 30*time.Second)
				}
				l.table.SetNetwork(guestNetwork(short))
				program.stop(t, guest, client, false)
				client = program.start(t, guest)
				l.waitState(web, "init-reboot", "ACK", again)
			}
			l.waitState(web, "renewing", "ACK", again)

			moved := time.Now()
			l.setWeb("10.1.1.55")
			l.waitAnswer(web, "REQUEST", "NAK")
			l.waitState(web, "selecting", "ACK", moved)
			waitAddress(t, guest, "10.1.1.55")
			if program.releases {
				program.stop(t, guest, client, true)
				l.waitAnswer(web, "RELEASE", "")
			}
		})
	}
}

// TestRealClientsRebind keeps renewals from the server, so that the clients broadcast when T2 has come.
func TestRealClientsRebind(t *testing.T) {
	t.Parallel()
	for _, program := range clientPrograms {
		t.Run(program.name, func(t *testing.T) {
			t.Parallel()
			if !nstest.Enter(t) {
				return
			}
			l, guest := newLab(t, ServerOptions{}, func(n *Network) { n.LeaseTime = 16 * time.Second })
			l.setWeb("10.1.1.34")
			// dhclient repeats itself too seldom to be heard between T2 and the end of a short lease.
			guest.WriteFile(t, "/etc/dhcp/dhclient.conf", "supersede dhcp-lease-time 60;\n")
			program.start(t, guest)
			waitAddress(t, guest, "10.1.1.34")
			// Frames to an address that no card has: broadcasts still arrive.
			guest.Run(t, "ip", "neigh", "replace", "10.1.1.1", "lladdr", "02:00:00:00:00:ff", "dev", "eth0", "nud", "permanent")
			l.waitState(web, "rebinding", "ACK", time.Time{})
		})
	}
}

// TestRealClientsDecline has somebody else on the link use the client's address: the client declines, is
// left in silence for a while, and has its address when the other is gone.
func TestRealClientsDecline(t *testing.T) {
	t.Parallel()
	for _, program := range clientPrograms {
		if !program.declines {
			continue
		}
		t.Run(program.name, func(t *testing.T) {
			t.Parallel()
			if !nstest.Enter(t) {
				return
			}
			l := &lab{t: t, router: nstest.Here(t), table: NewTable()}
			guest, squatter := nstest.NewHost(t, "guest"), nstest.NewHost(t, "squatter")
			nstest.Pair(t, l.router, "eth0", guest, "eth0")
			nstest.Pair(t, l.router, "eth1", squatter, "eth0")
			l.router.Bridge(t, "br0", "eth0", "eth1")
			guest.SetMAC(t, "eth0", web.String())
			l.router.AddAddr(t, "br0", "10.1.1.1/24")
			squatter.AddAddr(t, "eth0", "10.1.1.34/24")
			l.table.SetNetwork(guestNetwork())
			l.start(ServerOptions{}, l.device("br0", "guest-1"))
			l.setWeb("10.1.1.34")
			program.start(t, guest)
			declined := l.waitAnswer(web, "DECLINE", "")
			squatter.DelAddr(t, "eth0", "10.1.1.34/24")
			l.waitState(web, "selecting", "ACK", declined.Time)
			waitAddress(t, guest, "10.1.1.34")
		})
	}
}
