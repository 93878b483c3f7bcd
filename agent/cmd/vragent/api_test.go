package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPackFolderTakesUnitsAndLeavesTemporaryNames(t *testing.T) {
	dir := tree(t, map[string]string{
		"networks/g.yaml": "a", "networks/g.yaml.swp": "no", "networks/.hidden.yaml": "no",
		"vms/web/vm.yaml": "b", "vms/web/user-data": "\x00\xff", "vms/web/vm.yaml~": "no", "vms/.web/vm.yaml": "no", "vms/new.tmp/vm.yaml": "no",
		"notes.txt": "no",
	})
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "vms/web/password")); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := packFolder(&b, dir); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got[h.Name] = string(h.Typeflag) + string(data)
	}
	want := map[string]string{
		"networks/": "5", "networks/g.yaml": "0a", "vms/": "5", "vms/web/": "5",
		"vms/web/vm.yaml": "0b", "vms/web/user-data": "0\x00\xff",
		"vms/web/password": "2", // a link, as it is: the daemon refuses it by its name
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCommandsOfTheAPIRefuseWhatMakesNoSense(t *testing.T) {
	for _, test := range []struct {
		args   string
		status int
	}{
		{"leases release nowhere", exitUsage},
		{"leases extra", exitUsage},
		{"jobs --limit 0", exitUsage},
		{"push", exitUsage},
		{"push --mode other .", exitUsage},
		{"push /nowhere", exitFailed},
		{"user", exitUsage},
		{"user add alice", exitUsage},
		{"user remove", exitUsage},
		{"apply", exitUsage},
	} {
		var out, errs bytes.Buffer
		args := append([]string{"--config", "/nowhere/agent.yaml"}, strings.Fields(test.args)...)
		err := command(t.Context(), stdio{out: &out, err: &errs}, args)
		if got := exitStatus(err); got != test.status {
			t.Errorf("vragent %s: exit status %d (%v), want %d", test.args, got, err, test.status)
		}
	}
}
