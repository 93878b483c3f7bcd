package account

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// Providers of LDAP differ in the names of attributes and in how nested groups are asked for.
const (
	OpenLDAP        = "openldap"
	ActiveDirectory = "microsoftad"
)

// How a connection to a server is protected.
const (
	StartTLS = "starttls"
	LDAPS    = "ldaps"
	Clear    = "none"
)

// LDAPServer is one server with its settings. Several servers hold the same users; the next one is
// asked where one does not answer.
type LDAPServer struct {
	ID           string    `json:"id"`
	Added        time.Time `json:"added"` // the order in which servers are asked
	Host         string    `json:"host"`
	Port         int       `json:"port"`
	Security     string    `json:"security"`
	CA           string    `json:"ca,omitempty"` // PEM; empty: what the system trusts
	BaseDN       string    `json:"base_dn"`
	BindDN       string    `json:"bind_dn,omitempty"` // empty: searches are anonymous
	BindPassword string    `json:"bind_password,omitempty"`
	Provider     string    `json:"provider"`

	UserObject  string `json:"user_object"` // object classes
	GroupObject string `json:"group_object"`
	Username    string `json:"username"` // attributes
	Email       string `json:"email"`
	First       string `json:"first"`
	Last        string `json:"last"`
	Member      string `json:"member"` // of a group: its members' DNs
}

// WithDefaults returns s with what it does not name: first from other, a server that is known
// already (nil: none), then what its provider usually has.
func (s LDAPServer) WithDefaults(other *LDAPServer) LDAPServer {
	if other != nil && s.BaseDN == "" {
		id, host, port, security, added := s.ID, s.Host, s.Port, s.Security, s.Added
		s = *other
		s.ID, s.Host, s.Port, s.Added = id, host, port, added
		s.Security = cmp.Or(security, other.Security)
	}
	s.Port = cmp.Or(s.Port, 389)
	if s.Security == "" {
		s.Security = StartTLS
		if s.Port == 636 {
			s.Security = LDAPS
		}
	}
	s.Provider = cmp.Or(s.Provider, OpenLDAP)
	user, group, username, member := "inetOrgPerson", "groupOfUniqueNames", "uid", "uniqueMember"
	if s.Provider == ActiveDirectory {
		user, group, username, member = "user", "group", "sAMAccountName", "member"
	}
	s.UserObject = cmp.Or(s.UserObject, user)
	s.GroupObject = cmp.Or(s.GroupObject, group)
	s.Username = cmp.Or(s.Username, username)
	s.Email = cmp.Or(s.Email, "mail")
	s.First = cmp.Or(s.First, "givenName")
	s.Last = cmp.Or(s.Last, "sn")
	s.Member = cmp.Or(s.Member, member)
	return s
}

// Validate reports everything that is wrong with s, as ErrSetting.
func (s LDAPServer) Validate() error {
	var errs []error
	want := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	want(s.Host != "", "hostname: missing")
	want(s.Port > 0 && s.Port < 65536, "port %d: want 1 to 65535", s.Port)
	want(s.BaseDN != "", "basedn: missing")
	want(slices.Contains([]string{StartTLS, LDAPS, Clear}, s.Security), "security %q: want starttls, ldaps or none", s.Security)
	want(slices.Contains([]string{OpenLDAP, ActiveDirectory}, s.Provider), "provider %q: want openldap or microsoftad", s.Provider)
	want(s.BindDN == "" || s.BindPassword != "", "bindpassword: missing for %q; an empty one would be an anonymous bind", s.BindDN)
	for _, dn := range []struct{ name, value string }{{"basedn", s.BaseDN}, {"binddn", s.BindDN}} {
		_, err := ldap.ParseDN(dn.value)
		want(err == nil, "%s %q: %v", dn.name, dn.value, err)
	}
	for _, a := range []string{s.UserObject, s.GroupObject, s.Username, s.Email, s.First, s.Last, s.Member} {
		want(attribute(a), "%q: not the name of an attribute or object class", a)
	}
	if s.CA != "" {
		want(x509.NewCertPool().AppendCertsFromPEM([]byte(s.CA)), "cacertificate: no PEM certificate in it")
	}
	if len(errs) > 0 {
		return fmt.Errorf("%w: %w", ErrSetting, errors.Join(errs...))
	}
	return nil
}

// attribute tells whether s is an attribute description or object class, RFC 4512 section 1.4:
// these go into filters as they are.
func attribute(s string) bool {
	if s == "" {
		return false
	}
	return !strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.'
	})
}

