// Package netcfg is what vragent knows of the router's network, and what it changes there.
//
// A Kernel follows links and their IPv4 addresses by netlink multicast and publishes each state as an
// immutable Snapshot. It never polls: idle, it costs nothing. The other way round it makes the kernel
// hold the addresses of a Plan and permanent neighbor entries. Nothing but this package speaks netlink.
//
// The agent's loop projects what it knows onto a plan, and does so again when the network has changed:
//
//	for {
//		s, stale := kernel.Current()
//		err := kernel.Apply(ctx, plan(files, s))
//		// ... serve what s allows, report err
//		select {
//		case <-stale:
//		case <-changed: // the files
//		case <-ctx.Done():
//			return nil
//		}
//	}
//
// # Whose is it
//
// Only what this agent added is ever taken down again, also by an agent that was killed and started
// anew. So everything that netcfg adds carries a mark that the kernel keeps and that newer versions of ip
// show as "proto 118": Protocol, on neighbor entries since Linux 5.0 and on addresses since 5.18. On
// older kernels a file tells which addresses are ours; permanent neighbors are refused there.
// What somebody else added is never ours, even where a plan asks for just that address.
//
// # What is left alone
//
// Links are not set up or down, renamed or made; routes, IPv6 and everything that no plan speaks of
// are not touched. An address may be added to a link that is down: it works as soon as the link is up.
package netcfg
