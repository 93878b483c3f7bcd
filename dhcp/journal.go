package dhcp

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// journalLimit bounds the replies that wait for the disk.
	journalLimit = 16384
	// storePause is how long no new leases are offered after a failed commit.
	storePause = 2 * time.Second
)

// journal is the queue of records on their way to stable storage. Its writers never wait.
type journal struct {
	mu      sync.Mutex
	entries []entry
	notify  chan struct{} // holds a token while there are entries
}

// entry is a record, and what is to happen once it is stored.
type entry struct {
	lease *Lease
	claim *claim      // nil where nothing depends on it
	then  func(error) // nil, or called with the outcome of the commit
	reply *waitingACK // nil, or what is sent if the lease still holds
}

// waitingACK is a reply that waits for its lease to be stored.
type waitingACK struct {
	port     *port // whose sender is held
	reply    Reply
	exchange exchange
	mac      MAC
}

func newJournal() *journal { return &journal{notify: make(chan struct{}, 1)} }

// add queues a record that nothing waits for.
func (j *journal) add(l *Lease) { j.push(entry{lease: l}) }

// push queues an entry. It reports false, and drops the entry, where too many replies wait.
func (j *journal) push(e entry) bool {
	j.mu.Lock()
	if len(j.entries) >= journalLimit && e.reply != nil {
		j.mu.Unlock()
		return false
	}
	j.entries = append(j.entries, e)
	j.mu.Unlock()
	select {
	case j.notify <- struct{}{}:
	default:
	}
	return true
}

// all takes everything that is queued.
func (j *journal) all() []entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	entries := j.entries
	j.entries = nil
	return entries
}

var errNoStore = errors.New("the server was given no store for leases")

// commit stores what is queued, as one batch, and sends the replies that waited for it. While it waits
// for the disk the next batch forms; an entry that comes alone is stored at once.
func (s *Server) commit(ctx context.Context, out *outbox) {
	entries := s.table.queue.all()
	if len(entries) == 0 {
		return
	}
	err := errNoStore
	if s.leases != nil {
		records := make([]Lease, len(entries))
		for i := range entries {
			records[i] = *entries[i].lease
		}
		err = s.leases.Commit(ctx, records)
	}
	now := s.now()
	s.storeFault(err, now)
	var target *port
	send := func() {
		if target != nil {
			s.flush(target, target.device.Load(), out)
		}
	}
	for i := range entries {
		e := &entries[i]
		if e.then != nil {
			e.then(err)
		}
		if e.claim == nil {
			continue
		}
		if err != nil {
			e.claim.unstored(now)
			s.settle(e.reply, ErrStore)
			continue
		}
		if !e.claim.stored(now) {
			s.settle(e.reply, ErrMoved)
			continue
		}
		s.settle(e.reply, nil)
		if e.reply.port != target {
			send()
			target = e.reply.port
			out.index = target.device.Load().Index
		}
		out.next()
		if out.add(&e.reply.reply) {
			send()
		}
	}
	send()
	for i := range entries {
		if waiting := entries[i].reply; waiting != nil {
			waiting.port.sender.release()
		}
	}
}

// storeFault notes the outcome of a commit. After a failure no new leases are offered for a moment;
// then a client is let through to try the store again.
func (s *Server) storeFault(err error, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil && s.storeErr != nil:
		s.log.Info("leases are stored again")
		s.table.storeDown.Store(0)
	case err != nil:
		if s.storeErr == nil || s.storeErr.Error() != err.Error() {
			s.log.Error("pool leases cannot be stored: no new ones, known hosts are served", "reason", err)
			s.storeSince = now
		}
		s.table.storeDown.Store(int64(now.Add(storePause).Sub(s.table.epoch)))
	}
	s.storeErr = err
}

// runJournal commits until ctx ends, then what is left.
func (s *Server) runJournal(ctx context.Context) {
	out := new(outbox)
	for {
		select {
		case <-ctx.Done():
			s.commit(context.WithoutCancel(ctx), out)
			return
		case <-s.table.queue.notify:
			s.commit(context.WithoutCancel(ctx), out)
		}
	}
}
