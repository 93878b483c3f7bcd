package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"vragent/agent/internal/cloudstack"
)

// way is how a program of the router is started.
type way struct {
	env     []string
	out     io.Writer // of standard output, and of standard error where it is not this program's own
	replace bool      // whether it may take the place of this program when nothing is left to do
}

// ownFile says what the router is. It makes it itself when it boots.
const ownFile = "cmd_line.json"

// updateConfig takes one file in. Ours alone never starts the original; shared files are taken in
// and then handed to it; all others are its own.
func (r *router) updateConfig(ctx context.Context, by way, args []string) int {
	if len(args) < 1 || len(args) > 2 {
		r.sayf("usage: update_config.py NAME [false]")
		return 1
	}
	kind := cloudstack.KindOf(args[0])
	keep := len(args) < 2 || args[1] != "false"
	original := r.original("update_config.py")
	if !kind.Ours() && !kind.Shared() {
		if original == "" {
			r.sayf("%s: a file of this kind is not vragent's, and there is no original update_config.py to hand it to", args[0])
			return 1
		}
		return r.last(ctx, by, original, args...)
	}
	// What the router is comes first, if it still lies there: the original holds to that order too.
	names := []string{args[0]}
	if _, err := os.Stat(r.in.Archive.Path(ownFile)); err == nil && args[0] != ownFile {
		names = []string{ownFile, args[0]}
	}
	in := r.in
	in.LeaveShared = original != ""
	if kind.Shared() && original != "" {
		// One that is gone is the original's to judge.
		if _, err := os.Stat(in.Archive.Path(args[0])); errors.Is(err, os.ErrNotExist) {
			return r.last(ctx, by, original, args...)
		}
	}
	results, err := in.Take(ctx, names, keep)
	named := len(results) - 1 // the file that was asked for; the other one is told of
	r.report(results[:named], nil)
	status := r.report(results[named:], err)
	switch {
	case !kind.Shared() || original == "":
		return status
	case status == 0:
		return r.last(ctx, by, original, args...)
	}
	// The firewall needs it, whatever became of our part.
	if s := r.start(ctx, by, original, args...); s != 0 {
		return s
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

// last starts a program when nothing is left to do for this one, and returns its exit status. As the
// program takes the place of this one, all that it does and gets is its own: arguments, environment,
// output, signals, status.
func (r *router) last(ctx context.Context, by way, path string, args ...string) int {
	r.logf("%s gets %q", path, args)
	if by.replace && r.become != nil {
		err := r.become(path, append([]string{path}, args...), by.env)
		r.sayf("%s: %v", path, err)
		return 1
	}
	return r.start(ctx, by, path, args...)
}

// start runs a program of the router and returns its exit status, as a shell would tell it.
func (r *router) start(ctx context.Context, by way, path string, args ...string) int {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = by.env, os.Stdin, by.out, by.out
	if by.replace {
		cmd.Stderr = r.err
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Second // for what it leaves running with its output open
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return 128 + int(status.Signal())
		}
		return exit.ExitCode()
	}
	r.sayf("%s: %v", path, err)
	return 1
}

// report prints what became of files and returns the exit status that says so.
func (r *router) report(results []cloudstack.Result, err error) int {
	status := 0
	for _, res := range results {
		switch res.State {
		case cloudstack.Rejected:
			status = 1
			r.sayf("%s: rejected: %s", res.Name, res.Reason)
		case cloudstack.Pending:
			r.sayf("%s: pending: %s", res.Name, res.Reason)
		case cloudstack.Applied:
			r.logf("%s: applied", res.Name)
		}
		for _, note := range res.Notes {
			r.sayf("%s: %s", res.Name, note)
		}
	}
	if err != nil {
		status = 1
		r.sayf("not taken in: %v", err)
	}
	return status
}
