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
	packet   Packet // with a message of its own; of a shared store only
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
	records := make([]Lease, len(entries))
	for i := range entries {
		records[i] = *entries[i].lease
	}
	err := errNoStore
	switch {
	case s.shared != nil:
		err = s.shared.Commit(ctx, records)
	case s.leases != nil:
		err = s.leases.Commit(ctx, records)
	}
	now := s.now()
	var held *HeldError
	if errors.As(err, &held) {
		err = nil // the store works
	}
	s.storeFault(err, now)
	var target *port
	flush := func() {
		if target != nil {
			s.flush(target, target.device.Load(), out)
		}
	}
	send := func(w *waitingACK, reply *Reply) {
		if w.port != target {
			flush()
			target = w.port
			out.index = target.device.Load().Index
		}
		out.next()
		if out.add(reply) {
			flush()
		}
	}
	for i := range entries {
		e := &entries[i]
		outcome := err
		if held.holds(e.lease) {
			outcome = held
		}
		if e.then != nil {
			e.then(outcome)
		}
		switch {
		case e.claim == nil:
		case outcome == nil && e.claim.stored(now):
			s.settle(e.reply, nil)
			send(e.reply, &e.reply.reply)
		case outcome == nil:
			s.settle(e.reply, ErrMoved)
		case err == nil:
			e.claim.unstored(now)
			s.settle(e.reply, ErrHeld)
		default:
			e.claim.unstored(now)
			if reply, ok := s.within(e.reply, now); ok {
				send(e.reply, &reply)
			}
		}
	}
	flush()
	if held != nil {
		for _, l := range held.Held {
			s.table.load(l, now)
		}
	}
	for i := range entries {
		if waiting := entries[i].reply; waiting != nil {
			waiting.port.sender.release()
		}
	}
}

// holds reports whether the record was not stored. A nil error is about none.
func (e *HeldError) holds(l *Lease) bool {
	if e == nil {
		return false
	}
	for i := range e.Held {
		if e.Held[i].IP == l.IP && e.Held[i].Network == l.Network {
			return true
		}
	}
	return false
}

// within returns the answer to a request whose lease could not be committed: with a shared store, what is
// left of the time that the store keeps the address for the client. It is false where that is nothing.
func (s *Server) within(w *waitingACK, now time.Time) (Reply, bool) {
	if s.shared == nil {
		s.settle(w, ErrStore)
		return Reply{}, false
	}
	var r request
	if err := r.parse(w.packet.Message); err != nil {
		s.settle(w, err)
		return Reply{}, false
	}
	w.packet.Time = now
	device := w.port.device.Load()
	reply, err := s.table.answer(new(answerer), &r, device, &w.packet, nil)
	if reply.claim != nil { // the store has come back this very moment; the client asks again
		reply.claim.unstored(now)
		err = ErrStore
	}
	w.exchange = newExchange(device, &r, &w.packet, &reply, err)
	s.note(w.mac, &w.exchange)
	return reply, err == nil
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
