package cloudstack

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"
)

// call takes a call of an extension in; document is the payload's inside unless it names it.
func (b *bench) call(command, document string) (Result, string) {
	b.t.Helper()
	if !strings.Contains(document, `"payload"`) {
		document = `{"physical-network-extension-details":{},"network-extension-details":{},"payload":{` + document + `}}`
	}
	r, answer, err := b.Call(context.Background(), command, []byte(document))
	if err != nil {
		b.t.Fatalf("%s: %v", command, err)
	}
	return r, string(answer)
}

// calls takes calls in, each a command, a blank and a document, none of which may be rejected.
func (b *bench) calls(list ...string) {
	b.t.Helper()
	for _, c := range list {
		command, document, _ := strings.Cut(c, " ")
		if r, _ := b.call(command, document); r.State == Rejected {
			b.t.Fatalf("%s: %+v", c, r)
		}
	}
}

const (
	extNet   = "net-42-10.0.0.0-24"
	inNet    = `"network_id":"42","gateway":"10.0.0.1","cidr":"10.0.0.0/24","extension_ip":"10.0.0.1","vlan":"100"`
	extLease = `add-dhcp-entry ` + inNet + `,"mac":"02:00:00:00:00:0A","ip":"10.0.0.10","hostname":"vm-1","default_nic":"true","dns":"10.0.0.1,192.0.2.53","domain":"t1.internal","nic_id":7,"nic_uuid":"u-7"`
	extData  = `save-vm-data "network_id":"42","ip":"10.0.0.10","gateway":"10.0.0.1","vm_data":[{"dir":"userdata","file":"user-data","content":"#!/bin/sh\necho é"},` +
		`{"dir":"meta-data","file":"instance-id","content":"A"},{"dir":"meta-data","file":"vm-id","content":"A"},{"dir":"meta-data","file":"public-keys/0/openssh-key","content":"ssh-ed25519 k"},` +
		`{"dir":"meta-data","file":"../evil","content":"x"},{"dir":"password","file":"vm_password","content":"pw"}]`
)

func newExtensionBench(t *testing.T) *bench {
	b := newBench(t)
	b.links = []Link{{Name: "lo", MTU: 65536}, {Name: "ext100", MTU: 1450, Addrs: addrs("10.0.0.1")}, {Name: "eth1.200", MTU: 1500}}
	return b
}

func TestExtensionServesAVM(t *testing.T) {
	b := newExtensionBench(t)
	for _, c := range []string{`implement-network ` + inNet, extLease, extData} {
		b.calls(c)
		b.restart()
	}
	n := b.network(extNet)
	if n.Interface != "ext100" || n.MTU != 1450 || n.Serving().String() != "10.0.0.1" || n.Domain != "t1.internal" || len(n.DNS) != 2 || n.Boot != nil || n.PublicInterface != "" {
		t.Errorf("network = %+v", n)
	}
	if got, want := b.guest(extNet, "10.0.0.10"), "0a A \"#!/bin/sh\necho é\" pw"; got != want {
		t.Errorf("served as %s, want %s", got, want)
	}
	if vm := b.vm(extNet, "10.0.0.10"); vm.Hostname != "vm-1" || vm.Meta["public-keys"] != "ssh-ed25519 k" || len(vm.Meta) != 3 {
		t.Errorf("VM = %+v", vm)
	}
	b.calls(`save-userdata "network_id":42,"ip":"10.0.0.10","userdata":"other"`,
		`save-sshkey "network_id":42,"ip":"10.0.0.10","sshkey":"ssh-rsa z"`,
		`save-hypervisor-hostname "network_id":42,"ip":"10.0.0.10","hypervisor_hostname":"kvm-1"`,
		`save-password "network_id":42,"ip":"10.0.0.10","password":"s3cret"`,
		`set-dhcp-options "network_id":"42","nic_id":"7","options":"{\"42\":\"192.0.2.1\",\"66\":\"\"}"`)
	if got := b.guest(extNet, "10.0.0.10"); got != `0a A "other" s3cret` {
		t.Errorf("after changes: served as %s", got)
	}
	vm := b.vm(extNet, "10.0.0.10")
	if vm.Meta["public-keys"] != "ssh-rsa z" || vm.Meta["hypervisor-host-name"] != "kvm-1" || vm.Meta["instance-id"] != "A" || fmt.Sprint(vm.NICs[0].Options) != "map[42:[192 0 2 1]]" {
		t.Errorf("after changes: VM = %+v", vm)
	}
	// The address goes to another VM.
	b.calls(strings.Replace(extLease, "00:0A", "00:0B", 1))
	if got := b.guest(extNet, "10.0.0.10"); got != "0b - - -" || len(b.vm(extNet, "10.0.0.10").NICs[0].Options) != 0 {
		t.Errorf("the next VM is served as %s", got)
	}
	b.calls(`remove-dhcp-entry "network_id":"42","mac":"02:00:00:00:00:0a","ip":"10.0.0.10"`)
	if got := b.guest(extNet, "10.0.0.10"); got != "0b - - -" {
		t.Errorf("after a late removal of the old VM: %s", got)
	}
	b.calls(`release-nic "network_id":"42","mac":"02:00:00:00:00:0b","ip":"10.0.0.10"`)
	if got := b.guest(extNet, "10.0.0.10"); got != "none" {
		t.Errorf("the removed VM is served as %s", got)
	}
}

