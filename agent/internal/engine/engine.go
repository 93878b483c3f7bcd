package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"vragent/agent/internal/desired"
	"vragent/agent/internal/drop"
	"vragent/agent/internal/state"
	"vragent/dhcp"
	"vragent/metadata"
	"vragent/netcfg"
)

// Settings are what can change while the engine runs.
type Settings struct {
	PublicInterface string
	TokensRequired  bool
}

// Parts are what the engine works with. All but Log must be there.
type Parts struct {
	Dir    *drop.Dir
	Store  *state.Store
	Kernel *netcfg.Kernel
	Powers netcfg.Powers

	DHCPTable *dhcp.Table
	DHCP      *dhcp.Server
	GuestData *metadata.Table
	Metadata  *metadata.Server

	// Shared keeps the records of taken passwords for a pair of routers; nil: there is one router.
	Shared SharedTaken

	// Observe hears of each unit that was taken in: what became of it (applied, pending, rejected,
	// removed, or failed where the state directory refused it), and how long that took from the last
	// change of its files (drop.Content's SettledAt). Nil hears nothing.
	Observe func(outcome string, took time.Duration)
	Log     *slog.Logger // nil discards
	Now     func() time.Time
}

// Engine brings the drop directory into force. Its methods may be called from any goroutine, Restore,
// Load and Run once each, in this order.
type Engine struct {
	Parts

	mu       sync.RWMutex // guards what follows; never held across input or output
	model    *desired.Model
	known    map[drop.Unit]*known
	order    uint64 // of the newest acceptance
	settings Settings
	faults   map[string]string // of the engine's own doing, by what it is about
	places   map[string]place
	pins     map[string]string     // network -> device its neighbors are pinned on
	guests   map[string]int        // network -> NICs in force
	public   map[string]netip.Addr // network -> public address that its guests are told
	news     chan struct{}         // closes when units have been judged or networks placed
	waiters  map[*waiter]struct{}
	gone     map[string][]byte // records to be removed from Shared, by VM

	// Of the goroutine of Restore, Load and Run alone.
	garbage   map[string]bool // keys of bytes that no content in force refers to
	unscanned bool            // the drop directory was missing at the start

	placing sync.Mutex // one reconciliation of devices at a time
	taking  sync.Mutex // one change of a record of a taken password at a time

	goneNews chan struct{} // holds a token while gone is not empty
}

// known is what goes with a content in force beside the content itself.
type known struct {
	order       uint64
	generation  uint64
	fingerprint string // of the files as they were read for it
}

// New returns an engine that serves nothing yet.
func New(p Parts, s Settings) *Engine {
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	if p.Now == nil {
		p.Now = time.Now
	}
	return &Engine{
		Parts: p, settings: s,
		model:   desired.NewModel(),
		known:   make(map[drop.Unit]*known),
		garbage: make(map[string]bool),
		faults:  make(map[string]string),
		places:  make(map[string]place),
		pins:    make(map[string]string),
		public:  make(map[string]netip.Addr),
		guests:  make(map[string]int),
		news:    make(chan struct{}),
		waiters: make(map[*waiter]struct{}),

		gone:     make(map[string][]byte),
		goneNews: make(chan struct{}, 1),
	}
}

func (e *Engine) powers() desired.Powers { return desired.Powers{NetAdmin: e.Powers.NetAdmin} }

// Load takes in what has changed in the drop directory since the last stop, and begins to serve. Units
// whose files are as they were are not read. Clients may have waited since that stop, some for what was
// dropped then: a few changes come before the first answer, many after it.
func (e *Engine) Load(ctx context.Context) error {
	defer e.Kernel.PruneNeighbors()
	units, err := e.Dir.Scan(ctx)
	missing := errors.Is(err, drop.ErrMissing)
	if err != nil && !missing {
		return fmt.Errorf("scan drop directory: %w", err)
	}
	if missing {
		e.Log.Warn("the drop directory is missing; what was in force before stays so", "dir", e.Dir.Path())
		e.unscanned = true
		e.place()
		return nil
	}
	there := make(map[drop.Unit]bool, len(units))
	var changed []drop.Unit
	for _, u := range units {
		there[u] = true
		k := e.known[u]
		if k == nil {
			changed = append(changed, u)
			continue
		}
		if fp, exists, err := e.Dir.Stat(u); err != nil || !exists || fp != k.fingerprint {
			changed = append(changed, u)
		}
	}
	for u := range e.known {
		if !there[u] {
			changed = append(changed, u)
		}
	}
	slices.SortFunc(changed, compareUnits)
	if len(changed) > batchUnits {
		e.place()
	}
	e.take(ctx, changed)
	e.place()
	return ctx.Err()
}

