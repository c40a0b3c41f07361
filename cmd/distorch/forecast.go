// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/chart"
	"github.com/distorch/distorch/cmd/internal/output"
	"github.com/distorch/distorch/placement/forecast"
)

func newForecast(a *app) *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "forecast",
		Short: "Hold the forecast's rules against measurements",
	})
	cmd.AddCommand(newForecastValidate(a))
	return cmd
}

func newForecastValidate(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "validate TABLE.csv...",
		Short: "Forecast measured offloading from its two smallest offloads, and say how far off that is",
		Long: `Reads tables of seconds per iteration against gigabytes of weights kept off the
compute device, a column for each kind of link:

  # RTX 3090, 1024x1024. Two forward passes per iteration.
  offload_gb,pcie3x8,nvlink
  0,4.28,4.28
  1.2,4.71,4.37
  4.8,6.07,

Offloads ascend from 0; cells may be empty but for the first row's; each link has
three values at least. Each column is fitted on its two smallest offloads and the
rest is predicted. Beside it stand "no slowdown", the first table's seconds per
GB on later tables' columns of the same name, and the time of a step whose copies
run under compute.`,
		Args: atLeastOne("TABLE.csv"),
	}
	format := outputFlag(cmd)
	dir := cmd.Flags().String("svg", "", "folder for a plot of each table, TABLE.svg")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		var tables []*forecast.Table
		for _, path := range args {
			t, err := readForecastTable(path)
			if err != nil {
				return err
			}
			for i, other := range tables {
				if *dir != "" && other.Name == t.Name {
					return usage(fmt.Errorf("%s and %s would both be plotted as %s.svg; rename one", args[i], path, t.Name))
				}
			}
			tables = append(tables, t)
		}
		r, err := forecast.Validate(tables...)
		if err != nil {
			return err
		}
		if *dir != "" {
			if err := plotForecasts(*dir, r); err != nil {
				return err
			}
		}
		if *format != output.Table {
			return output.Write(a.stdout, *format, r)
		}
		return writeForecasts(a, r)
	}
	return cmd
}

// atLeastOne checks that a command is given one argument or more.
func atLeastOne(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return arguments(1, name)(cmd, args)
		}
		return nil
	}
}

func readForecastTable(path string) (*forecast.Table, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, usage(err)
	}
	defer f.Close()
	name := strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
	t, err := forecast.Parse(name, f)
	if syntax, ok := errors.AsType[*forecast.SyntaxError](err); ok {
		return nil, usage(fmt.Errorf("%s:%w", path, syntax))
	}
	if err != nil {
		return nil, usage(fmt.Errorf("%s: %w", path, err))
	}
	return t, nil
}

func plotForecasts(dir string, r *forecast.Report) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	for _, t := range r.Tables {
		drawing := chart.Forecast(t)
		f, err := reserve(filepath.Join(dir, t.Name+".svg"), len(drawing), 0o666)
		if err != nil {
			return err
		}
		if err := f.commit(drawing); err != nil {
			return err
		}
	}
	return nil
}

func writeForecasts(a *app, r *forecast.Report) error {
	for _, t := range r.Tables {
		passes := "1 forward"
		if t.Forwards > 1 {
			passes = fmt.Sprintf("%d forwards", t.Forwards)
		}
		if _, err := fmt.Fprintf(a.stdout, "%s, %s per iteration\n", output.Clean(t.Name), passes); err != nil {
			return err
		}
		links, rows := [][]string{}, [][]string{}
		for _, c := range t.Columns {
			rate := ""
			if c.GBPerSecond > 0 {
				rate = fmt.Sprintf("%.3g", c.GBPerSecond)
			}
			links = append(links, []string{c.Name, fmt.Sprintf("%.2f", c.BaseSeconds), fmt.Sprintf("%.4f", c.SecondsPerGB), rate, fmt.Sprint(c.Compared), chart.Percent(c.Mean), chart.Percent(c.Worst)})
			for _, x := range c.Rows {
				predicted, off := fmt.Sprintf("%.2f", x.Predicted), chart.SignedPercent(x.Error)
				if x.Fitted {
					predicted, off = "fitted", ""
				}
				rows = append(rows, []string{c.Name, fmt.Sprint(x.OffloadGB), fmt.Sprint(x.Measured), predicted, off, fmt.Sprintf("%.2f", x.Overlapped)})
			}
		}
		if err := output.WriteTable(a.stdout, []string{"LINK", "BASE S", "S PER GB", "GB/S", "PREDICTED", "MEAN ERROR", "WORST"}, links); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(a.stdout); err != nil {
			return err
		}
		if err := output.WriteTable(a.stdout, []string{"LINK", "OFFLOAD GB", "MEASURED S", "FORECAST S", "ERROR", "OVERLAPPED S"}, rows); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(a.stdout); err != nil {
			return err
		}
	}
	if err := output.WriteTable(a.stdout, []string{"RULE", "ROWS", "MEAN ERROR", "WORST"}, forecastRules(r)); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.stdout, "\ncopies under compute would save %s of the measured time of these rows in the mean, %s at best\n",
		chart.Percent(r.Overlap.MeanSaving), chart.Percent(r.Overlap.BestSaving))
	return err
}

// forecastRules are the lines of the closing table: the forecast over all rows it
// predicts, and the cruder rules.
func forecastRules(r *forecast.Report) (rows [][]string) {
	add := func(rule string, e forecast.Errors) {
		rows = append(rows, []string{rule, fmt.Sprint(e.Compared), chart.Percent(e.Mean), chart.Percent(e.Worst)})
	}
	add("two smallest offloads", r.Errors)
	add("no slowdown", r.Baselines.NoSlowdown)
	if other := r.Baselines.OtherTable; other != nil {
		add(fmt.Sprintf("seconds per GB of %s", other.From), other.Errors)
		add("the same, on the rows of the first rule", other.SameRows)
	}
	return rows
}
