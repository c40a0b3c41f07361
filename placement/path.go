// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import "slices"

// This file turns "cheapest order of the used nodes" into a small automaton.
//
// Lay the pipeline by adding nodes in ascending link cost a. At any moment the nodes laid so far form pieces of the
// final pipeline. A new node decides, for its left and its right neighbour, whether that neighbour is already laid
// (then the link between them costs the new node's a, the larger one) or comes later (then the end stays open and the
// later node pays). So a node pays a times the number of pieces it is joined to: 0, 1 or 2. An end carries what may be
// joined to it: an open end in region 1 or 2 (that run's blocks), or nothing because it is the pipeline's own end.
//
// Two pieces that could be joined to each other and both wait need never wait: if B waits for z on one side and w on
// the other, moving B to the piece C with which it fits changes the cost by link(B,C) + max(w,z) - w - z, which is not
// positive since every later node costs at least as much as any link inside or between B and C. So a set never holds
// two pieces of one shape, nor a mergeable pair (such a B is open on both sides within one region). What is left are 17
// sets for two runs and 5 for one, the empty one included.

// end is one side of a piece.
type end uint8

const (
	closed end = iota // the pipeline starts or finishes here
	one               // open, between blocks of run 1
	two               // open, between blocks of run 2
)

// piece is a shape of laid pipeline by its two ends.
type piece struct{ left, right end }

func pieces() []piece {
	return []piece{{closed, one}, {one, one}, {two, two}, {two, closed}, {one, two}, {closed, two}, {one, closed}}
}

// set is a bit per entry of pieces; whole marks the finished pipeline.
type set uint8

const whole set = 1 << 7

// mergeable reports whether a is open on both sides within one region and fits an open end of b.
func mergeable(a, b piece) bool {
	return a.left == a.right && a.left != closed && (b.left == a.left || b.right == a.left)
}

// kind says which runs a node holds blocks of.
type kind uint8

const (
	inOne kind = iota
	inTwo
	inBoth
	kinds
)

// role says which of the pipeline's ends a node is: a bit each for the first and the last stage.
type role uint8

const (
	first role = 1
	last  role = 2
	roles      = 4
)

const none = -1

// step is one way of adding a node to a set.
type step struct {
	from, to    int // indices of sets
	kind        kind
	role        role
	links       int // neighbours already laid
	left, right int // index of the piece joined on each side, or none
}

// automaton holds the sets reachable from the empty one; set 0 is empty, set 1 is the finished pipeline.
type automaton struct {
	sets  []set
	steps [kinds][]step
	out   [][]step // by the set they start from
	lacks []lack   // by set
}

// lack is what a set has and what it still needs to be a whole pipeline.
type lack struct {
	pieces      int
	first, last bool // no piece has this end of the pipeline yet
}

// newAutomaton builds the automaton for one run (all blocks in region 2) or two.
func newAutomaton(twoRuns bool) *automaton {
	a := &automaton{sets: []set{0, whole}}
	for at := 0; at < len(a.sets); at++ {
		if a.sets[at] == whole {
			continue
		}
		for k := range kinds {
			if !twoRuns && k != inTwo {
				continue
			}
			for r := range role(roles) {
				a.expand(at, k, r, twoRuns)
			}
		}
	}
	a.prune()
	a.out = make([][]step, len(a.sets))
	for _, steps := range a.steps {
		for _, s := range steps {
			a.out[s.from] = append(a.out[s.from], s)
		}
	}
	a.lacks = make([]lack, len(a.sets))
	for i, s := range a.sets {
		l := lack{first: true, last: true}
		for k, p := range pieces() {
			if s&(1<<k) != 0 {
				l.pieces++
				l.first = l.first && p.left != closed
				l.last = l.last && p.right != closed
			}
		}
		a.lacks[i] = l
	}
	return a
}

// prune drops the steps into sets from which the pipeline cannot be finished.
func (a *automaton) prune() {
	live := make([]bool, len(a.sets))
	live[1] = true
	for range a.sets {
		for _, steps := range a.steps {
			for _, s := range steps {
				live[s.from] = live[s.from] || live[s.to]
			}
		}
	}
	index := make([]int, len(a.sets))
	var sets []set
	for i, s := range a.sets {
		index[i] = len(sets)
		if live[i] {
			sets = append(sets, s)
		}
	}
	for k, steps := range a.steps {
		kept := steps[:0]
		for _, s := range steps {
			if live[s.to] {
				s.from, s.to = index[s.from], index[s.to]
				kept = append(kept, s)
			}
		}
		a.steps[k] = kept
	}
	a.sets = sets
}

func (a *automaton) expand(at int, k kind, r role, twoRuns bool) {
	shapes := pieces()
	from := a.sets[at]
	spans := false
	headed, tailed := false, false
	for i, p := range shapes {
		if from&(1<<i) == 0 {
			continue
		}
		spans = spans || (twoRuns && p.left != two && p.right != one)
		headed = headed || p.left == closed
		tailed = tailed || p.right == closed
	}
	if (k == inBoth && spans) ||
		(r&first != 0 && (headed || (k == inTwo && twoRuns))) || (r&last != 0 && (tailed || k == inOne)) {
		return
	}
	ownLeft, ownRight := one, two
	if k == inTwo {
		ownLeft = two
	}
	if k == inOne {
		ownRight = one
	}
	lefts, rights := []int{none}, []int{none}
	for i, p := range shapes {
		if from&(1<<i) == 0 {
			continue
		}
		if r&first == 0 && joins(p.right, ownLeft, spans, k == inTwo) {
			lefts = append(lefts, i)
		}
		if r&last == 0 && joins(ownRight, p.left, spans, k == inOne) {
			rights = append(rights, i)
		}
	}
	if r&first != 0 {
		ownLeft = closed
	}
	if r&last != 0 {
		ownRight = closed
	}
	for _, l := range lefts {
		for _, q := range rights {
			if l != none && l == q {
				continue
			}
			a.add(at, k, r, l, q, piece{ownLeft, ownRight})
		}
	}
}

// joins reports whether a right end fits a left end, directly or as the one place where run 1 meets run 2.
func joins(right, left end, spans, meets bool) bool {
	if right == closed || left == closed {
		return false
	}
	return right == left || (right == one && left == two && meets && !spans)
}

func (a *automaton) add(at int, k kind, r role, l, q int, made piece) {
	shapes := pieces()
	to := a.sets[at]
	links := 0
	if l != none {
		to &^= 1 << l
		made.left = shapes[l].left
		links++
	}
	if q != none {
		to &^= 1 << q
		made.right = shapes[q].right
		links++
	}
	if made == (piece{closed, closed}) {
		if to != 0 {
			return
		}
		to = whole
	} else {
		i := slices.Index(shapes, made)
		if i < 0 || to&(1<<i) != 0 {
			return
		}
		for j, p := range shapes {
			if to&(1<<j) != 0 && (mergeable(made, p) || mergeable(p, made)) {
				return
			}
		}
		to |= 1 << i
	}
	target := slices.Index(a.sets, to)
	if target < 0 {
		target = len(a.sets)
		a.sets = append(a.sets, to)
	}
	for i, s := range a.steps[k] {
		if s.from == at && s.to == target && s.role == r {
			if links < s.links {
				a.steps[k][i].links, a.steps[k][i].left, a.steps[k][i].right = links, l, q
			}
			return
		}
	}
	a.steps[k] = append(a.steps[k], step{from: at, to: target, kind: k, role: r, links: links, left: l, right: q})
}
