package cloudstack

import "testing"

func TestReasonsAreForPeople(t *testing.T) {
	for name, test := range map[string]struct{ file, data, want string }{
		"a list":      {"vm_dhcp_entry.json.u", `[]`, "holds a list where an object is expected"},
		"a number":    {"cmd_line.json", `3`, "holds a number where an object is expected"},
		"rows":        {"vm_metadata.json.u", `{"vm_ip_address":"10.1.1.50","vm_metadata":{"a":1}}`, "vm_metadata: is an object; it must be a list"},
		"a truth":     {"cmd_line.json", `{"cmd_line":true}`, "cmd_line: is a bool; it must be an object"},
		"broken off":  {"vm_dhcp_entry.json.u", `{"mac`, "is no complete JSON: unexpected end of JSON input at byte 5 of 5"},
		"other files": {"firewall_rules.json.u", `{}`, "not a kind of file that vragent reads: the name must begin as the server has it, like vm_dhcp_entry.json"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Parse(test.file, []byte(test.data)); err == nil || err.Error() != test.want {
				t.Errorf("Parse() = %v, want %s", err, test.want)
			}
		})
	}
	document := `{"network_id":"7","ip":"10.9.9.9","vm_data":{"dir":1}}`
	if _, err := ParseCall("save-vm-data", []byte(document)); err == nil || err.Error() != "vm_data of 10.9.9.9: holds an object where a list is expected" {
		t.Errorf("ParseCall() = %v", err)
	}
}
