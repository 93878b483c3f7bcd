package engine

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"vragent/agent/internal/api"
	"vragent/agent/internal/desired"
	"vragent/agent/internal/drop"
)

// The engine is the API's door to the drop directory: it knows both sides of it.
var _ api.Drop = (*Engine)(nil)

// Units implements api.Drop.
func (e *Engine) Units(ctx context.Context) ([]string, error) {
	units, err := e.Dir.Scan(ctx)
	if err != nil {
		return nil, err
	}
	paths := make([]string, len(units))
	for i, u := range units {
		paths[i] = u.Path()
	}
	return paths, nil
}

// Read implements api.Drop.
func (e *Engine) Read(ctx context.Context, path string, names ...string) (map[string][]byte, error) {
	u, err := drop.ParsePath(path)
	if err != nil {
		return nil, err
	}
	c, err := e.readSettled(ctx, u)
	if err != nil {
		return nil, err
	}
	if !c.Exists && len(c.Files) == 0 {
		return nil, fmt.Errorf("%s: %w", path, api.ErrUnknown)
	}
	files := make(map[string][]byte, len(c.Files))
	for name, f := range c.Files {
		if len(names) == 0 || slices.Contains(names, name) {
			files[name] = f.Data
		}
	}
	return files, nil
}

// readSettled reads a unit as soon as nobody writes it.
func (e *Engine) readSettled(ctx context.Context, u drop.Unit) (drop.Content, error) {
	const poll = 20 * time.Millisecond
	for {
		c, err := e.Dir.Read(u)
		if !errors.Is(err, drop.ErrUnsettled) {
			return c, err
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return c, ctx.Err()
		}
	}
}

