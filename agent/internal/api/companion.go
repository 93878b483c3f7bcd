package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"vragent/agent/internal/account"
	"vragent/agent/internal/api/bundle"
	"vragent/agent/internal/api/wire"
	"vragent/agent/internal/job"
)

// Path is where the companion API answers.
const Path = "/client/api"

// Limits are the bounds of what clients may send. Zero values mean the defaults.
type Limits struct {
	UserData    int   // bytes after base64 decoding; 32768
	UserDataGet int   // the same in a GET; 32768
	Bundle      int64 // bytes of a bundle as it is sent; 256 MiB
	// Rate is how many requests an account may make in a second, the administrators' excepted;
	// 100. Negative means any.
	Rate int
}

// CompanionOptions are what a Companion works with. All but Directory and Log must be given.
type CompanionOptions struct {
	Backend   Backend
	Drop      Drop
	Users     *account.Users
	Directory *account.Directory // nil: no LDAP
	Jobs      *job.Queue
	Spool     string // the folder for bundles on their way
	Limits    Limits
	Log       *slog.Logger // nil discards
}

// Companion is the companion API: CloudStack's wire format over HTTP, for management planes,
// CloudMonkey and scripts. It knows who calls, what they may do, and turns what they ask for into
// jobs that it carries out.
type Companion struct {
	opts     CompanionOptions
	log      *slog.Logger
	commands map[string]*command
	names    []string // of commands, sorted
	pusher   *pusher
	limiter  limiter
	logins   chan struct{} // holds a token for each login under way

	// leftovers lay in the spool before the first request came. What comes later is not swept.
	leftovers []string

	mu     sync.RWMutex
	limits Limits
}

const (
	// maxLogins bounds the logins under way: each failed one takes its time.
	maxLogins = 16
	// formTime is how long a client may take over a form, bodyTime how long a bundle may stall.
	formTime = 30 * time.Second
	bodyTime = 30 * time.Second
	// unpackedFactor bounds what a bundle may unpack to, as a multiple of what may be sent.
	unpackedFactor = 4
	bundleEntries  = 500_000
	bundleFile     = 1 << 20
)

// NewCompanion makes the API. It answers at once, but Run carries out the jobs.
func NewCompanion(opts CompanionOptions) *Companion {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	c := &Companion{opts: opts, log: opts.Log, logins: make(chan struct{}, maxLogins)}
	c.SetLimits(opts.Limits)
	c.commands = map[string]*command{}
	for _, cmd := range commandTable() {
		c.commands[cmd.name] = cmd
	}
	c.names = slices.Sorted(maps.Keys(c.commands))
	c.pusher = &pusher{drop: opts.Drop, backend: opts.Backend, users: opts.Users, jobs: opts.Jobs, log: opts.Log, spool: c.spool()}
	var err error
	if c.leftovers, err = c.spool().names(); err != nil {
		c.log.Warn("old bundles not removed", "reason", err)
	}
	return c
}

// SetLimits replaces the limits; requests under way keep the old ones.
func (c *Companion) SetLimits(l Limits) {
	l.UserData = cmp.Or(l.UserData, 32768)
	l.UserDataGet = cmp.Or(l.UserDataGet, 32768)
	l.Bundle = cmp.Or(l.Bundle, 256<<20)
	l.Rate = cmp.Or(l.Rate, 100)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limits = l
}

func (c *Companion) currentLimits() Limits {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.limits
}

func (c *Companion) spool() spool {
	l := c.currentLimits()
	return spool{dir: c.opts.Spool, limits: bundle.Limits{Size: l.Bundle, Unpacked: unpackedFactor * l.Bundle, File: bundleFile, Entries: bundleEntries}}
}

// Run carries out jobs until ctx ends. Those that are not finished go on in the next run of the
// agent.
func (c *Companion) Run(ctx context.Context) error {
	needed := map[string]bool{}
	open, err := c.opts.Jobs.List(func(j job.Job) (bool, bool) { return j.State == job.Open, true })
	if err != nil {
		return err
	}
	for _, j := range open {
		needed[j.Name] = true
	}
	if err := c.pusher.spool.sweep(ctx, c.leftovers, needed); err != nil {
		c.log.Warn("old bundles not removed", "reason", err)
	}
	return c.pusher.run(ctx)
}

