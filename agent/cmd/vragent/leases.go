package main

import (
	"fmt"
	"io"
	"net/netip"

	"github.com/spf13/cobra"

	"vragent/agent/internal/api"
)

func leasesCommand(opts *options, std stdio) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "leases",
		Short: "List who has which address: known NICs and pool leases",
		Args:  cobra.NoArgs,
	}
	f := formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		daemon := opts.dial()
		defer daemon.Close()
		leases, err := daemon.Leases(cmd.Context())
		if err != nil {
			return err
		}
		return f.print(std.out, leases, func(w io.Writer) error { return writeLeases(w, std, leases) })
	}
	cmd.AddCommand(releaseCommand(opts))
	return cmd
}

func releaseCommand(opts *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "release IP",
		Short: "End the pool lease of an address",
		Long: `End the pool lease of an address. Its client is refused at its next word and asks
anew. A known VM's address is taken away by removing the VM from the drop directory.

Exit status 0, or 1 with the reason.`,
		Args: cobra.ExactArgs(1),
	}
	network := cmd.Flags().String("network", "", "the network, where several lease this address")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		address, err := netip.ParseAddr(args[0])
		if err != nil {
			return &exitError{exitUsage, fmt.Errorf("%q is no address: see vragent leases", args[0])}
		}
		daemon := opts.dial()
		defer daemon.Close()
		return daemon.ReleaseLease(cmd.Context(), *network, address)
	}
	return cmd
}

func writeLeases(w io.Writer, std stdio, leases []api.Lease) error {
	if len(leases) == 0 {
		_, err := fmt.Fprintln(w, "no leases, and no VMs that could have one")
		return err
	}
	t := table{columns: []column{
		{title: "NETWORK", names: true}, {title: "IPV4"}, {title: "MAC"}, {title: "FOR", names: true},
		{title: "STATE"}, {title: "ENDS", right: true}, {title: "SEEN", right: true},
	}}
	for _, l := range leases {
		who := l.VM
		if l.Pool {
			who = "pool"
			if l.Hostname != "" {
				who += ": " + l.Hostname
			}
		}
		t.add(l.Network, l.IPv4, l.MAC, who, l.State, left(std.now(), l.Expires), seen(std.now(), l.LastSeen))
	}
	return t.write(w, "")
}
