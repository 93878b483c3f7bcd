package wire

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"
)

// form is one way to write parameters down before they are signed. CloudStack's server and its
// clients do not agree in all characters; the forms differ in spelling only, so that accepting
// either of them weakens nothing.
type form struct {
	sortFolded bool   // by the lower-case name
	literal    string // characters that stay as they are, beside letters, digits and "-_.*"
}

var forms = []form{
	{},                                 // Java's URLEncoder, which the server of CloudStack uses
	{literal: "~"},                     // Go and Python: cmk, cloudstack-go, cs
	{sortFolded: true, literal: "~[]"}, // libcloud
}

// Sign returns the signature of p under secret as CloudStack's server computes it: HMAC-SHA1 of
// the canonical form, in standard base64.
func Sign(p Params, secret string) string {
	return base64.StdEncoding.EncodeToString(mac(forms[0].canonical(p), secret))
}

// Verify tells whether p carries a signature under secret in one of the forms that real clients
// use. It takes the same time for every wrong signature.
func Verify(p Params, secret string) bool {
	given, err := base64.StdEncoding.DecodeString(p.Get("signature"))
	if err != nil {
		given = nil // still compared: an early return would tell base64 from a guess
	}
	ok := false
	for _, f := range forms {
		if hmac.Equal(mac(f.canonical(p), secret), given) {
			ok = true
		}
	}
	return ok
}

// Canonical returns the string that a signature of p is computed over, for a log at debug level:
// a client whose signature does not fit can be helped with it. The values of parameters that are
// secret are left out.
func Canonical(p Params) string {
	shown := make(map[string]string, len(p.raw))
	for name, v := range p.raw {
		if Secret(name) {
			v = "..."
		}
		shown[name] = v
	}
	return forms[0].canonical(NewParams(shown))
}

// Secret tells whether a parameter of that name holds what no log may show.
func Secret(name string) bool {
	name = strings.ToLower(name)
	for _, part := range []string{"password", "secret", "userdata", "vendordata", "signature", "sessionkey", "apikey", "publickey", "value", "bindpass", "definition"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return strings.HasPrefix(name, "details[")
}

func mac(text, secret string) []byte {
	h := hmac.New(sha1.New, []byte(secret))
	h.Write([]byte(text))
	return h.Sum(nil)
}

func (f form) canonical(p Params) string {
	type pair struct{ key, name string }
	pairs := make([]pair, 0, len(p.raw))
	for name := range p.raw {
		if strings.EqualFold(name, "signature") {
			continue
		}
		key := name
		if f.sortFolded {
			key = strings.ToLower(name)
		}
		pairs = append(pairs, pair{key, name})
	}
	slices.SortFunc(pairs, func(a, b pair) int {
		if c := strings.Compare(a.key, b.key); c != 0 {
			return c
		}
		return strings.Compare(a.name, b.name)
	})
	var b strings.Builder
	for i, pair := range pairs {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(pair.name)
		b.WriteByte('=')
		f.escape(&b, p.raw[pair.name])
	}
	return strings.ToLower(b.String())
}

// escape writes s as Java's URLEncoder does with "%20" for a space, except for the characters
// that the form leaves alone.
func (f form) escape(b *strings.Builder, s string) {
	const digits = "0123456789ABCDEF"
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9',
			c == '-', c == '_', c == '.', c == '*', strings.IndexByte(f.literal, c) >= 0:
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte(digits[c>>4])
			b.WriteByte(digits[c&15])
		}
	}
}

// dateLayouts are the ways in which clients write the time that a signature ends: cs without a
// colon in the offset, cloudstack-go as RFC 3339 does. Fractions of seconds are read with either.
var dateLayouts = []string{"2006-01-02T15:04:05-0700", time.RFC3339}

// Expiry returns the time at which the signature of p ends; the zero time where it has none,
// which only signature versions before 3 may do.
func Expiry(p Params) (time.Time, error) {
	text := p.Get("expires")
	if p.Get("signatureversion") != "3" && text == "" {
		return time.Time{}, nil
	}
	for _, layout := range dateLayouts {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("expires %q: want a time like 2006-01-02T15:04:05+0000", text)
}

// Date writes t as CloudStack does.
func Date(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05-0700") }
