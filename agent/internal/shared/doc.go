// Package shared keeps what two routers of a pair must agree on in a store that exists for it: which
// client has which pool address, and which passwords have been taken. Either router can serve then, and
// neither brings back to life what the other ended.
//
// The keys, below a prefix that the pair has for itself:
//
//	PREFIX/epoch                  made with the store; another one tells that it was emptied
//	PREFIX/leases/NETWORK/IP      record of a pool address, as JSON
//	PREFIX/taken/VM               what package engine keeps of a taken password, never in clear
//
// Leases are written in transactions that compare: a record is replaced only where it is as this router
// knows it, so that two routers that serve at once, as they do when they cannot hear each other, never
// give one address to two clients. A watch tells each router what the other writes.
//
// A store that was emptied, by mistake or by its repair, gets back from the routers what they know.
//
// The package knows no DHCP beyond the record of a lease, and not what is in the record of a password.
package shared
