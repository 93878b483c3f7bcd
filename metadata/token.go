package metadata

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"strconv"
	"time"
)

// maxTokenTTL is the longest life of a session token in seconds, six hours as in EC2.
const maxTokenTTL = 21600

// tokens issues and checks EC2 session tokens. A token holds the time when it ends and a MAC over
// that and the guest it was issued to, so issued tokens take no memory, and a restart with the same
// key keeps them valid.
type tokens struct {
	key []byte
}

// newTokens takes the key, or makes one that ends with the process: clients then fetch a new token
// at the first 401, as they do when one has run out.
func newTokens(key []byte) *tokens {
	if len(key) == 0 {
		key = make([]byte, 32)
		rand.Read(key)
	}
	return &tokens{key: key}
}

const tokenSize = 8 + sha256.Size

// issue gives the guest a token.
func (t *tokens) issue(g *Guest, end time.Time) string {
	raw := binary.BigEndian.AppendUint64(make([]byte, 0, tokenSize), uint64(end.Unix()))
	return base64.RawURLEncoding.EncodeToString(append(raw, t.mac(raw, g)...))
}

// valid says whether the token was issued to this guest and has not ended. One that would live longer
// than any may is from before the clock was set back.
func (t *tokens) valid(token string, g *Guest, now time.Time) bool {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(raw) != tokenSize {
		return false
	}
	if !hmac.Equal(raw[8:], t.mac(raw[:8], g)) {
		return false
	}
	left := int64(binary.BigEndian.Uint64(raw)) - now.Unix()
	return left > 0 && left <= maxTokenTTL
}

// mac binds the end of a token to one VM at one address of one network.
func (t *tokens) mac(end []byte, g *Guest) []byte {
	h := hmac.New(sha256.New, t.key)
	h.Write([]byte("vragent session token 1\x00"))
	h.Write(end)
	h.Write(binary.BigEndian.AppendUint64(nil, g.Generation))
	h.Write([]byte(g.Network + "\x00" + g.VM + "\x00" + g.IP.String()))
	return h.Sum(nil)
}

// issue answers PUT /latest/api/token. The answer's hop limit keeps it from whoever is routed
// through the guest, and X-Forwarded-For from whoever has it as a proxy.
func (v view) issue(r *request, tokens *tokens, now time.Time) response {
	if r.method != http.MethodPut {
		refused := refuse(http.StatusMethodNotAllowed, "method "+strconv.Quote(r.method))
		refused.header = []string{"Allow", "PUT"}
		return refused
	}
	if r.forwarded {
		return refuse(http.StatusForbidden, "a token was asked for through a proxy")
	}
	ttl, ok := parseDigits(r.ttl)
	if !ok || ttl < 1 || ttl > maxTokenTTL {
		return refuse(http.StatusBadRequest, "token life "+strconv.Quote(r.ttl)+" is not 1 to 21600 seconds")
	}
	hops := 1
	if v.network.Relay { // the relay itself takes one
		hops = 2
	}
	return response{
		status: http.StatusOK, kind: plain,
		header: []string{tokenTTLHeader, r.ttl},
		text:   tokens.issue(v.guest, now.Add(time.Duration(ttl)*time.Second)),
		hops:   hops,
		close:  true, // with the hop limit on the connection, nothing else may follow on it
	}
}
