// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	. "github.com/distorch/distorch/placement"
)

// mixture counts what instances were like.
type mixture struct {
	all, infeasible int
	objectives      map[ObjectiveKind]int
	nodes           map[int]int
	counts          map[string]int
}

func (m *mixture) add(p Problem, best optimum) {
	if m.counts == nil {
		m.objectives, m.nodes, m.counts = map[ObjectiveKind]int{}, map[int]int{}, map[string]int{}
	}
	m.all++
	if math.IsInf(best.value, 1) {
		m.infeasible++
		return
	}
	m.objectives[p.Objective.Kind]++
	m.nodes[min(best.nodes, 5)]++
	for name, holds := range map[string]bool{
		"memory-bound":        memoryBound(p),
		"three or more hosts": best.nodes >= 3,
		"streaming or tensor": best.traits&(usesStream|usesTensor) != 0,
		"streaming":           best.traits&usesStream != 0,
		"tensor parallel":     best.traits&usesTensor != 0,
		"pipeline in a node":  best.traits&usesInside != 0,
		"island as a whole":   best.traits&usesIsland != 0,
		"micro-batches":       best.micro > 1,
		"several pipelines":   best.pipelines > 1,
		"two runs":            len(p.Model.Runs) == 2,
		"one block":           p.Model.Blocks() == 1,
		"fewer blocks":        p.Model.Blocks() < len(p.Nodes),
		"max nodes":           p.Constraints.MaxNodes > 0,
		"one class":           p.Constraints.Numerics == NumericsOne,
		"strict":              p.Constraints.Fit == FitStrict,
		"free link":           slices.ContainsFunc(p.Nodes, func(n Node) bool { return math.IsInf(n.Link.BytesPerSecond, 1) }),
		"no RAM":              !slices.ContainsFunc(p.Nodes, func(n Node) bool { return n.RAM > 0 }),
		"equal hosts":         equalHosts(p),
	} {
		m.counts[name] += boolInt(holds)
	}
}

// memoryBound reports whether no device holds the whole model without streaming.
func memoryBound(p Problem) bool {
	o := newOracle(p)
	a := o.atlas(p.Model, "")
	for _, place := range o.places {
		for _, w := range place.ways {
			if len(w.seats) == 1 && w.seats[0].degree == 1 {
				if c := a.work(w.seats[0], 0, a.blocks()); c.fits && c.ring == 0 {
					return false
				}
			}
		}
	}
	return true
}

func equalHosts(p Problem) bool {
	for i := range p.Nodes[1:] {
		a, b := p.Nodes[i], p.Nodes[i+1]
		a.ID = b.ID
		if fmt.Sprintf("%+v", a) == fmt.Sprintf("%+v", b) {
			return true
		}
	}
	return false
}

func (m *mixture) feasible() int { return m.all - m.infeasible }

// show prints the mix as a table.
func (m *mixture) show(t *testing.T) {
	var b strings.Builder
	row := func(name string, n int) {
		fmt.Fprintf(&b, "  %-22s %6d  %5.1f %%\n", name, n, 100*float64(n)/float64(max(m.feasible(), 1)))
	}
	fmt.Fprintf(&b, "%d instances\n  %-22s %6d\n", m.all, "infeasible", m.infeasible)
	row("feasible, of which", m.feasible())
	for _, k := range objectives {
		row(string(k), m.objectives[k])
	}
	for k := 1; k <= 5; k++ {
		row(fmt.Sprintf("optimal on %d hosts", k), m.nodes[k])
	}
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for k := range m.counts {
			if !yield(k) {
				return
			}
		}
	}) {
		row(name, m.counts[name])
	}
	t.Log(b.String())
	n := max(m.feasible(), 1)
	share := func(k int) string { return fmt.Sprintf("%d %%", 100*k/n) }
	t.Attr("mix", fmt.Sprintf("%d feasible of %d random instances; optimal on 1 to 5 hosts %d %d %d %d %d; memory-bound %s, on three or more hosts %s, streaming or tensor parallel %s",
		m.feasible(), m.all, m.nodes[1], m.nodes[2], m.nodes[3], m.nodes[4], m.nodes[5],
		share(m.counts["memory-bound"]), share(m.counts["three or more hosts"]), share(m.counts["streaming or tensor"])))
}

// check refuses a mix that would prove little.
func (m *mixture) check(t *testing.T) {
	n := m.feasible()
	least := func(name string, got, want int) {
		if got < want {
			t.Errorf("the mix is poor: %s in %d of %d, want %d", name, got, n, want)
		}
	}
	least("feasible", n, 5000*m.all/exactInstances)
	least("infeasible", m.infeasible, m.all/50)
	least("memory-bound", m.counts["memory-bound"], n/3)
	least("optimal on three hosts or more", m.counts["three or more hosts"], n/4)
	least("streaming or tensor parallelism", m.counts["streaming or tensor"], n/4)
	for name, share := range map[string]int{
		"streaming": 10, "tensor parallel": 10, "pipeline in a node": 50, "micro-batches": 50, "two runs": 3, "one block": 200,
		"fewer blocks": 100, "max nodes": 10, "one class": 10, "strict": 20, "free link": 5, "no RAM": 50, "equal hosts": 20, "island as a whole": 500,
	} {
		least(name, m.counts[name], n/share)
	}
	for _, k := range objectives {
		least(string(k), m.objectives[k], n/5)
	}
}
