package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"vragent/netcfg/nstest"
)

// A client is a DHCP client as distributions ship it. It runs in the foreground on a guest's eth0.
type client struct {
	name  string
	start func(t *testing.T, g *nstest.Host) *nstest.Process
	// renew is the signal that makes it renew its lease at once, where it would wait for long.
	renew syscall.Signal
	// lease returns what the client itself tells of its lease, and want what must be in there when it
	// is bound to 10.1.1.34.
	lease func(t *testing.T, g *nstest.Host) string
	want  []string
}

// leaseNote is where udhcpc's script and others write what came with a lease.
const leaseNote = "/run/lease"

var clients = []client{
	{
		name: "dhclient",
		start: func(t *testing.T, g *nstest.Host) *nstest.Process {
			return g.Start(t, "dhclient", "-d", "-v", "-pf", "/run/dhclient.pid", "-lf", leaseNote, "eth0")
		},
		lease: func(t *testing.T, g *nstest.Host) string { return tells(t, g, "cat", leaseNote) },
		want: []string{
			"fixed-address 10.1.1.34;", "dhcp-server-identifier 10.1.1.1;", "routers 10.1.1.1;", "domain-name-servers 10.1.1.53,10.1.1.54;",
			`domain-name "cs1.internal";`, `host-name "web-1";`, "interface-mtu 1450;", "ntp-servers 10.1.1.9;",
		},
	},
	{
		name:  "udhcpc",
		start: func(t *testing.T, g *nstest.Host) *nstest.Process { return udhcpc(t, g, "eth0", "-f") },
		renew: syscall.SIGUSR1,
		lease: func(t *testing.T, g *nstest.Host) string { return tells(t, g, "cat", leaseNote+".eth0") },
		want: []string{
			"ip=10.1.1.34\n", "serverid=10.1.1.1\n", "router=10.1.1.1\n", "dns=10.1.1.53 10.1.1.54\n", "domain=cs1.internal\n",
			"hostname=web-1\n", "mtu=1450\n", "ntpsrv=10.1.1.9\n", "search=cs1.internal example.net\n",
		},
	},
	{
		name: "dhcpcd",
		start: func(t *testing.T, g *nstest.Host) *nstest.Process {
			g.WriteFile(t, "/etc/dhcpcd.conf", "option interface_mtu, ntp_servers, host_name, domain_name_servers, domain_name, domain_search, classless_static_routes\n")
			return g.Start(t, "dhcpcd", "-B", "-4", "--noarp", "--nohook", "resolv.conf", "--nohook", "hostname", "eth0")
		},
		lease: func(t *testing.T, g *nstest.Host) string { return tells(t, g, "dhcpcd", "-4", "-U", "eth0") },
		want: []string{
			"ip_address=10.1.1.34\n", "dhcp_server_identifier=10.1.1.1\n", "routers=10.1.1.1\n", "domain_name_servers=10.1.1.53 10.1.1.54\n",
			"domain_name=cs1.internal\n", "host_name=web-1\n", "interface_mtu=1450\n", "ntp_servers=10.1.1.9\n", "domain_search=cs1.internal example.net\n",
		},
	},
	{
		name: "systemd-networkd",
		start: func(t *testing.T, g *nstest.Host) *nstest.Process {
			g.WriteFile(t, "/etc/systemd/network/10-eth0.network",
				"[Match]\nName=eth0\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n")
			// Its user need not be mapped in the test's user namespace.
			g.Run(t, "sed", "-i", "s/^systemd-network:x:[0-9]*:[0-9]*:/systemd-network:x:0:0:/", "/etc/passwd")
			// With /sys read-only it takes itself for in a container, where no udev runs.
			g.Run(t, "mount", "-o", "remount,ro,bind", "/sys")
			g.Run(t, "mkdir", "-p", "/run/systemd/netif")
			return g.Start(t, "env", "SYSTEMD_LOG_TARGET=console", "/usr/lib/systemd/systemd-networkd")
		},
		lease: func(t *testing.T, g *nstest.Host) string {
			return tells(t, g, "sh", "-c", "cat /run/systemd/netif/leases/*")
		},
		want: []string{
			"ADDRESS=10.1.1.34\n", "SERVER_ADDRESS=10.1.1.1\n", "ROUTER=10.1.1.1\n", "DNS=10.1.1.53 10.1.1.54\n", "DOMAINNAME=cs1.internal\n",
			"HOSTNAME=web-1\n", "MTU=1450\n", "NTP=10.1.1.9\n", "DOMAIN_SEARCH_LIST=cs1.internal example.net\n",
		},
	},
	{
		name: "NetworkManager",
		start: func(t *testing.T, g *nstest.Host) *nstest.Process {
			g.WriteFile(t, "/run/bus.conf", `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`)
			g.Run(t, "mkdir", "-p", "/run/dbus", "/run/NetworkManager")
			g.Start(t, "dbus-daemon", "--config-file=/run/bus.conf", "--nofork", "--nopidfile", "--print-address").WaitFor(t, "unix:path", waitTime)
			g.WriteFile(t, "/etc/NetworkManager/NetworkManager.conf",
				"[main]\nplugins=keyfile\ndhcp=internal\ndns=none\n[keyfile]\nunmanaged-devices=none\n[device]\nmatch-device=*\nmanaged=1\n")
			const connection = "/etc/NetworkManager/system-connections/eth0.nmconnection"
			g.WriteFile(t, connection,
				"[connection]\nid=eth0\nuuid=7a1ee3a4-6b1c-4a36-9c8d-2f4f7f6f2f01\ntype=ethernet\ninterface-name=eth0\n[ethernet]\n[ipv4]\nmethod=auto\n[ipv6]\nmethod=disabled\n")
			g.Run(t, "chmod", "600", connection)
			g.Run(t, "mount", "-o", "remount,ro,bind", "/sys")
			return g.Start(t, "NetworkManager", "--no-daemon")
		},
		lease: func(t *testing.T, g *nstest.Host) string {
			return tells(t, g, "nmcli", "-f", "DHCP4", "device", "show", "eth0")
		},
		want: []string{
			"ip_address = 10.1.1.34\n", "dhcp_server_identifier = 10.1.1.1\n", "routers = 10.1.1.1\n", "domain_name_servers = 10.1.1.53 10.1.1.54\n",
			"domain_name = cs1.internal\n", "host_name = web-1\n", "interface_mtu = 1450\n", "ntp_servers = 10.1.1.9\n", "domain_search = cs1.internal example.net\n",
		},
	},
}

