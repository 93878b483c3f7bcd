// Package account knows who may use the API: users with their roles, API keys, passwords and
// sessions, and the authenticators that decide whether a password is right.
//
// Users are kept durable in a Store of the caller; sessions and counts of failed logins live as
// long as the process. How requests are signed and what commands exist is the business of package
// api.
package account
