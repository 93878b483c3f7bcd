package agent

import (
	"context"

	"vragent/agent/internal/api"
	"vragent/agent/internal/metrics"
)

// newMetrics returns the metrics, and where their numbers come from.
func (a *Agent) newMetrics() *metrics.Metrics {
	sources := metrics.Sources{
		Ready:  func() bool { return a.isReady() == nil },
		Status: a.numbers,
		DHCP:   func() metrics.DHCP { return metrics.DHCP(a.dhcp.Stats()) },
		Guests: func() metrics.Guests { return metrics.Guests(a.metadata.Stats()) },
		Leases: a.hosts.Count,
		Pools:  a.poolNumbers,
		Jobs: func() metrics.Jobs {
			open, done, failed := a.companion.jobs.Counts()
			return metrics.Jobs{Open: open, Done: done, Failed: failed}
		},
		Listeners: func() map[string]int {
			n := a.metadata.Stats().Listeners
			n["dhcp"], n["socket"], n["api"] = len(a.dhcp.Serving()), 1, 0
			if a.tcp != nil {
				n["api"] = 1
			}
			return n
		},
	}
	if a.pair != nil {
		sources.Shared = a.pair.numbers
	}
	return metrics.New(a.opts.Version, sources)
}

// numbers is the status as numbers.
func (a *Agent) numbers() metrics.Status {
	ctx := context.Background()
	s := a.Status(ctx)
	n := metrics.Status{
		Networks: make(map[string]int), VMs: make(map[string]int),
		Watched: s.Watch.Watched, Scanned: s.Watch.Unwatched, Unsettled: len(s.Watch.Unsettled),
		Faults: len(s.Faults), ConfigFaults: len(s.Config.Faults), ConfigLoaded: s.Config.Loaded,
	}
	for _, state := range []api.State{api.Applied, api.Pending, api.Rejected} {
		n.Networks[string(state)], n.VMs[string(state)] = s.Networks[state], s.VMs[state]
	}
	for _, network := range a.Networks(ctx) {
		if network.Standby {
			n.Standby++
		}
	}
	return n
}

func (a *Agent) poolNumbers() []metrics.Pool {
	var pools []metrics.Pool
	for _, n := range a.Networks(context.Background()) {
		if use, ok := a.hosts.PoolUse(n.Name); ok {
			pools = append(pools, metrics.Pool{Total: use.Total, Bound: use.Bound, Offered: use.Offered, Declined: use.Declined})
		}
	}
	return pools
}
