// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// InfeasibleError says that no cut fits, by how much, and what would make it fit.
type InfeasibleError struct {
	Label     string   // "deployment flux"
	Needs     Bytes    // all weights as stored
	Offers    []Offer  // usable nodes, largest first
	Total     Bytes    // of Offers
	Short     Bytes    // extra memory on ShortNode that would do
	ShortNode string   // empty when no node can be used
	Why       string   // when the sum of the offers is not the cause
	Barred    []Unused // nodes that cannot be used
	Advice    []string // each makes it fit by itself
}

// Offer is what a node can hold of weights, after its reserve, staging slot and scratch.
type Offer struct {
	Node  NodeID
	Name  string
	Bytes Bytes
}

const maxNamed = 8

func (e *InfeasibleError) Error() string {
	div, unit := unitFor(max(e.Needs, e.Total))
	show := func(b Bytes) string { return fmt.Sprintf("%.1f", float64(b)/div) }
	var b strings.Builder
	fmt.Fprintf(&b, "%s: needs %s %s, nodes offer %s %s", e.Label, show(e.Needs), unit, show(e.Total), unit)
	if len(e.Offers) > 0 {
		parts := make([]string, 0, maxNamed+1)
		for i, o := range e.Offers {
			if i == maxNamed {
				parts = append(parts, fmt.Sprintf("%d more", len(e.Offers)-i))
				break
			}
			parts = append(parts, o.Name+": "+show(o.Bytes))
		}
		b.WriteString(" (" + strings.Join(parts, ", ") + ")")
	}
	if e.Why != "" {
		b.WriteString(", but " + e.Why)
	}
	for i, u := range e.Barred {
		if i == maxNamed {
			fmt.Fprintf(&b, "; %d more cannot be used", len(e.Barred)-i)
			break
		}
		fmt.Fprintf(&b, "; %s cannot be used (%s)", u.Name, u.Reason)
	}
	if len(e.Advice) > 0 {
		b.WriteString("; " + joinOr(e.Advice))
	}
	if e.ShortNode != "" && e.Short > 0 {
		fmt.Fprintf(&b, " (%s more on %s would do)", e.Short, e.ShortNode)
	}
	return b.String()
}

func joinOr(items []string) string {
	if len(items) < 2 {
		return strings.Join(items, "")
	}
	return strings.Join(items[:len(items)-1], ", ") + " or " + items[len(items)-1]
}

// offer is what node i can hold of weights: the memory of the devices that compute together, or of one and of the tiers
// behind it.
func (f *field) offer(i int) Bytes {
	m, c := f.model, f.problem.Constraints
	var scratch, slot Bytes
	for _, r := range m.Runs {
		scratch, slot = max(scratch, r.Block.Scratch), max(slot, r.Block.Staging)
	}
	need := slot + scratch*Bytes(c.inFlight())
	var together, one Bytes
	for _, d := range f.nodes[i].computing(m) {
		room := max(0, d.available(c)-need)
		tiers := room
		if c.Fit != FitStrict && room > 0 {
			for _, s := range f.alone(i, d).sources {
				if s.kind != TierDisk {
					tiers += s.capacity
				}
			}
		}
		one = max(one, tiers)
		if d.Peer > 0 {
			together += room
		}
	}
	return max(one, together)
}

// present lists the nodes that hold blocks or could with more memory.
func (f *field) present() []int {
	var out []int
	for i := range f.nodes {
		if !f.gone[i] && (f.barred[i].Kind == "" || f.barred[i].Kind == ReasonMemory) {
			out = append(out, i)
		}
	}
	return out
}

func (f *field) infeasible() *InfeasibleError {
	p := f.problem
	nodes := f.present()
	e := f.shortage(nodes)
	if len(nodes) == 0 {
		e.Why = "no node can be used"
	}
	hosts := f.capacities(nodes)
	if limit := p.Constraints.MaxNodes; limit > 0 && f.fits(hosts, 0) {
		least := f.fewest(hosts, len(hosts), true)
		e.Why = fmt.Sprintf("it takes %d nodes and max nodes is %d", least, limit)
		e.Advice = append(e.Advice, fmt.Sprintf("allow %d nodes", least))
	} else if p.Constraints.Numerics == NumericsOne && f.fits(hosts, limit) {
		e.Why = "no numerics class has room for all blocks"
		e.Advice = append(e.Advice, "allow unlike classes (numerics any)")
	} else if e.Why == "" && e.Total >= e.Needs {
		e.Why = fmt.Sprintf("no cut into whole blocks of up to %s fits", f.largestBlock())
	}
	f.advise(e, hosts)
	return e
}

func (f *field) largestBlock() Bytes {
	var w Bytes
	for _, r := range f.problem.Model.Runs {
		w = max(w, r.Block.Weights)
	}
	return w
}

