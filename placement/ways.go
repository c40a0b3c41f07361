// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// way is one way in which a place runs its part of the pipeline: a sequence of engines, one stage each.
type way struct {
	engines []*engine
	links   []float64 // between neighbours, for the boundary that the tables are made with
}

// kindred are devices that are equal in every figure but their memory.
type kindred struct {
	devices []*Device // in the order of their ids
}

// figures is everything of a device that a price depends on, but its memory.
func (d *Device) figures() string {
	b := make([]byte, 0, 128)
	b = append(b, d.Kind...)
	b = append(b, '|')
	b = append(b, d.Model...)
	b = append(b, '|')
	b = append(b, d.Class...)
	b = append(b, '|')
	for _, f := range []float64{d.Expansion, d.Memory, d.HostToDevice, d.Peer, d.Spread, float64(boolInt(d.Overlap))} {
		b = strconv.AppendFloat(append(b, ' '), f, 'x', -1, 64)
	}
	b = append(b, d.Source...)
	for _, r := range d.Rates {
		b = append(append(b, ' '), r.DType...)
		for _, f := range []float64{r.Linear, r.Attention, r.Tokens} {
			b = strconv.AppendFloat(append(b, ' '), f, 'x', -1, 64)
		}
	}
	return string(b)
}

// kinds groups devices, in the order of each kind's first.
func kindsOf(devices []*Device) []kindred {
	var out []kindred
	index := map[string]int{}
	for _, d := range devices {
		f := d.figures()
		i, ok := index[f]
		if !ok {
			i = len(out)
			index[f] = i
			out = append(out, kindred{})
		}
		out[i].devices = append(out[i].devices, d)
	}
	return out
}

// most are the g devices with the most available memory, those of smaller id first.
func (k kindred) most(g int, c Constraints) []*Device {
	out := slices.Clone(k.devices)
	slices.SortStableFunc(out, func(a, b *Device) int { return int(sign(b.available(c) - a.available(c))) })
	return out[:g]
}

func sign(b Bytes) Bytes {
	switch {
	case b > 0:
		return 1
	case b < 0:
		return -1
	default:
		return 0
	}
}

// degrees are the sizes of groups out of n equal devices: 2, 4, 8, ... and n.
func degrees(n int) []int {
	var out []int
	for g := 2; g <= n; g *= 2 {
		out = append(out, g)
	}
	if n > 1 && !slices.Contains(out, n) {
		out = append(out, n)
	}
	return out
}

func least(devices []*Device, c Constraints) Bytes {
	b := Bytes(math.MaxInt64)
	for _, d := range devices {
		b = min(b, d.available(c))
	}
	return b
}

// ways lists what node i may do with a part of the model; hop is the boundary of hops inside it.
func (f *field) ways(i int, boundary Bytes) []way {
	n, m, c := &f.nodes[i], f.model, f.problem.Constraints
	devices := n.computing(m)
	var out []way
	seen := map[string]bool{}
	for _, d := range devices {
		if key := fmt.Sprint(int64(d.available(c)), d.figures()); !seen[key] {
			seen[key] = true
			out = append(out, way{engines: []*engine{f.alone(i, d)}})
		}
	}
	for _, k := range kindsOf(devices) {
		for _, g := range degrees(len(k.devices)) {
			if e := f.group(i, k, g); e != nil {
				out = append(out, way{engines: []*engine{e}})
			}
		}
	}
	paired := slices.DeleteFunc(slices.Clone(devices), func(d *Device) bool { return !(d.Peer > 0) })
	if len(paired) > 1 {
		out = append(out, f.pipes(i, paired, boundary)...)
	}
	if only := f.only; only != "" {
		out = slices.DeleteFunc(out, func(w way) bool {
			return slices.ContainsFunc(w.engines, func(e *engine) bool { return e.class != only })
		})
	}
	return out
}

