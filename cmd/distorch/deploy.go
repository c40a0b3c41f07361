// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/output"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// pollEvery is how often a deployment that is waited for is looked at.
const pollEvery = 200 * time.Millisecond

func newDeploy(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "deploy NAME --model MODEL",
		Short: "Keep a model loaded under a name, or change how",
		Long: `Writes what is wanted: a model, the largest request it is placed for, and pins.
The coordinator places it and the nodes load it. A model that does not fit is
refused with exit code 4 and nothing is written. With --wait the command ends
when every node has loaded its blocks.`,
		Args: arguments(1, "NAME"),
	}
	var f specFlags
	f.add(cmd)
	operatorFlags(cmd)
	format := outputFlag(cmd)
	wait := cmd.Flags().Bool("wait", false, "wait until it is ready, and show what is loaded")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		spec, err := f.spec(args[0])
		if err != nil {
			return err
		}
		o, err := a.connect(cmd)
		if err != nil {
			return err
		}
		defer o.close()
		if spec.Model, err = resolveModel(cmd, o, spec.Model); err != nil {
			return err
		}
		if err := resolveLoRAs(cmd, o, spec.Loras); err != nil {
			return err
		}
		if spec, err = deploy(cmd.Context(), o, spec); err != nil {
			return err
		}
		if !*wait {
			if *format != output.Table {
				return output.Write(a.stdout, *format, newSpecView(spec))
			}
			_, err = fmt.Fprintf(a.stdout, "deployment %s, generation %d; `distorch status %s` shows how far it is\n", spec.Name, spec.Generation, spec.Name)
			return err
		}
		d, err := awaitReady(cmd.Context(), o, spec, output.NewProgress(a.stderr))
		if err != nil {
			return err
		}
		return fullDeployments([]deploymentView{newDeploymentView(d, nil)}).write(a.stdout, *format)
	}
	return cmd
}

// deploy asks for the plan first, so that what cannot fit is not written.
func deploy(ctx context.Context, o *operator, spec *pb.DeploymentSpec) (*pb.DeploymentSpec, error) {
	planned, err := ask(ctx, o, "", o.Control.Plan, &pb.PlanRequest{Spec: spec})
	if err != nil {
		return nil, err
	}
	if err := fits(planned.Plan); err != nil {
		return nil, err
	}
	answer, err := ask(ctx, o, "", o.Control.Deploy, &pb.DeployRequest{Spec: spec})
	if err != nil {
		return nil, err
	}
	return answer.Spec, nil
}

// awaitReady looks at a deployment until it is ready, cannot be placed, or a
// node failed to load its stage.
func awaitReady(ctx context.Context, o *operator, spec *pb.DeploymentSpec, progress *output.Progress) (*pb.DeploymentStatus, error) {
	defer progress.Done()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		answer, err := ask(ctx, o, "", o.Control.Status, &pb.StatusRequest{Name: spec.Name})
		if err != nil {
			return nil, err
		}
		d, done, err := judge(answer, spec)
		if err != nil || done {
			return d, err
		}
		showLoading(progress, d)
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// judge says whether the deployment is ready; the error is what keeps it from
// ever becoming so by itself.
func judge(answer *pb.StatusResponse, spec *pb.DeploymentSpec) (d *pb.DeploymentStatus, ready bool, err error) {
	if len(answer.Deployments) != 1 {
		return nil, false, notFound(fmt.Errorf("deployment %s was removed meanwhile", spec.Name))
	}
	d = answer.Deployments[0]
	p := d.GetPlan()
	switch {
	case d.GetSpec().GetId() != spec.Id:
		return d, false, fmt.Errorf("deployment %s was changed by someone else meanwhile; `distorch status %s` shows it", spec.Name, spec.Name)
	case p.GetGeneration() != spec.Generation || p.GetDeploymentId() != spec.Id:
		return d, false, nil
	case p.GetInfeasible() != "":
		return d, false, infeasible(errors.New(p.Infeasible))
	}
	for _, ob := range d.Observed {
		if ob.State == pb.Observed_FAILED && ob.Epoch == p.Epoch && ob.DeploymentId == spec.Id {
			return d, false, fmt.Errorf("deployment %s: node %s: %s", spec.Name, stageName(p, ob.Node), ob.Message)
		}
	}
	return d, d.Ready, nil
}

func stageName(p *pb.Plan, id string) string {
	for _, s := range p.GetStages() {
		if s.Node == id && s.NodeName != "" {
			return s.NodeName
		}
	}
	return id
}

func showLoading(progress *output.Progress, d *pb.DeploymentStatus) {
	p := d.GetPlan()
	var loaded, total int64
	var note strings.Builder
	for _, ob := range d.Observed {
		if ob.Epoch != p.GetEpoch() || ob.TotalBytes == 0 {
			continue
		}
		loaded += int64(ob.LoadedBytes)
		total += int64(ob.TotalBytes)
		fmt.Fprintf(&note, " %s %d%%", stageName(p, ob.Node), 100*ob.LoadedBytes/ob.TotalBytes)
	}
	if total > 0 {
		const mb = 1_000_000
		progress.Step("loading MB", loaded/mb, max(total/mb, 1), note.String())
	}
}