func compareUnits(a, b drop.Unit) int {
	if a.Kind != b.Kind { // networks first, so that VMs find them
		if a.Kind == drop.Network {
			return -1
		}
		return 1
	}
	if a.Name < b.Name {
		return -1
	}
	if a.Name > b.Name {
		return 1
	}
	return 0
}

const (
	batchUnits = 512     // taken in at once, so that they share a sync
	batchBytes = 8 << 20 // of user data on its way to the state directory
	retryEvery = time.Second

	collectAfter = time.Second // of quiet, bytes that are served no more are let go
)

// Run takes changes in until ctx ends, and returns nil then.
func (e *Engine) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { e.follow(ctx) })
	wg.Go(func() { e.retry(ctx) })
	if e.Shared != nil {
		wg.Go(func() { e.share(ctx) })
		wg.Go(func() { e.runUnshare(ctx) })
	}
	for {
		next, stop := ctx, func() {}
		if len(e.garbage) > 0 {
			next, stop = context.WithTimeout(ctx, collectAfter)
		}
		units, err := e.Dir.Next(next, batchUnits)
		stop()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, context.DeadlineExceeded):
			e.collect()
			continue
		default:
			return fmt.Errorf("drop directory: %w", err)
		}
		if e.unscanned {
			e.unscanned = false
			e.Rescan()
		}
		slices.SortFunc(units, compareUnits)
		e.take(ctx, units)
	}
}

// take reads, judges and brings into force, in portions that bound the memory.
func (e *Engine) take(ctx context.Context, units []drop.Unit) {
	began := e.openWaiters()
	for len(units) > 0 && ctx.Err() == nil {
		var contents []drop.Content
		size := 0
		for len(units) > 0 && len(contents) < batchUnits && size < batchBytes {
			u := units[0]
			units = units[1:]
			c, err := e.Dir.Read(u)
			if err != nil {
				// Not settled after all, or the system is short of something: drop gives the unit
				// out again.
				if !errors.Is(err, drop.ErrUnsettled) {
					e.Log.Warn("unit cannot be read now", "unit", u.Path(), "err", err)
				}
				continue
			}
			for _, f := range c.Files {
				size += len(f.Data)
			}
			contents = append(contents, c)
		}
		e.bring(contents)
		e.observe(contents)
		for _, c := range contents {
			e.closeWaiters(began, c.Unit)
		}
	}
	// In this order: whoever is woken asks drop what is still open, and must not be told of this batch.
	e.Dir.Done()
	e.announce()
}

// observe reports what became of units that were taken in.
func (e *Engine) observe(contents []drop.Content) {
	if e.Observe == nil {
		return
	}
	now := time.Now()
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, c := range contents {
		outcome := "removed"
		if v, ok := e.model.View(c.Unit); ok {
			outcome = string(e.unit(v).State)
			if len(v.Faults) > 0 && v.Want != v.Have && e.faults["state"] != "" {
				outcome = "failed"
			}
		}
		e.Observe(outcome, now.Sub(c.SettledAt))
	}
}

// announce wakes those who wait for units to be judged or to change their state.
func (e *Engine) announce() {
	e.mu.Lock()
	close(e.news)
	e.news = make(chan struct{})
	e.mu.Unlock()
}

// bring judges contents and brings into force what can be.
func (e *Engine) bring(contents []drop.Content) {
	if len(contents) == 0 {
		return
	}
	now := e.Now()
	read := make(map[drop.Unit]drop.Content, len(contents))
	changes := make([]desired.Change, 0, len(contents))
	for _, c := range contents {
		changes = append(changes, e.change(c))
		read[c.Unit] = c
	}
	e.mu.Lock()
	moves := e.model.Judge(changes, now)
	e.mu.Unlock()
	// Units that waited for these move with them. Their bytes were not kept, so their files are read
	// once more, and what they hold now is what counts.
	for {
		var more []desired.Change
		for _, mv := range moves {
			if _, ok := read[mv.Unit]; ok || mv.New == nil {
				continue
			}
			c, err := e.Dir.Read(mv.Unit)
			if err != nil {
				more = append(more, desired.Change{Unit: mv.Unit, Content: mv.Old}) // drop brings it again
				continue
			}
			read[mv.Unit] = c
			more = append(more, e.change(c))
		}
		if len(more) == 0 {
			break
		}
		changes = append(changes, more...)
		e.mu.Lock()
		moves = e.model.Judge(changes, now)
		e.mu.Unlock()
	}
	e.logRejected(changes)
	e.enforce(moves, read, now)
	e.refresh(read)
}

func (e *Engine) change(c drop.Content) desired.Change {
	content, faults := desired.Parse(c, e.powers())
	return desired.Change{Unit: c.Unit, Content: content, Faults: faults, Notes: c.Notes}
}

