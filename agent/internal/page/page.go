package page

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path"
	"sync"
	"time"

	"vragent/agent/internal/account"
	"vragent/agent/internal/api"
	"vragent/agent/internal/job"
)

// Path is where the page answers, with all below it.
const Path = "/client/"

// Reports are what the page shows. api.Backend has them.
type Reports interface {
	Status(ctx context.Context) api.Status
	Networks(ctx context.Context) []api.Network
	VMs(ctx context.Context) []api.VM
	// Explain returns api.ErrUnknown for a guest that nothing is known of.
	Explain(ctx context.Context, subject string) (api.Explanation, error)
}

// Jobs are the jobs of the companion API. *job.Queue implements it.
type Jobs interface {
	// List returns the jobs from the newest to the oldest that keep wants, and stops when keep's
	// second result is false.
	List(keep func(job.Job) (ok, more bool)) ([]job.Job, error)
}

// Options are what the page works with. Reports and Sessions must be given.
type Options struct {
	Reports  Reports
	Sessions Sessions
	Jobs     Jobs             // nil: there are none
	Router   string           // what the router is called; empty: its host name
	Now      func() time.Time // nil means time.Now
	Log      *slog.Logger     // nil discards
}

// page is what its handlers share.
type page struct {
	opts   Options
	log    *slog.Logger
	mux    *http.ServeMux
	views  map[string]*template.Template
	logins chan struct{} // holds a token for each login under way

	taking sync.Mutex // guards shot, and is held while a new one is taken
	shot   snapshot
}

// snapshot is what the reports said at a time.
type snapshot struct {
	at       time.Time
	status   api.Status
	networks []api.Network
	vms      []api.VM
}

const (
	// snapshotTime is how long reports are good for: however many look, the agent is asked once.
	snapshotTime = time.Second
	// maxLogins bounds the logins under way: each failed one takes its time.
	maxLogins = 8
)

//go:embed templates assets
var files embed.FS

// New returns the handler of the page, which is mounted at Path. It is safe for concurrent use.
func New(opts Options) http.Handler {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Router == "" {
		opts.Router = "this router"
		if name, err := os.Hostname(); err == nil {
			opts.Router = name
		}
	}
	p := &page{opts: opts, log: opts.Log, mux: http.NewServeMux(), logins: make(chan struct{}, maxLogins)}
	assets := p.loadAssets()
	p.views = parseViews(opts.Now, assets)
	p.mux.HandleFunc("GET /client/{$}", p.behindLogin(p.overview))
	p.mux.HandleFunc("GET /client/networks", p.behindLogin(p.networks))
	p.mux.HandleFunc("GET /client/vms", p.behindLogin(p.vms))
	p.mux.HandleFunc("GET /client/jobs", p.behindLogin(p.jobs))
	p.mux.HandleFunc("GET /client/explain", p.behindLogin(p.explain))
	p.mux.HandleFunc("GET /client/login", p.loginForm)
	p.mux.HandleFunc("POST /client/login", p.login)
	p.mux.HandleFunc("POST /client/logout", p.logout)
	p.mux.HandleFunc("GET /client/", p.behindLogin(p.missing))
	// Forms are taken from our own pages only: Sec-Fetch-Site or Origin tells.
	return secured(http.NewCrossOriginProtection().Handler(p.mux))
}

// secured has browsers take nothing from elsewhere, run nothing that stands in a page, and keep no
// copy.
func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "+
			"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// loadAssets serves the files beside the pages, under addresses that change with what is in them. It
// returns the addresses by name.
func (p *page) loadAssets() map[string]string {
	entries, err := fs.ReadDir(files, "assets")
	if err != nil { // they are in the program
		panic(err)
	}
	types := map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
	urls := map[string]string{}
	for _, entry := range entries {
		data, err := files.ReadFile(path.Join("assets", entry.Name()))
		if err != nil {
			panic(err)
		}
		sum := sha256.Sum256(data)
		url := fmt.Sprintf("/client/assets/%s/%s", hex.EncodeToString(sum[:6]), entry.Name())
		urls[entry.Name()] = url
		kind := types[path.Ext(entry.Name())]
		p.mux.HandleFunc("GET "+url, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		})
	}
	return urls
}

// current returns reports that are not older than snapshotTime.
func (p *page) current(ctx context.Context) snapshot {
	p.taking.Lock()
	defer p.taking.Unlock()
	if now := p.opts.Now(); p.shot.at.IsZero() || now.Sub(p.shot.at).Abs() >= snapshotTime {
		// What is taken is for others too: it does not end with one client's request.
		ctx = context.WithoutCancel(ctx)
		p.shot = snapshot{at: now, status: p.opts.Reports.Status(ctx), networks: p.opts.Reports.Networks(ctx), vms: p.opts.Reports.VMs(ctx)}
	}
	return p.shot
}

// frame is what every view is rendered with.
type frame struct {
	View   string
	Router string
	User   account.User // none: nobody is logged in
	Now    time.Time
	Search string // what stands in the search box
	Data   any
}

// fragment is the header of a request for the part of a view that changes, alone.
const fragment = "Vragent-Fragment"

// render answers with a view, or with the changing part of it where that was asked for.
func (p *page) render(w http.ResponseWriter, r *http.Request, status int, view string, user account.User, data any) {
	f := frame{View: view, Router: p.opts.Router, User: user, Now: p.opts.Now(), Data: data}
	if view == "explain" {
		f.Search = r.URL.Query().Get("subject")
	}
	part := "layout"
	if r.Header.Get(fragment) != "" {
		part = "live"
	}
	var b bytes.Buffer
	if err := p.views[view].ExecuteTemplate(&b, part, f); err != nil {
		p.log.Error("page", "view", view, "reason", err)
		http.Error(w, "internal error, see the agent's log", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}

func (p *page) missing(w http.ResponseWriter, r *http.Request, user account.User) {
	p.render(w, r, http.StatusNotFound, "missing", user, nil)
}
