// Package strict reads YAML documents that people write, and takes nothing for granted: an unknown
// key, a wrong type, a duplicate key or a second document is a fault with its line and column, and
// one reading finds all faults of a file.
//
// It knows YAML and positions, not what the keys mean; the readers of agent.yaml and of the drop
// directory walk a Mapping key by key and report what they find wrong at the place where it stands.
package strict

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// Fault is one thing that is wrong with a document. Line and Column count from 1. Column is 0 where
// the document is no YAML at all: the parser gives the line only.
type Fault struct {
	Line, Column int
	What         string
}

func (f Fault) Error() string {
	switch {
	case f.Line == 0:
		return f.What
	case f.Column == 0:
		return fmt.Sprintf("%d: %s", f.Line, f.What)
	}
	return fmt.Sprintf("%d:%d: %s", f.Line, f.Column, f.What)
}

// Pos is a place in a document.
type Pos struct{ Line, Column int }

// Document is one parsed document and the faults found in it so far. It is for one goroutine.
type Document struct {
	faults []Fault
}

// Read parses data, which must hold one document at most, and returns its top mapping; an empty
// document is an empty mapping. Faults of syntax are in d.Faults, and the mapping is empty then.
func Read(data []byte) (d *Document, top *Mapping) {
	d = &Document{}
	root, err := parse(data)
	if err != nil {
		d.syntax(err)
		return d, &Mapping{d: d}
	}
	return d, d.mapping(root, "the document")
}

// parse returns the root node of the only document, or nil where there is none.
func parse(data []byte) (root *yaml.Node, err error) {
	// The parser is not ours and reads foreign bytes: what it stumbles over is a fault of the file.
	defer func() {
		if p := recover(); p != nil {
			root, err = nil, fmt.Errorf("yaml: line 1: not readable as YAML (%v)", p)
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var first, second yaml.Node
	if err := dec.Decode(&first); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	// The decoder stops after a document without a word; only another call tells of a second one.
	switch err := dec.Decode(&second); {
	case err == nil:
		line := max(second.Line, 1)
		return nil, Fault{Line: line, Column: max(second.Column, 1), What: "a second document begins here; a file holds one"}
	case !errors.Is(err, io.EOF):
		return nil, err
	}
	if len(first.Content) != 1 {
		return nil, nil
	}
	return first.Content[0], nil
}

func (d *Document) syntax(err error) {
	var f Fault
	if errors.As(err, &f) {
		d.faults = append(d.faults, f)
		return
	}
	// yaml.v3 says "yaml: line 3: did not find expected key"; a few of its errors have no line.
	text, line := strings.TrimPrefix(err.Error(), "yaml: "), 1
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if number, what, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(number); err == nil {
				line, text = max(n, 1), what
			}
		}
	}
	d.faults = append(d.faults, Fault{Line: line, What: "not valid YAML: " + text})
}

// Faultf records a fault at p.
func (d *Document) Faultf(p Pos, format string, args ...any) {
	d.faults = append(d.faults, Fault{Line: p.Line, Column: p.Column, What: fmt.Sprintf(format, args...)})
}

// Faults returns what was found so far, in the order of the file.
func (d *Document) Faults() []Fault {
	slices.SortStableFunc(d.faults, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return d.faults
}

// Mapping is a YAML mapping whose keys are taken one by one; what is left over at Done is a fault.
type Mapping struct {
	Pos
	d      *Document
	path   string // "" at the top, else "pool." or "nics[0]."
	keys   []*yaml.Node
	values []*yaml.Node
	taken  []bool
	asked  []string
}

func (d *Document) mapping(n *yaml.Node, what string) *Mapping {
	m := &Mapping{d: d}
	if n = resolve(n); n == nil || isNull(n) {
		return m
	}
	m.Pos = pos(n)
	if n.Kind != yaml.MappingNode {
		d.Faultf(m.Pos, "%s is %s; it must be a mapping (key: value)", what, kind(n))
		return m
	}
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := resolve(n.Content[i]), n.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			d.Faultf(pos(key), "a key is %s; it must be plain text", kind(key))
			continue
		}
		if line, dup := seen[key.Value]; dup {
			d.Faultf(pos(key), "key %s stands here a second time; the first is in line %d", quote(key.Value), line)
			continue
		}
		seen[key.Value] = key.Line
		m.keys, m.values, m.taken = append(m.keys, key), append(m.values, value), append(m.taken, false)
	}
	return m
}

