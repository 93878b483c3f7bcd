package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"vragent/agent/internal/cloudstack"
)

// updateConfig takes one file in. Ours alone never starts the original; shared files are taken in
// and then handed to it; all others are its own.
func (r *router) updateConfig(ctx context.Context, env, args []string) int {
	if len(args) < 1 || len(args) > 2 {
		fmt.Fprintln(r.out, "usage: update_config.py NAME [false]")
		return 1
	}
	kind := cloudstack.KindOf(args[0])
	keep := len(args) < 2 || args[1] != "false"
	original := r.original("update_config.py")
	if !kind.Ours() && !kind.Shared() {
		if original == "" {
			fmt.Fprintf(r.out, "%s: a file of this kind is not vragent's, and there is no original update_config.py to hand it to\n", args[0])
			return 1
		}
		return r.start(ctx, env, original, args...)
	}
	// What the router is comes first, if it still lies there: the original holds to that order too.
	names := []string{args[0]}
	if _, err := os.Stat(r.in.Archive.Path("cmd_line.json")); err == nil && args[0] != "cmd_line.json" {
		names = []string{"cmd_line.json", args[0]}
	}
	in := r.in
	in.LeaveShared = original != ""
	if kind.Shared() && original != "" {
		// One that is gone is the original's to judge.
		if _, err := os.Stat(in.Archive.Path(args[0])); errors.Is(err, os.ErrNotExist) {
			return r.start(ctx, env, original, args...)
		}
	}
	results, err := in.Take(ctx, names, keep)
	status := r.report(results, err)
	if kind.Shared() && original != "" {
		if s := r.start(ctx, env, original, args...); s != 0 {
			return s
		}
	}
	return status
}

// original returns the path of a diverted program, or "" where there is none.
func (r *router) original(name string) string {
	path := filepath.Join(r.bin, name+".cloudstack")
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// start runs a program of the router and returns its exit status.
func (r *router) start(ctx context.Context, env []string, path string, args ...string) int {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, os.Stdin, r.out, r.err
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exit.ExitCode()
	}
	fmt.Fprintf(r.out, "%s: %v\n", path, err)
	return 1
}

// report prints what became of files and returns the exit status that says so.
func (r *router) report(results []cloudstack.Result, err error) int {
	status := 0
	for _, res := range results {
		if res.State == cloudstack.Rejected {
			status = 1
			fmt.Fprintf(r.out, "%s: rejected: %s\n", res.Name, res.Reason)
		} else if res.State == cloudstack.Pending {
			fmt.Fprintf(r.out, "%s: pending: %s\n", res.Name, res.Reason)
		}
		for _, note := range res.Notes {
			fmt.Fprintf(r.out, "%s: %s\n", res.Name, note)
		}
	}
	if err != nil {
		status = 1
		fmt.Fprintf(r.out, "not taken in: %v\n", err)
	}
	return status
}
