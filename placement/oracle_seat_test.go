// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement_test

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"

	. "github.com/distorch/distorch/placement"
)

// way is one manner in which a node or an island may run its part: the seats of its stages in order.
type way struct {
	seats []*seat
	hops  []hopInside // between them
	class string
}

type hopInside struct{ rate, latency float64 }

// room is a device's available memory.
func (o *oracle) room(d Device) int64 {
	return int64(d.Allocatable - max(d.Reserve, o.p.Constraints.Reserve))
}

// alike reports whether two devices are equal in every figure but their memory.
func alike(a, b Device) bool {
	a.ID, a.Allocatable, a.Reserve = b.ID, b.Allocatable, b.Reserve
	return reflect.DeepEqual(a, b)
}

func (o *oracle) computes(d Device) bool {
	return slices.ContainsFunc(d.Rates, func(r Rate) bool { return r.DType == o.p.Model.ComputeDType })
}

// classOf is a device's class, alone or as one of a group; the instances give one to each device.
func classOf(d Device, degree int) string {
	if degree > 1 {
		return fmt.Sprintf("%s/tp%d", d.Class, degree)
	}
	return d.Class
}

// hostShelves are RAM and disk as one of g devices of a node counts them.
func hostShelves(n Node, d Device, g int) []shelf {
	var out []shelf
	if d.Kind == KindCPU {
		return append(out, shelf{TierDisk, "disk", math.MaxInt64, n.Disk / float64(g)})
	}
	ram := d.HostToDevice
	if n.HostBus > 0 {
		ram = math.Min(ram, n.HostBus/float64(g))
	}
	return append(out, shelf{TierRAM, "ram", int64(n.RAM) / int64(g), ram},
		shelf{TierDisk, "disk", math.MaxInt64, math.Min(n.Disk/float64(g), d.HostToDevice)})
}

// ordered drops what has no rate or no room and puts the fastest first, keeping the order of equals.
func ordered(shelves []shelf) []shelf {
	shelves = slices.DeleteFunc(shelves, func(h shelf) bool { return !(h.rate > 0) || h.room <= 0 })
	slices.SortStableFunc(shelves, func(a, b shelf) int {
		switch {
		case a.rate > b.rate:
			return -1
		case a.rate < b.rate:
			return 1
		}
		return 0
	})
	return shelves
}

// alone is the seat of a device that shares its node with nobody.
func (o *oracle) alone(node int, d Device) *seat {
	n := o.p.Nodes[node]
	var shelves []shelf
	if d.Kind != KindCPU {
		donors := slices.Clone(n.Devices)
		slices.SortFunc(donors, func(a, b Device) int { return strings.Compare(a.ID, b.ID) })
		for _, other := range donors {
			if other.Kind == KindGPU && other.ID != d.ID {
				shelves = append(shelves, shelf{TierDonor, other.ID, o.room(other), math.Min(d.Peer, other.Peer)})
			}
		}
	}
	shelves = append(shelves, hostShelves(n, d, 1)...)
	return &seat{node: node, devices: []string{d.ID}, figures: d, free: o.room(d), degree: 1, shelves: [][]shelf{ordered(shelves)}}
}

// among is the seat of one of g devices of a node that hold stages of their own; free is what it counts of memory.
func (o *oracle) among(node int, d Device, g int, free int64) *seat {
	return &seat{
		node: node, devices: []string{d.ID}, figures: d, free: free, degree: 1,
		shelves: [][]shelf{ordered(hostShelves(o.p.Nodes[node], d, g))},
	}
}

// kinds sorts devices into sets that are equal in all but memory, each with the most memory first.
func (o *oracle) kinds(devices []Device) [][]Device {
	var out [][]Device
next:
	for _, d := range devices {
		for i := range out {
			if alike(out[i][0], d) {
				out[i] = append(out[i], d)
				continue next
			}
		}
		out = append(out, []Device{d})
	}
	for _, set := range out {
		slices.SortStableFunc(set, func(a, b Device) int { return int(o.room(b) - o.room(a)) })
	}
	return out
}

// degrees are the sizes of groups out of n equal devices, whatever the model allows.
func degrees(n int) []int {
	var out []int
	for g := 2; g < n; g *= 2 {
		out = append(out, g)
	}
	if n > 1 {
		out = append(out, n)
	}
	return out
}

func (o *oracle) splits(g int) bool {
	heads, limit := o.p.Model.Heads, o.p.Constraints.MaxDegree
	return g > 1 && heads > 0 && heads%g == 0 && (limit == 0 || g <= limit)
}

func names(devices []Device) []string {
	ids := make([]string, len(devices))
	for i, d := range devices {
		ids[i] = d.ID
	}
	slices.Sort(ids)
	return ids
}

