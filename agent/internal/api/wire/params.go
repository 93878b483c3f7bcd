package wire

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Params are the decoded parameters of one request, by the names that the client used: a
// signature is computed over those. Look-ups do not regard the case of names, as CloudStack's
// own clients differ in it.
type Params struct {
	raw    map[string]string
	folded map[string]string // lower-case name -> value
}

// NewParams makes parameters of names and values. Of two names that differ in case only, the one
// that sorts last counts.
func NewParams(values map[string]string) Params {
	p := Params{raw: values, folded: make(map[string]string, len(values))}
	for _, name := range p.names() {
		p.folded[strings.ToLower(name)] = values[name]
	}
	return p
}

func (p Params) names() []string {
	names := make([]string, 0, len(p.raw))
	for name := range p.raw {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Get returns the value of the parameter, "" where it is absent.
func (p Params) Get(name string) string { return p.folded[strings.ToLower(name)] }

// Lookup returns the value of the parameter and whether it is there; it may be there and empty.
func (p Params) Lookup(name string) (string, bool) {
	v, ok := p.folded[strings.ToLower(name)]
	return v, ok
}

// Format returns the format that the answer is to have. XML is CloudStack's default, also where
// the value is none of the two.
func (p Params) Format() Format {
	if strings.EqualFold(p.Get("response"), "json") {
		return JSON
	}
	return XML
}

// Item is one entry of a list of maps: nics[2].network=guest-1 is entry 2 with a field "network".
type Item struct {
	Index  int
	Fields []Field // as sent, by name; values are strings
}

// Get returns the field of that name, whatever its case, and whether it is there.
func (i Item) Get(name string) (string, bool) {
	for _, f := range i.Fields {
		if strings.EqualFold(f.Name, name) {
			return f.Value.(string), true
		}
	}
	return "", false
}

// maxIndex bounds the N of list[N].field.
const maxIndex = 9999

// Items returns the entries of the list parameter of that name in the order of their indexes. A
// name that starts like an entry of the list and is none is a *Error.
func (p Params) Items(list string) ([]Item, error) {
	byIndex := map[int]*Item{}
	for _, name := range p.names() {
		rest, ok := cutPrefixFold(name, list+"[")
		if !ok {
			continue
		}
		number, field, ok := strings.Cut(rest, "].")
		index, err := strconv.Atoi(number)
		if !ok || err != nil || index < 0 || index > maxIndex || field == "" {
			return nil, &Error{Code: CodeParameter, Text: fmt.Sprintf("Parameter %s is not of the form %s[N].field, N from 0 to %d", name, list, maxIndex)}
		}
		item := byIndex[index]
		if item == nil {
			item = &Item{Index: index}
			byIndex[index] = item
		}
		item.Fields = append(item.Fields, Field{field, p.raw[name]})
	}
	items := make([]Item, 0, len(byIndex))
	for _, item := range byIndex {
		items = append(items, *item)
	}
	slices.SortFunc(items, func(a, b Item) int { return cmp.Compare(a.Index, b.Index) })
	return items, nil
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return "", false
	}
	return s[len(prefix):], true
}

// ReadParams reads the parameters of r: those of the URL and, for a POST of a form, those of the
// body, of which it reads maxBody bytes at most. Where both have a name the URL's last value
// wins; of several in the form the first. A body of another type is left unread. The error is a
// *Error.
func ReadParams(r *http.Request, maxBody int64) (Params, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return Params{}, &Error{Code: CodeMalformed, Text: "Malformed query: " + err.Error()}
	}
	form, err := readForm(r, maxBody)
	if err != nil {
		return Params{}, err
	}
	values := make(map[string]string, len(query)+len(form))
	for name, v := range form {
		values[name] = v[0]
	}
	for name, v := range query {
		values[name] = v[len(v)-1]
	}
	for name, v := range values {
		if strings.ContainsFunc(v, forbidden) {
			return Params{}, &Error{Code: CodeParameter, Text: "Received value containing illegal ASCII non-printable characters for parameter " + printable(name)}
		}
	}
	return NewParams(values), nil
}

func readForm(r *http.Request, maxBody int64) (url.Values, error) {
	if r.Method != http.MethodPost || !IsForm(r) {
		return nil, nil
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return nil, &Error{Code: CodeMalformed, Text: fmt.Sprintf("The form is larger than %d bytes", large.Limit)}
	}
	if err != nil {
		return nil, &Error{Code: CodeMalformed, Text: "The form ended early"}
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, &Error{Code: CodeMalformed, Text: "Malformed form: " + err.Error()}
	}
	return form, nil
}

// IsForm tells whether the body of r holds parameters. A body without a type is one that does,
// as clients of old send it.
func IsForm(r *http.Request) bool {
	header := r.Header.Get("Content-Type")
	media, _, err := mime.ParseMediaType(header)
	return header == "" || err == nil && media == "application/x-www-form-urlencoded"
}

// forbidden are the control characters that no value may have; line ends are none of them.
func forbidden(c rune) bool {
	return c < ' ' && c != '\n' && c != '\r' || c == 0x7f
}

// printable makes s fit for a header or a log line.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return '?'
		}
		return c
	}, s)
}
