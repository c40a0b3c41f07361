// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/output"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

type specView struct {
	Name       string           `json:"name"`
	ID         string           `json:"id"`
	Generation uint64           `json:"generation"`
	Model      string           `json:"model"`
	ModelName  string           `json:"model_name"`
	Workload   map[string]int64 `json:"workload"`
	InFlight   uint32           `json:"in_flight"`
	DType      string           `json:"dtype"`
	Objective  string           `json:"objective"`
	Pins       []string         `json:"pins"`
	Excludes   []string         `json:"excludes"`
	LoRAs      []loraView       `json:"loras,omitempty"`

	Allocation  string `json:"allocation,omitempty"`
	Compat      string `json:"compat,omitempty"`
	VirtualVRAM uint64 `json:"virtual_vram_bytes,omitempty"`
	Fit         string `json:"fit,omitempty"`
	Reserve     uint64 `json:"reserve_bytes,omitempty"`
	Storage     string `json:"storage,omitempty"`
}

type observedView struct {
	Node        string `json:"node"`
	NodeID      string `json:"node_id"`
	Epoch       uint64 `json:"epoch"`
	State       string `json:"state"` // loading, ready, failed, freed
	Message     string `json:"message,omitempty"`
	LoadedBytes uint64 `json:"loaded_bytes"`
	TotalBytes  uint64 `json:"total_bytes"`
	PeakBytes   uint64 `json:"account_peak_bytes"`
	HostPeak    uint64 `json:"host_peak_bytes"`
}

type deploymentView struct {
	Name     string         `json:"name"`
	Ready    bool           `json:"ready"`
	Message  string         `json:"message,omitempty"`
	Spec     specView       `json:"spec"`
	Plan     *planView      `json:"plan"`
	Observed []observedView `json:"observed"`
	Stages   []stageState   `json:"stages,omitempty"` // what the agents say of them now
}

func newSpecView(s *pb.DeploymentSpec) specView {
	v := specView{
		Name: s.GetName(), ID: s.GetId(), Generation: s.GetGeneration(), Model: s.GetModel(), ModelName: s.GetModelName(),
		Workload: s.GetWorkload().GetDims(), InFlight: s.GetWorkload().GetInFlight(), DType: s.GetDtype(), Objective: s.GetObjective(),
		Pins: []string{}, Excludes: append([]string{}, s.GetExcludes()...),
		LoRAs: newLoRAViews(s.GetLoras()), Allocation: s.GetAllocation(), Compat: s.GetCompat(), VirtualVRAM: s.GetVirtualVramBytes(),
		Fit: s.GetFit(), Reserve: s.GetReserveBytes(), Storage: s.GetStorage(),
	}
	for _, p := range s.GetPins() {
		v.Pins = append(v.Pins, fmt.Sprintf("%s=%d-%d", p.Node, p.FirstBlock, p.FirstBlock+max(p.Blocks, 1)-1))
	}
	return v
}

func newDeploymentView(d *pb.DeploymentStatus, names map[string]string) deploymentView {
	v := deploymentView{
		Name: d.GetSpec().GetName(), Ready: d.Ready, Message: d.Message,
		Spec: newSpecView(d.GetSpec()), Plan: newPlanView(d.Plan, names), Observed: []observedView{},
	}
	for _, o := range d.Observed {
		name := stageName(d.Plan, o.Node)
		if n := names[o.Node]; n != "" {
			name = n
		}
		v.Observed = append(v.Observed, observedView{name, o.Node, o.Epoch, strings.ToLower(o.State.String()), o.Message, o.LoadedBytes, o.TotalBytes, o.AccountPeakBytes, o.HostPeakBytes})
	}
	v.Stages = newStageStates(d)
	return v
}

func (v deploymentView) state() string {
	switch {
	case v.Ready:
		return "ready"
	case v.Plan != nil && v.Plan.Infeasible != "" && len(v.Plan.Stages) == 0:
		return "does not fit"
	}
	for _, o := range v.Observed {
		if o.State == "failed" {
			return "failed"
		}
	}
	return "loading"
}