// udhcpc starts busybox's client on a device. Its script puts the address on it, and all that came with
// the lease into a file, one variable a line.
func udhcpc(t *testing.T, g *nstest.Host, device string, args ...string) *nstest.Process {
	t.Helper()
	const script = "/run/udhcpc.sh"
	g.WriteFile(t, script, `#!/bin/sh
case "$1" in
deconfig) ip -4 addr flush dev "$interface" ;;
bound|renew)
	env >`+leaseNote+`.$interface
	ip -4 addr replace "$ip/$mask" dev "$interface"
	[ -z "$router" ] || ip route replace default via "$router"
esac
exit 0
`)
	g.Run(t, "chmod", "755", script)
	return g.Start(t, "udhcpc", append(args, "-i", device, "-s", script, "-t", "20", "-T", "1", "-O", "search", "-O", "mtu", "-O", "ntpsrv", "-O", "121")...)
}

// tells returns what a program of a guest says. Before the guest has its lease the program may fail.
func tells(t *testing.T, g *nstest.Host, program string, args ...string) string {
	t.Helper()
	out, _ := g.Output(t, program, args...)
	return out
}

// has waits until a guest's device has this address and no other.
func has(t *testing.T, g *nstest.Host, device, ip string) {
	t.Helper()
	nstest.Poll(t, waitTime, g.Name()+" to have "+ip, func() bool {
		out, err := g.Output(t, "ip", "-4", "-o", "addr", "show", "dev", device)
		return err == nil && strings.Count(out, "inet ") == 1 && strings.Contains(out, "inet "+ip+"/24 ")
	})
}

