package etcd

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPrefixEndIsTheFirstKeyAfterAllOfThePrefix(t *testing.T) {
	for prefix, want := range map[string]string{"a/": "a0", "a\xff": "b", "\xff\xff": "\x00", "": "\x00"} {
		if got := prefixEnd(prefix); got != want {
			t.Errorf("prefixEnd(%q) = %q, want %q", prefix, got, want)
		}
	}
}

// seed is an answer to a range of one key as etcd 3.4 gives it.
var seed = []byte("\x0a\x17\x08\xa1\xde\xdc\x8d\xeb\x8e\xcd\xfd\xcd\x01\x10\xd1\x97\xe3\xd1\xdb\xa3\xcd\xd8\xa6\x01\x18\x05\x20\x02" +
	"\x12\x0d\x0a\x03a/1\x10\x02\x18\x04\x20\x03\x2a\x01x\x20\x01")

func TestRangeResponseIsReadAsTheServerWritesIt(t *testing.T) {
	var r rangeResponse
	// The header ends before its last field here, which parse has to notice.
	if err := r.parse(seed); err == nil {
		t.Errorf("a header that is cut short is taken: %+v", r)
	}
	whole := field(nil, 1, varint(varint(nil, 3, 5), 4, 2))
	whole = append(whole, "\x12\x0e\x0a\x03a/1\x10\x02\x18\x04\x20\x03\x2a\x01x\x20\x01"...)
	r = rangeResponse{}
	if err := r.parse(whole); err != nil {
		t.Fatal(err)
	}
	want := rangeResponse{revision: 5, kvs: []KV{{Key: "a/1", Value: []byte("x"), Created: 2, Changed: 4}}}
	if diff := cmp.Diff(want, r, cmp.AllowUnexported(rangeResponse{})); diff != "" {
		t.Errorf("parse (-want +got):\n%s", diff)
	}
}

// FuzzMessages reads what a server may send; nothing of it makes the reader fail other than by an error.
func FuzzMessages(f *testing.F) {
	f.Add(seed)
	f.Add(frame(seed))
	txn := Txn{Unchanged: []Compare{{Key: "a", Changed: 3}}, Puts: []Put{{Key: "a", Value: []byte("x")}}, Deletes: []string{"b"}, Read: []string{"a"}}
	f.Add(txn.request())
	f.Add(watchRequest("a/", "a0", 7))
	f.Fuzz(func(t *testing.T, data []byte) {
		message, err := readFrame(bytes.NewReader(data))
		if err != nil {
			message = data
		}
		for _, parse := range []func([]byte) error{
			new(rangeResponse).parse, new(txnResponse).parse, new(watchResponse).parse,
		} {
			_ = parse(message)
		}
	})
}
