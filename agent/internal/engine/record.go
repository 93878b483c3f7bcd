package engine

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"vragent/agent/internal/desired"
	"vragent/agent/internal/drop"
	"vragent/agent/internal/state"
)

// Keys of the state store.
//
//	unit/networks/guest-1.yaml     record of the content in force
//	unit/vms/i-2-34-VM
//	data/vms/i-2-34-VM/user-data/HASH    its bytes
//	taken/vms/i-2-34-VM            salted hash of the password that the guest has taken
const (
	unitPrefix = "unit/"
	dataPrefix = "data/"
	// TakenPrefix begins those of passwords that were taken, which a backup has: what is there of the rest
	// comes from the drop directory.
	TakenPrefix = "taken/"
)

// recordFormat changes whenever a release would misread Document. Text then brings the unit back: the
// files as they were accepted are parsed anew.
const recordFormat = 1

// record is what the state directory holds of a unit in force.
type record struct {
	Format      int    `json:"format"`
	Order       uint64 `json:"order"` // of acceptance; clocks step, so time stamps are no order
	Generation  uint64 `json:"generation"`
	Fingerprint string `json:"fingerprint"`
	NetAdmin    bool   `json:"net_admin"` // the power that it was judged with

	Network *desired.Network `json:"network,omitempty"`
	VM      *desired.VM      `json:"vm,omitempty"`
	Notes   []string         `json:"notes,omitempty"`

	Text map[string]string `json:"text"` // the small files as they were accepted
}

// write puts moves on disk in one batch and returns what goes with each new content.
//
// Bytes that the moves replace are not deleted with it: until the tables have the new entries, guests
// are still served the old ones. They go with the next batch, or after a moment of quiet.
func (e *Engine) write(moves []desired.Move, contents map[drop.Unit]drop.Content) (map[drop.Unit]*known, error) {
	var batch state.Batch
	e.sweepInto(&batch)
	old := make(map[string]bool)
	gone := make(map[string][]byte) // records of taken passwords
	writes := make(map[drop.Unit]*known, len(moves))
	for _, mv := range moves {
		path := mv.Unit.Path()
		oldData, newData := blobs(mv.Old), blobs(mv.New)
		if mv.New == nil {
			batch.Delete(unitPrefix + path)
			if value, err := e.Store.Get(TakenPrefix + path); err == nil {
				gone[takenOf(path)] = value
			}
			batch.Delete(TakenPrefix + path)
			writes[mv.Unit] = nil
		} else {
			e.order++
			k := &known{order: e.order, generation: e.order}
			if before := e.known[mv.Unit]; before != nil {
				k.generation = before.generation
			}
			c := contents[mv.Unit]
			k.fingerprint = c.Fingerprint
			for name, b := range newData {
				if was := oldData[name]; was == nil || was.Hash != b.Hash {
					batch.Put(dataKey(path, name, b), c.Files[name].Data)
				}
			}
			if err := e.putRecord(&batch, mv.New, k, c); err != nil {
				return nil, err
			}
			writes[mv.Unit] = k
		}
		for name, b := range oldData {
			if kept := newData[name]; kept == nil || kept.Hash != b.Hash {
				old[dataKey(path, name, b)] = true
			}
		}
	}
	if err := e.Store.Commit(&batch); err != nil {
		return nil, err
	}
	e.unshare(gone)
	e.garbage = old
	return writes, nil
}

// sweepInto deletes what is garbage. Put of the same key later in the batch counts.
func (e *Engine) sweepInto(batch *state.Batch) {
	for key := range e.garbage {
		batch.Delete(key)
	}
}

// collect deletes what is garbage now.
func (e *Engine) collect() {
	var batch state.Batch
	e.sweepInto(&batch)
	if err := e.Store.Commit(&batch); err != nil {
		e.Log.Debug("replaced bytes stay in the state directory", "err", err)
		return
	}
	clear(e.garbage)
}

func (e *Engine) putRecord(batch *state.Batch, content *desired.Content, k *known, c drop.Content) error {
	path := content.Unit.Path()
	value, err := json.Marshal(record{
		Format: recordFormat, Order: k.order, Generation: k.generation, Fingerprint: k.fingerprint, NetAdmin: e.Powers.NetAdmin,
		Network: content.Network, VM: content.VM, Notes: content.Notes, Text: texts(c),
	})
	if err != nil {
		return fmt.Errorf("record of %s: %w", path, err)
	}
	batch.Put(unitPrefix+path, value)
	return nil
}

