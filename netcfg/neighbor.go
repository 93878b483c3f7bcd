package netcfg

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// A Neighbor says which hardware address an IPv4 address on a device's network belongs to.
type Neighbor struct {
	Device string
	IP     netip.Addr
	MAC    net.HardwareAddr
}

// A NeighborFault is a neighbor that could not be made permanent, and why.
type NeighborFault struct {
	Neighbor
	Err error
}

// ErrForeignNeighbor is the fault of a neighbor for which somebody else has made a permanent entry.
var ErrForeignNeighbor = errors.New("another program holds a permanent neighbor entry for this address")

// ErrUnmarkedNeighbor is the fault of all neighbors on kernels before Linux 5.0: an entry there could not
// be told from others' after a restart.
var ErrUnmarkedNeighbor = errors.New("this kernel cannot mark neighbor entries (Linux 5.0 can)")

// neighbors are the entries that are wanted, and what of them the kernel is still to be told. The
// kernel's own table is the only record of what is there: each entry is looked at before it is changed.
type neighbors struct {
	mu      sync.Mutex
	wanted  map[string]map[netip.Addr]string // device -> address -> hardware address, as bytes
	changed map[neighborKey]bool             // set or removed since the last round
	suspects
	seen   map[string]int // the index under which a wanted device was last served
	faults map[neighborKey]error
	prune  bool // entries of ours that nobody wants are removed

	asked   uint64 // how often something was asked for
	waiting []waiter
	wake    chan struct{} // holds one token
}

// A waiter wants to know when all is done that was asked for up to its number.
type waiter struct {
	asked uint64
	done  chan struct{}
}

type neighborKey struct {
	device string
	ip     netip.Addr
}

func (n *neighbors) init() {
	n.wanted = map[string]map[netip.Addr]string{}
	n.changed = map[neighborKey]bool{}
	n.links = map[int]bool{}
	n.seen = map[string]int{}
	n.faults = map[neighborKey]error{}
	n.wake = make(chan struct{}, 1)
}

// SetNeighbor wants a permanent entry for n.IP on n.Device that leads to n.MAC, in place of an earlier
// one of ours or one that the kernel has learned. It returns at once; Run tells the kernel, at a cost
// that does not depend on how many neighbors there are. The entry is made when the device appears, made
// again whenever the kernel has dropped it with its link, and left to whoever made a permanent one
// before: then NeighborFaults tells.
func (k *Kernel) SetNeighbor(n Neighbor) {
	k.neighbors.change(neighborKey{n.Device, n.IP}, string(n.MAC))
}

// RemoveNeighbor takes back what SetNeighbor wanted for ip on device. It returns at once. The entry is
// removed if it is ours.
func (k *Kernel) RemoveNeighbor(device string, ip netip.Addr) {
	k.neighbors.change(neighborKey{device, ip}, "")
}

// PruneNeighbors removes the entries of an earlier run that nobody has set anew. The agent calls it once
// it has set all that it knows; until then they stay, so that a restart leaves no guest unpinned.
func (k *Kernel) PruneNeighbors() {
	n := &k.neighbors
	n.mu.Lock()
	defer n.mu.Unlock()
	n.prune = true
	n.all = true
	n.stir()
}

// SettleNeighbors waits until the kernel has been told all that was wanted before the call, faults
// included. It returns early with the reason of ctx. It needs Run.
func (k *Kernel) SettleNeighbors(ctx context.Context) error {
	n := &k.neighbors
	n.mu.Lock()
	w := waiter{n.asked, make(chan struct{})}
	n.waiting = append(n.waiting, w)
	n.nudge()
	n.mu.Unlock()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// NeighborFaults returns the wanted neighbors that could not be made permanent, by device and address.
// Those whose device is missing are not among them.
func (k *Kernel) NeighborFaults() []NeighborFault {
	n := &k.neighbors
	n.mu.Lock()
	defer n.mu.Unlock()
	list := make([]NeighborFault, 0, len(n.faults))
	for key, err := range n.faults {
		mac := net.HardwareAddr(n.wanted[key.device][key.ip])
		list = append(list, NeighborFault{Neighbor{key.device, key.ip, mac}, err})
	}
	slices.SortFunc(list, func(a, b NeighborFault) int {
		return cmp.Or(cmp.Compare(a.Device, b.Device), a.IP.Compare(b.IP))
	})
	return list
}

// change wants mac for key, or nothing if mac is empty.
func (n *neighbors) change(key neighborKey, mac string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	device := n.wanted[key.device]
	if device[key.ip] == mac {
		return
	}
	switch {
	case mac == "":
		delete(n.faults, key)
		delete(device, key.ip)
		if len(device) == 0 {
			delete(n.wanted, key.device)
		}
	case device == nil:
		n.wanted[key.device] = map[netip.Addr]string{key.ip: mac}
	default:
		device[key.ip] = mac
	}
	n.changed[key] = true
	n.stir()
}

// suspect asks for a look at these links, and at devices whose index has changed.
func (n *neighbors) suspect(s suspects) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.wanted) == 0 && len(n.seen) == 0 {
		return
	}
	for index := range s.links {
		n.links[index] = true
	}
	n.all = n.all || s.all
	n.stir()
}

// stir asks for a round of work. The caller holds mu.
func (n *neighbors) stir() {
	n.asked++
	n.nudge()
}

func (n *neighbors) nudge() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// work is one round for the kernel.
type work struct {
	asked uint64
	links map[int]bool         // to be read and put right whole
	keys  map[neighborKey]bool // to be put right one by one

	failed  int // so far
	example string
}

