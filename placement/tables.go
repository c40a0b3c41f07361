// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import "math"

// speed is a device's seconds for the parts of a model.
type speed struct {
	runs       []seconds
	head, tail seconds
}

// seconds are the two engines of a stage: arithmetic, and expansion of stored weights.
type seconds struct{ compute, expansion float64 }

func (s seconds) times(n int) seconds {
	return seconds{float64(s.compute * float64(n)), float64(s.expansion * float64(n))}
}

func (s seconds) plus(o seconds) seconds {
	return seconds{s.compute + o.compute, s.expansion + o.expansion}
}

// secondsFor prices a cost: products at the measured rate but not faster than their weights can be read, attention at
// its own rate, all else at memory bandwidth.
func secondsFor(c Cost, d *Device, rate Rate) seconds {
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

func speedOf(m Model, d *Device) speed {
	rate, _ := d.rate(m.ComputeDType)
	s := speed{head: secondsFor(m.Head, d, rate), tail: secondsFor(m.Tail, d, rate)}
	for _, r := range m.Runs {
		s.runs = append(s.runs, secondsFor(r.Block, d, rate))
	}
	return s
}

// load is what a stage holds: blocks per run, and which ends of the model.
type load struct {
	blocks [2]int
	role   role
}

// parts are the stage's pieces of the model, each once.
func (m Model) parts(l load) []Cost {
	var out []Cost
	for i, r := range m.Runs {
		if l.blocks[i] > 0 {
			out = append(out, r.Block)
		}
	}
	if l.role&first != 0 {
		out = append(out, m.Head)
	}
	if l.role&last != 0 {
		out = append(out, m.Tail)
	}
	return out
}

// memory is a stage's peak with one staging slot, and what each further slot adds.
func (m Model) memory(l load, inFlight int) (peak, weights, slot Bytes) {
	var scratch Bytes
	for _, c := range m.parts(l) {
		slot = max(slot, c.Staging)
		scratch = max(scratch, c.Scratch)
	}
	for i, r := range m.Runs {
		weights += Bytes(l.blocks[i]) * r.Block.Weights
	}
	if l.role&first != 0 {
		weights += m.Head.Weights
	}
	if l.role&last != 0 {
		weights += m.Tail.Weights
	}
	return weights + slot + scratch*Bytes(inFlight), weights, slot
}

// stageCost is one stage priced on one device; slots is 0 where nothing is expanded and -1 where it does not fit.
type stageCost struct {
	compute, expansion float64 // seconds; expansion that compute does not hide
	peak, weights      Bytes
	slots              int
}

func (c stageCost) total() float64 { return c.compute + c.expansion }

// pricer prices stages on one node.
type pricer struct {
	model     Model
	device    *Device
	speed     speed
	slots     int
	inFlight  int
	available Bytes
}

func newPricer(m Model, n *Node, c Constraints) *pricer {
	d := n.cpu()
	return &pricer{model: m, device: d, speed: speedOf(m, d), slots: c.slots(), inFlight: c.inFlight(), available: d.available()}
}

// price takes the fastest number of slots that fits. The second result is false when none does; the cost then still
// says what one slot would need.
func (p *pricer) price(l load) (stageCost, bool) {
	peak, weights, slot := p.model.memory(l, p.inFlight)
	var s seconds
	for i, r := range p.speed.runs {
		s = s.plus(r.times(l.blocks[i]))
	}
	if l.role&first != 0 {
		s = s.plus(p.speed.head)
	}
	if l.role&last != 0 {
		s = s.plus(p.speed.tail)
	}
	c := stageCost{compute: s.compute, expansion: s.expansion, peak: peak, weights: weights}
	if slot > 0 {
		c.slots = 1
	}
	if peak > p.available {
		return c, false
	}
	if slot > 0 && s.expansion > 0 && p.device.Overlap && p.slots > 1 && peak+slot <= p.available {
		c.slots, c.peak, c.expansion = 2, peak+slot, max(0, s.expansion-s.compute)
	}
	return c, true
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

// host is a usable node with its costs tabulated for the search.
type host struct {
	node int     // index into the sorted nodes
	hop  float64 // a
	// cost[role][x*(n2+1)+y] in seconds; +Inf where it does not fit
	cost   [roles][]float64
	fx, fy [roles]int // largest x with y=0 and y with x=0 that fit
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

func (s shape) load(x, y int, r role) load {
	if s.n1 == 0 {
		return load{blocks: [2]int{y, 0}, role: r}
	}
	return load{blocks: [2]int{x, y}, role: r}
}

func newHost(node int, n *Node, p *pricer, hop float64) *host {
	s := shapeOf(p.model)
	h := &host{node: node, hop: hop}
	for r := range role(roles) {
		h.cost[r] = make([]float64, s.cells())
		edge := endpointHops(p.model, n.Link, r)
		for x := 0; x <= s.n1; x++ {
			for y := 0; y <= s.n2; y++ {
				i := x*s.width() + y
				h.cost[r][i] = math.Inf(1)
				if x+y == 0 {
					continue
				}
				c, ok := p.price(s.load(x, y, r))
				if !ok {
					continue
				}
				h.cost[r][i] = c.total() + edge
				if y == 0 {
					h.fx[r] = x
				}
				if x == 0 {
					h.fy[r] = y
				}
			}
		}
	}
	return h
}

// usable reports whether the node can hold a single block.
func (h *host) usable() bool { return h.fx[0] > 0 || h.fy[0] > 0 }
