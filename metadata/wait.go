package metadata

import (
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// maxWait is the longest time for which a request waits for a change. One that asks for more is
// answered after this time.
const maxWait = 5 * time.Minute

// wish is how a request wants to wait: ?wait=SECONDS&etag=LAST.
type wish struct {
	wait time.Duration // 0: not at all
	last string        // entity tag of what the client has, with its quotes
	any  bool          // the client named none: any change from now on
}

// wishOf reads the query. It is not ok where wait is not a number of seconds.
func wishOf(query string) (w wish, ok bool) {
	if !strings.Contains(query, "wait=") {
		return wish{}, true
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return wish{}, false
	}
	if !values.Has("wait") {
		return wish{}, true
	}
	seconds, ok := parseDigits(values.Get("wait"))
	if !ok {
		return wish{}, false
	}
	w.wait = time.Duration(min(seconds, int64(maxWait/time.Second))) * time.Second
	if w.any = !values.Has("etag"); !w.any {
		w.last = quote(strings.Trim(strings.TrimPrefix(values.Get("etag"), "W/"), `"`))
	}
	return w, true
}

// waiter is a request that waits for its answer to differ from what the client has. It has its
// connection to itself and no goroutine.
type waiter struct {
	key     key
	conn    *conn
	request *request
	last    string // entity tag of what the client has; empty: nothing
	timer   *time.Timer
	done    atomic.Bool
}

// etag is the entity tag of the whole content that the request's path leads to, empty where there
// is none.
func (v view) etag(r *request) string {
	content := v.content(r)
	if content.status != http.StatusOK {
		return ""
	}
	return content.etag
}

// waiting holds the requests that wait, by network and guest.
type waiting struct {
	mu       sync.Mutex
	networks map[string]map[netip.Addr]map[*waiter]struct{}

	woken []*waiter     // to be looked at
	bell  chan struct{} // holds one element while woken is not empty
}

func (w *waiting) add(r *waiter) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.networks == nil {
		w.networks = make(map[string]map[netip.Addr]map[*waiter]struct{})
	}
	guests := w.networks[r.key.network]
	if guests == nil {
		guests = make(map[netip.Addr]map[*waiter]struct{})
		w.networks[r.key.network] = guests
	}
	if guests[r.key.ip] == nil {
		guests[r.key.ip] = make(map[*waiter]struct{})
	}
	guests[r.key.ip][r] = struct{}{}
}

func (w *waiting) remove(r *waiter) {
	w.mu.Lock()
	defer w.mu.Unlock()
	guests := w.networks[r.key.network]
	delete(guests[r.key.ip], r)
	if len(guests[r.key.ip]) == 0 {
		delete(guests, r.key.ip)
	}
	if len(guests) == 0 {
		delete(w.networks, r.key.network)
	}
}

// wakeGuest has the guest's requests looked at.
func (w *waiting) wakeGuest(k key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for r := range w.networks[k.network][k.ip] {
		w.woken = append(w.woken, r)
	}
	w.ring()
}

// wakeNetwork has the requests of all guests of the network looked at.
func (w *waiting) wakeNetwork(network string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, requests := range w.networks[network] {
		for r := range requests {
			w.woken = append(w.woken, r)
		}
	}
	w.ring()
}

func (w *waiting) ring() {
	if len(w.woken) == 0 {
		return
	}
	select {
	case w.bell <- struct{}{}:
	default:
	}
}

// take gives the requests to be looked at.
func (w *waiting) take() []*waiter {
	w.mu.Lock()
	defer w.mu.Unlock()
	woken := w.woken
	w.woken = nil
	return woken
}

// all gives every request that waits.
func (w *waiting) all() []*waiter {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []*waiter
	for _, guests := range w.networks {
		for _, requests := range guests {
			for r := range requests {
				all = append(all, r)
			}
		}
	}
	return all
}
