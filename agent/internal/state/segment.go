package state

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
)

// segment is one file of the log. Its file stays open, and readable even
// after it has been unlinked, until the last holder releases it.
type segment struct {
	number uint64
	salt   salt
	name   string
	file   *os.File
	// readOnly: it could not be opened for writing, so nothing is appended, whatever is possible later.
	readOnly bool
	refs     atomic.Int64
	size     atomic.Int64 // end of the last record known to be whole

	// Guarded by Store.mu.
	live       int64 // bytes of values' records that are in force
	tombstones int64 // bytes of deletions, needed while older segments exist
	damaged    bool  // is to be rewritten and kept aside
	sealed     bool  // is not written any more
}

func segmentName(number uint64, s salt) string {
	return fmt.Sprintf("%016d-%s.seg", number, hex.EncodeToString(s[:]))
}

// parseSegmentName is the inverse of segmentName.
func parseSegmentName(name string) (number uint64, s salt, ok bool) {
	base, ok := strings.CutSuffix(name, ".seg")
	if !ok {
		return 0, s, false
	}
	digits, salted, ok := strings.Cut(base, "-")
	if !ok || len(digits) != 16 || len(salted) != 2*len(s) {
		return 0, s, false
	}
	number, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || number == 0 {
		return 0, s, false
	}
	if _, err := hex.Decode(s[:], []byte(salted)); err != nil {
		return 0, s, false
	}
	return number, s, true
}

func (g *segment) end() int64 { return g.size.Load() }

func (g *segment) acquire() { g.refs.Add(1) }

func (g *segment) release() {
	if g.refs.Add(-1) == 0 {
		g.file.Close()
	}
}

// record is one record that a scan found, its head proved by its checksum.
type record struct {
	header
	key      string
	off      int64 // of the record
	valueOff int64
	bad      bool // the value is known to be damaged
}

// scan calls visit with each sound record of a segment's first size bytes in
// order, and damage with each stretch between them that is none. A value is
// checked if that costs no reading. Unreadable blocks count as damage.
func scan(file io.ReaderAt, size int64, s salt, visit func(record), damage func(off, length int64)) {
	win := newWindow(file, size)
	for off := int64(fileHeaderSize); off < size; {
		rec, ok := recordAt(win, off, s)
		if !ok {
			next := resync(win, off+1, s)
			damage(off, next-off)
			off = next
			continue
		}
		if value, ok := win.peek(rec.valueOff, int(rec.valueLen)); ok {
			rec.bad = checksum(value) != rec.valueCRC
		}
		visit(rec)
		off += rec.size()
	}
}

// recordAt returns the record at off if one is there, whole as to its length.
func recordAt(win *window, off int64, s salt) (record, bool) {
	head := win.bytes(off, recordHeaderSize)
	if len(head) < recordHeaderSize {
		return record{}, false
	}
	h, ok := parseHeader(head)
	if !ok || off+h.size() > win.size {
		return record{}, false
	}
	n := recordHeaderSize + int(h.keyLen)
	head = win.bytes(off, n)
	if len(head) < n || !soundHead(head, s) {
		return record{}, false
	}
	return record{
		header:   h,
		key:      string(head[recordHeaderSize:]),
		off:      off,
		valueOff: off + int64(n),
	}, true
}

// resync returns the offset of the first sound record at or after off, or the
// size of the file.
func resync(win *window, off int64, s salt) int64 {
	magic := binary.LittleEndian.AppendUint32(nil, recordMagic)
	const chunk = 64 << 10
	for off < win.size {
		b := win.bytes(off, int(min(chunk, win.size-off)))
		i := bytes.Index(b, magic)
		if i < 0 {
			if off+int64(len(b)) >= win.size {
				break
			}
			off += int64(len(b) - len(magic) + 1)
			continue
		}
		off += int64(i)
		if _, ok := recordAt(win, off, s); ok {
			return off
		}
		off++
	}
	return win.size
}

// window reads a file forwards through one buffer: large pieces where records
// follow each other, small ones after a value has been passed over.
type window struct {
	file io.ReaderAt
	size int64
	buf  []byte
	off  int64 // of buf
}

const (
	windowSize = 64 << 10
	jumpSize   = 4 << 10
)

func newWindow(file io.ReaderAt, size int64) *window { return &window{file: file, size: size} }

// peek returns n bytes at off if they are in the buffer.
func (w *window) peek(off int64, n int) ([]byte, bool) {
	if off < w.off || off+int64(n) > w.off+int64(len(w.buf)) {
		return nil, false
	}
	return w.buf[off-w.off:][:n], true
}

// bytes returns n bytes at off, fewer at the end of the file. They are valid
// until the next call.
func (w *window) bytes(off int64, n int) []byte {
	n = int(min(int64(n), w.size-off))
	if n <= 0 {
		return nil
	}
	if b, ok := w.peek(off, n); ok {
		return b
	}
	fill := windowSize
	if off > w.off+int64(len(w.buf)) {
		fill = jumpSize
	}
	fill = int(min(int64(max(fill, n)), w.size-off))
	if cap(w.buf) < fill {
		w.buf = make([]byte, max(fill, windowSize))
	}
	w.buf, w.off = w.buf[:fill], off
	readBlocks(w.file, w.buf, off)
	return w.buf[:n]
}

// readBlocks fills b from off. What the disk does not give is zero, which no
// checksum takes for a record or a value.
func readBlocks(file io.ReaderAt, b []byte, off int64) {
	n, err := file.ReadAt(b, off)
	if n == len(b) {
		return
	}
	clear(b[n:])
	if err == io.EOF {
		return
	}
	const block = 4 << 10
	for n < len(b) {
		at := off + int64(n)
		step := int(min(block-at%block, int64(len(b)-n)))
		if got, err := file.ReadAt(b[n:n+step], at); err != nil {
			clear(b[n+got : n+step])
		}
		n += step
	}
}
