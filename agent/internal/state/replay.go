package state

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// replay fills the index from the segments in the folder. It changes nothing
// on disk before it knows that it can read every segment's format.
func (s *Store) replay() (Report, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return Report{}, err
	}
	for _, entry := range entries {
		number, salted, ok := parseSegmentName(entry.Name())
		if !ok {
			continue
		}
		seg, err := s.openSegment(entry.Name(), number, salted)
		if err != nil {
			return Report{}, err
		}
		s.segments = append(s.segments, seg)
	}
	slices.SortFunc(s.segments, func(a, b *segment) int { return cmp.Compare(a.number, b.number) })

	var report Report
	for i, seg := range s.segments {
		r := replayer{store: s, seg: seg, newest: i == len(s.segments)-1, report: &report}
		r.run()
		s.number = seg.number
	}
	s.durable = s.seq // what has been read back and checked is on disk
	for key, loc := range s.index {
		if loc.lost {
			report.Lost = append(report.Lost, key)
		}
	}
	slices.Sort(report.Lost)
	if !report.Empty() {
		s.log.Warn("state is damaged", "dir", s.dir, "report", report.String())
	}
	return report, nil
}

func (s *Store) openSegment(name string, number uint64, salted salt) (*segment, error) {
	path := filepath.Join(s.dir, name)
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	readOnly := err != nil
	if readOnly {
		if file, err = os.Open(path); err != nil {
			return nil, err
		}
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, err
	}
	seg := &segment{number: number, salt: salted, name: name, file: file, readOnly: readOnly}
	seg.size.Store(info.Size())
	seg.acquire()

	head := make([]byte, fileHeaderSize)
	n, err := file.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		n = 0 // replay will say so
	}
	inside, ok, err := readable(name, head[:n])
	if err != nil {
		seg.release()
		return nil, err
	}
	if ok {
		seg.salt = inside
	} else {
		seg.damaged = true // the salt of the name will do
	}
	return seg, nil
}

// readable parses a segment's file header. It is not ok where there is no sound one; the error tells of a
// format that this release cannot read.
func readable(name string, head []byte) (s salt, ok bool, err error) {
	version, s, ok := parseFileHeader(head)
	if ok && version != formatVersion {
		err = fmt.Errorf("%s: format %d, this release reads %d: %w", name, version, formatVersion, ErrTooNew)
	}
	return s, ok, err
}

// Check tells, without a change on disk, whether this release can read the store in dir: the error is
// ErrTooNew where a later one wrote it. A folder that is missing can be read.
func Check(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("state %s: %w", dir, err)
	}
	for _, entry := range entries {
		if _, _, ok := parseSegmentName(entry.Name()); !ok {
			continue
		}
		head := make([]byte, fileHeaderSize)
		file, err := os.Open(filepath.Join(dir, entry.Name()))
		if err != nil {
			continue // Open says why
		}
		n, _ := file.ReadAt(head, 0)
		file.Close()
		if _, _, err := readable(entry.Name(), head[:n]); err != nil {
			return fmt.Errorf("state %s: %w", dir, err)
		}
	}
	return nil
}

// replayer reads one segment. A batch counts if it is whole, and if its values
// are right where a crash may have lost them: the sequence number up to which
// all was on disk stands in later records of the same segment. A batch that
// was once on disk and is damaged now counts as far as it can be read.
type replayer struct {
	store   *Store
	seg     *segment
	newest  bool
	report  *Report
	batches []replayBatch // read, not yet judged
	durable uint64
	end     int64 // of the last batch that counts
	damage  []Damage
}

type replayBatch struct {
	seq     uint64
	records []record
	whole   bool
	end     int64
}

