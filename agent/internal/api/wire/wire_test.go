package wire_test

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vragent/agent/internal/api/wire"
)

const (
	apiKey = "miVr6X7u6bN_sdahOBpjNejPgEsT35eXq-jB8CG20YI3yaxXcgpyuaIRmFI_EJTVwZ0nUkkJbPmY3y2bciKwFQ"
	secret = "Lxx1DM40AjcXU4Q-vf_TpvA8zP5RTKqqxMiUjd0UqK2Pb1Pv1Iq1mBGPMG8RBfIS2tVMyHw3oN2fOxSR6kxgEw"
)

// Signatures made with openssl of strings written down by hand.
func TestVerifyTakesEveryClientsSpelling(t *testing.T) {
	tests := []struct {
		name      string
		params    map[string]string
		signature string
	}{
		{"plain", map[string]string{"apiKey": apiKey, "command": "listUsers", "response": "json"}, "170NGIj4eYxwOOGggjriOn3rujs="},
		{"escapes", map[string]string{"apiKey": apiKey, "account": "admin", "command": "createUser", "email": "x@y.z", "expires": "2026-11-23T10:15:00+0000", "firstname": "F",
			"lastname": "L M*é", "password": "p@ss", "response": "json", "signatureVersion": "3", "username": "bob"}, "eJYBpXRhdbAlj+YjUKMWSGPQ/Jc="},
		{"tilde as Go and Python write it", map[string]string{"apiKey": apiKey, "command": "listUsers", "keyword": "a~b", "response": "json"}, "l0/eEe/Yzx/svF0pciUv0KR+8bk="},
		{"tilde as Java writes it", map[string]string{"apiKey": apiKey, "command": "listUsers", "keyword": "a~b", "response": "json"}, "VnyGQnH8vNi+JUDsdWQAMsftrEE="},
		{"lower case after escaping", map[string]string{"apiKey": apiKey, "command": "listUsers", "keyword": "É", "response": "json"}, "/zyRnmqneC7hOMSApTcPhPEk/1Q="},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.params["signature"] = tt.signature
			p := wire.NewParams(tt.params)
			if !wire.Verify(p, secret) {
				t.Error("Verify() = false")
			}
			if wire.Verify(p, secret+"x") {
				t.Error("Verify() = true with another secret")
			}
		})
	}
}

func TestSignIsVerified(t *testing.T) {
	values := map[string]string{"apiKey": "k", "apikeyaccess": "~[]*", "details[0].a b": "1 + 1 = 2", "ünicode": "ß"}
	signature := wire.Sign(wire.NewParams(values), "s")
	values["Signature"] = signature
	if !wire.Verify(wire.NewParams(values), "s") {
		t.Error("Verify() = false")
	}
	for _, bad := range []string{"", "?", signature[1:], "AAAA"} {
		values["Signature"] = bad
		if wire.Verify(wire.NewParams(values), "s") {
			t.Errorf("Verify() = true with signature %q", bad)
		}
	}
}

func TestCanonicalShowsNoSecrets(t *testing.T) {
	p := wire.NewParams(map[string]string{"command": "createUser", "password": "hidden", "userdata": "hidden", "apiKey": "hidden", "metadata[0].value": "hidden", "details[0].x": "hidden", "username": "bob"})
	got := wire.Canonical(p)
	if strings.Contains(got, "hidden") || !strings.Contains(got, "username=bob") {
		t.Errorf("Canonical() = %q", got)
	}
}

