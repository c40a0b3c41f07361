// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package allocation

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Result says which blocks lie where, and why.
type Result struct {
	Mode       Mode
	Compute    DeviceID // where everything is computed
	Blocks     int
	Bytes      Bytes     // of the blocks
	Assignment []Segment // from head to tail; neighbours are on different devices
	Devices    []Usage   // in the order in which the devices were given
	Warnings   []string
}

// Segment is a range of neighbouring blocks on one device.
type Segment struct {
	Device DeviceID
	First  int
	Blocks int
	Bytes  Bytes
}

// Usage is what one device was asked for and what it holds.
type Usage struct {
	Device
	Named  bool   // the string names it, or it stands in for a device that it does not name
	Asked  string // as written, with its spaces taken off; empty if the string does not name the device
	Limit  Bytes  // what that comes to; the whole free memory for "*"
	Given  Bytes
	Blocks int
	Fixed  Bytes // what it holds beside the blocks
	Why    string
}

// Over is by how much the device's free memory is exceeded, 0 if it is not. The default mode never exceeds it; distorch2
// does not look at it.
func (u Usage) Over() Bytes { return max(0, u.Given+u.Fixed-u.Free) }

// Layout is what a planner needs of a result.
type Layout struct {
	Compute DeviceID
	Spans   []Segment // from head to tail, every block once
	// Contiguous is false if a device has several spans, which distorch2's first fit may lead to.
	Contiguous bool
}

// Layout turns the result into contiguous spans per device and the compute device, to which the blocks of the other devices
// move when they are computed.
func (r *Result) Layout() Layout {
	seen, contiguous := map[DeviceID]bool{}, true
	for _, s := range r.Assignment {
		contiguous = contiguous && !seen[s.Device]
		seen[s.Device] = true
	}
	return Layout{r.Compute, slices.Clone(r.Assignment), contiguous}
}

// Over names the first device whose free memory is exceeded.
func (r *Result) Over() (Usage, bool) {
	for _, u := range r.Devices {
		if u.Over() > 0 {
			return u, true
		}
	}
	return Usage{}, false
}

func (r *Result) warn(format string, args ...any) {
	r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...))
}

// Assign applies a string to devices and blocks, in the mode that it was read in.
//
// Errors: [ErrInput] about devices or blocks; *[SyntaxError] about a device that is not there; in the default mode *[FitError]
// if blocks fit nowhere or a device would hold more than it has free.
func Assign(e *Expr, devices []Device, blocks Blocks) (*Result, error) {
	r, err := assign(e, devices, blocks)
	if short, ok := errors.AsType[*FitError](err); ok {
		short.sum(devices, blocks)
		short.Nearest = nearestFit(e, devices, blocks)
	}
	if err != nil {
		return nil, err
	}
	if e.Mode == Default {
		r.compare(e, devices, blocks)
	}
	return r, nil
}

func assign(e *Expr, devices []Device, blocks Blocks) (*Result, error) {
	t, err := blocks.table()
	if err == nil {
		err = checkDevices(devices)
	}
	if err != nil {
		return nil, err
	}
	r := &Result{Mode: e.Mode, Blocks: t.count(), Bytes: t.total(), Warnings: slices.Clone(e.notes)}
	for _, d := range devices {
		r.Devices = append(r.Devices, Usage{Device: d})
	}
	if e.Mode == Distorch2 {
		return r, e.compat.assign(e, r, t, blocks.Fixed)
	}
	a := &assigner{Expr: e, Result: r, table: t}
	return r, a.run(blocks.Fixed)
}

// ask is what the string wants of one device.
type ask struct {
	device int
	limit  Bytes
	rest   bool
	words  []string // as written
}

// assigner is one run of the default mode.
type assigner struct {
	*Expr
	*Result
	table
	asks    []ask
	compute int
}

func (a *assigner) run(fixed Bytes) error {
	if err := a.findCompute(); err != nil {
		return err
	}
	a.Result.Compute = a.Devices[a.compute].ID
	a.Devices[a.compute].Fixed = fixed
	var err error
	switch {
	case len(a.Entries) > 0:
		err = a.askEntries()
	case a.Virtual != nil:
		err = a.askVirtual()
	default:
		a.want(a.compute, a.total(), true, "")
	}
	if err != nil {
		return err
	}
	var ends []int
	if len(a.Entries) > 0 && a.Normalised() {
		ends = a.cutShares()
	} else {
		ends = a.fill()
	}
	return a.settle(ends)
}

