package main

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// width is what every table fits in.
const width = 80

// gap is the space between two columns.
const gap = 2

// narrowest is what a column of names may shrink to.
const narrowest = 8

// column is one column of a table.
type column struct {
	title string
	// names may be cut in the middle when the table would be too wide. What is no name (a state,
	// an address, a number) is always whole.
	names bool
	right bool                // numbers
	paint func(string) string // nil: as it is
}

// table is rows of text under titles.
type table struct {
	columns []column
	rows    [][]string
}

// add appends a row, a cell for each column. An empty cell is shown as a dash.
func (t *table) add(cells ...string) {
	if len(cells) != len(t.columns) {
		panic(fmt.Sprintf("a row of %d cells in a table of %d columns", len(cells), len(t.columns)))
	}
	row := make([]string, len(cells))
	for i, c := range cells {
		if row[i] = printable(c); row[i] == "" {
			row[i] = "-"
		}
	}
	t.rows = append(t.rows, row)
}

// write prints the table, each line after indent.
func (t *table) write(w io.Writer, indent string) error {
	widths := t.widths(width - len(indent))
	titles := make([]string, len(t.columns))
	for i, c := range t.columns {
		titles[i] = c.title
	}
	var b strings.Builder
	for n, row := range append([][]string{titles}, t.rows...) {
		var line strings.Builder
		line.WriteString(indent)
		for i, cell := range row {
			c := t.columns[i]
			cell = shorten(cell, widths[i])
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if c.paint != nil && n > 0 {
				cell = c.paint(cell)
			}
			if c.right {
				cell = pad + cell
			} else {
				cell += pad
			}
			if i > 0 {
				line.WriteString(strings.Repeat(" ", gap))
			}
			line.WriteString(cell)
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// widths is the width of each column: what its widest cell needs, less what has to go for the
// table to fit. The widest column of names gives way first.
func (t *table) widths(limit int) []int {
	widths := make([]int, len(t.columns))
	total := gap * (len(t.columns) - 1)
	for i, c := range t.columns {
		widths[i] = utf8.RuneCountInString(c.title)
		for _, row := range t.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
		total += widths[i]
	}
	for ; total > limit; total-- {
		widest := -1
		for i, c := range t.columns {
			if c.names && widths[i] > narrowest && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
	}
	return widths
}

// shorten cuts s in the middle to n characters: the beginning and the end are what tells one
// generated name from another.
func shorten(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	if n < 3 {
		return string(r[:n])
	}
	head := n / 2
	return string(r[:head]) + "…" + string(r[len(r)-(n-head-1):])
}

// printable replaces what a terminal would obey instead of show. Guests choose host names, paths
// and client identifiers.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}

// wrap breaks text between words so that no line is longer than limit, the first line after
// first, the others after rest.
func wrap(text, first, rest string, limit int) string {
	var b strings.Builder
	line, empty := first, true
	for word := range strings.FieldsSeq(text) {
		word = printable(word)
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > limit {
			b.WriteString(line + "\n")
			line, empty = rest, true
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	b.WriteString(line + "\n")
	return b.String()
}
