package metadata

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// request is what the answer depends on. No field of it tells who asks.
type request struct {
	method string
	path   string // as it stood in the request, without the query
	query  string
	host   string // with a port, if the client wrote one; empty: none given

	token     string // X-aws-ec2-metadata-token
	ttl       string // X-aws-ec2-metadata-token-ttl-seconds
	forwarded bool   // there is an X-Forwarded-For

	ifMatch     string
	ifNoneMatch string
	ifRange     string
	ranges      string
}

// response is what a request is answered.
type response struct {
	status int
	header []string // further fields: name, value, name, value
	kind   string   // media type
	etag   string   // with its quotes; empty: none

	text   string  // the body, where there is no file
	file   Content // the body is length bytes from offset
	offset int64
	length int64

	why   string // of a refusal, for the log and for explain
	close bool   // ends the connection
	hops  int    // IP hop limit of the answer; 0: the usual
}

const (
	plain = "text/plain; charset=utf-8"

	tokenHeader     = "X-Aws-Ec2-Metadata-Token"
	tokenTTLHeader  = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
	forwardedHeader = "X-Forwarded-For"
)

// refuse is an answer without content. The body repeats the status in words, for people.
func refuse(status int, why string) response {
	return response{status: status, kind: plain, text: http.StatusText(status) + "\n", why: why}
}

// unknown is what a source is told that is no guest here, whatever it asks.
func unknown(why string) response {
	r := refuse(http.StatusNotFound, why)
	r.close = true
	return r
}

// limited is what a guest is told that asks too much.
func limited(why string) response {
	r := refuse(http.StatusTooManyRequests, why)
	r.header = []string{"Retry-After", "1"}
	return r
}

// answer answers a known guest's request that is within its limits. It does not wait.
func (v view) answer(r *request, tokens *tokens, now time.Time) response {
	if strings.HasPrefix(r.path, "/latest/api/token") && strings.EqualFold(strings.TrimSuffix(r.path, "/"), "/latest/api/token") {
		return v.issue(r, tokens, now)
	}
	switch {
	case r.token != "":
		if !tokens.valid(r.token, v.guest, now) {
			return refuse(http.StatusUnauthorized, "the session token is not valid")
		}
	case v.network.TokensRequired:
		return refuse(http.StatusUnauthorized, "a session token is required")
	}
	switch r.method {
	case http.MethodGet, http.MethodHead:
	default:
		refused := refuse(http.StatusMethodNotAllowed, "method "+strconv.Quote(r.method))
		refused.header = []string{"Allow", "GET, HEAD"}
		return refused
	}
	if _, ok := wishOf(r.query); !ok {
		return refuse(http.StatusBadRequest, "wait is not a number of seconds")
	}
	return conditional(r, v.content(r))
}

// content is the whole of what the path leads to.
func (v view) content(r *request) response {
	n, ok := v.lookup(r.path)
	if !ok {
		return refuse(http.StatusNotFound, "no such name")
	}
	switch {
	case n.leaf && n.file != nil:
		return response{
			status: http.StatusOK, kind: n.kind, etag: quote(n.file.ETag()),
			file: n.file, length: n.file.Size(),
		}
	case n.leaf:
		return whole(n.text, n.kind)
	case r.query != "" && recursive(r.query):
		tree, err := json.MarshalIndent(n.dir.tree(), "", "  ")
		if err != nil { // strings and numbers always marshal
			panic(err)
		}
		return whole(string(tree)+"\n", "application/json")
	default:
		return whole(n.dir.listing(), "")
	}
}

func whole(s, kind string) response {
	if kind == "" {
		kind = plain
	}
	sum := sha256.Sum256([]byte(s))
	return response{
		status: http.StatusOK, kind: kind, etag: quote(hex.EncodeToString(sum[:12])),
		text: s, length: int64(len(s)),
	}
}

func recursive(query string) bool {
	values, err := url.ParseQuery(query)
	return err == nil && values.Get("recursive") == "true"
}

func quote(tag string) string { return `"` + tag + `"` }

