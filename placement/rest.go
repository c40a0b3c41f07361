// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

// Resting is a range of a stage's blocks that rest elsewhere than on the device that computes.
type Resting struct {
	First, Blocks int // global block index
	Kind          TierKind
	Where         string // as in [Tier]
}

// Spread deals out where neighbouring blocks rest: resident on the device, and counts[i] in tier i. The result is each
// block's tier, -1 for the device. What streams lies as evenly among what is resident as whole blocks allow, so that the
// computing of one hides the copying of the other, and the tiers lie evenly among what streams: of the first j blocks,
// the share of each of the two has less than one block more or fewer than it should.
func Spread(resident int, counts []int) []int {
	streamed := 0
	for _, c := range counts {
		streamed += c
	}
	among := deal(append([]int{}, counts...))
	out := make([]int, 0, resident+streamed)
	for _, kind := range deal([]int{resident, streamed}) {
		if kind == 0 {
			out = append(out, -1)
			continue
		}
		out = append(out, among[0])
		among = among[1:]
	}
	return out
}

// deal gives each step to the count that is furthest behind its share, the first one on a tie.
func deal(counts []int) []int {
	n := 0
	for _, c := range counts {
		n += c
	}
	out := make([]int, n)
	given := make([]int, len(counts))
	for j := range out {
		best, most := -1, 0
		for i, c := range counts {
			if behind := c*(j+1) - given[i]*n; given[i] < c && (best < 0 || behind > most) {
				best, most = i, behind
			}
		}
		out[j] = best
		given[best]++
	}
	return out
}

// rest turns what a stage streams into ranges of whole blocks, the fastest tiers filled first, from block at on; false
// where whole blocks do not fit into tiers that hold as many bytes.
func (e *engine) rest(c stageCost, at, x, y int) ([]Resting, bool) {
	if e.hand != nil {
		return e.hand.rest, true
	}
	left := c.streamed
	counts := [2][]int{make([]int, len(e.sources)), make([]int, len(e.sources))}
	for i, s := range e.sources {
		room := max(s.capacity, s.room)
		for r := range left {
			n := left[r]
			if w := e.runs[r].weights; w > 0 {
				n = int(min(Bytes(n), room/w))
				room -= Bytes(n) * w
			}
			counts[r][i] = n
			left[r] -= n
		}
	}
	if left != [2]int{} {
		return nil, false
	}
	var out []Resting
	for r, blocks := range [2]int{x, y} {
		for j, i := range Spread(blocks-c.streamed[r], counts[r]) {
			if i >= 0 {
				out = joined(out, Resting{First: at + j, Blocks: 1, Kind: e.sources[i].kind, Where: e.sources[i].where})
			}
		}
		at += blocks
	}
	return out, true
}

// joined adds a range to those before it, as a part of the last one where it goes on there.
func joined(list []Resting, r Resting) []Resting {
	if n := len(list); n > 0 {
		if l := &list[n-1]; l.Kind == r.Kind && l.Where == r.Where && l.First+l.Blocks == r.First {
			l.Blocks += r.Blocks
			return list
		}
	}
	return append(list, r)
}
