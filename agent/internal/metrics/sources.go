package metrics

import "time"

// Sources are where the numbers come from. Each is called once a scrape, from any goroutine, and
// has to be fast and free of side effects. What is nil has no metrics.
type Sources struct {
	// Ready tells whether guests are served.
	Ready func() bool
	// Status is the daemon at a glance.
	Status func() Status
	// DHCP are the counts of the DHCP server.
	DHCP func() DHCP
	// Guests are the counts of the metadata and the password server.
	Guests func() Guests
	// Leases are the numbers of leases by their state: those of known NICs and those from pools.
	Leases func() (known, pool map[string]int)
	// Pools are the pools of all networks.
	Pools func() []Pool
	// Jobs are the numbers of jobs.
	Jobs func() Jobs
	// Listeners are the numbers of open sockets that listen, by service: dhcp, metadata, password,
	// socket, api.
	Listeners func() map[string]int
	// Shared is the store that a pair of routers shares.
	Shared func() Shared
}

// Shared is how a router stands with what it shares with another one.
type Shared struct {
	Current      bool              // it is told what the other one writes
	Transactions map[string]uint64 // since the start, by outcome
	Spent        time.Duration     // in all of them
}

// Status is what an operator sees first.
type Status struct {
	Networks, VMs map[string]int // by state: applied, pending, rejected
	Standby       int            // networks whose serving address is not here
	Watched       int            // folders of the drop directory that the kernel reports changes of
	Scanned       int            // folders that have to be looked through, for want of watches
	Unsettled     int            // units with a file that somebody writes
	Faults        int            // of the daemon itself
	ConfigFaults  int            // of the configuration on disk, which is not in force then
	ConfigLoaded  time.Time      // when the configuration in force was read
}

// DHCP are counts since the daemon started.
type DHCP struct {
	Messages map[string]map[string]uint64 // by type of message and outcome
	Dropped  uint64                       // requests that the kernel had no room for
	Unsent   uint64                       // replies that the kernel did not take
}

// Guests are counts of guests' HTTP since the daemon started, and what is open now.
type Guests struct {
	Requests    map[string]map[int]uint64 // by kind and status
	Refused     uint64                    // connections that were one too many
	Listeners   map[string]int            // by service
	Connections int
	Waiting     int // requests that wait for a change
}

// Pool is how the pool of a network is used, in addresses.
type Pool struct {
	Total, Bound, Offered, Declined int
}

// taken is the part of the pool that nobody else can have, from 0 to 1.
func (p Pool) taken() float64 {
	if p.Total <= 0 {
		return 0
	}
	return min(1, float64(p.Bound+p.Offered+p.Declined)/float64(p.Total))
}

// Jobs are the numbers of jobs by their state.
type Jobs struct {
	Open, Done, Failed int
}

// The values that labels can have. A value that is none of these counts as "other", so that
// nothing a client sends makes a time series.
var (
	states          = []string{"applied", "pending", "rejected"}
	messages        = []string{"DISCOVER", "REQUEST", "DECLINE", "RELEASE", "INFORM", "BOOTP"}
	messageOutcomes = []string{"answered", "refused", "noted", "silent", "limited", "invalid"}
	leaseStates     = []string{"bound", "expired", "declined", "reserved", "offered", "released"}
	requestKinds    = []string{"user-data", "vendor-data", "meta-data", "token", "password", "stranger"}
	sharedOutcomes  = []string{"stored", "refused", "failed"}
	services        = []string{"dhcp", "metadata", "password", "socket", "api"}
)

const other = "other"
