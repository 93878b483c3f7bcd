package etcd

import (
	clientv3 "go.etcd.io/etcd/client/v3"

	"go.etcd.io/etcd/api/v3/mvccpb"
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

// pair takes a key out of the library's hands.
func pair(kv *mvccpb.KeyValue) KV {
	return KV{Key: string(kv.Key), Value: kv.Value, Created: kv.CreateRevision, Changed: kv.ModRevision}
}

// ops returns the transaction as the library has it.
func (t *Txn) ops() (unchanged []clientv3.Cmp, then, otherwise []clientv3.Op) {
	for _, c := range t.Unchanged {
		unchanged = append(unchanged, clientv3.Compare(clientv3.ModRevision(c.Key), "=", c.Changed))
	}
	for _, p := range t.Puts {
		then = append(then, clientv3.OpPut(p.Key, string(p.Value)))
	}
	for _, key := range t.Deletes {
		then = append(then, clientv3.OpDelete(key))
	}
	for _, key := range t.Read {
		otherwise = append(otherwise, clientv3.OpGet(key))
	}
	return unchanged, then, otherwise
}
