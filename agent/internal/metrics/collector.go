package metrics

import (
	"maps"
	"slices"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("vragent_"+name, help, labels, nil)
}

var (
	readyDesc = desc("ready", "1 when guests are served, 0 while the agent starts.")

	unitsDesc   = desc("units", "Units of the drop directory, by kind and state.", "kind", "state")
	standbyDesc = desc("networks_standby", "Networks that stand by: their serving address is not on this router.")
	foldersDesc = desc("drop_folders", "Folders of the drop directory, by how their changes are noticed: watched (the kernel tells) or scanned (looked through, for want of inotify watches).", "notice")
	settleDesc  = desc("drop_unsettled_units", "Units with a file that somebody has open for writing.")
	faultsDesc  = desc("faults", "Things that are wrong with the agent itself and keep it from serving all that it should.")
	configDesc  = desc("config_faults", "Faults of the configuration files on disk; as long as there are any, the configuration before stays in force.")
	loadedDesc  = desc("config_loaded_timestamp_seconds", "When the configuration in force was read.")

	messagesDesc = desc("dhcp_messages_total", "DHCP messages received, by type and by what became of them: answered, refused (a NAK), noted (takes no reply), silent (not ours to answer), limited (more than one client may ask for), invalid.", "message", "outcome")
	droppedDesc  = desc("dhcp_requests_dropped_total", "DHCP requests that the kernel had no room for.")
	unsentDesc   = desc("dhcp_replies_unsent_total", "DHCP replies that the kernel did not take.")

	requestsDesc    = desc("guest_requests_total", "HTTP requests of guests, by kind and status code; kind stranger is a source that is no guest here.", "kind", "code")
	refusedDesc     = desc("guest_connections_refused_total", "Connections of guests that were closed because there were too many.")
	connectionsDesc = desc("guest_connections", "Open connections of guests.")
	waitingDesc     = desc("guest_requests_waiting", "Requests of guests that wait for a change.")

	leasesDesc = desc("leases", "Addresses that DHCP knows of, by whose they are (known: a VM's NIC; pool: any client's) and state.", "of", "state")
	poolDesc   = desc("pool_addresses", "Addresses of all pools, by state.", "state")
	fullDesc   = desc("pool_fullest_ratio", "The part of its addresses that the fullest pool has given away, 0 to 1.")

	jobsDesc        = desc("jobs", "Jobs of the companion API that are kept, by state.", "state")
	sharedDesc      = desc("shared_state_current", "1 while the router is told what the other one of the pair writes to the store that they share, 0 while that is out of reach.")
	transactionDesc = desc("shared_state_transactions_total", "Transactions with the shared store, by outcome: stored, refused (the other router was first) or failed.", "outcome")
	spentDesc       = desc("shared_state_transaction_seconds_total", "Time spent in transactions with the shared store.")

	listenersDesc = desc("listeners", "Open sockets that listen, by service.", "service")
)

// collector asks the sources when it is scraped.
type collector struct {
	sources Sources
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		readyDesc, unitsDesc, standbyDesc, foldersDesc, settleDesc, faultsDesc, configDesc, loadedDesc,
		messagesDesc, droppedDesc, unsentDesc, requestsDesc, refusedDesc, connectionsDesc, waitingDesc,
		leasesDesc, poolDesc, fullDesc, jobsDesc, listenersDesc,
		sharedDesc, transactionDesc, spentDesc,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	out := output(ch)
	s := &c.sources
	if s.Ready != nil {
		ready := 0
		if s.Ready() {
			ready = 1
		}
		out.gauge(readyDesc, float64(ready))
	}
	if s.Status != nil {
		out.status(s.Status())
	}
	if s.DHCP != nil {
		out.dhcp(s.DHCP())
	}
	listeners := map[string]int{}
	if s.Listeners != nil {
		listeners = maps.Clone(s.Listeners())
	}
	if s.Guests != nil {
		guests := s.Guests()
		maps.Copy(listeners, guests.Listeners)
		out.guests(guests)
	}
	if s.Listeners != nil || s.Guests != nil {
		for service, n := range folded(services, listeners) {
			out.gauge(listenersDesc, float64(n), service)
		}
	}
	if s.Leases != nil {
		known, pool := s.Leases()
		for state, n := range folded(leaseStates, known) {
			out.gauge(leasesDesc, float64(n), "known", state)
		}
		for state, n := range folded(leaseStates, pool) {
			out.gauge(leasesDesc, float64(n), "pool", state)
		}
	}
	if s.Pools != nil {
		out.pools(s.Pools())
	}
	if s.Shared != nil {
		out.shared(s.Shared())
	}
	if s.Jobs != nil {
		jobs := s.Jobs()
		out.gauge(jobsDesc, float64(jobs.Open), "open")
		out.gauge(jobsDesc, float64(jobs.Done), "done")
		out.gauge(jobsDesc, float64(jobs.Failed), "failed")
	}
}

