package metadata

import (
	"net/http"
	"strings"
	"sync/atomic"
)

// Stats are counts since the server was made, and what is open now.
type Stats struct {
	// Requests by kind and status. Kinds are user-data, vendor-data, token, meta-data (all names, and
	// what is no name), password (of the password server, where the status is always 200) and
	// stranger: a source that is no guest. Counts of zero are left out.
	Requests map[string]map[int]uint64
	// Refused is the number of connections that were closed for want of room.
	Refused uint64
	// Listeners by service: metadata, password.
	Listeners map[string]int
	// Connections of guests, and Waiting, their requests that wait for a change.
	Connections, Waiting int
}

// kind says what a request was for.
type kind int

const (
	kindMetadata kind = iota
	kindUserData
	kindVendorData
	kindToken
	kindPassword
	kindStranger
	kinds
)

var kindNames = [kinds]string{"meta-data", "user-data", "vendor-data", "token", "password", "stranger"}

// kindOf tells what a request to port 80 is for by its path.
func kindOf(path string) kind {
	switch name := strings.ToLower(path[strings.LastIndexByte(path, '/')+1:]); {
	case name == "user-data":
		return kindUserData
	case name == "vendor-data":
		return kindVendorData
	case name == "token" && strings.HasSuffix(strings.ToLower(path), "/api/token"):
		return kindToken
	}
	return kindMetadata
}

// counters are what Stats is made of. Adding costs one atomic operation.
type counters struct {
	requests [kinds][600]atomic.Uint64 // by status
	refused  atomic.Uint64
}

func (c *counters) add(k kind, status int) {
	if status < http.StatusContinue || status >= len(c.requests[k]) {
		status = http.StatusInternalServerError
	}
	c.requests[k][status].Add(1)
}

// note counts a guest's request and keeps it for its history.
func (s *Server) note(e *entry, k kind, r Request) {
	s.count.add(k, r.Status)
	e.history.add(r)
}

// Stats returns the counts up to now. Its cost grows with the number of guests.
func (s *Server) Stats() Stats {
	stats := Stats{
		Requests: make(map[string]map[int]uint64), Refused: s.count.refused.Load(),
		Listeners: map[string]int{string(metadataService): 0, string(passwordService): 0},
		Waiting:   s.Waiting(),
	}
	for k, name := range kindNames {
		for status := range s.count.requests[k] {
			n := s.count.requests[k][status].Load()
			if n == 0 {
				continue
			}
			if stats.Requests[name] == nil {
				stats.Requests[name] = make(map[int]uint64)
			}
			stats.Requests[name][status] = n
		}
	}
	s.mu.Lock()
	for p := range s.open {
		stats.Listeners[string(p.service)]++
	}
	s.mu.Unlock()
	s.table.guests.Range(func(_, e any) bool {
		stats.Connections += e.(*entry).open()
		return true
	})
	return stats
}