// nodeWays lists all ways of one node.
func (o *oracle) nodeWays(node int) []way {
	n := o.p.Nodes[node]
	var out []way
	add := func(class string, hops []hopInside, seats ...*seat) { out = append(out, way{seats, hops, class}) }
	var gpus []Device
	for _, d := range n.Devices {
		if d.Kind == KindGPU && o.computes(d) {
			gpus = append(gpus, d)
		}
	}
	if len(gpus) == 0 {
		i := slices.IndexFunc(n.Devices, func(d Device) bool { return d.Kind == KindCPU })
		if i >= 0 && o.computes(n.Devices[i]) {
			add(classOf(n.Devices[i], 1), nil, o.alone(node, n.Devices[i]))
		}
		return out
	}
	for _, d := range gpus {
		add(classOf(d, 1), nil, o.alone(node, d))
	}
	gpus = slices.DeleteFunc(gpus, func(d Device) bool { return d.Peer == 0 })
	for _, set := range o.kinds(gpus) {
		for _, g := range degrees(len(set)) {
			if o.splits(g) {
				d := set[g-1]
				add(classOf(d, g), nil, &seat{
					node: node, devices: names(set[:g]), figures: d, free: o.room(d), degree: g, rate: d.Peer, latency: n.PeerLatency,
					shelves: [][]shelf{ordered(hostShelves(n, d, g))},
				})
			}
		}
	}
	if len(gpus) <= 3 {
		o.smallChains(node, gpus, add)
	} else {
		o.largeChains(node, gpus, add)
	}
	return out
}

type addWay = func(class string, hops []hopInside, seats ...*seat)

// chain adds the pipeline over these devices; free says what each counts of memory.
func (o *oracle) chain(node int, devices []Device, free func(Device) int64, add addWay) {
	var hops []hopInside
	var seats []*seat
	class := classOf(devices[0], 1)
	for i, d := range devices {
		seats = append(seats, o.among(node, d, len(devices), free(d)))
		if i > 0 {
			hops = append(hops, hopInside{math.Min(devices[i-1].Peer, d.Peer), o.p.Nodes[node].PeerLatency})
		}
		if classOf(d, 1) != class {
			class = mixedClasses
		}
	}
	add(class, hops, seats...)
}

const mixedClasses = "\x00mixed"

// smallChains are all ordered choices of two or three of at most three.
func (o *oracle) smallChains(node int, gpus []Device, add addWay) {
	var pick func(chosen []Device)
	pick = func(chosen []Device) {
		if len(chosen) >= 2 {
			o.chain(node, chosen, o.room, add)
		}
		for _, d := range gpus {
			if !slices.ContainsFunc(chosen, func(c Device) bool { return c.ID == d.ID }) {
				pick(append(slices.Clone(chosen), d))
			}
		}
	}
	pick(nil)
}

// largeChains are some of one kind, or one kind and then another.
func (o *oracle) largeChains(node int, gpus []Device, add addWay) {
	kinds := o.kinds(gpus)
	least := func(d Device) int64 {
		for _, set := range kinds {
			if alike(set[0], d) {
				return o.room(set[len(set)-1])
			}
		}
		panic("device of no kind")
	}
	for i, set := range kinds {
		for _, g := range degrees(len(set)) {
			o.chain(node, set[:g], least, add)
		}
		for j, other := range kinds {
			if i != j {
				o.chain(node, slices.Concat(set, other), least, add)
			}
		}
	}
}

// islandWays are the groups of all equal devices of an island's nodes.
func (o *oracle) islandWays(nodes []int, g Group) []way {
	type owned struct {
		Device
		node int
	}
	var sets [][]owned
	for _, i := range nodes {
	next:
		for _, d := range o.p.Nodes[i].Devices {
			if d.Kind != KindGPU || !o.computes(d) {
				continue
			}
			for k := range sets {
				if alike(sets[k][0].Device, d) {
					sets[k] = append(sets[k], owned{d, i})
					continue next
				}
			}
			sets = append(sets, []owned{{d, i}})
		}
	}
	var out []way
	for _, set := range sets {
		given := map[int]int{}
		for _, d := range set {
			given[d.node]++
		}
		if len(given) < 2 || !o.splits(len(set)) {
			continue
		}
		s := &seat{node: nodes[0], figures: set[0].Device, free: math.MaxInt64, degree: len(set), rate: g.BytesPerSecond, latency: g.Latency}
		alone := true
		for _, d := range set {
			s.free = min(s.free, o.room(d.Device))
			s.devices = append(s.devices, o.p.Nodes[d.node].Label()+"/"+d.ID)
			if given[d.node] > 1 {
				alone = false
			}
		}
		slices.Sort(s.devices)
		if !alone {
			s.rate = math.Min(s.rate, set[0].Peer)
		}
		if s.rate == 0 {
			continue
		}
		for _, i := range nodes {
			if given[i] > 0 {
				s.shelves = append(s.shelves, ordered(hostShelves(o.p.Nodes[i], set[0].Device, given[i])))
			}
		}
		out = append(out, way{seats: []*seat{s}, class: classOf(set[0].Device, len(set))})
	}
	return out
}
