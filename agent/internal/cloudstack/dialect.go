package cloudstack

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"
)

// State is what became of a unit, and of a file as the worst state of its units.
type State string

const (
	Applied  State = "applied"  // in force, on standby where another router has the address
	Pending  State = "pending"  // valid; it takes effect once its network is there
	Rejected State = "rejected" // what was in force before stays so
)

// Verdict is what became of one unit, or would become of it.
type Verdict struct {
	Unit    string
	State   State // "": there is no such unit any more
	Reasons []string
}

// Door is the one way into the drop directory, and what lies behind it.
type Door interface {
	// Read returns the files of a unit as they lie there now, by base name; none where there is no
	// such unit.
	Read(ctx context.Context, unit string) (map[string][]byte, error)
	// Judge tells which units would not be applied if all changes were put now, and why. It
	// writes nothing. From is empty in changes that Judge and Put get.
	Judge(ctx context.Context, changes []Change) ([]Verdict, error)
	// Put writes the changes, which are of different units, and returns when they are durable.
	Put(ctx context.Context, changes []Change) error
	// Forget drops the records of passwords that guests have taken under the names of units, which
	// are other VMs' from now on.
	Forget(ctx context.Context, units []string) error
	// Settle waits until the units have been judged as they lie there, and are in force if they can
	// be, and returns what became of each, in the order of units.
	Settle(ctx context.Context, units []string) ([]Verdict, error)
}

// Store keeps the memory across restarts. Values are small.
type Store interface {
	// Each calls do with every entry whose key begins with prefix; a value is valid until do returns.
	Each(prefix string, do func(key string, value []byte) error) error
	// Commit makes all values durable together; nil deletes.
	Commit(values map[string][]byte) error
}

// File is a file of a management server.
type File struct {
	Name string `json:"name"`
	Data []byte `json:"data"`
}

// Result is what became of one file.
type Result struct {
	Name  string `json:"name"`
	State State  `json:"state"`
	// Reason says why the file was rejected, or what it is waiting for.
	Reason string   `json:"reason,omitempty"`
	Notes  []string `json:"notes,omitempty"` // what was left out
}

// Dialect takes files of a management server in. It is safe for concurrent use; files are taken in
// one after the other, in the order of the calls.
type Dialect struct {
	// Links lists the devices of the router: Links, unless something else is set before the first call.
	Links func() ([]Link, error)
	// DropDir and Databags are passed on to those who ask for the Guests: where the drop directory
	// is, and whether the files of a router's own scripts are to be kept. Set before the first call.
	DropDir  string
	Databags bool

	door  Door
	store Store
	log   *slog.Logger

	turn chan struct{} // held while files are taken in

	mu      sync.Mutex         // guards memory against readers, while turn guards it against writers
	memory  *Memory            // of the router itself
	scopes  map[string]*Memory // of the networks of an extension
	changed chan struct{}      // closed when generation grows
	gen     uint64
}

