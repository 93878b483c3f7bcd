package shared

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"vragent/agent/internal/etcd"
	"vragent/dhcp"
)

// FuzzRecords reads what anybody may have put into the store. What is taken for a lease is one of the
// key's network and address, and reads the same once it is written again.
func FuzzRecords(f *testing.F) {
	lease := dhcp.Lease{Network: "guest-1", IP: netip.MustParseAddr("10.1.1.200"), MAC: dhcp.MAC{2, 0, 0, 0, 0, 1}, ClientID: []byte{1, 2},
		Hostname: "a", State: dhcp.LeaseBound, Start: time.Unix(1, 0), Expiry: time.Unix(2, 0)}
	value, err := json.Marshal(record{recordFormat, lease})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("guest-1/10.1.1.200", value)
	f.Add("guest-1/10.1.1.201", value)
	f.Add("guest-1/10.1.1.200", []byte(`{"format":1,"lease":{"network":"guest-1","ip":"10.1.1.200","state":"bound"}}`)) // no MAC
	f.Add("guest-1", []byte(`{"format":2}`))
	l := NewStore(Options{Prefix: "/vragent"}).Leases(nil, nil)
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		kv := etcd.KV{Key: "/vragent/leases/" + key, Value: value, Changed: 1}
		lease, err := l.read(kv)
		if err != nil {
			if lease.IP.IsValid() && lease.State != dhcp.LeaseDeclined {
				t.Fatalf("an address whose record cannot be read (%v) is %s", err, lease.State)
			}
			return
		}
		again, err := json.Marshal(record{recordFormat, lease})
		if err != nil {
			t.Fatalf("a lease that was read cannot be written: %v", err)
		}
		kv.Key, kv.Value = l.key(&lease), again
		if _, err := l.read(kv); err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
	})
}
