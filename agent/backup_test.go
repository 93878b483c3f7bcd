package agent

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"vragent/agent/internal/backup"
	"vragent/agent/internal/state"
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
