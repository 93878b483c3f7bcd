package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"vragent/agent/internal/cloudstack"
)

// caller takes calls of an extension in: a client of the agent.
type caller interface {
	Call(ctx context.Context, command string, document []byte) (cloudstack.Result, json.RawMessage, error)
}

// extension takes one call of a NetworkOrchestrator extension in. On standard output the server
// expects nothing but the answers that it asks for; of a failure it logs what it finds there.
func (r *router) extension(ctx context.Context, args []string) int {
	if len(args) < 2 || len(args) > 3 {
		return r.failed("usage: vragent-extension COMMAND PAYLOAD-FILE [TIMEOUT]")
	}
	limit := time.Minute
	if len(args) == 3 {
		seconds, err := strconv.ParseFloat(args[2], 64)
		if err != nil || !(seconds > 0 && seconds <= 1e6) {
			return r.failed(fmt.Sprintf("the time limit is %q; it must be a number of seconds", args[2]))
		}
		limit = time.Duration(seconds * float64(time.Second))
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	document, err := os.ReadFile(args[1])
	if err != nil {
		return r.failed(err.Error())
	}
	result, answer, err := r.calls.Call(ctx, args[0], document)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return r.failed(fmt.Sprintf("%s: not done within %s", args[0], limit))
	case err != nil:
		return r.failed(fmt.Sprintf("%s: not taken in: %v", args[0], err))
	case result.State == cloudstack.Rejected:
		return r.failed(fmt.Sprintf("%s: %s", result.Name, result.Reason))
	}
	r.logf("%s: %s %s", result.Name, result.State, result.Reason)
	for _, note := range result.Notes {
		r.logf("%s: %s", result.Name, note)
		fmt.Fprintf(r.err, "%s: %s\n", result.Name, note)
	}
	if result.State == cloudstack.Pending {
		fmt.Fprintf(r.err, "%s: pending: %s\n", result.Name, result.Reason)
	}
	if answer != nil {
		fmt.Fprintf(r.out, "%s\n", answer)
	}
	return 0
}

// failed tells the server why a call failed, and returns the exit status.
func (r *router) failed(why string) int {
	r.logf("%s", why)
	line, _ := json.Marshal(map[string]string{"status": "failed", "message": why}) // text always can be
	fmt.Fprintf(r.out, "%s\n", line)
	return 1
}