func (a *assigner) findCompute() error {
	if a.Expr.Compute != nil {
		i, err := a.find(*a.Expr.Compute)
		a.compute = i
		return err
	}
	a.compute = max(0, slices.IndexFunc(a.Devices, func(u Usage) bool { return u.ID.Accelerator() }))
	return nil
}

// find is the index of a device. A name without a node may stand for a device of a node if only one node has it, or the
// compute device's does.
func (a *assigner) find(d DeviceRef) (int, error) {
	var found []int
	for i, u := range a.Devices {
		if u.ID == d.ID {
			return i, nil
		}
		if d.ID.Node() == "" && DeviceID(u.ID.Local()) == d.ID {
			found = append(found, i)
		}
	}
	for _, i := range found {
		if len(found) == 1 || a.Result.Compute != "" && a.Devices[i].ID.Node() == a.Result.Compute.Node() {
			return i, nil
		}
	}
	return 0, missing(a.Expr, d, a.Devices, found)
}

// missing is the error of a device that is not there, or that several nodes have.
func missing(e *Expr, d DeviceRef, devices []Usage, several []int) error {
	p := &problem{at: d.Span, found: fmt.Sprintf("there is no device %s", d.ID)}
	if len(several) > 1 {
		p.found = fmt.Sprintf("%d nodes have a %s", len(several), d.ID)
	}
	var names []string
	for i, u := range devices {
		if len(several) == 0 || slices.Contains(several, i) {
			names = append(names, string(u.ID))
		}
	}
	p.mended = nearestWord(string(d.ID), names)
	const most = 8
	if len(names) > most {
		names = append(names[:most], fmt.Sprintf("%d more", len(names)-most))
	}
	p.expected = "one of " + strings.Join(names, ", ")
	return fault(e.Text, e.Mode, p)
}

func (a *assigner) usable(device int) Bytes {
	return max(0, a.Devices[device].Free-a.Devices[device].Fixed)
}

// want adds to what a device is asked for; its place is where it was named first.
func (a *assigner) want(device int, limit Bytes, rest bool, word string) {
	i := slices.IndexFunc(a.asks, func(x ask) bool { return x.device == device })
	if i < 0 {
		a.asks = append(a.asks, ask{device: device})
		i = len(a.asks) - 1
	}
	x := &a.asks[i]
	x.limit = min(x.limit+limit, maxBytes)
	x.rest = x.rest || rest
	x.words = append(x.words, word)
}

func (a *assigner) askEntries() error {
	amounts, rest := false, false
	for _, x := range a.Entries {
		i, err := a.find(x.Device)
		if err != nil {
			return err
		}
		limit := Bytes(0)
		switch v := x.Value; {
		case v.Kind == Amount:
			limit, amounts = v.Bytes, true
		case v.Kind == Rest:
			rest = true
		case v.Kind == Share || a.shares:
			limit = part(a.total(), v.Number/100)
		default:
			limit = part(a.usable(i), v.Number)
		}
		a.want(i, limit, x.Value.Kind == Rest, a.Text[x.Value.Span.Start:x.Value.Span.End])
	}
	for _, x := range a.asks {
		if name := a.Devices[x.device].ID; len(x.words) > 1 && x.rest {
			a.warn("%s is named %d times; its * decides", name, len(x.words))
		} else if len(x.words) > 1 {
			a.warn("%s is named %d times; the amounts are added", name, len(x.words))
		}
	}
	if amounts && !rest {
		a.wantCPU()
	}
	return nil
}

// wantCPU gives the cpu what amounts leave, if the string does not name it.
func (a *assigner) wantCPU() {
	asked := Bytes(0)
	for _, x := range a.asks {
		asked += x.limit
	}
	i, err := a.find(DeviceRef{ID: a.Result.Compute.on("cpu")})
	if err != nil || slices.ContainsFunc(a.asks, func(x ask) bool { return x.device == i }) {
		return
	}
	a.want(i, 0, true, "")
}

// part is a fraction of an amount, to the nearest byte: 0.1 of 10 blocks is one, whatever binary fractions make of it.
func part(b Bytes, fraction float64) Bytes {
	return Bytes(math.Round(min(float64(b)*fraction, maxBytes)))
}