// The kinds of links.
const (
	LinkGroup = "GROUP"
	LinkOU    = "OU"
)

// Link gives the users of a group, or those below an organisational unit, a role.
type Link struct {
	Role Role   `json:"role"`
	DN   string `json:"dn"`
	Kind string `json:"kind"`
}

// Directory is the LDAP authenticator: its servers and links are kept durable in a Store. All
// methods are safe for concurrent use.
type Directory struct {
	store Store
	log   *slog.Logger
	now   func() time.Time

	writing sync.Mutex // held across the Store's commit

	mu      sync.RWMutex // guards what follows; never held across I/O
	servers []LDAPServer // in the order in which they were added
	links   []Link       // by role
	down    map[string]time.Time
}

var (
	_ Authenticator = (*Directory)(nil)
	_ Links         = (*Directory)(nil)
)

const (
	serverPrefix = "ldap/"
	linkPrefix   = "link/"

	dialTime   = 2 * time.Second
	searchTime = 5 * time.Second
	// downTime is how long a server that did not answer is asked after the others.
	downTime = 30 * time.Second
	pageSize = 500
)

// OpenDirectory reads servers and links from the store. A nil log discards.
func OpenDirectory(store Store, log *slog.Logger) (*Directory, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	d := &Directory{store: store, log: log, now: time.Now, down: map[string]time.Time{}}
	err := errors.Join(
		store.Each(serverPrefix, func(key string, value []byte) error {
			var s LDAPServer
			if err := json.Unmarshal(value, &s); err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
			d.servers = append(d.servers, s)
			return nil
		}),
		store.Each(linkPrefix, func(key string, value []byte) error {
			var l Link
			if err := json.Unmarshal(value, &l); err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
			d.links = append(d.links, l)
			return nil
		}))
	if err != nil {
		return nil, fmt.Errorf("ldap: %w", err)
	}
	slices.SortFunc(d.servers, func(a, b LDAPServer) int { return a.Added.Compare(b.Added) })
	return d, nil
}

// Source implements Authenticator.
func (d *Directory) Source() string { return LDAP }

// Servers returns the servers in the order in which they are asked.
func (d *Directory) Servers() []LDAPServer {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return slices.Clone(d.servers)
}

// AddServer takes a server in after it has answered: with its settings completed as WithDefaults
// does from the first server known, it must let the bind DN in and hold the base DN.
func (d *Directory) AddServer(ctx context.Context, s LDAPServer) (LDAPServer, error) {
	d.writing.Lock()
	defer d.writing.Unlock()
	var first *LDAPServer
	known := d.Servers()
	if len(known) > 0 {
		first = &known[0]
	}
	s = s.WithDefaults(first)
	s.ID, s.Added = NewID(), d.now()
	if err := s.Validate(); err != nil {
		return LDAPServer{}, err
	}
	for _, other := range known {
		if strings.EqualFold(other.Host, s.Host) && other.Port == s.Port {
			return LDAPServer{}, fmt.Errorf("%s:%d: %w", s.Host, s.Port, ErrExists)
		}
	}
	if err := s.try(ctx); err != nil {
		return LDAPServer{}, fmt.Errorf("%w %s:%d: %w", ErrServer, s.Host, s.Port, err)
	}
	value, err := json.Marshal(s)
	if err != nil {
		return LDAPServer{}, err
	}
	if err := d.store.Commit(map[string][]byte{serverPrefix + s.ID: value}); err != nil {
		return LDAPServer{}, err
	}
	d.mu.Lock()
	d.servers = append(slices.Clone(d.servers), s)
	d.mu.Unlock()
	return s, nil
}

// try reads the base entry.
func (s LDAPServer) try(ctx context.Context) error {
	conn, err := s.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Search(s.request(s.BaseDN, ldap.ScopeBaseObject, "(objectClass=*)", 1, "1.1"))
	if err != nil {
		return fmt.Errorf("base DN %q: %w", s.BaseDN, err)
	}
	return nil
}

// RemoveServer forgets the server of that id and returns it, or ErrNotFound.
func (d *Directory) RemoveServer(id string) (LDAPServer, error) {
	d.writing.Lock()
	defer d.writing.Unlock()
	servers := d.Servers()
	i := slices.IndexFunc(servers, func(s LDAPServer) bool { return s.ID == id })
	if i < 0 {
		return LDAPServer{}, fmt.Errorf("LDAP server %q: %w", id, ErrNotFound)
	}
	removed := servers[i]
	if err := d.store.Commit(map[string][]byte{serverPrefix + id: nil}); err != nil {
		return LDAPServer{}, err
	}
	d.mu.Lock()
	d.servers = slices.Delete(servers, i, i+1)
	delete(d.down, id)
	d.mu.Unlock()
	return removed, nil
}

