package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"vragent/agent/internal/account"
	"vragent/agent/internal/backup"
	"vragent/agent/internal/engine"
	"vragent/agent/internal/state"
	"vragent/dhcp"
)

// usersPart is the key of the fault that not all records of users could be read.
const usersPart = "users"

// Contents says what a backup holds.
type Contents struct {
	Created time.Time
	Release string // that made it
	Users   int
	LDAP    int // servers and links of the API's directory
	Leases  int
	Taken   int
	// Faults are what could not be read when it was made.
	Faults []string

	usersLacking bool // some of the users or of the LDAP records could not
}

// Backup writes what no drop directory holds, while the agent serves: users, pool leases and taken
// passwords, each as it was at one moment. What the state directory cannot give is noted in the backup.
// Leases that a pair shares are in it as this router knows them.
func (a *Agent) Backup(ctx context.Context, out io.Writer) error {
	w := backup.NewWriter(out, backup.Header{Created: time.Now().UTC().Truncate(time.Second), Release: a.opts.Version})
	each := func(kind backup.Kind, what string, store *state.Store, prefix string) error {
		err := store.Each(prefix, -1, func(key string, value []byte) error {
			return w.Add(backup.Record{Kind: kind, Key: key, Value: value})
		})
		if errors.Is(err, state.ErrDamaged) {
			return w.Add(backup.Record{Kind: backup.Fault, Key: what, Value: []byte(err.Error())})
		}
		return err
	}
	if a.pair != nil {
		if s := a.pair.status(); !s.Current {
			if err := w.Add(backup.Record{Kind: backup.Fault, Key: "pool leases", Value: []byte("what the other router wrote is not known: " + s.Why)}); err != nil {
				return err
			}
		}
		if err := a.pair.leases.Each(ctx, func(l dhcp.Lease) error {
			value, err := l.MarshalBinary()
			if err != nil {
				return fmt.Errorf("lease of %s: %w", l.IP, err)
			}
			return w.Add(backup.Record{Kind: backup.Lease, Key: leaseKey(l), Value: value})
		}); err != nil {
			return err
		}
	}
	return errors.Join(
		each(backup.User, usersPart, a.users, ""),
		each(backup.Lease, "pool leases", a.leases, leasePrefix),
		each(backup.Taken, "taken passwords", a.units, engine.TakenPrefix),
		w.Close(),
	)
}

// ReadBackup reads a backup to its end and says what it holds. Errors say what is wrong with it.
func ReadBackup(in io.Reader) (Contents, error) {
	return readBackup(in, new(account.Distinct), func(backup.Record) {})
}

// readBackup calls do with each record that is good, and adds the users to users.
func readBackup(in io.Reader, users *account.Distinct, do func(backup.Record)) (Contents, error) {
	var c Contents
	var bad error // the first record that is; a file whose checksum is wrong has a simpler fault
	h, err := backup.Read(in, func(r backup.Record) error {
		err := c.count(r)
		if err == nil && isUser(r) {
			if err = users.Add(r.Value); err != nil {
				err = fmt.Errorf("record of a user: %w: remove one of them where the backup comes from, and save it again", err)
			}
		}
		if err != nil {
			bad = cmp.Or(bad, err)
			return nil
		}
		if r.Kind != backup.Fault {
			do(r)
		}
		return nil
	})
	c.Created, c.Release = h.Created, h.Release
	return c, cmp.Or(err, bad)
}

// isUser tells a user from an LDAP server or link.
func isUser(r backup.Record) bool {
	return r.Kind == backup.User && strings.HasPrefix(r.Key, account.UserPrefix)
}

// count checks a record and counts it in.
func (c *Contents) count(r backup.Record) error {
	switch r.Kind {
	case backup.User:
		user, err := account.CheckRecord(r.Key, r.Value)
		if err != nil {
			return fmt.Errorf("record of a user: %w", err)
		}
		if user {
			c.Users++
		} else {
			c.LDAP++
		}
	case backup.Lease:
		var l dhcp.Lease
		if err := l.UnmarshalBinary(r.Value); err != nil {
			return fmt.Errorf("record of a pool lease: %s: %w", r.Key, err)
		}
		if leaseKey(l) != r.Key {
			return fmt.Errorf("record of a pool lease: %s: is that of %s in %s", r.Key, l.IP, l.Network)
		}
		c.Leases++
	case backup.Taken:
		if err := engine.CheckTaken(r.Key, r.Value); err != nil {
			return fmt.Errorf("record of a taken password: %w", err)
		}
		c.Taken++
	case backup.Fault:
		c.Faults = append(c.Faults, r.Key+": "+string(r.Value))
		c.usersLacking = c.usersLacking || r.Key == usersPart
	default:
		return fmt.Errorf("record of kind %q: this release knows none", r.Kind)
	}
	return nil
}

