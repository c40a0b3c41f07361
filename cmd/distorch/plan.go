// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/output"
	"github.com/distorch/distorch/model/lora"
	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/cluster"
	"github.com/distorch/distorch/placement/report"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// specFlags are the flags that plan and deploy share.
type specFlags struct {
	model, workload, dtype                                 string
	pins, excludes                                         []string
	loras                                                  []string
	loraMode                                               string
	allocation, compat, virtualVRAM, fit, reserve, storage string
}

func (f *specFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.model, "model", "", "checkpoint: its name, its id, or a file that a node holds too")
	flags.StringVar(&f.workload, "workload", "1024x1024", workloadHelp)
	flags.StringVar(&f.dtype, "dtype", "", "compute dtype, f32 or bf16 (default: the model's own)")
	flags.StringSliceVar(&f.pins, "pin", nil, "AGENT=BLOCKS: put a number of blocks (a=21) or a range (a=0-20) on a node; pins together name every block, in order")
	flags.StringSliceVar(&f.excludes, "exclude", nil, "node not to use")
	flags.StringArrayVar(&f.loras, "lora", nil, "FILE[:STRENGTH]: LoRA on the model, by its name, its id, or a file that nodes hold too; may be given several times")
	flags.StringVar(&f.loraMode, "lora-mode", string(lora.Add), "add: strengths may change with every run and step; merge: into the weights at load, as ComfyUI does")
	flags.StringVar(&f.allocation, "allocation", "", "place by hand: an allocation string, its devices as cuda:0 or NODE/cuda:0")
	flags.StringVar(&f.compat, "compat", "", "distorch2: read the allocation string by ComfyUI-MultiGPU's rules")
	flags.StringVar(&f.virtualVRAM, "virtual-vram", "", "keep all but so much of the model on one GPU and the rest in its node's RAM, such as 8GB (2^30 bytes each)")
	flags.StringVar(&f.fit, "fit", "fallback", "strict: all weights resident; fallback: stream what does not fit")
	flags.StringVar(&f.reserve, "reserve", "", "memory to keep free on every device, such as 1GB")
	flags.StringVar(&f.storage, "storage", "", "fp8: blocks rest in 8 bits, which changes values (default: as in the file)")
}

// spec is what the flags ask for, with the model as it was written.
func (f *specFlags) spec(name string) (*pb.DeploymentSpec, error) {
	if f.model == "" {
		return nil, usage(errors.New("--model is missing: name a checkpoint of `distorch models`"))
	}
	load, err := workload(f.workload)
	if err != nil {
		return nil, err
	}
	if f.dtype != "" {
		if _, err := parseCompute(f.dtype); err != nil {
			return nil, usage(err)
		}
	}
	pins, err := parsePins(f.pins)
	if err != nil {
		return nil, err
	}
	loras, err := parseLoRAs(f.loras, f.loraMode)
	if err != nil {
		return nil, err
	}
	spec := &pb.DeploymentSpec{
		Name: name, Model: f.model, Workload: load, Dtype: strings.ToLower(f.dtype), Objective: "latency", Pins: pins, Excludes: f.excludes,
		Loras: loras, Allocation: f.allocation, Compat: f.compat, Fit: f.fit, Storage: f.storage,
	}
	if err := f.modes(); err != nil {
		return nil, err
	}
	if err := chosen("fit", f.fit); f.fit != "" && err != nil {
		return nil, usage(err)
	}
	off, err := f.virtual()
	if err != nil {
		return nil, err
	}
	spec.VirtualVramBytes = uint64(off)
	reserve, err := f.reserved()
	spec.ReserveBytes = uint64(reserve)
	return spec, err
}

// reserved reads --reserve.
func (f *specFlags) reserved() (placement.Bytes, error) {
	if f.reserve == "" {
		return 0, nil
	}
	n, err := cluster.ParseSize(f.reserve)
	if err != nil {
		return 0, usage(fmt.Errorf("--reserve: %w", err))
	}
	return n, nil
}

// parsePins reads pins in pipeline order; a count begins where the pin before
// it ends.
func parsePins(texts []string) ([]*pb.Pin, error) {
	parsed, err := placement.ParsePins(strings.Join(texts, ","))
	if err != nil {
		return nil, usage(err)
	}
	var pins []*pb.Pin
	next := 0
	for _, p := range parsed {
		if !p.Ranged {
			p.First = next
		}
		next = p.First + p.Count
		pins = append(pins, &pb.Pin{Node: p.Node, FirstBlock: uint32(p.First), Blocks: uint32(p.Count)})
	}
	return pins, nil
}