// Links returns all links.
func (d *Directory) Links() []Link {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return slices.Clone(d.links)
}

// Linked implements Links.
func (d *Directory) Linked() bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return len(d.links) > 0
}

// SetLink links a group or unit to the role, in place of the one that was linked to it. A link
// without a DN removes it.
func (d *Directory) SetLink(l Link) error {
	if _, err := ldap.ParseDN(l.DN); err != nil {
		return fmt.Errorf("%w: DN %q: %w", ErrSetting, l.DN, err)
	}
	if l.Kind != LinkGroup && l.Kind != LinkOU {
		return fmt.Errorf("%w: type %q: want GROUP or OU", ErrSetting, l.Kind)
	}
	d.writing.Lock()
	defer d.writing.Unlock()
	var value []byte
	links := slices.DeleteFunc(d.Links(), func(old Link) bool { return old.Role == l.Role })
	if l.DN != "" {
		var err error
		if value, err = json.Marshal(l); err != nil {
			return err
		}
		links = append(links, l)
	}
	if err := d.store.Commit(map[string][]byte{linkPrefix + string(l.Role): value}); err != nil {
		return err
	}
	d.mu.Lock()
	d.links = links
	d.mu.Unlock()
	return nil
}

// Role implements Links: a user has a role where exactly one link fits.
func (d *Directory) Role(ctx context.Context, who Identity) (Role, bool, error) {
	var roles []Role
	err := d.ask(ctx, func(conn *ldap.Conn, s LDAPServer) error {
		roles = nil
		for _, l := range d.Links() {
			ok, err := s.fits(conn, l, who.DN)
			if err != nil {
				return fmt.Errorf("%s %q: %w", strings.ToLower(l.Kind), l.DN, err)
			}
			if ok {
				roles = append(roles, l.Role)
			}
		}
		return nil
	})
	if err != nil || len(roles) != 1 {
		return "", false, err
	}
	return roles[0], true, nil
}

// fits tells whether the user at dn is in the linked group, nested groups of Active Directory
// included, or below the linked unit.
func (s LDAPServer) fits(conn *ldap.Conn, l Link, dn string) (bool, error) {
	if l.Kind == LinkOU {
		unit, err := ldap.ParseDN(l.DN)
		if err != nil {
			return false, err
		}
		user, err := ldap.ParseDN(dn)
		return err == nil && unit.AncestorOfFold(user), err
	}
	base, filter := l.DN, fmt.Sprintf("(&(objectClass=%s)(%s=%s))", s.GroupObject, s.Member, ldap.EscapeFilter(dn))
	if s.Provider == ActiveDirectory {
		// The matching rule LDAP_MATCHING_RULE_IN_CHAIN follows nested groups.
		base, filter = dn, fmt.Sprintf("(memberOf:1.2.840.113556.1.4.1941:=%s)", ldap.EscapeFilter(l.DN))
	}
	res, err := conn.Search(s.request(base, ldap.ScopeBaseObject, filter, 1, "1.1"))
	if ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject) {
		return false, nil
	}
	return err == nil && len(res.Entries) == 1, err
}

// Authenticate implements Authenticator: it finds the name's entry and binds as it.
func (d *Directory) Authenticate(ctx context.Context, name, password string) (Identity, error) {
	if password == "" {
		return Identity{}, ErrWrongPassword // it would be an anonymous bind, which succeeds
	}
	var who Identity
	err := d.ask(ctx, func(conn *ldap.Conn, s LDAPServer) error {
		filter := fmt.Sprintf("(&(objectClass=%s)(%s=%s))", s.UserObject, s.Username, ldap.EscapeFilter(name))
		res, err := conn.Search(s.request(s.BaseDN, ldap.ScopeWholeSubtree, filter, 2, s.attributes()...))
		if err != nil && !ldap.IsErrorWithCode(err, ldap.LDAPResultSizeLimitExceeded) {
			return fmt.Errorf("search %q: %w", name, err)
		}
		switch len(res.Entries) {
		case 0:
			return ErrUnknownUser
		case 1:
		default:
			return fmt.Errorf("%q is the name of several entries", name)
		}
		who = s.identity(res.Entries[0])
		if who.Disabled {
			return ErrUserDisabled
		}
		err = conn.Bind(who.DN, password)
		if ldap.IsErrorWithCode(err, ldap.LDAPResultInvalidCredentials) {
			if strings.Contains(err.Error(), "data 533") { // Active Directory: the account is disabled
				return ErrUserDisabled
			}
			return ErrWrongPassword
		}
		if err != nil {
			return fmt.Errorf("bind %q: %w", who.DN, err)
		}
		return nil
	})
	if err != nil {
		return Identity{}, err
	}
	return who, nil
}