// conditional turns the whole content into what the request's preconditions and range leave of it,
// RFC 9110 sections 13.2.2 and 14.2.
func conditional(r *request, whole response) response {
	if whole.status != http.StatusOK {
		return whole
	}
	if r.ifMatch != "" && !matches(r.ifMatch, whole.etag, false) {
		return refuse(http.StatusPreconditionFailed, "If-Match")
	}
	if r.ifNoneMatch != "" && matches(r.ifNoneMatch, whole.etag, true) {
		return response{status: http.StatusNotModified, etag: whole.etag}
	}
	whole.header = []string{"Accept-Ranges", "bytes"}
	if r.ranges == "" || r.method != http.MethodGet || r.ifRange != "" && r.ifRange != whole.etag {
		return whole
	}
	first, length, ok := parseRange(r.ranges, whole.length)
	switch {
	case !ok: // several ranges, another unit, not understood: the whole is a valid answer to each
		return whole
	case length == 0:
		refused := refuse(http.StatusRequestedRangeNotSatisfiable, "Range "+strconv.Quote(r.ranges))
		refused.header = []string{"Content-Range", "bytes */" + strconv.FormatInt(whole.length, 10)}
		return refused
	}
	part := whole
	part.status = http.StatusPartialContent
	part.header = append(part.header, "Content-Range", "bytes "+strconv.FormatInt(first, 10)+"-"+
		strconv.FormatInt(first+length-1, 10)+"/"+strconv.FormatInt(whole.length, 10))
	if part.file != nil {
		part.offset, part.length = first, length
	} else {
		part.text, part.length = part.text[first:first+length], length
	}
	return part
}

// matches says whether a list of entity tags, or *, holds the tag. A weak comparison passes over
// the W/ of a weak one, RFC 9110 section 8.8.3.2.
func matches(list, etag string, weak bool) bool {
	if strings.TrimSpace(list) == "*" {
		return true
	}
	for tag := range strings.SplitSeq(list, ",") { // our tags have no comma in them
		tag = strings.TrimSpace(tag)
		if weak {
			tag = strings.TrimPrefix(tag, "W/")
		}
		if tag == etag {
			return true
		}
	}
	return false
}

// parseRange reads a Range field with a single range, RFC 9110 section 14.1.2. A length of 0 means
// that it cannot be satisfied; not ok, that it is to be ignored.
func parseRange(field string, size int64) (first, length int64, ok bool) {
	unit, spec, found := strings.Cut(field, "=")
	if !found || !strings.EqualFold(strings.TrimSpace(unit), "bytes") || strings.Contains(spec, ",") {
		return 0, 0, false
	}
	from, to, found := strings.Cut(strings.TrimSpace(spec), "-")
	if !found {
		return 0, 0, false
	}
	if from == "" { // the last bytes
		last, ok := parseDigits(to)
		if !ok {
			return 0, 0, false
		}
		last = min(last, size)
		return size - last, last, true
	}
	first, ok = parseDigits(from)
	if !ok {
		return 0, 0, false
	}
	end := size - 1
	if to != "" {
		if end, ok = parseDigits(to); !ok || end < first {
			return 0, 0, false
		}
		end = min(end, size-1)
	}
	if first >= size {
		return 0, 0, true
	}
	return first, end - first + 1, true
}

// parseDigits reads a decimal number without a sign. One that is too large is as large as can be.
func parseDigits(s string) (int64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil { // out of range: ParseInt then gives the largest
		return n, true
	}
	return n, true
}

// hostAllowed says whether a guest may have meant us by the Host that it gave: an address, or one
// of our names. Any other is what a browser sends that was led here by a rebound name.
func hostAllowed(host string, further []string, domain string) bool {
	if host == "" { // HTTP/1.0; a browser always gives one
		return true
	}
	name := host
	if i := strings.LastIndexByte(name, ':'); i >= 0 && strings.IndexByte(name, ':') == i {
		name = name[:i]
		if _, ok := parseDigits(host[i+1:]); !ok && host[i+1:] != "" {
			return false
		}
	}
	if literal, rest, ok := strings.Cut(strings.TrimPrefix(name, "["), "]"); ok && name[0] == '[' {
		_, err := netip.ParseAddr(literal)
		return err == nil && (rest == "" || rest[0] == ':')
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return true
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	switch name {
	case "data-server", "instance-data":
		return true
	case "":
		return false
	}
	if domain = strings.ToLower(strings.TrimSuffix(domain, ".")); domain != "" && name == "data-server."+domain {
		return true
	}
	for _, h := range further {
		if strings.EqualFold(name, strings.TrimSuffix(h, ".")) {
			return true
		}
	}
	return false
}
