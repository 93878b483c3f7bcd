package agent

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"net/http"
	"slices"

	"vragent/agent/internal/api"
	"vragent/agent/internal/cloudstack"
	"vragent/agent/internal/engine"
)

// dialectHandlers are what the socket answers for the CloudStack dialect; none where it is off.
func (a *Agent) dialectHandlers() map[string]http.Handler {
	if a.cloudstack == nil {
		return nil
	}
	return map[string]http.Handler{"/v1/cloudstack/": a.cloudstack.Handler()}
}

// door is the engine as the dialect asks for it. It implements cloudstack.Door.
type door struct{ engine *engine.Engine }

func (d door) Read(ctx context.Context, unit string) (map[string][]byte, error) {
	files, err := d.engine.Read(ctx, unit)
	if errors.Is(err, api.ErrUnknown) {
		return nil, nil
	}
	return files, err
}

func (d door) Judge(ctx context.Context, changes []cloudstack.Change) ([]cloudstack.Verdict, error) {
	units, err := d.engine.Judge(ctx, func(yield func(api.Change, error) bool) {
		for _, c := range changes {
			if !yield(change(c), nil) {
				return
			}
		}
	})
	if err != nil {
		return nil, err
	}
	verdicts := make([]cloudstack.Verdict, 0, len(units))
	for _, u := range units {
		verdicts = append(verdicts, verdict(u))
	}
	return verdicts, nil
}

func (d door) Put(ctx context.Context, changes []cloudstack.Change) error {
	list := make([]api.Change, len(changes))
	for i, c := range changes {
		list[i] = change(c)
	}
	return d.engine.Put(ctx, list)
}

func (d door) Forget(_ context.Context, units []string) error { return d.engine.Forget(units) }

func (d door) Settle(ctx context.Context, units []string) ([]cloudstack.Verdict, error) {
	list, err := d.engine.Settle(ctx, units)
	if err != nil {
		return nil, err
	}
	verdicts := make([]cloudstack.Verdict, len(list))
	for i, u := range list {
		verdicts[i] = verdict(u)
	}
	return verdicts, nil
}

func change(c cloudstack.Change) api.Change {
	return api.Change{Unit: c.Unit, Remove: c.Remove, Files: c.Files}
}

func verdict(u api.Unit) cloudstack.Verdict {
	v := cloudstack.Verdict{Unit: u.Unit, State: cloudstack.State(u.State)}
	for _, r := range u.Reasons {
		v.Reasons = append(v.Reasons, r.String())
	}
	return v
}

// standsIn tells what the package vragent-cloudstack has recorded at path; nil where it is not
// installed.
func standsIn(path string) (*api.CloudStackStatus, error) {
	r, err := cloudstack.ReadRecord(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := &api.CloudStackStatus{InForce: r.InForce, Since: r.Since, Problem: r.Problem}
	for _, path := range slices.Sorted(maps.Keys(r.Stands)) {
		if s := r.Stands[path]; s.Times > 0 {
			out.Replaced = append(out.Replaced, api.Replaced{Path: path, Last: s.Replaced, Times: s.Times})
		}
	}
	return out, nil
}
