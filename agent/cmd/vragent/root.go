package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"vragent/agent"
	"vragent/agent/internal/api"
)

// options are the flags that every command takes.
type options struct {
	config string

	// guessed: the configuration could not be used, so the socket is the default one.
	guessed bool
}

// command runs one command line. What the command line itself gets wrong is exit status 64, and
// a missing daemon 69.
func command(ctx context.Context, std stdio, args []string) error {
	started := false
	opts := &options{}
	root := newRoot(std, opts, func() { started = true })
	root.SetArgs(append([]string{}, args...)) // cobra takes nil for the arguments of the process
	cmd, err := root.ExecuteContextC(ctx)
	switch {
	case err == nil:
		return nil
	case !started: // cobra refused the command line before any command ran
		return &exitError{exitUsage, fmt.Errorf("%w: see %s --help", err, cmd.CommandPath())}
	case errors.Is(err, api.ErrNoDaemon):
		if opts.guessed {
			err = fmt.Errorf("%w (that is the default: %s cannot be used, see vragent check, and may name another socket)", err, opts.config)
		}
		return &exitError{exitNoDaemon, err}
	}
	return err
}

// newRoot builds the tree of commands. It calls started once the command line has been understood
// and a command is about to run.
func newRoot(std stdio, opts *options, started func()) *cobra.Command {
	root := &cobra.Command{
		Use:   "vragent",
		Short: "DHCP, metadata and user data for the guests of a virtual router",
		Long: `vragent serves the guests of a virtual router with DHCP, metadata and user data
from the files in its drop directory.

"vragent run" is the daemon. The other commands ask a running one, except check,
which reads the files by itself, and restore, which needs it stopped.`,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(*cobra.Command, []string) error {
			return &exitError{exitUsage, errors.New("a command is missing: see vragent --help")}
		},
		PersistentPreRun: func(*cobra.Command, []string) { started() },
	}
	root.SetOut(std.out)
	root.SetErr(std.err)
	root.CompletionOptions.DisableDefaultCmd = true // completion.go has one for the shells we test
	root.PersistentFlags().StringVar(&opts.config, "config", agent.DefaultConfig, "the agent's configuration `file`")
	_ = root.MarkPersistentFlagFilename("config", "yaml")
	root.AddCommand(
		runCommand(opts, std),
		checkCommand(opts, std),
		statusCommand(opts, std),
		networksCommand(opts, std),
		vmsCommand(opts, std),
		explainCommand(opts, std),
		waitCommand(opts, std),
		leasesCommand(opts, std),
		jobsCommand(opts, std),
		pushCommand(opts, std),
		applyCommand(opts, std),
		userCommand(opts, std),
		backupCommand(opts, std),
		restoreCommand(opts, std),
		versionCommand(std),
		completionCommand(std),
	)
	return root
}
