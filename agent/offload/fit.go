// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/tensor"
)

// Fit says what is done with blocks that do not fit where they should rest.
type Fit int

// Fallback moves them to the next slower tier, Strict refuses them.
const (
	Fallback Fit = iota
	Strict
)

// ParseFit reads "fallback", "strict" or "", which is fallback.
func ParseFit(s string) (Fit, error) {
	switch s {
	case "", "fallback":
		return Fallback, nil
	case "strict":
		return Strict, nil
	}
	return 0, fmt.Errorf("fit %q: want fallback or strict", s)
}

// Rest is where one block rests.
type Rest struct {
	Kind  Kind
	Donor engine.DeviceID // of a Donor
	Node  string          // of a Remote
}

func (r Rest) String() string {
	switch {
	case r.Kind == Donor:
		return string(r.Donor)
	case r.Kind == Remote:
		return "node " + r.Node
	}
	return r.Kind.String()
}

// Need is what blocks take of each memory: all that a stage will ever allocate.
type Need struct {
	Device, Host tensor.Bytes
	Donors       map[engine.DeviceID]tensor.Bytes
}

// Room is what there is of each memory. A memory that is not limited has room
// below 0.
type Room Need

// within says whether a memory suffices.
func within(need, room tensor.Bytes) bool { return room < 0 || need <= room }

// Move is a block that rests elsewhere than it was planned.
type Move struct {
	Block    int
	From, To Rest
}

// Settle finds where blocks can rest. movable says which may be moved, need what
// all take when they rest so; host says whether the device has memory of its
// own, so that RAM is another place. Blocks that leave the device alone are
// spread evenly over the others, so that their copies have compute to hide
// behind all along. With Strict, and when even the slowest tiers do not help,
// the error has the numbers.
func Settle(rests []Rest, movable []bool, room Room, fit Fit, host bool, need func([]Rest) Need) ([]Rest, []Move, error) {
	short, _, _ := shortage(need(rests), room)
	if short == "device" && fit == Fallback && host {
		if settled, moved, ok := spread(rests, movable, room, need); ok {
			return settled, moves(rests, settled, moved), nil
		}
	}
	settled := slices.Clone(rests)
	moved := map[int]Rest{}
	for {
		n := need(settled)
		short, of, holds := shortage(n, room)
		if short == "" {
			return settled, moves(rests, settled, moved), nil
		}
		i := -1
		if fit == Fallback {
			i = last(settled, movable, holds)
		}
		if i < 0 {
			return nil, nil, fmt.Errorf("%w: %s%s", engine.ErrNoMemory, of, advice(fit, short))
		}
		if _, known := moved[i]; !known {
			moved[i] = settled[i]
		}
		settled[i] = slower(settled[i], host)
	}
}

// spread moves as few blocks as suffice from the device to RAM, evenly spaced;
// ok is false when no number of them makes everything fit.
func spread(rests []Rest, movable []bool, room Room, need func([]Rest) Need) (settled []Rest, moved map[int]Rest, ok bool) {
	var can []int
	for i, r := range rests {
		if movable[i] && r.Kind == Device {
			can = append(can, i)
		}
	}
	for k := 1; k <= len(can); k++ {
		settled, moved = slices.Clone(rests), map[int]Rest{}
		for n, i := range can {
			if (n+1)*k/len(can) > n*k/len(can) {
				moved[i], settled[i] = rests[i], Rest{Kind: RAM}
			}
		}
		if short, _, _ := shortage(need(settled), room); short == "" {
			return settled, moved, true
		}
	}
	return nil, nil, false
}

// shortage is the first memory that does not suffice, with the numbers, and
// which blocks rest in it.
func shortage(n Need, room Room) (name, numbers string, holds func(Rest) bool) {
	if !within(n.Device, room.Device) {
		return "device", fmt.Sprintf("the stage takes %v of the device, %v are free", n.Device, room.Device),
			func(r Rest) bool { return r.Kind == Device }
	}
	for _, d := range slices.Sorted(maps.Keys(n.Donors)) {
		if free, known := room.Donors[d]; known && !within(n.Donors[d], free) {
			return string(d), fmt.Sprintf("the stage keeps %v on %s, %v are free", n.Donors[d], d, free),
				func(r Rest) bool { return r.Kind == Donor && r.Donor == d }
		}
	}
	if !within(n.Host, room.Host) {
		return "host", fmt.Sprintf("the stage takes %v of the node's RAM, %v are free", n.Host, room.Host),
			func(r Rest) bool { return r.Kind == RAM }
	}
	return "", "", nil
}

func advice(fit Fit, memory string) string {
	if fit == Strict {
		return " (fit: strict); place fewer blocks there or allow fit: fallback"
	}
	if memory == "host" {
		return ", with no block left that could rest on disk; raise agent.memory or place fewer blocks on this node"
	}
	return ", with no block left that could rest in a slower tier; place fewer blocks on this node or lower the workload"
}

// last is the last movable block that rests there; -1 for none.
func last(rests []Rest, movable []bool, there func(Rest) bool) int {
	for i, r := range slices.Backward(rests) {
		if movable[i] && there(r) {
			return i
		}
	}
	return -1
}

// slower is the next tier of this node; another node's RAM is the plan's to give.
func slower(r Rest, host bool) Rest {
	if host && r.Kind < RAM {
		return Rest{Kind: RAM}
	}
	return Rest{Kind: Disk}
}

func moves(was, is []Rest, moved map[int]Rest) []Move {
	var out []Move
	for _, i := range slices.Sorted(maps.Keys(moved)) {
		out = append(out, Move{i, was[i], is[i]})
	}
	return out
}

// Describe lists moves in ranges: "blocks 3-5 from device to ram".
func Describe(moves []Move) string {
	var out []string
	for i := 0; i < len(moves); {
		j := i + 1
		for j < len(moves) && moves[j].Block == moves[j-1].Block+1 && moves[j].From == moves[i].From && moves[j].To == moves[i].To {
			j++
		}
		name := fmt.Sprintf("block %d", moves[i].Block)
		if j > i+1 {
			name = fmt.Sprintf("blocks %d-%d", moves[i].Block, moves[j-1].Block)
		}
		out = append(out, fmt.Sprintf("%s from %v to %v", name, moves[i].From, moves[i].To))
		i = j
	}
	return strings.Join(out, ", ")
}
