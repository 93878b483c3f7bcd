package dhcp

import (
	"sync/atomic"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// outcome is what became of a message, in the words of the counters.
type outcome int

const (
	outcomeAnswered outcome = iota // OFFER, ACK or a BOOTP reply
	outcomeRefused                 // NAK
	outcomeNoted                   // takes no reply
	outcomeSilent                  // not ours to answer
	outcomeLimited                 // more than one client may ask for
	outcomeInvalid                 // no client's message
	outcomes
)

var outcomeNames = [outcomes]string{"answered", "refused", "noted", "silent", "limited", "invalid"}

const countedTypes = 19 // message types that have names, and 0 for BOOTP; the rest count as 0

// counters count messages by type and outcome.
type counters struct {
	messages [countedTypes][outcomes]atomic.Uint64
	unsent   atomic.Uint64
	dropped  atomic.Uint64 // by the buffers of sockets that are closed
}

func (c *counters) add(kind dhcpv4.MessageType, what outcome) {
	if kind >= countedTypes {
		kind = 0
	}
	c.messages[kind][what].Add(1)
}

// Stats are counts since the server was made.
type Stats struct {
	// Messages by type (DISCOVER, REQUEST, ..., BOOTP) and outcome: answered, refused (a NAK), noted (a
	// message that takes no reply), silent, limited (more than one client may ask for), invalid. What
	// has no known type counts as BOOTP. Counts of zero are left out.
	Messages map[string]map[string]uint64
	// Dropped is the number of requests that the kernel had no room for.
	Dropped uint64
	// Unsent is the number of replies that the kernel did not take.
	Unsent uint64
}

// Stats returns the counts up to now.
func (s *Server) Stats() Stats {
	stats := Stats{Messages: make(map[string]map[string]uint64), Unsent: s.count.unsent.Load()}
	for kind := range s.count.messages {
		for what := range outcomes {
			n := s.count.messages[kind][what].Load()
			if n == 0 {
				continue
			}
			name := messageName(dhcpv4.MessageType(kind))
			if stats.Messages[name] == nil {
				stats.Messages[name] = make(map[string]uint64)
			}
			stats.Messages[name][outcomeNames[what]] += n
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	stats.Dropped = s.count.dropped.Load()
	for _, p := range s.open {
		stats.Dropped += p.listener.drops()
	}
	return stats
}