func (r *replayer) run() {
	size := r.seg.end()
	if r.seg.damaged {
		r.note(Damage{Length: min(size, fileHeaderSize), What: "no sound file header"})
	}
	r.end = fileHeaderSize
	scan(r.seg.file, size, r.seg.salt, r.visit, func(off, length int64) {
		r.note(Damage{Offset: off, Length: length, What: "no sound record"})
	})
	r.judge()
	for _, b := range r.batches {
		if b.whole && r.sound(b) {
			r.apply(b)
		} else {
			r.note(Damage{Offset: b.records[0].off, Length: b.end - b.records[0].off, What: "batch is not whole"})
		}
	}
	r.finish(size)
}

func (r *replayer) visit(rec record) {
	r.store.seq = max(r.store.seq, rec.seq)
	n := len(r.batches)
	if n == 0 || r.batches[n-1].seq != rec.seq || r.batches[n-1].whole {
		r.durable = max(r.durable, rec.durable)
		r.judge()
		r.batches = append(r.batches, replayBatch{seq: rec.seq})
		n = len(r.batches)
	}
	b := &r.batches[n-1]
	inOrder := int(rec.index) == len(b.records)
	b.records = append(b.records, rec)
	b.end = rec.off + rec.size()
	b.whole = rec.last() && inOrder
}

// judge applies the batches at the front that are known to have been on disk.
func (r *replayer) judge() {
	n := 0
	for n < len(r.batches) && r.batches[n].seq <= r.durable {
		r.apply(r.batches[n])
		n++
	}
	r.batches = r.batches[n:]
}

func (r *replayer) apply(b replayBatch) {
	for _, rec := range b.records {
		r.store.apply(rec.key, rec.deletes(), location{
			seg: r.seg, seq: rec.seq, off: rec.valueOff, size: rec.valueLen, crc: rec.valueCRC, lost: rec.bad,
		})
	}
	r.end = b.end
}

// sound checks the values of a batch that may not have reached the disk.
func (r *replayer) sound(b replayBatch) bool {
	for _, rec := range b.records {
		loc := location{seg: r.seg, off: rec.valueOff, size: rec.valueLen, crc: rec.valueCRC}
		if loc.verify() != nil {
			return false
		}
	}
	return true
}

// finish decides what becomes of the segment: the newest is written on if it
// ends cleanly, or once its torn end has been kept aside and cut off. Damage
// anywhere else has it rewritten.
func (r *replayer) finish(size int64) {
	s, seg := r.store, r.seg
	unborn := seg.damaged && r.newest && r.end == fileHeaderSize
	inside := false
	for i := range r.damage {
		d := &r.damage[i]
		if d.Torn = unborn || r.newest && d.Offset >= r.end; d.Torn {
			d.What = "torn end of the last write"
		} else {
			inside = true
		}
	}
	if unborn && size == 0 {
		r.damage = nil // a crash between making the file and its first byte
	}
	r.report.Damage = append(r.report.Damage, r.damage...)

	switch {
	case inside || unborn:
		seg.damaged, seg.sealed = size > 0, true
	case !r.newest || seg.readOnly:
		seg.sealed = true
	case r.end == size:
		s.active = seg
	default:
		if err := r.cut(r.end, size); err != nil {
			s.log.Warn("state: torn end stays", "segment", seg.name, "err", err)
			seg.sealed = true
			return
		}
		seg.size.Store(r.end)
		s.active = seg
	}
}

func (r *replayer) cut(end, size int64) error {
	s, seg := r.store, r.seg
	tail := make([]byte, min(size-end, MaxValue))
	readBlocks(seg.file, tail, end)
	folder := filepath.Join(s.dir, damagedFolder)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	path := filepath.Join(folder, fmt.Sprintf("%s.at-%d", seg.name, end))
	if err := os.WriteFile(path, tail, 0o600); err != nil {
		return err
	}
	s.thinOut(folder)
	r.report.Kept = append(r.report.Kept, path)
	if err := s.files.truncate(seg.file, end); err != nil {
		return err
	}
	return s.files.sync(seg.file)
}

func (r *replayer) note(d Damage) {
	d.File = r.seg.name
	r.damage = append(r.damage, d)
}
