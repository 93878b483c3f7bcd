package account

import (
	"strings"
	"testing"
)

func TestRecordsOfOtherThingsThanUsersAreFound(t *testing.T) {
	const good = `{"id":"1","name":"ops","role":"operator","state":"enabled","source":"native"}`
	for name, test := range map[string]struct {
		key, value string
		user       bool
		want       string // "" is none
	}{
		"user":          {"user/1", good, true, ""},
		"LDAP server":   {"ldap/7", `{"ID":"7"}`, false, ""},
		"another's id":  {"user/2", good, true, `id "1"`},
		"no role":       {"user/1", strings.Replace(good, "operator", "root", 1), true, "role"},
		"no name":       {"user/1", strings.Replace(good, `"ops"`, `""`, 1), true, "name"},
		"no state":      {"user/1", strings.Replace(good, "enabled", "tired", 1), true, "state"},
		"no source":     {"user/1", strings.Replace(good, "native", "paper", 1), true, "source"},
		"not JSON":      {"user/1", `{"id":`, true, "user/1"},
		"foreign key":   {"lease/1", good, false, "no key of users"},
		"role of link":  {"link/root", `{"Role":"root"}`, false, "role"},
		"id of server":  {"ldap/8", `{"ID":"7"}`, false, `id "7"`},
		"server broken": {"ldap/7", `[]`, false, "ldap/7"},
	} {
		user, err := CheckRecord(test.key, []byte(test.value))
		if user != test.user || (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: CheckRecord() = %v, %v; want %v, %q", name, user, err, test.user, test.want)
		}
	}
}

func TestUsersThatCannotBeToldApartAreFound(t *testing.T) {
	for name, c := range map[string]struct{ first, second, want string }{
		"others":         {`{"id":"1","name":"ops","api_key":"k"}`, `{"id":"2","name":"op","api_key":"l"}`, ""},
		"without keys":   {`{"id":"1","name":"ops"}`, `{"id":"2","name":"op"}`, ""},
		"same name":      {`{"id":"1","name":"ops"}`, `{"id":"2","name":"ops"}`, "user/2 (ops) has the name of user/1"},
		"but for case":   {`{"id":"1","name":"ops"}`, `{"id":"2","name":"Ops"}`, "user/2 (Ops) has the name of user/1"},
		"same key":       {`{"id":"1","name":"ops","api_key":"k"}`, `{"id":"2","name":"op","api_key":"k"}`, "user/2 (op) has the API key of user/1"},
		"same id":        {`{"id":"1","name":"ops"}`, `{"id":"1","name":"op"}`, "user/1 is there twice"},
		"more than JSON": {`{"id":"1","name":"ops"}`, `{"id":"2","name":"op"} x`, "invalid character 'x'"},
	} {
		t.Run(name, func(t *testing.T) {
			var d Distinct
			if err := d.Add([]byte(c.first)); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := d.Check([]byte(c.second)); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
					t.Errorf("Check() = %v, want %q", err, c.want)
				}
			}
			if err := d.Add([]byte(c.second)); (err == nil) != (c.want == "") {
				t.Errorf("Add() = %v, want %q", err, c.want)
			}
		})
	}
}