// shortage fills in who offers what.
func (f *field) shortage(nodes []int) *InfeasibleError {
	p := f.problem
	e := &InfeasibleError{Label: p.label(), Needs: p.Model.Weights()}
	for _, i := range nodes {
		o := f.offer(i)
		e.Offers = append(e.Offers, Offer{f.nodes[i].ID, f.offering(i), o})
		e.Total += o
	}
	slices.SortStableFunc(e.Offers, func(a, b Offer) int { return cmp.Compare(b.Bytes, a.Bytes) })
	for i, r := range f.barred {
		if r.Kind != "" && r.Kind != ReasonMemory {
			e.Barred = append(e.Barred, Unused{f.nodes[i].ID, f.nodes[i].Label(), r})
		}
	}
	var at int
	if e.Short, at = f.short(nodes); at >= 0 {
		e.ShortNode = f.nodes[at].Label()
	}
	return e
}

// advise lists single changes that were checked to make the model fit, and a donor, which always can.
func (f *field) advise(e *InfeasibleError, hosts []capacity) {
	p := f.problem
	s, limit := shapeOf(f.model), p.Constraints.MaxNodes
	for i, r := range f.barred {
		if (r.Kind != ReasonNoFile && r.Kind != ReasonExcluded) || f.gone[i] || len(e.Advice) > 3 || len(f.nodes[i].computing(f.model)) == 0 {
			continue
		}
		if !f.fits(append(slices.Clone(hosts), newTable(s, f.ways(i, f.model.widest())).capacity(s)), limit) {
			continue
		}
		if r.Kind == ReasonNoFile {
			e.Advice = append(e.Advice, "copy the file to "+f.nodes[i].Label())
		} else {
			e.Advice = append(e.Advice, "stop excluding "+f.nodes[i].Label())
		}
	}
	e.Advice = append(e.Advice, "add a donor")
	if p.Constraints.Fit == FitStrict && f.fitsWhen(func(p *Problem) { p.Constraints.Fit = FitFallback }) {
		e.Advice = append(e.Advice, "let weights be streamed (fit fallback)")
	}
	if p.Constraints.inFlight() > 1 && f.fitsWhen(func(p *Problem) { p.Constraints.InFlight = 1 }) {
		e.Advice = append(e.Advice, "keep one forward in flight")
	}
	if eight, ok := p.Model.eightBit(); ok && f.fitsWhen(func(p *Problem) { p.Model = eight }) {
		e.Advice = append(e.Advice, "use fp8")
	}
}

// fitsWhen reports whether the nodes that are left would hold the model after a change.
func (f *field) fitsWhen(change func(*Problem)) bool {
	p := f.problem
	change(&p)
	g := settled(p, f.nodes, p.Model.folded(true))
	g.gone = f.gone
	return g.holds(g.present())
}

// eightBit is the model stored in one byte per weight and expanded into a slot; false when it already is.
func (m Model) eightBit() (Model, bool) {
	width := map[DType]Bytes{"f32": 4, "f16": 2, "bf16": 2}[m.StoredDType]
	if width == 0 {
		return m, false
	}
	shrink := func(c Cost) Cost {
		c.Staging = max(c.Staging, c.Weights)
		c.Weights = (c.Weights + width - 1) / width
		c.Expansion = c.Weights
		return c
	}
	m.Runs = slices.Clone(m.Runs)
	for i := range m.Runs {
		m.Runs[i].Block = shrink(m.Runs[i].Block)
	}
	m.Head, m.Tail = shrink(m.Head), shrink(m.Tail)
	return m, true
}

// MisfitError says that a stage of a given cut is larger than its node.
type MisfitError struct {
	Label  string
	Stage  Stage  // Peak is what it needs with at most one slot
	Advice string // what to do, beside freeing memory; empty: pin fewer blocks to it
}

func (e *MisfitError) Error() string {
	s := e.Stage
	where := s.Name
	if s.Device != "" && s.Device != "cpu" {
		where += "/" + s.Device
	}
	return fmt.Sprintf("%s: blocks %d-%d need %s on %s, which offers %s: %s or free %s", e.Label, s.First, s.First+s.Blocks-1, s.Peak, where, max(0, s.Available), cmp.Or(e.Advice, "pin fewer blocks to it"), s.Peak-s.Available)
}

// explainShort says why the remaining nodes cannot take over.
func (f *field) explainShort(l *Loss) {
	p := f.problem
	nodes := f.present()
	limit := p.Constraints.MaxNodes
	switch {
	case limit > 0 && f.fits(f.capacities(nodes), 0):
		l.Why = fmt.Sprintf("the others fit it only on more than %d nodes", limit)
	case p.Constraints.Numerics == NumericsOne && f.fits(f.capacities(nodes), limit):
		l.Why = "the others have no numerics class with room for all blocks"
	default:
		l.Short, _ = f.short(nodes)
	}
}

// offering names a node, and its device where it is a lone GPU.
func (f *field) offering(i int) string {
	if d := f.nodes[i].computing(f.model); len(d) == 1 && d[0].Kind == KindGPU {
		return f.nodes[i].Label() + "/" + d[0].ID
	}
	return f.nodes[i].Label()
}
