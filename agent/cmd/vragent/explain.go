package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vragent/agent/internal/api"
)

func explainCommand(opts *options, std stdio) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain VM|MAC|IP",
		Short: "Tell why a guest gets what it gets, and what stands in the way",
		Long: `Tell why a guest gets what it gets: its files, its networks and NICs, what it would be
served, its last exchanges with us, and what stands in the way.

Exit status 1 for a guest that nothing is known of.`,
		Args:              oneGuest,
		ValidArgsFunction: completeVMs(opts),
	}
	f := formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		daemon := opts.dial()
		defer daemon.Close()
		e, err := daemon.Explain(cmd.Context(), args[0])
		if errors.Is(err, api.ErrUnknown) {
			return fmt.Errorf("no VM, MAC or address %q is known: see vragent vms", args[0])
		}
		if err != nil {
			return err
		}
		return f.print(std.out, e, func(w io.Writer) error { return writeExplanation(w, std, e) })
	}
	return cmd
}

func oneGuest(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return errors.New("name one guest by its VM, MAC or IP")
	}
	return nil
}

func writeExplanation(w io.Writer, std stdio, e api.Explanation) error {
	p := painter{std.color}
	var b strings.Builder
	b.WriteString(wrap(e.Answer, "", "", width))
	if e.Next != "" {
		b.WriteString(wrap("To do: "+e.Next, "", "", width))
	}
	section := func(title string) { b.WriteString("\n" + p.title(title) + "\n") }

	if len(e.Obstacles) > 0 {
		section("In the way")
		for _, o := range e.Obstacles {
			b.WriteString(wrap(o, "  - ", "    ", width))
		}
	}
	if e.VM != nil {
		section("VM")
		b.WriteString(wrap(vmText(std, *e.VM), "  ", "  ", width))
		b.WriteString(remarks(e.VM.Unit))
		if err := writeNICs(&b, std, e.VM.NICs); err != nil {
			return err
		}
	}
	if len(e.Networks) > 0 {
		section("Networks")
		if err := writeNetworkTable(&b, std, e.Networks, "  "); err != nil {
			return err
		}
	}
	if len(e.Files) > 0 {
		section("Files")
		t := table{columns: []column{{title: "FILE", names: true}, {title: "BYTES", right: true}, {title: "CHANGED", right: true}}}
		for _, f := range e.Files {
			t.add(f.Path, count(f.Size), age(std.now(), f.Modified))
		}
		if err := t.write(&b, "  "); err != nil {
			return err
		}
	}
	if len(e.Served) > 0 {
		section("Would be served")
		t := table{columns: []column{{title: "TO"}, {title: "NAME", names: true}, {title: "VALUE", names: true}}}
		for _, s := range e.Served {
			t.add(s.NIC, s.Name, servedText(s))
		}
		if err := t.write(&b, "  "); err != nil {
			return err
		}
	}
	if len(e.DHCP) > 0 {
		section("DHCP, newest first")
		for _, d := range e.DHCP {
			b.WriteString(event(std, d.Time, exchangeText(d)))
		}
	}
	if len(e.Requests) > 0 {
		section("Requests, newest first")
		for _, r := range e.Requests {
			text := fmt.Sprintf("%d %s", r.Status, r.Path)
			if r.Why != "" {
				text += ": " + r.Why
			}
			b.WriteString(event(std, r.Time, text))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func vmText(std stdio, vm api.VM) string {
	text := vm.Name
	if vm.Hostname != "" {
		text += ", host name " + vm.Hostname
	}
	text += ", " + string(vm.State)
	if a := age(std.now(), vm.Since); a != "" {
		text += " for " + a
	}
	return text
}

func writeNICs(w io.Writer, std stdio, nics []api.NIC) error {
	if len(nics) == 0 {
		return nil
	}
	t := table{columns: []column{
		{title: "NETWORK", names: true}, {title: "MAC"}, {title: "ADDRESS"},
		{title: "DEFAULT"}, {title: "SERVED"}, {title: "SEEN", right: true}, {title: "LEASE", right: true},
	}}
	for _, n := range nics {
		t.add(n.Network, n.MAC, n.IPv4, yes(n.Default), yes(n.Served), seen(std.now(), n.LastSeen), left(std.now(), n.LeaseEnds))
	}
	if err := t.write(w, "  "); err != nil {
		return err
	}
	for _, n := range nics {
		if n.Why == "" {
			continue
		}
		if _, err := io.WriteString(w, wrap(n.IPv4+": "+n.Why, "  ", "    ", width)); err != nil {
			return err
		}
	}
	return nil
}

// left tells how long a lease still runs.
func left(now time.Time, ends *time.Time) string {
	switch {
	case ends == nil:
		return ""
	case ends.Before(now):
		return "over"
	}
	return age(*ends, now)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// servedText is a value, or how much there is of what is too long to be shown.
func servedText(s api.ServedEntry) string {
	switch {
	case s.Value != "":
		return strings.ReplaceAll(strings.TrimRight(s.Value, "\n"), "\n", " / ")
	case s.Size > 0:
		return count(s.Size) + " bytes"
	}
	return "(empty)"
}

// event is what happened at a time, the time in a column of its own.
func event(std stdio, at time.Time, text string) string {
	return wrap(text, fmt.Sprintf("%12s  ", age(std.now(), at)+" ago"), strings.Repeat(" ", 14), width)
}

func exchangeText(d api.DHCPExchange) string {
	text := d.Message + ": " + d.Answer
	for _, part := range []struct{ word, value string }{{" ", d.Address}, {" from ", d.MAC}, {" on ", d.Device}, {", because ", d.Why}} {
		if part.value != "" {
			text += part.word + part.value
		}
	}
	return text
}
