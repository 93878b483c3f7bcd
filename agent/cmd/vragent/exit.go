package main

import (
	"errors"
	"strings"
)

// Exit statuses beside those that a command documents for itself. The two large ones are those of
// sysexits.h, EX_USAGE and EX_UNAVAILABLE.
const (
	exitOK       = 0
	exitFailed   = 1
	exitUsage    = 64
	exitNoDaemon = 69
)

// exitError is an error with an exit status of its own. One without a cause says nothing: what it
// is about has been printed already.
type exitError struct {
	status int
	cause  error
}

func (e *exitError) Error() string {
	if e.cause == nil {
		return ""
	}
	return e.cause.Error()
}

func (e *exitError) Unwrap() error { return e.cause }

// exit ends a command with a status and nothing more to say.
func exit(status int) error {
	if status == exitOK {
		return nil
	}
	return &exitError{status: status}
}

// exitStatus is the exit status that err stands for.
func exitStatus(err error) int {
	var e *exitError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &e):
		return e.status
	}
	return exitFailed
}

// oneLine puts a message of several lines on one, as standard error gets it.
func oneLine(s string) string {
	var parts []string
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" {
			parts = append(parts, printable(line))
		}
	}
	return strings.Join(parts, "; ")
}
