package netcfg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Options are what Open needs to know.
type Options struct {
	// Log hears of what is added and removed, and of what does not work. Nil discards.
	Log *slog.Logger
	// RecordFile keeps which addresses are ours on kernels that cannot (before Linux 5.18); on others it
	// is not touched. A file below /run suits: it is to outlive the process, not the machine. Empty, or
	// if it cannot be read: on such kernels what an earlier run added counts as foreign.
	RecordFile string

	unmarked bool // take the kernel for one that cannot mark what it holds
}

// A Kernel is the network namespace that it was opened in. All methods may be called from any goroutine.
type Kernel struct {
	log     *slog.Logger
	conn    *conn
	events  *nl.NetlinkSocket
	current atomic.Pointer[state]

	refreshing sync.Mutex // held from reading the kernel until the snapshot is published
	applying   sync.Mutex // held by Apply; taken before refreshing
	owned      *ledger    // nil where the kernel marks addresses

	pins      bool // the kernel marks neighbor entries
	neighbors neighbors
}

// state is a snapshot and the channel that closes when the next one is published.
type state struct {
	snapshot *Snapshot
	stale    chan struct{}
}

// Open reads the state of the network namespace of the calling thread. Current works at once; it moves
// while Run runs. The caller closes the Kernel.
func Open(opts Options) (*Kernel, error) {
	k := &Kernel{log: opts.Log}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	k.neighbors.init()
	k.pins = kernelHas(5, 0) && !opts.unmarked // NDA_PROTOCOL
	if opts.unmarked || !kernelHas(5, 18) {    // IFA_PROTO
		k.owned = openLedger(opts.RecordFile, k.log)
	}
	var err error
	if k.conn, err = dial(); err != nil {
		return nil, err
	}
	// First listen, then read: whatever changes in between is announced.
	k.events, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR)
	if err != nil {
		k.conn.close()
		return nil, fmt.Errorf("listen to netlink: %w", err)
	}
	// A full buffer costs a complete reading and nothing else.
	_ = k.events.SetReceiveBufferSize(1<<20, false)
	k.current.Store(&state{snapshot: &Snapshot{}, stale: make(chan struct{})})
	if err := k.refresh(); err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

// kernelHas tells whether this is Linux major.minor or newer.
func kernelHas(major, minor int) bool {
	var name unix.Utsname
	var x, y int
	if err := unix.Uname(&name); err != nil {
		return false
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &x, &y); err != nil {
		return false
	}
	return x > major || x == major && y >= minor
}

// Close frees the sockets; it does not change the network. It must not be called while Run runs.
func (k *Kernel) Close() {
	k.events.Close()
	k.conn.close()
}

// Current returns the newest snapshot, and a channel that closes when there is a newer one. A change
// that a snapshot does not show, of statistics or of IPv6, makes no newer one.
func (k *Kernel) Current() (s *Snapshot, stale <-chan struct{}) {
	now := k.current.Load()
	return now.snapshot, now.stale
}

// Owned returns the addresses that this agent has added and that are there, now.
func (k *Kernel) Owned() []Address {
	s, _ := k.Current()
	var owned []Address
	for _, l := range s.Links() {
		for _, a := range l.Addrs {
			if a.Own {
				owned = append(owned, Address{Device: l.Name, Prefix: a.Prefix})
			}
		}
	}
	return owned
}

// refresh reads the kernel's state and publishes it unless it is the one that is out already.
func (k *Kernel) refresh() error {
	k.refreshing.Lock()
	defer k.refreshing.Unlock()
	var s *Snapshot
	var err error
	if k.owned == nil {
		s, err = k.conn.readLinks(nil)
	} else {
		s, err = k.conn.readLinks(k.owned.has)
	}
	if err != nil {
		return err
	}
	if k.owned != nil {
		k.owned.keep(s)
	}
	last := k.current.Load()
	if s.equal(last.snapshot) {
		return nil
	}
	k.current.Store(&state{snapshot: s, stale: make(chan struct{})})
	close(last.stale)
	return nil
}

// A burst of events ends when there was none for quiet, and is cut after burst, so that an endless one
// does not hide the state.
const (
	quiet = 2 * time.Millisecond
	burst = 10 * time.Millisecond
)

// Run follows the kernel and keeps neighbor entries until ctx ends, then returns nil. It returns an
// error if the kernel cannot be followed any more. It is called once.
func (k *Kernel) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, k.events.Close)
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { k.keepNeighbors(ctx) })
	defer cancel()

	for {
		suspects, err := k.nextBurst()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("listen to netlink: %w", err)
		}
		for {
			err := k.refresh()
			if err == nil {
				break
			}
			k.log.Error("the state of the network could not be read, trying again", "error", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Second):
			}
		}
		k.neighbors.suspect(suspects)
	}
}

// suspects are links, by index, whose neighbor entries the kernel may have dropped.
type suspects struct {
	links map[int]bool
	all   bool
}

