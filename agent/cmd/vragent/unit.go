package main

import (
	"io"
	"strings"

	"vragent/agent/internal/api"
)

// writeUnits tells what there is to say of units: their reasons and notes. Units that nothing is
// to be said of are left out.
func writeUnits(w io.Writer, std stdio, units []api.Unit) error {
	p := painter{std.color}
	var b strings.Builder
	for _, u := range units {
		if len(u.Reasons)+len(u.Notes) == 0 && u.State == api.Applied {
			continue
		}
		line := p.state(string(u.State)) + "  " + printable(u.Unit)
		if a := age(std.now(), u.Since); a != "" {
			line += ", for " + a
		}
		b.WriteString("\n" + line + "\n" + remarks(u))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// remarks is what there is to say of a unit, a line or more for each reason and note.
func remarks(u api.Unit) string {
	var b strings.Builder
	for _, r := range u.Reasons {
		b.WriteString(wrap(r.String(), "  ", "    ", width))
	}
	if u.State == api.Rejected && u.InForce {
		b.WriteString("  its last good content stays in force\n")
	}
	for _, n := range u.Notes {
		b.WriteString(wrap("note: "+n, "  ", "    ", width))
	}
	return b.String()
}
