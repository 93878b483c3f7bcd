package engine

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"vragent/agent/internal/api"
	"vragent/agent/internal/desired"
	"vragent/agent/internal/drop"
)

// Status reports what the engine knows of its units and of itself; the agent adds the rest.
func (e *Engine) Status(context.Context) api.Status {
	watch := e.Dir.Status()
	s := api.Status{
		DropDir:  e.Dir.Path(),
		Networks: map[api.State]int{api.Applied: 0, api.Pending: 0, api.Rejected: 0},
		VMs:      map[api.State]int{api.Applied: 0, api.Pending: 0, api.Rejected: 0},
		Watch:    api.WatchStatus{Watched: watch.Watched, Unwatched: watch.Unwatched, QuietTime: watch.QuietTime},
		Powers: map[string]bool{
			"net_admin": e.Powers.NetAdmin, "net_raw": e.Powers.NetRaw,
			"net_bind_service": e.Powers.NetBindService, "lease": e.Powers.Lease,
		},
	}
	for _, u := range watch.Unsettled {
		s.Watch.Unsettled = append(s.Watch.Unsettled, u.Path())
	}
	s.Faults = append(s.Faults, watch.Notes...)
	if watch.Missing {
		s.Faults = append(s.Faults, fmt.Sprintf("drop directory %s is missing; what was in force stays so; make the directory again", e.Dir.Path()))
	}
	e.mu.RLock()
	for v := range e.model.Views() {
		u := e.unit(v)
		if v.Unit.Kind == drop.Network {
			s.Networks[u.State]++
		} else {
			s.VMs[u.State]++
		}
		if u.State != api.Applied || len(u.Notes) > 0 {
			s.Units = append(s.Units, u)
		}
	}
	for _, what := range e.faults {
		s.Faults = append(s.Faults, what)
	}
	e.mu.RUnlock()
	slices.SortFunc(s.Units, func(a, b api.Unit) int { return cmp.Compare(a.Unit, b.Unit) })
	for _, f := range e.DHCP.Faults() {
		if f.Device == "" {
			s.Faults = append(s.Faults, fmt.Sprintf("pool leases cannot be stored: no new ones until they can: %v", f.Err))
			continue
		}
		s.Faults = append(s.Faults, fmt.Sprintf("DHCP on %s: %v", f.Device, f.Err))
	}
	for _, f := range e.Metadata.Faults() {
		s.Faults = append(s.Faults, f.String())
	}
	for i, f := range e.Kernel.NeighborFaults() {
		if i == 5 {
			s.Faults = append(s.Faults, fmt.Sprintf("and %d more neighbor entries that could not be made", len(e.Kernel.NeighborFaults())-i))
			break
		}
		s.Faults = append(s.Faults, fmt.Sprintf("neighbor entry %s on %s: %v", f.IP, f.Device, f.Err))
	}
	slices.Sort(s.Faults)
	return s
}

// unit judges what a unit's state is now: besides its files, the networks and devices that it needs
// take part. The caller holds e.mu.
func (e *Engine) unit(v desired.View) api.Unit {
	u := api.Unit{Unit: v.Unit.Path(), State: api.Applied, InForce: v.Have != nil, Since: v.Since, Notes: v.Notes}
	for _, f := range v.Faults {
		u.State = api.Rejected
		u.Reasons = append(u.Reasons, fault(f))
	}
	switch {
	case v.Have == nil || u.State == api.Rejected:
	case v.Unit.Kind == drop.Network:
		if p := e.places[v.Unit.Name]; p.device == "" && p.why != "" && !v.Have.Network.Relay {
			u.State = api.Pending
			u.Reasons = append(u.Reasons, api.Fault{File: v.Unit.Path(), What: p.why})
		}
	default:
		for i := range v.Have.VM.NICs {
			nic := &v.Have.VM.NICs[i]
			if f, rejected := e.model.Obstacle(v.Unit.Name, nic); rejected {
				u.State = api.Rejected
				u.Reasons = append(u.Reasons, nicFault(i, fault(f)))
			} else if f.What != "" {
				if u.State == api.Applied {
					u.State = api.Pending
				}
				u.Reasons = append(u.Reasons, nicFault(i, fault(f)))
			} else if p := e.places[nic.Network]; p.device == "" && p.why != "" && !e.model.Network(nic.Network).Relay {
				if u.State == api.Applied {
					u.State = api.Pending
				}
				u.Reasons = append(u.Reasons, api.Fault{
					File: v.Unit.Path() + "/vm.yaml", Line: nic.At.Line, Column: nic.At.Column,
					What: fmt.Sprintf("nics[%d]: network %s %s", i, nic.Network, p.why),
				})
			}
		}
	}
	return u
}

