package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// building are the programs that have been built, or why they could not.
var building struct {
	sync.Mutex
	dir     string
	failure map[string]string
}

func TestMain(m *testing.M) {
	status := m.Run()
	if building.dir != "" {
		os.RemoveAll(building.dir)
	}
	os.Exit(status)
}

// buildDaemon returns the program vragent. Called before Enter as well, it is built once for all tests.
func buildDaemon(t *testing.T) string {
	t.Helper()
	return buildProgram(t, "vragent")
}

// buildProgram returns a program of ours. Called before Enter as well, it is built once for all tests. For
// tests of faults it has the race detector in it.
func buildProgram(t *testing.T, name string) string {
	t.Helper()
	if os.Getenv(faultsEnv) != "" {
		return buildWith(t, name, "-race")
	}
	return buildWith(t, name)
}

// buildWith is buildProgram with flags for go build.
func buildWith(t *testing.T, name string, flags ...string) string {
	t.Helper()
	as := name + strings.Join(flags, "")
	// Tells the process of a test in its namespaces where the program is.
	env := "VRAGENT_E2E_" + strings.ToUpper(strings.ReplaceAll(as, "-", "_"))
	building.Lock()
	defer building.Unlock()
	if binary := os.Getenv(env); binary != "" {
		return binary
	}
	if why := building.failure[as]; why != "" {
		t.Fatal(why)
	}
	fail := func(why string) {
		if building.failure == nil {
			building.failure = make(map[string]string)
		}
		building.failure[as] = why
		t.Fatal(why)
	}
	if building.dir == "" {
		dir, err := os.MkdirTemp("", "vragent-e2e")
		if err == nil {
			err = os.Chmod(dir, 0o755) // other users run it too
		}
		if err != nil {
			fail(err.Error())
		}
		building.dir = dir
	}
	binary := filepath.Join(building.dir, as)
	args := append(append([]string{"build"}, flags...), "-o", binary, "vragent/agent/cmd/"+name)
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		fail("go build: " + err.Error() + "\n" + string(out))
	}
	os.Setenv(env, binary) // which Enter hands on
	return binary
}
