// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement_test

import (
	"math"
	"slices"

	. "github.com/distorch/distorch/placement"
)

// shelf is a place that streamed weights of one device may rest in.
type shelf struct {
	kind TierKind
	name string
	room int64
	rate float64
}

// seat is what one stage computes on: a device, or a tensor-parallel group.
type seat struct {
	node    int      // index of the node, an island's first one
	devices []string // ids in order; of an island as node/device
	figures Device   // of the device, or of each of the group
	free    int64    // bytes on each
	degree  int
	rate    float64 // of collectives
	latency float64
	shelves [][]shelf // one list for each node of the group, the fastest first
}

// work is what a stage takes.
type work struct {
	fits                                bool
	seconds, compute, expansion, stream float64
	slots, ring                         int
	streamed                            [maxOracleRuns]int
	moved                               int64 // bytes that each device streams
	weights, peak                       int64
	taken                               []int64 // from each shelf of the seat's first list
}

const maxOracleRuns = 4

// bench is one model (a micro-batch's table) with what its stages may do.
type bench struct {
	model Model
	rules Constraints
}

func (b bench) blocks() int {
	n := 0
	for _, r := range b.model.Runs {
		n += r.Count
	}
	return n
}

// runAt is the index of a block's run.
func (b bench) runAt(block int) int {
	for i, r := range b.model.Runs {
		if block < r.Count {
			return i
		}
		block -= r.Count
	}
	panic("block outside the model")
}

func divideUp(a Bytes, g int) int64 { return (int64(a) + int64(g) - 1) / int64(g) }

// curveAt reads a device's rates at the model's tokens.
func (b bench) curveAt(d Device) (linear, attention float64, ok bool) {
	var points []Rate
	for _, r := range d.Rates {
		if r.DType != b.model.ComputeDType {
			continue
		}
		if r.Tokens == 0 {
			return r.Linear, r.Attention, true
		}
		points = append(points, r)
	}
	if len(points) == 0 {
		return 0, 0, false
	}
	slices.SortFunc(points, func(x, y Rate) int { return int(math.Copysign(1, x.Tokens-y.Tokens)) })
	t := b.model.Tokens
	last := points[len(points)-1]
	if t == 0 || t >= last.Tokens {
		return last.Linear, last.Attention, true
	}
	for i, hi := range points {
		if t > hi.Tokens {
			continue
		}
		if i == 0 || t == hi.Tokens {
			return hi.Linear, hi.Attention, true
		}
		lo := points[i-1]
		w := math.Log(t/lo.Tokens) / math.Log(hi.Tokens/lo.Tokens)
		return lo.Linear * math.Pow(hi.Linear/lo.Linear, w), lo.Attention * math.Pow(hi.Attention/lo.Attention, w), true
	}
	panic("no such point")
}

// stage prices blocks from..to-1 on a seat.
func (b bench) stage(s *seat, from, to int) work { return b.stageFilled(s, from, to, s.fill) }

