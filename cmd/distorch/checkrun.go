// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/distorch/distorch/cmd/internal/output"
	"github.com/distorch/distorch/cmd/internal/picture"
	"github.com/distorch/distorch/model/compare"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// errBits is the error of a plan that did not give the bits that its class
// promises.
var errBits = errors.New("the bits differ, which must never be")

// checkView is what checked steps came to.
type checkView struct {
	Every     int               `json:"every"`
	Node      string            `json:"node"`
	Device    string            `json:"device"`
	Class     string            `json:"numerics_class"` // of the device
	Promised  bool              `json:"equal_bits_promised"`
	EqualBits bool              `json:"equal_bits"`
	Steps     []checkedStepView `json:"steps"`
}

// checkedStepView is a step's: A in it is the deployment, B the one device.
type checkedStepView struct {
	Step int     `json:"step"`
	Took float64 `json:"one_device_seconds"`
	compare.Result
}

// oneDevice is the deployment of a model on one device, for checks.
type oneDevice struct {
	spec *pb.DeploymentSpec
	plan *pb.Plan
	end  func() error
}

// alone deploys the model of a deployment once more, whole on one device and for
// this request's size: of the same numerics class where one has room, on a node that has no part in the
// deployment if there is one, and else the fastest. end removes it again. Where
// no device has room the error says why not of each node.
func alone(ctx context.Context, o *operator, d *pb.DeploymentStatus, r picture.Request, progress *output.Progress) (_ *oneDevice, err error) {
	spec, plan, err := whereAlone(ctx, o, d, r)
	if err != nil {
		return nil, err
	}
	where := plan.Stages[0]
	progress.Line("check: loading %s on %s/%s alone as well", output.Clean(plan.GetModelName()), output.Clean(where.GetNodeName()), output.Clean(where.GetDevice()))
	if spec, err = deploy(ctx, o, spec); err != nil {
		return nil, fmt.Errorf("check: %w", err)
	}
	end := func() error {
		// Also when ctx has ended.
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.timeout)
		defer cancel()
		_, err := o.Control.Undeploy(end, &pb.UndeployRequest{Name: spec.Name})
		if err != nil {
			return fmt.Errorf("check: %w; `distorch undeploy %s` frees its memory", fromRPC("", err), spec.Name)
		}
		return nil
	}
	ready, err := awaitReady(ctx, o, spec, progress)
	if err == nil && len(ready.GetPlan().GetStages()) != 1 {
		err = fmt.Errorf("deployment %s was placed over %d stages meanwhile", spec.Name, len(ready.GetPlan().GetStages()))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("check: %w", err), end())
	}
	return &oneDevice{spec, ready.Plan, end}, nil
}

// whereAlone asks for a plan on each node and takes the best.
func whereAlone(ctx context.Context, o *operator, d *pb.DeploymentStatus, r picture.Request) (*pb.DeploymentSpec, *pb.Plan, error) {
	nodes, err := ask(ctx, o, "", o.Control.ListNodes, &pb.ListNodesRequest{})
	if err != nil {
		return nil, nil, err
	}
	blocks := uint32(0)
	takes := map[string]bool{}
	for _, st := range d.GetPlan().GetStages() {
		blocks += st.Blocks
		takes[st.Node] = true
	}
	class := picture.SingleClass(d.GetPlan())
	type place struct {
		spec    *pb.DeploymentSpec
		plan    *pb.Plan
		another int // 0: of the same class
		takes   int // 0: no part in the deployment
	}
	size := r.Dims()
	delete(size, "ref_method") // no extent
	var places []place
	var reasons []string
	name := checkName(d.GetSpec().GetName())
	for _, n := range nodes.Nodes {
		spec := proto.CloneOf(d.GetSpec())
		spec.Name, spec.Id, spec.Generation = name, "", 0
		spec.Workload = &pb.Workload{Dims: size, InFlight: d.GetSpec().GetWorkload().GetInFlight()}
		spec.Allocation, spec.Compat, spec.VirtualVramBytes, spec.Fit = "", "", 0, ""
		spec.Pins = []*pb.Pin{{Node: n.GetRecord().GetId(), Blocks: blocks}}
		p, why := planAlone(ctx, o, spec)
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		if why != nil {
			reasons = append(reasons, fmt.Sprintf("%s: %s", n.GetRecord().GetName(), output.Clean(why.Error())))
			continue
		}
		candidate := place{spec: spec, plan: p}
		if p.Stages[0].NumericsClass != class {
			candidate.another = 1
		}
		if takes[p.Stages[0].Node] {
			candidate.takes = 1
		}
		places = append(places, candidate)
	}
	if len(places) == 0 {
		return nil, nil, infeasible(fmt.Errorf("--check-every: no device can compute %s alone: %s; leave --check-every out, or make room", d.GetSpec().GetModelName(), strings.Join(reasons, "; ")))
	}
	best := slices.MinFunc(places, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.another, b.another), cmp.Compare(a.takes, b.takes),
			cmp.Compare(a.plan.GetForecast().GetStepSeconds(), b.plan.GetForecast().GetStepSeconds()))
	})
	return best.spec, best.plan, nil
}