// caller is who a request comes from.
type caller struct {
	user    account.User
	from    string // the address, or the local process
	session string // its id, where the caller has logged in
	local   bool
}

// call is one request to a command.
type call struct {
	*Companion
	caller
	cmd    *command
	params wire.Params
	http   *http.Request
	w      http.ResponseWriter
	limits Limits

	// Of the audit line.
	resource string
	job      string
}

// ServeHTTP answers at Path.
func (c *Companion) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, format, body, err := c.serve(w, r)
	status := http.StatusOK
	if err != nil {
		var e *wire.Error
		if !errors.As(err, &e) {
			c.log.Error("request", "command", name, "reason", err)
			e = &wire.Error{Code: wire.CodeInternal, Text: "Internal error, see the agent's log"}
		}
		status, body = e.Code, e.Object()
		w.Header().Set("X-Description", e.Header())
		if e.Code == wire.CodeMethod {
			w.Header().Set("Allow", "GET, POST")
		}
	}
	h := w.Header()
	h.Set("Content-Type", format.ContentType())
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	w.WriteHeader(status)
	if err := wire.Write(w, format, name, body); err != nil {
		c.log.Debug("answer", "command", name, "reason", err)
	}
}

// serve returns the answer's envelope name, its format and its body.
func (c *Companion) serve(w http.ResponseWriter, r *http.Request) (string, wire.Format, wire.Object, error) {
	const noCommand = "errorresponse"
	format := wire.XML
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		return noCommand, format, nil, &wire.Error{Code: wire.CodeMethod, Text: "Please use HTTP GET or POST"}
	}
	params, err := c.read(w, r)
	format = params.Format()
	if err != nil {
		if strings.EqualFold(r.URL.Query().Get("response"), "json") {
			format = wire.JSON
		}
		return noCommand, format, nil, err
	}
	name := params.Get("command")
	cmd := c.commands[name]
	envelope := noCommand
	if cmd != nil {
		envelope = cmd.envelope()
	}
	if name == "" {
		return envelope, format, nil, &wire.Error{Code: wire.CodeNoCommand, Text: "Invalid request, no command sent"}
	}
	limits := c.currentLimits()
	call := &call{Companion: c, cmd: cmd, params: params, http: r, w: w, limits: limits}
	call.from = r.RemoteAddr
	if cmd == nil || !cmd.open {
		if call.caller, err = c.identify(r, params); err != nil {
			return envelope, format, nil, err
		}
		if cmd == nil || !call.user.Role.Covers(cmd.role) {
			return envelope, format, nil, &wire.Error{Code: wire.CodeUnsupported, Text: fmt.Sprintf("The given command %s does not exist or it is not available for user %s", name, call.user.Name)}
		}
		if err := c.limiter.take(call.user.Role, limits.Rate); err != nil {
			return envelope, format, nil, err
		}
	}
	if err := cmd.check(params); err != nil {
		return envelope, format, nil, err
	}
	body, err := cmd.run(call)
	call.audit(err)
	return envelope, format, body, err
}

// read reads the parameters of a request. A bundle's are in its URL alone: whatever type a client
// gives its body, it is not a form.
func (c *Companion) read(w http.ResponseWriter, r *http.Request) (wire.Params, error) {
	most := int64(512<<10) + 6*int64(c.currentLimits().UserData)
	if query, err := url.ParseQuery(r.URL.RawQuery); err == nil && query.Get("command") == "pushBundle" {
		r = r.Clone(r.Context())
		r.Method = http.MethodGet
	} else if r.Method == http.MethodPost {
		// Only real connections have deadlines; a test's recorder has none.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(formTime))
		defer func() { _ = http.NewResponseController(w).SetReadDeadline(time.Time{}) }()
	}
	return wire.ReadParams(r, most)
}

var errCredentials = &wire.Error{Code: wire.CodeUnauthorized, Text: "unable to verify user credentials and/or request signature"}

// The cookies of a session.
const (
	cookieID  = "JSESSIONID"
	cookieKey = "sessionkey"
)