// partOfID is the beginning of an id as tables show it.
var partOfID = regexp.MustCompile(`^[0-9a-f]{6,63}$`)

// resolveModel turns a file on this machine or the beginning of an id into an
// id. Everything else the coordinator resolves.
func resolveModel(cmd *cobra.Command, o *operator, ref string) (string, error) {
	if info, err := os.Stat(ref); err == nil && info.Mode().IsRegular() {
		f, err := openCheckpoint(ref)
		if err != nil {
			return "", err
		}
		defer f.Close()
		if _, err := recognise(f); err != nil {
			return "", fmt.Errorf("%s: %w", ref, err)
		}
		id, err := f.QuickID()
		if err != nil {
			return "", fmt.Errorf("%s: %w", ref, err)
		}
		return id, heldSomewhere(cmd, o, ref, id)
	}
	if !partOfID.MatchString(ref) {
		return ref, nil
	}
	answer, err := ask(cmd.Context(), o, "list models", o.Control.ListModels, &pb.ListModelsRequest{})
	if err != nil {
		return "", err
	}
	var found []string
	for _, m := range answer.Models {
		if strings.HasPrefix(m.GetRecord().GetId(), ref) {
			found = append(found, m.Record.Id)
		}
	}
	switch len(found) {
	case 0:
		return ref, nil
	case 1:
		return found[0], nil
	}
	return "", usage(fmt.Errorf("model %s: the ids of %d checkpoints begin so; give more of it", ref, len(found)))
}

// heldSomewhere fails for a file of this machine that no node has.
func heldSomewhere(cmd *cobra.Command, o *operator, path, id string) error {
	answer, err := ask(cmd.Context(), o, "list models", o.Control.ListModels, &pb.ListModelsRequest{})
	if err != nil {
		return err
	}
	for _, m := range answer.Models {
		if m.GetRecord().GetId() == id {
			return nil
		}
	}
	return notFound(fmt.Errorf("no node holds %s (id %s); copy it into a folder of models.dirs on a node and start its agent again", path, id[:shortID]))
}

func newPlan(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "plan --model MODEL",
		Short: "Show how a model would be placed and how fast it would be, and change nothing",
		Long: `With --cluster it needs no coordinator and no network: a checkpoint's header, or
the name of a published model, and a cluster file are enough. Without, it asks
what a deployment on the live cluster would be; --objective, --explain, --what-if
and the like plan beyond what agents can run today, from the live nodes' own
figures.`,
		Args: arguments(0),
	}
	var f specFlags
	f.add(cmd)
	var more planFlags
	more.add(cmd)
	operatorFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if more.local(cmd) {
			return a.localPlan(cmd, &f, &more)
		}
		return a.livePlan(cmd, &f, output.Format(more.format))
	}
	return cmd
}

// livePlan shows what the coordinator would deploy.
func (a *app) livePlan(cmd *cobra.Command, f *specFlags, format output.Format) error {
	spec, err := f.spec("")
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
	answer, err := ask(cmd.Context(), o, "", o.Control.Plan, &pb.PlanRequest{Spec: spec})
	if err != nil {
		return err
	}
	if err := fits(answer.Plan); err != nil {
		return err
	}
	if format != output.Table && len(answer.Report) > 0 {
		r, err := report.Parse(answer.Report)
		if err != nil {
			return err
		}
		r.Workload = showWorkload(answer.Plan.GetWorkload().GetDims())
		for _, l := range newLoRAViews(answer.Plan.GetLoras()) {
			r.LoRAs = append(r.LoRAs, report.LoRA(l))
		}
		return output.Write(a.stdout, format, r)
	}
	names, err := nodeNames(cmd, o)
	if err != nil {
		return err
	}
	v := newPlanView(answer.Plan, names)
	if format != output.Table { // a coordinator of the version before
		return output.Write(a.stdout, format, v)
	}
	return v.write(a.stdout)
}

// fits is the error of a plan that cannot be made.
func fits(p *pb.Plan) error {
	switch {
	case p.GetInfeasible() != "":
		return infeasible(errors.New(p.Infeasible))
	case len(p.GetStages()) == 0:
		return infeasible(errors.New("the coordinator found no plan"))
	}
	return nil
}
