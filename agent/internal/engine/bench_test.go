package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"vragent/agent/internal/drop"
	"vragent/agent/internal/state"
	"vragent/dhcp"
	"vragent/metadata"
	"vragent/netcfg"
)

// BenchmarkStart is a start with nothing changed since the last stop.
func BenchmarkStart(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			path := b.TempDir()
			for i := range n {
				dir := fmt.Sprintf("%s/drop/vms/vm-%d", path, i)
				if err := os.MkdirAll(dir, 0o770); err != nil {
					b.Fatal(err)
				}
				for name, text := range map[string]string{
					"vm.yaml":        fmt.Sprintf("hostname: vm-%d\nnics:\n- {network: g, mac: \"02:00:00:00:%02x:%02x\", ipv4: 10.1.%d.%d}\n", i, i>>8, i&255, i>>8, i&255),
					"meta-data.yaml": fmt.Sprintf("service-offering: Small\navailability-zone: zone-a\ninstance-id: id-%d\nvm-id: id-%d\npublic-keys: ssh-ed25519 AAAA ops\n", i, i),
					"user-data":      fmt.Sprintf("#cloud-config\n# %d\n", i),
				} {
					if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o660); err != nil {
						b.Fatal(err)
					}
				}
			}
			load := func() {
				store, _, err := state.Open(path+"/state", state.Options{})
				if err != nil {
					b.Fatal(err)
				}
				dir, err := drop.Open(path+"/drop", drop.Options{})
				if err != nil {
					b.Fatal(err)
				}
				kernel, err := netcfg.Open(netcfg.Options{})
				if err != nil {
					b.Fatal(err)
				}
				hosts, data := dhcp.NewTable(), metadata.NewTable()
				e := New(Parts{Dir: dir, Store: store, Kernel: kernel, DHCPTable: hosts, GuestData: data,
					DHCP: dhcp.NewServer(hosts, dhcp.ServerOptions{}), Metadata: metadata.NewServer(data, metadata.Options{})}, Settings{})
				if err := errors.Join(e.Restore(), e.Load(context.Background())); err != nil {
					b.Fatal(err)
				}
				if len(e.known) != n {
					b.Fatalf("%d units in force, want %d", len(e.known), n)
				}
				kernel.Close()
				dir.Close()
				store.Close()
			}
			load()
			b.ReportAllocs()
			for b.Loop() {
				load()
			}
		})
	}
}