// identify returns who calls: by signature, by session, or as the local process that it is.
func (c *Companion) identify(r *http.Request, params wire.Params) (caller, error) {
	who := caller{from: r.RemoteAddr}
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		who.from = host
	}
	_, signed := params.Lookup("signature")
	_, keyed := params.Lookup("apikey")
	switch key, session := params.Lookup(cookieKey); {
	case signed || keyed:
		user, err := c.verify(params)
		who.user = user
		return who, err
	case session:
		id, err := r.Cookie(cookieID)
		given, errKey := r.Cookie(cookieKey)
		if err != nil || errKey != nil || given.Value != key {
			return who, errCredentials
		}
		who.session, _, _ = strings.Cut(id.Value, ".")
		user, err := c.opts.Users.Resume(who.session, key)
		if err != nil {
			return who, errCredentials
		}
		who.user = user
		return who, nil
	}
	if peer, ok := PeerFrom(r.Context()); ok && peer.Trust {
		who.local, who.from = true, peer.Socket
		who.user = account.User{ID: fmt.Sprintf("local-%d", peer.UID), Name: peer.String(), Role: account.Admin, State: account.Enabled}
		return who, nil
	}
	return who, errCredentials
}

// verify returns the user whose key signed the request. Whatever is wrong, the answer is the same.
func (c *Companion) verify(params wire.Params) (account.User, error) {
	user, err := c.opts.Users.ByKey(params.Get("apikey"))
	secret := user.SecretKey
	if err != nil {
		secret = account.NewID() // as much work for an unknown key
	}
	if !wire.Verify(params, secret) || err != nil {
		c.log.Debug("signature refused", "user", user.Name, "canonical", wire.Canonical(params))
		return account.User{}, errCredentials
	}
	expires, err := wire.Expiry(params)
	if err != nil || !expires.IsZero() && time.Now().After(expires) {
		c.log.Debug("signature expired", "user", user.Name, "expires", params.Get("expires"))
		return account.User{}, errCredentials
	}
	if user.State != account.Enabled {
		return account.User{}, errCredentials
	}
	return user, nil
}

// audit leaves one line for each request that changes something, or tried to.
func (c *call) audit(err error) {
	if !c.cmd.changes {
		return
	}
	outcome := "done"
	if c.job != "" {
		outcome = "accepted"
	}
	args := []any{"user", c.user.Name, "account", string(c.user.Role), "from", c.from, "command", c.cmd.name}
	if c.resource != "" {
		args = append(args, "resource", c.resource)
	}
	if c.job != "" {
		args = append(args, "job", c.job)
	}
	if err != nil {
		c.log.Warn("audit", append(args, "outcome", "refused", "reason", err)...)
		return
	}
	c.log.Info("audit", append(args, "outcome", outcome)...)
}

// Remote is the handler of the TCP listener: the companion API behind a login or a signature, and
// the health checks.
func (c *Companion) Remote(healthy, ready func() error) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(Path, c)
	Health(mux, healthy, ready)
	return mux
}

// limiter counts the requests of each role in windows of a second.
type limiter struct {
	mu      sync.Mutex
	windows map[account.Role]*window
}

type window struct {
	begin time.Time
	count int
}

const rateInterval = time.Second

// take counts one request, or refuses it.
func (l *limiter) take(role account.Role, most int) error {
	if role == account.Admin || most < 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.windows == nil {
		l.windows = map[account.Role]*window{}
	}
	now := time.Now()
	w := l.windows[role]
	if w == nil || now.Sub(w.begin) >= rateInterval {
		w = &window{begin: now}
		l.windows[role] = w
	}
	if w.count++; w.count > most {
		left := rateInterval - now.Sub(w.begin)
		return &wire.Error{Code: wire.CodeRateLimit, Text: fmt.Sprintf("The given user has reached his/her account api limit, please retry after [%d] ms.", max(1, left.Milliseconds()))}
	}
	return nil
}

// routerName is what this router calls itself.
func routerName() string {
	name, err := os.Hostname()
	if err != nil {
		return "router"
	}
	return filepath.Base(name)
}
