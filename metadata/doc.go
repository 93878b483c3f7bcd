// Package metadata serves guests their metadata, user data and passwords over HTTP, on the guest
// devices of a router.
//
// A Table holds what is served to whom; its writer is the agent. A Server listens on the serving
// addresses of the guest devices and answers from the table. Who asks is told by the device that a
// connection came in on, to which the listening socket is bound, and by its source address. No
// field of a request takes part in that.
//
// The package leaves to others what it is told: which networks are served on which device, which
// addresses are there, what is in a VM's files, and where the record of taken passwords is kept.
package metadata
