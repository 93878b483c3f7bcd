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
