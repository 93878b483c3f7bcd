package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vragent/agent/internal/api"
)

func statusCommand(opts *options, std stdio) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the daemon at a glance, and what is rejected or pending and why",
		Long: `Show the daemon at a glance, and what is rejected or pending and why.

Exit status 1 where something is rejected, a unit or the newest configuration.`,
		Args: cobra.NoArgs,
	}
	f := formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		daemon := opts.dial()
		defer daemon.Close()
		s, err := daemon.Status(cmd.Context())
		if err != nil {
			return err
		}
		err = f.print(std.out, s, func(w io.Writer) error { return writeStatus(w, std, s) })
		if err != nil {
			return err
		}
		if s.Networks[api.Rejected]+s.VMs[api.Rejected]+len(s.Config.Faults) > 0 {
			return exit(exitFailed)
		}
		return nil
	}
	return cmd
}

func writeStatus(w io.Writer, std stdio, s api.Status) error {
	p := painter{std.color}
	var b strings.Builder
	line := func(title, text string) {
		b.WriteString(wrap(text, fmt.Sprintf("%-16s", title), strings.Repeat(" ", 16), width))
	}
	line("vragent", fmt.Sprintf("%s, running for %s", s.Version, age(std.now(), s.Started)))
	config := "the defaults"
	if len(s.Config.Files) > 0 {
		config = strings.Join(s.Config.Files, ", ")
	}
	line("configuration", fmt.Sprintf("%s, read %s ago", config, age(std.now(), s.Config.Loaded)))
	line("drop directory", s.DropDir+", "+watchText(s.Watch))
	if s.Shared != nil {
		line("shared state", sharedText(std, s.Shared))
	}
	if missing := missingPowers(s.Powers); len(missing) > 0 {
		line("powers", "started without "+strings.Join(missing, ", "))
	}
	for i, text := range cloudstackText(std.now(), s.CloudStack) {
		line([]string{"cloudstack", ""}[min(i, 1)], text)
	}
	b.WriteString("\n")

	t := table{columns: []column{
		{title: ""},
		{title: "APPLIED", right: true},
		{title: "PENDING", right: true, paint: nonzero(p.waiting)},
		{title: "REJECTED", right: true, paint: nonzero(p.bad)},
	}}
	for _, row := range []struct {
		name   string
		counts map[api.State]int
	}{{"networks", s.Networks}, {"vms", s.VMs}} {
		t.add(row.name, count(row.counts[api.Applied]), count(row.counts[api.Pending]), count(row.counts[api.Rejected]))
	}
	if err := t.write(&b, ""); err != nil {
		return err
	}

	section := func(title string, lines []string) {
		if len(lines) == 0 {
			return
		}
		b.WriteString("\n" + p.bad(title) + "\n")
		for _, l := range lines {
			b.WriteString(wrap(l, "  ", "    ", width))
		}
	}
	section("faults of the daemon", s.Faults)
	faults := make([]string, len(s.Config.Faults))
	for i, f := range s.Config.Faults {
		faults[i] = f.String()
	}
	section("the newest configuration is rejected, the older one stays in force", faults)
	section("changed in the configuration, in force after a restart only", s.Config.Restart)
	section("open for writing, read once their writers close them", s.Watch.Unsettled)
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	return writeUnits(w, std, s.Units)
}

func sharedText(std stdio, s *api.SharedStatus) string {
	if s.Current {
		return fmt.Sprintf("in step with the other router for %s, through %s", age(std.now(), s.Since), s.Endpoint)
	}
	return fmt.Sprintf("out of reach for %s: no new pool leases and no passwords until it is back: %s", age(std.now(), s.Since), s.Why)
}

// cloudstackText tells how vragent-cloudstack stands in for the router's own scripts.
func cloudstackText(now time.Time, c *api.CloudStackStatus) []string {
	if c == nil {
		return nil
	}
	if !c.InForce {
		return []string{"the router's own scripts are in force"}
	}
	out := []string{"the diversions are in force for " + age(now, c.Since)}
	for _, r := range c.Replaced {
		out = append(out, fmt.Sprintf("%s was replaced %s ago (%s) and put back", r.Path, age(now, r.Last), times(r.Times)))
	}
	return out
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func watchText(w api.WatchStatus) string {
	text := some(w.Watched, "folder") + " watched"
	if w.Unwatched > 0 {
		text += fmt.Sprintf(", %s beyond the kernel's limit scanned each second", count(w.Unwatched))
	}
	if w.QuietTime {
		text += "; its file system has no leases, so a file counts as complete after a second without a change"
	}
	return text
}

func missingPowers(powers map[string]bool) []string {
	var missing []string
	for name, has := range powers {
		if !has {
			missing = append(missing, "CAP_"+strings.ToUpper(name))
		}
	}
	slices.Sort(missing)
	return missing
}

// nonzero paints every number but 0.
func nonzero(paint func(string) string) func(string) string {
	return func(s string) string {
		if s == "0" {
			return s
		}
		return paint(s)
	}
}