// nextBurst waits for events and returns when a burst of them is over. What the events say is not
// applied one by one: the kernel is read once more instead, which gives the addresses in the kernel's
// order and makes lost events harmless.
func (k *Kernel) nextBurst() (suspects, error) {
	found := suspects{links: map[int]bool{}}
	var ends time.Time
	for {
		wait := time.Duration(0) // without limit
		if !ends.IsZero() {
			if wait = min(quiet, time.Until(ends)); wait <= 0 {
				return found, nil
			}
		}
		timeout := unix.NsecToTimeval(wait.Nanoseconds())
		if err := k.events.SetReceiveTimeout(&timeout); err != nil {
			return found, err
		}
		messages, _, err := k.events.Receive()
		switch {
		case err == nil:
			for _, m := range messages {
				if index, ok := k.suspicious(m); ok {
					found.links[index] = true
				}
			}
		case errors.Is(err, unix.EAGAIN) && wait > 0:
			return found, nil
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOBUFS): // events were lost
			k.log.Debug("netlink events were lost, reading all")
			found.all = true
		default:
			return found, err
		}
		if ends.IsZero() {
			ends = time.Now().Add(burst)
		}
	}
}

// suspicious tells whether a message announces something by which the kernel drops the neighbor entries
// of a link, permanent ones too: the link goes or is set down, its hardware address changes, its last
// address is removed. Coming up counts too: on a link that is down entries may be refused.
func (k *Kernel) suspicious(m syscall.NetlinkMessage) (index int, ok bool) {
	switch {
	case m.Header.Type == unix.RTM_DELADDR && len(m.Data) >= unix.SizeofIfAddrmsg:
		return int(nl.DeserializeIfAddrmsg(m.Data).Index), true
	case m.Header.Type == unix.RTM_NEWLINK && len(m.Data) >= unix.SizeofIfInfomsg:
		head := nl.DeserializeIfInfomsg(m.Data)
		index := int(head.Index)
		now, _ := k.Current()
		link, known := now.ByIndex(index)
		if head.Flags&unix.IFF_UP == 0 || !known || !link.Up {
			return index, true
		}
		mac := attribute(m.Data[unix.SizeofIfInfomsg:], unix.IFLA_ADDRESS)
		return index, !bytes.Equal(mac, link.MAC)
	case m.Header.Type == unix.RTM_DELLINK && len(m.Data) >= unix.SizeofIfInfomsg:
		return int(nl.DeserializeIfInfomsg(m.Data).Index), true
	}
	return 0, false
}

// Apply makes the kernel hold the addresses of plan and none of ours beside them. It adds before it
// removes, goes on past what does not work and returns all that did not, joined. Calling it again with
// the same plan, while nothing else has changed the addresses, sends nothing to the kernel. After it
// Current shows what it did.
//
// Apply acts once. To keep the addresses where a device appears later, or another program removes one,
// call it again when Current's snapshot is stale.
func (k *Kernel) Apply(ctx context.Context, plan Plan) error {
	k.applying.Lock()
	defer k.applying.Unlock()
	var errs []error
	for _, a := range plan.Addresses {
		if err := a.check(); err != nil {
			errs = append(errs, err)
		}
	}
	s, _ := k.Current()
	add, remove := Diff(s, plan)
	if len(add) == 0 && len(remove) == 0 {
		return errors.Join(errs...)
	}
	if k.owned != nil {
		if err := k.owned.announce(s, add); err != nil {
			// What cannot be recorded is not added: nobody would ever take it down.
			errs = append(errs, err)
			add = nil
		}
	}
	for _, a := range add {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		if err := k.add(s, a); err != nil {
			errs = append(errs, fmt.Errorf("add address %s: %w", a, err))
		}
	}
	for _, a := range remove {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		if err := k.remove(s, a); err != nil {
			errs = append(errs, fmt.Errorf("remove address %s: %w", a, err))
		}
	}
	if err := k.refresh(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// add adds an address. One that is there by now is somebody else's; a device that is not there any
// more will be announced when it is back.
func (k *Kernel) add(s *Snapshot, a Address) error {
	link, _ := s.ByName(a.Device)
	err := k.conn.addAddress(link.Index, a.Prefix)
	if err != nil && k.owned != nil {
		k.owned.drop(link.Index, a.Prefix)
	}
	switch {
	case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENODEV):
		return nil
	case err != nil:
		return err
	}
	k.log.Info("address added", "device", a.Device, "address", a.Prefix)
	return nil
}

// remove removes an address of ours, and nothing else: where it is the first of its subnet on the link,
// the kernel would remove the others of the subnet with it unless told not to.
func (k *Kernel) remove(s *Snapshot, a Address) (err error) {
	link, _ := s.ByName(a.Device)
	promoted, err := k.conn.promotes(link.Index)
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	if !promoted {
		if err := k.conn.promote(link.Index, true); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("keep the other addresses: %w", err)
		}
		defer func() {
			if undo := k.conn.promote(link.Index, false); undo != nil && !errors.Is(undo, unix.ENODEV) {
				err = errors.Join(err, fmt.Errorf("reset promote_secondaries: %w", undo))
			}
		}()
	}
	err = k.conn.removeAddress(link.Index, a.Prefix)
	if k.owned != nil && (err == nil || errors.Is(err, unix.EADDRNOTAVAIL)) {
		k.owned.drop(link.Index, a.Prefix)
	}
	switch {
	case errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.ENODEV):
		return nil
	case err != nil:
		return err
	}
	k.log.Info("address removed", "device", a.Device, "address", a.Prefix)
	return nil
}
