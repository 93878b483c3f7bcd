package cloudstack

import (
	"bufio"
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
)

// Item is one step of an aggregated file: a file to be written or a command line to be run.
type Item struct {
	Path string // of the file; "" for a command
	Data []byte // of the file, every line with its newline
	Line string // the command
}

// Aggregated reads a VR-*.cfg, in which a management server sends all that a router needs at its
// start: sections of one file or one command, in order. Lines that begin with # and sections of
// other kinds are passed over. Where the file breaks off, the items before come back with the error.
func Aggregated(data []byte) ([]Item, error) {
	var items []Item
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, len(data)+1)
	number := 0
	next := func() (string, bool) {
		if !lines.Scan() {
			return "", false
		}
		number++
		return strings.Trim(lines.Text(), " \t\r"), true
	}
	for {
		line, ok := next()
		if !ok {
			return items, nil
		}
		switch line {
		case "<file>":
			path, ok := next()
			item := Item{Path: path}
			for ok {
				if line, ok = next(); !ok || line == "</file>" {
					break
				}
				item.Data = append(append(item.Data, line...), '\n')
			}
			if !ok {
				return items, fmt.Errorf("line %d: breaks off inside a <file>", number)
			}
			items = append(items, item)
		case "<script>":
			command, ok := next()
			end, closed := next()
			if !ok || !closed || end != "</script>" {
				return items, fmt.Errorf("line %d: a <script> without its end", number)
			}
			items = append(items, Item{Line: command})
		}
	}
}

// UpdateConfig tells whether the command is update_config.py, and with which arguments.
func (i Item) UpdateConfig() (args []string, ok bool) {
	words := strings.Fields(i.Line)
	if len(words) < 2 || len(words) > 3 || filepath.Base(words[0]) != "update_config.py" || strings.ContainsAny(i.Line, "'\"\\$`;&|<>*?()") {
		return nil, false
	}
	return words[1:], true
}
