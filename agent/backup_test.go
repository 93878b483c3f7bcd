package agent

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vragent/agent/internal/backup"
	"vragent/agent/internal/state"
	"vragent/dhcp"
)

func TestRestoreRemovesNoUserThatTheBackupCouldNotRead(t *testing.T) {
	for name, test := range map[string]struct {
		records []backup.Record
		left    []string
		kept    int
		removed int
	}{
		"whole":          {nil, nil, 0, 1},
		"leases lacking": {[]backup.Record{{Kind: backup.Fault, Key: "pool leases", Value: []byte("damaged")}}, nil, 0, 1},
		"users lacking":  {[]backup.Record{{Kind: backup.Fault, Key: "users", Value: []byte("damaged")}}, []string{"user/1"}, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			config := filepath.Join(dir, "agent.yaml")
			if err := os.WriteFile(config, []byte("state_dir: "+dir+"/state\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			users := filepath.Join(dir, "state", "users")
			open := func() *state.Store {
				t.Helper()
				store, _, err := state.Open(users, state.Options{})
				if err != nil {
					t.Fatal(err)
				}
				return store
			}
			if err := os.MkdirAll(users, 0o700); err != nil {
				t.Fatal(err)
			}
			store := open()
			var batch state.Batch
			batch.Put("user/1", []byte("{}"))
			if err := store.Commit(&batch); err != nil {
				t.Fatal(err)
			}
			store.Close()

			var file bytes.Buffer
			w := backup.NewWriter(&file, backup.Header{})
			for _, r := range test.records {
				if err := w.Add(r); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			done, err := Restore(config, &file)
			if err != nil || done.KeptUsers != test.kept || done.RemovedUsers != test.removed {
				t.Errorf("Restore() = %+v, %v", done, err)
			}
			store = open()
			defer store.Close()
			if left := slices.Collect(store.Keys("")); !slices.Equal(left, test.left) {
				t.Errorf("users left: %v, want %v", left, test.left)
			}
		})
	}
}

func TestRestoreRefusesUsersThatCannotBeToldApart(t *testing.T) {
	user := func(id, name string) backup.Record {
		return backup.Record{Kind: backup.User, Key: "user/" + id, Value: fmt.Appendf(nil,
			`{"id":%q,"name":%q,"role":"viewer","state":"enabled","source":"native","api_key":"key of %s"}`, id, name, id)}
	}
	lacking := backup.Record{Kind: backup.Fault, Key: "users", Value: []byte("damaged")}
	lease := dhcp.Lease{
		Network: "guest-1", IP: netip.MustParseAddr("10.1.1.200"), MAC: dhcp.MAC{2, 0, 0, 0, 0, 1}, State: dhcp.LeaseBound,
		Start: time.Unix(1, 0), Expiry: time.Unix(2, 0),
	}
	value, err := lease.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	leased := backup.Record{Kind: backup.Lease, Key: leaseKey(lease), Value: value}
	for name, c := range map[string]struct {
		here, file []backup.Record
		want       string // "" is restored
		left       []string
	}{
		"in the file": {
			here: []backup.Record{user("9", "old")}, file: []backup.Record{user("1", "ops"), leased, user("2", "Ops")},
			want: "user/2 (Ops) has the name of user/1: remove one of them", left: []string{"user/9"},
		},
		"twice in the file": {
			file: []backup.Record{user("1", "ops"), leased, user("1", "op")},
			want: "user/1 is there twice",
		},
		"one that stays": {
			here: []backup.Record{user("9", "ops")}, file: []backup.Record{user("1", "ops"), leased, lacking},
			want: "user/9 (ops) has the name of user/1 of the backup: start vragent, remove that user", left: []string{"user/9"},
		},
		"one that stays and is the same": {
			here: []backup.Record{user("1", "ops")}, file: []backup.Record{user("1", "ops"), leased, lacking},
			left: []string{"user/1"},
		},
		"one that does not stay": {
			here: []backup.Record{user("9", "ops")}, file: []backup.Record{user("1", "ops"), leased},
			left: []string{"user/1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			config := filepath.Join(dir, "agent.yaml")
			if err := os.WriteFile(config, []byte("state_dir: "+dir+"/state\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			open := func(name string) *state.Store {
				t.Helper()
				folder := filepath.Join(dir, "state", name)
				if err := os.MkdirAll(folder, 0o700); err != nil {
					t.Fatal(err)
				}
				store, _, err := state.Open(folder, state.Options{})
				if err != nil {
					t.Fatal(err)
				}
				return store
			}
			store := open("users")
			var batch state.Batch
			for _, r := range c.here {
				batch.Put(r.Key, r.Value)
			}
			if err := store.Commit(&batch); err != nil {
				t.Fatal(err)
			}
			store.Close()
			var file bytes.Buffer
			w := backup.NewWriter(&file, backup.Header{})
			for _, r := range c.file {
				if err := w.Add(r); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}

			_, err := Restore(config, &file)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("Restore() = %v, want %q", err, c.want)
			}
			users, leases := open("users"), open("leases")
			defer users.Close()
			defer leases.Close()
			if left := slices.Collect(users.Keys("")); !slices.Equal(left, c.left) {
				t.Errorf("users left: %v, want %v", left, c.left)
			}
			if restored := leases.Len() == 1; restored != (c.want == "") {
				t.Errorf("leases restored: %v", restored)
			}
		})
	}
}
