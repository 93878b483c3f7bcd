package api_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"gopkg.in/yaml.v3"

	"vragent/agent/internal/api"
)

// memStore keeps records in memory. Its content is what a restart finds.
type memStore struct {
	mu      sync.Mutex
	records map[string][]byte
	broken  error // what Commit answers
}

func newMemStore() *memStore { return &memStore{records: map[string][]byte{}} }

func (s *memStore) Commit(changes map[string][]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	for key, value := range changes {
		if value == nil {
			delete(s.records, key)
		} else {
			s.records[key] = slices.Clone(value)
		}
	}
	return nil
}

func (s *memStore) Get(key string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	value, ok := s.records[key]
	if !ok {
		return nil, errors.New("no such key")
	}
	return slices.Clone(value), nil
}

func (s *memStore) Each(prefix string, fn func(string, []byte) error) error {
	s.mu.Lock()
	records := maps.Clone(s.records)
	s.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(records)) {
		if strings.HasPrefix(key, prefix) {
			if err := fn(key, records[key]); err != nil {
				return err
			}
		}
	}
	return nil
}

// texts returns everything in the store as one text, to search for what must not be there.
func (s *memStore) texts() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(s.records)) {
		fmt.Fprintf(&b, "%s=%s\n", key, s.records[key])
	}
	return b.String()
}

// fakeRouter is a drop directory in memory with a small agent behind it: it knows networks with a
// subnet, and VMs with NICs, whose MACs and addresses must not be taken. A VM whose network is
// missing is pending. It is both Backend and Drop.
type fakeRouter struct {
	mu      sync.Mutex
	files   map[string]map[string][]byte // by unit, then by base name
	changed chan struct{}                // closed at each change
	puts    []string                     // units in the order in which they were written
	broken  error                        // what Put answers
	hold    chan struct{}                // not nil: Put waits for it
	judged  int                          // calls of Judge
	writing string                       // the unit that somebody holds open
}

func newFakeRouter() *fakeRouter {
	return &fakeRouter{files: map[string]map[string][]byte{}, changed: make(chan struct{})}
}

type fakeNetwork struct {
	Interface string
	Gateway   string
}

type fakeVM struct {
	Hostname string
	NICs     []struct {
		Network string
		MAC     string
		IPv4    string
		Default *bool
		Lease   string `yaml:"lease_time"`
	} `yaml:"nics"`
}

// judge tells what becomes of all of files together, older units first: order names those that
// are new, in the order in which they came.
func judge(files map[string]map[string][]byte, order []string) map[string]api.Unit {
	states := map[string]api.Unit{}
	set := func(unit string, state api.State, format string, args ...any) {
		u := api.Unit{Unit: unit, State: state, InForce: state == api.Applied}
		if format != "" {
			u.Reasons = []api.Fault{{File: unit, What: fmt.Sprintf(format, args...)}}
		}
		states[unit] = u
	}
	networks := map[string]netip.Prefix{}
	for unit, content := range files {
		if strings.HasPrefix(unit, "networks/") {
			var n fakeNetwork
			err := yaml.Unmarshal(content[path.Base(unit)], &n)
			prefix, errPrefix := netip.ParsePrefix(n.Gateway)
			if err = errors.Join(err, errPrefix); err != nil {
				set(unit, api.Rejected, "%v", err)
				continue
			}
			networks[strings.TrimSuffix(path.Base(unit), ".yaml")] = prefix
			set(unit, api.Applied, "")
		}
	}
	taken := map[string]string{}
	units := slices.Sorted(maps.Keys(files))
	slices.SortStableFunc(units, func(a, b string) int { return slices.Index(order, a) - slices.Index(order, b) })
	for _, unit := range units {
		if !strings.HasPrefix(unit, "vms/") {
			continue
		}
		data, ok := files[unit]["vm.yaml"]
		if !ok {
			set(unit, api.Rejected, "no vm.yaml")
			continue
		}
		var vm fakeVM
		if err := yaml.Unmarshal(data, &vm); err != nil {
			set(unit, api.Rejected, "%v", err)
			continue
		}
		set(unit, api.Applied, "")
		for _, nic := range vm.NICs {
			prefix, ok := networks[nic.Network]
			addr, err := netip.ParseAddr(nic.IPv4)
			switch {
			case err != nil:
				set(unit, api.Rejected, "ipv4 %q: %v", nic.IPv4, err)
			case !ok:
				set(unit, api.Pending, "network %s is not there", nic.Network)
			case !prefix.Contains(addr):
				set(unit, api.Rejected, "ipv4 %s is outside of network %s", addr, nic.Network)
			case taken[nic.Network+nic.IPv4] != "":
				set(unit, api.Rejected, "ipv4 %s is that of %s", addr, taken[nic.Network+nic.IPv4])
			default:
				taken[nic.Network+nic.IPv4] = unit
			}
		}
	}
	return states
}

func (f *fakeRouter) apply(files map[string]map[string][]byte, c api.Change) {
	if c.Remove {
		delete(files, c.Unit)
		return
	}
	content := maps.Clone(files[c.Unit])
	if content == nil {
		content = map[string][]byte{}
	}
	for name, data := range c.Files {
		if data == nil {
			delete(content, name)
		} else {
			content[name] = slices.Clone(data)
		}
	}
	files[c.Unit] = content
}

