package nstest_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"vragent/netcfg/nstest"
)

func TestEnterGivesANetworkOfItsOwn(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	if len(links) != 1 || links[0].Name != "lo" || links[0].Flags&net.FlagUp == 0 {
		t.Errorf("links = %v, want lo alone, up", links)
	}
	if entries, err := os.ReadDir("/run"); err != nil || len(entries) != 0 {
		t.Errorf("/run = %v, %v, want it empty", entries, err)
	}
	if os.Geteuid() != 0 {
		t.Errorf("effective user = %d, want root", os.Geteuid())
	}
}

func TestEnterKeepsTheMachinesEtc(t *testing.T) {
	const mark = "/etc/nstest-mark"
	if !nstest.Enter(t) {
		if _, err := os.Stat(mark); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("stat %s on the machine: %v, want that it does not exist", mark, err)
		}
		return
	}
	if err := os.WriteFile(mark, nil, 0o644); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("/etc/passwd"); err != nil {
		t.Errorf("the copy lacks a file: %v", err)
	}
}

func TestEnterInSubtest(t *testing.T) {
	t.Run("a name/with slash", func(t *testing.T) {
		if !nstest.Enter(t) {
			return
		}
		t.Run("shares the namespaces", func(t *testing.T) {
			if !nstest.Enter(t) {
				t.Error("Enter() = false inside")
			}
		})
	})
}

// TestEnterReportsTheInnerOutcome runs tests of this file that fail and skip on purpose.
func TestEnterReportsTheInnerOutcome(t *testing.T) {
	tests := []struct{ inner, want string }{
		{"pass", "--- PASS: TestInnerOutcome"},
		{"fail", "--- FAIL: TestInnerOutcome"},
		{"skip", "--- SKIP: TestInnerOutcome"},
		{"exit", "gave no verdict"},
	}
	for _, test := range tests {
		t.Run(test.inner, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.v", "-test.run=^TestInnerOutcome$")
			cmd.Env = append(os.Environ(), "NSTEST_OUTCOME="+test.inner)
			out, err := cmd.CombinedOutput()
			if strings.Contains(string(out), "no namespaces for tests here") {
				t.Skip("no namespaces for tests here")
			}
			if !strings.Contains(string(out), "\n"+test.want) && !strings.Contains(string(out), test.want) {
				t.Errorf("output lacks %q:\n%s", test.want, out)
			}
			if failed, want := err != nil, test.inner == "fail" || test.inner == "exit"; failed != want {
				t.Errorf("failed = %t (%v), want %t", failed, err, want)
			}
		})
	}
}

// TestInnerOutcome is the subject of TestEnterReportsTheInnerOutcome and does nothing by itself.
func TestInnerOutcome(t *testing.T) {
	outcome := os.Getenv("NSTEST_OUTCOME")
	if outcome == "" {
		t.Skip("run by TestEnterReportsTheInnerOutcome")
	}
	if !nstest.Enter(t) {
		return
	}
	switch outcome {
	case "fail":
		t.Error("on purpose")
	case "skip":
		t.Skip("on purpose")
	case "exit":
		os.Exit(2)
	}
}

func TestHostsTalkOverAPair(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router, guest := nstest.Here(t), nstest.NewHost(t, "guest")
	nstest.Pair(t, router, "eth0", guest, "eth0")
	router.AddAddr(t, "eth0", "10.1.1.1/24")
	guest.AddAddr(t, "eth0", "10.1.1.34/24")

	if got := talk(t, router, "10.1.1.1", guest); got != "10.1.1.34" {
		t.Errorf("the router sees %s, want 10.1.1.34", got)
	}
	if got := strings.TrimSpace(guest.Run(t, "hostname")); got != "guest" {
		t.Errorf("host name = %q, want guest", got)
	}
	if got := guest.Run(t, "cat", "/sys/class/net/eth0/address"); strings.TrimSpace(got) != guest.MAC(t, "eth0").String() {
		t.Logf("/sys shows another network here: %q", got)
	}
}

