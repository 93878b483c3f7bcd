package api

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"vragent/agent/internal/account"
	"vragent/agent/internal/api/wire"
)

var ldapFields = []answerField{
	{"id", kindUUID, "the id of the configuration"}, {"hostname", kindString, "the server's host name"}, {"port", kindInteger, "the server's port"}, {"domainid", kindUUID, "the id of the domain"},
}

var ldapUserFields = []answerField{
	{"username", kindString, "the name that the user logs in with"}, {"firstname", kindString, "its first name"}, {"lastname", kindString, "its last name"},
	{"email", kindString, "its mail address"}, {"principal", kindString, "the DN of its entry"}, {"conflictingusersource", kindString, "the source of a user here who has that name"},
}

func ldapObject(s account.LDAPServer) wire.Object {
	var o wire.Object
	o.Add("id", s.ID)
	o.Add("hostname", s.Host)
	o.Add("port", s.Port)
	o.Add("domainid", account.DomainID)
	o.Add("security", s.Security)
	o.Add("provider", s.Provider)
	o.Add("basedn", s.BaseDN)
	o.Add("binddn", s.BindDN)
	return o
}

// directory returns the LDAP servers, or the refusal of an agent that has none.
func (c *call) directory() (*account.Directory, error) {
	if c.opts.Directory == nil {
		return nil, &wire.Error{Code: wire.CodeUnsupported, Text: "This agent has no LDAP"}
	}
	return c.opts.Directory, nil
}

// port is the value of the parameter, 0 where there is none or none that can be one.
func (c *call) port() int {
	port, err := strconv.Atoi(c.params.Get("port"))
	if err != nil || port < 0 {
		return 0
	}
	return port
}

func addLDAP(c *call) (wire.Object, error) {
	d, err := c.directory()
	if err != nil {
		return nil, err
	}
	c.resource = c.params.Get("hostname")
	get := c.params.Get
	s, err := d.AddServer(c.http.Context(), account.LDAPServer{
		Host: get("hostname"), Port: c.port(), Security: strings.ToLower(get("security")), CA: get("cacertificate"),
		BaseDN: get("basedn"), BindDN: get("binddn"), BindPassword: get("bindpassword"), Provider: strings.ToLower(get("provider")),
		UserObject: get("userobject"), GroupObject: get("groupobject"), Username: get("usernameattribute"), Email: get("emailattribute"),
		First: get("firstnameattribute"), Last: get("lastnameattribute"), Member: get("memberattribute"),
	})
	switch {
	case errors.Is(err, account.ErrExists):
		return nil, &wire.Error{Code: wire.CodeInternal, Text: "InvalidParameterValueException: Duplicate configuration: " + err.Error(), Err: err}
	case errors.Is(err, account.ErrServer):
		return nil, &wire.Error{Code: wire.CodeInternal, Text: "InvalidParameterValueException: Unable to bind to the given LDAP server: " + err.Error(), Err: err}
	case errors.Is(err, account.ErrSetting):
		return nil, &wire.Error{Code: wire.CodeParameter, Text: err.Error(), Err: err}
	case err != nil:
		return nil, err
	}
	return wire.Object{{Name: "LdapAddConfiguration", Value: ldapObject(s)}}, nil
}

// ldapServers are those that the parameters name.
func (c *call) ldapServers(d *account.Directory) []account.LDAPServer {
	return slices.DeleteFunc(d.Servers(), func(s account.LDAPServer) bool {
		return !c.is("id", s.ID) || !c.is("hostname", s.Host) || !c.is("port", strconv.Itoa(s.Port)) || !c.is("domainid", account.DomainID) || !c.keyword(s.Host)
	})
}

func listLDAP(c *call) (wire.Object, error) {
	d, err := c.directory()
	if err != nil {
		return nil, err
	}
	return page(c, "LdapConfiguration", c.ldapServers(d), ldapObject)
}

func deleteLDAP(c *call) (wire.Object, error) {
	d, err := c.directory()
	if err != nil {
		return nil, err
	}
	if c.params.Get("id") == "" && c.params.Get("hostname") == "" {
		return nil, &wire.Error{Code: wire.CodeParameter, Text: "Unable to execute API command deleteldapconfiguration due to missing parameter id or hostname"}
	}
	found := c.ldapServers(d)
	if len(found) != 1 {
		return nil, &wire.Error{Code: wire.CodeParameter, Text: "Cannot find one ldap configuration that is meant; id names it"}
	}
	c.resource = found[0].Host
	removed, err := d.RemoveServer(found[0].ID)
	if err != nil {
		return nil, err
	}
	return wire.Object{{Name: "LdapDeleteConfiguration", Value: ldapObject(removed)}}, nil
}

