package api

import (
	"slices"

	"vragent/agent/internal/account"
)

// commandTable returns all commands.
func commandTable() []*command {
	return slices.Concat(accessCommands(), userCommands(), ldapCommands(), pushCommands(), listCommands(), jobCommands())
}

// Parameters and fields that several commands have.
var (
	vmID      = param{"id", kindString, true, "the VM's name in the drop directory"}
	networkID = param{"id", kindString, true, "the network's name in the drop directory"}
	userID    = param{"id", kindUUID, true, "the id of the user"}

	asyncFields = []answerField{{"jobid", kindString, "the id of the job"}}
	doneFields  = []answerField{{"success", kindBool, "true if it worked"}, {"displaytext", kindString, "more about it"}}
)

func pushCommands() []*command {
	return []*command{
		{
			name: "pushNetwork", description: "Puts a network's file into the drop directory", role: account.Operator, async: true, changes: true,
			params: []param{
				networkID,
				{"definition", kindString, true, "the text of its YAML file"},
			},
			fields: asyncFields, run: pushNetwork,
		},
		{
			name: "removeNetwork", description: "Removes a network from the drop directory", role: account.Operator, async: true, changes: true,
			params: []param{
				networkID,
				{"forced", kindBool, false, "also if VMs still use it"},
			},
			fields: asyncFields, run: removeNetwork,
		},
		{
			name: "pushVirtualMachine", description: "Makes or changes a VM in the drop directory: what is not named stays, an empty value removes", role: account.Operator, async: true, changes: true,
			params: []param{
				vmID,
				{"hostname", kindString, false, "its host name"},
				{"nics", kindMap, false, "its NICs: nics[N].network, .macaddress, .ipaddress, .default, .leasetime; an empty network removes the NIC"},
				{"metadata", kindMap, false, "names of its metadata: metadata[N].key, .value"},
				{"userdata", kindString, false, "user data, base64"},
				{"vendordata", kindString, false, "vendor data, base64"},
				{"publickeys", kindString, false, "SSH public keys, one a line"},
				{"password", kindString, false, "the password that the guest fetches once"},
			},
			fields: asyncFields, run: pushVM,
		},
		{
			name: "removeVirtualMachine", description: "Removes a VM from the drop directory", role: account.Operator, async: true, changes: true,
			params: []param{vmID},
			fields: asyncFields, run: removeVM,
		},
		{
			name: "pushBundle", description: "Puts many units into the drop directory: the body of the POST is a tar or tar.gz archive of a drop directory", role: account.Operator, async: true, changes: true,
			params: []param{
				{"sha256", kindString, true, "SHA-256 of the body in hexadecimal"},
				{"expires", kindDate, false, "when the signature ends; a signed push must have it"},
				{"mode", kindString, false, "merge (default): what the bundle lacks stays; replace: it is removed"},
			},
			fields: asyncFields, run: pushBundle,
		},
		{
			name: "updateVirtualMachine", description: "Changes a VM's user data and metadata", role: account.Operator, changes: true,
			params: []param{
				vmID,
				{"userdata", kindString, false, "user data, base64; empty removes it"},
				{"details", kindMap, false, "names of its metadata: details[0].NAME=VALUE"},
			},
			fields: vmFields, run: updateVM,
		},
		{
			name: "resetUserDataForVirtualMachine", description: "Gives a VM new user data", role: account.Operator, changes: true,
			params: []param{
				vmID,
				{"userdata", kindString, false, "user data, base64; without it the VM has none"},
				{"userdatadetails", kindMap, false, "names of its metadata: userdatadetails[0].NAME=VALUE"},
			},
			fields: vmFields, run: resetUserData,
		},
		{
			name: "getVirtualMachineUserData", description: "Shows a VM's user data", role: account.Operator,
			params: []param{{"virtualmachineid", kindString, true, "the VM's name in the drop directory"}},
			fields: []answerField{{"virtualmachineid", kindString, "the VM"}, {"userdata", kindString, "base64"}},
			run:    getUserData,
		},
		{
			name: "resetPasswordForVirtualMachine", description: "Gives a VM a new password, which the job's result shows once", role: account.Operator, async: true, changes: true,
			params: []param{
				vmID,
				{"password", kindString, false, "the password; by default one is made"},
			},
			fields: asyncFields, run: resetPassword,
		},
	}
}

