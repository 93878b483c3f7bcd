package e2e

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"vragent/netcfg/nstest"
)

// TestListenerReadsNoMoreThanUserDataMayTake: of those who are not logged in yet, the API's listener reads as
// much as a GET with user data needs, and no more; the socket's callers may send more.
func TestListenerReadsNoMoreThanUserDataMayTake(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	r := newRouter(t)
	listens := func(most string) {
		t.Helper()
		r.configure(t, "")
		r.edit(t, "api.sock}", "api.sock, listen: \"127.0.0.1:9443\""+most+"}")
	}
	listens("")
	r.start(t)
	local := overSocket(r.dir + "/api.sock")
	defer local.CloseIdleConnections()
	tooLong := func(client *http.Client, host string) bool {
		t.Helper()
		res, err := client.Get("http://" + host + "/client/api?command=listApis&x=" + strings.Repeat("x", 300<<10))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode == http.StatusRequestHeaderFieldsTooLarge
	}
	remote := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if !tooLong(remote, "127.0.0.1:9443") {
		t.Error("the listener reads 300 KiB where a GET may hold 32 KiB of user data")
	}
	if tooLong(local, "vragent") {
		t.Error("the socket does not")
	}
	listens(", max_userdata_get: 1048576")
	if err := r.agent.Reload(); err != nil {
		t.Fatal(err)
	}
	if status, err := r.client.Status(t.Context()); err != nil || !slices.Equal(status.Config.Restart, []string{"api.max_userdata_get"}) {
		t.Errorf("keys that wait for a restart: %q, %v", status.Config.Restart, err)
	}
	r.stop()
	r.start(t)
	if tooLong(remote, "127.0.0.1:9443") {
		t.Error("the listener does not read 300 KiB where a GET may hold 1 MiB of user data")
	}
}
