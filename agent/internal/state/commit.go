package state

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// Batch is a set of changes that take effect together, in the order in which
// they were added. The zero value is empty. A batch belongs to one goroutine
// and may be committed once.
type Batch struct {
	ops   []op
	bytes int64
}

type op struct {
	key    string
	value  []byte
	delete bool
	crc    uint32
	// from is set by compaction: the record that this one takes the place of,
	// if it is still the newest of its key. For a deletion it names no place,
	// and the condition is that there is still no such key.
	from *location
}

// Put sets key to value, which must not be changed before Commit returns.
func (b *Batch) Put(key string, value []byte) {
	b.add(op{key: key, value: value})
}

// Delete removes key; that there is none is no error.
func (b *Batch) Delete(key string) {
	b.add(op{key: key, delete: true})
}

// Len returns the number of changes.
func (b *Batch) Len() int { return len(b.ops) }

func (b *Batch) add(o op) {
	b.ops = append(b.ops, o)
	b.bytes += recordHeaderSize + int64(len(o.key)) + int64(len(o.value))
}

// request is a batch on its way to disk.
type request struct {
	batch *Batch
	err   error
	wake  chan bool // true: lead the next group; false: done, see err
}

// committer makes whoever finds nobody writing the leader of a group: it
// writes and syncs what has been queued and hands the lead to the first of
// those that came meanwhile. A lone commit so waits for nobody, and any number
// of concurrent ones wait for two syncs at most.
type committer struct {
	mu      sync.Mutex
	queue   []*request
	leading bool
	closed  bool
	idle    chan struct{} // set by wait: closed when the last leader is done
}

// groupBytes bounds what one group writes beyond its first batch.
const groupBytes = 8 << 20

// Commit makes the batch durable and then visible, all of it or, on error,
// nothing. After an error of the disk the store goes on working: the next
// commit tries anew. An empty batch succeeds at once.
func (s *Store) Commit(b *Batch) error {
	if b.Len() == 0 {
		return nil
	}
	for i := range b.ops {
		o := &b.ops[i]
		if len(o.key) == 0 || len(o.key) > MaxKey {
			return fmt.Errorf("state: key of %d bytes, allowed are 1 to %d", len(o.key), MaxKey)
		}
		if len(o.value) > MaxValue {
			return fmt.Errorf("state %q: value of %d bytes, allowed are %d", o.key, len(o.value), MaxValue)
		}
		o.crc = checksum(o.value)
	}

	r := &request{batch: b, wake: make(chan bool, 1)}
	lead, err := s.commits.enqueue(r)
	if err != nil {
		return err
	}
	if lead || <-r.wake {
		s.lead()
	}
	if r.err != nil {
		return fmt.Errorf("state: commit: %w", r.err)
	}
	return nil
}

func (c *committer) enqueue(r *request) (lead bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false, ErrClosed
	}
	c.queue = append(c.queue, r)
	lead = !c.leading
	c.leading = true
	return lead, nil
}

// lead writes one group, whose first request is the caller's.
func (s *Store) lead() {
	group := s.commits.take()
	err := s.write(group)
	for _, r := range group {
		r.err = err
	}
	s.commits.handOver()
	for _, r := range group[1:] {
		r.wake <- false
	}
}

func (c *committer) take() []*request {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, bytes := 1, c.queue[0].batch.bytes
	for n < len(c.queue) && bytes+c.queue[n].batch.bytes <= groupBytes {
		bytes += c.queue[n].batch.bytes
		n++
	}
	group := c.queue[:n:n]
	c.queue = append([]*request(nil), c.queue[n:]...)
	return group
}

func (c *committer) handOver() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) > 0 {
		c.queue[0].wake <- true
		return
	}
	c.leading = false
	if c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
}

// close lets no further request in, and tells whether it was the first call.
func (c *committer) close() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := !c.closed
	c.closed = true
	return first
}

// wait returns when there is no leader any more.
func (c *committer) wait() {
	c.mu.Lock()
	if !c.leading {
		c.mu.Unlock()
		return
	}
	idle := make(chan struct{})
	c.idle = idle
	c.mu.Unlock()
	<-idle
}

// placed is an op with the place that it was written to.
type placed struct {
	op
	loc location
}

// write puts a group of batches on disk and then into the index. Only the
// leader calls it.
func (s *Store) write(group []*request) error {
	seg, err := s.writable()
	if err != nil {
		return err
	}
	batches := make([][]op, 0, len(group)+1)
	if len(s.suspect) > 0 {
		// What a failed sync left on disk may come back after a crash. What
		// the keys really hold is written behind it, where it counts.
		batches = append(batches, s.restating())
	}
	for _, r := range group {
		batches = append(batches, r.batch.ops)
	}

	w := &writer{store: s, seg: seg, off: seg.end()}
	for _, ops := range batches {
		if err = w.batch(ops); err != nil {
			break
		}
	}
	if err == nil {
		err = w.flush()
	}
	if err != nil {
		// The bytes beyond the end count for nothing, and are written over.
		if s.files.truncate(seg.file, seg.end()) != nil {
			s.abandon(seg, w.done)
		}
		return err
	}
	if len(w.done) == 0 {
		return nil // moves that came to nothing
	}
	if err := s.files.sync(seg.file); err != nil {
		s.abandon(seg, w.done)
		return err
	}
	s.durable = s.seq
	clear(s.suspect)
	seg.size.Store(w.off)
	s.publish(w.done)
	return nil
}

// abandon gives up a segment whose end is in doubt, with the ops that may or
// may not be there. What is before its end stays in use.
func (s *Store) abandon(seg *segment, doubtful []placed) {
	for _, p := range doubtful {
		s.suspect[p.key] = struct{}{}
	}
	s.active = nil
	s.mu.Lock()
	seg.sealed = true
	s.mu.Unlock()
}

