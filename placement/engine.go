// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"cmp"
	"math"
	"slices"
)

// seconds are the two engines of a stage: arithmetic, and expansion of stored weights.
type seconds struct{ compute, expansion float64 }

func (s seconds) times(n int) seconds {
	return seconds{float64(s.compute * float64(n)), float64(s.expansion * float64(n))}
}

func (s seconds) plus(o seconds) seconds {
	return seconds{s.compute + o.compute, s.expansion + o.expansion}
}

// piece sizes of a model on one device of a group.
type share struct {
	weights, staging, scratch Bytes
	seconds
}

// source is a tier that weights are streamed from, as one device of a stage sees it.
type source struct {
	kind     TierKind
	where    string
	capacity Bytes
	rate     float64
	room     Bytes // for whole blocks, where that is more than the capacity that is counted: all that a lender has
}

// engine is a device or a tensor-parallel group, priced for a model: everything that a stage's time and memory follow
// from.
type engine struct {
	node      int      // index into the sorted nodes; the first one's on an island
	nodes     []int    // of an island; nil otherwise
	devices   []string // ids; with the node's name on an island
	degree    int
	available Bytes
	overlap   bool
	slots     int // allowed for expansion
	inFlight  Bytes
	runs      [2]share // per block of the search's regions, on one device
	every     []share  // per block of every run of a model that has more than two
	head      share
	tail      share
	sources   []source   // fastest first
	others    [][]source // of an island's other nodes, which stream at the same time
	strict    bool       // may not stream
	class     string
	peer      float64 // of the device, for hops inside its node
	spread    float64 // relative uncertainty of compute
	published bool
	hand      *hand // a person's assignment, or nil
}

// ceilDiv is n/g in whole bytes, rounded up.
func ceilDiv(n Bytes, g int) Bytes { return (n + Bytes(g) - 1) / Bytes(g) }

// partSeconds prices a cost: products at the measured rate but not faster than their weights can be read, attention at
// its own rate, all else at memory bandwidth.
func partSeconds(c Cost, d *Device, rate Rate) seconds {
	read := c.Weights
	if c.Staging > 0 {
		read = c.Staging
	}
	linear := max(c.Linear/rate.Linear, float64(read)/d.Memory)
	s := seconds{compute: linear + c.Attention/rate.Attention + float64(c.Elementwise)/d.Memory}
	if c.Expansion > 0 {
		s.expansion = float64(c.Expansion) / d.Expansion
	}
	return s
}

// fabric is what a group's collectives run over.
type fabric struct{ rate, latency float64 }

// collective is the time of one block's all-reduces over g devices in a ring.
func (f fabric) collective(size Bytes, g int) float64 {
	steps := 2 * float64(g-1)
	return steps/float64(g)*float64(size)/f.rate + steps*f.latency
}

// newEngine prices the model on g devices like d; available is that of the one with the least.
func newEngine(m Model, d *Device, g int, f fabric, available Bytes, c Constraints) *engine {
	rate, _ := d.rate(m.ComputeDType, m.Tokens)
	e := &engine{
		degree: g, available: available, overlap: d.Overlap, slots: c.slots(), inFlight: Bytes(c.inFlight()),
		strict: c.Fit == FitStrict, class: d.NumericsClass(m.ComputeDType, g), peer: d.Peer, spread: d.spread(), published: d.Source == SourcePublished,
	}
	whole := func(p Cost) share {
		return share{p.Weights, p.Staging, p.Scratch, partSeconds(p, d, rate)}
	}
	e.head, e.tail = whole(m.Head), whole(m.Tail)
	for i, r := range m.Runs {
		e.runs[i+2-len(m.Runs)] = shared(whole(r.Block), r.Block.Collective, g, f)
	}
	for _, r := range m.unfolded {
		e.every = append(e.every, shared(whole(r.Block), r.Block.Collective, g, f))
	}
	return e
}

// shared is a block's share on each of g devices.
func shared(s share, collective Bytes, g int, f fabric) share {
	if g > 1 {
		s.weights, s.staging = ceilDiv(s.weights, g), ceilDiv(s.staging, g)
		s.compute = s.compute/float64(g) + f.collective(collective, g)
		s.expansion /= float64(g)
	}
	return s
}

