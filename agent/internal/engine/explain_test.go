package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vragent/agent/internal/api"
	"vragent/dhcp"
	"vragent/metadata"
	"vragent/netcfg/nstest"
)

// TestAnswerTellsWhyAndWhatToDo has every cause for which a known VM may have no address.
func TestAnswerTellsWhyAndWhatToDo(t *testing.T) {
	const mac = "02:00:00:00:00:01"
	parsed, err := dhcp.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	heard := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	exchange := func(message, answer string, reason error) dhcp.Exchange {
		x := dhcp.Exchange{Time: heard, Network: "g", Device: "eth0", MAC: parsed, Message: message, Answer: answer, Reason: reason}
		if reason != nil {
			x.Why = reason.Error()
		}
		return x
	}
	served := api.NIC{Network: "g", MAC: mac, IPv4: "10.1.1.5", Served: true, LastSeen: &heard}
	unserved := func(why string) api.NIC {
		return api.NIC{Network: "g", MAC: mac, IPv4: "10.1.1.5", Why: why}
	}
	reason := func(what string) []api.Fault {
		return []api.Fault{{File: "vms/web/vm.yaml", Line: 2, Column: 8, What: what}}
	}
	for name, c := range map[string]struct {
		state   api.State
		inForce bool
		reasons []api.Fault
		nics    []api.NIC
		watch   watch
		want    []string // in answer, next step and obstacles
		nothing bool     // nothing is to be done
	}{
		"it has an address": {
			state: api.Applied, inForce: true, nics: []api.NIC{served}, watch: watch{newest: exchange("REQUEST", "ACK", nil)},
			want: []string{"gets its address and its data"}, nothing: true,
		},
		"rejected": {
			state: api.Rejected, reasons: reason("unknown key"), nics: []api.NIC{unserved("the VM is not in force")},
			want: []string{"nothing of it is in force", "vms/web/vm.yaml:2:8: unknown key", "Correct"},
		},
		"rejected after it was good": {
			state: api.Rejected, inForce: true, reasons: reason("unknown key"), nics: []api.NIC{served},
			want: []string{"its last good content", "unknown key", "Correct"},
		},
		"its network is missing": {
			state: api.Pending, inForce: true, reasons: reason("nics[0]: network g is not there"), nics: []api.NIC{unserved("network g is not there")},
			want: []string{"none of its NICs is served", "network g is not there", "nothing needs to be dropped again"},
		},
		"its network stands by": {
			state: api.Applied, inForce: true, nics: []api.NIC{unserved("network g stands by: its serving address 10.1.1.1 is not on eth0")},
			want: []string{"none of its NICs is served", "10.1.1.1 is not on eth0"},
		},
		"one of two NICs is not served": {
			state: api.Pending, inForce: true, nics: []api.NIC{served, unserved("network h waits for its device: there is no eth7")},
			want: []string{"1 of 2 NICs", "there is no eth7"},
		},
		"somebody writes its files": {
			state: api.Applied, inForce: true, nics: []api.NIC{served}, watch: watch{unsettled: true, newest: exchange("REQUEST", "ACK", nil)},
			want: []string{"gets its address", "open for writing"}, nothing: true,
		},
		"another program has port 67": {
			state: api.Applied, inForce: true, nics: []api.NIC{served},
			watch: watch{dhcp: []dhcp.Fault{{Device: "eth0", Err: fmt.Errorf("listen: %w", syscall.EADDRINUSE)}}},
			want:  []string{"DHCP does not work on eth0", "ss -ulpn"},
		},
		"the daemon lacks a power": {
			state: api.Applied, inForce: true, nics: []api.NIC{served},
			watch: watch{dhcp: []dhcp.Fault{{Device: "eth0", Err: fmt.Errorf("packet socket, which needs CAP_NET_RAW: %w", syscall.EPERM)}}},
			want:  []string{"CAP_NET_RAW", "vragent status"},
		},
		"another device's fault is not this one's": {
			state: api.Applied, inForce: true, nics: []api.NIC{served},
			watch: watch{newest: exchange("REQUEST", "ACK", nil), dhcp: []dhcp.Fault{{Device: "eth1", Err: syscall.EPERM}, {Err: errors.New("disk")}}},
			want:  []string{"gets its address"}, nothing: true,
		},
		"another program has port 80": {
			state: api.Applied, inForce: true, nics: []api.NIC{served},
			watch: watch{newest: exchange("REQUEST", "ACK", nil), metadata: []metadata.Fault{
				{Service: "metadata", Device: "eth0", Address: netip.MustParseAddrPort("10.1.1.1:80"), Err: syscall.EADDRINUSE},
				{Service: "metadata", Device: "eth0", Address: netip.MustParseAddrPort("10.1.1.11:80"), Err: syscall.EADDRINUSE},
				{Service: "metadata", Device: "eth0", Address: netip.MustParseAddrPort("210.1.1.1:80"), Err: syscall.EADDRINUSE},
				{Service: "metadata", Device: "eth1", Address: netip.MustParseAddrPort("10.1.1.1:80"), Err: syscall.EADDRINUSE},
			}},
			want: []string{"\nmetadata on 10.1.1.1:80, device eth0: address already in use"}, nothing: true,
		},
		"another program has port 80 of the link-local address": {
			state: api.Applied, inForce: true, nics: []api.NIC{served},
			watch: watch{newest: exchange("REQUEST", "ACK", nil), metadata: []metadata.Fault{
				{Service: "metadata", Device: "eth0", Address: netip.MustParseAddrPort("169.254.169.254:80"), Err: syscall.EADDRINUSE},
			}},
			want: []string{"metadata on 169.254.169.254:80, device eth0: address already in use"}, nothing: true,
		},
		"its password waits for the pair's store": {
			state: api.Applied, inForce: true, nics: []api.NIC{served}, watch: watch{newest: exchange("REQUEST", "ACK", nil), password: "connection refused"},
			want: []string{"gets its address and its data. Its password is held back", "have an etcd of shared_state.etcd answer", "password: connection refused"},
		},
		"its password waits, and it is not heard": {
			state: api.Applied, inForce: true, nics: []api.NIC{{Network: "g", MAC: mac, IPv4: "10.1.1.5", Served: true}}, watch: watch{password: "connection refused"},
			want: []string{"nothing has been heard by DHCP", "Its password is held back", "the link of eth0", "For the password, have an etcd"},
		},
		"it is on another link": {
			state: api.Applied, inForce: true, nics: []api.NIC{served},
			watch: watch{newest: dhcp.Exchange{Time: heard, Network: "h", Device: "eth1", MAC: parsed, Message: "DISCOVER", Reason: dhcp.ErrUnknownHost}},
			want:  []string{"asks on eth1, and its NIC is in g on eth0", "vms/web/vm.yaml"},
		},
		"its device was renamed since": {
			state: api.Applied, inForce: true, nics: []api.NIC{served},
			watch: watch{newest: dhcp.Exchange{Time: heard, Network: "g", Device: "eth9", MAC: parsed, Message: "REQUEST", Answer: "ACK"}},
			want:  []string{"gets its address"}, nothing: true,
		},
		"no NIC has a MAC": {
			state: api.Applied, inForce: true, nics: []api.NIC{{Network: "g", IPv4: "10.1.1.5", Served: true}},
			want: []string{"no NIC of it has a mac", "NIC 10.1.1.5: has no mac", "name the mac"},
		},
		"one NIC has no MAC": {
			state: api.Applied, inForce: true, nics: []api.NIC{served, {Network: "g", IPv4: "10.1.1.6", Served: true}}, watch: watch{newest: exchange("REQUEST", "ACK", nil)},
			want: []string{"NIC 10.1.1.6: has no mac"}, nothing: true,
		},
		"it has never asked": {
			state: api.Applied, inForce: true, nics: []api.NIC{{Network: "g", MAC: mac, IPv4: "10.1.1.5", Served: true}},
			want: []string{"nothing has been heard by DHCP from " + mac, "the link of eth0"},
		},
		"it took another server's offer": {
			state: api.Applied, inForce: true, nics: []api.NIC{served}, watch: watch{newest: exchange("REQUEST", "", dhcp.ErrOtherServer)},
			want: []string{"the client chose another server", "Find the other DHCP server on the link of eth0"},
		},
		"it has declined its address": {
			state: api.Applied, inForce: true, nics: []api.NIC{served}, watch: watch{newest: exchange("DECLINE", "", dhcp.ErrNoReply)},
			want: []string{"has declined its address", "Look for who has the address"},
		},
		"it has given its address back": {
			state: api.Applied, inForce: true, nics: []api.NIC{served}, watch: watch{newest: exchange("RELEASE", "", dhcp.ErrNoReply)},
			want: []string{"has given its address back", "start its DHCP client"},
		},
		"it is refused": {
			state: api.Applied, inForce: true, nics: []api.NIC{served}, watch: watch{newest: exchange("REQUEST", "NAK", errors.New("asks for an address that is not this client's"))},
			want: []string{"was refused: asks for an address", "restart its DHCP client"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := api.Explanation{
				VM:       &api.VM{Name: "web", Unit: api.Unit{Unit: "vms/web", State: c.state, InForce: c.inForce, Reasons: c.reasons}, NICs: c.nics},
				Networks: []api.Network{{Name: "g", Device: "eth0", Serving: "10.1.1.1"}},
			}
			answer(&x, c.watch)
			text := strings.Join(append([]string{x.Answer, x.Next}, x.Obstacles...), "\n")
			for _, part := range c.want {
				if !strings.Contains(text, part) {
					t.Errorf("%q is not in:\n%s", part, text)
				}
			}
			if x.Answer == "" || (x.Next == "") != c.nothing {
				t.Errorf("answer %q, next %q; nothing to do: %v", x.Answer, x.Next, c.nothing)
			}
			if strings.Contains(text, "10.1.1.11") || strings.Contains(text, "210.1.1.1") || strings.Contains(text, "device eth1") {
				t.Errorf("another network's fault is told:\n%s", text)
			}
		})
	}
}

