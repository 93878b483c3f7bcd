package account

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
)

var (
	// ErrNotFound is returned for a user, session or LDAP server that does not exist.
	ErrNotFound = errors.New("not found")
	// ErrExists is returned for a name that another user has.
	ErrExists = errors.New("exists")
	// ErrLastAdmin is returned for a change that would leave no administrator.
	ErrLastAdmin = errors.New("the last enabled administrator cannot be removed, disabled or locked")
)

// Store keeps records by key. It is safe for concurrent use.
type Store interface {
	// Commit makes all changes durable together before it returns, or none. A nil value deletes.
	Commit(changes map[string][]byte) error
	// Each calls fn for every record whose key starts with prefix and stops at fn's first error.
	Each(prefix string, fn func(key string, value []byte) error) error
}

// State tells whether a user may use the API.
type State string

// The states of a user. Disabled and locked users have neither sessions nor working keys.
const (
	Enabled  State = "enabled"
	Disabled State = "disabled"
	Locked   State = "locked"
)

// The sources of users: which authenticator decides on their passwords.
const (
	Native = "native"
	LDAP   = "ldap"
)

// User is one user. The copies that Users hands out are the caller's.
type User struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	First     string    `json:"first,omitempty"`
	Last      string    `json:"last,omitempty"`
	Email     string    `json:"email,omitempty"`
	Timezone  string    `json:"timezone,omitempty"`
	Role      Role      `json:"role"`
	State     State     `json:"state"`
	Source    string    `json:"source"`
	Created   time.Time `json:"created"`
	APIKey    string    `json:"api_key,omitempty"`
	SecretKey string    `json:"secret_key,omitempty"` // in clear: a signature cannot be checked without it

	// Hash is of the password; empty for a user who has none and works with keys alone.
	Hash string `json:"hash,omitempty"`
	// DN is the user's entry, of a user whose source is LDAP.
	DN string `json:"dn,omitempty"`
	// Linked is true where the user came by a linked group, which then decides on the role.
	Linked bool `json:"linked,omitempty"`
	// DisabledBy is LDAP where that directory disabled the user and may enable it again.
	DisabledBy string `json:"disabled_by,omitempty"`
}

// Options are the settings of Users.
type Options struct {
	Store Store
	// Authenticators decide beside the passwords kept here, in this order for a name that is
	// not known; a known user is asked of the authenticator of its source only.
	Authenticators []Authenticator
	// Links maps groups of a directory to roles for users who log in for the first time. May be nil.
	Links Links
	// HashCost is bcrypt's; 0 means 11, some 100 ms of a small router.
	HashCost int
	// FailTime is how long a failed login takes at least, so that its time tells nothing of why.
	// 0 means 1 s; negative means no such time.
	FailTime time.Duration
	// SessionTime is how long a session lives without a request; 0 means 30 minutes.
	SessionTime time.Duration
	// LockTime is how long five wrong passwords lock a user's login; 0 means 15 minutes.
	LockTime time.Duration
	Now      func() time.Time // nil means time.Now
	Log      *slog.Logger     // nil discards
}

// Users are the users of the API. All methods are safe for concurrent use; what changes a user is
// durable when it returns.
type Users struct {
	opts Options
	log  *slog.Logger

	hashing chan struct{} // holds a token for each password that may be hashed at once
	// dummy returns a hash that no password fits. It is made at the first login: hashing takes a good
	// part of what a start may take.
	dummy func() (string, error)

	writing sync.Mutex // held by whoever changes users, across the Store's commit

	mu       sync.RWMutex // guards what follows; never held across I/O
	byID     map[string]*User
	byName   map[string]*User
	byKey    map[string]*User
	failures map[string]*failures // by user id
	sessions map[string]*Session  // by session id
}

// UserPrefix begins the keys of users in a Store; those of LDAP servers and links begin otherwise.
const UserPrefix = "user/"