// Judge implements api.Drop.
func (e *Engine) Judge(ctx context.Context, changes iter.Seq2[api.Change, error]) (map[string]api.Unit, error) {
	var list []desired.Change
	for change, err := range changes {
		if err != nil {
			return nil, err
		}
		c, err := e.foresee(ctx, change)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	verdicts := make(map[string]api.Unit)
	snapshot, _ := e.Kernel.Current()
	e.mu.RLock()
	defer e.mu.RUnlock()
	rejected := e.model.Probe(list)
	coming := make(map[string]*desired.Network) // networks after the changes; nil: removed
	for _, c := range list {
		if c.Unit.Kind == drop.Network && rejected[c.Unit] == nil {
			coming[c.Unit.Name] = nil
			if c.Content != nil {
				coming[c.Unit.Name] = c.Content.Network
			}
		}
	}
	report := func(c desired.Change, state api.State, reasons ...api.Fault) {
		verdicts[c.Unit.Path()] = api.Unit{Unit: c.Unit.Path(), State: state, Since: e.Now(), Reasons: reasons, Notes: c.Notes}
	}
	for _, c := range list {
		if faults := rejected[c.Unit]; faults != nil {
			reasons := make([]api.Fault, len(faults))
			for i, f := range faults {
				reasons[i] = fault(f)
			}
			report(c, api.Rejected, reasons...)
			continue
		}
		if c.Content == nil {
			continue
		}
		if n := c.Content.Network; n != nil {
			if p := locate([]*desired.Network{n}, snapshot)[n.Name]; p.device == "" && !n.Relay {
				report(c, api.Pending, api.Fault{File: c.Unit.Path(), What: p.why})
			}
			continue
		}
		var reasons []api.Fault
		for i, nic := range c.Content.VM.NICs {
			n, changed := coming[nic.Network]
			if !changed {
				n = e.model.Network(nic.Network)
			}
			at := api.Fault{File: c.Unit.Path() + "/" + drop.VMFile, Line: nic.At.Line, Column: nic.At.Column}
			if n == nil {
				at.What = fmt.Sprintf("nics[%d]: waits for its network: %s is not there or not in force yet", i, drop.Unit{Kind: drop.Network, Name: nic.Network}.Path())
				reasons = append(reasons, at)
			} else if p := locate([]*desired.Network{n}, snapshot)[n.Name]; p.device == "" && !n.Relay {
				at.What = fmt.Sprintf("nics[%d]: network %s %s", i, nic.Network, p.why)
				reasons = append(reasons, at)
			}
		}
		if len(reasons) > 0 {
			report(c, api.Pending, reasons...)
		}
	}
	return verdicts, nil
}

// foresee parses a unit as it would be with a change.
func (e *Engine) foresee(ctx context.Context, change api.Change) (desired.Change, error) {
	u, err := drop.ParsePath(change.Unit)
	if err != nil {
		return desired.Change{}, err
	}
	if change.Remove {
		return desired.Change{Unit: u}, nil
	}
	c, err := e.readSettled(ctx, u)
	if err != nil && !errors.Is(err, drop.ErrMissing) {
		return desired.Change{}, err
	}
	c.Unit = u
	files := make(map[string]drop.File, len(c.Files)+len(change.Files))
	maps.Copy(files, c.Files)
	// A file that is replaced or removed takes its faults along.
	c.Faults = slices.DeleteFunc(slices.Clone(c.Faults), func(f drop.Fault) bool {
		for name := range change.Files {
			if f.File == u.Path()+"/"+name || f.File == u.Path() {
				return true
			}
		}
		return false
	})
	for name, data := range change.Files {
		if data == nil {
			delete(files, name)
			continue
		}
		files[name] = drop.File{Name: name, Data: data}
		if most := drop.Limit(u.Kind, name); int64(len(data)) > most {
			c.Faults = append(c.Faults, drop.Fault{File: u.Path() + "/" + name, What: fmt.Sprintf("is %d bytes; %d are allowed", len(data), most)})
		}
	}
	main := drop.VMFile
	if u.Kind == drop.Network {
		main = u.Name + ".yaml"
	}
	c.Files = files
	if _, c.Exists = files[main]; !c.Exists && len(c.Faults) == 0 {
		c.Faults = append(c.Faults, drop.Fault{File: u.Path(), What: "would be left without " + main})
	}
	return e.change(c), nil
}

// Put implements api.Drop.
func (e *Engine) Put(ctx context.Context, changes []api.Change) error {
	edits := make([]drop.Edit, len(changes))
	for i, c := range changes {
		u, err := drop.ParsePath(c.Unit)
		if err != nil {
			return err
		}
		edits[i] = drop.Edit{Unit: u, Remove: c.Remove}
		for name, data := range c.Files {
			if data == nil {
				edits[i].Clear = append(edits[i].Clear, name)
				continue
			}
			if edits[i].Set == nil {
				edits[i].Set = make(map[string][]byte, len(c.Files))
			}
			edits[i].Set[name] = data
		}
	}
	var errs []error
	err := e.Dir.PutAll(ctx, slices.Values(edits), func(_ drop.Unit, err error) { errs = append(errs, err) })
	if err != nil {
		return err
	}
	return errors.Join(errs...)
}

// Settle implements api.Drop.
func (e *Engine) Settle(ctx context.Context, paths []string) ([]api.Unit, error) {
	units := make([]drop.Unit, 0, len(paths))
	for _, path := range paths {
		u, err := drop.ParsePath(path)
		if err != nil {
			return nil, err
		}
		units = append(units, u)
	}
	if len(units) == 0 {
		return nil, nil
	}
	if _, err := e.settle(ctx, units); err != nil {
		return nil, err
	}
	list := make([]api.Unit, len(units))
	e.mu.RLock()
	defer e.mu.RUnlock()
	for i, u := range units {
		list[i] = api.Unit{Unit: u.Path()}
		if v, ok := e.model.View(u); ok {
			list[i] = e.unit(v)
		}
	}
	return list, nil
}

// Follow implements api.Drop.
func (e *Engine) Follow(ctx context.Context, path string, from api.State) (api.Unit, error) {
	u, err := drop.ParsePath(path)
	if err != nil {
		return api.Unit{}, err
	}
	for {
		e.mu.RLock()
		news := e.news
		now := api.Unit{Unit: path}
		if v, ok := e.model.View(u); ok {
			now = e.unit(v)
		}
		e.mu.RUnlock()
		if now.State != from {
			return now, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return now, ctx.Err()
		}
	}
}
