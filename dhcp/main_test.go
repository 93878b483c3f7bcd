package dhcp

import (
	"flag"
	"os"
	"testing"
)

// TestMain has more tests run side by side than there are processors: those with real clients do nothing but
// wait for the clients' timers.
func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", "8"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}
