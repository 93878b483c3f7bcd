package account_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vragent/agent/internal/account"
)

const slapdConf = `
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload ppolicy
pidfile %[1]s/slapd.pid
TLSCertificateFile %[1]s/cert.pem
TLSCertificateKeyFile %[1]s/key.pem
database mdb
suffix "dc=example,dc=org"
rootdn "cn=root,dc=example,dc=org"
rootpw rootsecret
directory %[1]s/db
overlay ppolicy
access to attrs=userPassword by anonymous auth by * none
access to * by dn="cn=search,dc=example,dc=org" read by * none
security simple_bind=%[2]d
`

// Ann and Bob are operators, Cid is a viewer, Dan in both groups, Eve in none; Fay is disabled.
const slapdData = `
dn: dc=example,dc=org
objectClass: dcObject
objectClass: organization
dc: example
o: Example

dn: cn=search,dc=example,dc=org
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: search
userPassword: searchsecret

dn: ou=people,dc=example,dc=org
objectClass: organizationalUnit
ou: people

dn: ou=staff,ou=people,dc=example,dc=org
objectClass: organizationalUnit
ou: staff
`

var slapdUsers = []struct{ name, extra string }{
	{"ann", ""}, {"bob(*)", ""}, {"cid", ""}, {"dan", ""}, {"eve", ""}, {"fay", "pwdAccountLockedTime: 000001010000Z\n"},
}

func slapdEntries() string {
	var b strings.Builder
	b.WriteString(slapdData)
	for _, u := range slapdUsers {
		fmt.Fprintf(&b, "\ndn: %s\nobjectClass: inetOrgPerson\nuid: %s\ncn: %s\ngivenName: First\nsn: Last\nmail: %s@example.org\nuserPassword: %s-secret\n%s", userDN(u.name), u.name, u.name, u.name[:3], u.name, u.extra)
	}
	for group, members := range map[string][]string{"operators": {"ann", "bob(*)", "dan", "fay"}, "viewers": {"cid", "dan"}} {
		fmt.Fprintf(&b, "\ndn: %s\nobjectClass: groupOfUniqueNames\ncn: %s\n", groupDN(group), group)
		for _, m := range members {
			fmt.Fprintf(&b, "uniqueMember: %s\n", userDN(m))
		}
	}
	return b.String()
}

func userDN(name string) string {
	return "uid=" + name + ",ou=staff,ou=people,dc=example,dc=org"
}

func groupDN(name string) string { return "cn=" + name + ",dc=example,dc=org" }

// slapd is a running OpenLDAP server.
type slapd struct {
	ldap, ldaps int // ports
	ca          string
	stop        func()
}

