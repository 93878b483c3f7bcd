package account

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// CheckRecord tells whether a record of a Store, such as one from a backup, is one that Open and
// OpenDirectory would take, and whether it is a user's rather than that of an LDAP server or link.
func CheckRecord(key string, value []byte) (user bool, err error) {
	read := func(v any) error {
		dec := json.NewDecoder(bytes.NewReader(value))
		if err := dec.Decode(v); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		return nil
	}
	switch {
	case strings.HasPrefix(key, UserPrefix):
		var u User
		if err := read(&u); err != nil {
			return true, err
		}
		_, role := ParseRole(string(u.Role))
		if err := errors.Join(CheckName(u.Name), role); err != nil {
			return true, fmt.Errorf("%s: %w", key, err)
		}
		if key != UserPrefix+u.ID || u.ID == "" {
			return true, fmt.Errorf("%s: is the record of id %q", key, u.ID)
		}
		if u.State != Enabled && u.State != Disabled && u.State != Locked {
			return true, fmt.Errorf("%s: state %q: want enabled, disabled or locked", key, u.State)
		}
		if u.Source != Native && u.Source != LDAP {
			return true, fmt.Errorf("%s: source %q: want native or ldap", key, u.Source)
		}
		return true, nil
	case strings.HasPrefix(key, serverPrefix):
		var s LDAPServer
		if err := read(&s); err != nil {
			return false, err
		}
		if key != serverPrefix+s.ID || s.ID == "" {
			return false, fmt.Errorf("%s: is the record of id %q", key, s.ID)
		}
		return false, nil
	case strings.HasPrefix(key, linkPrefix):
		var l Link
		if err := read(&l); err != nil {
			return false, err
		}
		if _, err := ParseRole(string(l.Role)); err != nil || key != linkPrefix+string(l.Role) {
			return false, fmt.Errorf("%s: is the record of role %q", key, l.Role)
		}
		return false, nil
	}
	return false, fmt.Errorf("%q is no key of users", key)
}