// take returns the node of key, or nil where the key is absent or null, and remembers that the key
// is a known one.
func (m *Mapping) take(key string) *yaml.Node {
	m.asked = append(m.asked, key)
	for i, k := range m.keys {
		if k.Value == key {
			m.taken[i] = true
			if n := resolve(m.values[i]); !isNull(n) {
				return n
			}
		}
	}
	return nil
}

// At returns where key stands, or where the mapping does if key is absent.
func (m *Mapping) At(key string) Pos {
	for i, k := range m.keys {
		if k.Value == key {
			return pos(m.values[i])
		}
	}
	if m.Line == 0 {
		return Pos{1, 1}
	}
	return m.Pos
}

// Has tells whether key is there with a value.
func (m *Mapping) Has(key string) bool { return m.take(key) != nil }

// Faultf records a fault at key, with the key's path in front.
func (m *Mapping) Faultf(key, format string, args ...any) {
	m.d.Faultf(m.At(key), "%s%s: %s", m.path, key, fmt.Sprintf(format, args...))
}

// Faulty tells whether the value of key has a fault already.
func (m *Mapping) Faulty(key string) bool {
	at := m.At(key)
	return m.Has(key) && slices.ContainsFunc(m.d.faults, func(f Fault) bool { return f.Line == at.Line && f.Column == at.Column })
}

// FaultAt records a fault at p, a place inside key.
func (m *Mapping) FaultAt(p Pos, key, format string, args ...any) {
	m.d.Faultf(p, "%s%s: %s", m.path, key, fmt.Sprintf(format, args...))
}

// Done reports every key that nobody has asked for.
func (m *Mapping) Done() {
	for i, k := range m.keys {
		if m.taken[i] {
			continue
		}
		m.d.Faultf(pos(k), "unknown key %s; %s", quote(m.path+k.Value), suggest(k.Value, m.asked))
	}
}

// Mapping takes a mapping; an absent one is empty.
func (m *Mapping) Mapping(key string) *Mapping {
	sub := m.d.mapping(m.take(key), m.path+key)
	sub.path = m.path + key + "."
	if sub.Line == 0 {
		sub.Pos = m.At(key)
	}
	return sub
}

// List takes a list of mappings.
func (m *Mapping) List(key string) []*Mapping {
	var list []*Mapping
	for i, n := range m.sequence(key) {
		path := fmt.Sprintf("%s%s[%d]", m.path, key, i)
		sub := m.d.mapping(n, path)
		sub.path = path + "."
		if sub.Line == 0 {
			sub.Pos = pos(n)
		}
		list = append(list, sub)
	}
	return list
}

func (m *Mapping) sequence(key string) []*yaml.Node {
	n := m.take(key)
	if n == nil {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		m.Faultf(key, "is %s; it must be a list ([a, b])", kind(n))
		return nil
	}
	return n.Content
}

// Text is a value and where it stands.
type Text struct {
	Pos
	Value string
	Set   bool // the key is there and has a value
}

// Text takes a text. A number, a truth value or a date must be quoted to be one.
func (m *Mapping) Text(key string) Text {
	n := m.take(key)
	if n == nil {
		return Text{Pos: m.At(key)}
	}
	return m.text(n, key)
}

func (m *Mapping) text(n *yaml.Node, key string) Text {
	if n.Kind != yaml.ScalarNode {
		m.d.Faultf(pos(n), "%s%s: is %s; it must be text", m.path, key, kind(n))
		return Text{Pos: pos(n)}
	}
	if n.ShortTag() != "!!str" {
		m.d.Faultf(pos(n), "%s%s: %s is %s; put it in quotes to mean text", m.path, key, n.Value, kind(n))
		return Text{Pos: pos(n)}
	}
	return Text{Pos: pos(n), Value: n.Value, Set: true}
}

// Literal takes a scalar of any type as it is written; anything else is left for a typed reading to
// complain of.
func (m *Mapping) Literal(key string) string {
	if n := m.take(key); n != nil && n.Kind == yaml.ScalarNode {
		return n.Value
	}
	return ""
}

// Texts takes a list of texts.
func (m *Mapping) Texts(key string) []Text {
	var list []Text
	for i, n := range m.sequence(key) {
		if t := m.text(resolve(n), fmt.Sprintf("%s[%d]", key, i)); t.Set {
			list = append(list, t)
		}
	}
	return list
}

// Bool takes a truth value; def stands for an absent one.
func (m *Mapping) Bool(key string, def bool) bool {
	n := m.take(key)
	if n == nil {
		return def
	}
	var v bool
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" || n.Decode(&v) != nil {
		m.Faultf(key, "is %s; it must be true or false", describe(n))
		return def
	}
	return v
}