// Open reads the users from the store.
func Open(opts Options) (*Users, error) {
	opts.HashCost = cmp.Or(opts.HashCost, 11)
	opts.FailTime = cmp.Or(opts.FailTime, time.Second)
	opts.SessionTime = cmp.Or(opts.SessionTime, 30*time.Minute)
	opts.LockTime = cmp.Or(opts.LockTime, 15*time.Minute)
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	u := &Users{
		opts:     opts,
		log:      opts.Log,
		hashing:  make(chan struct{}, 2),
		byID:     map[string]*User{},
		byName:   map[string]*User{},
		byKey:    map[string]*User{},
		failures: map[string]*failures{},
		sessions: map[string]*Session{},
	}
	u.dummy = sync.OnceValues(func() (string, error) { return hashPassword(rand.Text(), opts.HashCost) })
	err := opts.Store.Each(UserPrefix, func(key string, value []byte) error {
		var user User
		if err := json.Unmarshal(value, &user); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		u.index(&user)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("users: %w", err)
	}
	return u, nil
}

// index puts user into the maps in place of the one with its id. mu is held, or u is new.
func (u *Users) index(user *User) {
	u.forget(user.ID)
	u.byID[user.ID] = user
	u.byName[foldName(user.Name)] = user
	if user.APIKey != "" {
		u.byKey[user.APIKey] = user
	}
}

func (u *Users) forget(id string) {
	old := u.byID[id]
	if old == nil {
		return
	}
	delete(u.byID, id)
	delete(u.byName, foldName(old.Name))
	delete(u.byKey, old.APIKey)
}

// foldName is what user names are told apart by: directories do not regard case.
func foldName(name string) string { return strings.ToLower(name) }

// Get returns the user of that id, or ErrNotFound.
func (u *Users) Get(id string) (User, error) {
	u.mu.RLock()
	defer u.mu.RUnlock()
	if user := u.byID[id]; user != nil {
		return *user, nil
	}
	return User{}, fmt.Errorf("user %q: %w", id, ErrNotFound)
}

// Named returns the user of that name, or ErrNotFound.
func (u *Users) Named(name string) (User, error) {
	u.mu.RLock()
	defer u.mu.RUnlock()
	if user := u.byName[foldName(name)]; user != nil {
		return *user, nil
	}
	return User{}, fmt.Errorf("user %q: %w", name, ErrNotFound)
}

// ByKey returns the user whose API key that is, whatever its state, or ErrNotFound.
func (u *Users) ByKey(key string) (User, error) {
	u.mu.RLock()
	defer u.mu.RUnlock()
	if user := u.byKey[key]; user != nil && key != "" {
		return *user, nil
	}
	return User{}, fmt.Errorf("API key: %w", ErrNotFound)
}

// All returns all users by name. Those whose login five wrong passwords have locked are shown as
// locked.
func (u *Users) All() []User {
	now := u.opts.Now()
	u.mu.RLock()
	defer u.mu.RUnlock()
	all := make([]User, 0, len(u.byID))
	for _, user := range u.byID {
		shown := *user
		if f := u.failures[user.ID]; f != nil && now.Before(f.until) && shown.State == Enabled {
			shown.State = Locked
		}
		all = append(all, shown)
	}
	slices.SortFunc(all, func(a, b User) int { return strings.Compare(foldName(a.Name), foldName(b.Name)) })
	return all
}

// Add makes a user of what template says: name, role, source and what else it has; id, state and
// time are set here. The password may be empty for a user who is to have keys only, or whose
// source is a directory.
func (u *Users) Add(ctx context.Context, template User, password string) (User, error) {
	user := template
	if err := CheckName(user.Name); err != nil {
		return User{}, err
	}
	if _, err := ParseRole(string(user.Role)); err != nil {
		return User{}, err
	}
	if password != "" {
		hash, err := u.hash(ctx, password)
		if err != nil {
			return User{}, err
		}
		user.Hash = hash
	}
	user.ID, user.State, user.Created = NewID(), Enabled, u.opts.Now()
	user.Source = cmp.Or(user.Source, Native)

	u.writing.Lock()
	defer u.writing.Unlock()
	if old, err := u.Named(user.Name); err == nil {
		return User{}, fmt.Errorf("user %q: %w", old.Name, ErrExists)
	}
	return user, u.save(&user)
}

// Update changes the user of that id as change says. The name stays unique, and at least one
// administrator stays enabled; else nothing is changed.
func (u *Users) Update(id string, change func(*User) error) (User, error) {
	u.writing.Lock()
	defer u.writing.Unlock()
	return u.update(id, change)
}

func (u *Users) update(id string, change func(*User) error) (User, error) {
	old, err := u.Get(id)
	if err != nil {
		return User{}, err
	}
	user := old
	if err := change(&user); err != nil {
		return User{}, err
	}
	if user == old {
		return user, nil
	}
	if err := CheckName(user.Name); err != nil {
		return User{}, err
	}
	if other, err := u.Named(user.Name); err == nil && other.ID != id {
		return User{}, fmt.Errorf("user %q: %w", other.Name, ErrExists)
	}
	if other, err := u.ByKey(user.APIKey); err == nil && other.ID != id {
		return User{}, fmt.Errorf("API key: %w", ErrExists)
	}
	if u.lastAdmin(old) && (user.Role != Admin || user.State != Enabled) {
		return User{}, ErrLastAdmin
	}
	if err := u.save(&user); err != nil {
		return User{}, err
	}
	if user.State != Enabled || user.Hash != old.Hash {
		u.EndSessions(id)
	}
	return user, nil
}

// SetState enables, disables or locks a user. Enabling also forgives wrong passwords.
func (u *Users) SetState(id string, state State) (User, error) {
	user, err := u.Update(id, func(user *User) error {
		user.State, user.DisabledBy = state, ""
		return nil
	})
	if err == nil && state == Enabled {
		u.mu.Lock()
		delete(u.failures, id)
		u.mu.Unlock()
	}
	return user, err
}

// SetPassword gives a user a new password and ends its sessions.
func (u *Users) SetPassword(ctx context.Context, id, password string) error {
	hash, err := u.hash(ctx, password)
	if err != nil {
		return err
	}
	_, err = u.Update(id, func(user *User) error {
		if user.Source != Native {
			return fmt.Errorf("user %q: the password is kept by %s", user.Name, user.Source)
		}
		user.Hash = hash
		return nil
	})
	return err
}

// CheckPassword tells whether that is the password of a native user: nil, or ErrWrongPassword.
// Wrong ones count as they do at a login.
func (u *Users) CheckPassword(ctx context.Context, id, password string) error {
	user, err := u.Get(id)
	if err != nil {
		return err
	}
	if u.locked(id) {
		return errLocked
	}
	err = u.native(ctx, user, password)
	if errors.Is(err, ErrWrongPassword) {
		u.countFailure(user)
	}
	return err
}

// Removable tells whether the user may be disabled or removed: ErrLastAdmin, or ErrNotFound.
func (u *Users) Removable(id string) error {
	user, err := u.Get(id)
	if err == nil && u.lastAdmin(user) {
		err = ErrLastAdmin
	}
	return err
}

// NewKeys gives a user new API keys; the old ones work no longer.
func (u *Users) NewKeys(id string) (User, error) {
	return u.Update(id, func(user *User) error {
		user.APIKey, user.SecretKey = newKey(), newKey()
		return nil
	})
}

// Remove deletes a user and ends its sessions.
func (u *Users) Remove(id string) error {
	u.writing.Lock()
	defer u.writing.Unlock()
	user, err := u.Get(id)
	if err != nil {
		return err
	}
	if u.lastAdmin(user) {
		return ErrLastAdmin
	}
	if err := u.opts.Store.Commit(map[string][]byte{UserPrefix + id: nil}); err != nil {
		return fmt.Errorf("user %q: %w", user.Name, err)
	}
	u.mu.Lock()
	u.forget(id)
	delete(u.failures, id)
	u.mu.Unlock()
	u.EndSessions(id)
	return nil
}

// lastAdmin tells whether user is the only enabled administrator.
func (u *Users) lastAdmin(user User) bool {
	if user.Role != Admin || user.State != Enabled {
		return false
	}
	u.mu.RLock()
	defer u.mu.RUnlock()
	for _, other := range u.byID {
		if other.ID != user.ID && other.Role == Admin && other.State == Enabled {
			return false
		}
	}
	return true
}

// save makes user durable and shows it to readers. writing is held.
func (u *Users) save(user *User) error {
	value, err := json.Marshal(user)
	if err != nil {
		return err
	}
	if err := u.opts.Store.Commit(map[string][]byte{UserPrefix + user.ID: value}); err != nil {
		return fmt.Errorf("user %q: %w", user.Name, err)
	}
	kept := *user
	u.mu.Lock()
	u.index(&kept)
	u.mu.Unlock()
	return nil
}

// maxName bounds a user's name, as CloudStack does.
const maxName = 255

// CheckName tells whether a user may be called that.
func CheckName(name string) error {
	switch {
	case strings.TrimSpace(name) != name || name == "":
		return fmt.Errorf("user name %q: want a name without blanks around it", name)
	case len(name) > maxName:
		return fmt.Errorf("user name of %d bytes: want %d at most", len(name), maxName)
	case strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("user name %q: control characters", name)
	}
	return nil
}

// newKey makes a key as CloudStack does: 64 random bytes, URL-safe base64 without padding.
func newKey() string {
	raw := make([]byte, 64)
	_, _ = io.ReadFull(rand.Reader, raw) // never fails
	return base64.RawURLEncoding.EncodeToString(raw)
}

// NewID makes a random id: a UUID of version 4, RFC 9562 section 5.4.
func NewID() string {
	var b [16]byte
	_, _ = io.ReadFull(rand.Reader, b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
