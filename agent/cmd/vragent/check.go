package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"vragent/agent"
	"vragent/agent/internal/api"
)

func checkCommand(opts *options, std stdio) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check [PATH...]",
		Short: "Name every fault of the configuration and of the drop directory",
		Long: `Read the configuration and the drop directory, or the given networks, VMs and drop
directories, as the daemon would, and print every fault as file:line:col: what.
No daemon is needed, and nothing is changed.

Exit status 0, or 1 where there are faults.`,
	}
	f := formatFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		faults, notes := agent.Check(opts.config, args)
		report := checkReport{Faults: make([]api.Fault, len(faults)), Notes: notes}
		for i, err := range faults {
			report.Faults[i] = faultOf(err)
		}
		if err := f.print(std.out, report, report.write); err != nil {
			return err
		}
		if len(faults) > 0 {
			return exit(exitFailed)
		}
		return nil
	}
	return cmd
}

// checkReport is what check found.
type checkReport struct {
	Faults []api.Fault `json:"faults" yaml:"faults"`
	Notes  []string    `json:"notes,omitempty" yaml:"notes,omitempty"`
}

func (r checkReport) write(w io.Writer) error {
	for _, f := range r.Faults {
		if _, err := fmt.Fprintln(w, oneLine(f.String())); err != nil {
			return err
		}
	}
	for _, n := range r.Notes {
		if _, err := fmt.Fprintln(w, oneLine("note: "+n)); err != nil {
			return err
		}
	}
	return nil
}

// faultOf is err with its place apart, where it has one.
func faultOf(err error) api.Fault {
	var f agent.ConfigFault
	if errors.As(err, &f) {
		return api.Fault{File: f.File, Line: f.Line, Column: f.Column, What: f.What}
	}
	return api.Fault{What: err.Error()}
}