// planAlone is the plan of a deployment that may use one device; the error says
// why there is none.
func planAlone(ctx context.Context, o *operator, spec *pb.DeploymentSpec) (*pb.Plan, error) {
	answer, err := ask(ctx, o, "", o.Control.Plan, &pb.PlanRequest{Spec: spec})
	if err != nil {
		return nil, err
	}
	p := answer.GetPlan()
	switch {
	case p.GetInfeasible() != "":
		return nil, errors.New(strings.TrimPrefix(p.Infeasible, "deployment "+spec.Name+": "))
	case len(p.GetStages()) != 1:
		return nil, fmt.Errorf("would take %d stages", len(p.GetStages()))
	}
	return p, nil
}

// maxCheckName keeps the name of a deployment for checks within what names may
// be.
const maxCheckName = 40

func checkName(deployment string) string {
	return fmt.Sprintf("check-%s-%s", deployment[:min(len(deployment), maxCheckName)], strings.ToLower(rand.Text()[:8]))
}

func newCheckView(every int, one *oneDevice, result *picture.Result) *checkView {
	where := one.plan.Stages[0]
	v := &checkView{Every: every, Node: where.GetNodeName(), Device: where.GetDevice(), Class: where.GetNumericsClass(), EqualBits: true, Steps: []checkedStepView{}}
	v.Promised = v.Class != "" && picture.SingleClass(result.Plan) == v.Class
	for _, c := range result.Checks {
		v.EqualBits = v.EqualBits && c.EqualBits
		v.Steps = append(v.Steps, checkedStepView{c.Step, round(c.Took), c.Result})
	}
	return v
}

// write prints a row for each step and a line on all of them.
func (v *checkView) write(p *printer) {
	if v == nil {
		return
	}
	rows := [][]string{}
	for _, s := range v.Steps {
		bits := "equal"
		if !s.EqualBits {
			bits = "differ"
		}
		rows = append(rows, []string{fmt.Sprint(s.Step), fmt.Sprint(s.Values), fmt.Sprint(s.Differing), showError(s.MaxError), showError(s.Relative), bits, output.Seconds(s.Took)})
	}
	if len(rows) > 0 {
		p.table([]string{"CHECKED STEP", "VALUES", "DIFFERING", "MAX ERROR", "RELATIVE L2", "BITS", "ONE DEVICE TOOK"}, rows)
	}
	p.line("%s", v.line())
}

// line sums up all steps.
func (v *checkView) line() string {
	where := fmt.Sprintf("%s/%s (%s)", v.Node, v.Device, v.Class)
	if len(v.Steps) == 0 {
		return fmt.Sprintf("check: no step; the picture has fewer than the %d of --check-every", v.Every)
	}
	promise := "as its class promises"
	if !v.Promised {
		promise = "though the classes differ and promise nothing"
	}
	if v.EqualBits {
		return fmt.Sprintf("check: %d steps have equal bits on %s alone, %s", len(v.Steps), where, promise)
	}
	worst, differing := v.Steps[0], 0
	for _, s := range v.Steps {
		if !s.EqualBits {
			differing++
		}
		if s.Unlike > worst.Unlike || s.Unlike == worst.Unlike && s.Relative > worst.Relative {
			worst = s
		}
	}
	promise = "which its class rules out"
	if !v.Promised {
		promise = "as may be, for the plan is not all of that class"
	}
	return fmt.Sprintf("check: %d of %d steps differ from %s alone, %s; at worst step %d: max error %s, relative L2 %s", differing, len(v.Steps), where, promise, worst.Step, showError(worst.MaxError), showError(worst.Relative))
}

// broken is the error of bits that differ where they must not.
func (v *checkView) broken(deployment string) error {
	if v == nil || v.EqualBits || !v.Promised {
		return nil
	}
	return fmt.Errorf("deployment %s: %w: all of it is of class %s, and so is %s/%s; `distorch verify` on golden cases finds the operation", deployment, errBits, v.Class, v.Node, v.Device)
}