// Entry returns the user at dn, or ErrUnknownUser where it is gone.
func (d *Directory) Entry(ctx context.Context, dn string) (Identity, error) {
	var who Identity
	err := d.ask(ctx, func(conn *ldap.Conn, s LDAPServer) error {
		res, err := conn.Search(s.request(dn, ldap.ScopeBaseObject, "(objectClass=*)", 1, s.attributes()...))
		switch {
		case ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject), err == nil && len(res.Entries) == 0:
			return ErrUnknownUser
		case err != nil:
			return fmt.Errorf("read %q: %w", dn, err)
		}
		who = s.identity(res.Entries[0])
		return nil
	})
	return who, err
}

// List returns the users of the directory, of one group only where that is not empty, by name.
func (d *Directory) List(ctx context.Context, group string) ([]Identity, error) {
	var all []Identity
	err := d.ask(ctx, func(conn *ldap.Conn, s LDAPServer) error {
		all = nil
		filter := fmt.Sprintf("(&(objectClass=%s)(%s=*))", s.UserObject, s.Username)
		res, err := conn.SearchWithPaging(s.request(s.BaseDN, ldap.ScopeWholeSubtree, filter, 0, s.attributes()...), pageSize)
		if err != nil {
			return fmt.Errorf("search users: %w", err)
		}
		for _, e := range res.Entries {
			who := s.identity(e)
			if group != "" {
				ok, err := s.fits(conn, Link{DN: group, Kind: LinkGroup}, who.DN)
				if err != nil {
					return fmt.Errorf("group %q: %w", group, err)
				}
				if !ok {
					continue
				}
			}
			all = append(all, who)
		}
		return nil
	})
	slices.SortFunc(all, func(a, b Identity) int { return strings.Compare(foldName(a.Name), foldName(b.Name)) })
	return all, err
}

