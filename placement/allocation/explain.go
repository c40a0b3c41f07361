// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package allocation

import (
	"fmt"
	"strings"
)

// explain says why a device got its blocks, and warns where that may surprise.
func (a *assigner) explain(x ask, i, from, to int) {
	u := &a.Devices[x.device]
	// What a block more would have needed tells why it was left.
	next := func() Bytes {
		if to < a.count() {
			return a.bytes(to, to+1)
		}
		return 0
	}
	switch {
	case x.rest && u.Asked == "":
		u.Why = "takes the rest"
		if len(a.Entries) > 0 && u.Blocks > 0 {
			u.Why = "takes what the amounts leave, as distorch2's cpu does"
			a.warn("%s is not named and takes the rest: %s", u.ID, count(u.Blocks))
		}
	case x.rest && u.Asked == "donor":
		u.Why = "donor: what the compute device does not keep, up to its free memory"
	case x.rest:
		u.Why = "*: what the others leave"
		if a.restBehind(i) {
			u.Why = "*: as much as is free; a later * takes the rest"
		}
	case len(a.Entries) == 0 && a.Virtual != nil:
		u.Why = fmt.Sprintf("computes; keeps all but %s: whole blocks up to %s", a.Virtual.Bytes, u.Limit)
	case len(a.Entries) > 0 && a.Normalised():
		u.Why = fmt.Sprintf("%s of the shares, %s: whole blocks as far as all shares so far reach", u.Asked, u.Limit)
	default:
		u.Why = fmt.Sprintf("whole blocks up to %s", u.Limit)
		if from > 0 && to == a.count() && a.restBefore(i) {
			u.Why += ", from the tail as it is named behind *"
		}
	}
	switch {
	case u.Blocks > 0:
	case x.rest || u.Limit > 0 && from == a.count():
		u.Why += "; nothing is left for it"
		if u.Asked != "" && u.Asked != "donor" {
			a.warn("%s gets nothing: the devices before it take all blocks", u.ID)
		}
	case u.Limit > 0 && next() > u.Limit:
		u.Why += fmt.Sprintf("; the next block has %s", next())
		a.warn("%s gets nothing: it is asked for %s, and the next block has %s", u.ID, u.Limit, next())
	}
}

func (a *assigner) restBehind(i int) bool {
	for _, x := range a.asks[i+1:] {
		if x.rest {
			return true
		}
	}
	return false
}

func (a *assigner) restBefore(i int) bool {
	for _, x := range a.asks[:i] {
		if x.rest {
			return true
		}
	}
	return false
}

func count(blocks int) string {
	if blocks == 1 {
		return "1 block"
	}
	return fmt.Sprintf("%d blocks", blocks)
}

// span shows the blocks of a segment.
func (s Segment) span() string {
	if s.Blocks == 1 {
		return fmt.Sprint(s.First)
	}
	return fmt.Sprintf("%d-%d", s.First, s.First+s.Blocks-1)
}

// words names the blocks of a segment.
func (s Segment) words() string {
	if s.Blocks == 1 {
		return "block " + s.span()
	}
	return "blocks " + s.span()
}

// Show lists segments from head to tail: "0-4 cuda:0, 5-39 cpu".
func Show(segments []Segment) string {
	const most = 12
	var parts []string
	for i, s := range segments {
		if i == most {
			parts = append(parts, fmt.Sprintf("… %d more", len(segments)-most))
			break
		}
		parts = append(parts, s.span()+" "+string(s.Device))
	}
	return strings.Join(parts, ", ")
}

// compare warns where distorch2 would do something else with the same string.
func (r *Result) compare(e *Expr, devices []Device, blocks Blocks) {
	for _, d := range devices {
		if d.ID.Node() != "" {
			return // it knows one machine
		}
	}
	if e.Virtual != nil && e.Virtual.named && len(e.Entries) == 0 {
		r.warn("distorch2 does not know %s=; its form is #COMPUTE;GB;DONOR", virtualWord)
		return
	}
	other, p := read(e.Text, Distorch2)
	if p != nil {
		r.warn("with this string %s", p.found)
		return
	}
	theirs, err := assign(other, devices, blocks)
	if err != nil || Show(theirs.Assignment) == Show(r.Assignment) {
		return
	}
	last := theirs.Assignment[len(theirs.Assignment)-1]
	r.warn("distorch2 would give the last %s (%s) to %s, as it fills from the tail; from head to tail: %s",
		last.Bytes, last.words(), last.Device, Show(theirs.Assignment))
	if u, over := theirs.Over(); over {
		r.warn("distorch2 would put %s on %s, which has %s free", u.Given, u.ID, u.Free)
	}
}
