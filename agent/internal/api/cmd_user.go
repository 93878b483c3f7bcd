package api

import (
	"errors"
	"slices"
	"strings"

	"vragent/agent/internal/account"
	"vragent/agent/internal/api/wire"
)

var userFields = []answerField{
	{"id", kindString, "the user's id"}, {"username", kindString, "its name"}, {"firstname", kindString, "its first name"}, {"lastname", kindString, "its last name"},
	{"email", kindString, "its mail address"}, {"created", kindDate, "since when it is there"}, {"state", kindString, "enabled, disabled or locked"},
	{"account", kindString, "its account"}, {"usersource", kindString, "native or ldap"}, {"apikey", kindString, "its API key"},
}

var keyFields = []answerField{{"apikey", kindString, "the API key"}, {"secretkey", kindString, "the secret key"}}

var accountFields = []answerField{
	{"id", kindString, "the account's id"}, {"name", kindString, "its name, which is the role's"}, {"state", kindString, "enabled"}, {"user", kindMap, "its users"},
	{"ldapdomain", kindString, "DN of the LDAP group whose users have it"},
}

func userObject(u account.User) wire.Object {
	var o wire.Object
	o.Add("id", u.ID)
	o.Add("username", u.Name)
	o.Add("firstname", u.First)
	o.Add("lastname", u.Last)
	o.Add("email", u.Email)
	o.Add("created", wire.Date(u.Created))
	o.Add("state", string(u.State))
	o.Add("account", string(u.Role))
	o.Add("accounttype", accountType(u.Role, 1, 0))
	o.Add("accountid", u.Role.ID())
	o.Add("usersource", u.Source)
	o.Add("roleid", u.Role.ID())
	o.Add("roletype", accountType(u.Role, "Admin", "User"))
	o.Add("rolename", string(u.Role))
	o.Add("domainid", account.DomainID)
	o.Add("domain", account.Domain)
	o.Add("timezone", u.Timezone)
	o.Add("apikey", u.APIKey)
	return o
}

func userAnswer(u account.User) wire.Object {
	return wire.Object{{Name: "user", Value: userObject(u)}}
}

// accountError makes an answer of what package account refuses.
func (c *call) accountError(err error) error {
	switch {
	case errors.Is(err, account.ErrNotFound):
		return c.cmd.unknown("id", c.params.Get("id"))
	case errors.Is(err, account.ErrExists), errors.Is(err, account.ErrPassword):
		return &wire.Error{Code: wire.CodeParameter, Text: err.Error(), Err: err}
	case errors.Is(err, account.ErrLastAdmin):
		return &wire.Error{Code: wire.CodeAccount, Text: err.Error(), Err: err}
	}
	return err
}

// target is the user that the command is for: an administrator may name any, others themselves
// only; for them no other user exists.
func (c *call) target() (account.User, error) {
	id := c.params.Get("id")
	if c.user.Role != account.Admin && id != c.user.ID {
		return account.User{}, c.cmd.unknown("id", id)
	}
	u, err := c.opts.Users.Get(id)
	if err != nil {
		return u, c.accountError(err)
	}
	c.resource = u.Name
	return u, nil
}

// role is the value of the parameter account.
func (c *call) role() (account.Role, error) {
	role, err := account.ParseRole(strings.ToLower(c.params.Get("account")))
	if err != nil {
		return "", c.cmd.unknown("account", c.params.Get("account"))
	}
	return role, nil
}

func createUser(c *call) (wire.Object, error) {
	c.resource = c.params.Get("username")
	role, err := c.role()
	if err != nil {
		return nil, err
	}
	if err := account.CheckName(c.resource); err != nil {
		return nil, &wire.Error{Code: wire.CodeParameter, Text: err.Error()}
	}
	u, err := c.opts.Users.Add(c.http.Context(), account.User{
		Name: c.resource, Role: role, First: c.params.Get("firstname"), Last: c.params.Get("lastname"),
		Email: c.params.Get("email"), Timezone: c.params.Get("timezone"),
	}, c.params.Get("password"))
	if err != nil {
		return nil, c.accountError(err)
	}
	return userAnswer(u), nil
}

func updateUser(c *call) (wire.Object, error) {
	u, err := c.target()
	if err != nil {
		return nil, err
	}
	name, apiKey, secretKey := c.params.Get("username"), c.params.Get("userapikey"), c.params.Get("usersecretkey")
	switch {
	case (apiKey == "") != (secretKey == ""):
		return nil, &wire.Error{Code: wire.CodeParameter, Text: "Please provide a userapikey/usersecretkey pair"}
	case c.user.Role != account.Admin && (name != "" && name != u.Name || apiKey != ""):
		return nil, &wire.Error{Code: wire.CodeAccount, Text: "Only an administrator may change names and set keys"}
	}
	if name != "" {
		if err := account.CheckName(name); err != nil {
			return nil, &wire.Error{Code: wire.CodeParameter, Text: err.Error()}
		}
	}
	if password, there := c.params.Lookup("password"); there {
		if err := c.changePassword(u, password); err != nil {
			return nil, err
		}
	}
	u, err = c.opts.Users.Update(u.ID, func(u *account.User) error {
		for field, value := range map[*string]string{
			&u.Name: name, &u.APIKey: apiKey, &u.SecretKey: secretKey, &u.First: c.params.Get("firstname"), &u.Last: c.params.Get("lastname"),
			&u.Email: c.params.Get("email"), &u.Timezone: c.params.Get("timezone"),
		} {
			if value != "" {
				*field = value
			}
		}
		return nil
	})
	if err != nil {
		return nil, c.accountError(err)
	}
	return userAnswer(u), nil
}

