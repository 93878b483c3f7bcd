package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vragent/agent/internal/api"
)

func TestStatusReadsWhatThePackageRecords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "status.json")
	if s, err := standsIn(path); s != nil || err != nil {
		t.Errorf("without a record: %v, %v", s, err)
	}
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"in_force":true,"since":"2026-01-02T03:04:05Z","stands":{"/b":{"replaced":"2026-02-02T00:00:00Z","times":2},"/a":{},"/c":null}}`)
	want := &api.CloudStackStatus{
		InForce: true, Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Replaced: []api.Replaced{{Path: "/b", Last: time.Date(2026, 2, 2, 0, 0, 0, 0, time.UTC), Times: 2}},
	}
	got, err := standsIn(path)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	write(`{"in_force":tr`)
	if _, err := standsIn(path); err == nil || !strings.Contains(err.Error(), "status.json") {
		t.Errorf("a torn record: %v", err)
	}
}