func fault(f desired.Fault) api.Fault {
	return api.Fault{File: f.File, Line: f.Line, Column: f.Column, What: f.What}
}

func nicFault(i int, f api.Fault) api.Fault {
	f.What = fmt.Sprintf("nics[%d]: %s", i, f.What)
	return f
}

// Networks reports all networks, by name.
func (e *Engine) Networks(context.Context) []api.Network {
	e.mu.RLock()
	var list []api.Network
	for v := range e.model.Views() {
		if v.Unit.Kind == drop.Network {
			list = append(list, e.network(v))
		}
	}
	e.mu.RUnlock()
	slices.SortFunc(list, func(a, b api.Network) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// network reports one network. The caller holds e.mu.
func (e *Engine) network(v desired.View) api.Network {
	r := api.Network{Unit: e.unit(v), Name: v.Unit.Name, Guests: e.guests[v.Unit.Name]}
	n := v.Have
	if n == nil {
		n = v.Want
	}
	if n == nil {
		return r
	}
	r.Device = n.Network.Interface
	r.Subnet = n.Network.Subnet().String()
	r.Gateway = n.Network.Gateway.Addr().String()
	r.Serving = n.Network.Serving().String()
	if v.Have == nil {
		return r
	}
	p := e.places[v.Unit.Name]
	if p.device != "" {
		r.Device = p.device
	}
	r.Standby = r.State != api.Pending && !p.serving
	if use, ok := e.DHCPTable.PoolUse(v.Unit.Name); ok {
		r.PoolTotal, r.PoolUsed = use.Total, use.Bound
	}
	return r
}

// VMs reports all VMs, by name.
func (e *Engine) VMs(context.Context) []api.VM {
	e.mu.RLock()
	var list []api.VM
	for v := range e.model.Views() {
		if v.Unit.Kind == drop.VM {
			list = append(list, e.vm(v))
		}
	}
	e.mu.RUnlock()
	slices.SortFunc(list, func(a, b api.VM) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// vm reports one VM. The caller holds e.mu.
func (e *Engine) vm(v desired.View) api.VM {
	r := api.VM{Unit: e.unit(v), Name: v.Unit.Name, NICs: []api.NIC{}}
	c := v.Have
	if c == nil {
		c = v.Want
	}
	if c == nil {
		return r
	}
	r.Hostname = c.VM.Hostname
	for i := range c.VM.NICs {
		nic := &c.VM.NICs[i]
		n := api.NIC{Network: nic.Network, IPv4: nic.IPv4.String(), Default: nic.Default}
		if nic.MAC != nil {
			n.MAC = nic.MAC.String()
			if seen, ok := e.DHCPTable.Seen(nic.Network, *nic.MAC); ok && !seen.At.IsZero() {
				n.LastSeen = &seen.At
				if !seen.Expiry.IsZero() && !seen.Infinite {
					n.LeaseEnds = &seen.Expiry
				}
			}
		}
		switch p := e.places[nic.Network]; {
		case v.Have == nil:
			n.Why = "the VM is not in force"
		default:
			if f, _ := e.model.Obstacle(v.Unit.Name, nic); f.What != "" {
				n.Why = f.What
			} else if !p.serving {
				n.Why = fmt.Sprintf("network %s %s", nic.Network, p.why)
			} else {
				n.Served = true
			}
		}
		r.NICs = append(r.NICs, n)
	}
	return r
}

// VM reports one VM by name.
func (e *Engine) VM(_ context.Context, name string) (api.VM, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	v, ok := e.model.View(drop.Unit{Kind: drop.VM, Name: name})
	if !ok {
		return api.VM{}, api.ErrUnknown
	}
	return e.vm(v), nil
}

// Network reports one network by name.
func (e *Engine) Network(_ context.Context, name string) (api.Network, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	v, ok := e.model.View(drop.Unit{Kind: drop.Network, Name: name})
	if !ok {
		return api.Network{}, api.ErrUnknown
	}
	return e.network(v), nil
}

// waiter is a wait for units to be judged.
type waiter struct {
	open map[drop.Unit]bool
}

// openWaiters returns the waits that are under way when a batch begins: what the batch reads is at
// least as new as what they are for.
func (e *Engine) openWaiters() []*waiter {
	e.mu.RLock()
	defer e.mu.RUnlock()
	var list []*waiter
	for w := range e.waiters {
		list = append(list, w)
	}
	return list
}

func (e *Engine) closeWaiters(list []*waiter, u drop.Unit) {
	if len(list) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range list {
		delete(w.open, u)
	}
}

// settle waits until what was in the drop directory at the call has been judged: units, or all where
// there are none. It returns what is still open when ctx ends, with ctx's error.
func (e *Engine) settle(ctx context.Context, units []drop.Unit) ([]drop.Unit, error) {
	open, err := e.Dir.Barrier(ctx, units)
	if err != nil {
		return units, err
	}
	if len(open) == 0 {
		return nil, nil
	}
	w := &waiter{open: make(map[drop.Unit]bool, len(open))}
	for _, u := range open {
		w.open[u] = true
	}
	e.mu.Lock()
	e.waiters[w] = struct{}{}
	news := e.news
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		delete(e.waiters, w)
		e.mu.Unlock()
	}()
	for {
		// A unit may have been judged between the barrier and the wait: then drop has nothing more
		// to do for it.
		still, err := e.Dir.Barrier(ctx, open)
		e.mu.RLock()
		open = open[:0]
		for u := range w.open {
			if err != nil || slices.Contains(still, u) {
				open = append(open, u)
			}
		}
		e.mu.RUnlock()
		if len(open) == 0 || err != nil {
			return open, err
		}
		select {
		case <-news:
		case <-ctx.Done():
			return open, ctx.Err()
		}
		e.mu.RLock()
		news = e.news
		e.mu.RUnlock()
	}
}

// Wait implements api.Backend.
func (e *Engine) Wait(ctx context.Context, paths []string) (api.WaitResult, error) {
	units := make([]drop.Unit, 0, len(paths))
	for _, path := range paths {
		u, err := e.parsePath(path)
		if err != nil {
			return api.WaitResult{}, fmt.Errorf("%w: %w", api.ErrUnknown, err)
		}
		units = append(units, u)
	}
	open, err := e.settle(ctx, units)
	r := api.WaitResult{State: api.Applied}
	for _, u := range open {
		r.Unsettled = append(r.Unsettled, u.Path())
	}
	slices.Sort(r.Unsettled)
	halves := make(map[drop.Unit]bool)
	for _, u := range units {
		halves[u] = u.Kind == drop.VM && len(e.Dir.List(u)) > 0
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	add := func(v desired.View) {
		u := e.unit(v)
		if u.State == api.Applied {
			return
		}
		r.Units = append(r.Units, u)
		if u.State == api.Rejected || r.State == api.Applied {
			r.State = u.State
		}
	}
	if len(paths) == 0 {
		for v := range e.model.Views() {
			add(v)
		}
	}
	for _, u := range units {
		if v, ok := e.model.View(u); ok {
			add(v)
		} else if halves[u] {
			r.Units = append(r.Units, api.Unit{Unit: u.Path(), State: api.Pending, Since: e.Now(),
				Reasons: []api.Fault{{File: u.Path(), What: "has no vm.yaml yet; a VM exists once it has"}}})
			if r.State == api.Applied {
				r.State = api.Pending
			}
		}
		// Else it is gone, and out of force.
	}
	slices.SortFunc(r.Units, func(a, b api.Unit) int { return cmp.Compare(a.Unit, b.Unit) })
	return r, err
}

// parsePath takes a path as people give it: below the drop directory, absolute or relative.
func (e *Engine) parsePath(path string) (drop.Unit, error) {
	rel := filepath.Clean(path)
	if filepath.IsAbs(rel) {
		var err error
		if rel, err = filepath.Rel(e.Dir.Path(), rel); err != nil {
			return drop.Unit{}, err
		}
	}
	return drop.ParsePath(rel)
}
