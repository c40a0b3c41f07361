// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package allocation

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/distorch/distorch/internal/edits"
)

// FitError says what does not fit. Its Nearest string does, on the same devices.
type FitError struct {
	Device  DeviceID // that would hold too much; empty if blocks fit nowhere
	First   int      // of the blocks that fit nowhere
	Blocks  int      // on the device, or that fit nowhere
	Needed  Bytes
	Free    Bytes // on the device
	Short   Bytes
	Nearest string // empty if none was found
	All     Bytes  // free on all devices
	Model   Bytes  // all blocks and what else the compute device holds
}

func (e *FitError) Error() string {
	s := fmt.Sprintf("%s would hold %s (%s) and has %s free, %s short", e.Device, e.Needed, count(e.Blocks), e.Free, e.Short)
	switch {
	case e.Device == "":
		s = fmt.Sprintf("%s (%s, from block %d on) fit nowhere", count(e.Blocks), e.Needed, e.First)
	case e.Blocks == 0:
		s = fmt.Sprintf("%s computes, has to hold %s beside the blocks and has %s free, %s short", e.Device, e.Needed, e.Free, e.Short)
	}
	switch {
	case e.Nearest != "":
		return s + "; nearest string that fits: " + shown(e.Nearest)
	case e.Model > e.All:
		return fmt.Sprintf("%s; no string fits: the model has %s and the devices have %s free together, %s short", s, e.Model, e.All, e.Model-e.All)
	}
	return s + "; no string near it fits either: whole blocks leave too much of the devices empty"
}

// sum fills in what all devices have and the model needs.
func (e *FitError) sum(devices []Device, blocks Blocks) {
	for _, d := range devices {
		e.All += d.Free
	}
	for _, r := range blocks.Runs {
		e.Model += Bytes(r.Count) * r.Bytes
	}
	e.Model += blocks.Fixed
}

// change replaces a piece of a string.
type change struct {
	Span
	text string
}

// changed is a string after changes that do not overlap.
func changed(text string, changes ...change) string {
	changes = slices.Clone(changes)
	slices.SortStableFunc(changes, func(a, b change) int { return b.Start - a.Start })
	for _, c := range changes {
		text = text[:c.Start] + c.text + text[c.End:]
	}
	return text
}

// nearestFit is a string that fits: the first of single changes, then of pairs, then one of its own.
func nearestFit(e *Expr, devices []Device, blocks Blocks) string {
	fits := func(text string) bool {
		other, p := read(text, e.Mode)
		if p != nil {
			return false
		}
		_, err := assign(other, devices, blocks)
		return err == nil
	}
	changes := e.changes(devices, blocks)
	for _, c := range changes {
		if text := changed(e.Text, c); fits(text) {
			return text
		}
	}
	const most = 40 // pairs of more are not near
	for i, c := range changes[:min(len(changes), most)] {
		for _, d := range changes[:i] {
			if c.Start == d.Start && c.End > c.Start {
				continue
			}
			if text := changed(e.Text, d, c); fits(text) {
				return text
			}
		}
	}
	o := Options{}
	if e.Compute != nil {
		o.Compute = e.Compute.ID
	}
	if text, err := Generate(devices, blocks, o); err == nil {
		return text
	}
	for _, d := range devices {
		if text, err := Generate(devices, blocks, Options{Compute: d.ID}); err == nil {
			return text
		}
	}
	return ""
}

// changes are what may be altered about a string, the smallest first.
func (e *Expr) changes(devices []Device, blocks Blocks) []change {
	t, err := blocks.table()
	if err != nil {
		return nil
	}
	named := map[DeviceID]bool{}
	free := func(id DeviceID) (Bytes, bool) {
		for _, d := range devices {
			if d.ID == id {
				return d.Free, true
			}
		}
		return 0, false
	}
	var list []change
	end := 0
	for _, x := range e.Entries { // a device asked for more than it has
		named[x.Device.ID] = true
		end = max(end, x.Span.End)
		room, ok := free(x.Device.ID)
		asked := x.Value.Bytes
		if x.Value.Kind == Share {
			asked = part(t.total(), x.Value.Number/100)
		}
		if !ok || asked <= room-blocks.Fixed {
			continue
		}
		for _, room := range [...]Bytes{room, max(0, room-blocks.Fixed)} {
			kept := t.bytes(0, t.upTo(0, t.count(), room))
			list = append(list, change{x.Value.Span, amount(kept, kept)})
		}
	}
	for _, x := range slices.Backward(e.Entries) {
		if x.Value.Kind != Rest {
			list = append(list, change{x.Value.Span, "*"})
		}
	}
	if len(e.Entries) > 0 {
		for _, cpu := range [...]bool{false, true} {
			for _, d := range devices {
				if !named[d.ID] && d.ID.Accelerator() != cpu {
					list = append(list, change{Span{end, end}, ";" + string(d.ID) + ",*"})
				}
			}
		}
	} else {
		list = append(list, e.virtualChanges(devices, blocks, t)...)
	}
	const most = 64
	return list[:min(len(list), most)]
}

// virtualChanges raise virtual VRAM to what the compute device lacks, and name more donors.
func (e *Expr) virtualChanges(devices []Device, blocks Blocks, t table) (list []change) {
	compute := devices[max(0, slices.IndexFunc(devices, func(d Device) bool { return d.ID.Accelerator() }))]
	for _, d := range devices {
		if e.Compute != nil && d.ID == e.Compute.ID {
			compute = d
		}
	}
	lacks := max(0, t.total()-max(0, compute.Free-blocks.Fixed))
	if e.Virtual == nil {
		at := Span{e.Compute.Span.End, e.Compute.Span.End}
		return []change{{at, ";" + gigabytes(lacks) + ";" + string(compute.ID.on("cpu"))}}
	}
	if lacks > e.Virtual.Bytes {
		list = append(list, change{e.Virtual.Span, gigabytes(lacks)})
	}
	if len(e.Virtual.Donors) == 0 {
		return list
	}
	at := e.Virtual.Donors[len(e.Virtual.Donors)-1].Span
	for _, d := range devices {
		if d.ID != compute.ID {
			list = append(list, change{Span{at.End, at.End}, "," + string(d.ID)})
		}
	}
	return list
}

// gigabytes writes an amount in units of 2^30 bytes, rounded up to a tenth.
func gigabytes(b Bytes) string {
	tenths := (b*10 + gib - 1) / gib
	return fmt.Sprintf("%d.%d", tenths/10, tenths%10)
}

// amount writes an amount that lies between least and most bytes as briefly as it can be.
func amount(least, most Bytes) string {
	if least == 0 {
		return "0b"
	}
	for _, u := range [...]struct {
		name   string
		bytes  Bytes
		digits int
	}{{"gb", gib, 2}, {"mb", mib, 1}} {
		scale := 1.0
		for digits := range u.digits + 1 {
			n := float64((least*Bytes(scale)+u.bytes-1)/u.bytes) / scale
			text := strconv.FormatFloat(n, 'f', digits, 64) + u.name
			if v, p := readValue(text); p == nil && v.Kind == Amount && v.Bytes >= least && v.Bytes <= most {
				return text
			}
			scale *= 10
		}
	}
	return strconv.FormatInt(int64(least), 10) + "b"
}

// nearestWord is the candidate that is the fewest changes away.
func nearestWord(word string, candidates []string) string {
	best, fewest := "", 0
	for _, c := range candidates {
		if d := edits.Distance(word, c); best == "" || d < fewest {
			best, fewest = c, d
		}
	}
	return best
}