func newStatus(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [NAME]",
		Short: "Show the deployments, or one with its plan and what each node has loaded",
		Args:  arguments(0, "NAME"),
	}
	operatorFlags(cmd)
	format, watch := outputFlag(cmd), watchFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.show(cmd, watch, *format, func(cmd *cobra.Command, o *operator) (answer, error) {
			return deploymentStatus(cmd, o, strings.Join(args, ""))
		})
	}
	return cmd
}

// deploymentStatus shows one deployment in full, or all; name is empty then.
func deploymentStatus(cmd *cobra.Command, o *operator, name string) (answer, error) {
	all, err := ask(cmd.Context(), o, "", o.Control.Status, &pb.StatusRequest{Name: name})
	if err != nil {
		return answer{}, err
	}
	names, err := nodeNames(cmd, o)
	if err != nil {
		return answer{}, err
	}
	views, rows := []deploymentView{}, [][]string{}
	for _, d := range all.Deployments {
		v := newDeploymentView(d, names)
		views, rows = append(views, v), append(rows, v.row())
	}
	if name != "" {
		return fullDeployments(views), nil
	}
	return answer{views, func(w io.Writer) error {
		return output.WriteTable(w, []string{"NAME", "MODEL", "STATE", "WORKLOAD", "DTYPE", "STAGES", "FORECAST", "EPOCH", "MESSAGE"}, rows)
	}}, nil
}

func (v deploymentView) row() []string {
	row := []string{v.Name, v.Spec.ModelName, v.state(), showWorkload(v.Spec.Workload), v.Spec.DType, "", "", "", ""}
	if v.Plan != nil {
		var stages []string
		for _, s := range v.Plan.Stages {
			stages = append(stages, s.Node+": "+s.span())
		}
		row[5], row[6], row[7] = strings.Join(stages, ", "), output.Seconds(v.Plan.Forecast.Step), fmt.Sprint(v.Plan.Epoch)
	}
	if !v.Ready {
		row[8] = v.Message
	}
	return row
}

// fullDeployments shows deployments with their plans and what is loaded.
func fullDeployments(views []deploymentView) answer {
	return answer{views, func(w io.Writer) error { return writeDeployments(w, views) }}
}

func writeDeployments(w io.Writer, views []deploymentView) error {
	for _, v := range views {
		p := &printer{w: w}
		p.line("deployment %s, generation %d: %s", v.Name, v.Spec.Generation, v.state())
		if v.Message != "" && !v.Ready {
			p.line("%s", v.Message)
		}
		if p.err == nil && v.Plan != nil {
			p.err = v.Plan.write(w)
		}
		rows := [][]string{}
		for _, o := range v.Observed {
			rows = append(rows, []string{o.Node, o.State, fmt.Sprint(o.Epoch), loaded(o), output.Bytes(o.PeakBytes), o.Message})
		}
		if len(rows) > 0 {
			p.table([]string{"NODE", "STATE", "EPOCH", "LOADED", "PEAK", "MESSAGE"}, rows)
		}
		writeStages(p, v.Stages)
		if p.err != nil {
			return p.err
		}
	}
	return nil
}

// loaded is how far a load is; nodes say it while they load.
func loaded(o observedView) string {
	if o.TotalBytes == 0 {
		return ""
	}
	return fmt.Sprintf("%s of %s", output.Bytes(o.LoadedBytes), output.Bytes(o.TotalBytes))
}

// removedView is what is left of something.
type removedView struct {
	Removed string `json:"removed"` // its name
}

func newUndeploy(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "undeploy NAME",
		Short: "Remove a deployment; the nodes free its memory",
		Args:  arguments(1, "NAME"),
	}
	operatorFlags(cmd)
	format := outputFlag(cmd)
	cmd.RunE = a.connected(func(cmd *cobra.Command, o *operator, args []string) error {
		if _, err := ask(cmd.Context(), o, "", o.Control.Undeploy, &pb.UndeployRequest{Name: args[0]}); err != nil {
			return err
		}
		if *format != output.Table {
			return output.Write(a.stdout, *format, removedView{args[0]})
		}
		_, err := fmt.Fprintf(a.stdout, "deployment %s removed\n", output.Clean(args[0]))
		return err
	})
	return cmd
}
