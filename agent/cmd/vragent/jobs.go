package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"vragent/agent/internal/api"
)

func jobsCommand(opts *options, std stdio) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "jobs [ID]",
		Short: "List the jobs of pushes, newest first, or show one",
		Args:  cobra.MaximumNArgs(1),
	}
	f := formatFlag(cmd)
	limit := cmd.Flags().Int("limit", 50, "how many jobs to list at most")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *limit < 1 {
			return &exitError{exitUsage, fmt.Errorf("--limit is %d; it must be 1 or more", *limit)}
		}
		daemon := opts.dial()
		defer daemon.Close()
		if len(args) == 1 {
			j, err := daemon.Job(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return f.print(std.out, j, func(w io.Writer) error { return writeJob(w, std, j) })
		}
		jobs, err := daemon.Jobs(cmd.Context(), *limit)
		if err != nil {
			return err
		}
		return f.print(std.out, jobs, func(w io.Writer) error { return writeJobs(w, std, jobs) })
	}
	return cmd
}

func writeJobs(w io.Writer, std stdio, jobs []api.Job) error {
	if len(jobs) == 0 {
		_, err := fmt.Fprintln(w, "no jobs: pushes over the API make them")
		return err
	}
	p := painter{std.color}
	paint := func(s string) string {
		switch s {
		case "failed":
			return p.bad(s)
		case "open":
			return p.waiting(s)
		}
		return s
	}
	t := table{columns: []column{
		{title: "ID"}, {title: "STATE", paint: paint}, {title: "UNIT", names: true}, {title: "USER", names: true}, {title: "AGE", right: true},
	}}
	for _, j := range jobs {
		t.add(j.ID, j.State, cmp.Or(j.Unit, j.Command), j.User, age(std.now(), j.Created))
	}
	return t.write(w, "")
}

func writeJob(w io.Writer, std stdio, j api.Job) error {
	var b strings.Builder
	line := func(title, text string) {
		if text != "" {
			b.WriteString(wrap(printable(text), fmt.Sprintf("%-10s", title), strings.Repeat(" ", 10), width))
		}
	}
	line("job", j.ID)
	line("command", j.Command)
	line("unit", j.Unit)
	line("user", j.User)
	state := j.State
	if j.State == "open" {
		state = fmt.Sprintf("open, %d %%", j.Percent)
	}
	line("state", state)
	line("waits for", j.Note)
	line("error", j.Error)
	line("created", age(std.now(), j.Created)+" ago")
	if j.Completed != nil {
		line("ended", age(std.now(), *j.Completed)+" ago")
	}
	_, err := io.WriteString(w, b.String())
	return err
}