// take returns what there is to do for the links of s.
func (n *neighbors) take(s *Snapshot) *work {
	n.mu.Lock()
	defer n.mu.Unlock()
	w := &work{asked: n.asked, links: n.links, keys: n.changed}
	n.links, n.changed = map[int]bool{}, map[neighborKey]bool{}
	// A device under a new index has none of its entries yet. An index that a device had, if it is still
	// there, has another name now and entries that belong to the old one.
	for device, index := range n.seen {
		if link, _ := s.ByName(device); link.Index != index {
			w.links[index] = true
			delete(n.seen, device)
		}
	}
	for device := range n.wanted {
		if link, ok := s.ByName(device); ok && n.seen[device] != link.Index {
			n.seen[device] = link.Index
			w.links[link.Index] = true
		}
	}
	// Many changes on one link are cheaper to compare with the whole list than one by one.
	changes := map[string]int{}
	for key := range w.keys {
		changes[key.device]++
	}
	for device, count := range changes {
		if link, ok := s.ByName(device); ok && count > 64 && count > len(n.wanted[device])/4 {
			w.links[link.Index] = true
		}
	}
	if n.all {
		n.all = false
		for _, link := range s.Links() {
			w.links[link.Index] = true
		}
	}
	return w
}

// done tells those who wait that a round is over.
func (n *neighbors) done(w *work) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.waiting = slices.DeleteFunc(n.waiting, func(waiter waiter) bool {
		if waiter.asked > w.asked {
			return false
		}
		close(waiter.done)
		return true
	})
}

// keepNeighbors tells the kernel what is wanted until ctx ends.
func (k *Kernel) keepNeighbors(ctx context.Context) {
	n := &k.neighbors
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.wake:
		}
		s, _ := k.Current()
		w := n.take(s)
		for index := range w.links {
			if link, ok := s.ByIndex(index); ok && k.pins {
				k.settleLink(ctx, link, w)
			}
		}
		for key := range w.keys {
			if ctx.Err() != nil {
				return
			}
			link, ok := s.ByName(key.device)
			switch {
			case !k.pins:
				n.note(w, key, ErrUnmarkedNeighbor)
			case !ok:
				n.note(w, key, nil)
			case !w.links[link.Index]:
				have, err := k.conn.neighbor(link.Index, key.ip)
				if err == nil {
					err = k.settleNeighbor(link, key, have, true)
				}
				n.note(w, key, err)
			}
		}
		if ctx.Err() != nil {
			return
		}
		if w.failed > 0 {
			// One line a round: 50,000 neighbors mostly fail for one reason.
			k.log.Warn("neighbor entries are not as wanted", "count", w.failed, "for example", w.example)
		}
		n.done(w)
	}
}

// settleLink compares all entries of a link with what is wanted there. Those that have just been removed
// from what is wanted are removed in any case, others of ours only after PruneNeighbors.
func (k *Kernel) settleLink(ctx context.Context, link Link, w *work) {
	n := &k.neighbors
	have, err := k.conn.neighbors(link.Index)
	if err != nil {
		k.log.Error("the neighbors of a device could not be read", "device", link.Name, "error", err)
		n.again(link, w) // with the next event
		return
	}
	n.mu.Lock()
	prune := n.prune
	keys := make(map[neighborKey]bool, len(n.wanted[link.Name]))
	for ip := range n.wanted[link.Name] {
		keys[neighborKey{link.Name, ip}] = true
	}
	n.mu.Unlock()
	for ip, entry := range have {
		if entry.own {
			keys[neighborKey{link.Name, ip}] = true
		}
	}
	for key := range keys {
		if ctx.Err() != nil {
			return
		}
		n.note(w, key, k.settleNeighbor(link, key, have[key.ip], prune || w.keys[key]))
	}
}

// settleNeighbor makes one entry what is wanted. An entry of ours that is not wanted is removed if prune.
func (k *Kernel) settleNeighbor(link Link, key neighborKey, have neighborEntry, prune bool) error {
	var err error
	want := k.neighbors.want(key)
	switch decide(have, want) {
	case setEntry:
		err = k.conn.setNeighbor(link.Index, key.ip, want)
	case removeEntry:
		if prune {
			err = k.conn.removeNeighbor(link.Index, key.ip)
		}
	case foreignEntry:
		err = ErrForeignNeighbor
	}
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENETDOWN) {
		return nil // the device is on its way out, or down; it is looked at again when it is back
	}
	return err
}

// want returns the hardware address that is wanted for key, "" for none.
func (n *neighbors) want(key neighborKey) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.wanted[key.device][key.ip]
}

// again puts back what a round could not do on a link, without waking anybody.
func (n *neighbors) again(link Link, w *work) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links[link.Index] = true
	for key := range w.keys {
		if key.device == link.Name {
			n.changed[key] = true
		}
	}
}

// note notes what became of a neighbor in a round.
func (n *neighbors) note(w *work, key neighborKey, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, wanted := n.wanted[key.device][key.ip]; err == nil || !wanted {
		delete(n.faults, key)
	} else {
		n.faults[key] = err
	}
	if err != nil {
		w.failed++
		w.example = fmt.Sprintf("%s on %s: %v", key.ip, key.device, err)
	}
}

// A neighborEntry is what the kernel knows of a neighbor; the zero value is nothing.
type neighborEntry struct {
	mac       string // bytes of the hardware address
	permanent bool
	own       bool // permanent and made by this agent
}

type neighborAction int

const (
	leaveEntry neighborAction = iota
	setEntry
	removeEntry
	foreignEntry
)

// decide returns what is to be done about an entry so that it leads to want, or is not ours if want is
// empty. What the kernel learned by itself gives way; what another program made permanent does not.
func decide(have neighborEntry, want string) neighborAction {
	switch {
	case want == "" && have.own:
		return removeEntry
	case want == "", have.own && have.mac == want:
		return leaveEntry
	case have.permanent && !have.own:
		return foreignEntry
	}
	return setEntry
}