// New returns a dialect that remembers what store holds. An entry that cannot be read is left out
// and logged. A nil log discards.
func New(door Door, store Store, log *slog.Logger) (*Dialect, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	d := &Dialect{
		Links: Links, door: door, store: store, log: log,
		turn: make(chan struct{}, 1), memory: NewMemory(), scopes: make(map[string]*Memory), changed: make(chan struct{}), gen: uint64(time.Now().UnixNano()),
	}
	err := store.Each("", func(key string, value []byte) error {
		m := d.memory
		if scope, rest, ok := cutScope(key); ok {
			m, key = d.scope(scope), rest
		}
		if err := m.load(key, value); err != nil {
			log.Error("entry of the memory left out", "err", err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("memory: %w", err)
	}
	return d, nil
}

// Apply takes files in, in order, and returns what became of each of them, once they are in force,
// on standby, pending or rejected. A file that is rejected changes nothing and stops no other. The
// error is not nil where the files, or some of them, could not be taken in: the disk is full, the
// daemon stops. What had been in force is so still, or the file's content is, and taking the same
// files in again is right.
func (d *Dialect) Apply(ctx context.Context, files []File) ([]Result, error) {
	done, err := d.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	results := make([]Result, len(files))
	var events []Event
	var at []int // of events, in results
	for i, f := range files {
		e, err := Parse(f.Name, f.Data)
		results[i] = Result{Name: e.Name, State: Applied, Notes: e.Notes}
		if err != nil {
			results[i].State, results[i].Reason = Rejected, err.Error()
			continue
		}
		events, at = append(events, e), append(at, i)
	}
	if err := d.take(ctx, d.memory, events, at, results); err != nil {
		return nil, err
	}
	for _, r := range results {
		d.tell(r)
	}
	return results, nil
}

// begin waits until no other files are being taken in.
func (d *Dialect) begin(ctx context.Context) (done func(), err error) {
	select {
	case d.turn <- struct{}{}:
		return func() { <-d.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// tell logs what became of a file.
func (d *Dialect) tell(r Result) {
	if r.State == Rejected {
		d.log.Error("cloudstack file rejected", "file", r.Name, "reason", r.Reason)
	} else {
		d.log.Info("cloudstack file taken in", "file", r.Name, "state", r.State)
	}
	for _, note := range r.Notes {
		d.log.Warn("cloudstack file", "file", r.Name, "note", note)
	}
}

// scope returns the memory of a network of an extension.
func (d *Dialect) scope(name string) *Memory {
	m := d.scopes[name]
	if m == nil {
		m = NewMemory()
		m.router.Scope = name
		d.scopes[name] = m
	}
	return m
}

// take brings events into force together, which spares guests every state in between, or one half
// after the other where that would have some of them rejected, and so on until those stand alone.
func (d *Dialect) take(ctx context.Context, m *Memory, events []Event, at []int, results []Result) error {
	if len(events) == 0 {
		return nil
	}
	around, err := d.surrounded(events)
	if err != nil {
		return err
	}
	step := m.Fold(around...)
	units, refused, err := d.put(ctx, step)
	if err != nil {
		return err
	}
	if len(refused) == 0 {
		verdicts, err := d.door.Settle(ctx, units)
		if err != nil {
			return err
		}
		if len(events) == 1 {
			results[at[0]].worsen(append(verdicts, m.waiting(events[0])...))
			return nil
		}
		return d.attribute(m, events, at, results, verdicts)
	}
	if len(events) == 1 {
		results[at[0]].worsen(refused)
		return nil
	}
	half := len(events) / 2
	if err := d.take(ctx, m, events[:half], at[:half], results); err != nil {
		return err
	}
	return d.take(ctx, m, events[half:], at[half:], results)
}

// surrounded returns events as they stand among the router's devices, which come first where an
// event depends on them.
func (d *Dialect) surrounded(events []Event) ([]Event, error) {
	if !slices.ContainsFunc(events, Event.ofRouter) {
		return events, nil
	}
	list, err := d.Links()
	if err != nil {
		return nil, fmt.Errorf("devices of the router: %w", err)
	}
	out := append(make([]Event, 0, len(events)+1), Event{body: links(list)})
	for _, e := range events {
		e.body = links(list).resolve(e.body)
		out = append(out, e)
	}
	return out, nil
}

// attribute tells for each of many events what became of the units that it concerns by itself.
func (d *Dialect) attribute(m *Memory, events []Event, at []int, results []Result, verdicts []Verdict) error {
	byUnit := make(map[string]Verdict)
	for _, v := range verdicts {
		if v.State == Pending || v.State == Rejected {
			byUnit[v.Unit] = v
		}
	}
	for i := range events {
		own := m.waiting(events[i])
		if len(byUnit) == 0 {
			results[at[i]].worsen(own)
			continue
		}
		// Folded again, alone, it names its units; the memory says where they are by now.
		for _, c := range m.Fold(events[i]).Changes() {
			if v, ok := byUnit[c.Unit]; ok {
				own = append(own, v)
			}
		}
		results[at[i]].worsen(own)
	}
	return nil
}

// worsen makes the result that of its worst unit.
func (r *Result) worsen(verdicts []Verdict) {
	rank := func(s State) int { return slices.Index([]State{"", Applied, Pending, Rejected}, s) }
	var reasons []string
	for _, v := range verdicts {
		if rank(v.State) > rank(r.State) {
			r.State, reasons = v.State, nil
		}
		if v.State == r.State && v.State != Applied {
			for _, why := range v.Reasons {
				if len(reasons) < 5 && !slices.Contains(reasons, why) {
					reasons = append(reasons, why)
				}
			}
		}
	}
	if len(reasons) > 0 {
		r.Reason = strings.Join(reasons, "; ")
	}
}

// put judges a step, and writes it unless some of its units would be rejected, which it returns
// then. The memory follows the drop directory, never the other way round: what is remembered
// without having been written would be taken for done when the server tries again.
func (d *Dialect) put(ctx context.Context, step *Step) (units []string, refused []Verdict, err error) {
	changes := step.Changes()
	for i := range changes {
		c := &changes[i]
		units = append(units, c.Unit)
		if c.From == "" {
			continue
		}
		files, err := d.door.Read(ctx, c.From)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", c.From, err)
		}
		for name, data := range files {
			if _, named := c.Files[name]; !named {
				c.Files[name] = data
			}
		}
		c.From = ""
	}
	if len(changes) > 0 {
		verdicts, err := d.door.Judge(ctx, served(changes))
		if err != nil {
			return nil, nil, err
		}
		for _, v := range verdicts {
			if v.State == Rejected {
				refused = append(refused, v)
			}
		}
		if len(refused) > 0 {
			return units, refused, nil
		}
		if err := d.door.Put(ctx, changes); err != nil {
			return nil, nil, fmt.Errorf("drop directory: %w", err)
		}
	}
	values, err := step.values()
	if err != nil {
		return nil, nil, err
	}
	if len(step.anew) > 0 {
		if err := d.door.Forget(ctx, step.anew); err != nil {
			return nil, nil, err
		}
	}
	if len(values) > 0 {
		if err := d.store.Commit(values); err != nil {
			return nil, nil, fmt.Errorf("memory: %w", err)
		}
	}
	d.change(func() { step.memory.Accept(step) })
	return units, nil, nil
}

// change changes the memory and tells those who wait for it.
func (d *Dialect) change(do func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	do()
	d.gen++
	close(d.changed)
	d.changed = make(chan struct{})
}

// Leave takes back all that files of the router have ever put into the drop directory, and forgets it: the
// router is somebody else's from now on. Networks of an extension stay. It returns once nothing of it is
// in force. Leaving twice changes nothing.
func (d *Dialect) Leave(ctx context.Context) error {
	done, err := d.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	return d.leave(ctx, []*Memory{d.memory}, func() { d.memory = NewMemory() })
}

// LeaveExtension is Leave for all networks of an extension, and for nothing of the router.
func (d *Dialect) LeaveExtension(ctx context.Context) error {
	done, err := d.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	return d.leave(ctx, slices.Collect(maps.Values(d.scopes)), func() { clear(d.scopes) })
}

// leave takes back what memories have put into the drop directory, and has them forgotten, all together.
func (d *Dialect) leave(ctx context.Context, memories []*Memory, forget func()) error {
	var guests, networks []string
	values := make(map[string][]byte)
	for _, m := range memories {
		prefix := m.prefix()
		values[prefix+routerKey] = nil
		for ip, g := range m.guests {
			values[prefix+guestPrefix+ip.String()] = nil
			if !g.Gone {
				guests = append(guests, guestUnit(g.Network, ip))
			}
		}
		for _, n := range m.router.networks() {
			networks = append(networks, networkUnit(n.Name))
		}
	}
	// Guests that no network is known for may share a unit.
	slices.Sort(guests)
	guests = slices.Compact(guests)
	units := slices.Concat(guests, networks)
	changes := make([]Change, 0, len(units))
	for _, unit := range units {
		changes = append(changes, Change{Unit: unit, Remove: true})
	}
	if len(changes) > 0 {
		if err := d.door.Put(ctx, changes); err != nil {
			return fmt.Errorf("drop directory: %w", err)
		}
		if _, err := d.door.Settle(ctx, units); err != nil {
			return err
		}
	}
	if len(guests) > 0 {
		if err := d.door.Forget(ctx, guests); err != nil {
			return err
		}
	}
	if len(values) > 0 {
		if err := d.store.Commit(values); err != nil {
			return fmt.Errorf("memory: %w", err)
		}
	}
	d.change(forget)
	d.log.Info("cloudstack dialect left", "networks", len(networks), "guests", len(guests))
	return nil
}

// served leaves out the changes of folders that have no vm.yaml afterwards and so are no units.
func served(changes []Change) []Change {
	return slices.DeleteFunc(slices.Clone(changes), func(c Change) bool {
		if c.Remove || path.Dir(c.Unit) != "vms" {
			return false
		}
		vm, named := c.Files[vmFile]
		return named && vm == nil
	})
}

// Waiter tells when what the dialect knows has changed since generation gen: the returned channel is
// closed then. The first value is the newest generation.
func (d *Dialect) Waiter(gen uint64) (newest uint64, changed <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gen != gen {
		closed := make(chan struct{})
		close(closed)
		return d.gen, closed
	}
	return d.gen, d.changed
}