// alone is one device with all of its node's tiers behind it.
func (f *field) alone(i int, d *Device) *engine {
	n, c := &f.nodes[i], f.problem.Constraints
	e := newEngine(f.model, d, 1, fabric{}, d.available(c), c)
	e.node, e.devices = i, []string{d.ID}
	if d.Kind == KindGPU {
		for _, o := range n.gpus() {
			if o.ID != d.ID {
				e.sources = append(e.sources, source{kind: TierDonor, where: o.ID, capacity: o.available(c), rate: min(o.Peer, d.Peer)})
			}
		}
	}
	e.sources = sortSources(append(e.sources, f.shared(i, d, 1)...))
	return e
}

// shared are the sources that all devices of a node draw on: host memory, other nodes' and the disk, for one of g.
func (f *field) shared(i int, d *Device, g int) []source {
	n := &f.nodes[i]
	var out []source
	if d.Kind == KindGPU {
		rate := d.HostToDevice
		if n.HostBus > 0 {
			rate = min(rate, n.HostBus/float64(g))
		}
		out = append(out, source{kind: TierRAM, where: "cpu", capacity: n.RAM / Bytes(g), rate: rate})
		for _, r := range f.remote[n.ID] {
			out = append(out, source{
				kind: TierRemote, where: r.where, capacity: r.capacity / Bytes(g), room: r.lend / Bytes(g),
				rate: min(min(r.rate, n.Link.BytesPerSecond)/float64(g), d.HostToDevice),
			})
		}
	}
	disk := n.Disk / float64(g)
	if d.Kind == KindGPU {
		disk = min(disk, d.HostToDevice)
	}
	return append(out, source{kind: TierDisk, where: "disk", capacity: maxBytes, rate: disk})
}

func (n *Node) gpus() []*Device {
	var out []*Device
	for i := range n.Devices {
		if n.Devices[i].Kind == KindGPU {
			out = append(out, &n.Devices[i])
		}
	}
	slices.SortFunc(out, func(a, b *Device) int { return compareIDs(a.ID, b.ID) })
	return out
}

// group is a tensor-parallel group of g devices of one node, nil where there can be none.
func (f *field) group(i int, k kindred, g int) *engine {
	n, c := &f.nodes[i], f.problem.Constraints
	if !f.divides(g) || !(k.devices[0].Peer > 0) || k.devices[0].Kind != KindGPU {
		return nil
	}
	members := k.most(g, c)
	d := members[0]
	e := newEngine(f.model, d, g, fabric{d.Peer, n.PeerLatency}, least(members, c), c)
	e.node = i
	for _, m := range members {
		e.devices = append(e.devices, m.ID)
	}
	slices.SortFunc(e.devices, compareIDs)
	e.sources = sortSources(f.shared(i, d, g))
	return e
}

// divides reports whether g devices may share the model's blocks.
func (f *field) divides(g int) bool {
	c := f.problem.Constraints
	return f.model.Heads > 0 && f.model.Heads%g == 0 && (c.MaxDegree == 0 || g <= c.MaxDegree)
}

// member is a device of a pipeline of g inside node i.
func (f *field) member(i int, d *Device, available Bytes, g int) *engine {
	c := f.problem.Constraints
	e := newEngine(f.model, d, 1, fabric{}, available, c)
	e.node, e.devices = i, []string{d.ID}
	e.sources = sortSources(f.shared(i, d, g))
	return e
}

const fewDevices = 3 // up to so many, every ordered choice is a pipeline inside the node

