package etcd

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// KV is a key with its value. Revisions count the changes of the whole store.
type KV struct {
	Key     string
	Value   []byte
	Created int64 // revision that made the key
	Changed int64 // revision of its last change
}

// Event is a change of one key.
type Event struct {
	KV      // of a deletion: Key and Changed alone
	Deleted bool
}

// Txn is a transaction: if every comparison holds, all changes are made at once, else none is.
type Txn struct {
	Unchanged []Compare
	Puts      []Put
	Deletes   []string
	// Read are keys that are read where a comparison failed.
	Read []string
}

// Compare holds while the last change of Key is that of revision Changed; 0 is a key that is not there.
type Compare struct {
	Key     string
	Changed int64
}

// Put sets a key to a value.
type Put struct {
	Key   string
	Value []byte
}

// MaxOps is how many comparisons, or changes, a transaction may have with a server that is set up as
// etcd comes.
const MaxOps = 128

var errMessage = errors.New("malformed message")

// field appends a field with a length in front.
func field(b []byte, number protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), value)
}

func varint(b []byte, number protowire.Number, value int64) []byte {
	if value == 0 {
		return b // the default
	}
	return protowire.AppendVarint(protowire.AppendTag(b, number, protowire.VarintType), uint64(value))
}

// fields calls fn with each field of a message: its number, a number that it holds or its bytes.
// Fields of other types are passed over.
func fields(b []byte, fn func(number protowire.Number, value int64, bytes []byte) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%w: %w", errMessage, protowire.ParseError(n))
		}
		b = b[n:]
		var err error
		switch kind {
		case protowire.VarintType:
			var value uint64
			if value, n = protowire.ConsumeVarint(b); n >= 0 {
				err = fn(number, int64(value), nil)
			}
		case protowire.BytesType:
			var bytes []byte
			if bytes, n = protowire.ConsumeBytes(b); n >= 0 {
				err = fn(number, 0, bytes)
			}
		default:
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return fmt.Errorf("%w: %w", errMessage, protowire.ParseError(n))
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// rangeRequest asks for the keys from key up to, and without, end at a revision, 0 is the newest. An
// empty end asks for key alone.
func rangeRequest(key, end string, limit, revision int64) []byte {
	b := field(nil, 1, []byte(key))
	if end != "" {
		b = field(b, 2, []byte(end))
	}
	return varint(varint(b, 3, limit), 4, revision)
}

// rangeResponse is a part of a range: the rest follows where More is set.
type rangeResponse struct {
	revision int64
	kvs      []KV
	more     bool
}

func (r *rangeResponse) parse(b []byte) error {
	return fields(b, func(number protowire.Number, value int64, bytes []byte) (err error) {
		switch number {
		case 1:
			r.revision, err = headerRevision(bytes)
		case 2:
			var kv KV
			kv, err = parseKV(bytes)
			r.kvs = append(r.kvs, kv)
		case 3:
			r.more = value != 0
		}
		return err
	})
}

func headerRevision(b []byte) (revision int64, err error) {
	err = fields(b, func(number protowire.Number, value int64, _ []byte) error {
		if number == 3 {
			revision = value
		}
		return nil
	})
	return revision, err
}

func parseKV(b []byte) (kv KV, err error) {
	err = fields(b, func(number protowire.Number, value int64, bytes []byte) error {
		switch number {
		case 1:
			kv.Key = string(bytes)
		case 2:
			kv.Created = value
		case 3:
			kv.Changed = value
		case 5:
			kv.Value = append([]byte(nil), bytes...)
		}
		return nil
	})
	return kv, err
}

// Numbers of the fields of a RequestOp, and of the targets of a Compare.
const (
	opRange, opPut, opDelete = 1, 2, 3
	compareModRevision       = 2
)

func (t *Txn) request() []byte {
	var b []byte
	for _, c := range t.Unchanged {
		m := varint(nil, 2, compareModRevision)
		m = field(m, 3, []byte(c.Key))
		m = protowire.AppendVarint(protowire.AppendTag(m, 6, protowire.VarintType), uint64(c.Changed)) // one of several: written where it is 0, too
		b = field(b, 1, m)
	}
	for _, p := range t.Puts {
		b = field(b, 2, field(nil, opPut, field(field(nil, 1, []byte(p.Key)), 2, p.Value)))
	}
	for _, key := range t.Deletes {
		b = field(b, 2, field(nil, opDelete, field(nil, 1, []byte(key))))
	}
	for _, key := range t.Read {
		b = field(b, 3, field(nil, opRange, rangeRequest(key, "", 0, 0)))
	}
	return b
}

// txnResponse is what became of a transaction.
type txnResponse struct {
	revision  int64
	succeeded bool
	read      []KV
}

func (r *txnResponse) parse(b []byte) error {
	return fields(b, func(number protowire.Number, value int64, bytes []byte) (err error) {
		switch number {
		case 1:
			r.revision, err = headerRevision(bytes)
		case 2:
			r.succeeded = value != 0
		case 3:
			err = fields(bytes, func(number protowire.Number, _ int64, bytes []byte) error {
				if number != opRange {
					return nil
				}
				var part rangeResponse
				err := part.parse(bytes)
				r.read = append(r.read, part.kvs...)
				return err
			})
		}
		return err
	})
}

func watchRequest(key, end string, revision int64) []byte {
	b := field(field(nil, 1, []byte(key)), 2, []byte(end))
	return field(nil, 1, varint(b, 3, revision))
}

// watchResponse is what a watch has to tell.
type watchResponse struct {
	canceled bool
	compact  int64 // not 0: revisions before it are not kept any more
	reason   string
	events   []Event
}

func (r *watchResponse) parse(b []byte) error {
	return fields(b, func(number protowire.Number, value int64, bytes []byte) (err error) {
		switch number {
		case 4:
			r.canceled = value != 0
		case 5:
			r.compact = value
		case 6:
			r.reason = string(bytes)
		case 11:
			var event Event
			err = fields(bytes, func(number protowire.Number, value int64, bytes []byte) (err error) {
				switch number {
				case 1:
					event.Deleted = value == 1
				case 2:
					event.KV, err = parseKV(bytes)
				}
				return err
			})
			r.events = append(r.events, event)
		}
		return err
	})
}

// prefixEnd is the first key after all that begin with prefix.
func prefixEnd(prefix string) string {
	end := []byte(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return string(end[:i+1])
		}
	}
	return "\x00" // to the end of all keys
}
