package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"vragent/netcfg/nstest"
)

// ledger notes what a daemon has acknowledged of users and pool leases, and checks from outside that it
// holds. What was tried and not acknowledged may be so or not. One goroutine at a time works with a part
// of it.
type ledger struct {
	users  map[string]outcome
	leases map[netip.Addr]string // address -> MAC
	maybe  map[netip.Addr]string // asked for, and not answered
	next   int
}

// outcome is what a user must be.
type outcome int

const (
	unknown outcome = iota
	present
	absent
)

func newLedger() *ledger {
	return &ledger{
		users: make(map[string]outcome), leases: make(map[netip.Addr]string),
		maybe: make(map[netip.Addr]string),
	}
}

// user adds a user, or removes one that is there, and returns what the daemon says.
func (l *ledger) user(t *testing.T, r *router, remove bool) error {
	if remove {
		for name, state := range l.users {
			if state == present {
				l.users[name] = unknown
				err := r.client.RemoveUser(t.Context(), name)
				if err == nil {
					l.users[name] = absent
				}
				return err
			}
		}
	}
	l.next++
	name := fmt.Sprintf("user-%d", l.next)
	l.users[name] = unknown
	_, err := r.client.AddUser(t.Context(), name, "viewer")
	if err == nil {
		l.users[name] = present
	}
	return err
}

// lease gets a lease for a new MAC. An acknowledged address that somebody else has is an error.
func (l *ledger) lease(s *station, n int, wait time.Duration) error {
	mac := fmt.Sprintf("02:00:4c:70:%02x:%02x", n>>8, n&255)
	address, err := s.lease(mac, wait)
	if address.IsValid() && err != nil {
		l.maybe[address] = mac
	}
	if err != nil {
		return err
	}
	if holder, taken := l.leases[address]; taken && holder != mac {
		return fmt.Errorf("%w: %s is %s's and was given to %s", errTwice, address, holder, mac)
	}
	l.leases[address] = mac
	delete(l.maybe, address)
	return nil
}

// release ends a lease that was acknowledged. Whether it has ended is not known until that is acknowledged.
func (l *ledger) release(ctx context.Context, r *router) error {
	for address, mac := range l.leases {
		delete(l.leases, address)
		l.maybe[address] = mac
		err := r.client.ReleaseLease(ctx, "", address)
		if err == nil {
			delete(l.maybe, address)
		}
		return err
	}
	return nil
}

var errTwice = errors.New("an address was given twice")

// check compares what the daemon tells with what it has acknowledged.
func (l *ledger) check(t *testing.T, r *router) {
	t.Helper()
	l.checkUsers(t, r)
	l.checkLeases(t, r)
}

func (l *ledger) checkUsers(t *testing.T, r *router) {
	t.Helper()
	users, err := r.client.Users(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, u := range users {
		names = append(names, u.Name)
		if l.users[u.Name] == absent {
			t.Errorf("user %s was removed and is back", u.Name)
		}
		if l.users[u.Name] == present && !u.Keys {
			t.Errorf("user %s has lost its keys", u.Name)
		}
	}
	for name, state := range l.users {
		if state == present && !slices.Contains(names, name) {
			t.Errorf("user %s was acknowledged and is lost", name)
		}
	}
}

func (l *ledger) checkLeases(t *testing.T, r *router) {
	t.Helper()
	leases, err := r.client.Leases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bound := make(map[string]string)
	for _, lease := range leases {
		if !lease.Pool || lease.State != "bound" {
			continue
		}
		bound[lease.IPv4] = lease.MAC
		address := netip.MustParseAddr(lease.IPv4)
		if mac := l.leases[address]; mac != lease.MAC && l.maybe[address] != lease.MAC {
			t.Errorf("%s is bound to %s; acknowledged was %q", lease.IPv4, lease.MAC, mac)
		}
	}
	for address, mac := range l.leases {
		if bound[address.String()] != mac {
			t.Errorf("the lease of %s was acknowledged to %s and is %q's", address, mac, bound[address.String()])
		}
	}
}

// untilRefused makes changes until one is refused, and returns the reason. Every one before is in the
// ledger.
func untilRefused(t *testing.T, what string, change func() error) string {
	t.Helper()
	const most = 5000 // what a file has begun may still take
	for range most {
		if err := change(); err != nil {
			if errors.Is(err, errTwice) {
				t.Error(err)
			}
			return err.Error()
		}
	}
	t.Errorf("%s: %d changes were acknowledged and none refused", what, most)
	return ""
}

// eventually makes a change until it is acknowledged.
func (r *router) eventually(t *testing.T, what string, change func() error) {
	t.Helper()
	var last error
	nstest.Poll(t, waitTime, what, func() bool {
		last = change()
		if last != nil && errors.Is(last, errTwice) {
			t.Fatal(last)
		}
		return last == nil
	})
}

// speaks checks a reason.
func speaks(t *testing.T, what, got, want string) {
	t.Helper()
	if !strings.Contains(got, want) {
		t.Errorf("%s: %q, want %q in it", what, got, want)
	}
}
