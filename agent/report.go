package agent

import (
	"context"
	"errors"

	"vragent/agent/internal/api"
	"vragent/agent/internal/cloudstack"
)

// The agent is the API's backend: the engine's reports, and what the agent alone knows.
var _ api.Backend = (*Agent)(nil)

// Status implements api.Backend.
func (a *Agent) Status(ctx context.Context) api.Status {
	s := a.engine.Status(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	s.Version, s.Started = a.opts.Version, a.started
	s.Config = api.ConfigStatus{Files: a.cfg.Files, Loaded: a.loaded, Restart: a.later}
	for _, err := range a.faults {
		var f ConfigFault
		if errors.As(err, &f) {
			s.Config.Faults = append(s.Config.Faults, api.Fault{File: f.File, Line: f.Line, Column: f.Column, What: f.What})
		} else {
			s.Config.Faults = append(s.Config.Faults, api.Fault{What: err.Error()})
		}
	}
	s.Faults = append(s.Faults, a.notes...)
	s.Shared = a.pair.status()
	// Also where the dialect is off: as it is after an installation that failed.
	cs, err := standsIn(cloudstack.RecordFile)
	if err != nil {
		s.Faults = append(s.Faults, err.Error())
	} else if cs != nil && cs.Problem != "" {
		s.Faults = append(s.Faults, "taking the CloudStack router over: "+cs.Problem)
	}
	s.CloudStack = cs
	return s
}

// Networks implements api.Backend.
func (a *Agent) Networks(ctx context.Context) []api.Network { return a.engine.Networks(ctx) }

// VMs implements api.Backend.
func (a *Agent) VMs(ctx context.Context) []api.VM { return a.engine.VMs(ctx) }

// Explain implements api.Backend.
func (a *Agent) Explain(ctx context.Context, subject string) (api.Explanation, error) {
	return a.engine.Explain(ctx, subject)
}

// Wait implements api.Backend.
func (a *Agent) Wait(ctx context.Context, paths []string) (api.WaitResult, error) {
	return a.engine.Wait(ctx, paths)
}