// ask calls fn with a connection to the first server that answers, bound as the search user. A
// server that breaks off is treated as one that does not answer.
func (d *Directory) ask(ctx context.Context, fn func(*ldap.Conn, LDAPServer) error) error {
	servers := d.preferred()
	if len(servers) == 0 {
		return errors.New("no LDAP server is configured")
	}
	var errs []error
	for _, s := range servers {
		err := s.session(ctx, fn)
		if !errors.Is(err, ErrServer) {
			return err
		}
		d.log.Warn("LDAP server does not answer", "server", net.JoinHostPort(s.Host, strconv.Itoa(s.Port)), "reason", err)
		d.mu.Lock()
		d.down[s.ID] = d.now().Add(downTime)
		d.mu.Unlock()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// preferred returns the servers, those that did not answer lately last.
func (d *Directory) preferred() []LDAPServer {
	servers, now := d.Servers(), d.now()
	d.mu.RLock()
	defer d.mu.RUnlock()
	slices.SortStableFunc(servers, func(a, b LDAPServer) int {
		isDown := func(s LDAPServer) int {
			if now.Before(d.down[s.ID]) {
				return 1
			}
			return 0
		}
		return isDown(a) - isDown(b)
	})
	return servers
}

var (
	// ErrServer is returned where a server does not answer, or not as it should. Another server
	// may do better.
	ErrServer = errors.New("LDAP server")
	// ErrSetting is returned for settings that cannot be.
	ErrSetting = errors.New("setting")
)

func (s LDAPServer) session(ctx context.Context, fn func(*ldap.Conn, LDAPServer) error) error {
	conn, err := s.dial(ctx)
	if err != nil {
		return fmt.Errorf("%w %s: %w", ErrServer, s.Host, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	err = fn(conn, s)
	for _, code := range []uint16{ldap.ErrorNetwork, ldap.LDAPResultUnavailable, ldap.LDAPResultBusy, ldap.LDAPResultTimeLimitExceeded} {
		if ldap.IsErrorWithCode(err, code) {
			return fmt.Errorf("%w %s: %w", ErrServer, s.Host, err)
		}
	}
	return err
}

// dial connects, protects the connection and binds as the search user.
func (s LDAPServer) dial(ctx context.Context) (*ldap.Conn, error) {
	address := net.JoinHostPort(s.Host, strconv.Itoa(s.Port))
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	// A server that accepts and then says nothing holds nobody up.
	if err := raw.SetDeadline(time.Now().Add(dialTime)); err != nil {
		_ = raw.Close()
		return nil, err
	}
	config, err := s.tls()
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	if s.Security == LDAPS {
		protected := tls.Client(raw, config)
		if err := protected.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return nil, err
		}
		raw = protected
	}
	conn := ldap.NewConn(raw, s.Security == LDAPS)
	conn.SetTimeout(searchTime)
	conn.Start()
	if s.Security == StartTLS {
		if err := conn.StartTLS(config); err != nil {
			_ = conn.Close()
			return nil, fmt.Errorf("starttls: %w", err)
		}
	}
	if s.BindDN != "" {
		if err := conn.Bind(s.BindDN, s.BindPassword); err != nil {
			_ = conn.Close()
			return nil, fmt.Errorf("bind %q: %w", s.BindDN, err)
		}
	}
	if err := raw.SetDeadline(time.Time{}); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

func (s LDAPServer) tls() (*tls.Config, error) {
	config := &tls.Config{ServerName: s.Host, MinVersion: tls.VersionTLS12}
	if s.CA != "" {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM([]byte(s.CA)) {
			return nil, errors.New("no certificate in the CA")
		}
	}
	return config, nil
}

func (s LDAPServer) request(base string, scope int, filter string, limit int, attributes ...string) *ldap.SearchRequest {
	return ldap.NewSearchRequest(base, scope, ldap.NeverDerefAliases, limit, int(searchTime/time.Second), false, filter, attributes, nil)
}

// Attributes that tell that an entry may not log in: of Active Directory, of OpenLDAP's password
// policy (draft-behera-ldap-password-policy, 5.3.3) and of 389 Directory Server.
const (
	attrControl = "userAccountControl"
	attrLocked  = "pwdAccountLockedTime"
	attrNSLock  = "nsAccountLock"
)

func (s LDAPServer) attributes() []string {
	return []string{s.Username, s.Email, s.First, s.Last, attrControl, attrLocked, attrNSLock}
}

func (s LDAPServer) identity(e *ldap.Entry) Identity {
	return Identity{
		Name:  e.GetEqualFoldAttributeValue(s.Username),
		First: e.GetEqualFoldAttributeValue(s.First),
		Last:  e.GetEqualFoldAttributeValue(s.Last),
		Email: e.GetEqualFoldAttributeValue(s.Email),
		DN:    e.DN, Disabled: disabledEntry(e),
	}
}

func disabledEntry(e *ldap.Entry) bool {
	const accountDisable = 2 // a bit of userAccountControl
	control, err := strconv.ParseInt(e.GetEqualFoldAttributeValue(attrControl), 10, 64)
	return err == nil && control&accountDisable != 0 ||
		e.GetEqualFoldAttributeValue(attrLocked) == "000001010000Z" || // for good
		strings.EqualFold(e.GetEqualFoldAttributeValue(attrNSLock), "true")
}

// refreshTime is how often users of a directory are looked at again.
const refreshTime = 10 * time.Minute

// Follow keeps the users whose source is the directory as the directory has them, until ctx ends:
// who is gone or disabled there works here no longer, with API keys neither.
func (d *Directory) Follow(ctx context.Context, users *Users) error {
	tick := time.NewTicker(refreshTime)
	defer tick.Stop()
	for {
		d.Refresh(ctx, users)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Refresh looks once at every user whose source is the directory. What cannot be told stays.
func (d *Directory) Refresh(ctx context.Context, users *Users) {
	if len(d.Servers()) == 0 {
		return
	}
	for _, user := range users.All() {
		if user.Source != LDAP || user.DN == "" {
			continue
		}
		who, err := d.Entry(ctx, user.DN)
		if errors.Is(err, ErrUnknownUser) {
			who, err = Identity{DN: user.DN, Disabled: true}, nil
		}
		if err == nil {
			_, err = users.Reconcile(ctx, user, who)
		}
		if err != nil && !errors.Is(err, errNoRole) {
			d.log.Warn("user not refreshed", "user", user.Name, "reason", err)
		}
	}
}
