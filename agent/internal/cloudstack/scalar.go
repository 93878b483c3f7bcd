package cloudstack

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Releases of the server differ in how they write numbers and truth values, so both types below
// take any scalar. Absent and null are the zero value.

// text is a string; a number or a truth value counts as its digits or letters.
type text string

func (t *text) UnmarshalJSON(data []byte) error {
	switch data = bytes.TrimSpace(data); {
	case len(data) == 0 || bytes.Equal(data, []byte("null")):
		*t = ""
		return nil
	case data[0] == '"':
		var s string
		if err := json.Unmarshal(data, &s); err != nil {
			return err
		}
		*t = text(s)
		return nil
	case data[0] == '{' || data[0] == '[':
		return fmt.Errorf("%.40s stands where text is expected", data)
	}
	*t = text(data)
	return nil
}

func (t text) trim() string { return strings.TrimSpace(string(t)) }

// flag is a truth value; "true", "1" and 1 are true as well.
type flag bool

func (f *flag) UnmarshalJSON(data []byte) error {
	var t text
	if err := t.UnmarshalJSON(data); err != nil {
		return err
	}
	switch s := strings.ToLower(t.trim()); s {
	case "", "0", "no":
		*f = false
	case "yes":
		*f = true
	default:
		b, err := strconv.ParseBool(s)
		if err != nil {
			return fmt.Errorf("%.40s stands where true or false is expected", data)
		}
		*f = flag(b)
	}
	return nil
}
