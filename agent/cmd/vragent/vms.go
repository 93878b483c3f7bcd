package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"vragent/agent/internal/api"
)

func vmsCommand(opts *options, std stdio) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "vms",
		Short: "List the VMs, a line for each NIC",
		Args:  cobra.NoArgs,
	}
	f := formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		daemon := opts.dial()
		defer daemon.Close()
		vms, err := daemon.VMs(cmd.Context())
		if err != nil {
			return err
		}
		return f.print(std.out, vms, func(w io.Writer) error { return writeVMs(w, std, vms) })
	}
	return cmd
}

func writeVMs(w io.Writer, std stdio, vms []api.VM) error {
	if len(vms) == 0 {
		_, err := fmt.Fprintln(w, "no VMs: drop one as vms/NAME/vm.yaml")
		return err
	}
	p := painter{std.color}
	t := table{columns: []column{
		{title: "VM", names: true},
		{title: "STATE", paint: p.state},
		{title: "NETWORK", names: true},
		{title: "MAC"},
		{title: "ADDRESS"},
		{title: "SEEN", right: true},
	}}
	units := make([]api.Unit, 0, len(vms))
	for _, vm := range vms {
		units = append(units, vm.Unit)
		if len(vm.NICs) == 0 {
			t.add(vm.Name, string(vm.State), "", "", "", "")
		}
		for _, nic := range vm.NICs {
			t.add(vm.Name, string(vm.State), nic.Network, nic.MAC, nic.IPv4, seen(std.now(), nic.LastSeen))
		}
	}
	if err := t.write(w, ""); err != nil {
		return err
	}
	return writeUnits(w, std, units)
}

// seen tells how long ago a guest was last heard of.
func seen(now time.Time, at *time.Time) string {
	if at == nil {
		return ""
	}
	return age(now, *at)
}
