package dhcp

import (
	"hash/maphash"
	"math/bits"
)

// trie is an immutable map: with and without return a changed copy that shares all but one path with
// the old one. A change so costs the same whatever the number of entries, and a reader that has loaded
// a trie never waits. The zero value is empty.
type trie[K comparable, V any] struct {
	root *trieNode[K, V]
	size int
}

// trieNode has a child for each set bit of used, in the order of the bits.
type trieNode[K comparable, V any] struct {
	used     uint32
	children []trieChild[K, V]
}

// trieChild is either an inner node or an entry.
type trieChild[K comparable, V any] struct {
	node  *trieNode[K, V]
	entry *trieEntry[K, V]
}

// trieEntry holds one key; keys with equal hashes are chained.
type trieEntry[K comparable, V any] struct {
	hash  uint64
	key   K
	value V
	next  *trieEntry[K, V]
}

const (
	trieBits  = 5 // of the hash, for each level
	trieMask  = 1<<trieBits - 1
	trieDepth = 64 / trieBits * trieBits // below it, hashes are equal enough to be chained
)

var trieSeed = maphash.MakeSeed()

func (t trie[K, V]) get(key K) (V, bool) {
	hash := maphash.Comparable(trieSeed, key)
	node := t.root
	for shift := 0; node != nil; shift += trieBits {
		child := node.child(hash >> shift & trieMask)
		for entry := child.entry; entry != nil; entry = entry.next {
			if entry.key == key {
				return entry.value, true
			}
		}
		node = child.node
	}
	var none V
	return none, false
}

func (t trie[K, V]) with(key K, value V) trie[K, V] {
	added := 1
	if _, ok := t.get(key); ok {
		added = 0
	}
	entry := &trieEntry[K, V]{hash: maphash.Comparable(trieSeed, key), key: key, value: value}
	return trie[K, V]{root: t.root.with(entry, 0), size: t.size + added}
}

func (t trie[K, V]) without(key K) trie[K, V] {
	if _, ok := t.get(key); !ok {
		return t
	}
	return trie[K, V]{root: t.root.without(maphash.Comparable(trieSeed, key), key, 0), size: t.size - 1}
}

// all calls yield for every entry, in no order, until it returns false.
func (t trie[K, V]) all(yield func(K, V) bool) { t.root.all(yield) }

func (n *trieNode[K, V]) all(yield func(K, V) bool) bool {
	if n == nil {
		return true
	}
	for _, child := range n.children {
		for entry := child.entry; entry != nil; entry = entry.next {
			if !yield(entry.key, entry.value) {
				return false
			}
		}
		if !child.node.all(yield) {
			return false
		}
	}
	return true
}

// position returns where the child for index is or would be.
func (n *trieNode[K, V]) position(index uint64) (at int, present bool) {
	return bits.OnesCount32(n.used & (1<<index - 1)), n.used>>index&1 != 0
}

func (n *trieNode[K, V]) child(index uint64) trieChild[K, V] {
	if at, present := n.position(index); present {
		return n.children[at]
	}
	return trieChild[K, V]{}
}

// with returns n with entry in it; entry itself becomes part of the result.
func (n *trieNode[K, V]) with(entry *trieEntry[K, V], shift int) *trieNode[K, V] {
	if n == nil {
		n = &trieNode[K, V]{}
	}
	index := entry.hash >> shift & trieMask
	at, present := n.position(index)
	if !present {
		children := make([]trieChild[K, V], len(n.children)+1)
		copy(children, n.children[:at])
		children[at] = trieChild[K, V]{entry: entry}
		copy(children[at+1:], n.children[at:])
		return &trieNode[K, V]{used: n.used | 1<<index, children: children}
	}
	children := append([]trieChild[K, V](nil), n.children...)
	switch old := children[at]; {
	case old.node != nil:
		children[at].node = old.node.with(entry, shift+trieBits)
	case old.entry.hash == entry.hash || shift+trieBits >= trieDepth:
		entry.next = old.entry.remove(entry.key)
		children[at].entry = entry
	default:
		var node *trieNode[K, V]
		node = node.with(old.entry, shift+trieBits)
		children[at] = trieChild[K, V]{node: node.with(entry, shift+trieBits)}
	}
	return &trieNode[K, V]{used: n.used, children: children}
}

// without returns n less the entry for key, which must be in it; nil when nothing is left.
func (n *trieNode[K, V]) without(hash uint64, key K, shift int) *trieNode[K, V] {
	index := hash >> shift & trieMask
	at, _ := n.position(index)
	child := n.children[at]
	if child.node != nil {
		child.node = child.node.without(hash, key, shift+trieBits)
	} else {
		child.entry = child.entry.remove(key)
	}
	if child.node == nil && child.entry == nil {
		if len(n.children) == 1 {
			return nil
		}
		children := make([]trieChild[K, V], 0, len(n.children)-1)
		children = append(append(children, n.children[:at]...), n.children[at+1:]...)
		return &trieNode[K, V]{used: n.used &^ (1 << index), children: children}
	}
	children := append([]trieChild[K, V](nil), n.children...)
	children[at] = child
	return &trieNode[K, V]{used: n.used, children: children}
}

// remove returns the chain less key, in copies where it has to change.
func (e *trieEntry[K, V]) remove(key K) *trieEntry[K, V] {
	switch {
	case e == nil:
		return nil
	case e.key == key:
		return e.next
	}
	rest := e.next.remove(key)
	if rest == e.next {
		return e
	}
	kept := *e
	kept.next = rest
	return &kept
}