// refresh notes the fingerprints of units whose files were touched without a change of content, so
// that the next start need not read them again. That it fails costs that reading and no more.
func (e *Engine) refresh(contents map[drop.Unit]drop.Content) {
	var batch state.Batch
	fresh := make(map[drop.Unit]*known)
	e.mu.RLock()
	for u, c := range contents {
		k := e.known[u]
		if v, ok := e.model.View(u); ok && v.Settled && v.Have != nil && k != nil && k.fingerprint != c.Fingerprint {
			now := *k
			now.fingerprint = c.Fingerprint
			if e.putRecord(&batch, v.Have, &now, c) == nil {
				fresh[u] = &now
			}
		}
	}
	e.mu.RUnlock()
	if len(fresh) == 0 {
		return
	}
	if err := e.Store.Commit(&batch); err != nil {
		e.Log.Debug("fingerprints not kept", "err", err)
		return
	}
	e.mu.Lock()
	maps.Copy(e.known, fresh)
	e.mu.Unlock()
}

// blobs returns the contents of a VM that are kept as files of their own, by file name.
func blobs(c *desired.Content) map[string]*desired.Blob {
	if c == nil || c.VM == nil {
		return nil
	}
	m := make(map[string]*desired.Blob, 2)
	if c.VM.UserData != nil {
		m[drop.UserDataFile] = c.VM.UserData
	}
	if c.VM.VendorData != nil {
		m[drop.VendorDataFile] = c.VM.VendorData
	}
	return m
}

func dataKey(path, name string, b *desired.Blob) string {
	return dataPrefix + path + "/" + name + "/" + b.Hash
}

// texts returns the small files of a unit, by name.
func texts(c drop.Content) map[string]string {
	m := make(map[string]string, len(c.Files))
	for name, f := range c.Files {
		if name != drop.UserDataFile && name != drop.VendorDataFile {
			m[name] = string(f.Data)
		}
	}
	return m
}

// Restore puts in force what was so before the last stop, as the state directory holds it. A record that
// cannot be used is reported and left out; the unit's files bring it back.
func (e *Engine) Restore() error {
	type restored struct {
		record
		content *desired.Content
	}
	var list []restored
	err := e.Store.Each(unitPrefix, -1, func(key string, value []byte) error {
		path := strings.TrimPrefix(key, unitPrefix)
		unit, err := drop.ParsePath(path)
		if err != nil {
			e.Log.Warn("record of no unit left out", "key", key, "err", err)
			return nil
		}
		r := restored{}
		if r.record, r.content, err = e.readRecord(unit, value); err != nil {
			e.Log.Warn("record left out; the unit's files are read anew", "unit", path, "err", err)
			return nil
		}
		list = append(list, r)
		return nil
	})
	if errors.Is(err, state.ErrDamaged) {
		e.Log.Error("records are damaged; their units' files are read anew", "err", err)
		e.mu.Lock()
		e.faults["damage"] = fmt.Sprintf("records of units were damaged when the agent started, and their files were read anew: %v", err)
		e.mu.Unlock()
	} else if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	slices.SortFunc(list, func(a, b restored) int { return cmp.Compare(a.Order, b.Order) })
	now := e.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	var moves []desired.Move
	live := make(map[string]bool, len(list))
	for _, r := range list {
		unit := r.content.Unit
		for _, left := range e.model.Restore([]*desired.Content{r.content}, now) {
			e.Log.Warn("record in conflict with an earlier one left out", "unit", left.Unit.Path())
		}
		if v, ok := e.model.View(unit); !ok || v.Have != r.content {
			continue
		}
		e.known[unit] = &known{order: r.Order, generation: r.Generation, fingerprint: r.Fingerprint}
		e.order = max(e.order, r.Order)
		moves = append(moves, desired.Move{Unit: unit, New: r.content})
		for name, b := range blobs(r.content) {
			live[dataKey(unit.Path(), name, b)] = true
		}
	}
	e.publish(moves)
	e.sweep(live)
	return nil
}