// stageCost is one stage priced on one engine.
type stageCost struct {
	compute, expansion float64 // seconds; expansion that compute does not hide
	stream, stall      float64 // copies, and the part of them that nothing hides
	peak, weights      Bytes   // on each device; weights are those resident
	slots, ring        int
	streamed           [2]int // blocks per region
	bytes              Bytes  // streamed to each device
}

func (c stageCost) total() float64 { return c.compute + c.expansion + c.stall }

// price is the time and memory of a stage of x blocks in region 1 and y in region 2. The second result is false when it
// does not fit; the cost then says what it would need all resident with one slot.
func (e *engine) price(x, y int, r role) (stageCost, bool) {
	a, b := &e.runs[0], &e.runs[1]
	s := a.times(x).plus(b.times(y))
	weights := Bytes(x)*a.weights + Bytes(y)*b.weights
	var slot, scratch Bytes
	if x > 0 {
		slot, scratch = a.staging, a.scratch
	}
	if y > 0 {
		slot, scratch = max(slot, b.staging), max(scratch, b.scratch)
	}
	if r&first != 0 {
		s, weights = s.plus(e.head.seconds), weights+e.head.weights
		slot, scratch = max(slot, e.head.staging), max(scratch, e.head.scratch)
	}
	if r&last != 0 {
		s, weights = s.plus(e.tail.seconds), weights+e.tail.weights
		slot, scratch = max(slot, e.tail.staging), max(scratch, e.tail.scratch)
	}
	peak := weights + slot + scratch*e.inFlight
	c := stageCost{compute: s.compute, expansion: s.expansion, peak: peak, weights: weights}
	if slot > 0 {
		c.slots = 1
	}
	if e.hand != nil {
		return e.priceHand(c)
	}
	if peak > e.available {
		return e.streamed(c, x, y)
	}
	if slot > 0 && s.expansion > 0 && e.overlap && e.slots > 1 && peak+slot <= e.available {
		c.slots, c.peak, c.expansion = 2, peak+slot, max(0, s.expansion-s.compute)
	}
	return c, true
}

// streamed prices a stage whose weights do not all fit: the fewest bytes stream through a ring of two slots beside
// compute, or of one between blocks, whichever is faster.
func (e *engine) streamed(c stageCost, x, y int) (stageCost, bool) {
	if e.strict || len(e.sources) == 0 {
		return c, false
	}
	best, ok := c, false
	for ring := 2; ring >= 1; ring-- {
		// One slot streams at least what is too much, and hides nothing.
		if ok && c.total()+e.streamSeconds(c.peak-e.available) >= best.total() {
			break
		}
		k1, k2, fits := e.fewest(c.peak-e.available, ring, x, y)
		if !fits {
			continue
		}
		bytes := Bytes(k1)*e.runs[0].weights + Bytes(k2)*e.runs[1].weights
		stream := e.streamSeconds(bytes)
		if math.IsInf(stream, 1) {
			continue
		}
		t := c
		t.ring, t.streamed, t.bytes, t.stream = ring, [2]int{k1, k2}, bytes, stream
		t.weights -= bytes
		t.peak += e.ringBytes(ring, k1, k2) - bytes
		if t.stall = stream; ring == 2 {
			t.stall = max(0, stream-(c.compute+c.expansion))
		}
		if !ok || t.total() < best.total() {
			best, ok = t, true
		}
	}
	return best, ok
}

func (e *engine) ringBytes(ring, k1, k2 int) Bytes {
	var slot Bytes
	if k1 > 0 {
		slot = e.runs[0].weights
	}
	if k2 > 0 {
		slot = max(slot, e.runs[1].weights)
	}
	return Bytes(ring) * slot
}

