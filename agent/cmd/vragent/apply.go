package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"vragent/agent"
	"vragent/agent/internal/cloudstack"
)

func applyCommand(opts *options, std stdio) *cobra.Command {
	return &cobra.Command{
		Use:   "apply FILE...",
		Short: "Take files of a CloudStack management server in, and wait",
		Long: `Take files of a CloudStack management server in: single ones like vm_dhcp_entry.json.UUID
or an aggregated VR-UUID.cfg. A name without a folder is looked for in cloudstack.dir.
A line tells what became of each. cloudstack.enabled must be true.

Exit status 0 where all are in force, standing by or pending, else 1.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := agent.LoadConfig(opts.config)
			if err != nil {
				return err
			}
			daemon := cloudstack.Dial(cfg.API.Socket)
			defer daemon.Close()
			intake := cloudstack.Intake{Taker: daemon, Archive: cloudstack.Archive{Dir: cfg.CloudStack.Dir}}
			results, err := intake.Take(cmd.Context(), args, true)
			rejected := 0
			for _, r := range results {
				if r.State == "" {
					continue // the error says why it was not looked at
				}
				line := fmt.Sprintf("%s %s", r.State, r.Name)
				if r.Reason != "" {
					line += ": " + r.Reason
				}
				fmt.Fprintln(std.out, oneLine(line))
				for _, note := range r.Notes {
					fmt.Fprintln(std.out, oneLine("note: "+note))
				}
				if r.State == cloudstack.Rejected {
					rejected++
				}
			}
			switch {
			case errors.Is(err, cloudstack.ErrNoDaemon):
				return &exitError{exitNoDaemon, err}
			case err != nil:
				return err
			case rejected > 0:
				return exit(exitFailed)
			}
			return nil
		},
	}
}
