package cloudstack

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"path/filepath"
	"strings"
)

// Item is one step of an aggregated file: a file to be written or a command line to be run.
type Item struct {
	Path string // of the file; "" for a command
	Data []byte // of the file, every line with its newline
	Line string // the command
}

// Items reads a VR-*.cfg, in which a management server sends all that a router needs at its start:
// sections of one file or one command, in order. Lines that begin with # and sections of other kinds
// are passed over. Where the file breaks off, the error comes last; one without any section is torn as
// well. One item is held at a time.
func Items(r io.Reader) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		lines := bufio.NewReader(r)
		number, sections := 0, 0
		var fault error
		next := func() (line string, ok bool) {
			line, err := lines.ReadString('\n')
			if err != nil && err != io.EOF {
				fault = err
			}
			if err != nil && line == "" {
				return "", false
			}
			number++
			return strings.Trim(line, " \t\r\n"), true
		}
		breaksOff := func(inside string) {
			if fault == nil {
				fault = fmt.Errorf("line %d: breaks off inside a <%s>", number, inside)
			}
			yield(Item{}, fault)
		}
		for {
			line, ok := next()
			if !ok {
				if fault == nil && sections == 0 {
					fault = errors.New("is empty or torn: it holds no section")
				}
				if fault != nil {
					yield(Item{}, fault)
				}
				return
			}
			var item Item
			if strings.HasPrefix(line, "<") {
				sections++
			}
			switch line {
			case "<file>":
				path, ok := next()
				item.Path = path
				for ok {
					if line, ok = next(); !ok || line == "</file>" {
						break
					}
					item.Data = append(append(item.Data, line...), '\n')
				}
				if !ok {
					breaksOff("file")
					return
				}
			case "<script>":
				command, _ := next()
				if end, ok := next(); !ok || end != "</script>" {
					breaksOff("script")
					return
				}
				item.Line = command
			default:
				continue
			}
			if !yield(item, nil) {
				return
			}
		}
	}
}

// Aggregated returns all Items of a file. Where it breaks off, the items before come back with the
// error.
func Aggregated(data []byte) ([]Item, error) {
	var items []Item
	for item, err := range Items(bytes.NewReader(data)) {
		if err != nil {
			return items, err
		}
		items = append(items, item)
	}
	return items, nil
}

// UpdateConfig tells whether the command is update_config.py, and with which arguments.
func (i Item) UpdateConfig() (args []string, ok bool) {
	words := strings.Fields(i.Line)
	if len(words) < 2 || len(words) > 3 || filepath.Base(words[0]) != "update_config.py" || strings.ContainsAny(i.Line, "'\"\\$`;&|<>*?()") {
		return nil, false
	}
	return words[1:], true
}
