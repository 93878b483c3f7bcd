package api

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"gopkg.in/yaml.v3"
)

// The files of a VM's folder.
const (
	fileVM       = "vm.yaml"
	fileMeta     = "meta-data.yaml"
	fileUser     = "user-data"
	fileVendor   = "vendor-data"
	filePassword = "password"
)

// edit changes text of a unit's files. People write these files as well, so what a push does not
// name stays as they wrote it, comments included: the documents are edited, not written anew.
type edit struct {
	root *yaml.Node // a mapping
}

// parseEdit reads a document; nil or an empty one is an empty mapping.
func parseEdit(data []byte) (*edit, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	if doc.Kind == 0 || len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return &edit{&yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}}, nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: want a mapping", root.Line)
	}
	// Comments above and below the document would be lost with it.
	root.HeadComment = cmp.Or(root.HeadComment, doc.HeadComment)
	root.FootComment = cmp.Or(root.FootComment, doc.FootComment)
	return &edit{root}, nil
}

// bytes writes the document.
func (e *edit) bytes() ([]byte, error) {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(e.root); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}

// field returns the value of a key in a mapping, nil where there is none.
func field(mapping *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return mapping.Content[i+1]
		}
	}
	return nil
}

// setField gives key a value; nil removes it.
func setField(mapping *yaml.Node, key string, value *yaml.Node) {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value != key {
			continue
		}
		if value == nil {
			mapping.Content = slices.Delete(mapping.Content, i, i+2)
			return
		}
		value.LineComment = mapping.Content[i+1].LineComment
		mapping.Content[i+1] = value
		return
	}
	if value != nil {
		mapping.Content = append(mapping.Content, text(key), value)
	}
}

// text is a scalar that is read as text, whatever it looks like.
func text(s string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	var plain yaml.Node
	// A name is written plain where that reads as the same name; all else is quoted.
	if yaml.Unmarshal([]byte(s), &plain) != nil || len(plain.Content) != 1 || plain.Content[0].Kind != yaml.ScalarNode ||
		plain.Content[0].Tag != "!!str" || plain.Content[0].Value != s || plain.Content[0].Style != 0 {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

// setText gives key a text; an empty one removes the key, nil leaves it.
func setText(mapping *yaml.Node, key string, value *string) {
	switch {
	case value == nil:
	case *value == "":
		setField(mapping, key, nil)
	default:
		setField(mapping, key, text(*value))
	}
}

// errNoNIC is the refusal of a VM without any NIC.
var errNoNIC = errors.New("a VM needs at least one NIC: nics[0].network and nics[0].ipaddress")

// editVM makes the new vm.yaml of the old one, nil for a new VM.
func editVM(old []byte, p vmPush) ([]byte, error) {
	e, err := parseEdit(old)
	if err != nil {
		return nil, err
	}
	setText(e.root, "hostname", p.Hostname)
	list := field(e.root, "nics")
	if list == nil {
		list = &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
	}
	if list.Kind != yaml.SequenceNode {
		return nil, fmt.Errorf("line %d: nics: want a list", list.Line)
	}
	nics := slices.Clone(list.Content)
	gone := map[int]bool{}
	for _, c := range p.NICs {
		switch {
		case c.Index > len(nics):
			return nil, fmt.Errorf("nics[%d]: the VM has %d NICs, so the next one is nics[%d]", c.Index, len(nics), len(nics))
		case c.Index == len(nics):
			nics = append(nics, &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"})
		}
		nic := nics[c.Index]
		if nic.Kind != yaml.MappingNode {
			return nil, fmt.Errorf("line %d: nics[%d]: want a mapping", nic.Line, c.Index)
		}
		if c.Network != nil && *c.Network == "" {
			gone[c.Index] = true
			continue
		}
		setText(nic, "network", c.Network)
		setText(nic, "mac", c.MAC)
		setText(nic, "ipv4", c.IPv4)
		setText(nic, "lease_time", c.LeaseTime)
		switch {
		case c.Default == nil:
		case *c.Default == "":
			setField(nic, "default", nil)
		default:
			setField(nic, "default", &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: *c.Default})
		}
	}
	list.Content = nil
	for i, nic := range nics {
		if !gone[i] {
			list.Content = append(list.Content, nic)
		}
	}
	if len(list.Content) == 0 {
		return nil, errNoNIC
	}
	list.Style = 0
	setField(e.root, "nics", list)
	return e.bytes()
}

// editMeta makes the new meta-data.yaml of the old one; nil where no name is left.
func editMeta(old []byte, entries []metaEntry) ([]byte, error) {
	e, err := parseEdit(old)
	if err != nil {
		return nil, err
	}
	for _, m := range entries {
		setText(e.root, m.Key, &m.Value)
	}
	if len(e.root.Content) == 0 {
		return nil, nil
	}
	return e.bytes()
}