func TestHostsTalkOverABridge(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	one, two := nstest.NewHost(t, "one"), nstest.NewHost(t, "two")
	nstest.Pair(t, router, "tap1", one, "eth0")
	nstest.Pair(t, router, "tap2", two, "eth0")
	router.Bridge(t, "br0", "tap1", "tap2")
	one.AddAddr(t, "eth0", "10.1.1.2/24")
	two.AddAddr(t, "eth0", "10.1.1.3/24")
	one.SetMAC(t, "eth0", "02:00:00:00:00:02")

	if got := talk(t, one, "10.1.1.2", two); got != "10.1.1.3" {
		t.Errorf("one sees %s, want 10.1.1.3", got)
	}
}

func TestHostRoutes(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router, guest := nstest.Here(t), nstest.NewHost(t, "guest")
	nstest.Pair(t, router, "eth0", guest, "eth0")
	router.AddAddr(t, "eth0", "10.1.1.1/24")
	router.AddAddr(t, "lo", "203.0.113.1/32")
	guest.AddAddr(t, "eth0", "10.1.1.34/24")
	guest.AddRoute(t, "0.0.0.0/0", "10.1.1.1")

	if got := talk(t, router, "203.0.113.1", guest); got != "10.1.1.34" {
		t.Errorf("the router sees %s, want 10.1.1.34", got)
	}
}

// talk listens on address in server, connects from client, and returns the address that server sees.
func talk(t *testing.T, server *nstest.Host, address string, client *nstest.Host) string {
	t.Helper()
	var listener net.Listener
	server.Do(t, func() {
		var err error
		if listener, err = net.Listen("tcp4", address+":0"); err != nil {
			t.Error(err)
		}
	})
	if listener == nil {
		t.FailNow()
	}
	defer listener.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := client.Dial(ctx, nil, "tcp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	seen, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer seen.Close()
	return seen.RemoteAddr().(*net.TCPAddr).IP.String()
}

func TestHostFilesAreItsOwn(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	one, two := nstest.NewHost(t, "one"), nstest.NewHost(t, "two")
	one.WriteFile(t, "/etc/resolv.conf", "nameserver 10.1.1.1\n")
	one.WriteFile(t, "/run/app/pid", "1\n")
	two.WriteFile(t, "/etc/resolv.conf", "nameserver 10.1.1.2\n")
	if got := one.Run(t, "cat", "/etc/resolv.conf"); got != "nameserver 10.1.1.1\n" {
		t.Errorf("resolv.conf = %q", got)
	}
	if out, err := two.Output(t, "cat", "/run/app/pid"); err == nil {
		t.Errorf("two sees the file of one: %q", out)
	}
	one.Empty(t, "/run/app")
	if out := one.Run(t, "ls", "/run/app"); out != "" {
		t.Errorf("emptied folder holds %q", out)
	}
	if got := two.ReadFile(t, "/etc/resolv.conf"); got != "nameserver 10.1.1.2\n" {
		t.Errorf("resolv.conf = %q", got)
	}
}

func TestProcessEndsWithItsTest(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	guest := nstest.NewHost(t, "guest")
	var p *nstest.Process
	t.Run("starts it", func(t *testing.T) {
		// The shell's child would hold the output open if it were not killed as well.
		p = guest.Start(t, "sh", "-c", "echo ready; sleep 1000 & wait")
		p.WaitFor(t, "ready", 20*time.Second)
	})
	select {
	case <-p.Exited():
	default:
		t.Error("it still runs")
	}
	if p.Wait() == nil {
		t.Error("it ended by itself")
	}
}

func TestLinksRenamedAndDeleted(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	router := nstest.Here(t)
	router.Bridge(t, "eth0")
	router.AddAddr(t, "eth0", "10.1.1.1/24", "10.1.1.2/24")
	router.DelAddr(t, "eth0", "10.1.1.2/24")
	router.SetMTU(t, "eth0", 1400)
	router.Down(t, "eth0")
	router.Rename(t, "eth0", "guest0")
	router.Up(t, "guest0")
	ifi, err := net.InterfaceByName("guest0")
	if err != nil {
		t.Fatal(err)
	}
	if ifi.MTU != 1400 {
		t.Errorf("MTU = %d, want 1400", ifi.MTU)
	}
	router.Delete(t, "guest0")
	if _, err := net.InterfaceByName("guest0"); err == nil {
		t.Error("the link is still there")
	}
}
