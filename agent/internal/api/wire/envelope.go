package wire

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"strconv"
)

// Version is the CloudStack version whose formats these are, as answers tell it.
const Version = "4.20.0.0"

// Format is how an answer is written.
type Format int

// The formats of an answer.
const (
	XML Format = iota
	JSON
)

// ContentType returns the format's media type. cs refuses JSON under any other name.
func (f Format) ContentType() string {
	if f == JSON {
		return "application/json; charset=UTF-8"
	}
	return "text/xml; charset=UTF-8"
}

// Object is an ordered set of named values: an answer or a part of one. A value is a string, a
// bool, an int, an int64, a float64, an Object, a []Object or a []string.
type Object []Field

// Field is one named value of an Object.
type Field struct {
	Name  string
	Value any
}

// Add appends a field unless it says nothing: CloudStack leaves out what is null, and an empty
// text is treated as that.
func (o *Object) Add(name string, value any) {
	if value == nil || value == "" {
		return
	}
	*o = append(*o, Field{name, value})
}

// Get returns the value of the field of that name, nil where there is none.
func (o Object) Get(name string) any {
	for _, f := range o {
		if f.Name == name {
			return f.Value
		}
	}
	return nil
}

// List is an answer that holds one page of a list: count is the number of entries on all pages.
// An empty list is an empty object, in both formats.
func List(count int, name string, page []Object) Object {
	if count == 0 {
		return Object{}
	}
	return Object{{"count", count}, {name, page}}
}

// Success is the answer of a command that has nothing to show but that it worked.
func Success() Object { return Object{{"success", true}} }

// MarshalJSON writes the fields in their order.
func (o Object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, f := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(f.Name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(f.Value)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// maxDepth bounds how deep a stored answer may be nested.
const maxDepth = 20

// UnmarshalJSON reads what MarshalJSON wrote: the order of fields survives.
func (o *Object) UnmarshalJSON(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	v, err := readValue(dec, 0)
	if err != nil {
		return err
	}
	obj, ok := v.(Object)
	if !ok {
		return fmt.Errorf("want an object, got %T", v)
	}
	*o = obj
	return nil
}

// readValue reads the next value: an Object, a []Object, a []string or a plain one.
func readValue(dec *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("nested deeper than %d", maxDepth)
	}
	tok, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch t := tok.(type) {
	case json.Delim:
		if t == '{' {
			return readObject(dec, depth)
		}
		return readArray(dec, depth)
	case json.Number:
		if n, err := t.Int64(); err == nil {
			return n, nil
		}
		return t.Float64()
	default:
		return tok, nil
	}
}

func readObject(dec *json.Decoder, depth int) (any, error) {
	obj := Object{}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, err
		}
		value, err := readValue(dec, depth+1)
		if err != nil {
			return nil, err
		}
		obj.Add(name.(string), value)
	}
	_, err := dec.Token()
	return obj, err
}

func readArray(dec *json.Decoder, depth int) (any, error) {
	var objects []Object
	texts := []string{}
	for dec.More() {
		value, err := readValue(dec, depth+1)
		if err != nil {
			return nil, err
		}
		switch v := value.(type) {
		case Object:
			objects = append(objects, v)
		case string:
			texts = append(texts, v)
		default:
			return nil, fmt.Errorf("an array of %T", v)
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	if len(objects) > 0 && len(texts) > 0 {
		return nil, fmt.Errorf("an array of objects and strings")
	}
	if objects != nil {
		return objects, nil
	}
	return texts, nil
}

// Write writes body under its one top-level name.
func Write(w io.Writer, f Format, name string, body Object) error {
	var b bytes.Buffer
	if f == JSON {
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(Object{{name, body}}); err != nil {
			return err
		}
	} else {
		b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>`)
		fmt.Fprintf(&b, `<%s cloud-stack-version="%s">`, name, Version)
		if err := writeFields(&b, body); err != nil {
			return err
		}
		fmt.Fprintf(&b, "</%s>", name)
	}
	_, err := w.Write(b.Bytes())
	return err
}

func writeFields(b *bytes.Buffer, o Object) error {
	for _, f := range o {
		if err := writeElements(b, f.Name, f.Value); err != nil {
			return err
		}
	}
	return nil
}

// writeElements writes a value as elements of that name: a list is one after the other.
func writeElements(b *bytes.Buffer, name string, value any) error {
	switch v := value.(type) {
	case []Object:
		for _, o := range v {
			if err := writeElements(b, name, o); err != nil {
				return err
			}
		}
		return nil
	case []string:
		for _, s := range v {
			if err := writeElements(b, name, s); err != nil {
				return err
			}
		}
		return nil
	}
	name = elementName(name)
	fmt.Fprintf(b, "<%s>", name)
	switch v := value.(type) {
	case Object:
		if err := writeFields(b, v); err != nil {
			return err
		}
	case string:
		if err := xml.EscapeText(b, []byte(v)); err != nil {
			return err
		}
	case bool:
		b.WriteString(strconv.FormatBool(v))
	case int:
		b.WriteString(strconv.Itoa(v))
	case int64:
		b.WriteString(strconv.FormatInt(v, 10))
	case float64:
		b.WriteString(strconv.FormatFloat(v, 'g', -1, 64))
	default:
		return fmt.Errorf("%s: cannot write a %T", name, value)
	}
	fmt.Fprintf(b, "</%s>", name)
	return nil
}

// elementName makes a name fit for an element: the names of metadata, which a map answers with,
// may start with a digit or a dot.
func elementName(name string) string {
	ok := name != ""
	for i, c := range name {
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c != '-' && c != '.' && (c < '0' || c > '9')) {
			ok = false
		}
	}
	if ok {
		return name
	}
	var b bytes.Buffer
	b.WriteByte('_')
	for _, c := range name {
		if c == '_' || c == '-' || c == '.' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' {
			b.WriteRune(c)
		} else {
			b.WriteByte('_')
		}
	}
	return b.String()
}