func lacks(text string, want []string) (missing []string) {
	for _, w := range want {
		if !strings.Contains(text, w) {
			missing = append(missing, w)
		}
	}
	return missing
}

func TestClientsGetWhatTheirFilesSay(t *testing.T) {
	for _, c := range clients {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if !nstest.Enter(t) {
				return
			}
			r := newRouter(t)
			g := r.guest(t, "guest", "eth0", macA)
			r.AddAddr(t, "eth0", "10.1.1.1/24")
			passing := listen(t, "eth0")
			r.start(t)
			r.put(t, "networks/guest-1.yaml", network+
				"dns: [10.1.1.53, 10.1.1.54]\ndomain: cs1.internal\nsearch: [cs1.internal, example.net]\nntp: [10.1.1.9]\nmtu: 1450\nlease_time: 8s\n")
			r.put(t, "vms/web/vm.yaml", vm("web-1", "guest-1", macA, "10.1.1.34"))
			r.applied(t)

			running := c.start(t, g)
			has(t, g, "eth0", "10.1.1.34")
			var told string
			nstest.Poll(t, waitTime, c.name+" to tell of its lease", func() bool {
				told = c.lease(t, g)
				return strings.Contains(told, "10.1.1.34")
			})
			if missing := lacks(told, c.want); missing != nil {
				t.Errorf("the lease lacks %q:\n%s", missing, told)
			}
			nstest.Poll(t, waitTime, "default route", func() bool {
				out, err := g.Output(t, "ip", "-4", "route", "show", "default")
				return err == nil && strings.HasPrefix(out, "default via 10.1.1.1 dev eth0")
			})

			// A new file gives the guest another address: it is told at its next renewal.
			n := passing.len()
			r.put(t, "vms/web/vm.yaml", vm("web-1", "guest-1", macA, "10.1.1.55"))
			r.applied(t)
			if c.renew != 0 {
				if err := running.Signal(c.renew); err != nil {
					t.Fatal(err)
				}
			}
			passing.await(t, n, "NAK", macA)
			if asked, answered := passing.conversation(t, n, "SELECTING", macA); answered.YourIPAddr.String() != "10.1.1.55" {
				t.Errorf("%s was answered %s, want an ACK for 10.1.1.55", asked, answered)
			}
			has(t, g, "eth0", "10.1.1.55")
			serves(t, g, "http://10.1.1.1/latest/local-ipv4", "10.1.1.55")
		})
	}
}

