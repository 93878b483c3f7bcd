package dhcp

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

func TestCountAgreesWithBindings(t *testing.T) {
	d := newDesk(t, poolNetwork(6))
	check := func(moment string, hosts, pool map[string]int) {
		t.Helper()
		gotHosts, gotPool := d.table.Count()
		if diff := cmp.Diff([]map[string]int{hosts, pool}, []map[string]int{gotHosts, gotPool}); diff != "" {
			t.Errorf("%s: Count() (-want +got):\n%s", moment, diff)
		}
		listedHosts, listedPool := map[string]int{}, map[string]int{}
		for _, b := range d.table.Bindings("") {
			if b.Pool {
				listedPool[b.State]++
			} else {
				listedHosts[b.State]++
			}
		}
		if diff := cmp.Diff([]map[string]int{listedHosts, listedPool}, []map[string]int{gotHosts, gotPool}); diff != "" {
			t.Errorf("%s: Count() beside Bindings() (-listed +counted):\n%s", moment, diff)
		}
	}
	check("at first", map[string]int{"reserved": 2}, map[string]int{})
	d.bind(web)
	leased := d.bind(stranger(1))
	d.bind(stranger(2))
	if _, _, err := d.ask(stranger(3), dhcpv4.MessageTypeDiscover); err != nil {
		t.Fatal(err)
	}
	check("two have leases and one an offer", map[string]int{"bound": 1, "reserved": 1}, map[string]int{"bound": 2, "offered": 1})
	_, _, _ = d.ask(stranger(1), dhcpv4.MessageTypeRelease, using(leased.String()), choose("10.1.1.1"))
	d.flush()
	check("one has given it back", map[string]int{"bound": 1, "reserved": 1}, map[string]int{"bound": 1, "offered": 1, "released": 1})
	// Nothing happens but that time goes by.
	d.now = d.now.Add(1000 * time.Hour)
	check("all have run out", map[string]int{"expired": 1, "reserved": 1}, map[string]int{"expired": 1, "released": 1})
}
