// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"fmt"
	"math"
	"slices"

	"github.com/distorch/distorch/model/numeric"
)

// maxDistinct is up to how many unlike hosts every host has a table of its own.
const maxDistinct = 64

// distinct is how many unlike hosts there are.
func (f *field) distinct() int {
	seen := map[string]bool{}
	for _, i := range f.usable() {
		l := f.nodes[i].Link
		seen[fmt.Sprintf("%s@%v %v", f.keys[i], l.BytesPerSecond, l.Latency)] = true
	}
	return len(seen)
}

// bucketed is pipeline for many unlike hosts. Their figures are rounded down by up to 5 % to find a plan, which is priced
// with the true ones, and up to find a bound.
func (f *field) bucketed(m mode) ([]part, float64, error) {
	up, down := f.rounded(true), f.rounded(false)
	_, bound, err := up.local(m)
	if err != nil {
		return nil, 0, err
	}
	near, _, err := down.local(m)
	if err != nil || near == nil {
		return nil, bound, err
	}
	segments := down.segments(near)
	for i := range segments {
		if segments[i].engine != nil {
			return nil, bound, nil
		}
	}
	var cuts []cut
	for _, s := range segments {
		cuts = append(cuts, cut{s.node, f.model.regions(s.x, s.y)})
	}
	list, misfit := f.cutParts(cuts, m)
	if misfit != nil {
		panic("placement: a plan for smaller figures does not fit the true ones: " + misfit.Name)
	}
	return list, bound, nil
}

// bucketStep is the ratio of neighbouring buckets.
const bucketStep = 1.05

// toBucket rounds a figure to a power of the step, up or down.
func toBucket(v float64, up bool) float64 {
	if !(v > 0) || math.IsInf(v, 1) {
		return v
	}
	k := math.Floor(numeric.Log(v) / numeric.Log(bucketStep))
	low := numeric.Pow(bucketStep, k)
	for low > v {
		k--
		low = numeric.Pow(bucketStep, k)
	}
	if !up {
		return low
	}
	high := low
	for high < v {
		k++
		high = numeric.Pow(bucketStep, k)
	}
	return high
}

// rounded is the field with every figure better, or worse, by up to a bucket.
func (f *field) rounded(better bool) *field {
	p := f.problem
	p.Nodes = nil
	nodes := slices.Clone(f.nodes)
	bytes := func(b Bytes) Bytes { return Bytes(toBucket(float64(b), better)) }
	rate := func(v float64) float64 { return toBucket(v, better) }
	delay := func(v float64) float64 { return toBucket(v, !better) }
	for i := range nodes {
		n := &nodes[i]
		n.Link.BytesPerSecond, n.Link.Latency = rate(n.Link.BytesPerSecond), delay(n.Link.Latency)
		n.RAM, n.Disk, n.HostBus, n.PeerLatency = bytes(n.RAM), rate(n.Disk), rate(n.HostBus), delay(n.PeerLatency)
		n.Devices = slices.Clone(n.Devices)
		for k := range n.Devices {
			d := &n.Devices[k]
			d.Allocatable, d.Reserve = max(0, bytes(d.available(p.Constraints))), 0
			d.Expansion, d.Memory, d.HostToDevice, d.Peer = rate(d.Expansion), rate(d.Memory), rate(d.HostToDevice), rate(d.Peer)
			if r, ok := d.rate(f.model.ComputeDType, f.model.Tokens); ok {
				d.Rates = []Rate{{DType: f.model.ComputeDType, Linear: rate(r.Linear), Attention: rate(r.Attention)}}
			}
		}
	}
	p.Constraints.Reserve = 0
	g := settled(p, nodes, f.model)
	for i := range nodes {
		if f.gone[i] || (f.barred[i].Kind != "" && f.barred[i].Kind != ReasonMemory) {
			g.gone[i] = true
		}
	}
	g.only, g.apart = f.only, f.apart
	return g
}
