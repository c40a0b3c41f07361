// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/output"
	"github.com/distorch/distorch/coordinator"
	"github.com/distorch/distorch/model/lora"
	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/catalogue"
	"github.com/distorch/distorch/placement/cluster"
	"github.com/distorch/distorch/placement/gantt"
	"github.com/distorch/distorch/placement/report"
	"github.com/distorch/distorch/placement/whatif"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// planFormat is an output.Format, or svg.
type planFormat output.Format

const svgFormat planFormat = "svg"

func (f *planFormat) Set(s string) error {
	if err := output.OneOf(s, choices("plan "+outputName)); err != nil {
		return err
	}
	*f = planFormat(s)
	return nil
}

func (f *planFormat) String() string { return string(*f) }

func (f *planFormat) Type() string { return strings.Join(choices("plan "+outputName), "|") }

// planFlags are the flags of plan alone. With any of them the plan is made here, from a cluster file or from what the
// live nodes say of themselves; without, by the coordinator.
type planFlags struct {
	cluster, objective, stored, numerics string
	changes                              []string
	explain                              bool
	maxNodes, maxPipelines, maxDegree    int
	format                               planFormat
}

func (f *planFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.cluster, "cluster", "", "cluster file to plan for, without a coordinator (default: the live cluster)")
	flags.StringVar(&f.objective, "objective", "latency", "what is to be fast: latency, pair, batch=N or throughput")
	flags.StringVar(&f.stored, "stored", "", "how weights are stored, such as fp8 (default: as in the file)")
	flags.StringVar(&f.numerics, "numerics", "any", "one: all blocks in one numerics class; any: the fastest plan")
	flags.IntVar(&f.maxNodes, "max-nodes", 0, "use at most so many nodes (default: no limit)")
	flags.IntVar(&f.maxPipelines, "max-pipelines", 0, "at most so many replicas or branches; 1 forbids them (default: as many as help)")
	flags.IntVar(&f.maxDegree, "max-degree", 0, "tensor parallelism over at most so many devices; 1 forbids it (default: no limit)")
	flags.BoolVar(&f.explain, "explain", false, "say why: runner-up plans, other programs' rules, lost nodes, what would help most")
	flags.StringArrayVar(&f.changes, "what-if", nil, "compare with a change, such as 'nic a=10gbps' or 'add b/cuda:0=rtx4090'; may be given again")
	f.format = planFormat(output.Table)
	flags.VarP(&f.format, "output", "o", "how to print the result; svg is a chart of one step")
}

// local reports whether the plan is made here.
func (f *planFlags) local(cmd *cobra.Command) bool {
	for _, name := range []string{"cluster", "objective", "stored", "numerics", "max-nodes", "max-pipelines", "max-degree", "explain", "what-if"} {
		if cmd.Flags().Changed(name) {
			return true
		}
	}
	return f.format == svgFormat
}

// constraints reads what narrows the plan.
func (f *planFlags) constraints(spec *specFlags) (placement.Constraints, error) {
	c := placement.Constraints{
		Exclude: spec.excludes, MaxNodes: f.maxNodes, MaxPipelines: f.maxPipelines, MaxDegree: f.maxDegree,
		Numerics: placement.Numerics(f.numerics), Fit: placement.Fit(spec.fit),
	}
	for flag, value := range map[string]string{"numerics": f.numerics, "fit": spec.fit} {
		if err := chosen(flag, value); err != nil {
			return c, usage(err)
		}
	}
	var err error
	if err := spec.modes(); err != nil {
		return c, err
	}
	if c.Reserve, err = spec.reserved(); err != nil {
		return c, err
	}
	if c.Pins, err = placement.ParsePins(strings.Join(spec.pins, ",")); err != nil {
		return c, usage(err)
	}
	return c, nil
}

// scenario is the problem that the flags state for a cluster.
func (f *planFlags) scenario(cmd *cobra.Command, spec *specFlags, source modelSource, nodes cluster.Cluster) (whatif.Scenario, error) {
	s := whatif.Scenario{}
	objective, err := parseObjective(f.objective)
	if err != nil {
		return s, usage(err)
	}
	t := whatif.Tables{Sizes: microBatches(objective)}
	if cmd.Flags().Changed("workload") {
		t.Workload = spec.workload
	}
	if t.DType, err = computeDType(spec.dtype); err != nil {
		return s, usage(err)
	}
	if t.Stored, err = storedDType(cmp.Or(f.stored, spec.storage)); err != nil {
		return s, usage(err)
	}
	s.Tables = source.defaults(t)
	p := &s.Problem
	p.Nodes, p.Links, p.Groups, p.Objective = nodes.Nodes, nodes.Links, nodes.Groups, objective
	if p.Constraints, err = f.constraints(spec); err != nil {
		return s, err
	}
	if err := knownNodes(spec.excludes, nodes.Nodes); err != nil {
		return s, usage(err)
	}
	if p.Model, p.Batches, err = tables(source, s.Tables); err != nil {
		return s, err
	}
	if _, p.Constraints.InFlight, err = source.table(s.Tables, 1); err != nil {
		return s, err
	}
	return s, spec.byHand(p)
}

