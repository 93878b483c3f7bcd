package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tree writes files below a new folder and returns it.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestCheckNamesFaultsByFileLineAndColumn(t *testing.T) {
	const network = "interface: eth0\ngateway: 10.1.1.1/24\n"
	const vm = "hostname: web-1\nnics:\n  - network: guest-1\n    ipv4: 10.1.1.34\n"
	tests := []struct {
		name, path string // path: what to check, empty for all
		files      map[string]string
		status     int
		lines      []string // how each line begins; DIR stands for the folder
	}{
		{"nothing wrong", "", map[string]string{
			"agent.yaml":            "drop_dir: DIR/drop\n",
			"drop/networks/n.yaml":  network,
			"drop/vms/web-1/.draft": "nonsense: [",
		}, 0, nil},
		{"unknown key in the configuration", "", map[string]string{
			"agent.yaml": "drop_dir: DIR/drop\ndrop_dri: DIR/drop\n",
		}, 1, []string{"DIR/agent.yaml:2:1: unknown key"}},
		{"syntax", "", map[string]string{
			"agent.yaml":           "drop_dir: DIR/drop\n",
			"drop/networks/n.yaml": "interface: [eth0\n",
		}, 1, []string{"DIR/drop/networks/n.yaml:1: "}},
		{"one VM of a tree", "drop/vms/web-2", map[string]string{
			"agent.yaml":                  "drop_dir: DIR/drop\n",
			"drop/networks/guest-1.yaml":  network,
			"drop/vms/web-1/vm.yaml":      "nics: {}\n",
			"drop/vms/web-2/vm.yaml":      vm,
			"drop/vms/web-2/userdata.txt": "",
		}, 0, []string{"note: DIR/drop/vms/web-2: userdata.txt is not read"}},
		{"the whole tree", "drop", map[string]string{
			"agent.yaml":                 "drop_dir: DIR/drop\n",
			"drop/networks/guest-1.yaml": network,
			"drop/vms/web-1/vm.yaml":     vm + "colour: red\n",
			"drop/vms/web-2/vm.yaml":     strings.Replace(vm, "10.1.1.34", "10.1.2.34", 1),
		}, 1, []string{"DIR/drop/vms/web-1/vm.yaml:5:1: ", "DIR/drop/vms/web-2/vm.yaml:4:11: "}},
		{"before the first start", "", map[string]string{
			"agent.yaml": "drop_dir: DIR/drop\n",
		}, 0, []string{"note: DIR/drop: is not there yet"}},
		{"no such path", "drop/vms/web-9", map[string]string{"agent.yaml": ""}, 1, []string{"DIR/drop/vms/web-9: "}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := tree(t, tt.files)
			config := filepath.Join(dir, "agent.yaml")
			raw, err := os.ReadFile(config)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(config, []byte(strings.ReplaceAll(string(raw), "DIR", dir)), 0o600); err != nil {
				t.Fatal(err)
			}
			args := []string{"check", "--config", config}
			if tt.path != "" {
				args = append(args, filepath.Join(dir, tt.path))
			}
			got := runCLI(t, false, args...)
			if got.status != tt.status || got.err != "" {
				t.Errorf("exit status %d with %q on standard error, want %d and nothing", got.status, got.err, tt.status)
			}
			lines := slices.Collect(strings.Lines(strings.ReplaceAll(got.out, dir, "DIR")))
			if !slices.EqualFunc(lines, tt.lines, strings.HasPrefix) {
				t.Errorf("vragent %q prints %q, want lines that begin %q", args, lines, tt.lines)
			}
		})
	}
}
