package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"
)

// format is how a report is printed: a table for people, JSON or YAML for programs.
type format string

const (
	asTable format = "table"
	asJSON  format = "json"
	asYAML  format = "yaml"
)

var formats = []string{string(asTable), string(asJSON), string(asYAML)}

// String, Set and Type make a format a flag.
func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "format" }

func (f *format) Set(s string) error {
	switch format(s) {
	case asTable, asJSON, asYAML:
		*f = format(s)
		return nil
	}
	return errors.New("must be table, json or yaml")
}

// formatFlag gives cmd the flag -o.
func formatFlag(cmd *cobra.Command) *format {
	f := asTable
	cmd.Flags().VarP(&f, "output", "o", "how to print it: table, json or yaml")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	return &f
}

// print writes report in format f; people prints it for people.
func (f format) print(w io.Writer, report any, people func(io.Writer) error) error {
	switch f {
	case asJSON:
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(report)
	case asYAML:
		enc := yaml.NewEncoder(w)
		enc.SetIndent(2)
		return errors.Join(enc.Encode(report), enc.Close())
	}
	if err := people(w); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}