func (a *assigner) askVirtual() error {
	v := a.Virtual
	a.want(a.compute, max(0, a.total()-v.Bytes), false, a.Text[v.Span.Start:v.Span.End])
	if v.Bytes == 0 {
		return nil
	}
	for _, d := range v.Donors {
		i, err := a.find(d)
		if err != nil {
			return err
		}
		if i == a.compute {
			a.warn("%s computes and cannot be its own donor", a.Devices[i].ID)
			continue
		}
		a.want(i, 0, true, "donor")
	}
	if len(a.asks) == 1 {
		cpu := DeviceRef{Span{v.Span.End, v.Span.End}, a.Result.Compute.on("cpu")}
		i, err := a.find(cpu)
		if err != nil || i == a.compute {
			return fault(a.Text, Default, &problem{cpu.Span, "no donor", "a donor other than the compute device", "", false})
		}
		a.want(i, 0, true, "donor")
	}
	return nil
}

// fill gives each ask its range and returns where the ranges end. The last "*" takes what the others leave; what is named
// behind it takes the last blocks.
func (a *assigner) fill() []int {
	ends := make([]int, len(a.asks))
	last := -1
	for i, x := range a.asks {
		if x.rest {
			last = i
		}
	}
	at := 0
	for i, x := range a.asks {
		if last >= 0 && i >= last {
			break
		}
		limit := x.limit
		if x.rest {
			limit = a.usable(x.device)
		}
		at = a.upTo(at, a.count(), limit)
		ends[i] = at
	}
	if last >= 0 {
		end := a.count()
		for i := len(a.asks) - 1; i >= last; i-- {
			ends[i] = end
			if i > last {
				end = a.downTo(at, end, a.asks[i].limit)
			}
		}
	}
	return ends
}

// cutShares cuts the model at the sums of the shares: no cut lies behind what was asked for so far, and the last device with
// a share takes the rest.
func (a *assigner) cutShares() []int {
	whole := a.shareSum()
	if math.Abs(whole-100) > 1e-9 {
		a.warn("the percentages sum to %.6g and are taken by their sum", whole)
	}
	shares := make([]float64, len(a.asks))
	for _, x := range a.Entries {
		i, err := a.find(x.Device)
		if err != nil {
			continue // askEntries has found all
		}
		shares[slices.IndexFunc(a.asks, func(k ask) bool { return k.device == i })] += x.Value.Number
	}
	ends := make([]int, len(a.asks))
	sum, last := 0.0, 0
	for i := range a.asks {
		sum += shares[i]
		if shares[i] > 0 {
			last = i
		}
		a.asks[i].limit = part(a.total(), shares[i]/whole)
		ends[i] = a.upTo(0, a.count(), part(a.total(), sum/whole))
	}
	for i := last; i < len(ends); i++ {
		ends[i] = a.count()
	}
	return ends
}

// settle writes the ranges down and refuses what does not fit.
func (a *assigner) settle(ends []int) error {
	at, short := 0, error(nil)
	for i, x := range a.asks {
		u := &a.Devices[x.device]
		u.Named, u.Asked, u.Limit = true, strings.Join(x.words, " + "), x.limit
		if x.rest {
			u.Limit = a.usable(x.device)
		}
		from := at
		at = ends[i]
		u.Blocks, u.Given = at-from, a.bytes(from, at)
		a.explain(x, i, from, at)
		if u.Blocks > 0 {
			a.Assignment = append(a.Assignment, Segment{u.ID, from, u.Blocks, u.Given})
		}
		if over := u.Over(); over > 0 && short == nil {
			short = &FitError{Device: u.ID, Blocks: u.Blocks, Needed: u.Given + u.Fixed, Free: u.Free, Short: over}
		}
	}
	if at < a.count() && short == nil {
		short = &FitError{First: at, Blocks: a.count() - at, Needed: a.bytes(at, a.count()), Short: a.bytes(at, a.count())}
	}
	// Last, so that a compute device which holds no block is judged by what it holds anyway.
	if u := a.Devices[a.compute]; short == nil && u.Over() > 0 {
		short = &FitError{Device: u.ID, Needed: u.Fixed, Free: u.Free, Short: u.Over()}
	}
	return short
}
