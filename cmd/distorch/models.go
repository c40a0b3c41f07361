// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/output"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

type modelView struct {
	Name            string            `json:"name"`
	ID              string            `json:"id"`
	Architecture    string            `json:"architecture"`
	Variant         string            `json:"variant"`
	FileBytes       uint64            `json:"file_bytes"`
	Parameters      uint64            `json:"parameters"`
	DefaultDType    string            `json:"default_dtype"`
	HyperParameters map[string]string `json:"hyper_parameters,omitempty"`
	Holders         []string          `json:"holders"`
}

// shortID is how much of an id tables show; commands take that much too.
const shortID = 12

func newModels(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "models",
		Short: "List the checkpoints that the nodes hold",
	}
	group(cmd)
	operatorFlags(cmd)
	format := outputFlag(cmd)
	unknown := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknown(cmd, args)
		}
		o, err := a.connect(cmd)
		if err != nil {
			return err
		}
		defer o.close()
		answer, err := ask(cmd.Context(), o, "list models", o.Control.ListModels, &pb.ListModelsRequest{})
		if err != nil {
			return err
		}
		views, rows := []modelView{}, [][]string{}
		for _, m := range answer.Models {
			r := m.GetRecord()
			v := modelView{
				r.GetName(), r.GetId(), r.GetArchitecture(), r.GetVariant(), r.GetFileBytes(), r.GetParameters(), r.GetDefaultDtype(),
				r.GetHyperParameters(), append([]string{}, m.Holders...),
			}
			views = append(views, v)
			rows = append(rows, []string{
				v.Name, v.ID[:min(len(v.ID), shortID)], v.Architecture, v.Variant, output.Bytes(v.FileBytes),
				output.Count(float64(v.Parameters), ""), v.DefaultDType, strings.Join(v.Holders, ", "),
			})
		}
		if *format != output.Table {
			return output.Write(a.stdout, *format, views)
		}
		return output.WriteTable(a.stdout, []string{"NAME", "ID", "ARCHITECTURE", "VARIANT", "FILE", "PARAMETERS", "DTYPE", "NODES"}, rows)
	}
	cmd.AddCommand(newModelsInspect(a))
	return cmd
}
