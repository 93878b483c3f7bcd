package account

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"io"
	"time"
)

// ErrLogin is returned for every login that is refused. It tells a stranger nothing: whether
// the name, the password or the user's state was the reason is in the log only.
var ErrLogin = errors.New("wrong name or password")

// What an authenticator says of a name and a password.
var (
	// ErrUnknownUser means that the authenticator does not know the name.
	ErrUnknownUser = errors.New("unknown user")
	// ErrWrongPassword means that it knows the name, under another password.
	ErrWrongPassword = errors.New("wrong password")
	// ErrUserDisabled means that it knows the user, who may not log in, whatever the password.
	ErrUserDisabled = errors.New("user is disabled")
)

// Identity is what a directory knows of a user.
type Identity struct {
	Name, First, Last, Email string
	DN                       string
	Disabled                 bool
}

// Authenticator decides whether a password is right. Implementations are safe for concurrent use.
type Authenticator interface {
	// Source is the source of the users that it decides on.
	Source() string
	// Authenticate returns who that is. The error is one of ErrUnknownUser, ErrWrongPassword and
	// ErrUserDisabled, or another where it cannot tell.
	Authenticate(ctx context.Context, name, password string) (Identity, error)
}

// Links says which role a directory's user has by the groups that it is in.
type Links interface {
	// Role returns the role, and false where no group of the user is linked, or more than one.
	Role(ctx context.Context, who Identity) (Role, bool, error)
	// Linked tells whether any group is linked.
	Linked() bool
}

// failures counts the wrong passwords of one user.
type failures struct {
	count int
	until time.Time // locked until then
}

// maxFailures is how many wrong passwords in a row lock a user.
const maxFailures = 5

// Login returns a new session for the user with that name and password, or ErrLogin, also where
// nobody could decide.
func (u *Users) Login(ctx context.Context, name, password string) (Session, User, error) {
	begin := time.Now()
	user, err := u.authenticate(ctx, name, password)
	if err != nil {
		u.log.Info("login refused", "user", name, "reason", err)
		u.takeTime(ctx, begin)
		return Session{}, User{}, ErrLogin
	}
	return u.newSession(user.ID), user, nil
}

// takeTime waits until a failed login has taken its time.
func (u *Users) takeTime(ctx context.Context, begin time.Time) {
	rest := time.NewTimer(u.opts.FailTime - time.Since(begin))
	defer rest.Stop()
	select {
	case <-rest.C:
	case <-ctx.Done():
	}
}

var (
	errLocked   = errors.New("locked after wrong passwords")
	errState    = errors.New("user is not enabled")
	errNoRole   = errors.New("no linked group, or more than one")
	errNoSource = errors.New("no authenticator for the user's source")
)

func (u *Users) authenticate(ctx context.Context, name, password string) (User, error) {
	user, err := u.Named(name)
	if err != nil {
		// As much work as for a user that is known.
		if _, err := u.fits(ctx, "", password); err != nil {
			return User{}, err
		}
		return u.stranger(ctx, name, password)
	}
	locked := u.locked(user.ID)
	if user.Source == Native {
		err = u.native(ctx, user, password)
	} else if locked {
		err = errLocked // no need to ask
	} else {
		user, err = u.directory(ctx, user, password)
	}
	switch {
	case locked:
		return User{}, errLocked
	case errors.Is(err, ErrWrongPassword):
		u.countFailure(user)
		return User{}, err
	case err != nil:
		return User{}, err
	case user.State != Enabled:
		return User{}, errState
	}
	u.mu.Lock()
	delete(u.failures, user.ID)
	u.mu.Unlock()
	return user, nil
}

func (u *Users) native(ctx context.Context, user User, password string) error {
	ok, err := u.fits(ctx, user.Hash, password)
	if err == nil && !ok {
		err = ErrWrongPassword
	}
	return err
}

// directory asks the authenticator of the user's source, and takes over what it says of the user.
func (u *Users) directory(ctx context.Context, user User, password string) (User, error) {
	for _, a := range u.opts.Authenticators {
		if a.Source() != user.Source {
			continue
		}
		who, err := a.Authenticate(ctx, user.Name, password)
		if errors.Is(err, ErrUserDisabled) {
			if _, err := u.disable(user); err != nil {
				u.log.Warn("disable user", "user", user.Name, "reason", err)
			}
		}
		if err != nil {
			return user, err
		}
		return u.Reconcile(ctx, user, who)
	}
	return user, errNoSource
}

// Reconcile takes over what the directory says of a user: its state, and its role where that
// comes by linked groups. It returns the user as it is then.
func (u *Users) Reconcile(ctx context.Context, user User, who Identity) (User, error) {
	if who.Disabled {
		return u.disable(user)
	}
	role := user.Role
	if user.Linked && u.opts.Links != nil {
		r, ok, err := u.opts.Links.Role(ctx, who)
		if err != nil {
			return user, err
		}
		if !ok {
			user, err := u.disable(user)
			return user, errors.Join(err, errNoRole)
		}
		role = r
	}
	return u.Update(user.ID, func(user *User) error {
		user.Role, user.DN = role, who.DN
		if user.State == Disabled && user.DisabledBy == LDAP {
			user.State, user.DisabledBy = Enabled, ""
		}
		return nil
	})
}