func TestExpiry(t *testing.T) {
	at := time.Date(2026, 11, 23, 10, 15, 0, 0, time.UTC)
	tests := []struct {
		expires, version string
		want             time.Time
		ok               bool
	}{
		{"2026-11-23T10:15:00+0000", "3", at, true},
		{"2026-11-23T10:15:00Z", "3", at, true},
		{"2026-11-23T11:15:00+01:00", "3", at, true},
		{"2026-11-23T10:15:00.5Z", "3", at.Add(500 * time.Millisecond), true},
		{"2026-11-23T10:15:00.5+0000", "3", at.Add(500 * time.Millisecond), true},
		{"2026-11-23T10:15:00+0000", "", at, true},
		{"", "", time.Time{}, true},
		{"", "3", time.Time{}, false},
		{"tomorrow", "", time.Time{}, false},
	}
	for _, tt := range tests {
		got, err := wire.Expiry(wire.NewParams(map[string]string{"expires": tt.expires, "signatureVersion": tt.version}))
		if !got.Equal(tt.want) || (err == nil) != tt.ok {
			t.Errorf("Expiry(%q, version %q) = %v, %v, want %v", tt.expires, tt.version, got, err, tt.want)
		}
	}
}

func TestReadParams(t *testing.T) {
	form := func(query, body string) *http.Request {
		r := httptest.NewRequest(http.MethodPost, "/client/api?"+query, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
		return r
	}
	r := form("a=1&a=2&c=%C3%A9+x", "a=3&b=4&b=5")
	p, err := wire.ReadParams(r, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"a": "2", "A": "2", "b": "4", "c": "é x", "none": ""} {
		if got := p.Get(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	for name, tt := range map[string]struct {
		r    *http.Request
		code int
	}{
		"bad escape":     {form("a=%zz", ""), wire.CodeMalformed},
		"bad form":       {form("", "a=%zz"), wire.CodeMalformed},
		"form too large": {form("", "a="+strings.Repeat("x", 1000)), wire.CodeMalformed},
		"NUL":            {form("a=%00", ""), wire.CodeParameter},
		"DEL":            {form("", "a=%7f"), wire.CodeParameter},
	} {
		_, err := wire.ReadParams(tt.r, 1000)
		var e *wire.Error
		if !errors.As(err, &e) || e.Code != tt.code {
			t.Errorf("%s: error %v, want code %d", name, err, tt.code)
		}
	}
	if _, err := wire.ReadParams(form("a=%0a%0d", ""), 1000); err != nil {
		t.Errorf("line ends: %v", err)
	}
}

func TestItems(t *testing.T) {
	p := wire.NewParams(map[string]string{"nics[10].network": "b", "NICs[2].Network": "a", "nics[2].default": "", "nicsx": "1"})
	got, err := p.Items("nics")
	if err != nil {
		t.Fatal(err)
	}
	want := []wire.Item{
		{Index: 2, Fields: []wire.Field{{Name: "Network", Value: "a"}, {Name: "default", Value: ""}}},
		{Index: 10, Fields: []wire.Field{{Name: "network", Value: "b"}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Items() differs (-want +got):\n%s", diff)
	}
	if v, ok := got[0].Get("network"); v != "a" || !ok {
		t.Errorf("Get(network) = %q, %v", v, ok)
	}
	for _, bad := range []string{"nics[", "nics[]", "nics[1]", "nics[1].", "nics[-1].a", "nics[x].a", "nics[99999].a"} {
		if _, err := wire.NewParams(map[string]string{bad: "x"}).Items("nics"); err == nil {
			t.Errorf("Items() takes %q", bad)
		}
	}
}

func TestWrite(t *testing.T) {
	body := wire.Object{
		{Name: "count", Value: 2}, {Name: "ok", Value: true}, {Name: "part", Value: 0.5}, {Name: "size", Value: int64(1 << 40)},
		{Name: "user", Value: []wire.Object{{{Name: "id", Value: "<&\"'>"}}, {{Name: "id", Value: "b"}}}},
		{Name: "names", Value: []string{"x", "y"}},
		{Name: "0a b", Value: wire.Object{{Name: "c", Value: ""}}},
	}
	tests := []struct {
		format wire.Format
		want   string
	}{
		{wire.JSON, `{"r":{"count":2,"ok":true,"part":0.5,"size":1099511627776,"user":[{"id":"\u003c\u0026\"'\u003e"},{"id":"b"}],"names":["x","y"],"0a b":{"c":""}}}` + "\n"},
		{wire.XML, `<?xml version="1.0" encoding="UTF-8"?><r cloud-stack-version="4.20.0.0"><count>2</count><ok>true</ok><part>0.5</part><size>1099511627776</size>` +
			`<user><id>&lt;&amp;&#34;&#39;&gt;</id></user><user><id>b</id></user><names>x</names><names>y</names><_0a_b><c></c></_0a_b></r>`},
	}
	for _, tt := range tests {
		var b strings.Builder
		if err := wire.Write(&b, tt.format, "r", body); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, b.String()); diff != "" {
			t.Errorf("Write(%v) differs (-want +got):\n%s", tt.format, diff)
		}
	}
	if err := wire.Write(io.Discard, wire.XML, "r", wire.Object{{Name: "a", Value: struct{}{}}}); err == nil {
		t.Error("Write() takes a struct")
	}
}

func TestEmptyListIsAnEmptyObject(t *testing.T) {
	var b strings.Builder
	if err := wire.Write(&b, wire.JSON, "r", wire.List(0, "user", nil)); err != nil || b.String() != `{"r":{}}`+"\n" {
		t.Errorf("Write() = %q, %v", b.String(), err)
	}
}

func TestErrorObject(t *testing.T) {
	for _, tt := range []struct {
		code int
		want string
	}{
		{wire.CodeUnauthorized, `{"uuidList":[],"errorcode":401,"errortext":"no"}`},
		{wire.CodeParameter, `{"uuidList":[],"errorcode":431,"cserrorcode":4350,"errortext":"no"}`},
		{wire.CodeInternal, `{"uuidList":[],"errorcode":530,"cserrorcode":9999,"errortext":"no"}`},
	} {
		got, err := json.Marshal((&wire.Error{Code: tt.code, Text: "no"}).Object())
		if err != nil || string(got) != tt.want {
			t.Errorf("Object() = %s, %v, want %s", got, err, tt.want)
		}
	}
}

// FuzzRequest reads requests as strangers send them: nothing panics, and what is signed is
// verified.
func FuzzRequest(f *testing.F) {
	f.Add("command=listUsers&response=json&nics[0].a=1", "b=2")
	f.Add("a=%C3%A9&A=~", "%zz")
	f.Add("nics[99999999999999999999].x=1&signature=%00", "")
	f.Fuzz(func(t *testing.T, query, body string) {
		r := &http.Request{Method: http.MethodPost, URL: &url.URL{RawQuery: query}, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
		p, err := wire.ReadParams(r, 1<<16)
		if err != nil {
			var e *wire.Error
			if !errors.As(err, &e) {
				t.Errorf("error %T", err)
			}
			return
		}
		_, _ = p.Items("nics")
		_, _ = wire.Expiry(p)
		_ = wire.Verify(p, "s")
		_ = wire.Canonical(p)
		if s := wire.Sign(p, "s"); s == "" {
			t.Error("no signature")
		}
	})
}

// FuzzObject reads what a store may hold: it survives being written and read again, and its XML is
// well-formed.
func FuzzObject(f *testing.F) {
	f.Add([]byte(`{"a":1,"b":["x"],"c":[{"d":true}],"e":{"f":1.5}}`))
	f.Add([]byte(`{"":{"\u0000":"\ud800"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var o wire.Object
		if json.Unmarshal(data, &o) != nil {
			return
		}
		first, err := json.Marshal(o)
		if err != nil {
			t.Fatalf("%q: %v", data, err)
		}
		var again wire.Object
		if err := json.Unmarshal(first, &again); err != nil {
			t.Fatalf("%q: %v", first, err)
		}
		var b strings.Builder
		if err := wire.Write(&b, wire.XML, "r", o); err != nil {
			t.Fatalf("%q: %v", data, err)
		}
		dec := xml.NewDecoder(strings.NewReader(b.String()))
		for {
			if _, err := dec.Token(); errors.Is(err, io.EOF) {
				return
			} else if err != nil {
				t.Fatalf("%q: XML %s: %v", data, b.String(), err)
			}
		}
	})
}
