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

// Distinct are users of records, each of which can be told from the others: by id, by name without regard
// to case, and by API key. The zero value holds none. It is not safe for concurrent use.
type Distinct struct {
	ids          map[string]bool
	names, keyed map[string]string // ids by folded name and by API key
}

// Add adds the user of a record that CheckRecord takes. An error names the user that it cannot be told
// from, and adds nothing.
func (d *Distinct) Add(value []byte) error {
	user, err := d.check(value)
	if err != nil {
		return err
	}
	if d.ids == nil {
		d.ids, d.names, d.keyed = make(map[string]bool), make(map[string]string), make(map[string]string)
	}
	d.ids[user.ID] = true
	d.names[foldName(user.Name)] = user.ID
	if user.APIKey != "" {
		d.keyed[user.APIKey] = user.ID
	}
	return nil
}

// Check returns the error of Add, and adds nothing.
func (d *Distinct) Check(value []byte) error {
	_, err := d.check(value)
	return err
}

func (d *Distinct) check(value []byte) (User, error) {
	var user User
	if err := json.Unmarshal(value, &user); err != nil {
		return user, err
	}
	if d.ids[user.ID] {
		return user, fmt.Errorf("%s%s is there twice", UserPrefix, user.ID)
	}
	for _, same := range []struct{ what, id string }{{"the name", d.names[foldName(user.Name)]}, {"the API key", d.keyed[user.APIKey]}} {
		if same.id != "" {
			return user, fmt.Errorf("%s%s (%s) has %s of %s%s", UserPrefix, user.ID, user.Name, same.what, UserPrefix, same.id)
		}
	}
	return user, nil
}