// stageFilled is stage with another rule for where streamed weights rest.
func (b bench) stageFilled(s *seat, from, to int, fill func(*work) bool) work {
	m := b.model
	linear, attention, ok := b.curveAt(s.figures)
	if !ok {
		return work{}
	}
	var counts [maxOracleRuns]int
	var w work
	var staging, scratch, whole int64 // whole: head and tail, which every device holds
	add := func(c Cost, share int) {
		read := float64(c.Weights)
		if c.Staging > 0 {
			read = float64(c.Staging)
		}
		g := float64(share)
		w.compute += (math.Max(c.Linear/linear, read/s.figures.Memory) + c.Attention/attention + float64(c.Elementwise)/s.figures.Memory) / g
		if share > 1 {
			w.compute += 2*(g-1)/g*float64(c.Collective)/s.rate + 2*(g-1)*s.latency
		}
		if c.Expansion > 0 {
			w.expansion += float64(c.Expansion) / s.figures.Expansion / g
		}
		staging = max(staging, divideUp(c.Staging, share))
		scratch = max(scratch, int64(c.Scratch))
	}
	if from == 0 {
		add(m.Head, 1)
		whole += int64(m.Head.Weights)
	}
	for i := from; i < to; i++ {
		add(m.Runs[b.runAt(i)].Block, s.degree)
		counts[b.runAt(i)]++
	}
	if to == b.blocks() {
		add(m.Tail, 1)
		whole += int64(m.Tail.Weights)
	}
	memory := func(k [maxOracleRuns]int, slots, ring int) (total, resident int64) {
		resident, widest := whole, int64(0)
		for r := range m.Runs {
			one := divideUp(m.Runs[r].Block.Weights, s.degree)
			resident += int64(counts[r]-k[r]) * one
			if k[r] > 0 {
				widest = max(widest, one)
			}
		}
		forwards := int64(max(b.rules.InFlight, 1))
		return resident + int64(ring)*widest + int64(slots)*staging + forwards*scratch, resident
	}
	one := 0
	if staging > 0 {
		one = 1
	}
	var none [maxOracleRuns]int
	if peak, resident := memory(none, one, 0); peak <= s.free {
		w.fits, w.slots, w.peak, w.weights = true, one, peak, resident
		w.seconds = w.compute + w.expansion
		if two, _ := memory(none, 2, 0); one == 1 && s.figures.Overlap && b.rules.Slots != 1 && w.expansion > 0 && two <= s.free {
			w.slots, w.peak, w.seconds = 2, two, math.Max(w.compute, w.expansion)
		}
		return w
	}
	if b.rules.Fit == FitStrict {
		return w
	}
	w.slots = one
	best := work{}
	for ring := 2; ring >= 1; ring-- {
		x := w
		x.ring = ring
		if !b.leastStreamed(s, &x, counts, memory) || !fill(&x) {
			continue
		}
		x.fits, x.seconds = true, x.streaming()
		if !best.fits || x.seconds < best.seconds {
			best = x
		}
	}
	return best
}

// leastStreamed looks at every choice of streamed blocks, the first runs' counts outermost and ascending.
func (b bench) leastStreamed(s *seat, x *work, counts [maxOracleRuns]int, memory func([maxOracleRuns]int, int, int) (int64, int64)) bool {
	found, least := false, int64(0)
	var k [maxOracleRuns]int
	var try func(run int)
	try = func(run int) {
		if run < len(b.model.Runs) {
			for k[run] = 0; k[run] <= counts[run]; k[run]++ {
				try(run + 1)
			}
			k[run] = 0
			return
		}
		moved, n := int64(0), 0
		for r := range b.model.Runs {
			moved += int64(k[r]) * divideUp(b.model.Runs[r].Block.Weights, s.degree)
			n += k[r]
		}
		peak, resident := memory(k, x.slots, x.ring)
		if n > 0 && peak <= s.free && (!found || moved < least) {
			found, least = true, moved
			x.streamed, x.peak, x.weights = k, peak, resident
		}
	}
	try(0)
	x.moved = least
	return found
}

// fill takes what a stage streams from a seat's shelves, the fastest first.
func (s *seat) fill(x *work) bool {
	for i, shelves := range s.shelves {
		left, seconds := x.moved, 0.0
		taken := make([]int64, len(shelves))
		for j, h := range shelves {
			taken[j] = min(left, h.room)
			left -= taken[j]
			if taken[j] > 0 {
				seconds += float64(taken[j]) / h.rate
			}
		}
		if left > 0 {
			return false
		}
		x.stream = math.Max(x.stream, seconds)
		if i == 0 {
			x.taken = taken
		}
	}
	return true
}

// streaming is the time of a stage that streams through a ring of this many slots.
func (w work) streaming() float64 {
	if w.ring == 1 {
		return w.compute + w.expansion + w.stream
	}
	return math.Max(w.compute+w.expansion, w.stream)
}