// readRecord returns the content that a record holds, from its files where another release wrote it.
func (e *Engine) readRecord(unit drop.Unit, value []byte) (record, *desired.Content, error) {
	var r record
	if err := json.Unmarshal(value, &r); err != nil {
		return r, nil, err
	}
	content := &desired.Content{Unit: unit, Network: r.Network, VM: r.VM, Notes: r.Notes}
	if r.Format != recordFormat {
		c := drop.Content{Unit: unit, Exists: true, Files: make(map[string]drop.File), Notes: r.Notes}
		for name, text := range r.Text {
			c.Files[name] = drop.File{Name: name, Data: []byte(text)}
		}
		parsed, faults := desired.Parse(c, e.powers())
		if parsed == nil {
			return r, nil, fmt.Errorf("format %d: %v", r.Format, faults)
		}
		content = parsed
		// The bytes lie in the store under their hash.
		for key := range e.Store.Keys(dataPrefix + unit.Path() + "/") {
			name, hash, _ := strings.Cut(strings.TrimPrefix(key, dataPrefix+unit.Path()+"/"), "/")
			size, _ := e.Store.Size(key)
			switch b := (&desired.Blob{Size: size, Hash: hash}); name {
			case drop.UserDataFile:
				content.VM.UserData = b
			case drop.VendorDataFile:
				content.VM.VendorData = b
			}
		}
	}
	if (unit.Kind == drop.Network) != (content.Network != nil) || (unit.Kind == drop.VM) != (content.VM != nil) {
		return r, nil, errors.New("holds no content of this kind")
	}
	if r.NetAdmin != e.Powers.NetAdmin {
		// What a file may ask for, and what it means by default, depends on the power: read it anew.
		r.Fingerprint = ""
		if content.Network != nil && !e.Powers.NetAdmin {
			content.Network.Withhold()
		}
	}
	for name, b := range blobs(content) {
		if size, ok := e.Store.Size(dataKey(unit.Path(), name, b)); !ok || size != b.Size {
			return r, nil, fmt.Errorf("%s is not in the store", name)
		}
	}
	return r, content, nil
}

// sweep removes bytes that no record refers to any more: a crash between two releases or a damaged
// record leaves some.
func (e *Engine) sweep(live map[string]bool) {
	var batch state.Batch
	for key := range e.Store.Keys(dataPrefix) {
		if !live[key] {
			batch.Delete(key)
		}
	}
	if err := e.Store.Commit(&batch); err != nil {
		e.Log.Warn("bytes without a record stay in the state directory", "err", err)
	}
}

// blobContent serves bytes of the store. It implements metadata.Content.
type blobContent struct {
	engine *Engine
	unit   drop.Unit
	name   string // of the file
	blob   *desired.Blob
}

func (c *blobContent) Size() int64  { return c.blob.Size }
func (c *blobContent) ETag() string { return c.blob.Hash[:32] }

func (c *blobContent) Open() (io.ReadSeekCloser, error) {
	key := dataKey(c.unit.Path(), c.name, c.blob)
	v, err := c.engine.Store.Open(key)
	if errors.Is(err, state.ErrDamaged) {
		if err := c.engine.heal(c.unit, c.name, c.blob); err != nil {
			return nil, err
		}
		v, err = c.engine.Store.Open(key)
	}
	if errors.Is(err, state.ErrNotFound) {
		return nil, fs.ErrNotExist // replaced meanwhile
	}
	if err != nil {
		return nil, err
	}
	return v, nil
}

// heal puts bytes of the store that are damaged back from the drop directory, if its file is still the
// one that is in force.
func (e *Engine) heal(unit drop.Unit, name string, blob *desired.Blob) error {
	path := unit.Path() + "/" + name
	c, err := e.Dir.Read(unit)
	if err != nil {
		return fmt.Errorf("%s is damaged in the state directory, and cannot be read from the drop directory now: %w", path, err)
	}
	file, ok := c.Files[name]
	if sum := sha256.Sum256(file.Data); !ok || hex.EncodeToString(sum[:]) != blob.Hash {
		return fmt.Errorf("%s is damaged in the state directory, and another one in the drop directory", path)
	}
	var batch state.Batch
	batch.Put(dataKey(unit.Path(), name, blob), file.Data)
	if err := e.Store.Commit(&batch); err != nil {
		return fmt.Errorf("%s is damaged in the state directory: %w", path, err)
	}
	e.Log.Warn("damaged bytes put back from the drop directory", "unit", unit.Path(), "file", name)
	return nil
}
