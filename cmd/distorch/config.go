// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/config"
	"github.com/distorch/distorch/cmd/internal/output"
)

// settingView is a key with its value and where that came from.
type settingView struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Source string `json:"source"`         // flag, environment, file or default
	Name   string `json:"name,omitempty"` // of the flag, variable or file
	Line   int    `json:"line,omitempty"` // in the file
	origin string
}

func newConfig(a *app) *cobra.Command {
	root := group(&cobra.Command{Use: "config", Short: "Show the configuration"})
	root.AddCommand(newConfigShow(a))
	return root
}

func newConfigShow(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the value of every key, and where it comes from",
		Long: `Shows what flags, environment, the file of --config and defaults come to. As YAML
or JSON it is a file that --config takes; with --origin it is a list with the
source of each value. Files that keys name are not opened.`,
		Args: arguments(0),
	}
	operatorFlags(cmd)
	agentFlags(cmd.Flags())
	format := outputFlag(cmd)
	origin := cmd.Flags().Bool("origin", false, "say where each value comes from")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, _, err := a.load(cmd)
		if err != nil {
			return err
		}
		views := []settingView{}
		for _, s := range cfg.Settings() {
			views = append(views, settingView{s.Key, s.Value, s.Origin.Source, s.Origin.Name, s.Origin.Line, s.Origin.String()})
		}
		switch {
		case *format == output.Table:
			return writeSettings(a, views, *origin)
		case *origin:
			return output.Write(a.stdout, *format, views)
		}
		return output.Write(a.stdout, *format, nested(cfg.Settings(), ""))
	}
	return cmd
}

func writeSettings(a *app, views []settingView, origin bool) error {
	header, rows := []string{"KEY", "VALUE"}, [][]string{}
	if origin {
		header = append(header, "ORIGIN")
	}
	for _, v := range views {
		text := fmt.Sprint(v.Value)
		if list, ok := v.Value.([]string); ok {
			text = strings.Join(list, ",")
		}
		row := []string{v.Key, text}
		if origin {
			row = append(row, v.origin)
		}
		rows = append(rows, row)
	}
	return output.WriteTable(a.stdout, header, rows)
}

// tree is a JSON object whose keys keep their order.
type tree []branch

type branch struct {
	name  string
	value any
}

// MarshalJSON writes the branches in order.
func (t tree) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, br := range t {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(br.name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(br.value)
		if err != nil {
			return nil, err
		}
		b.Write(append(append(name, ':'), value...))
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// nested are the settings below a prefix in sections, as a file has them. Keys
// of one section stand together.
func nested(settings []config.Setting, prefix string) tree {
	out := tree{}
	for i := 0; i < len(settings); {
		name, _, section := strings.Cut(strings.TrimPrefix(settings[i].Key, prefix), ".")
		if !section {
			out = append(out, branch{name, settings[i].Value})
			i++
			continue
		}
		below := prefix + name + "."
		end := i
		for end < len(settings) && strings.HasPrefix(settings[end].Key, below) {
			end++
		}
		out = append(out, branch{name, nested(settings[i:end], below)})
		i = end
	}
	return out
}
