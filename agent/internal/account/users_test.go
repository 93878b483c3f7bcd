package account_test

import (
	"context"
	"encoding/base64"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/bcrypt"

	"vragent/agent/internal/account"
)

// memStore keeps records in memory. Its content is what a restart finds.
type memStore struct {
	mu      sync.Mutex
	records map[string][]byte
	broken  error
}

func (s *memStore) Commit(changes map[string][]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	if s.records == nil {
		s.records = map[string][]byte{}
	}
	for key, value := range changes {
		if value == nil {
			delete(s.records, key)
		} else {
			s.records[key] = slices.Clone(value)
		}
	}
	return nil
}

func (s *memStore) Each(prefix string, fn func(string, []byte) error) error {
	s.mu.Lock()
	records := maps.Clone(s.records)
	s.mu.Unlock()
	for key, value := range records {
		if strings.HasPrefix(key, prefix) {
			if err := fn(key, value); err != nil {
				return err
			}
		}
	}
	return nil
}

type fakeClock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *fakeClock { return &fakeClock{now: time.Date(2026, 11, 24, 6, 0, 0, 0, time.UTC)} }

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// open opens users on store; what opts does not say is made fit for a test.
func open(t *testing.T, opts account.Options) *account.Users {
	t.Helper()
	opts.HashCost = bcrypt.MinCost
	if opts.FailTime == 0 {
		opts.FailTime = -1
	}
	u, err := account.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func add(t *testing.T, users *account.Users, name string, role account.Role, password string) account.User {
	t.Helper()
	u, err := users.Add(t.Context(), account.User{Name: name, Role: role}, password)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestUsersSurviveARestart(t *testing.T) {
	store := &memStore{}
	users := open(t, account.Options{Store: store})
	bob := add(t, users, "Bob", account.Operator, "secret")
	eve := add(t, users, "eve", account.Admin, "")
	if bob.ID == eve.ID || len(bob.ID) != 36 {
		t.Errorf("ids %q and %q", bob.ID, eve.ID)
	}
	bob, err := users.NewKeys(bob.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{bob.APIKey, bob.SecretKey} {
		if raw, err := base64.RawURLEncoding.DecodeString(key); err != nil || len(raw) != 64 {
			t.Errorf("key %q is not 64 bytes in URL-safe base64: %v", key, err)
		}
	}
	if err := users.Remove(eve.ID); !errors.Is(err, account.ErrLastAdmin) {
		t.Errorf("Remove(last admin) = %v", err)
	}

	again := open(t, account.Options{Store: store})
	got, err := again.ByKey(bob.APIKey)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(bob, got); diff != "" {
		t.Errorf("user differs after a restart (-want +got):\n%s", diff)
	}
	if got, err := again.Named("BOB"); err != nil || got.ID != bob.ID {
		t.Errorf("Named(BOB) = %v, %v", got, err)
	}
	if _, _, err := again.Login(t.Context(), "bob", "secret"); err != nil {
		t.Errorf("Login() = %v", err)
	}
	if err := again.Remove(bob.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, account.Options{Store: store}).Get(bob.ID); !errors.Is(err, account.ErrNotFound) {
		t.Errorf("a removed user is back after a restart: %v", err)
	}
}

func TestNothingChangesWhereTheStoreFails(t *testing.T) {
	store := &memStore{}
	users := open(t, account.Options{Store: store})
	bob := add(t, users, "bob", account.Operator, "secret")
	store.broken = errors.New("no space left on device")
	if _, err := users.Add(t.Context(), account.User{Name: "eve", Role: account.Viewer}, ""); !errors.Is(err, store.broken) {
		t.Errorf("Add() = %v", err)
	}
	if _, err := users.SetState(bob.ID, account.Disabled); !errors.Is(err, store.broken) {
		t.Errorf("SetState() = %v", err)
	}
	if err := users.Remove(bob.ID); !errors.Is(err, store.broken) {
		t.Errorf("Remove() = %v", err)
	}
	if got := users.All(); len(got) != 1 || got[0].State != account.Enabled {
		t.Errorf("users are %v", got)
	}
}

func TestRefusedUsers(t *testing.T) {
	users := open(t, account.Options{Store: &memStore{}})
	add(t, users, "bob", account.Operator, "")
	other := add(t, users, "other", account.Operator, "")
	for name, tt := range map[string]struct {
		user     account.User
		password string
	}{
		"same name, other case": {account.User{Name: "BOB", Role: account.Viewer}, ""},
		"no name":               {account.User{Role: account.Viewer}, ""},
		"blanks":                {account.User{Name: " x", Role: account.Viewer}, ""},
		"line end":              {account.User{Name: "x\ny", Role: account.Viewer}, ""},
		"no role":               {account.User{Name: "x"}, ""},
		"unknown role":          {account.User{Name: "x", Role: "boss"}, ""},
		"password too long":     {account.User{Name: "x", Role: account.Viewer}, strings.Repeat("x", 73)},
	} {
		if _, err := users.Add(t.Context(), tt.user, tt.password); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := users.Update(other.ID, func(u *account.User) error { u.Name = "bob"; return nil }); !errors.Is(err, account.ErrExists) {
		t.Errorf("Update() to a name that is taken = %v", err)
	}
	if err := users.SetPassword(t.Context(), other.ID, ""); !errors.Is(err, account.ErrPassword) {
		t.Errorf("SetPassword(empty) = %v", err)
	}
}

func TestRoles(t *testing.T) {
	for _, tt := range []struct {
		role, other account.Role
		want        bool
	}{
		{account.Admin, account.Operator, true}, {account.Operator, account.Operator, true}, {account.Viewer, account.Operator, false}, {"", account.Viewer, false}, {"", "", false},
	} {
		if got := tt.role.Covers(tt.other); got != tt.want {
			t.Errorf("%q.Covers(%q) = %v", tt.role, tt.other, got)
		}
	}
}

func TestFiveWrongPasswordsLock(t *testing.T) {
	clock := newClock()
	users := open(t, account.Options{Store: &memStore{}, Now: clock.Now, LockTime: 15 * time.Minute})
	bob := add(t, users, "bob", account.Operator, "secret")
	login := func(password string) error {
		_, _, err := users.Login(t.Context(), "bob", password)
		return err
	}
	for range 4 {
		if err := login("wrong"); !errors.Is(err, account.ErrLogin) {
			t.Fatalf("Login() = %v", err)
		}
	}
	if err := login("secret"); err != nil {
		t.Errorf("after four wrong ones: %v", err)
	}
	for range 5 {
		_ = login("wrong")
	}
	if err := login("secret"); !errors.Is(err, account.ErrLogin) {
		t.Errorf("after five wrong ones: %v", err)
	}
	if got := users.All()[0].State; got != account.Locked {
		t.Errorf("shown as %v", got)
	}
	// Time, or an administrator, opens it.
	clock.add(15 * time.Minute)
	if err := login("secret"); err != nil {
		t.Errorf("after the lock's time: %v", err)
	}
	for range 5 {
		_ = login("wrong")
	}
	if _, err := users.SetState(bob.ID, account.Enabled); err != nil {
		t.Fatal(err)
	}
	if err := login("secret"); err != nil {
		t.Errorf("after enabling: %v", err)
	}
}

func TestRefusedLoginsLookAlike(t *testing.T) {
	users := open(t, account.Options{Store: &memStore{}, FailTime: time.Millisecond})
	add(t, users, "bob", account.Operator, "secret")
	keys := add(t, users, "keys", account.Operator, "")
	gone := add(t, users, "gone", account.Operator, "secret")
	if _, err := users.SetState(gone.ID, account.Disabled); err != nil {
		t.Fatal(err)
	}
	if keys.Hash != "" {
		t.Error("a user without a password has a hash")
	}
	for _, tt := range []struct{ name, password string }{
		{"bob", "wrong"}, {"bob", ""}, {"bob", strings.Repeat("x", 5000)}, {"eve", "secret"}, {"", ""}, {"keys", ""}, {"gone", "secret"}, {"x\x00y", "z"},
	} {
		_, user, err := users.Login(t.Context(), tt.name, tt.password)
		if err != account.ErrLogin || user != (account.User{}) {
			t.Errorf("Login(%q, %q) = %v, %v, want no more than ErrLogin", tt.name, tt.password, user, err)
		}
	}
}

func TestSessions(t *testing.T) {
	clock := newClock()
	users := open(t, account.Options{Store: &memStore{}, Now: clock.Now, SessionTime: 30 * time.Minute})
	bob := add(t, users, "bob", account.Operator, "secret")
	login := func() account.Session {
		t.Helper()
		s, u, err := users.Login(t.Context(), "bob", "secret")
		if err != nil || u.ID != bob.ID {
			t.Fatalf("Login() = %v, %v", u, err)
		}
		return s
	}
	alive := func(s account.Session) bool {
		u, err := users.Resume(s.ID, s.Key)
		return err == nil && u.ID == bob.ID
	}
	s := login()
	for range 3 { // each request prolongs it
		clock.add(20 * time.Minute)
		if !alive(s) {
			t.Fatal("the session ended while it was used")
		}
	}
	if _, err := users.Resume(s.ID, "x"); !errors.Is(err, account.ErrNotFound) {
		t.Errorf("Resume(wrong key) = %v", err)
	}
	clock.add(30 * time.Minute)
	if alive(s) {
		t.Error("the session did not end")
	}
	s = login()
	users.Logout(s.ID)
	if alive(s) {
		t.Error("the session outlived its logout")
	}
	ends := map[string]func() error{
		"password": func() error { return users.SetPassword(t.Context(), bob.ID, "secret") },
		"disabled": func() error { _, err := users.SetState(bob.ID, account.Disabled); return err },
	}
	for _, name := range []string{"password", "disabled"} {
		s := login()
		if err := ends[name](); err != nil {
			t.Fatal(err)
		}
		if alive(s) {
			t.Errorf("%s: the session goes on", name)
		}
	}
}

func TestSessionsAreBounded(t *testing.T) {
	clock := newClock()
	users := open(t, account.Options{Store: &memStore{}, Now: clock.Now})
	add(t, users, "bob", account.Operator, "secret")
	var first account.Session
	for i := range 51 {
		clock.add(time.Second)
		s, _, err := users.Login(t.Context(), "bob", "secret")
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = s
		}
	}
	if _, err := users.Resume(first.ID, first.Key); !errors.Is(err, account.ErrNotFound) {
		t.Errorf("the oldest of 51 sessions is alive: %v", err)
	}
}

// fakeDirectory is an authenticator whose answers a test sets.
type fakeDirectory struct {
	identity account.Identity
	err      error
	role     account.Role // of the linked group; "" where none fits
	asked    int
}

func (d *fakeDirectory) Source() string { return account.LDAP }
func (d *fakeDirectory) Linked() bool   { return true }

func (d *fakeDirectory) Authenticate(context.Context, string, string) (account.Identity, error) {
	d.asked++
	return d.identity, d.err
}

func (d *fakeDirectory) Role(context.Context, account.Identity) (account.Role, bool, error) {
	return d.role, d.role != "", nil
}

func TestDirectoryDecides(t *testing.T) {
	d := &fakeDirectory{identity: account.Identity{Name: "ann", First: "Ann", DN: "uid=ann"}, role: account.Operator}
	users := open(t, account.Options{Store: &memStore{}, Authenticators: []account.Authenticator{d}, Links: d})
	login := func() (account.User, error) {
		_, u, err := users.Login(t.Context(), "ann", "secret")
		return u, err
	}
	u, err := login()
	if err != nil || u.Role != account.Operator || u.Source != account.LDAP || !u.Linked || u.First != "Ann" {
		t.Fatalf("first login = %+v, %v", u, err)
	}
	d.role = account.Viewer
	if u, err := login(); err != nil || u.Role != account.Viewer {
		t.Errorf("after the group changed: %+v, %v", u, err)
	}
	d.role = ""
	if _, err := login(); !errors.Is(err, account.ErrLogin) {
		t.Errorf("without a group: %v", err)
	}
	if u, _ := users.Named("ann"); u.State != account.Disabled {
		t.Errorf("without a group the user is %s", u.State)
	}
	d.role = account.Viewer
	if _, err := login(); err != nil {
		t.Errorf("back in a group: %v", err)
	}
	d.err = account.ErrUserDisabled
	if _, err := login(); !errors.Is(err, account.ErrLogin) {
		t.Errorf("disabled there: %v", err)
	}
	if u, _ := users.Named("ann"); u.State != account.Disabled {
		t.Errorf("disabled there, and here %s", u.State)
	}
	d.err = nil
	if _, err := login(); err != nil {
		t.Errorf("enabled there again: %v", err)
	}
	// Who was disabled here stays that, whatever the directory says.
	if _, err := users.SetState(u.ID, account.Disabled); err != nil {
		t.Fatal(err)
	}
	if _, err := login(); !errors.Is(err, account.ErrLogin) {
		t.Errorf("disabled here: %v", err)
	}
}

func TestDirectoryIsNotAskedForNativeUsers(t *testing.T) {
	d := &fakeDirectory{identity: account.Identity{Name: "bob"}, role: account.Admin}
	users := open(t, account.Options{Store: &memStore{}, Authenticators: []account.Authenticator{d}, Links: d})
	add(t, users, "bob", account.Viewer, "secret")
	if _, _, err := users.Login(t.Context(), "bob", "of the directory"); !errors.Is(err, account.ErrLogin) || d.asked > 0 {
		t.Errorf("Login() = %v, the directory was asked %d times", err, d.asked)
	}
}

func TestUsersConcurrently(t *testing.T) {
	users := open(t, account.Options{Store: &memStore{}})
	bob := add(t, users, "bob", account.Operator, "secret")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				u, err := users.NewKeys(bob.ID)
				if err != nil {
					t.Error(err)
				}
				_, _ = users.ByKey(u.APIKey)
				_, _, _ = users.Login(t.Context(), "bob", "secret")
				users.All()
			}
		})
	}
	wg.Wait()
	got, err := users.Get(bob.ID)
	if err != nil {
		t.Fatal(err)
	}
	if by, err := users.ByKey(got.APIKey); err != nil || by.ID != bob.ID {
		t.Errorf("ByKey() = %v, %v", by, err)
	}
}