func TestFoldersThatAreNotServedAreNoted(t *testing.T) {
	b := newExtensionBench(t)
	b.calls(`implement-network `+inNet, extLease)
	for dir, notes := range map[string]int{"metadata": 0, "meta_data": 0, "password": 0, "vendordata": 1, "": 1} {
		r, _ := b.call("save-vm-data", fmt.Sprintf(`"network_id":"42","ip":"10.0.0.10","vm_data":[{"dir":%q,"file":"tier","content":"front"}]`, dir))
		if r.State != Applied || len(r.Notes) != notes || notes > 0 && !strings.Contains(r.Notes[0], fmt.Sprintf(`"tier" of folder %q`, dir)) {
			t.Errorf("folder %q: %+v, want %d notes", dir, r, notes)
		}
	}
}

func TestExtensionNetworksMayOverlap(t *testing.T) {
	b := newExtensionBench(t)
	other := strings.NewReplacer(`"network_id":"42"`, `"network_id":"43"`, `"vlan":"100"`, `"vlan":"200"`, `"extension_ip":"10.0.0.1"`, `"extension_ip":"10.0.0.2"`, `"gateway":"10.0.0.1"`, `"gateway":"10.0.0.254"`).Replace(extLease)
	b.calls(extLease, extData, other)
	if got := b.guest(extNet, "10.0.0.10"); got != "0a A \"#!/bin/sh\necho é\" pw" {
		t.Errorf("in the first network: %s", got)
	}
	n := b.network("net-43-10.0.0.0-24")
	if n.Interface != "eth1.200" || n.Serving().String() != "10.0.0.2" || n.Gateway.String() != "10.0.0.254/24" {
		t.Errorf("second network = %+v", n)
	}
	if got := b.guest("net-43-10.0.0.0-24", "10.0.0.10"); got != "0a - - -" {
		t.Errorf("in the second network: %s", got)
	}
	b.restart()
	b.calls(`destroy-network ` + inNet)
	if b.door.model.Network(extNet) != nil || b.guest(extNet, "10.0.0.10") != "none" {
		t.Error("the destroyed network is still there")
	}
	if got := b.guest("net-43-10.0.0.0-24", "10.0.0.10"); got != "0a - - -" {
		t.Errorf("in the network that is left: %s", got)
	}
	for key := range b.store {
		if strings.Contains(key, "net-42/") {
			t.Errorf("the memory keeps %s", key)
		}
	}
	if len(b.Guests().Guests) != 0 {
		t.Error("the originals are told of an extension's guests")
	}
}

func TestLeaveExtensionEndsItsNetworksAlone(t *testing.T) {
	b := newExtensionBench(t)
	b.take(isolated, leaseFile(ip0, "0c"))
	own := b.guest(net0, ip0)
	second := strings.NewReplacer(`"42"`, `"43"`, "10.0.0.1\"", "10.0.0.2\"", `"vlan":"100"`, `"vlan":"200"`)
	waits := `add-dhcp-entry "network_id":"44","ip":"10.9.9.9","mac":"02:00:00:00:00:0d","hostname":"vm-9"`
	b.calls(`implement-network `+inNet, extLease, extData, second.Replace(`implement-network `+inNet), second.Replace(extLease), waits)
	client := Dial(listen(t, b.Dialect))
	defer client.Close()
	b.door.full = true
	if err := client.LeaveExtension(context.Background()); err == nil || b.guest(extNet, "10.0.0.10") == "none" {
		t.Errorf("with a full disk: LeaveExtension() = %v", err)
	}
	b.door.full = false
	for range 2 {
		if err := client.LeaveExtension(context.Background()); err != nil {
			t.Fatal(err)
		}
		for unit := range b.door.files {
			if strings.Contains(unit, "/net-") || strings.Contains(unit, "10.9.9.9") {
				t.Errorf("%s is left", unit)
			}
		}
		for key := range b.store {
			if strings.HasPrefix(key, scopePrefix) {
				t.Errorf("the memory keeps %s", key)
			}
		}
		if got := b.guest(net0, ip0); got != own || own == "none" {
			t.Errorf("a guest of the router is served as %s, before as %s", got, own)
		}
	}
	// The extension may come back.
	b.calls(`implement-network `+inNet, extLease)
	if got := b.guest(extNet, "10.0.0.10"); got != "0a - - -" {
		t.Errorf("afterwards it is served as %s", got)
	}
}

