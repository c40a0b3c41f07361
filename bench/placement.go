// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/distorch/distorch/bench/clusters"
	"github.com/distorch/distorch/placement"
)

const (
	placementHosts  = 64
	placementDraws  = 20 // clusters of a row
	outsideDraws    = 10
	manyHosts       = 1000
	manyHostClasses = 64
)

// objectives are those of one pipeline that search times are stated for.
func objectives() []placement.Objective {
	return []placement.Objective{
		{Kind: placement.ObjectiveLatency}, {Kind: placement.ObjectivePair}, {Kind: placement.ObjectiveBatch, Size: 4}, {Kind: placement.ObjectiveThroughput},
	}
}

func objectiveName(o placement.Objective) string {
	if o.Kind == placement.ObjectiveBatch {
		return fmt.Sprintf("batch=%d", o.Size)
	}
	return string(o.Kind)
}

// placementFigures measures CPU time on one thread; what the garbage collector takes is in it.
func placementFigures(ctx context.Context, _ *options, r *report) error {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	models, err := clusters.Models()
	if err != nil {
		return err
	}
	r.note("CPU time of one search on one thread; %d clusters of %d hosts a row, in half of them no host can hold the model", placementDraws, placementHosts)
	r.note("%-20s %-11s %10s %10s  %s", "MODEL", "OBJECTIVE", "MEDIAN", "WORST", "TARGET")
	for i, m := range models {
		for _, o := range objectives() {
			if err := searchRow(ctx, r, m, o, i >= 2); err != nil {
				return err
			}
		}
	}
	if err := manyRow(ctx, r, models[0]); err != nil {
		return err
	}
	return outsideRows(ctx, r, models)
}

// search places and says how long it took; a cluster that the model does not fit is an error of the generator.
func search(ctx context.Context, p placement.Problem) (*placement.Plan, time.Duration, error) {
	if ctx.Err() != nil {
		return nil, 0, context.Cause(ctx)
	}
	before := cpuTime()
	plan, err := placement.Place(p, placement.Options{SkipLosses: true})
	return plan, cpuTime() - before, err
}

// drawn is the i-th cluster of a row: the mixes by turns, every second turn with no host that can hold the model.
func drawn(m clusters.Model, o placement.Objective, i int) placement.Problem {
	mixes := clusters.Mixes()
	turn := i / len(mixes)
	nodes := clusters.New(clusters.Options{Mix: mixes[i%len(mixes)], Hosts: placementHosts, Model: m.Model, NoSingle: (turn+i)%2 == 1, Seed: uint64(i)})
	return placement.Problem{Model: m.Model, Batches: m.Batches, Nodes: nodes, Objective: o, Constraints: placement.Constraints{MaxPipelines: 1}}
}

func searchRow(ctx context.Context, r *report, m clusters.Model, o placement.Objective, twoRuns bool) error {
	var times []time.Duration
	optimal := 0
	for i := range placementDraws {
		plan, took, err := search(ctx, drawn(m, o, i))
		if err != nil {
			return fmt.Errorf("%s, %s, cluster %d: %w", m.Name, objectiveName(o), i, err)
		}
		times = append(times, took)
		if plan.Certificate.Optimal {
			optimal++
		}
	}
	mid, worst := median(times), slices.Max(times)
	ok, want := worst <= 100*time.Millisecond, "worst ≤ 100 ms"
	if twoRuns {
		ok, want = mid <= 250*time.Millisecond && worst <= time.Second, "median ≤ 250 ms, worst ≤ 1 s"
	}
	r.note("%-20s %-11s %10s %10s  %-28s %s, %d of %d proven optimal", m.Name, objectiveName(o), milliseconds(mid), milliseconds(worst), want, verdict(ok), optimal, len(times))
	return nil
}

func verdict(ok bool) string {
	if ok {
		return "PASS"
	}
	return "short"
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

func manyRow(ctx context.Context, r *report, m clusters.Model) error {
	p := drawn(m, placement.Objective{}, 0)
	base := clusters.New(clusters.Options{Mix: clusters.MixEight, Hosts: manyHostClasses, Model: m.Model, NoSingle: true, Seed: 1})
	p.Nodes = clusters.Grow(base, manyHosts)
	_, took, err := search(ctx, p)
	if err != nil {
		return fmt.Errorf("%d hosts: %w", manyHosts, err)
	}
	r.note("%-20s %-11s %10s %10s  %-28s %s", fmt.Sprintf("%s, %d hosts", m.Name, manyHosts), "latency", milliseconds(took), "", "≤ 1 s", verdict(took <= time.Second))
	return nil
}

// outsideRows are problems that the exact class does not cover.
func outsideRows(ctx context.Context, r *report, models []clusters.Model) error {
	r.note("")
	r.note("outside the exact class, %d unlike hosts, %d clusters a row; a gap is what the certificate leaves open", placementHosts, outsideDraws)
	r.note("%-20s %-16s %10s %10s %11s %10s  %s", "MODEL", "LINKS", "MEDIAN", "WORST", "MEDIAN GAP", "WORST GAP", "TARGET")
	kinds := []struct {
		name string
		add  func(p *placement.Problem, seed uint64)
	}{
		{"racks", func(p *placement.Problem, seed uint64) { p.Groups = clusters.Racks(p.Nodes, seed) }},
		{"measured pairs", func(p *placement.Problem, seed uint64) { p.Links = clusters.Links(p.Nodes, 0.25, seed) }},
	}
	for _, m := range models {
		for _, k := range kinds {
			var times []time.Duration
			var gaps []float64
			for i := range outsideDraws {
				p := drawn(m, placement.Objective{}, 2*i)
				p.Nodes = clusters.New(clusters.Options{Mix: clusters.Mixes()[i%3], Hosts: placementHosts, Model: m.Model, NoSingle: true, Seed: uint64(i)})
				clusters.Distinct(p.Nodes, uint64(i))
				k.add(&p, uint64(i))
				plan, took, err := search(ctx, p)
				if err != nil {
					return fmt.Errorf("%s, %s, cluster %d: %w", m.Name, k.name, i, err)
				}
				times, gaps = append(times, took), append(gaps, plan.Certificate.Gap)
			}
			mid, worst, gap := median(times), slices.Max(times), median(gaps)
			ok := worst <= 2*time.Second && gap <= 0.05
			r.note("%-20s %-16s %10s %10s %9.2f %% %8.2f %%  worst ≤ 2 s, median gap ≤ 5 %%  %s", m.Name, k.name, milliseconds(mid), milliseconds(worst), 100*gap, 100*slices.Max(gaps), verdict(ok))
		}
	}
	return nil
}

// fits tells a cluster that is too small from a fault.
func fits(err error) (bool, error) {
	if _, ok := errors.AsType[*placement.InfeasibleError](err); ok {
		return false, nil
	}
	return err == nil, err
}
