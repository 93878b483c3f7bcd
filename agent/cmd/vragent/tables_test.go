package main

import (
	"bytes"
	"io"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"vragent/agent/internal/api"
)

func TestTablesOfLeasesJobsAndUsers(t *testing.T) {
	std := stdio{now: func() time.Time { return now }}
	tests := []struct {
		name  string
		write func(io.Writer) error
		want  string
	}{
		{"leases", func(w io.Writer) error {
			return writeLeases(w, std, []api.Lease{
				{Network: "guest-1", IPv4: "10.1.1.34", MAC: "02:00:4c:5f:00:01", VM: "web-1", Hostname: "web-1", State: "reserved"},
				{Network: "guest-1", IPv4: "10.1.1.200", MAC: "02:00:4c:5f:00:02", Hostname: "my\x1b[2Jbox", Pool: true, State: "bound", Expires: agoPtr(-2 * time.Hour), LastSeen: agoPtr(time.Minute)},
			})
		}, `NETWORK  IPV4        MAC                FOR              STATE     ENDS   SEEN
guest-1  10.1.1.34   02:00:4c:5f:00:01  web-1            reserved     -      -
guest-1  10.1.1.200  02:00:4c:5f:00:02  pool: my�[2Jbox  bound      2 h  1 min
`},
		{"no leases", func(w io.Writer) error { return writeLeases(w, std, nil) }, "no leases, and no VMs that could have one\n"},
		{"jobs", func(w io.Writer) error {
			return writeJobs(w, std, []api.Job{
				{ID: "5d0b8e0e-3c5c-4a39-a6f5-4e3a4d9f6b10", Command: "pushVirtualMachine", Unit: "vms/web-1", User: "ops", State: "open", Created: ago(time.Second)},
				{ID: "0f6c1d52-1c3e-4a8e-9d0b-6f0f3d9a7c21", Command: "pushBundle", User: "ops", State: "done", Created: ago(time.Hour)},
			})
		}, `ID                                    STATE  UNIT        USER  AGE
5d0b8e0e-3c5c-4a39-a6f5-4e3a4d9f6b10  open   vms/web-1   ops   1 s
0f6c1d52-1c3e-4a8e-9d0b-6f0f3d9a7c21  done   pushBundle  ops   1 h
`},
		{"a job", func(w io.Writer) error {
			return writeJob(w, std, api.Job{ID: "j", Command: "pushBundle", User: "ops", State: "failed", Error: "vms/web-1 is rejected", Created: ago(time.Hour), Completed: agoPtr(time.Minute)})
		}, `job       j
command   pushBundle
user      ops
state     failed
error     vms/web-1 is rejected
created   1 h ago
ended     1 min ago
`},
		{"users", func(w io.Writer) error {
			return writeUsers(w, std, []api.User{{Name: "ops", Role: "operator", State: "enabled", Source: "native", Keys: true, Created: ago(50 * time.Hour)}})
		}, `NAME  ROLE      STATE    SOURCE  KEYS  AGE
ops   operator  enabled  native  yes   2 d
`},
		{"keys", func(w io.Writer) error { return writeKeys(w, api.Keys{APIKey: "a", SecretKey: "s"}) }, "apikey: a\nsecretkey: s\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := tt.write(&b); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, b.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			for line := range bytes.Lines(b.Bytes()) {
				if n := utf8.RuneCount(line) - 1; n > width {
					t.Errorf("a line of %d characters: %s", n, line)
				}
			}
		})
	}
}

func TestStatusSaysWhoStandsInForTheRoutersScripts(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name   string
		status *api.CloudStackStatus
		want   []string
	}{
		{"without the package", nil, nil},
		{"an installation that failed", &api.CloudStackStatus{Problem: "why"}, []string{"the router's own scripts are in force"}},
		{"after live patches", &api.CloudStackStatus{InForce: true, Since: now.Add(-time.Hour), Replaced: []api.Replaced{
			{Path: "/a", Last: now.Add(-2 * time.Minute), Times: 1}, {Path: "/b", Last: now.Add(-time.Minute), Times: 3},
		}}, []string{"the diversions are in force for 1 h", "/a was replaced 2 min ago (once) and put back", "/b was replaced 1 min ago (3 times) and put back"}},
	} {
		if diff := cmp.Diff(test.want, cloudstackText(now, test.status)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

func TestStatusSaysHowAPairStands(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	std := stdio{now: func() time.Time { return now }}
	for _, test := range []struct {
		status api.SharedStatus
		want   string
	}{
		{api.SharedStatus{Endpoint: "https://192.0.2.11:2379", Current: true, Since: now.Add(-time.Hour)},
			"in step with the other router for 1 h, through https://192.0.2.11:2379"},
		{api.SharedStatus{Endpoint: "https://192.0.2.11:2379", Since: now.Add(-time.Minute), Why: "https://192.0.2.11:2379: the server refuses tls.cert"},
			"out of reach for 1 min: no new pool leases and no passwords until it is back: https://192.0.2.11:2379: the server refuses tls.cert"},
	} {
		if got := sharedText(std, &test.status); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}
