package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"
)

const (
	moveBytes = 1 << 20               // rewritten by one commit
	movePause = 20 * time.Millisecond // between them: 50 MB/s at most
)

// mostlyDead tells whether rewriting the segment frees more than it writes.
// The caller holds Store.mu.
func (g *segment) mostlyDead(oldest bool) bool {
	needed := g.live
	if !oldest {
		needed += g.tombstones
	}
	return g.sealed && (needed == 0 || needed*2 < g.end()-fileHeaderSize)
}

func (s *Store) wakeCompactor() {
	select {
	case s.compact <- struct{}{}:
	default:
	}
}

// compactor rewrites segments one after the other until ctx ends. After a
// failure it waits to be woken again.
func (s *Store) compactor(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.compact:
		}
		for ctx.Err() == nil {
			seg := s.candidate()
			if seg == nil {
				break
			}
			if err := s.rewrite(ctx, seg); err != nil {
				if ctx.Err() == nil {
					s.log.Warn("state: compaction put off", "segment", seg.name, "err", err)
				}
				break
			}
		}
	}
}

// tombstoneSlack is how many bytes of deletions may lie about in any case.
const tombstoneSlack = 64 << 10

// candidate returns the segment to rewrite next, nil if there is none: a
// damaged one, a mostly dead one, or the oldest when more deletions than
// values have piled up, since only in the oldest they can be forgotten.
func (s *Store) candidate() *segment {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var live, tombstones int64
	for i, seg := range s.segments {
		if seg.sealed && (seg.damaged || seg.mostlyDead(i == 0)) {
			return seg
		}
		live += seg.live
		tombstones += seg.tombstones
	}
	if len(s.segments) > 0 && s.segments[0].sealed && tombstones > live+tombstoneSlack {
		return s.segments[0]
	}
	return nil
}

// rewrite moves what is live in seg to the end of the log and then removes the
// file, or keeps it aside if it is damaged. A crash at any point leaves
// records twice, which does no harm: the later one counts.
func (s *Store) rewrite(ctx context.Context, seg *segment) error {
	s.mu.RLock()
	oldest := s.segments[0] == seg
	s.mu.RUnlock()

	m := mover{ctx: ctx, store: s, seg: seg}
	scan(seg.file, seg.end(), seg.salt, func(rec record) {
		if !rec.deletes() {
			m.put(rec.key, rec.valueOff)
		} else if !oldest {
			m.delete(rec.key)
		}
	}, func(int64, int64) {})
	m.rest()
	m.flush()
	if m.err != nil {
		return m.err
	}
	return s.retire(seg)
}

// mover commits what is still needed of a segment anew, piece by piece. After
// its first error it does nothing more.
type mover struct {
	ctx   context.Context
	store *Store
	seg   *segment
	batch Batch
	err   error
}

// put moves the record of key if the value at off is the one in force.
func (m *mover) put(key string, off int64) {
	s := m.store
	s.mu.RLock()
	loc, ok := s.index[key]
	s.mu.RUnlock()
	if m.err != nil || !ok || loc.seg != m.seg || loc.off != off {
		return
	}
	value, err := loc.read()
	switch {
	case errors.Is(err, ErrDamaged):
		s.lose(m.seg, key, loc)
	case err != nil:
		m.err = err
	default:
		m.add(op{key: key, value: value, from: &loc})
	}
}

// delete moves the deletion of key if it is still deleted: an older segment
// may hold a value.
func (m *mover) delete(key string) {
	s := m.store
	s.mu.RLock()
	_, ok := s.index[key]
	s.mu.RUnlock()
	if m.err == nil && !ok {
		m.add(op{key: key, delete: true, from: &location{}})
	}
}

// rest moves live records whose head has been damaged since they were read:
// the index still knows where their values are.
func (m *mover) rest() {
	m.flush()
	s := m.store
	s.mu.RLock()
	offsets := make(map[string]int64)
	if m.seg.live > 0 {
		for key, loc := range s.index {
			if loc.seg == m.seg {
				offsets[key] = loc.off
			}
		}
	}
	s.mu.RUnlock()
	for key, off := range offsets {
		m.put(key, off)
	}
}

func (m *mover) add(o op) {
	m.batch.add(o)
	if m.batch.bytes >= moveBytes {
		m.flush()
	}
}

func (m *mover) flush() {
	if m.err != nil || m.batch.Len() == 0 {
		return
	}
	m.err = m.store.Commit(&m.batch)
	m.batch = Batch{}
	select {
	case <-m.ctx.Done():
		m.err = m.ctx.Err()
	case <-time.After(movePause):
	}
}

// lose takes a key whose value is damaged out of the index. That its file is
// kept aside is all that can be done for it.
func (s *Store) lose(seg *segment, key string, loc location) {
	s.log.Error("state: value lost", "key", key, "segment", seg.name)
	s.mu.Lock()
	defer s.mu.Unlock()
	seg.damaged = true
	if s.index[key] == loc {
		delete(s.index, key)
		seg.live -= loc.recordSize(key)
	}
}

// retire takes a segment without live records out of the store.
func (s *Store) retire(seg *segment) error {
	s.mu.Lock()
	if seg.live > 0 {
		s.mu.Unlock()
		return fmt.Errorf("%d live bytes cannot be found again", seg.live)
	}
	damaged := seg.damaged
	s.mu.Unlock()

	if damaged {
		path, err := s.keepAside(seg.name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		s.log.Warn("state: damaged segment kept aside", "path", path)
	} else if err := s.files.remove(filepath.Join(s.dir, seg.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Before anything that relies on it: a deletion in the next segment is
	// forgotten because the records that it deletes are gone for good.
	if err := s.files.syncDir(s.dir); err != nil {
		return err
	}
	s.mu.Lock()
	for i, other := range s.segments {
		if other == seg {
			s.segments = append(s.segments[:i:i], s.segments[i+1:]...)
			break
		}
	}
	s.mu.Unlock()
	seg.release()
	return nil
}