func listCommands() []*command {
	return []*command{
		{
			name: "listVirtualMachines", description: "Lists VMs with the state of each", role: account.Viewer,
			params: slices.Concat([]param{
				{"id", kindString, false, "the VM's name in the drop directory"},
				{"ids", kindString, false, "several of them, separated by commas"},
				{"name", kindString, false, "the same, or the host name"},
				{"networkid", kindString, false, "with a NIC in this network"},
				{"state", kindString, false, "applied, pending or rejected"},
			}, listParams),
			fields: vmFields, run: listVMs,
		},
		{
			name: "listNetworks", description: "Lists networks with the state of each", role: account.Viewer,
			params: slices.Concat([]param{
				{"id", kindString, false, "the network's name in the drop directory"},
				{"name", kindString, false, "the same"},
				{"state", kindString, false, "applied, pending or rejected"},
			}, listParams),
			fields: networkFields, run: listNetworks,
		},
		{
			name: "listRouters", description: "Lists this router", role: account.Viewer,
			params: slices.Concat([]param{
				{"id", kindString, false, "the router's id"},
				{"name", kindString, false, "the router's name"},
				{"state", kindString, false, "applied, pending or rejected"},
			}, listParams),
			fields: routerFields, run: listRouters,
		},
		{
			name: "listApis", description: "Lists the commands that the caller may use", role: account.Viewer,
			params: []param{{"name", kindString, false, "one command"}},
			fields: []answerField{
				{"name", kindString, "the name of the command"}, {"description", kindString, "what it does"},
				{"isasync", kindBool, "true if it is carried out by a job"}, {"params", kindMap, "its parameters"}, {"response", kindMap, "the fields of its answer"},
			},
			run: listApis,
		},
		{
			name: "listCapabilities", description: "Lists what this API can do", role: account.Viewer,
			fields: []answerField{{"cloudstackversion", kindString, "the version of CloudStack whose format this is"}, {"apilimitmax", kindInteger, "requests in an interval"}, {"apilimitinterval", kindInteger, "seconds"}},
			run:    listCapabilities,
		},
	}
}

func jobCommands() []*command {
	return []*command{
		{
			name: "queryAsyncJobResult", description: "Shows a job", role: account.Viewer,
			params: []param{{"jobid", kindUUID, true, "the id of the job"}},
			fields: jobFields, run: queryJob,
		},
		{
			name: "listAsyncJobs", description: "Lists jobs, the newest first", role: account.Viewer,
			params: slices.Concat([]param{
				{"account", kindString, false, "of this account"},
				{"jobstatus", kindInteger, false, "0 open, 1 done, 2 failed"},
				{"startdate", kindDate, false, "not before this time"},
			}, listParams),
			fields: jobFields, run: listJobs,
		},
	}
}

func accessCommands() []*command {
	return []*command{
		{
			name: "login", description: "Begins a session", open: true, role: account.Viewer, changes: true,
			params: []param{
				{"username", kindString, true, "the user's name"},
				{"password", kindString, true, "the password"},
				{"domain", kindString, false, "the path of the domain, /"},
				{"domainid", kindUUID, false, "the id of the domain"},
			},
			fields: []answerField{{"username", kindString, "the user's name"}, {"userid", kindString, "its id"}, {"account", kindString, "its account"}, {"timeout", kindInteger, "seconds until the session ends"}, {"sessionkey", kindString, "a parameter of further requests"}},
			run:    login,
		},
		{
			name: "logout", description: "Ends the session", role: account.Viewer, changes: true,
			fields: []answerField{{"description", kindString, "success"}},
			run:    logout,
		},
	}
}

