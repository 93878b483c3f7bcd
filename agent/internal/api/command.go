package api

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"vragent/agent/internal/account"
	"vragent/agent/internal/api/wire"
)

// command is one command of the companion API. The table of them is all that there is: requests
// are dispatched by it and listApis shows it, so the two cannot disagree.
type command struct {
	name        string
	description string
	role        account.Role // who may call it at least
	open        bool         // without any credentials
	async       bool
	changes     bool   // leaves an audit line
	reply       string // the name of the answer, where it is not the command's
	params      []param
	fields      []answerField
	run         func(*call) (wire.Object, error)
}

// param describes one parameter, as listApis does.
type param struct {
	name        string // of a list of maps: its name without [N]
	kind        string
	required    bool
	description string
}

// answerField describes one field of an answer.
type answerField struct{ name, kind, description string }

// The kinds of parameters.
const (
	kindString  = "string"
	kindBool    = "boolean"
	kindInteger = "integer"
	kindUUID    = "uuid"
	kindMap     = "map"
	kindDate    = "date"
)

// envelope is the name of the command's answer.
func (c *command) envelope() string {
	if c.reply != "" {
		return c.reply
	}
	return strings.ToLower(c.name) + "response"
}

// check refuses what is missing or of the wrong kind, in CloudStack's words.
func (c *command) check(params wire.Params) error {
	for _, p := range c.params {
		value, there := params.Lookup(p.name)
		if p.kind == kindMap {
			if _, err := params.Items(p.name); err != nil {
				return err
			}
			continue
		}
		if p.required && value == "" {
			return &wire.Error{Code: wire.CodeParameter, Text: fmt.Sprintf("Unable to execute API command %s due to missing parameter %s", strings.ToLower(c.name), p.name)}
		}
		if !there || value == "" {
			continue
		}
		ok := true
		switch p.kind {
		case kindInteger:
			_, err := strconv.Atoi(value)
			ok = err == nil
		case kindBool:
			ok = slices.Contains([]string{"true", "false"}, strings.ToLower(value))
		}
		if !ok {
			return c.invalid(p.name, value)
		}
	}
	return nil
}

func (c *command) invalid(name, value string) *wire.Error {
	return &wire.Error{Code: wire.CodeParameter, Text: fmt.Sprintf("Unable to execute API command %s due to invalid value %s for parameter %s", strings.ToLower(c.name), shorten(value), name)}
}

// unknown is the refusal of an id that is nobody's.
func (c *command) unknown(name, value string) *wire.Error {
	return &wire.Error{Code: wire.CodeParameter, Text: fmt.Sprintf("Unable to execute API command %s due to invalid value. Invalid parameter %s value=%s due to incorrect long value format, or entity does not exist or due to incorrect parameter annotation for the field in api cmd class.", strings.ToLower(c.name), name, shorten(value))}
}

// shorten keeps an answer from repeating whatever a client sent.
func shorten(s string) string {
	const most = 200
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

// bool returns a boolean parameter, false where it is absent.
func (c *call) bool(name string) bool { return strings.EqualFold(c.params.Get(name), "true") }

// listParams are the parameters of every command that lists.
var listParams = []param{
	{"keyword", kindString, false, "list by keyword"},
	{"page", kindInteger, false, "the page to return, from 1; together with pagesize"},
	{"pagesize", kindInteger, false, "the number of entries on a page, 500 at most; together with page"},
}

// maxPage is the number of entries on a page by default and at most.
const maxPage = 500

// page cuts the wanted page out of a list, whose entries are made only for what is on it.
func page[T any](c *call, name string, list []T, show func(T) wire.Object) (wire.Object, error) {
	page, hasPage := c.params.Lookup("page")
	size, hasSize := c.params.Lookup("pagesize")
	first, most := 0, maxPage
	switch {
	case !hasPage && hasSize && size == "-1":
		most = len(list)
	case hasPage != hasSize:
		given, missing := "pagesize", "page"
		if hasPage {
			given, missing = "page", "pagesize"
		}
		return nil, &wire.Error{Code: wire.CodeParameter, Text: fmt.Sprintf("%q parameter is required when %q is specified", missing, given)}
	case hasPage:
		p, err := strconv.Atoi(page)
		if err != nil || p < 1 {
			return nil, c.cmd.invalid("page", page)
		}
		n, err := strconv.Atoi(size)
		if err != nil || n < 1 {
			return nil, c.cmd.invalid("pagesize", size)
		}
		if n > maxPage {
			return nil, &wire.Error{Code: wire.CodeParameter, Text: fmt.Sprintf("Page size can't exceed max allowed page size value: %d", maxPage)}
		}
		first, most = len(list), n
		if p-1 <= len(list)/n {
			first = min(len(list), (p-1)*n)
		}
	}
	end := min(len(list), first+most)
	entries := make([]wire.Object, 0, end-first)
	for _, entry := range list[first:end] {
		entries = append(entries, show(entry))
	}
	return wire.List(len(list), name, entries), nil
}

// keyword tells whether one of texts has the keyword that was asked for in it.
func (c *call) keyword(texts ...string) bool {
	word := strings.ToLower(c.params.Get("keyword"))
	return word == "" || slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(strings.ToLower(s), word) })
}

// is tells whether the parameter of that name is absent or equal to value, in whatever case.
func (c *call) is(name, value string) bool {
	want := c.params.Get(name)
	return want == "" || strings.EqualFold(want, value)
}