// TestExtensionRestoresANetwork has all VMs in one call, in every way that the document has been
// written.
func TestExtensionRestoresANetwork(t *testing.T) {
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	vms := func(wrap func(string) string) string {
		var list []string
		for i := range 300 {
			list = append(list, fmt.Sprintf(`{"ip":"10.0.%d.%d","mac":"02:00:00:00:%02x:%02x","hostname":"vm-%d","default_nic":true,"vm_data":[`+
				`{"dir":"userdata","file":"user-data","content":"%s"},{"dir":"meta-data","file":"instance-id","content":"%s"},{"dir":"meta-data","file":"service-offering","content":""}]}`,
				1+i/200, 1+i%200, i/200, i%200, i, wrap(fmt.Sprintf("I am %d", i)), wrap(fmt.Sprintf("id-%d", i))))
		}
		return `{"dhcp_enabled":true,"dns_enabled":true,"userdata_enabled":true,"vms":[` + strings.Join(list, ",") + `]}`
	}
	plain := func(s string) string { return s }
	const head = `"network_id":"42","gateway":"10.0.0.1","cidr":"10.0.0.0/16","dns":"192.0.2.53","restore_data":`
	for name, document := range map[string]string{
		"object":                head + vms(plain),
		"text":                  head + fmt.Sprintf("%q", vms(plain)),
		"base64 all through":    head + `"` + b64(vms(b64)) + `"`,
		"contents in base64":    head + vms(b64),
		"names with a dash":     strings.NewReplacer("restore_data", "restore-data", "vm_data", "vm-data", "network_id", "networkId").Replace(head + vms(plain)),
		"document as a payload": `{"payload":` + fmt.Sprintf("%q", "{"+head+vms(plain)+"}") + `}`,
	} {
		t.Run(name, func(t *testing.T) {
			b := newExtensionBench(t)
			puts := b.door.puts
			if r, _ := b.call("restore-network", document); r.State != Applied {
				t.Fatalf("restore-network: %+v", r)
			}
			if got := b.door.puts - puts; got != 1 {
				t.Errorf("%d writes, want one for all", got)
			}
			for i, ip := range map[int]string{0: "10.0.1.1", 299: "10.0.2.100"} {
				vm := b.vm("net-42-10.0.0.0-16", ip)
				user := b.door.files["vms/net-42-10.0.0.0-16_"+ip][userFile]
				if vm.Hostname != fmt.Sprintf("vm-%d", i) || string(user) != fmt.Sprintf("I am %d", i) || vm.Meta["instance-id"] != fmt.Sprintf("id-%d", i) {
					t.Errorf("VM %d = %+v with user data %q", i, vm, user)
				}
			}
		})
	}
}

func TestExtensionWithoutADevice(t *testing.T) {
	b := newBench(t)
	if r, _ := b.call("config-dhcp-subnet", inNet); r.State != Pending || !strings.Contains(r.Reason, "guest_device") {
		t.Errorf("config-dhcp-subnet: %+v, want pending and what to do", r)
	}
	if r, _ := b.call("add-dhcp-entry", strings.TrimPrefix(extLease, "add-dhcp-entry ")); r.State != Pending {
		t.Errorf("add-dhcp-entry: %+v, want pending", r)
	}
	b.calls(`implement-network {"physical-network-extension-details":"{\"guest.device\":\"x\",\"guest_device\":\"br-7\"}","payload":{` + inNet + `}}`)
	if n := b.network(extNet); n.Interface != "br-7" {
		t.Errorf("network = %+v, want the named device", n)
	}
	if got := b.guest(extNet, "10.0.0.10"); got != "0a - - -" {
		t.Errorf("the VM that waited is served as %s", got)
	}
	b.calls(`remove-dhcp-subnet "network_id":"42","extension_ip":"10.0.0.9"`)
	b.network(extNet) // it is another subnet's
	b.calls(`remove-dhcp-subnet "network_id":"42","extension_ip":"10.0.0.1"`)
	if b.door.model.Network(extNet) != nil {
		t.Error("the subnet is still there after its removal")
	}
}

