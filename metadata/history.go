package metadata

import (
	"sync"
	"time"
)

// Request is one that a guest made, to the metadata server or the password server.
type Request struct {
	Time   time.Time
	Method string
	Path   string // without the query, cut to 128 bytes; of the password server: what it was asked
	Status int
	Why    string // of a refusal
}

// historySize is how many requests of a guest are kept, historyPath how much of their paths.
const (
	historySize = 8
	historyPath = 128
)

// history is a guest's last requests.
type history struct {
	mu   sync.Mutex
	ring []Request
	next int // where the next one goes once the ring is full
}

func (h *history) add(r Request) {
	if len(r.Path) > historyPath {
		r.Path = r.Path[:historyPath]
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.ring) < historySize {
		h.ring = append(h.ring, r)
		return
	}
	h.ring[h.next] = r
	h.next = (h.next + 1) % historySize
}

func (h *history) newestFirst() []Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	requests := make([]Request, 0, len(h.ring))
	for i := len(h.ring) - 1; i >= 0; i-- {
		requests = append(requests, h.ring[(h.next+i)%len(h.ring)])
	}
	return requests
}
