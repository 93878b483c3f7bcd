// Package page is the status page: what an operator sees of the agent in a browser.
//
// Every view is rendered here and reads the agent's reports; none changes anything. Views work
// without a script; with one they keep themselves up to date. Who may look is decided by Sessions,
// and a session of the page is no right to use the API.
package page
