// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/distorch/distorch/bench/clusters"
	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/rivals"
)

const rivalDraws = 150

// tally is what one rule costs over all clusters.
type tally struct {
	factors []float64
	full    int // out of memory
}

// rivalFigures prices other programs' rules on small clusters of weak hosts, the four models by turns.
func rivalFigures(ctx context.Context, _ *options, r *report) error {
	models, err := clusters.Models()
	if err != nil {
		return err
	}
	objectives := objectives()
	all := map[rivals.Rule][]tally{}
	for _, rule := range rivals.Rules() {
		all[rule] = make([]tally, len(objectives))
	}
	done, small := 0, 0
	for seed := uint64(0); done < rivalDraws; seed++ {
		m := models[int(seed)%len(models)]
		hosts := 6 + int(seed*7%20)
		nodes := clusters.New(clusters.Options{Mix: clusters.MixWeak, Hosts: hosts, Model: m.Model, Seed: 1000 + seed})
		whole := true
		for i, o := range objectives {
			p := placement.Problem{Model: m.Model, Batches: m.Batches, Nodes: nodes, Objective: o, Constraints: placement.Constraints{MaxPipelines: 1}}
			plan, _, err := search(ctx, p)
			if whole, err = fits(err); err != nil || !whole {
				if err != nil {
					return fmt.Errorf("%s, cluster %d: %w", m.Name, seed, err)
				}
				small++
				break
			}
			outcomes, err := rivals.Compare(p, plan.StepSeconds)
			if err != nil {
				return fmt.Errorf("%s, cluster %d: %w", m.Name, seed, err)
			}
			for _, out := range outcomes {
				t := &all[out.Rule][i]
				if out.Fits {
					t.factors = append(t.factors, out.Factor)
				} else {
					t.full++
				}
			}
		}
		if whole {
			done++
		}
		if seed > 20*rivalDraws {
			return fmt.Errorf("only %d of %d drawn clusters hold a model", done, seed)
		}
	}
	r.note("against the plan of one pipeline, in distorch's cost model: simulated, no program ran")
	r.note("%d clusters of 6 to 25 weak hosts with 1 or 2 GPUs, the four models by turns (%d more were too small); geomean/p90/max, and how often out of memory", rivalDraws, small)
	var header strings.Builder
	for _, o := range objectives {
		fmt.Fprintf(&header, " %-24s", objectiveName(o))
	}
	r.note("%-56s%s", "RULE", header.String())
	for _, rule := range rivals.Rules() {
		var line strings.Builder
		for _, t := range all[rule] {
			fmt.Fprintf(&line, " %-24s", t)
		}
		r.note("%-56s%s", rule.Title(), line.String())
	}
	return nil
}

// String is "1.15/1.31/2.00, 3 oom".
func (t tally) String() string {
	text := "-"
	if n := len(t.factors); n > 0 {
		s := slices.Sorted(slices.Values(t.factors))
		sum := 0.0
		for _, f := range s {
			sum += math.Log(f)
		}
		p90 := s[min(n-1, int(math.Ceil(0.9*float64(n)))-1)]
		text = fmt.Sprintf("%.2f/%.2f/%.2f", math.Exp(sum/float64(n)), p90, s[n-1])
	}
	if t.full > 0 {
		text += fmt.Sprintf(", %d oom", t.full)
	}
	return text
}
