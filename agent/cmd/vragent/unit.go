package main

import (
	"cmp"
	"io"
	"slices"
	"strings"

	"vragent/agent/internal/api"
)

// mostUnits is how many units a report for people speaks of: with one network pending, each of its
// VMs is.
const mostUnits = 20

// writeUnits tells what there is to say of units: their reasons and notes, rejected ones first. Units
// that nothing is to be said of are left out.
func writeUnits(w io.Writer, std stdio, units []api.Unit) error {
	p := painter{std.color}
	var b strings.Builder
	units = slices.DeleteFunc(slices.Clone(units), func(u api.Unit) bool {
		return len(u.Reasons)+len(u.Notes) == 0 && u.State == api.Applied
	})
	slices.SortStableFunc(units, func(a, b api.Unit) int { return cmp.Compare(severity(b.State), severity(a.State)) })
	more := 0
	if len(units) > mostUnits {
		units, more = units[:mostUnits], len(units)-mostUnits
	}
	for _, u := range units {
		line := p.state(string(u.State)) + "  " + printable(u.Unit)
		if a := age(std.now(), u.Since); a != "" {
			line += ", for " + a
		}
		b.WriteString("\n" + line + "\n" + remarks(u))
	}
	if more > 0 {
		b.WriteString("\nand " + count(more) + " more: vragent status -o json\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func severity(s api.State) int {
	switch s {
	case api.Rejected:
		return 2
	case api.Pending:
		return 1
	}
	return 0
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
