package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vragent/agent"
)

const packaging = "../../../packaging"

// TestManPageNamesEverything finds commands and flags that the man page lacks.
func TestManPageNamesEverything(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(packaging, "vragent.8"))
	if err != nil {
		t.Fatal(err)
	}
	page := strings.ReplaceAll(string(raw), `\-`, "-")
	root := newRoot(stdio{}, &options{}, func() {})
	for _, cmd := range root.Commands() {
		if heading := regexp.MustCompile(`(?m)^\.BR? ` + cmd.Name() + `\b`); !heading.MatchString(page) {
			t.Errorf("packaging/vragent.8 has no entry for %s", cmd.CommandPath())
		}
		for _, flag := range flagsOf(cmd) {
			if !strings.Contains(page, "--"+flag) {
				t.Errorf("packaging/vragent.8 does not name --%s of %s", flag, cmd.CommandPath())
			}
		}
	}
}

func flagsOf(cmd *cobra.Command) []string {
	var names []string
	add := func(f *pflag.Flag) { names = append(names, f.Name) }
	cmd.Flags().VisitAll(add)
	cmd.InheritedFlags().VisitAll(add)
	return names
}

// TestPackagedConfigurationShowsTheDefaults reads the file that the package installs with its keys
// uncommented: they are all known, and each has the value that it has without the file.
func TestPackagedConfigurationShowsTheDefaults(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(packaging, "agent.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	keys := regexp.MustCompile(`(?m)^#( *[a-z_]+:)`).ReplaceAllString(string(raw), "$1")
	shown, empty := load(t, keys), load(t, "")
	shown.Files, empty.Files = nil, nil
	if diff := cmp.Diff(empty, shown, cmpopts.IgnoreUnexported(agent.Config{})); diff != "" {
		t.Errorf("packaging/agent.yaml differs from the defaults (-default +shown):\n%s", diff)
	}
	if installed := load(t, string(raw)); !cmp.Equal(empty.API, installed.API) {
		t.Errorf("the file as it is installed changes something: %+v", installed)
	}
}

func load(t *testing.T, text string) *agent.Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := agent.LoadConfig(file)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return cfg
}
