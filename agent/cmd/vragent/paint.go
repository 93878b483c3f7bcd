package main

import (
	"fmt"
	"time"

	"vragent/agent/internal/api"
)

// painter colours what a reader looks for first. The zero value leaves everything as it is.
type painter struct{ on bool }

func (p painter) paint(code, s string) string {
	if !p.on || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p painter) good(s string) string    { return p.paint("32", s) }
func (p painter) waiting(s string) string { return p.paint("33", s) }
func (p painter) bad(s string) string     { return p.paint("31", s) }
func (p painter) title(s string) string   { return p.paint("1", s) }

// state colours the name of a state.
func (p painter) state(s string) string {
	switch api.State(s) {
	case api.Applied:
		return p.good(s)
	case api.Pending:
		return p.waiting(s)
	case api.Rejected:
		return p.bad(s)
	}
	return s
}

// age tells how long ago t was, in the largest unit that fits; empty for the zero time.
func age(now, t time.Time) string {
	if t.IsZero() {
		return ""
	}
	d := now.Sub(t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d d", int(d.Hours()/24))
}

// count writes a number with the thousands apart: 10,003.
func count[N int | int64](n N) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// some writes a number and what it is of: "1 folder", "10,003 folders".
func some(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return count(n) + " " + what
}
