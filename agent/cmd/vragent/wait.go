package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vragent/agent/internal/api"
)

// Exit statuses of wait beside 0, all applied.
const (
	exitRejected = 1
	exitTimedOut = 2
	exitPending  = 3
)

func waitCommand(opts *options, std stdio) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wait [PATH...]",
		Short: "Wait until what was dropped is applied, pending or rejected",
		Long: `Wait until all that is in the drop directory now, or what lies at the given paths, is
applied, pending or rejected. A path that is not there from the current folder is
looked for from the drop directory: vragent wait vms/web-1

Exit status 0 all applied, 1 something is rejected, 2 the time was over first,
3 something is pending and nothing is rejected.`,
	}
	f := formatFlag(cmd)
	timeout := seconds(30 * time.Second)
	cmd.Flags().Var(&timeout, "timeout", "how long to wait at most")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		paths, err := unitPaths(args)
		if err != nil {
			return err
		}
		daemon := opts.dial()
		defer daemon.Close()
		res, err := daemon.Wait(cmd.Context(), paths, time.Duration(timeout))
		late := errors.Is(err, context.DeadlineExceeded)
		if err != nil && !late {
			return err
		}
		if err := f.print(std.out, res, func(w io.Writer) error { return writeWait(w, std, res, late) }); err != nil {
			return err
		}
		switch {
		case late:
			return &exitError{exitTimedOut, fmt.Errorf("not all was judged within %s: see vragent status", timeout.String())}
		case res.State == api.Rejected:
			return exit(exitRejected)
		case res.State == api.Pending:
			return exit(exitPending)
		}
		return nil
	}
	return cmd
}

// unitPaths makes the paths absolute that are there as they are given. The others the daemon
// looks for from the drop directory.
func unitPaths(args []string) ([]string, error) {
	paths := make([]string, len(args))
	for i, arg := range args {
		if _, err := os.Lstat(arg); err != nil {
			paths[i] = arg
			continue
		}
		abs, err := filepath.Abs(arg)
		if err != nil {
			return nil, err
		}
		paths[i] = abs
	}
	return paths, nil
}

func writeWait(w io.Writer, std stdio, res api.WaitResult, late bool) error {
	p := painter{std.color}
	var b strings.Builder
	if !late {
		b.WriteString(p.state(string(res.State)) + "\n")
	}
	for _, u := range res.Unsettled {
		b.WriteString(wrap(u+" is still open", "", "  ", width))
	}
	if err := writeUnits(&b, std, res.Units); err != nil {
		return err
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// seconds is a duration above zero as a flag.
type seconds time.Duration

func (s *seconds) String() string { return time.Duration(*s).String() }
func (s *seconds) Type() string   { return "duration" }

func (s *seconds) Set(text string) error {
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return errors.New("must be a time above zero, as in 30s or 2m")
	}
	*s = seconds(d)
	return nil
}
