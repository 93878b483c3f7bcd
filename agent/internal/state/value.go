package state

import (
	"hash/crc32"
	"io"
	"sync"
)

// Value is an open value. It is an io.ReadSeekCloser and an io.ReaderAt over
// bytes that never change. ReadAt may be called from any goroutine, the rest
// from one.
type Value struct {
	*io.SectionReader
	seg   *segment
	close sync.Once
}

func newValue(loc location) *Value {
	return &Value{
		SectionReader: io.NewSectionReader(loc.seg.file, loc.off, int64(loc.size)),
		seg:           loc.seg,
	}
}

// Close lets go of the value. A second Close does nothing.
func (v *Value) Close() error {
	v.close.Do(v.seg.release)
	return nil
}

// read returns the value at loc, checked.
func (loc location) read() ([]byte, error) {
	b := make([]byte, loc.size)
	if n, err := loc.seg.file.ReadAt(b, loc.off); n < len(b) {
		return nil, unreadable(err)
	}
	if checksum(b) != loc.crc {
		return nil, ErrDamaged
	}
	return b, nil
}

var pieces = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// verify checks the value at loc without holding it in memory.
func (loc location) verify() error {
	piece := pieces.Get().(*[32 << 10]byte)
	defer pieces.Put(piece)
	var crc uint32
	for off, left := loc.off, int64(loc.size); left > 0; {
		b := piece[:min(left, int64(len(piece)))]
		if n, err := loc.seg.file.ReadAt(b, off); n < len(b) {
			return unreadable(err)
		}
		crc = crc32.Update(crc, castagnoli, b)
		off += int64(len(b))
		left -= int64(len(b))
	}
	if crc != loc.crc {
		return ErrDamaged
	}
	return nil
}

// unreadable turns a value that ends early into damage; other errors stay.
func unreadable(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return ErrDamaged
	}
	return err
}