func userCommands() []*command {
	names := []param{
		{"email", kindString, true, "the user's mail address"},
		{"firstname", kindString, true, "its first name"},
		{"lastname", kindString, true, "its last name"},
	}
	optional := slices.Clone(names)
	for i := range optional {
		optional[i].required = false
	}
	domain := param{"domainid", kindUUID, false, "the id of the domain"}
	timezone := param{"timezone", kindString, false, "its time zone"}
	return []*command{
		{
			name: "createUser", description: "Makes a user", role: account.Admin, changes: true,
			params: slices.Concat([]param{
				{"account", kindString, true, "admin, operator or viewer"},
				{"username", kindString, true, "its name, which no other user has"},
				{"password", kindString, true, "its password"},
			}, names, []param{timezone, domain}),
			fields: userFields, run: createUser,
		},
		{
			name: "updateUser", description: "Changes a user: an administrator any, others themselves", role: account.Viewer, changes: true,
			params: slices.Concat([]param{
				userID,
				{"username", kindString, false, "a new name"},
				{"password", kindString, false, "a new password"},
				{"currentpassword", kindString, false, "the password until now; needed by whoever changes their own"},
				{"userapikey", kindString, false, "an API key; together with usersecretkey"},
				{"usersecretkey", kindString, false, "a secret key; together with userapikey"},
			}, optional, []param{timezone}),
			fields: userFields, run: updateUser,
		},
		{name: "deleteUser", description: "Deletes a user", role: account.Admin, changes: true, params: []param{userID}, fields: doneFields, run: deleteUser},
		{name: "disableUser", description: "Disables a user", role: account.Admin, async: true, changes: true, params: []param{userID}, fields: asyncFields, run: disableUser},
		{name: "enableUser", description: "Enables a user", role: account.Admin, changes: true, params: []param{userID}, fields: userFields, run: enableUser},
		{name: "lockUser", description: "Locks a user", role: account.Admin, changes: true, params: []param{userID}, fields: userFields, run: lockUser},
		{
			name: "listUsers", description: "Lists users: an administrator all, others themselves", role: account.Viewer,
			params: slices.Concat([]param{
				{"id", kindUUID, false, "the id of the user"},
				{"username", kindString, false, "its name"},
				{"account", kindString, false, "its account"},
				{"accounttype", kindInteger, false, "0 user, 1 admin"},
				{"state", kindString, false, "enabled, disabled or locked"},
				{"usersource", kindString, false, "native or ldap"},
				domain,
			}, listParams),
			fields: userFields, run: listUsers,
		},
		{
			name: "getUser", description: "Finds a user by API key", role: account.Viewer,
			params: []param{{"userapikey", kindString, true, "the API key"}},
			fields: userFields, run: getUser,
		},
		{name: "registerUserKeys", description: "Makes new API keys for a user: an administrator for any, others for themselves", role: account.Viewer, changes: true, params: []param{userID}, fields: keyFields, run: registerUserKeys},
		{name: "getUserKeys", description: "Shows the API keys of a user: an administrator those of any, others their own", role: account.Viewer, params: []param{userID}, fields: keyFields, run: getUserKeys},
		{
			name: "listAccounts", description: "Lists accounts, which are the roles", role: account.Viewer,
			params: slices.Concat([]param{
				{"id", kindUUID, false, "the id of the account"},
				{"name", kindString, false, "its name"},
				{"accounttype", kindInteger, false, "0 user, 1 admin"},
				{"state", kindString, false, "enabled"},
				domain,
			}, listParams),
			fields: accountFields, run: listAccounts,
		},
	}
}

