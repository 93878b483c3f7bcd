// Package api is how programs talk to a running agent.
//
// Two APIs share its listeners. Local is for the command line and tools on the router: reports as
// HTTP and JSON over a unix socket whose peers are known; Client is its other end. Companion is for
// management planes: CloudStack's wire format, with users, roles, and jobs for whatever changes
// something. A change goes through Drop, the one door to the drop directory, and there is no other
// way.
//
// The package declares what it needs of the agent, Backend and Drop, and the reports that they
// hand out; the agent implements them. Nothing here knows how a unit is judged or served.
//
//	request ── who is it ── may they ── parameters ── job on disk ── answer: the job's id
//	                                                     │
//	                 everything that waits, together: judge ── put ── settle ── job done
package api
