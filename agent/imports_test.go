package agent_test

import (
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/imports.golden anew")

const importsGolden = "testdata/imports.golden"

// goPackage is what go list tells of a package: its files and imports without those of tests.
type goPackage struct {
	ImportPath, Dir, Name string
	GoFiles, Imports      []string
}

// packages lists every package of the module.
func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Name,GoFiles,Imports", "vragent/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p goPackage
		if err := dec.Decode(&p); err != nil {
			t.Fatalf("go list: %v", err)
		}
		if len(p.GoFiles) > 0 { // else it holds nothing but tests
			all = append(all, p)
		}
	}
	return all
}

// TestImports makes every new arrow between packages, and to a module of others, a decision: it
// shows up as a line of a file that is reviewed.
//
//	go test ./agent -run TestImports -update
func TestImports(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Each package, and what it imports of ours and of others beside the standard library.\n" +
		"# After a change that is meant: go test ./agent -run TestImports -update\n")
	for _, p := range packages(t) {
		b.WriteString("\n" + p.ImportPath + "\n")
		for _, imported := range p.Imports {
			if first, _, _ := strings.Cut(imported, "/"); first == "vragent" || strings.Contains(first, ".") {
				b.WriteString("\t" + imported + "\n")
			}
		}
	}
	got := b.String()
	if *update {
		if err := os.WriteFile(importsGolden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(importsGolden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("the arrows between packages have changed (-want +got):\n%s\nIf that is meant, run: go test ./agent -run TestImports -update", diff)
	}
}

// bans are imports that only the named packages may have, and why. A path that ends in /... covers
// all below it, too; tests are free.
var bans = []struct {
	imported string
	by       string // the packages that may not, all for every one but those in except
	except   []string
	why      string
}{
	{
		"vragent/...", "vragent/dhcp", nil,
		"dhcp is a leaf: it declares the table it answers from, and whoever knows the files fills it",
	},
	{
		"vragent/...", "vragent/metadata", nil,
		"metadata is a leaf: it declares the table it serves from, and whoever knows the files fills it",
	},
	{
		"vragent/...", "vragent/netcfg", nil,
		"netcfg is a leaf: it declares the plan it applies, and whoever knows the files makes it",
	},
	{
		"github.com/fsnotify/fsnotify", "all", []string{"vragent/agent/internal/drop"},
		"when a file is complete is decided in one place",
	},
	{
		"github.com/insomniacslk/dhcp/...", "all", []string{"vragent/dhcp"},
		"its traps are known and avoided in one place; everybody else speaks of MACs and addresses",
	},
	{
		"github.com/vishvananda/netlink", "all", []string{"vragent/netcfg", "vragent/netcfg/nstest"},
		"only netcfg changes the router's network, so that it knows what is its own",
	},
	{
		"gopkg.in/yaml.v3", "all",
		[]string{"vragent/agent/internal/strict", "vragent/agent/internal/api", "vragent/agent/cmd/vragent"},
		"what people write is read strictly and with positions, by package strict; api and the command line only write",
	},
	{
		"github.com/spf13/cobra", "all", []string{"vragent/agent/cmd/vragent"},
		"flags and arguments end where the command line does",
	},
	{
		"vragent/netcfg/nstest", "all", []string{"vragent/agent/internal/etcd/etcdtest"},
		"it is made for tests",
	},
	{
		"vragent/agent/internal/etcd/etcdtest", "all", nil,
		"it is made for tests",
	},
	{
		"go.etcd.io/etcd/...", "all", []string{"vragent/agent/internal/etcd"},
		"the library's ways of waiting and of saying what failed are known in one place",
	},
	{
		"google.golang.org/grpc/...", "all", []string{"vragent/agent/internal/etcd"},
		"it is the wire of etcd's library and of nothing else",
	},
	{
		"os/exec", "all", []string{"vragent/netcfg/nstest", "vragent/agent/internal/handover/handovertest", "vragent/agent/cmd/vragent-cloudstack"},
		"the agent starts no programs: the kernel and the file system are spoken to directly, and the unit's filter may stay tight; " +
			"vragent-cloudstack hands files of others to the scripts that it stands in for, and takes their services out by systemctl",
	},
	{
		"log", "all", nil,
		"a *slog.Logger is passed in, so that every line has its keys and tests see none",
	},
}

func TestBannedImports(t *testing.T) {
	for _, p := range packages(t) {
		for _, imported := range p.Imports {
			for _, ban := range bans {
				if (ban.by == "all" || ban.by == p.ImportPath) && covers(ban.imported, imported) && !slices.Contains(ban.except, p.ImportPath) {
					t.Errorf("%s imports %s: %s", p.ImportPath, imported, ban.why)
				}
			}
		}
	}
}

func covers(pattern, path string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == prefix || strings.HasPrefix(path, prefix+"/")
	}
	return path == pattern
}

// TestPackagesSayWhatTheyAreFor finds packages without a package comment.
func TestPackagesSayWhatTheyAreFor(t *testing.T) {
	for _, p := range packages(t) {
		want := "Package " + p.Name + " "
		if p.Name == "main" {
			want = "Command "
		}
		if doc := packageDoc(t, p); !strings.HasPrefix(doc, want) {
			t.Errorf("the comment on package %s begins %.40q, want %q and what it does", p.ImportPath, doc, want)
		}
	}
}

// packageDoc is the comment on the package clause of the one file of p that has one.
func packageDoc(t *testing.T, p goPackage) string {
	t.Helper()
	var doc string
	for _, name := range p.GoFiles {
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if text := commentOf(file); text != "" && doc != "" {
			t.Errorf("package %s has two comments, one of them in %s", p.ImportPath, name)
		} else if text != "" {
			doc = text
		}
	}
	return doc
}

func commentOf(file *ast.File) string {
	if file.Doc == nil {
		return ""
	}
	return file.Doc.Text()
}