// changePassword lets an administrator set anybody else's password, and everybody their own if
// they know it.
func (c *call) changePassword(u account.User, password string) error {
	if err := account.CheckPassword(password); err != nil {
		return c.accountError(err)
	}
	if u.Source != account.Native {
		return &wire.Error{Code: wire.CodeParameter, Text: "The password of this user is kept by " + u.Source}
	}
	if u.ID == c.user.ID {
		current := c.params.Get("currentpassword")
		if current == "" {
			return &wire.Error{Code: wire.CodeParameter, Text: "To set a new password the current password must be provided"}
		}
		if err := c.opts.Users.CheckPassword(c.http.Context(), u.ID, current); err != nil {
			return &wire.Error{Code: wire.CodeParameter, Text: "Current password is incorrect", Err: err}
		}
	}
	return c.accountError(c.opts.Users.SetPassword(c.http.Context(), u.ID, password))
}

func deleteUser(c *call) (wire.Object, error) {
	u, err := c.target()
	if err == nil {
		err = c.accountError(c.opts.Users.Remove(u.ID))
	}
	return wire.Success(), err
}

// disableUser is a job, since CloudStack's clients wait for one.
func disableUser(c *call) (wire.Object, error) {
	u, err := c.target()
	if err != nil {
		return nil, err
	}
	if err := c.opts.Users.Removable(u.ID); err != nil {
		return nil, c.accountError(err)
	}
	return c.enqueue("users/"+u.ID, "User", u.ID, push{DisableUser: u.ID})
}

func enableUser(c *call) (wire.Object, error) { return c.setState(account.Enabled) }
func lockUser(c *call) (wire.Object, error)   { return c.setState(account.Locked) }

func (c *call) setState(state account.State) (wire.Object, error) {
	u, err := c.target()
	if err != nil {
		return nil, err
	}
	if u, err = c.opts.Users.SetState(u.ID, state); err != nil {
		return nil, c.accountError(err)
	}
	return userAnswer(u), nil
}

func listUsers(c *call) (wire.Object, error) {
	users := slices.DeleteFunc(c.opts.Users.All(), func(u account.User) bool {
		return c.user.Role != account.Admin && u.ID != c.user.ID ||
			!c.is("id", u.ID) || !c.is("username", u.Name) || !c.is("account", string(u.Role)) || !c.is("state", string(u.State)) ||
			!c.is("usersource", u.Source) || !c.is("accounttype", accountType(u.Role, "1", "0")) || !c.is("domainid", account.DomainID) ||
			!c.keyword(u.Name, u.First, u.Last, u.Email)
	})
	return page(c, "user", users, userObject)
}

func getUser(c *call) (wire.Object, error) {
	u, err := c.opts.Users.ByKey(c.params.Get("userapikey"))
	if err != nil || c.user.Role != account.Admin && u.ID != c.user.ID {
		return nil, &wire.Error{Code: wire.CodeParameter, Text: "User with specified API key does not exist"}
	}
	return userAnswer(u), nil
}

func registerUserKeys(c *call) (wire.Object, error) {
	u, err := c.target()
	if err != nil {
		return nil, err
	}
	if u, err = c.opts.Users.NewKeys(u.ID); err != nil {
		return nil, c.accountError(err)
	}
	return keysAnswer(u), nil
}

func getUserKeys(c *call) (wire.Object, error) {
	u, err := c.target()
	if err != nil {
		return nil, err
	}
	return keysAnswer(u), nil
}

func keysAnswer(u account.User) wire.Object {
	var o wire.Object
	o.Add("apikey", u.APIKey)
	o.Add("secretkey", u.SecretKey)
	return wire.Object{{Name: "userkeys", Value: o}}
}

func listAccounts(c *call) (wire.Object, error) {
	roles := slices.DeleteFunc(account.Roles(), func(r account.Role) bool {
		return c.user.Role != account.Admin && r != c.user.Role ||
			!c.is("id", r.ID()) || !c.is("name", string(r)) || !c.is("state", string(account.Enabled)) ||
			!c.is("accounttype", accountType(r, "1", "0")) || !c.is("domainid", account.DomainID) || !c.keyword(string(r))
	})
	users := c.opts.Users.All()
	return page(c, "account", roles, func(r account.Role) wire.Object {
		own := []wire.Object{}
		for _, u := range users {
			if u.Role == r && (c.user.Role == account.Admin || u.ID == c.user.ID) {
				own = append(own, userObject(u))
			}
		}
		o := wire.Object{
			{Name: "id", Value: r.ID()}, {Name: "name", Value: string(r)}, {Name: "accounttype", Value: accountType(r, 1, 0)},
			{Name: "roleid", Value: r.ID()}, {Name: "roletype", Value: accountType(r, "Admin", "User")}, {Name: "rolename", Value: string(r)},
			{Name: "domainid", Value: account.DomainID}, {Name: "domain", Value: account.Domain}, {Name: "state", Value: string(account.Enabled)},
		}
		if c.opts.Directory != nil {
			for _, l := range c.opts.Directory.Links() {
				if l.Role == r {
					o.Add("ldapdomain", l.DN)
				}
			}
		}
		return append(o, wire.Field{Name: "user", Value: own})
	})
}