// knownNodes fails for an exclude that names no node.
func knownNodes(refs []string, nodes []placement.Node) error {
	var names []string
	for _, n := range nodes {
		names = append(names, string(n.ID), n.Label())
	}
	for _, ref := range refs {
		if !slices.Contains(names, ref) {
			return fmt.Errorf("--exclude %q: the cluster has no such node%s", ref, output.DidYouMean(ref, names))
		}
	}
	return nil
}

// localPlan makes the plan here.
func (a *app) localPlan(cmd *cobra.Command, spec *specFlags, f *planFlags) error {
	source, nodes, err := a.sources(cmd, spec, f)
	if err != nil {
		return err
	}
	s, err := f.scenario(cmd, spec, source, nodes)
	if err != nil {
		return err
	}
	rows, err := f.compare(s, source)
	if err != nil {
		return err
	}
	if strings.HasPrefix(string(s.Tables.Stored), "f8") || s.Tables.Stored == "" {
		s = faster(s, source)
	}
	plan, err := placement.Place(s.Problem, placement.Options{SkipLosses: !f.explain})
	if err != nil {
		return errors.Join(a.onlyRows(f, rows), planError(err))
	}
	opt := report.Options{Queue: true, Alternatives: f.explain, Rivals: f.explain, Sensitivity: f.explain}
	if f.explain {
		opt.Variants = eightBits(s, source)
	}
	r, err := report.New(s.Problem, plan, opt)
	if err != nil {
		return planError(err)
	}
	r.WhatIf = rows
	r.Model, r.DType, r.Stored, r.Workload = s.Problem.Model.Name, string(s.Problem.Model.ComputeDType), string(s.Problem.Model.StoredDType), s.Tables.Workload
	if n := source.branches(); n > 1 && s.Problem.Objective.Kind == placement.ObjectiveLatency {
		r.Notes = append(r.Notes, fmt.Sprintf("with guidance a step of this model runs %d forwards: --objective pair plans for both", n))
		r.Plan.Notes = r.Notes
	}
	return a.writeReport(f, s, r)
}

// compare places what --what-if asks for.
func (f *planFlags) compare(s whatif.Scenario, source modelSource) ([]whatif.Row, error) {
	if len(f.changes) == 0 {
		return nil, nil
	}
	rows, err := whatif.Compare(s, f.changes, whatif.Options{
		Device: func(name string) (placement.Device, error) {
			e, err := catalogue.Lookup(name)
			if err != nil {
				return placement.Device{}, err
			}
			return e.Device(""), nil
		},
		Table: func(t whatif.Tables) (placement.Model, []placement.Batch, error) {
			return tables(source, t)
		},
		Objective: parseObjective,
	})
	var c *coded
	if err != nil && !errors.As(err, &c) {
		err = planError(err)
	}
	return rows, err
}

// onlyRows shows the table of changes where there is no plan.
func (a *app) onlyRows(f *planFlags, rows []whatif.Row) error {
	if len(rows) == 0 || f.format == svgFormat {
		return nil
	}
	if f.format != planFormat(output.Table) {
		return output.Write(a.stdout, output.Format(f.format), map[string]any{"schema": "distorch.what-if/1", "what_if": rows})
	}
	return writeRows(a, rows)
}

func writeRows(a *app, rows []whatif.Row) error {
	var cells [][]string
	for _, r := range rows {
		cells = append(cells, r.Cells())
	}
	return output.WriteTable(a.stdout, whatif.Header(), cells)
}

