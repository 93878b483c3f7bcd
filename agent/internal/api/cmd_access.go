package api

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"vragent/agent/internal/account"
	"vragent/agent/internal/api/wire"
)

// login begins a session. Why it is refused is in the log only.
func login(c *call) (wire.Object, error) {
	if c.http.Method != http.MethodPost {
		return nil, &wire.Error{Code: wire.CodeMethod, Text: "Please use HTTP POST to authenticate using this API"}
	}
	name := c.params.Get("username")
	c.resource = name
	domain := "/" + strings.Trim(c.params.Get("domain"), "/")
	refused := &wire.Error{Code: wire.CodeAccount, Text: fmt.Sprintf("Failed to authenticate user %s in domain %s; please provide valid credentials", shorten(name), shorten(domain))}
	if id := c.params.Get("domainid"); id != "" && id != account.DomainID || domain != "/" && !strings.EqualFold(domain, "/"+account.Domain) {
		return nil, refused
	}
	select {
	case c.logins <- struct{}{}:
		defer func() { <-c.logins }()
	case <-c.http.Context().Done():
		return nil, refused
	}
	session, user, err := c.opts.Users.Login(c.http.Context(), name, c.params.Get("password"))
	if err != nil {
		return nil, refused
	}
	c.user = user
	c.setCookie(cookieID, session.ID+".vragent", 0)
	c.setCookie(cookieKey, session.Key, 0)
	o := wire.Object{
		{Name: "username", Value: user.Name},
		{Name: "userid", Value: user.ID},
		{Name: "domainid", Value: account.DomainID},
		{Name: "timeout", Value: int(c.opts.Users.SessionTime() / time.Second)},
		{Name: "account", Value: string(user.Role)},
	}
	o.Add("firstname", user.First)
	o.Add("lastname", user.Last)
	o = append(o, wire.Field{Name: "type", Value: accountType(user.Role, "1", "0")})
	o.Add("timezone", user.Timezone)
	return append(o,
		wire.Field{Name: "registered", Value: "false"},
		wire.Field{Name: "sessionkey", Value: session.Key},
		wire.Field{Name: "is2faenabled", Value: "false"},
		wire.Field{Name: "is2faverified", Value: "true"},
	), nil
}

func logout(c *call) (wire.Object, error) {
	if c.session != "" {
		c.opts.Users.Logout(c.session)
		c.setCookie(cookieID, "", -1)
		c.setCookie(cookieKey, "", -1)
	}
	return wire.Object{{Name: "description", Value: "success"}}, nil
}

// setCookie sets a cookie of the session; its path covers the API's.
func (c *call) setCookie(name, value string, maxAge int) {
	http.SetCookie(c.w, &http.Cookie{Name: name, Value: value, Path: "/client", MaxAge: maxAge,
		HttpOnly: true, Secure: c.http.TLS != nil, SameSite: http.SameSiteLaxMode})
}

// accountType returns one of two values by whether CloudStack would call the role an administrator.
func accountType[T any](role account.Role, admin, user T) T {
	if role == account.Admin {
		return admin
	}
	return user
}

func listApis(c *call) (wire.Object, error) {
	var apis []wire.Object
	for _, name := range c.names {
		cmd := c.commands[name]
		if !c.user.Role.Covers(cmd.role) || c.params.Get("name") != "" && c.params.Get("name") != name {
			continue
		}
		apis = append(apis, cmd.object())
	}
	if wanted := c.params.Get("name"); len(apis) == 0 {
		return nil, &wire.Error{Code: wire.CodeParameter, Text: fmt.Sprintf("The given command %s does not exist or it is not available for user %s", shorten(wanted), c.user.Name)}
	}
	return wire.List(len(apis), "api", apis), nil
}

// object is the command as listApis shows it. CloudMonkey needs every field of it.
func (c *command) object() wire.Object {
	params := []wire.Object{}
	for _, p := range c.params {
		params = append(params, wire.Object{
			{Name: "name", Value: p.name}, {Name: "description", Value: p.description}, {Name: "type", Value: p.kind}, {Name: "required", Value: p.required},
		})
	}
	fields := []wire.Object{}
	for _, f := range c.fields {
		fields = append(fields, wire.Object{{Name: "name", Value: f.name}, {Name: "description", Value: f.description}, {Name: "type", Value: f.kind}})
	}
	return wire.Object{
		{Name: "name", Value: c.name}, {Name: "description", Value: c.description}, {Name: "isasync", Value: c.async},
		{Name: "params", Value: params}, {Name: "response", Value: fields},
	}
}

func listCapabilities(c *call) (wire.Object, error) {
	capability := wire.Object{
		{Name: "cloudstackversion", Value: wire.Version},
		{Name: "vragentversion", Value: c.opts.Backend.Status(c.http.Context()).Version},
		{Name: "maxuserdata", Value: c.limits.UserData},
		{Name: "maxbundle", Value: c.limits.Bundle},
	}
	if c.limits.Rate > 0 {
		capability = append(capability, wire.Field{Name: "apilimitmax", Value: c.limits.Rate}, wire.Field{Name: "apilimitinterval", Value: int(rateInterval / time.Second)})
	}
	return wire.Object{{Name: "capability", Value: capability}}, nil
}