func (out output) shared(s Shared) {
	current := 0.0
	if s.Current {
		current = 1
	}
	out.gauge(sharedDesc, current)
	for outcome, n := range folded(sharedOutcomes, s.Transactions) {
		out.counter(transactionDesc, n, outcome)
	}
	out <- prometheus.MustNewConstMetric(spentDesc, prometheus.CounterValue, s.Spent.Seconds())
}

// output is where a scrape's metrics go.
type output chan<- prometheus.Metric

func (out output) gauge(d *prometheus.Desc, value float64, labels ...string) {
	out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}

func (out output) counter(d *prometheus.Desc, value uint64, labels ...string) {
	out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
}

func (out output) status(s Status) {
	for state, n := range folded(states, s.Networks) {
		out.gauge(unitsDesc, float64(n), "network", state)
	}
	for state, n := range folded(states, s.VMs) {
		out.gauge(unitsDesc, float64(n), "vm", state)
	}
	out.gauge(standbyDesc, float64(s.Standby))
	out.gauge(foldersDesc, float64(s.Watched), "watched")
	out.gauge(foldersDesc, float64(s.Scanned), "scanned")
	out.gauge(settleDesc, float64(s.Unsettled))
	out.gauge(faultsDesc, float64(s.Faults))
	out.gauge(configDesc, float64(s.ConfigFaults))
	if !s.ConfigLoaded.IsZero() {
		out.gauge(loadedDesc, float64(s.ConfigLoaded.UnixMilli())/1000)
	}
}

func (out output) dhcp(s DHCP) {
	byMessage := map[string]map[string]uint64{}
	for _, message := range messages {
		byMessage[message] = map[string]uint64{}
	}
	for message, counts := range s.Messages {
		message = oneOf(messages, message)
		if byMessage[message] == nil {
			byMessage[message] = map[string]uint64{}
		}
		for outcome, n := range counts {
			byMessage[message][outcome] += n
		}
	}
	for message, counts := range byMessage {
		for outcome, n := range folded(messageOutcomes, counts) {
			out.counter(messagesDesc, n, message, outcome)
		}
	}
	out.counter(droppedDesc, s.Dropped)
	out.counter(unsentDesc, s.Unsent)
}

func (out output) guests(s Guests) {
	byKind := map[string]map[string]uint64{}
	for _, kind := range requestKinds {
		// Series that begin at 0 show their first increase.
		byKind[kind] = map[string]uint64{"200": 0, "404": 0, "500": 0}
	}
	for kind, counts := range s.Requests {
		kind = oneOf(requestKinds, kind)
		if byKind[kind] == nil {
			byKind[kind] = map[string]uint64{}
		}
		for status, n := range counts {
			code := other
			if 100 <= status && status <= 599 {
				code = strconv.Itoa(status)
			}
			byKind[kind][code] += n
		}
	}
	for kind, counts := range byKind {
		for code, n := range counts {
			out.counter(requestsDesc, n, kind, code)
		}
	}
	out.counter(refusedDesc, s.Refused)
	out.gauge(connectionsDesc, float64(s.Connections))
	out.gauge(waitingDesc, float64(s.Waiting))
}

func (out output) pools(pools []Pool) {
	var sum Pool
	free, fullest := 0, 0.0
	for _, p := range pools {
		sum.Bound += p.Bound
		sum.Offered += p.Offered
		sum.Declined += p.Declined
		free += max(0, p.Total-p.Bound-p.Offered-p.Declined)
		fullest = max(fullest, p.taken())
	}
	out.gauge(poolDesc, float64(free), "free")
	out.gauge(poolDesc, float64(sum.Bound), "bound")
	out.gauge(poolDesc, float64(sum.Offered), "offered")
	out.gauge(poolDesc, float64(sum.Declined), "declined")
	out.gauge(fullDesc, fullest)
}

// folded returns counts of every known value, 0 where there are none, and of all others together.
func folded[N int | uint64](known []string, counts map[string]N) map[string]N {
	all := make(map[string]N, len(known))
	for _, value := range known {
		all[value] = 0
	}
	for value, n := range counts {
		if !slices.Contains(known, value) {
			value = other
		}
		all[value] += n
	}
	return all
}
