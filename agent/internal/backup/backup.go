// Package backup is the format of the file that vragent backup writes and vragent restore reads: lines
// of text between a first one that names the format and a last one with the checksum of all before it.
//
//	vragent-backup 1
//	{"created":"2026-03-01T10:00:00Z","release":"1.4.0"}
//	{"kind":"user","key":"user/4f1c...","value":"eyJpZCI6..."}
//	{"kind":"lease","key":"lease/guest-1/10.1.1.200","value":"AQEK..."}
//	sha256 9f86d081884c7d65...
//
// A file that was cut short lacks its last line, so that a backup can be written and checked while it
// streams, in no memory to speak of. What the records mean is the business of those who keep them.
package backup

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
	"time"
)

var (
	// ErrForeign tells that a file is no backup at all.
	ErrForeign = errors.New("is no backup of vragent")
	// ErrTooNew tells that a later release wrote the file.
	ErrTooNew = errors.New("was written by a newer release")
	// ErrDamaged tells that the file is not as it was written.
	ErrDamaged = errors.New("is damaged")
)

const (
	magic   = "vragent-backup"
	version = 1
	sumMark = "sha256 "

	// maxLine bounds what a reader holds in memory. The longest record is a user's, some kilobytes.
	maxLine = 4 << 20
)

// Kind tells what a record is of.
type Kind string

// The kinds of records.
const (
	User  Kind = "user"  // a record of the store of users: of a user, or of an LDAP server or link
	Lease Kind = "lease" // a pool lease
	Taken Kind = "taken" // a password that a guest has taken
	// Fault is something that could not be read when the backup was made. Its key says where, its
	// value what.
	Fault Kind = "fault"
)

// Header says where a backup comes from.
type Header struct {
	Created time.Time `json:"created"`
	Release string    `json:"release"` // of vragent
}

// Record is a key and its value, as the agent's stores have them.
type Record struct {
	Kind  Kind   `json:"kind"`
	Key   string `json:"key"`
	Value []byte `json:"value"`
}

// Writer writes a backup. It keeps the first error and returns it from then on.
type Writer struct {
	out *bufio.Writer
	sum hash.Hash
	err error
}

// NewWriter begins a backup.
func NewWriter(out io.Writer, h Header) *Writer {
	w := &Writer{out: bufio.NewWriter(out), sum: sha256.New()}
	w.line([]byte(magic + " " + strconv.Itoa(version)))
	w.object(h)
	return w
}

// Add writes a record.
func (w *Writer) Add(r Record) error {
	w.object(r)
	return w.err
}

// Close writes the checksum, without which the backup is worth nothing.
func (w *Writer) Close() error {
	w.line([]byte(sumMark + hex.EncodeToString(w.sum.Sum(nil))))
	if w.err == nil {
		w.err = w.out.Flush()
	}
	return w.err
}

func (w *Writer) object(v any) {
	line, err := json.Marshal(v)
	if err == nil && len(line) >= maxLine {
		err = fmt.Errorf("record of %d bytes; %d are possible", len(line), maxLine)
	}
	if err != nil {
		if w.err == nil {
			w.err = err
		}
		return
	}
	w.line(line)
}

func (w *Writer) line(line []byte) {
	if w.err != nil {
		return
	}
	line = append(line, '\n')
	w.sum.Write(line)
	_, w.err = w.out.Write(line)
}

// Read reads a backup to its end and calls do with each record. An error of do ends it and is returned
// as it is; that the file is good is known only when Read has returned nil. Errors wrap ErrForeign,
// ErrTooNew or ErrDamaged, or are those of in.
func Read(in io.Reader, do func(Record) error) (Header, error) {
	var h Header
	lines := &reader{in: bufio.NewReader(in), sum: sha256.New()}
	first, err := lines.next()
	name, number, _ := strings.Cut(string(first), " ")
	written, bad := strconv.Atoi(number)
	switch {
	case err != nil && !errors.Is(err, ErrDamaged):
		return h, err
	case err != nil || name != magic || bad != nil || written < 1:
		return h, ErrForeign
	case written > version:
		return h, fmt.Errorf("%w, in format %d: this one reads format %d", ErrTooNew, written, version)
	}
	line, err := lines.next()
	if err != nil {
		return h, err
	}
	if err := lines.object(line, &h); err != nil {
		return h, err
	}
	for {
		sum := hex.EncodeToString(lines.sum.Sum(nil))
		line, err := lines.next()
		if err != nil {
			return h, err
		}
		if said, last := strings.CutPrefix(string(line), sumMark); last {
			if said != sum {
				return h, fmt.Errorf("%w: its checksum is wrong", ErrDamaged)
			}
			return h, lines.end()
		}
		var r Record
		if err := lines.object(line, &r); err != nil {
			return h, err
		}
		if err := do(r); err != nil {
			return h, err
		}
	}
}

// reader reads lines and sums them up.
type reader struct {
	in     *bufio.Reader
	sum    hash.Hash
	number int
	line   []byte
}

// next returns the next line without its end. It is valid until the next call.
func (r *reader) next() ([]byte, error) {
	r.number++
	r.line = r.line[:0]
	for {
		piece, err := r.in.ReadSlice('\n')
		r.line = append(r.line, piece...)
		switch {
		case err == nil && len(r.line) <= maxLine:
			r.sum.Write(r.line)
			return r.line[:len(r.line)-1], nil
		case len(r.line) > maxLine:
			return nil, fmt.Errorf("%w: line %d is longer than %d bytes", ErrDamaged, r.number, maxLine)
		case err == io.EOF:
			return nil, fmt.Errorf("%w: it is cut short in line %d", ErrDamaged, r.number)
		case err != bufio.ErrBufferFull:
			return nil, err
		}
	}
}

func (r *reader) object(line []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("%w: line %d: %w", ErrDamaged, r.number, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("%w: line %d holds more than one object", ErrDamaged, r.number)
	}
	return nil
}

// end tells whether nothing follows the checksum.
func (r *reader) end() error {
	switch _, err := r.in.ReadByte(); err {
	case io.EOF:
		return nil
	case nil:
		return fmt.Errorf("%w: something follows its end in line %d", ErrDamaged, r.number+1)
	default:
		return err
	}
}