func TestOnlyTheDefaultNICGetsRouterAndNames(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	g := r.guest(t, "guest", "eth0", macA)
	nstest.Pair(t, r.Host, "eth1", g, "eth1")
	g.SetMAC(t, "eth1", macB)
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	r.AddAddr(t, "eth1", "10.7.0.1/24")
	r.start(t)
	names := "dns: [10.9.9.53]\ndomain: cs1.internal\nsearch: [cs1.internal]\nmtu: 1400\nntp: [10.9.9.9]\nroutes: [{to: 10.8.0.0/16, via: %s}]\n"
	r.put(t, "networks/guest-1.yaml", network+fmt.Sprintf(names, "10.1.1.254"))
	r.put(t, "networks/storage.yaml", "interface: eth1\ngateway: 10.7.0.1/24\n"+fmt.Sprintf(names, "10.7.0.254"))
	nics := func(first, second bool) string {
		return fmt.Sprintf("hostname: web-1\nnics:\n- {network: guest-1, mac: \"%s\", ipv4: 10.1.1.34, default: %t}\n- {network: storage, mac: \"%s\", ipv4: 10.7.0.34, default: %t}\n",
			macA, first, macB, second)
	}
	byDefault := []string{"router=", "dns=", "domain=", "search="}
	always := []string{"serverid=", "hostname=web-1\n", "mtu=1400\n", "ntpsrv=10.9.9.9\n", "staticroutes=10.8.0.0/16 "}
	for _, first := range []bool{true, false} {
		r.put(t, "vms/web/vm.yaml", nics(first, !first))
		r.applied(t)
		for device, isDefault := range map[string]bool{"eth0": first, "eth1": !first} {
			if err := udhcpc(t, g, device, "-q", "-n", "-f").Wait(); err != nil {
				t.Fatalf("udhcpc on %s: %v", device, err)
			}
			told := "\n" + g.ReadFile(t, leaseNote+"."+device)
			if missing := lacks(told, always); missing != nil {
				t.Errorf("%s lacks %q:\n%s", device, missing, told)
			}
			for _, name := range byDefault {
				if got := strings.Contains(told, "\n"+name); got != isDefault {
					t.Errorf("%s, default: %t, got %s: %t", device, isDefault, name, got)
				}
			}
		}
	}
	// One VM, one set of data, and of its own addresses the one that it asks from.
	for url, want := range map[string]string{
		"http://10.1.1.1/latest/local-ipv4": "10.1.1.34", "http://10.7.0.1/latest/local-ipv4": "10.7.0.34",
		"http://10.1.1.1/latest/vm-id": "web", "http://10.7.0.1/latest/vm-id": "web",
	} {
		serves(t, g, url, want)
	}
}

// Two tenants with the same network, the same addresses and even the same MAC, on two devices of one
// daemon.
func TestOverlappingNetworksAreApart(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	guests := map[string]*nstest.Host{"left": r.guest(t, "left", "eth0", macA), "right": r.guest(t, "right", "eth1", macA)}
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	r.AddAddr(t, "eth1", "10.1.1.1/24")
	r.configure(t, "metadata: {guest_rate: 0}\n")
	r.start(t)
	for name, device := range map[string]string{"left": "eth0", "right": "eth1"} {
		r.put(t, "networks/"+name+".yaml", "interface: "+device+"\ngateway: 10.1.1.1/24\ndomain: "+name+".internal\n")
		r.put(t, "vms/"+name+"/user-data", "data of "+name)
		r.put(t, "vms/"+name+"/vm.yaml", vm(name+"-1", name, macA, "10.1.1.34"))
	}
	r.applied(t)
	for name, g := range guests {
		g.Start(t, "dhclient", "-d", "-v", "-pf", "/run/dhclient.pid", "-lf", leaseNote, "eth0")
		has(t, g, "eth0", "10.1.1.34")
		var told string
		nstest.Poll(t, waitTime, "lease of "+name, func() bool {
			out, err := g.Output(t, "cat", leaseNote)
			told = out
			return err == nil && strings.Contains(out, "10.1.1.34")
		})
		if missing := lacks(told, []string{`host-name "` + name + `-1";`, `domain-name "` + name + `.internal";`}); missing != nil {
			t.Errorf("%s lacks %q:\n%s", name, missing, told)
		}
	}
	for range 20 {
		for name, g := range guests {
			if got, err := curl(t, g, dataURL); got != "data of "+name {
				t.Fatalf("guest %s reads %q, %v", name, got, err)
			}
		}
	}
	// What becomes of one is no matter to the other.
	stop := undisturbed(t, guests["right"], dataURL)
	r.remove(t, "vms/left")
	r.applied(t)
	nstest.Poll(t, waitTime, "the removed guest to be refused", func() bool {
		out, err := curl(t, guests["left"], dataURL)
		return err != nil && strings.Contains(out, "404")
	})
	stop()
	if got, err := curl(t, guests["right"], dataURL); got != "data of right" {
		t.Errorf("guest right reads %q, %v", got, err)
	}
}
