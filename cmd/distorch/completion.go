// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/distorch/distorch/cmd/internal/output"
	"github.com/distorch/distorch/placement/blocktable"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// completionTimeout is how long a shell waits for names of the cluster.
const completionTimeout = time.Second

const completionHelp = `Prints a script that lets a shell complete commands, flags, their values, and the
names of deployments, nodes and models, for which it asks the coordinator (and
offers none where that does not answer within a second).

  bash        distorch completion bash > ~/.local/share/bash-completion/completions/distorch
  zsh         distorch completion zsh > "${fpath[1]}/_distorch"
  fish        distorch completion fish > ~/.config/fish/completions/distorch.fish
  powershell  distorch completion powershell >> $PROFILE

Open a new shell afterwards. bash needs the package bash-completion, zsh the line
"autoload -U compinit; compinit" in ~/.zshrc.`

// shells are those that a script can be made for.
func shells() []string { return []string{"bash", "zsh", "fish", "powershell"} }

func newCompletion(a *app) *cobra.Command {
	return &cobra.Command{
		Use:       "completion SHELL",
		Short:     "Print a script that lets a shell complete commands and names",
		Long:      completionHelp,
		Args:      arguments(1, "SHELL"),
		ValidArgs: shells(),
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.stdout)
			case "fish":
				return root.GenFishCompletion(a.stdout, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(a.stdout)
			}
			return usage(fmt.Errorf("shell %w", output.OneOf(args[0], shells())))
		},
	}
}

// source gives names to complete with; none if the cluster does not answer.
type source func(ctx context.Context, o *operator) []string

// complete tells a command and those below it what their arguments and flags take.
func (a *app) complete(cmd *cobra.Command) error {
	for _, sub := range cmd.Commands() {
		if err := a.complete(sub); err != nil {
			return err
		}
	}
	a.completeArguments(cmd)
	var err error
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if fn := a.flagCompletion(f); fn != nil && err == nil {
			err = cmd.RegisterFlagCompletionFunc(f.Name, fn)
		}
	})
	return err
}

// completeArguments goes by the words of a command's usage.
func (a *app) completeArguments(cmd *cobra.Command) {
	_, word, _ := strings.Cut(cmd.Use, " ")
	switch {
	case len(cmd.ValidArgs) > 0:
	case cmd.Name() == "remove", cmd.Name() == "doctor", cmd.Name() == "lend":
		cmd.ValidArgsFunction = onlyFirst(a.asked(nodesOf))
	case cmd.Name() == "revoke":
		cmd.ValidArgsFunction = onlyFirst(a.asked(tokensOf))
	case cmd.Name() == "inspect":
		cmd.ValidArgsFunction = onlyFirst(cobra.FixedCompletions([]string{"safetensors", "gguf"}, cobra.ShellCompDirectiveFilterFileExt))
	case cmd.Name() == "verify":
		cmd.ValidArgsFunction = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs)
	case strings.Contains(word, "NAME") || strings.Contains(word, "DEPLOYMENT"):
		cmd.ValidArgsFunction = onlyFirst(a.asked(deploymentsOf))
	case word == "" || strings.HasPrefix(word, "-"): // others may take files
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
}

// flagCompletion is how a flag's value is completed; nil: by files.
func (a *app) flagCompletion(f *pflag.Flag) cobra.CompletionFunc {
	switch f.Name {
	case "exclude":
		return listed(a.asked(nodesOf))
	case "pin":
		return listed(a.asked(func(ctx context.Context, o *operator) []string {
			var out []string
			for _, n := range nodesOf(ctx, o) {
				out = append(out, n+"=")
			}
			return out
		}))
	case "model":
		return withFiles(publishedWith(a.asked(modelsOf)))
	case "data-dir", "keep", "models":
		return cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs)
	case "listen", "advertise", "etcd", "etcd-listen", "agent-listen", "coordinator", "name", "client", "join", "prompt", "workload",
		"devices", "blocks", "compute", "virtual-vram", "reserve", "what-if":
		return cobra.NoFileCompletions
	}
	words := choices(f.Name)
	if f.Name == outputName { // some commands have a format of their own
		words = strings.Split(f.Value.Type(), "|")
	}
	if words != nil {
		return listed(cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
	switch f.Value.Type() {
	case "int", "uint64", "float64", "duration", "bytes":
		return cobra.NoFileCompletions
	}
	return nil
}

// publishedWith completes with the names of published models too, and with a cluster file with them alone.
func publishedWith(asked cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		f := cmd.Flags().Lookup("cluster")
		if f == nil {
			return asked(cmd, args, word)
		}
		if f.Changed {
			return blocktable.Names(), cobra.ShellCompDirectiveDefault
		}
		live, directive := asked(cmd, args, word)
		return append(live, blocktable.Names()...), directive
	}
}

// asked completes with what a coordinator answers.
func (a *app) asked(names source) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		cmd.SetContext(ctx)
		// A log would stand between the words.
		silent := &app{stdin: a.stdin, stdout: io.Discard, stderr: io.Discard, configFile: a.configFile}
		o, err := silent.connect(cmd)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer o.close()
		var out []string
		for _, n := range names(ctx, o) {
			out = append(out, output.Clean(n)) // a name may come from a file's
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

func nodesOf(ctx context.Context, o *operator) (names []string) {
	all, err := o.Control.ListNodes(ctx, &pb.ListNodesRequest{})
	if err != nil {
		return nil
	}
	for _, n := range all.Nodes {
		names = append(names, n.GetRecord().GetName())
	}
	return names
}

func modelsOf(ctx context.Context, o *operator) (names []string) {
	all, err := o.Control.ListModels(ctx, &pb.ListModelsRequest{})
	if err != nil {
		return nil
	}
	for _, m := range all.Models {
		names = append(names, m.GetRecord().GetName())
	}
	return names
}

func deploymentsOf(ctx context.Context, o *operator) (names []string) {
	all, err := o.Control.Status(ctx, &pb.StatusRequest{})
	if err != nil {
		return nil
	}
	for _, d := range all.Deployments {
		names = append(names, d.GetSpec().GetName())
	}
	return names
}

// onlyFirst completes one argument.
func onlyFirst(f cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return f(cmd, args, word)
	}
}

// withFiles lets the shell complete with files where no name fits.
func withFiles(f cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		names, _ := f(cmd, args, word)
		return names, cobra.ShellCompDirectiveDefault
	}
}

// listed completes the last of several values with commas between them. After
// a word that ends with = more is to be typed.
func listed(f cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		before := word[:strings.LastIndexByte(word, ',')+1]
		names, directive := f(cmd, args, word)
		out := make([]string, len(names))
		for i, n := range names {
			if strings.HasSuffix(n, "=") {
				directive |= cobra.ShellCompDirectiveNoSpace
			}
			out[i] = before + n
		}
		return out, directive
	}
}