// TestEverySilenceHasAdvice: a reason without a step of its own would get the last resort.
func TestEverySilenceHasAdvice(t *testing.T) {
	resort := advice(dhcp.Exchange{})
	if resort == "" {
		t.Fatal("there is no last resort")
	}
	for _, reason := range []error{
		dhcp.ErrMalformed, dhcp.ErrNotRequest, dhcp.ErrHardware, dhcp.ErrUnknownType, dhcp.ErrNoNetwork, dhcp.ErrUnknownHost,
		dhcp.ErrOtherServer, dhcp.ErrRelay, dhcp.ErrNoAddress, dhcp.ErrNotHolder, dhcp.ErrWrongNet, dhcp.ErrMoved,
		dhcp.ErrDeclined, dhcp.ErrRate, dhcp.ErrExhausted, dhcp.ErrProbing, dhcp.ErrStore, dhcp.ErrHeld,
	} {
		if got := advice(dhcp.Exchange{Network: "g", Device: "eth0", Reason: fmt.Errorf("more words: %w", reason)}); got == resort {
			t.Errorf("no step of its own for %q", reason)
		}
	}
}

func TestVMsThatDoNotExistYetAreExplained(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r := newRig(t, t.TempDir())
	r.drop(t, "networks/g.yaml", netFile)
	r.drop(t, "vms/web/user-data", "x")
	explain := func() api.Explanation {
		t.Helper()
		x, err := r.Explain(context.Background(), "vms/web")
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	if x := explain(); !strings.Contains(x.Answer, "has no vm.yaml") || x.Next != "Drop vms/web/vm.yaml." || len(x.Files) != 1 {
		t.Errorf("without vm.yaml: %+v", x)
	}
	f, err := os.OpenFile(filepath.Join(r.path, "drop/vms/web/vm.yaml"), os.O_CREATE|os.O_WRONLY, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	nstest.Poll(t, 20*time.Second, "the file to count as being written", func() bool { return strings.Contains(explain().Answer, "is being written") })
	if x := explain(); !strings.Contains(x.Next, "fuser") {
		t.Errorf("while vm.yaml is written: %+v", x)
	}
	if _, err := f.WriteString(vmFile); err != nil {
		t.Fatal(err)
	}
	f.Close()
	r.settled(t)
	if x := explain(); x.VM == nil || x.VM.State != api.Pending || len(x.Obstacles) == 0 {
		t.Errorf("once it is written: %+v", x)
	}
	if _, err := r.Explain(context.Background(), "vms/nobody"); !errors.Is(err, api.ErrUnknown) {
		t.Errorf("a VM of which there is nothing: %v", err)
	}
}