func (f *fakeRouter) Judge(_ context.Context, changes iter.Seq2[api.Change, error]) (map[string]api.Unit, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.judged++
	files := maps.Clone(f.files)
	var order []string
	for c, err := range changes {
		if err != nil {
			return nil, err
		}
		f.apply(files, c)
		order = append(order, c.Unit)
	}
	verdicts := map[string]api.Unit{}
	for unit, u := range judge(files, order) {
		if u.State != api.Applied && slices.Contains(order, unit) {
			verdicts[unit] = u
		}
	}
	return verdicts, nil
}

func (f *fakeRouter) Put(ctx context.Context, changes []api.Change) error {
	if f.hold != nil {
		select {
		case <-f.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken != nil {
		return f.broken
	}
	for _, c := range changes {
		f.apply(f.files, c)
		f.puts = append(f.puts, c.Unit)
	}
	f.wake()
	return nil
}

// drop writes a file as somebody with scp does.
func (f *fakeRouter) drop(unit, name, text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.apply(f.files, api.Change{Unit: unit, Files: map[string][]byte{name: []byte(text)}})
	f.wake()
}

func (f *fakeRouter) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// text returns a file of a unit, "" where there is none.
func (f *fakeRouter) text(unit, name string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return string(f.files[unit][name])
}

func (f *fakeRouter) Units(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.files)), nil
}

func (f *fakeRouter) Read(ctx context.Context, unit string, names ...string) (map[string][]byte, error) {
	for f.isWriting(unit) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	content, ok := f.files[unit]
	if !ok {
		return nil, fmt.Errorf("%s: %w", unit, api.ErrUnknown)
	}
	read := map[string][]byte{}
	for name, data := range content {
		if len(names) == 0 || slices.Contains(names, name) {
			read[name] = slices.Clone(data)
		}
	}
	return read, nil
}

func (f *fakeRouter) isWriting(unit string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.writing == unit
}

func (f *fakeRouter) Settle(_ context.Context, units []string) ([]api.Unit, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	states := judge(f.files, nil)
	result := make([]api.Unit, len(units))
	for i, unit := range units {
		result[i] = states[unit]
		result[i].Unit = unit
	}
	return result, nil
}

func (f *fakeRouter) Follow(ctx context.Context, unit string, from api.State) (api.Unit, error) {
	for {
		f.mu.Lock()
		u, changed := judge(f.files, nil)[unit], f.changed
		f.mu.Unlock()
		if u.State != from {
			u.Unit = unit
			return u, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return u, ctx.Err()
		}
	}
}

func (f *fakeRouter) VM(ctx context.Context, name string) (api.VM, error) {
	for _, vm := range f.VMs(ctx) {
		if vm.Name == name {
			return vm, nil
		}
	}
	return api.VM{}, fmt.Errorf("VM %q: %w", name, api.ErrUnknown)
}

func (f *fakeRouter) Network(ctx context.Context, name string) (api.Network, error) {
	for _, n := range f.Networks(ctx) {
		if n.Name == name {
			return n, nil
		}
	}
	return api.Network{}, fmt.Errorf("network %q: %w", name, api.ErrUnknown)
}

func (f *fakeRouter) Status(context.Context) api.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := api.Status{Version: "1.2.3", Started: time.Date(2026, 11, 24, 5, 0, 0, 0, time.UTC), Networks: map[api.State]int{}, VMs: map[api.State]int{}}
	for unit, u := range judge(f.files, nil) {
		if strings.HasPrefix(unit, "vms/") {
			s.VMs[u.State]++
		} else {
			s.Networks[u.State]++
		}
		if u.State != api.Applied {
			s.Units = append(s.Units, u)
		}
	}
	return s
}

func (f *fakeRouter) Networks(context.Context) []api.Network {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []api.Network
	for unit, u := range judge(f.files, nil) {
		if name, ok := strings.CutPrefix(unit, "networks/"); ok {
			var n fakeNetwork
			_ = yaml.Unmarshal(f.files[unit][name], &n)
			prefix, _ := netip.ParsePrefix(n.Gateway)
			list = append(list, api.Network{Unit: u, Name: strings.TrimSuffix(name, ".yaml"), Device: n.Interface, Subnet: prefix.Masked().String(), Gateway: prefix.Addr().String()})
		}
	}
	return list
}

func (f *fakeRouter) VMs(context.Context) []api.VM {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []api.VM
	for unit, u := range judge(f.files, nil) {
		if name, ok := strings.CutPrefix(unit, "vms/"); ok {
			var doc fakeVM
			_ = yaml.Unmarshal(f.files[unit]["vm.yaml"], &doc)
			vm := api.VM{Unit: u, Name: name, Hostname: doc.Hostname}
			for _, n := range doc.NICs {
				vm.NICs = append(vm.NICs, api.NIC{Network: n.Network, MAC: n.MAC, IPv4: n.IPv4, Default: n.Default == nil || *n.Default, Served: u.State == api.Applied})
			}
			list = append(list, vm)
		}
	}
	return list
}

func (f *fakeRouter) Explain(_ context.Context, subject string) (api.Explanation, error) {
	return api.Explanation{}, fmt.Errorf("%q: %w", subject, api.ErrUnknown)
}

func (f *fakeRouter) Wait(context.Context, []string) (api.WaitResult, error) {
	return api.WaitResult{State: api.Applied}, nil
}