func (a *app) writeReport(f *planFlags, s whatif.Scenario, r *report.Report) error {
	switch f.format {
	case svgFormat:
		_, err := a.stdout.Write(gantt.Draw(gantt.New(&r.Plan, s.Problem)))
		return err
	case planFormat(output.Table):
	default:
		return output.Write(a.stdout, output.Format(f.format), r)
	}
	text := r.Summary()
	if f.explain {
		text = r.Explain()
	} else if len(r.Notes) > 0 {
		text += "note: " + strings.Join(r.Notes, "\nnote: ") + "\n"
	}
	stored := ""
	if s.Problem.Model.StoredDType != "" && s.Problem.Model.StoredDType != s.Problem.Model.ComputeDType {
		stored = fmt.Sprintf(", stored as %s", s.Problem.Model.StoredDType)
	}
	p := &printer{w: a.stdout}
	p.line("%s in %s%s at %s", s.Problem.Model.Name, s.Problem.Model.ComputeDType, stored, s.Tables.Workload)
	for line := range strings.Lines(text) {
		p.line("%s", strings.TrimSuffix(line, "\n"))
	}
	if len(r.WhatIf) == 0 || p.err != nil {
		return p.err
	}
	p.line("")
	return errors.Join(p.err, writeRows(a, r.WhatIf))
}

// faster keeps a file's small weights as they are, or expands them when they are loaded, whichever is faster.
func faster(s whatif.Scenario, source modelSource) whatif.Scenario {
	if _, ok := source.(*headerModel); !ok || s.Problem.Model.StoredDType == s.Problem.Model.ComputeDType {
		return s
	}
	wide := s
	wide.Tables.Stored = s.Tables.DType
	var err error
	if wide.Problem.Model, wide.Problem.Batches, err = tables(source, wide.Tables); err != nil {
		return s
	}
	one, errOne := placement.Place(s.Problem, placement.Options{SkipLosses: true})
	other, errOther := placement.Place(wide.Problem, placement.Options{SkipLosses: true})
	if errOther == nil && (errOne != nil || other.StepSeconds < one.StepSeconds) {
		return wide
	}
	return s
}

// eightBits is the same problem with weights in eight bits, where they are wider.
func eightBits(s whatif.Scenario, source modelSource) []report.Variant {
	t := s.Tables
	t.Stored = "f8_e4m3"
	m, batches, err := tables(source, t)
	if err != nil || m.Weights() >= s.Problem.Model.Weights() {
		return nil
	}
	p := s.Problem
	p.Model, p.Batches = m, batches
	return []report.Variant{{Name: "weights stored in fp8", Problem: p}}
}

// sources are the model and the machines: from files, or as the live nodes hold and measured them. A model that no node
// holds may be planned for all the same, by a file of this machine or a published name.
func (a *app) sources(cmd *cobra.Command, spec *specFlags, f *planFlags) (modelSource, cluster.Cluster, error) {
	if len(spec.loras) > 0 || spec.loraMode != string(lora.Add) {
		return nil, cluster.Cluster{}, usage(errors.New("--lora, --lora-mode: only a deployment's plan on the live cluster counts LoRAs; leave --cluster, --objective, --explain and the like out"))
	}
	if f.cluster != "" {
		source, err := findSource(spec.model)
		if err != nil {
			return nil, cluster.Cluster{}, err
		}
		nodes, err := readCluster(f.cluster)
		return source, nodes, err
	}
	if spec.model == "" {
		_, err := findSource("")
		return nil, cluster.Cluster{}, err
	}
	o, err := a.connect(cmd)
	if err != nil {
		return nil, cluster.Cluster{}, err
	}
	defer o.close()
	all, err := ask(cmd.Context(), o, "list nodes", o.Control.ListNodes, &pb.ListNodesRequest{})
	if err != nil {
		return nil, cluster.Cluster{}, err
	}
	nodes := coordinator.Inventory(all.Nodes)
	held, holders, err := liveModel(cmd, o, spec.model)
	if err != nil {
		return nil, nodes, err
	}
	if held == nil {
		source, err := findSource(spec.model)
		return source, nodes, err
	}
	for i := range nodes.Nodes {
		n := &nodes.Nodes[i]
		n.HasModel = slices.Contains(holders, n.Label())
	}
	return held, nodes, nil
}

func readCluster(file string) (cluster.Cluster, error) {
	info, err := os.Stat(file)
	switch {
	case err != nil:
		return cluster.Cluster{}, usage(fmt.Errorf("--cluster: %w; docs/cluster-file.md says how to write one, `distorch nodes -o cluster` writes one of the live cluster", err))
	case !info.Mode().IsRegular() || info.Size() > cluster.MaxFile:
		return cluster.Cluster{}, usage(fmt.Errorf("--cluster %s: want a file of at most %s", file, output.Bytes(cluster.MaxFile)))
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return cluster.Cluster{}, err
	}
	c, err := cluster.Parse(file, data)
	return c, usage(err)
}

// planError gives an error of placement its exit code.
func planError(err error) error {
	var nowhere *placement.InfeasibleError
	var misfit *placement.MisfitError
	if errors.As(err, &nowhere) || errors.As(err, &misfit) {
		return infeasible(err)
	}
	return usage(err)
}