// pipes lists the pipelines inside node i over devices that can reach each other.
func (f *field) pipes(i int, devices []*Device, boundary Bytes) []way {
	n, c := &f.nodes[i], f.problem.Constraints
	var out []way
	add := func(seq []*Device, engines []*engine) {
		w := way{engines: engines}
		for k := 1; k < len(seq); k++ {
			w.links = append(w.links, float64(boundary)/min(seq[k-1].Peer, seq[k].Peer)+n.PeerLatency)
		}
		out = append(out, w)
	}
	if len(devices) <= fewDevices {
		seen := map[string]bool{}
		for _, seq := range sequences(devices) {
			var key strings.Builder
			for _, d := range seq {
				fmt.Fprint(&key, int64(d.available(c)), d.figures(), ";")
			}
			if seen[key.String()] {
				continue
			}
			seen[key.String()] = true
			shared := map[string]*engine{}
			engines := make([]*engine, len(seq))
			for k, d := range seq {
				same := fmt.Sprint(int64(d.available(c)), d.figures())
				if shared[same] == nil {
					shared[same] = f.member(i, d, d.available(c), len(seq))
				}
				e := *shared[same]
				e.devices = []string{d.ID}
				engines[k] = &e
			}
			add(seq, engines)
		}
		return out
	}
	kinds := kindsOf(devices)
	chain := func(k kindred, g, of int) []*engine {
		members := k.most(g, c)
		e := f.member(i, members[0], least(k.devices, c), of)
		engines := make([]*engine, g)
		for j, d := range members {
			one := *e
			one.devices = []string{d.ID}
			engines[j] = &one
		}
		return engines
	}
	for a, k := range kinds {
		for _, g := range degrees(len(k.devices)) {
			add(k.most(g, c), chain(k, g, g))
		}
		for b, o := range kinds {
			if a != b {
				of := len(k.devices) + len(o.devices)
				seq := append(k.most(len(k.devices), c), o.most(len(o.devices), c)...)
				add(seq, append(chain(k, len(k.devices), of), chain(o, len(o.devices), of)...))
			}
		}
	}
	return out
}

// sequences are the ordered choices of two or more devices.
func sequences(devices []*Device) [][]*Device {
	var out [][]*Device
	var extend func(chosen []*Device)
	extend = func(chosen []*Device) {
		if len(chosen) > 1 {
			out = append(out, slices.Clone(chosen))
		}
		for _, d := range devices {
			if !slices.Contains(chosen, d) {
				extend(append(slices.Clone(chosen), d))
			}
		}
	}
	extend(nil)
	return out
}

// island lists the tensor-parallel groups over nodes of an island: for every kind of GPU that several of them have, all of
// that kind.
func (f *field) island(g Group, members []int) []way {
	var devices []*Device
	owner := map[*Device]int{}
	for _, i := range members {
		for _, d := range f.nodes[i].computing(f.model) {
			if d.Kind == KindGPU {
				devices = append(devices, d)
				owner[d] = i
			}
		}
	}
	var out []way
	for _, k := range kindsOf(devices) {
		if e := f.islandGroup(g, k, owner); e != nil && (f.only == "" || e.class == f.only) {
			out = append(out, way{engines: []*engine{e}})
		}
	}
	return out
}

func (f *field) islandGroup(g Group, k kindred, owner map[*Device]int) *engine {
	given := map[int]int{}
	var nodes []int
	var names []string
	for _, d := range k.devices {
		i := owner[d]
		if given[i] == 0 {
			nodes = append(nodes, i)
		}
		given[i]++
		names = append(names, f.nodes[i].Label()+"/"+d.ID)
	}
	d, rate := k.devices[0], g.BytesPerSecond
	if len(k.devices) > len(nodes) {
		rate = min(rate, d.Peer)
	}
	if len(nodes) < 2 || !f.divides(len(k.devices)) || !(rate > 0) {
		return nil
	}
	c := f.problem.Constraints
	e := newEngine(f.model, d, len(k.devices), fabric{rate, g.Latency}, least(k.devices, c), c)
	e.node, e.nodes, e.devices = nodes[0], nodes, names
	for _, i := range nodes {
		own := slices.DeleteFunc(f.shared(i, d, given[i]), func(s source) bool { return s.kind == TierRemote })
		e.others = append(e.others, sortSources(own))
	}
	e.sources, e.others = e.others[0], e.others[1:]
	return e
}
