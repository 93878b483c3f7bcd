package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// binaryEnv tells the process of a test in its namespaces where the daemon's program is.
const binaryEnv = "VRAGENT_E2E_BINARY"

var building struct {
	sync.Once
	dir, failure string
}

func TestMain(m *testing.M) {
	status := m.Run()
	if building.dir != "" {
		os.RemoveAll(building.dir)
	}
	os.Exit(status)
}

// buildDaemon returns the program. Called before Enter as well, it is built once for all tests.
func buildDaemon(t *testing.T) string {
	t.Helper()
	if binary := os.Getenv(binaryEnv); binary != "" {
		return binary
	}
	building.Do(func() {
		dir, err := os.MkdirTemp("", "vragent-e2e")
		if err == nil {
			building.dir = dir
			err = os.Chmod(dir, 0o755) // other users run it too
		}
		if err != nil {
			building.failure = err.Error()
			return
		}
		binary := filepath.Join(dir, "vragent")
		args := []string{"build", "-o", binary}
		if os.Getenv(faultsEnv) != "" {
			args = append(args, "-race")
		}
		if out, err := exec.Command("go", append(args, "vragent/agent/cmd/vragent")...).CombinedOutput(); err != nil {
			building.failure = "go build: " + err.Error() + "\n" + string(out)
			return
		}
		os.Setenv(binaryEnv, binary) // which Enter hands on
	})
	if building.failure != "" {
		t.Fatal(building.failure)
	}
	return os.Getenv(binaryEnv)
}
