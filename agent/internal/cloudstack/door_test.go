package cloudstack

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"vragent/agent/internal/desired"
	"vragent/agent/internal/drop"
)

// fakeDoor is a drop directory in memory, judged as the agent judges: what a unit says is in force
// in model.
type fakeDoor struct {
	files map[string]map[string][]byte // by unit
	model *desired.Model
	full  bool // the disk
	puts  int
	taken map[string]string // units whose guest has taken a password
}

func newDoor() *fakeDoor {
	return &fakeDoor{files: make(map[string]map[string][]byte), model: desired.NewModel(), taken: make(map[string]string)}
}

func (f *fakeDoor) Read(_ context.Context, unit string) (map[string][]byte, error) {
	return f.files[unit], nil
}

func (f *fakeDoor) with(c Change) map[string][]byte {
	if c.Remove {
		return nil
	}
	files := maps.Clone(f.files[c.Unit])
	if files == nil {
		files = make(map[string][]byte)
	}
	for name, data := range c.Files {
		if files[name] = data; data == nil {
			delete(files, name)
		}
	}
	return files
}

func parse(unit string, files map[string][]byte) desired.Change {
	u, err := drop.ParsePath(unit)
	if err != nil {
		panic(err)
	}
	content := drop.Content{Unit: u, Files: make(map[string]drop.File)}
	for name, data := range files {
		content.Files[name] = drop.File{Name: name, Data: data}
	}
	_, vm := files[vmFile]
	content.Exists = vm || u.Kind == drop.Network && len(files) > 0
	c, faults := desired.Parse(content, desired.Powers{NetAdmin: true})
	return desired.Change{Unit: u, Content: c, Faults: faults}
}

func verdict(unit string, faults []desired.Fault) Verdict {
	v := Verdict{Unit: unit, State: Rejected}
	for _, fault := range faults {
		v.Reasons = append(v.Reasons, fault.Error())
	}
	return v
}

func (f *fakeDoor) Judge(_ context.Context, changes []Change) ([]Verdict, error) {
	var list []desired.Change
	for _, c := range changes {
		list = append(list, parse(c.Unit, f.with(c)))
	}
	var out []Verdict
	for u, faults := range f.model.Probe(list) {
		out = append(out, verdict(u.Path(), faults))
	}
	return out, nil
}

func (f *fakeDoor) Put(_ context.Context, changes []Change) error {
	if f.full {
		return errors.New("no space left on device")
	}
	f.puts++
	var list []desired.Change
	for _, c := range changes {
		files := f.with(c)
		if f.files[c.Unit] = files; len(files) == 0 {
			delete(f.files, c.Unit)
			delete(f.taken, c.Unit)
		}
		list = append(list, parse(c.Unit, files))
	}
	f.model.Accept(f.model.Judge(list, time.Time{}), time.Time{})
	return nil
}

func (f *fakeDoor) Forget(_ context.Context, units []string) error {
	for _, unit := range units {
		delete(f.taken, unit)
	}
	return nil
}

func (f *fakeDoor) Settle(_ context.Context, units []string) ([]Verdict, error) {
	var out []Verdict
	for _, unit := range units {
		u, err := drop.ParsePath(unit)
		if err != nil {
			return nil, err
		}
		view, ok := f.model.View(u)
		switch {
		case !ok:
			out = append(out, Verdict{Unit: unit})
		case len(view.Faults) > 0:
			out = append(out, verdict(unit, view.Faults))
		default:
			v := Verdict{Unit: unit, State: Applied}
			if view.Have != nil && view.Have.VM != nil {
				for i := range view.Have.VM.NICs {
					if why, _ := f.model.Obstacle(u.Name, &view.Have.VM.NICs[i]); why.What != "" {
						v.State, v.Reasons = Pending, []string{why.What}
					}
				}
			}
			out = append(out, v)
		}
	}
	return out, nil
}

// fakeStore keeps values in a map, so that a test can start anew from them.
type fakeStore map[string][]byte

func (s fakeStore) Each(prefix string, do func(key string, value []byte) error) error {
	for _, key := range slices.Sorted(maps.Keys(s)) {
		if strings.HasPrefix(key, prefix) {
			if err := do(key, s[key]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s fakeStore) Commit(values map[string][]byte) error {
	for key, value := range values {
		if s[key] = value; value == nil {
			delete(s, key)
		}
	}
	return nil
}

// bench is a dialect with what is behind it.
type bench struct {
	t     *testing.T
	door  *fakeDoor
	store fakeStore
	links []Link // of the router
	*Dialect
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, door: newDoor(), store: make(fakeStore)}
	b.restart()
	return b
}

func (b *bench) restart() {
	b.t.Helper()
	d, err := New(b.door, b.store, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	d.Links = func() ([]Link, error) { return b.links, nil }
	b.Dialect = d
}

// file is name, a blank and the content.
func file(s string) File {
	name, data, _ := strings.Cut(s, " ")
	return File{Name: name, Data: []byte(data)}
}

// take applies files one after the other, each of which must be in force or pending.
func (b *bench) take(files ...string) {
	b.t.Helper()
	for _, f := range files {
		if r := b.one(f); r.State == Rejected {
			b.t.Fatalf("%s: %+v", f, r)
		}
	}
}

func (b *bench) one(f string) Result {
	b.t.Helper()
	r, err := b.Apply(context.Background(), []File{file(f)})
	if err != nil {
		b.t.Fatalf("%s: %v", f, err)
	}
	return r[0]
}

// guest tells how the address is served: MAC, vm-id, user data and password, each "-" where there
// is none.
func (b *bench) guest(network, ip string) string {
	b.t.Helper()
	unit := "vms/" + network + "_" + ip
	u, _ := drop.ParsePath(unit)
	view, ok := b.door.model.View(u)
	if !ok || view.Have == nil {
		return "none"
	}
	if len(view.Faults) > 0 {
		b.t.Errorf("%s is rejected: %v", unit, view.Faults)
	}
	vm := view.Have.VM
	or := func(s string) string {
		if s == "" {
			return "-"
		}
		return s
	}
	mac, user := "", ""
	if vm.NICs[0].MAC != nil {
		mac = vm.NICs[0].MAC.String()
	}
	if data, ok := b.door.files[unit][userFile]; ok {
		user = `"` + string(data) + `"`
	}
	return strings.Join([]string{or(mac[max(0, len(mac)-2):]), or(vm.Meta["vm-id"]), or(user), or(vm.Password)}, " ")
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}