// Restored says what a restore did.
type Restored struct {
	Contents // of the backup
	// RemovedUsers and RemovedLDAP were there and not in the backup.
	RemovedUsers, RemovedLDAP int
	// KeptUsers are users and LDAP records that were there and not in a backup that lacks some.
	KeptUsers int
	// NewerLeases and KeptTaken of the backup changed nothing: the state directory knows something newer.
	NewerLeases, KeptTaken int
	// Damage is what was wrong with the state directory.
	Damage []string
}

// StateOwner returns who owns the state directory of a configuration. Whoever restores has to be that
// user, or the agent could not write what is restored.
func StateOwner(config string) (os.FileInfo, error) {
	cfg, err := LoadConfig(config)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(cfg.StateDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("state directory: %s is not there: start vragent once, which makes it, and stop it", cfg.StateDir)
	}
	return info, err
}

// Restore brings a backup into the state directory of an agent that does not run. All of the backup is
// checked before anything is changed. Users become those of the backup; where it lacks some, since they
// could not be read when it was made, none is removed, and it is refused if one that stays has the name
// or the API key of one in it. A lease or a taken password of the state directory gives way to a newer
// one only, so that no address is given twice and no password is given out again; leases tell which is
// newer, and a taken password that is there is newer than any backup. Each of the three is changed whole
// or not at all, and restoring again does no harm.
func Restore(config string, in io.Reader) (Restored, error) {
	var done Restored
	cfg, err := LoadConfig(config)
	if err != nil {
		return done, err
	}
	var records []backup.Record
	var users account.Distinct
	if done.Contents, err = readBackup(in, &users, func(r backup.Record) { records = append(records, r) }); err != nil {
		return done, err
	}
	stores := make(map[backup.Kind]*state.Store)
	for kind, name := range map[backup.Kind]string{backup.User: "users", backup.Lease: "leases", backup.Taken: "units"} {
		store, report, err := state.Open(filepath.Join(cfg.StateDir, name), state.Options{})
		if errors.Is(err, state.ErrLocked) {
			err = fmt.Errorf("the daemon is running (systemctl stop vragent), or another restore is: %w", err)
		}
		if err != nil {
			return done, err
		}
		defer store.Close()
		stores[kind] = store
		if !report.Empty() {
			done.Damage = append(done.Damage, name+": "+report.String())
		}
	}

	changes := map[backup.Kind]*state.Batch{backup.User: {}, backup.Lease: {}, backup.Taken: {}}
	here := make(map[string]bool)
	for _, r := range records {
		switch r.Kind {
		case backup.User:
			here[r.Key] = true
		case backup.Lease:
			if newer, err := holdsNewer(stores[r.Kind], r); err != nil {
				return done, err
			} else if newer {
				done.NewerLeases++
				continue
			}
		case backup.Taken:
			if value, err := stores[r.Kind].Get(r.Key); err == nil && engine.CheckTaken(r.Key, value) == nil {
				done.KeptTaken++
				continue
			}
		}
		changes[r.Kind].Put(r.Key, r.Value)
	}
	for key := range stores[backup.User].Keys("") {
		switch {
		case here[key]:
			continue
		case done.usersLacking:
			if err := mayStay(&users, stores[backup.User], key); err != nil {
				return done, err
			}
			done.KeptUsers++
			continue
		case strings.HasPrefix(key, account.UserPrefix):
			done.RemovedUsers++
		default:
			done.RemovedLDAP++
		}
		changes[backup.User].Delete(key)
	}
	for _, kind := range []backup.Kind{backup.Taken, backup.Lease, backup.User} {
		if err := stores[kind].Commit(changes[kind]); err != nil {
			return done, fmt.Errorf("%w: not all is restored, do it again once that is put right", err)
		}
	}
	return done, nil
}

// mayStay tells whether the user under a key of a store, if it is one, can be told from those of a backup.
func mayStay(users *account.Distinct, store *state.Store, key string) error {
	value, err := store.Get(key)
	if err != nil {
		return nil // Open of the store has reported it
	}
	if user, err := account.CheckRecord(key, value); err != nil || !user {
		return nil // it has no name that counts
	}
	if err := users.Check(value); err != nil {
		return fmt.Errorf("a user of this router, who stays since the backup lacks some: %w of the backup: start vragent, remove that user (vragent user remove), stop it and restore again", err)
	}
	return nil
}

// holdsNewer tells whether a store has a lease under the key of r that began later, and is sound.
func holdsNewer(store *state.Store, r backup.Record) (bool, error) {
	value, err := store.Get(r.Key)
	if errors.Is(err, state.ErrNotFound) || errors.Is(err, state.ErrDamaged) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var old, new dhcp.Lease
	if old.UnmarshalBinary(value) != nil {
		return false, nil
	}
	if err := new.UnmarshalBinary(r.Value); err != nil {
		return false, err
	}
	return old.Start.After(new.Start), nil
}