// ldapUser is a user of the directory and the one here who has its name.
type ldapUser struct {
	account.Identity
	source string
}

func (u ldapUser) object() wire.Object {
	var o wire.Object
	o.Add("username", u.Name)
	o.Add("firstname", u.First)
	o.Add("lastname", u.Last)
	o.Add("email", u.Email)
	o.Add("principal", u.DN)
	o.Add("domain", account.Domain)
	o.Add("conflictingusersource", u.source)
	return o
}

func (c *call) ldapUsers(d *account.Directory, group string) ([]ldapUser, error) {
	found, err := d.List(c.http.Context(), group)
	if err != nil {
		return nil, err
	}
	var users []ldapUser
	for _, who := range found {
		if !c.keyword(who.Name, who.First, who.Last, who.Email) {
			continue
		}
		u := ldapUser{Identity: who}
		if known, err := c.opts.Users.Named(who.Name); err == nil {
			u.source = known.Source
		}
		users = append(users, u)
	}
	return users, nil
}

// listLDAPUsers shows an empty list while no server answers, as CloudStack does.
func listLDAPUsers(c *call) (wire.Object, error) {
	d, err := c.directory()
	if err != nil {
		return nil, err
	}
	filter := c.params.Get("userfilter")
	known := []string{"", "NoFilter", "LocalDomain", "AnyDomain", "PotentialImport"}
	if !slices.ContainsFunc(known, func(f string) bool { return strings.EqualFold(f, filter) }) {
		return nil, c.cmd.invalid("userfilter", filter)
	}
	users, err := c.ldapUsers(d, "")
	if err != nil {
		c.log.Warn("LDAP users not listed", "reason", err)
		users = nil
	}
	if filter != "" && !strings.EqualFold(filter, "NoFilter") || strings.EqualFold(c.params.Get("listtype"), "new") {
		users = slices.DeleteFunc(users, func(u ldapUser) bool { return u.source != "" })
	}
	return page(c, "LdapUser", users, ldapUser.object)
}

// importLDAPUsers makes users of those that match and have no namesake here, and shows them.
func importLDAPUsers(c *call) (wire.Object, error) {
	d, err := c.directory()
	if err != nil {
		return nil, err
	}
	role, err := c.role()
	if err != nil {
		return nil, err
	}
	c.resource = string(role)
	users, err := c.ldapUsers(d, c.params.Get("group"))
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeInternal, Text: "The users of the LDAP server cannot be read: " + err.Error(), Err: err}
	}
	users = slices.DeleteFunc(users, func(u ldapUser) bool { return u.source != "" || u.Disabled || account.CheckName(u.Name) != nil })
	for _, u := range users {
		_, err := c.opts.Users.Add(c.http.Context(), account.User{Name: u.Name, First: u.First, Last: u.Last, Email: u.Email,
			Timezone: c.params.Get("timezone"), Role: role, Source: account.LDAP, DN: u.DN}, "")
		if err != nil && !errors.Is(err, account.ErrExists) {
			return nil, err
		}
	}
	return page(c, "LdapUser", users, ldapUser.object)
}

func linkAccount(c *call) (wire.Object, error) {
	d, err := c.directory()
	if err != nil {
		return nil, err
	}
	role, err := c.role()
	if err != nil {
		return nil, err
	}
	c.resource = string(role)
	dn, there := c.params.Lookup("ldapdomain")
	if !there {
		return nil, &wire.Error{Code: wire.CodeParameter, Text: "Unable to execute API command linkaccounttoldap due to missing parameter ldapdomain"}
	}
	kind := account.LinkGroup
	if k := c.params.Get("type"); k != "" {
		kind = strings.ToUpper(k)
	}
	if err := d.SetLink(account.Link{Role: role, DN: dn, Kind: kind}); err != nil {
		if errors.Is(err, account.ErrSetting) {
			return nil, &wire.Error{Code: wire.CodeParameter, Text: err.Error(), Err: err}
		}
		return nil, err
	}
	var o wire.Object
	o.Add("domainid", account.DomainID)
	o.Add("ldapdomain", dn)
	o.Add("name", dn)
	o.Add("type", kind)
	o.Add("accountid", role.ID())
	o.Add("accounttype", accountType(role, 1, 0))
	return wire.Object{{Name: "linkAccountToLdap", Value: o}}, nil
}