// startSlapd starts OpenLDAP on loopback; a bind needs so many bits of TLS.
func startSlapd(t *testing.T, bits int) slapd {
	t.Helper()
	for _, program := range []string{"slapd", "slapadd"} {
		if _, err := exec.LookPath(program); err != nil {
			if _, err := os.Stat("/usr/sbin/" + program); err != nil {
				t.Skipf("needs %s", program)
			}
		}
	}
	dir, err := os.MkdirTemp("", "slapd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := slapd{ca: writeCert(t, dir)}
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.Mkdir(filepath.Join(dir, "db"), 0o700); err != nil {
		t.Fatal(err)
	}
	conf := write("slapd.conf", fmt.Sprintf(slapdConf, dir, bits))
	data := write("data.ldif", slapdEntries())
	if out, err := exec.Command("/usr/sbin/slapadd", "-q", "-f", conf, "-l", data).CombinedOutput(); err != nil {
		t.Fatalf("slapadd: %v\n%s", err, out)
	}
	s.ldap, s.ldaps = freePort(t), freePort(t)
	cmd := exec.Command("/usr/sbin/slapd", "-d", "0", "-f", conf, "-h", fmt.Sprintf("ldap://127.0.0.1:%d/ ldaps://127.0.0.1:%d/", s.ldap, s.ldaps))
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(s.stop)
	deadline := time.Now().Add(20 * time.Second)
	for {
		conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", s.ldap), time.Second)
		if err == nil {
			_ = conn.Close()
			return s
		}
		if time.Now().After(deadline) {
			s.stop()
			t.Fatalf("slapd does not listen: %s", out.String())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// writeCert makes a certificate for localhost that is its own authority.
func writeCert(t *testing.T, dir string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	for name, data := range map[string][]byte{"cert.pem": text, "key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return string(text)
}

func (s slapd) settings() account.LDAPServer {
	return account.LDAPServer{Host: "localhost", Port: s.ldap, Security: account.StartTLS, CA: s.ca, BaseDN: "dc=example,dc=org", BindDN: "cn=search,dc=example,dc=org", BindPassword: "searchsecret"}
}

// openLDAP opens users and a directory that knows servers.
func openLDAP(t *testing.T, store account.Store, servers ...account.LDAPServer) (*account.Users, *account.Directory) {
	t.Helper()
	d, err := account.OpenDirectory(store, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range servers {
		if _, err := d.AddServer(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	return open(t, account.Options{Store: store, Authenticators: []account.Authenticator{d}, Links: d}), d
}

func TestLDAPLogin(t *testing.T) {
	server := startSlapd(t, 1) // no password without TLS
	users, d := openLDAP(t, &memStore{}, server.settings())
	login := func(name, password string) (account.User, error) {
		_, u, err := users.Login(t.Context(), name, password)
		return u, err
	}

	if _, err := login("ann", "ann-secret"); !errors.Is(err, account.ErrLogin) {
		t.Errorf("without any link: %v", err)
	}
	for role, group := range map[account.Role]string{account.Operator: "operators", account.Viewer: "viewers"} {
		if err := d.SetLink(account.Link{Role: role, DN: groupDN(group), Kind: account.LinkGroup}); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name, password string
		role           account.Role
	}{
		{"ann", "ann-secret", account.Operator},
		{"ANN", "ann-secret", account.Operator},
		{"bob(*)", "bob(*)-secret", account.Operator}, // characters that mean something in a filter
		{"cid", "cid-secret", account.Viewer},
	} {
		u, err := login(tt.name, tt.password)
		if err != nil || u.Role != tt.role || u.Source != account.LDAP || u.First != "First" || u.DN == "" {
			t.Errorf("Login(%q) = %+v, %v, want a user with role %s", tt.name, u, err, tt.role)
		}
	}
	for _, tt := range []struct{ what, name, password string }{
		{"wrong password", "ann", "x"},
		{"empty password, which slapd takes for an anonymous bind", "ann", ""},
		{"another's password", "ann", "cid-secret"},
		{"unknown", "zoe", "x"},
		{"wildcard", "*", "ann-secret"},
		{"filter injection", "ann)(uid=*", "ann-secret"},
		{"in two linked groups", "dan", "dan-secret"},
		{"in no linked group", "eve", "eve-secret"},
		{"disabled", "fay", "fay-secret"},
	} {
		if u, err := login(tt.name, tt.password); !errors.Is(err, account.ErrLogin) {
			t.Errorf("%s: Login() = %v, %v", tt.what, u, err)
		}
	}
	if got := len(users.All()); got != 3 {
		t.Errorf("%d users, want the three who may log in", got)
	}
}

func TestLDAPListAndRefresh(t *testing.T) {
	server := startSlapd(t, 0)
	users, d := openLDAP(t, &memStore{}, server.settings())
	names := func(group string) []string {
		t.Helper()
		found, err := d.List(t.Context(), group)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, who := range found {
			names = append(names, who.Name)
		}
		return names
	}
	if diff := cmp.Diff([]string{"ann", "bob(*)", "cid", "dan", "eve", "fay"}, names("")); diff != "" {
		t.Errorf("users differ (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"cid", "dan"}, names(groupDN("viewers"))); diff != "" {
		t.Errorf("group differs (-want +got):\n%s", diff)
	}

	// Users who came by an import are followed too.
	var ids []string
	for _, name := range []string{"ann", "fay", "gone"} {
		u, err := users.Add(t.Context(), account.User{Name: name, Role: account.Viewer, Source: account.LDAP, DN: userDN(name)}, "")
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, u.ID)
	}
	d.Refresh(t.Context(), users)
	for i, want := range []account.State{account.Enabled, account.Disabled, account.Disabled} {
		if u, err := users.Get(ids[i]); err != nil || u.State != want {
			t.Errorf("%s is %s, want %s (%v)", u.Name, u.State, want, err)
		}
	}
	if _, u, err := users.Login(t.Context(), "ann", "ann-secret"); err != nil || u.Role != account.Viewer {
		t.Errorf("an imported user: %+v, %v", u, err)
	}
}

func TestLDAPOrganisationalUnit(t *testing.T) {
	server := startSlapd(t, 0)
	users, d := openLDAP(t, &memStore{}, server.settings())
	if err := d.SetLink(account.Link{Role: account.Viewer, DN: "OU=Staff,ou=people,dc=example,dc=org", Kind: account.LinkOU}); err != nil {
		t.Fatal(err)
	}
	if _, u, err := users.Login(t.Context(), "eve", "eve-secret"); err != nil || u.Role != account.Viewer {
		t.Errorf("Login() = %+v, %v", u, err)
	}
}

func TestLDAPFailsOver(t *testing.T) {
	first, second := startSlapd(t, 0), startSlapd(t, 0)
	// The second is known by its address alone, as CloudStack's own clients add one.
	settings := second.settings()
	settings.CA = first.ca
	store := &memStore{}
	users, d := openLDAP(t, store, first.settings())
	if _, err := d.AddServer(t.Context(), account.LDAPServer{Host: "localhost", Port: second.ldap}); err == nil {
		t.Fatal("a server with another authority's certificate was taken")
	}
	settings = second.settings()
	if _, err := d.AddServer(t.Context(), settings); err != nil {
		t.Fatal(err)
	}
	if err := d.SetLink(account.Link{Role: account.Operator, DN: groupDN("operators"), Kind: account.LinkGroup}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := users.Login(t.Context(), "ann", "ann-secret"); err != nil {
		t.Errorf("both up: %v", err)
	}
	first.stop()
	if _, _, err := users.Login(t.Context(), "ann", "ann-secret"); err != nil {
		t.Errorf("first down: %v", err)
	}
	if _, _, err := users.Login(t.Context(), "ann", "wrong"); !errors.Is(err, account.ErrLogin) {
		t.Errorf("first down, wrong password: %v", err)
	}
	// Servers and links survive a restart.
	users, d = openLDAP(t, store)
	if len(d.Servers()) != 2 || len(d.Links()) != 1 {
		t.Errorf("after a restart: %v, %v", d.Servers(), d.Links())
	}
	if _, _, err := users.Login(t.Context(), "ann", "ann-secret"); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	second.stop()
	if _, _, err := users.Login(t.Context(), "ann", "ann-secret"); !errors.Is(err, account.ErrLogin) {
		t.Errorf("both down: %v", err)
	}
	if u, err := users.Named("ann"); err != nil || u.State != account.Enabled {
		t.Errorf("both down, and the user is %s: %v", u.State, err)
	}
}

func TestAddServerBindsBeforeItBelieves(t *testing.T) {
	server := startSlapd(t, 0)
	_, d := openLDAP(t, &memStore{})
	good := server.settings()
	for name, tt := range map[string]struct {
		change func(*account.LDAPServer)
		want   error
	}{
		"no base":             {func(s *account.LDAPServer) { s.BaseDN = "" }, account.ErrSetting},
		"not a DN":            {func(s *account.LDAPServer) { s.BaseDN = "example.org" }, account.ErrSetting},
		"no bind password":    {func(s *account.LDAPServer) { s.BindPassword = "" }, account.ErrSetting},
		"filter as a class":   {func(s *account.LDAPServer) { s.UserObject = "*)(uid=*" }, account.ErrSetting},
		"no certificate":      {func(s *account.LDAPServer) { s.CA = "x" }, account.ErrSetting},
		"unknown provider":    {func(s *account.LDAPServer) { s.Provider = "x" }, account.ErrSetting},
		"wrong password":      {func(s *account.LDAPServer) { s.BindPassword = "x" }, account.ErrServer},
		"no such base":        {func(s *account.LDAPServer) { s.BaseDN = "dc=example,dc=com" }, account.ErrServer},
		"nobody listens":      {func(s *account.LDAPServer) { s.Port = freePort(t) }, account.ErrServer},
		"not trusted":         {func(s *account.LDAPServer) { s.CA = "" }, account.ErrServer},
		"another name":        {func(s *account.LDAPServer) { s.Host = "127.0.0.1" }, account.ErrServer},
		"ldaps where is none": {func(s *account.LDAPServer) { s.Security = account.LDAPS }, account.ErrServer},
	} {
		t.Run(name, func(t *testing.T) {
			s := good
			tt.change(&s)
			if _, err := d.AddServer(t.Context(), s); !errors.Is(err, tt.want) {
				t.Errorf("AddServer() = %v, want %v", err, tt.want)
			}
		})
	}
	if len(d.Servers()) > 0 {
		t.Errorf("servers: %v", d.Servers())
	}
	s := good
	s.Port, s.Security = server.ldaps, account.LDAPS
	added, err := d.AddServer(t.Context(), s)
	if err != nil {
		t.Fatalf("ldaps: %v", err)
	}
	if _, err := d.AddServer(t.Context(), s); !errors.Is(err, account.ErrExists) {
		t.Errorf("twice: %v", err)
	}
	// A further server takes its settings from the first.
	if s, err := d.AddServer(t.Context(), account.LDAPServer{Host: "localhost", Port: server.ldap, Security: account.StartTLS}); err != nil || s.BindDN != good.BindDN {
		t.Errorf("second server = %+v, %v", s, err)
	}
	if removed, err := d.RemoveServer(added.ID); err != nil || removed.Host != "localhost" {
		t.Errorf("RemoveServer() = %v, %v", removed, err)
	}
	if _, err := d.RemoveServer(added.ID); !errors.Is(err, account.ErrNotFound) {
		t.Errorf("RemoveServer() again = %v", err)
	}
}

func TestLDAPServerThatSaysNothingHoldsNobodyUp(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, d := openLDAP(t, &memStore{})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err = d.AddServer(ctx, account.LDAPServer{Host: "127.0.0.1", Port: ln.Addr().(*net.TCPAddr).Port, BaseDN: "dc=x"})
	if !errors.Is(err, account.ErrServer) || ctx.Err() != nil {
		t.Errorf("AddServer() = %v", err)
	}
}

func TestLinks(t *testing.T) {
	_, d := openLDAP(t, &memStore{})
	link := account.Link{Role: account.Viewer, DN: "cn=a,dc=b", Kind: account.LinkGroup}
	for _, bad := range []account.Link{{Role: account.Viewer, DN: "x", Kind: account.LinkGroup}, {Role: account.Viewer, DN: "cn=a", Kind: "x"}} {
		if err := d.SetLink(bad); !errors.Is(err, account.ErrSetting) {
			t.Errorf("SetLink(%v) = %v", bad, err)
		}
	}
	if err := d.SetLink(link); err != nil || !d.Linked() {
		t.Fatalf("SetLink() = %v", err)
	}
	link.DN = ""
	if err := d.SetLink(link); err != nil || d.Linked() {
		t.Errorf("SetLink(none) = %v, linked %v", err, d.Linked())
	}
}
