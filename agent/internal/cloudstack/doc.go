// Package cloudstack is the dialect of a CloudStack management server: it takes the files that such
// a server drops on its virtual router for events and folds them into units of the drop directory.
//
// The core is pure. Parse reads one file, Memory.Fold turns an event into changes of units and into
// what must be remembered until the next event, and neither touches anything. Dialect is the shell
// around it: it puts the changes through the one door to the drop directory, keeps the memory, and
// tells what became of each file. Archive and Aggregated serve the programs that a management
// server starts on the router, which talk to the Dialect by Client and Handler.
//
// A newer server drives DHCP and user data by an extension, whose calls (ParseCall) are folded in the
// same way, each network by a Memory of its own, since networks of different tenants may overlap.
//
// The package alone knows those formats. What the units say in the end is judged elsewhere.
package cloudstack
