// Command vragent runs the agent of a virtual router and talks to a running one.
//
// Each command has a file of its own. A command reads its arguments, asks the agent (package agent
// for run and check, the local API for everything else) and prints the answer: what an answer says
// is decided there, how it looks is decided here.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// A second signal ends the program the hard way.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(execute(ctx, terminal(), os.Args[1:]))
}

// execute runs one command line and returns its exit status.
func execute(ctx context.Context, std stdio, args []string) int {
	err := command(ctx, std, args)
	if err == nil {
		return exitOK
	}
	if line := oneLine(err.Error()); line != "" {
		fmt.Fprintln(std.err, "vragent: "+line)
	}
	return exitStatus(err)
}
