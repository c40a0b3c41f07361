// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/distorch/distorch/cmd/internal/config"
	"github.com/distorch/distorch/cmd/internal/output"
)

func newRoot(a *app) *cobra.Command {
	root := group(&cobra.Command{
		Use:   "distorch",
		Short: "One ComfyUI model across mixed machines",
		Long: `distorch runs one ComfyUI model across mixed machines. It tells you the speed
before it runs, and the split never changes the picture.

Settings come from flags, the environment (DISTORCH_AGENT_MEMORY for
agent.memory), the file of --config, and defaults, in this order.

` + exitHelp,
	})
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(flagError)
	flags := root.PersistentFlags()
	flags.StringVar(&a.configFile, "config", "", "file of settings (YAML, TOML or JSON)")
	config.Flag(flags, "data-dir", "data_dir", "folder of this machine's identity, state and caches")
	config.Flag(flags, "log-level", "log.level", "debug, info, warn or error")
	config.Flag(flags, "log-format", "log.format", "text or json")
	root.AddCommand(commands(a)...)
	if err := a.complete(root); err != nil {
		panic(err) // of a flag that is completed twice
	}
	return root
}

// commands are all commands.
func commands(a *app) []*cobra.Command {
	return []*cobra.Command{
		newUp(a), newCoordinator(a), newAgent(a),
		newToken(a), newNodes(a), newModels(a), newPlan(a), newDevices(a), newAllocation(a), newDeploy(a), newRun(a), newStatus(a), newDeployments(a), newUndeploy(a),
		newCalibrate(a), newForecast(a), newVerify(), newCompare(a), newDoctor(a), newLend(a), newComfy(a), newQuickstart(a), newConfig(a), newCompletion(a), newVersion(a),
	}
}

// group makes a command that only has commands below it: alone it shows its
// help, and a word that it does not know is answered with the nearest.
func group(c *cobra.Command) *cobra.Command {
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		var names []string
		for _, sub := range cmd.Commands() {
			if !sub.Hidden {
				names = append(names, sub.Name())
			}
		}
		return usage(fmt.Errorf("there is no command %q%s (%q lists them)", cmd.CommandPath()+" "+args[0], output.DidYouMean(args[0], names), cmd.CommandPath()+" --help"))
	}
	return c
}

// arguments checks how many arguments a command is given; names say what they
// are.
func arguments(least int, names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usage(fmt.Errorf("%s needs %s; %q shows how", cmd.CommandPath(), names[len(args)], cmd.CommandPath()+" --help"))
		case len(args) > len(names):
			return usage(fmt.Errorf("%s: unexpected argument %q; %q shows how", cmd.CommandPath(), args[len(names)], cmd.CommandPath()+" --help"))
		}
		return nil
	}
}

// wanted are values of a flag's type in words; empty where its own error says
// them.
func wanted(flagType string) string {
	switch flagType {
	case "int":
		return "a whole number"
	case "uint64":
		return "a whole number, 0 or more"
	case "float64":
		return "a number"
	case "bool":
		return "true or false"
	case "duration":
		return "a duration such as 250ms or 20s"
	}
	return ""
}

// flagError names the nearest flag, or what is wrong with the value of one.
func flagError(cmd *cobra.Command, err error) error {
	if wrong, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		f := wrong.GetFlag()
		err = fmt.Errorf("--%s %w", f.Name, errors.Unwrap(wrong))
		if want := wanted(f.Value.Type()); want != "" {
			err = fmt.Errorf("--%s %q: want %s", f.Name, wrong.GetValue(), want)
		}
	}
	var missing *pflag.NotExistError
	if !errors.As(err, &missing) {
		return usage(fmt.Errorf("%s: %w", cmd.CommandPath(), err))
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, "--"+f.Name)
		}
	})
	name := missing.GetSpecifiedName()
	if len(name) == 1 {
		return usage(fmt.Errorf("%s has no flag -%s (%q lists them)", cmd.CommandPath(), name, cmd.CommandPath()+" --help"))
	}
	return usage(fmt.Errorf("%s has no flag --%s%s (%q lists them)", cmd.CommandPath(), name, output.DidYouMean("--"+name, names), cmd.CommandPath()+" --help"))
}