func TestExtensionAnswers(t *testing.T) {
	b := newExtensionBench(t)
	for _, test := range []struct{ command, document, answer string }{
		{"ensure-network-device", `"network_id":"42","current_details":"{\"host\": \"r1\"}"`, `{"host":"r1"}`},
		{"ensure-network-device", `"vpc_id":"3"`, `{}`},
		{"implement-network", inNet, ""},
		{"add-dns-entry", `"network_id":"42"`, ""},
		{"prepare-nic", `"network_id":"42"`, ""},
		{"implement-vpc", `"vpc_id":"3"`, ""},
	} {
		if r, answer := b.call(test.command, test.document); r.State != Applied || answer != test.answer {
			t.Errorf("%s: %+v, answer %q, want %q", test.command, r, answer, test.answer)
		}
	}
	for _, c := range []string{
		`add-port-forward ` + inNet, `custom-action "network_id":"42"`, `no-such-command "network_id":"42"`,
		`add-dhcp-entry "ip":"10.0.0.10"`, `add-dhcp-entry "network_id":"../1"`, `add-dhcp-entry "network_id":"42","ip":"10.0.0.10","mac":"x"`,
		`config-dhcp-subnet "network_id":"42","gateway":"10.1.0.1","cidr":"10.0.0.0/24"`, `config-dhcp-subnet "network_id":"42"`,
		`save-vm-data "network_id":"42","ip":"10.0.0.10"`, `save-vm-data "network_id":"42","ip":"10.0.0.10","vm_data":"haha"`, `save-password "network_id":"42","password":"x"`,
		`restore-network "network_id":"42","restore_data":{}`, `set-dhcp-options "network_id":"42","nic_id":"99","options":{}`,
		`set-dhcp-options "network_id":"42","ip":"10.0.0.10","options":{"x":"y"}`, `add-dhcp-entry {"payload":1}`, `add-dhcp-entry {"payload"`,
	} {
		command, document, _ := strings.Cut(c, " ")
		if r, _ := b.call(command, document); r.State != Rejected || r.Reason == "" {
			t.Errorf("%s: %+v, want rejected with a reason", c, r)
		}
	}
	if r, _ := b.call("set-dhcp-options", `"network_id":"42","nic_id":"7","options":{"53":"1"}`); r.State != Rejected {
		t.Errorf("an option that cannot be set: %+v", r)
	}
}

// TestPlainTextIsNotTakenForBase64: what a user typed is served, even where it could be read as base64.
func TestPlainTextIsNotTakenForBase64(t *testing.T) {
	for content, want := range map[string]string{
		"haha": "haha", "abcdefgh": "abcdefgh", "#cloud-config": "#cloud-config",
		"I2Nsb3VkLWNvbmZpZwo=": "#cloud-config\n", "H4sIAAAAAAACAw==": "\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03",
	} {
		b := newExtensionBench(t)
		b.calls(extLease, fmt.Sprintf(`save-userdata "network_id":"42","ip":"10.0.0.10","userdata":%q`, content))
		if got := string(b.door.files["vms/"+extNet+"_10.0.0.10"][userFile]); got != want {
			t.Errorf("user data %q is served as %q, want %q", content, got, want)
		}
	}
}

func TestExtensionOverTheSocket(t *testing.T) {
	b := newExtensionBench(t)
	client := Dial(listen(t, b.Dialect))
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, answer, err := client.Call(ctx, "add-dhcp-entry", []byte(`{"payload":{`+strings.TrimPrefix(extLease, "add-dhcp-entry ")+`}}`))
	if err != nil || r.State != Applied || answer != nil {
		t.Errorf("Call() = %+v, %q, %v", r, answer, err)
	}
	if got := b.guest(extNet, "10.0.0.10"); got != "0a - - -" {
		t.Errorf("served as %s", got)
	}
	b.door.full = true
	if r, _, err := client.Call(ctx, "save-password", []byte(`{"payload":{"network_id":42,"ip":"10.0.0.10","password":"x"}}`)); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("with a full disk: %+v, %v", r, err)
	}
}

func FuzzCall(f *testing.F) {
	for _, c := range []string{extLease, extData, `implement-network ` + inNet, `set-dhcp-options "network_id":"42","nic_id":"7","options":"{\"42\":\"192.0.2.1\"}"`,
		`restore-network "network_id":"42","restore_data":{"vms":[{"ip":"10.0.0.9","mac":"02:00:00:00:00:0c","vm_data":[]}]}`, `destroy-network ` + inNet} {
		command, document, _ := strings.Cut(c, " ")
		f.Add(command, []byte(`{"payload":{`+document+`}}`))
	}
	f.Fuzz(func(t *testing.T, command string, document []byte) {
		b := newExtensionBench(t)
		b.calls(extLease, extData)
		for range 2 {
			if _, _, err := b.Call(t.Context(), command, document); err != nil {
				t.Fatal(err)
			}
			for unit, files := range b.door.files {
				if c := parse(unit, files); len(c.Faults) > 0 {
					t.Fatalf("%s: %v", unit, c.Faults)
				}
			}
			b.restart()
		}
	})
}