// disable disables a user whom the directory disabled. Somebody who was disabled here stays that.
func (u *Users) disable(user User) (User, error) {
	return u.Update(user.ID, func(user *User) error {
		if user.State == Enabled {
			user.State, user.DisabledBy = Disabled, LDAP
		}
		return nil
	})
}

// stranger makes a user of somebody whom a directory knows and whose group is linked to a role.
func (u *Users) stranger(ctx context.Context, name, password string) (User, error) {
	if u.opts.Links == nil || !u.opts.Links.Linked() || CheckName(name) != nil {
		return User{}, ErrUnknownUser
	}
	for _, a := range u.opts.Authenticators {
		who, err := a.Authenticate(ctx, name, password)
		if err != nil {
			u.log.Debug("authenticator", "source", a.Source(), "user", name, "reason", err)
			continue
		}
		role, ok, err := u.opts.Links.Role(ctx, who)
		if err != nil {
			return User{}, err
		}
		if !ok {
			return User{}, errNoRole
		}
		return u.Add(ctx, User{Name: who.Name, First: who.First, Last: who.Last, Email: who.Email,
			Role: role, Source: a.Source(), DN: who.DN, Linked: true}, "")
	}
	return User{}, ErrUnknownUser
}

func (u *Users) locked(id string) bool {
	u.mu.RLock()
	defer u.mu.RUnlock()
	f := u.failures[id]
	return f != nil && u.opts.Now().Before(f.until)
}

func (u *Users) countFailure(user User) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f := u.failures[user.ID]
	if f == nil {
		f = &failures{}
		u.failures[user.ID] = f
	}
	if f.count++; f.count >= maxFailures {
		f.count, f.until = 0, u.opts.Now().Add(u.opts.LockTime)
		u.log.Warn("user locked after wrong passwords", "user", user.Name, "until", f.until)
	}
}

// Session is the right of one client to act as a user until it says nothing for too long.
type Session struct {
	ID      string // in the cookie
	Key     string // in a cookie and in a parameter of each request
	UserID  string
	expires time.Time
}

// The number of sessions is bounded: the oldest ends when there are too many.
const (
	maxSessions     = 1000
	maxUserSessions = 50
)

func (u *Users) newSession(userID string) Session {
	now := u.opts.Now()
	s := &Session{ID: rand.Text(), Key: sessionKey(), UserID: userID, expires: now.Add(u.opts.SessionTime)}
	u.mu.Lock()
	defer u.mu.Unlock()
	for id, old := range u.sessions {
		if !now.Before(old.expires) {
			delete(u.sessions, id)
		}
	}
	u.dropOldest(func(*Session) bool { return true }, maxSessions)
	u.dropOldest(func(old *Session) bool { return old.UserID == userID }, maxUserSessions)
	u.sessions[s.ID] = s
	return *s
}

// dropOldest makes room for one more of the sessions that match. mu is held.
func (u *Users) dropOldest(match func(*Session) bool, most int) {
	var oldest *Session
	count := 0
	for _, s := range u.sessions {
		if !match(s) {
			continue
		}
		count++
		if oldest == nil || s.expires.Before(oldest.expires) {
			oldest = s
		}
	}
	if count >= most {
		delete(u.sessions, oldest.ID)
	}
}

// sessionKey makes a key as CloudStack does: 20 random bytes.
func sessionKey() string {
	raw := make([]byte, 20)
	_, _ = io.ReadFull(rand.Reader, raw) // never fails
	return base64.RawURLEncoding.EncodeToString(raw)
}

// Resume returns the user of the session with that id and key, and prolongs it; ErrNotFound
// where there is none, or no longer.
func (u *Users) Resume(id, key string) (User, error) {
	now := u.opts.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.sessions[id]
	if s == nil || subtle.ConstantTimeCompare([]byte(s.Key), []byte(key)) != 1 {
		return User{}, ErrNotFound
	}
	user := u.byID[s.UserID]
	if !now.Before(s.expires) || user == nil || user.State != Enabled {
		delete(u.sessions, id)
		return User{}, ErrNotFound
	}
	s.expires = now.Add(u.opts.SessionTime)
	return *user, nil
}

// SessionTime is how long a session lives without a request.
func (u *Users) SessionTime() time.Duration { return u.opts.SessionTime }

// Logout ends a session. Ending it twice is no error.
func (u *Users) Logout(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.sessions, id)
}

// EndSessions ends all sessions of a user.
func (u *Users) EndSessions(userID string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for id, s := range u.sessions {
		if s.UserID == userID {
			delete(u.sessions, id)
		}
	}
}
