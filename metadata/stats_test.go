package metadata_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"vragent/metadata"
	"vragent/netcfg/nstest"
)

func TestStatsCountByKindAndStatus(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	s, host := small(t, metadata.Options{})
	g := guest("guest-1", "VM-1", "10.1.1.34")
	g.UserData = content(t, []byte("data"))
	s.table.SetGuest(g)
	get := func(from, address, path string) {
		raw(t, host, from, address, "GET "+path+" HTTP/1.1\r\nHost: 10.1.1.1\r\nConnection: close\r\n\r\n")
	}
	for _, path := range []string{"/latest/user-data", "/2009-04-04/user-data", "/latest/vendor-data", "/latest/vm-id", "/latest/api/token", "/nothing"} {
		get("10.1.1.34", "10.1.1.1:80", path)
	}
	get("10.1.1.34", "10.1.1.1:8080", "/")
	get("10.1.1.99", "10.1.1.1:80", "/latest/vm-id")
	want := map[string]map[int]uint64{
		"user-data": {200: 2}, "vendor-data": {404: 1}, "meta-data": {200: 1, 404: 1}, "token": {405: 1},
		"password": {200: 1}, "stranger": {404: 1},
	}
	stats := s.server.Stats()
	if diff := cmp.Diff(want, stats.Requests); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]int{"metadata": 1, "password": 1}, stats.Listeners); diff != "" {
		t.Errorf("listeners (-want +got):\n%s", diff)
	}
}
