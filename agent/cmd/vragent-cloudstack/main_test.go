package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vragent/agent/internal/cloudstack"
)

// taker takes every file in and remembers their names.
type taker struct{ names []string }

func (t *taker) Apply(_ context.Context, files []cloudstack.File) ([]cloudstack.Result, error) {
	var results []cloudstack.Result
	for _, f := range files {
		t.names = append(t.names, f.Name)
		r := cloudstack.Result{Name: f.Name, State: cloudstack.Applied}
		if strings.Contains(string(f.Data), "torn") {
			r.State, r.Reason = cloudstack.Rejected, "is torn"
		}
		results = append(results, r)
	}
	return results, nil
}

func newRouter(t *testing.T, originals bool) (*router, *taker, *bytes.Buffer) {
	t.Helper()
	r := &router{bin: t.TempDir(), in: cloudstack.Intake{Taker: &taker{}, Archive: cloudstack.Archive{Dir: t.TempDir()}}}
	out := &bytes.Buffer{}
	r.out, r.err = out, out
	if originals {
		script := "#!/bin/sh\necho original \"$@\" defer=$DEFER_CONFIG\ncase $1 in fail*) exit 3;; esac\n"
		if err := os.WriteFile(filepath.Join(r.bin, "update_config.py.cloudstack"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return r, r.in.Taker.(*taker), out
}

func TestUpdateConfig(t *testing.T) {
	for _, test := range []struct {
		name      string
		originals bool
		file      string
		status    int
		taken     string
		out       string
	}{
		{"ours never starts the original", true, "vm_dhcp_entry.json.u", 0, "vm_dhcp_entry.json.u", ""},
		{"shared goes to both", true, "guest_network.json.u", 0, "guest_network.json.u", "original guest_network.json.u defer=\n"},
		{"foreign goes to the original", true, "fail.json.u", 3, "", "original fail.json.u defer=\n"},
		{"foreign without an original", false, "firewall_rules.json", 1, "", "firewall_rules.json: a file of this kind is not vragent's, and there is no original update_config.py to hand it to\n"},
		{"shared without an original", false, "guest_network.json.u", 0, "guest_network.json.u", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, taken, out := newRouter(t, test.originals)
			if err := os.WriteFile(r.in.Archive.Path(test.file), []byte("{}"), 0o600); err != nil {
				t.Fatal(err)
			}
			status := r.run(context.Background(), "update_config.py", []string{test.file})
			if got := filepath.Base(strings.Join(taken.names, " ")); status != test.status || out.String() != test.out || strings.TrimPrefix(got, ".") != test.taken {
				t.Errorf("status %d, taken %q, printed %q; want %d, %q, %q", status, got, out, test.status, test.taken, test.out)
			}
		})
	}
}

func TestAggregatedGoesOnAfterAFault(t *testing.T) {
	r, taken, out := newRouter(t, true)
	dir := r.in.Archive.Dir
	section := func(name, data string) string {
		return "<file>\n" + dir + "/" + name + "\n" + data + "\n</file>\n<script>\n/opt/cloud/bin/update_config.py " + name + "\n</script>\n"
	}
	write := func(text string) {
		if err := os.WriteFile(dir+"/VR-u.cfg", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(section("vm_metadata.json.1", "torn") + section("vm_dhcp_entry.json.2", "{}") + section("firewall_rules.json.3", "{}") + section("vm_password.json.4", "{}"))
	if status := r.run(context.Background(), "vr_cfg.sh", []string{"-c", dir + "/VR-u.cfg"}); status != 1 {
		t.Errorf("status %d, want 1\n%s", status, out)
	}
	if got := strings.Join(taken.names, " "); got != "vm_metadata.json.1 vm_dhcp_entry.json.2 vm_password.json.4" {
		t.Errorf("taken: %s", got)
	}
	if want := "vm_metadata.json.1: rejected: is torn\noriginal firewall_rules.json.3 defer=true\n"; out.String() != want {
		t.Errorf("printed %q, want %q", out, want)
	}
	write(section("vm_dhcp_entry.json.2", "{}"))
	for range 2 { // the second time its archived copy answers
		if status := r.run(context.Background(), "vr_cfg.sh", []string{"-c", dir + "/VR-u.cfg"}); status != 0 {
			t.Errorf("status %d, want 0\n%s", status, out)
		}
	}
}