// enforce puts moves on disk, then in force.
func (e *Engine) enforce(moves []desired.Move, contents map[drop.Unit]drop.Content, now time.Time) {
	if len(moves) == 0 {
		return
	}
	writes, err := e.write(moves, contents)
	if err != nil {
		err = fmt.Errorf("%w; the last good content stays in force until there is room for the new one", err)
		e.mu.Lock()
		e.model.Refuse(moves, err, now)
		news := e.faults["state"] != err.Error() // it is tried again each second
		e.faults["state"] = err.Error()
		e.mu.Unlock()
		if news {
			e.Log.Error("changes cannot be put in force", "units", len(moves), "err", err)
		}
		return
	}
	e.mu.Lock()
	e.model.Accept(moves, now)
	delete(e.faults, "state")
	for u, k := range writes {
		if k == nil {
			delete(e.known, u)
			continue
		}
		e.known[u] = k
	}
	e.publish(moves)
	e.mu.Unlock()
	for _, mv := range moves {
		e.logMove(mv)
	}
	if slices.ContainsFunc(moves, func(mv desired.Move) bool { return mv.Unit.Kind == drop.Network }) {
		e.place()
	}
}

// retry tries again what the state directory had no room for, and addresses that the kernel refused.
func (e *Engine) retry(ctx context.Context) {
	tick := time.NewTicker(retryEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		e.mu.RLock()
		disk, addresses := e.faults["state"] != "", e.faults["addresses"] != ""
		e.mu.RUnlock()
		if disk {
			// The contents are not kept in memory; reading the units again is what brings them back.
			e.Dir.Again(e.refused())
		}
		if addresses {
			e.place()
		}
	}
}

// refused lists the units that wait for the state directory, or for one that does.
func (e *Engine) refused() []drop.Unit {
	e.mu.RLock()
	defer e.mu.RUnlock()
	var units []drop.Unit
	for v := range e.model.Views() {
		if v.Have != v.Want {
			units = append(units, v.Unit)
		}
	}
	return units
}

// Set changes the settings; what they bear on is served anew at once.
func (e *Engine) Set(s Settings) {
	e.mu.Lock()
	e.settings = s
	for n := range e.model.Networks() {
		e.GuestData.SetNetwork(e.metadataNetwork(n))
	}
	e.mu.Unlock()
}

// follow keeps devices and addresses in step with the kernel.
func (e *Engine) follow(ctx context.Context) {
	for {
		_, stale := e.Kernel.Current()
		e.place()
		select {
		case <-stale:
		case <-ctx.Done():
			return
		}
	}
}

func (e *Engine) logMove(mv desired.Move) {
	switch {
	case mv.New == nil:
		e.Log.Info("unit removed", "unit", mv.Unit.Path())
	case mv.Old == nil:
		e.Log.Info("unit in force", "unit", mv.Unit.Path())
	default:
		e.Log.Info("unit changed", "unit", mv.Unit.Path())
	}
}

// logRejected reports the units of changes whose newest content is not good.
func (e *Engine) logRejected(changes []desired.Change) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, c := range changes {
		v, ok := e.model.View(c.Unit)
		if !ok {
			continue
		}
		for _, f := range v.Faults {
			e.Log.Warn("unit rejected", "unit", c.Unit.Path(), "why", f.Error(), "in_force", v.Have != nil)
		}
		for _, note := range v.Notes {
			e.Log.Info("unit has a file that is not read", "unit", c.Unit.Path(), "note", note)
		}
	}
}

// Rescan has every unit read and judged anew.
func (e *Engine) Rescan() {
	units, err := e.Dir.Scan(context.Background())
	if err != nil {
		e.Log.Warn("drop directory cannot be scanned", "err", err)
	}
	e.mu.RLock()
	for u := range e.known {
		units = append(units, u) // gone ones too; Again takes each once
	}
	e.mu.RUnlock()
	e.Dir.Again(units)
}

// Alive returns when the engine can be spoken to: when neither placing nor the writer of its state
// holds on to what the other needs.
func (e *Engine) Alive() {
	for _, lock := range []sync.Locker{&e.placing, &e.mu} {
		lock.Lock()
		//lint:ignore SA2001 that it could be taken is the answer
		lock.Unlock()
	}
}

// GuestSide tells whether an address of this router, or a device, is one that guests are served on:
// management has no business there.
func (e *Engine) GuestSide(local netip.Addr, device string) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for n := range e.model.Networks() {
		if local == n.Serving() || local == desired.LinkLocalAddr {
			return true
		}
		if device == "" {
			continue
		}
		p, placed := e.places[n.Name]
		if !placed { // just restored: connections may have waited for this process
			snapshot, _ := e.Kernel.Current()
			p = locate([]*desired.Network{n}, snapshot)[n.Name]
		}
		if p.device == device {
			return true
		}
	}
	return false
}
