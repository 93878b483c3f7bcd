package strict

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// read takes the keys that the tests use, as a reader of files does.
func read(data string) []Fault {
	d, m := Read([]byte(data))
	m.Text("name")
	m.Bool("on", false)
	m.Int("count", 1, 0, 10)
	m.Duration("time", time.Second, time.Second, time.Hour)
	m.Size("size", 1, 1, 1<<30)
	m.Texts("list")
	sub := m.Mapping("sub")
	sub.Text("inner")
	sub.Done()
	for _, item := range m.List("items") {
		item.Text("key")
		item.Done()
	}
	m.Done()
	return d.Faults()
}

func TestFaultsNameThePlaceAndWhatIsAllowed(t *testing.T) {
	for name, test := range map[string]struct {
		data string
		want []Fault
	}{
		"empty":                 {"", nil},
		"only a comment":        {"# nothing\n", nil},
		"explicit empty":        {"---\n", nil},
		"all good":              {"name: a\non: true\ncount: 3\ntime: 90s\nsize: 2MiB\nlist: [a, b]\nsub: {inner: x}\nitems: [{key: v}]\n", nil},
		"null is absent":        {"name:\nsub:\nlist: ~\n", nil},
		"alias":                 {"name: &a b\nsub: {inner: *a}\n", nil},
		"unknown key, near":     {"nmae: a\n", []Fault{{1, 1, `unknown key "nmae"; did you mean name?`}}},
		"unknown key, far":      {"sub:\n  other: a\n", []Fault{{2, 3, `unknown key "sub.other"; allowed are inner`}}},
		"duplicate key":         {"name: a\nname: b\n", []Fault{{2, 1, `key "name" stands here a second time; the first is in line 1`}}},
		"second document":       {"name: a\n---\nname: b\n", []Fault{{2, 1, "a second document begins here; a file holds one"}}},
		"syntax has no column":  {"name: [a\n", []Fault{{1, 0, "not valid YAML: did not find expected ',' or ']'"}}},
		"number for text":       {"name: 12\n", []Fault{{1, 7, "name: 12 is a number; put it in quotes to mean text"}}},
		"truth value for text":  {"list: [a, true]\n", []Fault{{1, 11, "list[1]: true is a truth value; put it in quotes to mean text"}}},
		"text for truth value":  {"on: \"yes\"\n", []Fault{{1, 5, `on: is "yes"; it must be true or false`}}},
		"number out of range":   {"count: 11\n", []Fault{{1, 8, `count: is "11"; it must be a whole number from 0 to 10`}}},
		"fraction":              {"count: 1.5\n", []Fault{{1, 8, `count: is "1.5"; it must be a whole number from 0 to 10`}}},
		"time without a unit":   {"time: 90\n", []Fault{{1, 7, `time: is "90"; it must be a length of time from 1s to 1h0m0s, like 90s, 30m or 12h`}}},
		"size too big":          {"size: 2GiB\n", []Fault{{1, 7, `size: is "2GiB"; it must be a number of bytes from 1 to 1073741824, like 32768, 512KiB or 256MiB`}}},
		"size overflow":         {"size: 99999999999GiB\n", []Fault{{1, 7, `size: is "99999999999GiB"; it must be a number of bytes from 1 to 1073741824, like 32768, 512KiB or 256MiB`}}},
		"mapping for list":      {"list: {a: b}\n", []Fault{{1, 7, "list: is a mapping; it must be a list ([a, b])"}}},
		"list for mapping":      {"sub: [a]\n", []Fault{{1, 6, "sub is a list; it must be a mapping (key: value)"}}},
		"scalar in list":        {"items: [a]\n", []Fault{{1, 9, "items[0] is text; it must be a mapping (key: value)"}}},
		"scalar document":       {"hello\n", []Fault{{1, 1, "the document is text; it must be a mapping (key: value)"}}},
		"all faults in order":   {"count: x\non: 1\n", []Fault{{1, 8, `count: is "x"; it must be a whole number from 0 to 10`}, {2, 5, `on: is "1"; it must be true or false`}}},
		"merge keys are no key": {"<<: {name: a}\n", []Fault{{1, 1, `unknown key "<<"; did you mean on?`}}},
	} {
		t.Run(name, func(t *testing.T) {
			got := read(test.data)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEntriesTakesScalarsAsWritten(t *testing.T) {
	d, m := Read([]byte("a: 0x10\nb: yes\nc: 2001-01-01\nd:\ne: {hex: \"01\"}\nf: 1_000\n"))
	got := map[string]string{}
	for _, l := range m.Entries() {
		if l.Sub != nil {
			got[l.Key] = "hex " + l.Sub.Text("hex").Value
			continue
		}
		got[l.Key] = l.Text
	}
	want := map[string]string{"a": "0x10", "b": "yes", "c": "2001-01-01", "d": "", "e": "hex 01", "f": "1_000"}
	if diff := cmp.Diff(want, got); diff != "" || len(d.Faults()) > 0 {
		t.Errorf("literals (-want +got):\n%s\nfaults: %v", diff, d.Faults())
	}
}

func FuzzRead(f *testing.F) {
	for _, seed := range []string{"name: a\n", "a: &a [*a]\n", "? [x]\n: y\n", "- 1\n---\n", "\x00", "name: !!binary x\n", "{a: {b: {c: }}}"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data string) {
		for _, fault := range read(data) {
			if fault.Line < 1 {
				t.Errorf("fault without a line: %v", fault)
			}
			if fault.Error() == "" || fault.What == "" {
				t.Errorf("fault without a text: %#v", fault)
			}
		}
	})
}
