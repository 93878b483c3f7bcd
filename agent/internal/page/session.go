package page

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"vragent/agent/internal/account"
)

// Sessions tell who is logged in. *account.Users implements it.
type Sessions interface {
	// Login begins a session. The error tells nothing of why a login is refused.
	Login(ctx context.Context, name, password string) (account.Session, account.User, error)
	// Resume returns the user of a session and prolongs it.
	Resume(id, key string) (account.User, error)
	// Logout ends a session; ending it twice is no error.
	Logout(id string)
}

const (
	// cookieName is not that of the API's cookies: who has seen the page may not use the API by it.
	cookieName = "vragent_page"
	maxForm    = 16 << 10
	formTime   = 30 * time.Second
)

// session returns the user who is logged in, with the session's id.
func (p *page) session(r *http.Request) (user account.User, id string, ok bool) {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return account.User{}, "", false
	}
	id, key, _ := strings.Cut(cookie.Value, ".")
	user, err = p.opts.Sessions.Resume(id, key)
	return user, id, err == nil
}

// behindLogin lets a view be seen by those who are logged in, and has others log in first.
func (p *page) behindLogin(view func(http.ResponseWriter, *http.Request, account.User)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		user, _, ok := p.session(r)
		switch {
		case ok:
			view(w, r, user)
		case r.Header.Get(fragment) != "":
			http.Error(w, "log in", http.StatusUnauthorized)
		default:
			to := "/client/login"
			if r.URL.RequestURI() != Path {
				to += "?next=" + url.QueryEscape(r.URL.RequestURI())
			}
			http.Redirect(w, r, to, http.StatusSeeOther)
		}
	}
}

// loginData is what the login form shows.
type loginData struct {
	Name, Next string
	Failed     bool
	Ended      bool // the user has just logged out
}

func (p *page) loginForm(w http.ResponseWriter, r *http.Request) {
	next := ownPath(r.URL.Query().Get("next"))
	if _, _, ok := p.session(r); ok {
		http.Redirect(w, r, next, http.StatusSeeOther)
		return
	}
	p.render(w, r, http.StatusOK, "login", account.User{}, loginData{Next: next, Ended: r.URL.Query().Has("ended")})
}

func (p *page) login(w http.ResponseWriter, r *http.Request) {
	// Only real connections have deadlines; a test's recorder has none.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(formTime))
	defer func() { _ = http.NewResponseController(w).SetReadDeadline(time.Time{}) }()
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		http.Error(w, "the form cannot be read", http.StatusBadRequest)
		return
	}
	select {
	case p.logins <- struct{}{}:
		defer func() { <-p.logins }()
	case <-r.Context().Done():
		return
	}
	name, next := r.PostForm.Get("name"), ownPath(r.PostForm.Get("next"))
	audit := p.log.With("user", name, "from", clientOf(r), "command", "login", "by", "page")
	session, user, err := p.opts.Sessions.Login(r.Context(), name, r.PostForm.Get("password"))
	if err != nil {
		audit.Warn("audit", "outcome", "refused", "reason", err)
		p.render(w, r, http.StatusUnauthorized, "login", account.User{}, loginData{Name: name, Next: next, Failed: true})
		return
	}
	audit.Info("audit", "account", string(user.Role), "outcome", "done")
	setCookie(w, r, session.ID+"."+session.Key, 0)
	http.Redirect(w, r, next, http.StatusSeeOther)
}

func (p *page) logout(w http.ResponseWriter, r *http.Request) {
	if _, id, ok := p.session(r); ok {
		p.opts.Sessions.Logout(id)
	}
	setCookie(w, r, "", -1)
	http.Redirect(w, r, "/client/login?ended", http.StatusSeeOther)
}

func setCookie(w http.ResponseWriter, r *http.Request, value string, maxAge int) {
	// Lax, so that a link in an alert leads to its view.
	http.SetCookie(w, &http.Cookie{Name: cookieName, Value: value, Path: Path, MaxAge: maxAge,
		HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteLaxMode})
}

// ownPath returns where a login leads to: to a view of ours, whatever the request says.
func ownPath(next string) string {
	u, err := url.Parse(next)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || u.Opaque != "" ||
		!strings.HasPrefix(u.Path, Path) || path.Clean(u.Path)+"/" != strings.TrimSuffix(u.Path, "/")+"/" ||
		strings.ContainsAny(u.Path, "\\") || strings.HasPrefix(u.Path, "/client/log") {
		return Path
	}
	return (&url.URL{Path: u.Path, RawQuery: u.RawQuery}).String()
}

func clientOf(r *http.Request) string {
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		return host
	}
	return r.RemoteAddr
}
