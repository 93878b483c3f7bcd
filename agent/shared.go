package agent

import (
	"fmt"

	"vragent/agent/internal/api"
	"vragent/agent/internal/etcd"
	"vragent/agent/internal/metrics"
	"vragent/agent/internal/shared"
	"vragent/agent/internal/state"
	"vragent/dhcp"
)

// pair is what this router shares with another one.
type pair struct {
	store     *shared.Store
	leases    *shared.Leases
	passwords *shared.Passwords
	client    *etcd.Client
	endpoints []string
}

// newPair returns what is shared, nil where nothing is. Pool leases from the time before are shared too.
func (a *Agent) newPair(cfg *Config) (*pair, error) {
	if len(cfg.Shared.Endpoints) == 0 {
		return nil, nil
	}
	var before []dhcp.Lease
	own := leases{a.leases, a.lost("leases")}
	if err := own.Load(func(l dhcp.Lease) error { before = append(before, l); return nil }); err != nil {
		return nil, fmt.Errorf("pool leases from before they were shared: %w", err)
	}
	client, err := etcd.NewClient(cfg.Shared.etcd())
	if err != nil {
		return nil, fmt.Errorf("shared_state.etcd: %w", err)
	}
	p := &pair{client: client, endpoints: cfg.Shared.Endpoints}
	p.store = shared.NewStore(shared.Options{KV: p.client, Prefix: cfg.Shared.Prefix, Log: a.log})
	p.passwords = p.store.Passwords()
	p.leases = p.store.Leases(before, func() {
		if len(before) == 0 {
			return
		}
		a.log.Info("pool leases of this router are shared now", "count", len(before))
		var batch state.Batch
		for _, l := range before {
			batch.Delete(leaseKey(l))
		}
		if err := a.leases.Commit(&batch); err != nil {
			a.log.Warn("pool leases that are shared now stay in the state directory too", "err", err)
		}
	})
	return p, nil
}

// status is how it stands; nil where nothing is shared.
func (p *pair) status() *api.SharedStatus {
	if p == nil {
		return nil
	}
	s := p.store.Status()
	status := &api.SharedStatus{Endpoints: p.endpoints, Endpoint: p.client.Endpoint(), Current: s.Current, Since: s.Since}
	if s.Err != nil {
		status.Why = s.Err.Error()
	}
	return status
}

func (p *pair) numbers() metrics.Shared {
	s := p.store.Status()
	return metrics.Shared{
		Current: s.Current, Spent: s.Spent,
		Transactions: map[string]uint64{"stored": s.Stored, "refused": s.Refused, "failed": s.Failed},
	}
}