// fewest is the choice of streamed blocks with the fewest bytes (then the fewest of region 1) that frees over bytes and
// room for the ring.
func (e *engine) fewest(over Bytes, ring, x, y int) (k1, k2 int, ok bool) {
	w1, w2 := e.runs[0].weights, e.runs[1].weights
	best := Bytes(math.MaxInt64)
	for i := 0; i <= x; i++ {
		freed := Bytes(i) * w1
		if freed >= best {
			break
		}
		if i > 0 && freed >= over+Bytes(ring)*w1 {
			if freed < best {
				k1, k2, ok = i, 0, true
			}
			break // more of either run streams more bytes
		}
		if y == 0 {
			continue
		}
		need := over + e.ringBytes(ring, i, 1) - freed
		j := 1
		if need > w2 {
			if w2 == 0 {
				continue
			}
			j = int((need + w2 - 1) / w2)
		}
		if bytes := freed + Bytes(j)*w2; j <= y && bytes < best {
			best, k1, k2, ok = bytes, i, j, true
		}
	}
	return k1, k2, ok
}

// streamSeconds is the time to copy bytes to each device; +Inf when the sources do not hold so much.
func (e *engine) streamSeconds(bytes Bytes) float64 {
	t := copySeconds(e.sources, bytes)
	for _, o := range e.others {
		t = max(t, copySeconds(o, bytes))
	}
	return t
}

// copySeconds is the time to copy bytes from sources, the fastest first.
func copySeconds(sources []source, bytes Bytes) float64 {
	t := 0.0
	for _, s := range sources {
		n := min(bytes, s.capacity)
		t += float64(n) / s.rate
		if bytes -= n; bytes == 0 {
			return t
		}
	}
	if bytes == 0 {
		return t
	}
	return math.Inf(1)
}

// tiers lists where a stage's blocks rest; a block that rests in two counts where most of it is.
func (e *engine) tiers(c stageCost, x, y int) []Tier {
	if e.hand != nil {
		return append([]Tier{{Kind: TierDevice, Where: e.devices[0], Blocks: x + y - c.streamed[0] - c.streamed[1], Bytes: c.weights}}, e.hand.tiers...)
	}
	resident := x + y - c.streamed[0] - c.streamed[1]
	out := []Tier{{Kind: TierDevice, Where: e.devices[0], Blocks: resident, Bytes: c.weights}}
	left, blocks := c.bytes, c.streamed[0]+c.streamed[1]
	for _, s := range e.sources {
		if left == 0 && blocks == 0 {
			break
		}
		n := min(left, s.capacity)
		if n == 0 && left > 0 {
			continue
		}
		k := blocks
		if c.bytes > 0 && n < left {
			k = min(blocks, int(math.Round(float64(c.streamed[0]+c.streamed[1])*float64(n)/float64(c.bytes))))
		}
		out = append(out, Tier{Kind: s.kind, Where: s.where, Blocks: k, Bytes: n, Seconds: float64(n) / s.rate})
		left, blocks = left-n, blocks-k
	}
	return out
}

// sortSources puts the fastest first; the given order stays where rates are equal.
func sortSources(s []source) []source {
	s = slices.DeleteFunc(s, func(s source) bool { return !(s.rate > 0) || s.capacity <= 0 })
	slices.SortStableFunc(s, func(a, b source) int { return cmp.Compare(b.rate, a.rate) })
	return s
}

// hopCost is a node's a in seconds for a boundary of this size.
func hopCost(b Bytes, l Link) float64 { return float64(b)/l.BytesPerSecond + l.Latency }

// endpointHops are the hops between the endpoint and the pipeline's ends.
func endpointHops(m Model, l Link, r role) float64 {
	t := 0.0
	if r&first != 0 {
		t += hopCost(m.Input, l)
	}
	if r&last != 0 {
		t += hopCost(m.Output, l)
	}
	return t
}

// shape is the search's view of the runs: a single run lies in region 2.
type shape struct{ n1, n2 int }

func shapeOf(m Model) shape {
	if len(m.Runs) == 1 {
		return shape{0, m.Runs[0].Count}
	}
	return shape{m.Runs[0].Count, m.Runs[1].Count}
}

func (s shape) width() int { return s.n2 + 1 }
func (s shape) cells() int { return (s.n1 + 1) * (s.n2 + 1) }

// blocks are those of the model's runs for x and y of the regions.
func (m Model) regions(x, y int) [2]int {
	if len(m.Runs) == 1 {
		return [2]int{y, 0}
	}
	return [2]int{x, y}
}
