package metrics

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// maxScrapes bounds the scrapes under way.
const maxScrapes = 4

// Handler answers GET with the metrics. Over the unix socket and over loopback they are open to all;
// to anybody else the request has to bear the token (RFC 6750, section 2.1). A nil token lets nobody
// else in.
func (m *Metrics) Handler(token *Token) http.Handler {
	metrics := promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "want GET", http.StatusMethodNotAllowed)
		case !local(r) && !token.borne(r):
			w.Header().Set("WWW-Authenticate", `Bearer realm="vragent metrics"`)
			http.Error(w, "metrics are open on loopback; elsewhere the token of api.metrics_token_file is needed", http.StatusUnauthorized)
		default:
			metrics.ServeHTTP(w, r)
		}
	})
}

// local tells whether the request came over a unix socket or over loopback. Both ends count: an
// address of 127.0.0.0/8 can be reached from elsewhere where the router is told to route it.
func local(r *http.Request) bool {
	switch addr := r.Context().Value(http.LocalAddrContextKey).(type) {
	case *net.UnixAddr:
		return true
	case *net.TCPAddr:
		remote, err := netip.ParseAddrPort(r.RemoteAddr)
		return err == nil && addr.IP.IsLoopback() && remote.Addr().Unmap().IsLoopback()
	}
	return false
}

// maxToken bounds the file of a token, in bytes.
const maxToken = 4096

// Token is the secret of a file: what is in it without white space around it. The file is read again
// when it has changed; while it is missing, empty or too long, no token is right, so that removing the
// file takes the right away. All methods are safe for concurrent use, those of a nil Token too.
type Token struct {
	log *slog.Logger

	mu    sync.Mutex // guards what follows
	path  string
	stamp string   // of the file when it was read
	sum   [32]byte // of the token
	there bool
}

// NewToken returns the token of a file; an empty path is no token. A nil log discards.
func NewToken(path string, log *slog.Logger) *Token {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Token{path: path, log: log}
}

// SetFile changes the file that the token is in.
func (t *Token) SetFile(path string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if path != t.path {
		t.path, t.stamp, t.there = path, "", false
	}
}

// borne tells whether the request bears the token.
func (t *Token) borne(r *http.Request) bool {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if t == nil || !ok || !strings.EqualFold(scheme, "Bearer") {
		return false
	}
	given := sha256.Sum256([]byte(strings.TrimSpace(token)))
	t.mu.Lock()
	defer t.mu.Unlock()
	t.read()
	// Of sums, so that neither time nor length tells how much of it is right.
	return subtle.ConstantTimeCompare(given[:], t.sum[:]) == 1 && t.there
}

// read reads the file if it is not the one that was read last. t.mu is held.
func (t *Token) read() {
	if t.path == "" {
		return
	}
	stamp := stampOf(t.path)
	if stamp == t.stamp {
		return
	}
	t.stamp, t.there = stamp, false
	secret, err := readToken(t.path)
	if err != nil {
		t.log.Error("token of the metrics cannot be read; off loopback nobody is let in", "file", t.path, "reason", err)
		return
	}
	t.sum, t.there = sha256.Sum256([]byte(secret)), true
}

func readToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", err
	}
	secret := strings.TrimSpace(string(data))
	switch {
	case len(data) > maxToken:
		return "", fmt.Errorf("more than %d bytes", maxToken)
	case secret == "":
		return "", errors.New("the file is empty")
	}
	return secret, nil
}

// stampOf changes when the file does.
func stampOf(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d %d %s", info.ModTime().UnixNano(), info.Size(), inode(info))
}

func inode(info fs.FileInfo) string {
	sys, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%d:%d:%d", sys.Dev, sys.Ino, sys.Ctim.Nano())
}
