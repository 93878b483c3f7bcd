package main

import (
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// stdio is what a command reads from and writes to, and what it knows of its surroundings. Tests
// bring their own.
type stdio struct {
	in       io.Reader
	out, err io.Writer
	color    bool // out is a terminal that wants colour
	now      func() time.Time
}

// terminal is the stdio of the process.
func terminal() stdio {
	return stdio{
		in:    os.Stdin,
		out:   os.Stdout,
		err:   os.Stderr,
		color: wantsColor(os.Getenv, isTerminal(os.Stdout)),
		now:   time.Now,
	}
}

// wantsColor follows https://no-color.org: NO_COLOR counts when it is set and not empty.
func wantsColor(getenv func(string) string, terminal bool) bool {
	return terminal && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
