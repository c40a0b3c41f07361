// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/output"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// deploymentRow is a deployment in short.
type deploymentRow struct {
	Name      string           `json:"name"`
	Model     string           `json:"model"`
	Workload  map[string]int64 `json:"workload"`
	Objective string           `json:"objective"`
	State     string           `json:"state"`
	Epoch     uint64           `json:"epoch"`            // of its plan; 0: not placed yet
	Nodes     []string         `json:"nodes"`            // in the order of the pipeline
	Forecast  float64          `json:"forecast_seconds"` // per step
	Message   string           `json:"message,omitempty"`
}

func newDeploymentRow(d *pb.DeploymentStatus, names map[string]string) deploymentRow {
	v := newDeploymentView(d, names)
	r := deploymentRow{
		Name: v.Name, Model: v.Spec.ModelName, Workload: v.Spec.Workload, Objective: v.Spec.Objective, State: v.state(), Nodes: []string{},
	}
	if v.Plan != nil {
		r.Epoch, r.Forecast = v.Plan.Epoch, v.Plan.Forecast.Step
		for _, s := range v.Plan.Stages {
			if !slices.Contains(r.Nodes, s.Node) {
				r.Nodes = append(r.Nodes, s.Node)
			}
		}
	}
	if !v.Ready {
		r.Message = v.Message
	}
	return r
}

func newDeployments(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "deployments",
		Short: "List the deployments in short",
		Args:  arguments(0),
	}
	operatorFlags(cmd)
	format, watch := outputFlag(cmd), watchFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.show(cmd, watch, *format, listDeployments)
	}
	return cmd
}

func listDeployments(cmd *cobra.Command, o *operator) (answer, error) {
	all, err := ask(cmd.Context(), o, "", o.Control.Status, &pb.StatusRequest{})
	if err != nil {
		return answer{}, err
	}
	names, err := nodeNames(cmd, o)
	if err != nil {
		return answer{}, err
	}
	short, rows := []deploymentRow{}, [][]string{}
	for _, d := range all.Deployments {
		r := newDeploymentRow(d, names)
		short = append(short, r)
		forecast, epoch := "", ""
		if r.Epoch > 0 {
			forecast, epoch = output.Seconds(r.Forecast), fmt.Sprint(r.Epoch)
		}
		rows = append(rows, []string{r.Name, r.Model, showWorkload(r.Workload), r.Objective, r.State, epoch, strings.Join(r.Nodes, ", "), forecast, r.Message})
	}
	return answer{short, func(w io.Writer) error {
		return output.WriteTable(w, []string{"NAME", "MODEL", "WORKLOAD", "OBJECTIVE", "STATE", "EPOCH", "NODES", "FORECAST", "MESSAGE"}, rows)
	}}, nil
}
