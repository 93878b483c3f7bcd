package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
)

func completionCommand(std stdio) *cobra.Command {
	return &cobra.Command{
		Use:   "completion {bash|zsh|fish}",
		Short: "Print the completions for a shell",
		Long: `Print the completions for a shell. The package installs them; by hand:

  bash  vragent completion bash > /etc/bash_completion.d/vragent
  zsh   vragent completion zsh > "${fpath[1]}/_vragent"
  fish  vragent completion fish > ~/.config/fish/completions/vragent.fish`,
		ValidArgs: []string{"bash", "zsh", "fish"},
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return cmd.Root().GenBashCompletionV2(std.out, true)
			case "zsh":
				return cmd.Root().GenZshCompletion(std.out)
			default:
				return cmd.Root().GenFishCompletion(std.out, true)
			}
		},
	}
}

// completeVMs completes the name of a VM with what the daemon knows. Where none runs there is
// nothing to complete.
func completeVMs(opts *options) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
		defer cancel()
		daemon := opts.dial()
		defer daemon.Close()
		vms, err := daemon.VMs(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names := make([]string, len(vms))
		for i, vm := range vms {
			names[i] = vm.Name
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
