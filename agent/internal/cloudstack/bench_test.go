package cloudstack

import (
	"context"
	"fmt"
	"testing"
)

// BenchmarkFile is one file at 2,000 VMs, without the disk.
func BenchmarkFile(b *testing.B) {
	d, err := New(newDoor(), make(fakeStore), nil)
	if err != nil {
		b.Fatal(err)
	}
	files := []File{file(`cmd_line.json {"cmd_line":{"type":"router","eth0ip":"10.1.0.1","eth0mask":"255.255.0.0"}}`)}
	for i := range 2000 {
		ip, mac := fmt.Sprintf("10.1.%d.%d", 1+i/200, 1+i%200), fmt.Sprintf("02:00:00:00:%02x:%02x", i/200, i%200)
		files = append(files, file(fmt.Sprintf(`vm_dhcp_entry.json {"mac_address":"%s","ipv4_address":"%s"}`, mac, ip)))
	}
	if r, err := d.Apply(context.Background(), files); err != nil || r[2000].State != Applied {
		b.Fatal(r[2000], err)
	}
	for i := 0; b.Loop(); i++ {
		if _, err := d.Apply(context.Background(), files[1+i%2000:2+i%2000]); err != nil {
			b.Fatal(err)
		}
	}
}
