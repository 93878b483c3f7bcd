package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"vragent/agent/internal/api"
)

func networksCommand(opts *options, std stdio) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "networks",
		Short: "List the guest networks and whether they are served",
		Args:  cobra.NoArgs,
	}
	f := formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		daemon := opts.dial()
		defer daemon.Close()
		networks, err := daemon.Networks(cmd.Context())
		if err != nil {
			return err
		}
		return f.print(std.out, networks, func(w io.Writer) error { return writeNetworks(w, std, networks) })
	}
	return cmd
}

func writeNetworks(w io.Writer, std stdio, networks []api.Network) error {
	if len(networks) == 0 {
		_, err := fmt.Fprintln(w, "no networks: drop one as networks/NAME.yaml")
		return err
	}
	if err := writeNetworkTable(w, std, networks, ""); err != nil {
		return err
	}
	units := make([]api.Unit, len(networks))
	for i, n := range networks {
		units[i] = n.Unit
	}
	return writeUnits(w, std, units)
}

func writeNetworkTable(w io.Writer, std stdio, networks []api.Network, indent string) error {
	p := painter{std.color}
	t := table{columns: []column{
		{title: "NETWORK", names: true},
		{title: "STATE", paint: p.state},
		{title: "SERVES", paint: func(s string) string {
			if s == "standby" {
				return p.waiting(s)
			}
			return s
		}},
		{title: "DEVICE"},
		{title: "GATEWAY"},
		{title: "GUESTS", right: true},
	}}
	pools := false
	for _, n := range networks {
		pools = pools || n.PoolTotal > 0
	}
	if pools {
		t.columns = append(t.columns, column{title: "POOL", right: true})
	}
	for _, n := range networks {
		row := []string{n.Name, string(n.State), serves(n), n.Device, gateway(n), count(n.Guests)}
		if pools {
			pool := ""
			if n.PoolTotal > 0 {
				pool = fmt.Sprintf("%d/%d", n.PoolUsed, n.PoolTotal)
			}
			row = append(row, pool)
		}
		t.add(row...)
	}
	return t.write(w, indent)
}

// serves tells whether guests of the network are answered.
func serves(n api.Network) string {
	switch {
	case !n.InForce || n.State == api.Pending:
		return "no"
	case n.Standby:
		return "standby"
	}
	return "yes"
}

// gateway is the gateway with the length of the subnet's prefix, as the network's file has it.
func gateway(n api.Network) string {
	if _, bits, ok := strings.Cut(n.Subnet, "/"); ok && n.Gateway != "" && !strings.Contains(n.Gateway, "/") {
		return n.Gateway + "/" + bits
	}
	return n.Gateway
}