func ldapCommands() []*command {
	const reply = "ldapconfigurationresponse"
	domain := param{"domainid", kindUUID, false, "the id of the domain"}
	return []*command{
		{
			name: "addLdapConfiguration", description: "Takes an LDAP server in after it has answered; what is not named is as the first server has it", role: account.Admin, changes: true, reply: reply,
			params: []param{
				{"hostname", kindString, true, "the server's host name"},
				{"port", kindInteger, true, "the server's port; 636 means ldaps unless security says otherwise"},
				{"security", kindString, false, "starttls (default), ldaps or none"},
				{"cacertificate", kindString, false, "PEM of the authority that the server's certificate is from; by default what the system trusts"},
				{"basedn", kindString, false, "where users are looked for; needed for the first server"},
				{"binddn", kindString, false, "who searches; by default nobody"},
				{"bindpassword", kindString, false, "the password of binddn"},
				{"provider", kindString, false, "openldap (default) or microsoftad"},
				{"userobject", kindString, false, "object class of users"},
				{"groupobject", kindString, false, "object class of groups"},
				{"usernameattribute", kindString, false, "attribute that users log in with"},
				{"emailattribute", kindString, false, "attribute of the mail address"},
				{"firstnameattribute", kindString, false, "attribute of the first name"},
				{"lastnameattribute", kindString, false, "attribute of the last name"},
				{"memberattribute", kindString, false, "attribute of a group that names its members"},
				domain,
			},
			fields: ldapFields, run: addLDAP,
		},
		{
			name: "listLdapConfigurations", description: "Lists LDAP servers in the order in which they are asked", role: account.Admin, reply: reply,
			params: slices.Concat([]param{
				{"hostname", kindString, false, "the server's host name"},
				{"port", kindInteger, false, "the server's port"},
				{"id", kindUUID, false, "the id of the configuration"},
				domain,
			}, listParams),
			fields: ldapFields, run: listLDAP,
		},
		{
			name: "deleteLdapConfiguration", description: "Forgets an LDAP server, by id or by hostname", role: account.Admin, changes: true, reply: reply,
			params: []param{
				{"id", kindUUID, false, "the id of the configuration"},
				{"hostname", kindString, false, "the server's host name"},
				{"port", kindInteger, false, "the server's port"},
				domain,
			},
			fields: ldapFields, run: deleteLDAP,
		},
		{
			name: "listLdapUsers", description: "Lists users of the LDAP servers", role: account.Admin, reply: "ldapuserresponse",
			params: slices.Concat([]param{
				{"userfilter", kindString, false, "NoFilter (default), LocalDomain, AnyDomain or PotentialImport: all but the first leave out who is a user here"},
				{"listtype", kindString, false, "all (default) or new"},
				domain,
			}, listParams),
			fields: ldapUserFields, run: listLDAPUsers,
		},
		{
			name: "importLdapUsers", description: "Makes users of those of the LDAP servers", role: account.Admin, changes: true, reply: "ldapuserresponse",
			params: slices.Concat([]param{
				{"account", kindString, true, "admin, operator or viewer"},
				{"group", kindString, false, "DN of a group: its members only"},
				{"timezone", kindString, false, "their time zone"},
				domain,
			}, listParams),
			fields: ldapUserFields, run: importLDAPUsers,
		},
		{
			name: "linkAccountToLdap", description: "Gives the users of an LDAP group an account when they log in; an empty ldapdomain ends that", role: account.Admin, changes: true,
			params: []param{
				{"account", kindString, true, "admin, operator or viewer"},
				{"ldapdomain", kindString, false, "DN of the group or organisational unit"},
				{"type", kindString, false, "GROUP (default) or OU"},
				{"accounttype", kindInteger, false, "as the account has it"},
				domain,
			},
			fields: []answerField{{"ldapdomain", kindString, "the DN"}, {"type", kindString, "GROUP or OU"}, {"accountid", kindString, "the id of the account"}},
			run:    linkAccount,
		},
	}
}