// restating returns ops that say what the suspect keys hold.
func (s *Store) restating() []op {
	ops := make([]op, 0, len(s.suspect))
	for _, key := range s.sortedSuspects() {
		value, err := s.Get(key)
		switch {
		case err == nil:
			ops = append(ops, op{key: key, value: value, crc: checksum(value)})
		case errors.Is(err, ErrNotFound), errors.Is(err, ErrDamaged):
			ops = append(ops, op{key: key, delete: true, crc: checksum(nil)})
		default:
			// Unreadable for now: what may be on disk is no worse.
		}
	}
	return ops
}

// writable returns the segment to append to, a new one if need be.
func (s *Store) writable() (*segment, error) {
	if s.active != nil && s.active.end() < s.segmentSize {
		return s.active, nil
	}
	if s.active != nil {
		s.mu.Lock()
		s.active.sealed = true
		s.mu.Unlock()
		s.active = nil
		s.wakeCompactor()
	}
	var salted salt
	rand.Read(salted[:])
	name := segmentName(s.number+1, salted)
	path := filepath.Join(s.dir, name)
	file, err := s.files.create(path)
	if err != nil {
		return nil, beginning(err)
	}
	// The header becomes durable with the first group.
	err = s.files.writeAt(file, fileHeader(salted), 0)
	if err == nil {
		err = s.files.syncDir(s.dir)
	}
	if err != nil {
		file.Close()
		s.files.remove(path)
		return nil, beginning(err)
	}
	s.number++
	seg := &segment{number: s.number, salt: salted, name: name, file: file}
	seg.size.Store(fileHeaderSize)
	seg.acquire()
	s.mu.Lock()
	s.segments = append(s.segments, seg)
	s.mu.Unlock()
	s.active = seg
	return seg, nil
}

// beginning is an error of making a segment. It leaves out the segment's name, which is another one at
// each try: whoever logs what is news goes by the text.
func beginning(err error) error {
	var at *os.PathError
	if errors.As(err, &at) {
		return fmt.Errorf("begin a segment: %s: %w", at.Op, at.Err)
	}
	return fmt.Errorf("begin a segment: %w", err)
}

// writer appends batches to a segment through a buffer.
type writer struct {
	store *Store
	seg   *segment
	buf   []byte
	off   int64 // of the buffer's first byte
	done  []placed
}

const writeBuffer = 1 << 20

// end is where the next byte goes.
func (w *writer) end() int64 { return w.off + int64(len(w.buf)) }

func (w *writer) batch(ops []op) error {
	ops = w.due(ops)
	if len(ops) == 0 {
		return nil
	}
	w.store.seq++
	for i, o := range ops {
		h := header{
			seq:      w.store.seq,
			durable:  w.store.durable,
			index:    uint32(i),
			keyLen:   uint16(len(o.key)),
			valueLen: uint32(len(o.value)),
			valueCRC: o.crc,
		}
		if o.delete {
			h.flags |= flagDelete
		}
		if i == len(ops)-1 {
			h.flags |= flagLast
		}
		w.buf = appendRecordHead(w.buf, w.seg.salt, h, o.key)
		w.done = append(w.done, placed{op: o, loc: location{
			seg: w.seg, seq: h.seq, off: w.end(), size: h.valueLen, crc: h.valueCRC,
		}})
		if err := w.value(o.value); err != nil {
			return err
		}
	}
	return nil
}

// value appends b, a large one past the buffer.
func (w *writer) value(b []byte) error {
	if len(w.buf)+len(b) > writeBuffer {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if len(b) <= writeBuffer {
		w.buf = append(w.buf, b...)
		return nil
	}
	if err := w.store.files.writeAt(w.seg.file, b, w.off); err != nil {
		return err
	}
	w.off += int64(len(b))
	return nil
}

func (w *writer) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	if err := w.store.files.writeAt(w.seg.file, w.buf, w.off); err != nil {
		return err
	}
	w.off = w.end()
	w.buf = w.buf[:0]
	return nil
}

// due leaves out the moves whose condition does not hold any more.
func (w *writer) due(ops []op) []op {
	if len(ops) == 0 || ops[0].from == nil {
		return ops // only compaction moves, and it does nothing else
	}
	written := make(map[string]struct{}, len(w.done))
	for _, p := range w.done {
		written[p.key] = struct{}{}
	}
	w.store.mu.RLock()
	defer w.store.mu.RUnlock()
	var due []op
	for _, o := range ops {
		if _, ok := written[o.key]; ok {
			continue
		}
		loc, ok := w.store.index[o.key]
		if o.delete && !ok || !o.delete && ok && loc == *o.from {
			due = append(due, o)
		}
	}
	return due
}

// publish makes what has become durable visible.
func (s *Store) publish(done []placed) {
	s.mu.Lock()
	wake := false
	for _, p := range done {
		wake = s.apply(p.key, p.delete, p.loc) || wake
	}
	s.mu.Unlock()
	if wake {
		s.wakeCompactor()
	}
}

// apply puts one record into the index and tells whether a segment has become
// worth rewriting by it. The caller holds s.mu.
func (s *Store) apply(key string, deletes bool, loc location) (wake bool) {
	if old, ok := s.index[key]; ok {
		old.seg.live -= old.recordSize(key)
		wake = old.seg.mostlyDead(false)
	}
	if deletes {
		delete(s.index, key)
		loc.seg.tombstones += loc.recordSize(key)
		return wake
	}
	s.index[key] = loc
	loc.seg.live += loc.recordSize(key)
	return wake
}

func (loc location) recordSize(key string) int64 {
	return recordHeaderSize + int64(len(key)) + int64(loc.size)
}
