package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"vragent/agent/internal/api"
)

// roles are what a user of the API may be.
var roles = []string{"admin", "operator", "viewer"}

func userCommand(opts *options, std stdio) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "user",
		Short: "Administer the users of the API",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return &exitError{exitUsage, fmt.Errorf("a command is missing: see %s --help", cmd.CommandPath())}
		},
	}
	cmd.AddCommand(userAddCommand(opts, std), userListCommand(opts, std), userRemoveCommand(opts), userKeysCommand(opts, std))
	return cmd
}

func userAddCommand(opts *options, std stdio) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add NAME --role admin|operator|viewer",
		Short: "Add a user and print its keys, once",
		Long: `Add a user and print its keys. They are shown now and never again. Operators push
and list, viewers list, administrators do everything.`,
		Args: cobra.ExactArgs(1),
	}
	role := cmd.Flags().String("role", "", "admin, operator or viewer")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(roles, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !slices.Contains(roles, *role) {
			return &exitError{exitUsage, fmt.Errorf("--role is %q; it must be %s", *role, strings.Join(roles, ", "))}
		}
		daemon := opts.dial()
		defer daemon.Close()
		keys, err := daemon.AddUser(cmd.Context(), args[0], *role)
		if err != nil {
			return err
		}
		return writeKeys(std.out, keys)
	}
	return cmd
}

func userListCommand(opts *options, std stdio) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the users",
		Args:  cobra.NoArgs,
	}
	f := formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		daemon := opts.dial()
		defer daemon.Close()
		users, err := daemon.Users(cmd.Context())
		if err != nil {
			return err
		}
		return f.print(std.out, users, func(w io.Writer) error { return writeUsers(w, std, users) })
	}
	return cmd
}

func userRemoveCommand(opts *options) *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a user; its keys and sessions end with it",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			daemon := opts.dial()
			defer daemon.Close()
			return daemon.RemoveUser(cmd.Context(), args[0])
		},
	}
}

func userKeysCommand(opts *options, std stdio) *cobra.Command {
	return &cobra.Command{
		Use:   "keys NAME",
		Short: "Make new keys for a user and print them, once; the old ones end",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			daemon := opts.dial()
			defer daemon.Close()
			keys, err := daemon.NewKeys(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return writeKeys(std.out, keys)
		},
	}
}

func writeKeys(w io.Writer, keys api.Keys) error {
	_, err := fmt.Fprintf(w, "apikey: %s\nsecretkey: %s\n", keys.APIKey, keys.SecretKey)
	return err
}

func writeUsers(w io.Writer, std stdio, users []api.User) error {
	if len(users) == 0 {
		_, err := fmt.Fprintln(w, "no users: vragent user add NAME --role admin makes the first")
		return err
	}
	t := table{columns: []column{
		{title: "NAME", names: true}, {title: "ROLE"}, {title: "STATE"}, {title: "SOURCE"}, {title: "KEYS"}, {title: "AGE", right: true},
	}}
	for _, u := range users {
		t.add(u.Name, u.Role, u.State, u.Source, yes(u.Keys), age(std.now(), u.Created))
	}
	return t.write(w, "")
}
