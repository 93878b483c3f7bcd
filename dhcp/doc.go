// Package dhcp is a DHCPv4 server for virtual routers: every known network card gets the one
// address that it is registered with, always and at once, and networks may add a pool for the rest.
//
// It has three layers. [Table] holds what is served: networks and their hosts, written by one
// goroutine and read by many without waiting. [Table.Answer] is the protocol: it takes a packet, the
// device it came in on and the time, and returns the reply or the reason for silence; apart from the
// state of pools it is a pure function. [Server] is the thin shell around it: one socket for each
// guest device, batched system calls, raw frames for clients that have no address yet, the journal of
// pool leases and the last exchanges of each guest.
//
// For a known host the table is the binding. Nothing is written, nothing is waited for, and nothing
// can go stale: a host that is removed or moved is refused at its next word, and one that asks for its
// own address is acknowledged, whatever was forgotten meanwhile. Leases from a pool are committed to
// the [Leases] of the caller before they are acknowledged (RFC 2131, sections 3.1 and 4.3), or to the
// [SharedLeases] of several servers, of which one serves at a time.
//
// The package knows no files and no configuration formats, sets no addresses and watches no links:
// whoever uses it says what the devices look like ([Server.SetDevices]). It speaks Linux only.
//
// RFCs: 951, 1534 and 1542 (BOOTP), 2131, 2132, 3046, 3396, 3397, 3442, 3527, 4039, 4361, 4578, 5107,
// 5227 (the probe), 6842, 8910, 8925.
package dhcp