// Int takes a whole number from least to most; def stands for an absent one.
func (m *Mapping) Int(key string, def, least, most int64) int64 {
	n := m.take(key)
	if n == nil {
		return def
	}
	var v int64
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" || n.Decode(&v) != nil || v < least || v > most {
		m.Faultf(key, "is %s; it must be a whole number from %d to %d", describe(n), least, most)
		return def
	}
	return v
}

// Duration takes a length of time like 30s, 12h or 1h30m, within least and most; def stands for an
// absent one.
func (m *Mapping) Duration(key string, def, least, most time.Duration) time.Duration {
	n := m.take(key)
	if n == nil {
		return def
	}
	if n.Kind == yaml.ScalarNode {
		if v, err := time.ParseDuration(n.Value); err == nil && v >= least && v <= most {
			return v
		}
	}
	m.Faultf(key, "is %s; it must be a length of time from %s to %s, like 90s, 30m or 12h", describe(n), least, most)
	return def
}

// Size takes a number of bytes: a whole number, or one with KiB, MiB or GiB behind it.
func (m *Mapping) Size(key string, def, least, most int64) int64 {
	n := m.take(key)
	if n == nil {
		return def
	}
	if n.Kind == yaml.ScalarNode {
		number, unit := strings.TrimSpace(n.Value), int64(1)
		for suffix, factor := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
			if rest, ok := strings.CutSuffix(number, suffix); ok {
				number, unit = strings.TrimSpace(rest), factor
				break
			}
		}
		if v, err := strconv.ParseInt(number, 10, 64); err == nil && v >= 0 && v <= most/unit && v*unit >= least {
			return v * unit
		}
	}
	m.Faultf(key, "is %s; it must be a number of bytes from %d to %d, like 32768, 512KiB or 256MiB", describe(n), least, most)
	return def
}

// Entry is one entry of a mapping whose keys are data: a scalar of any type, taken as it is
// written, or a mapping.
type Entry struct {
	KeyPos Pos
	Key    string
	Pos    Pos
	Text   string   // of a scalar; "" for null
	Sub    *Mapping // of a mapping, else nil
}

// Entries takes everything that is left in m. Lists are faults.
func (m *Mapping) Entries() []Entry {
	var list []Entry
	for i, k := range m.keys {
		if m.taken[i] {
			continue
		}
		m.taken[i] = true
		n := resolve(m.values[i])
		l := Entry{KeyPos: pos(k), Key: k.Value, Pos: pos(n)}
		switch {
		case n.Kind == yaml.MappingNode:
			l.Sub = m.d.mapping(n, m.path+k.Value)
			l.Sub.path = m.path + k.Value + "."
		case n.Kind != yaml.ScalarNode:
			m.d.Faultf(l.Pos, "%s%s: is %s; it must be text", m.path, k.Value, kind(n))
			continue
		case !isNull(n):
			l.Text = n.Value
		}
		list = append(list, l)
	}
	return list
}

func pos(n *yaml.Node) Pos { return Pos{n.Line, n.Column} }

// resolve follows an alias. The parser refuses an alias inside its own anchor, so one step ends.
func resolve(n *yaml.Node) *yaml.Node {
	for n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool {
	return n == nil || n.Kind == 0 || n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		switch n.ShortTag() {
		case "!!bool":
			return "a truth value"
		case "!!int", "!!float":
			return "a number"
		case "!!timestamp":
			return "a date"
		case "!!null":
			return "empty"
		case "!!str":
			return "text"
		}
		return "a " + n.ShortTag()
	}
	return "nothing"
}

func describe(n *yaml.Node) string {
	if n.Kind == yaml.ScalarNode {
		return quote(n.Value)
	}
	return kind(n)
}

// quote makes foreign text fit for one line of a log.
func quote(s string) string {
	if len(s) > 80 {
		s = s[:77] + "..."
	}
	return strconv.Quote(s)
}

// suggest names the known key that a mistyped one is nearest to, or all of them.
func suggest(key string, known []string) string {
	known = slices.Compact(slices.Sorted(slices.Values(known)))
	best, least := "", 3
	for _, k := range known {
		if d := distance(strings.ToLower(key), k); d < least {
			best, least = k, d
		}
	}
	if best != "" {
		return "did you mean " + best + "?"
	}
	if len(known) == 0 {
		return "no keys are allowed here"
	}
	return "allowed are " + strings.Join(known, ", ")
}

// distance is the number of single-letter edits between two words.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			next := diagonal
			if a[i] != b[j] {
				next++
			}
			diagonal = row[j+1]
			row[j+1] = min(next, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
