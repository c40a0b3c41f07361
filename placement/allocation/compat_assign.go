// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package allocation

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
)

// quota is what a device may still take. Its key is the device as written.
type quota struct {
	key      string
	device   int
	fraction float64 // of the device's total memory
	left     float64
	word     string
	from     string // how it came about
}

// quotas is an ordered dictionary: setting a key again replaces it.
type quotas []quota

func (q *quotas) set(n quota) {
	if i := slices.IndexFunc(*q, func(x quota) bool { return x.key == n.key }); i >= 0 {
		(*q)[i] = n
		return
	}
	*q = append(*q, n)
}

// minBlock is the part of the model below which distorch2 leaves a module on the compute device.
const minBlock = 0.0001

// assign is distorch2's greedy first fit: from the tail, each block goes to the first device, accelerators by name and the cpu
// last, whose quota has room for it; what fits in none goes to the compute device.
func (c *compatExpr) assign(e *Expr, r *Result, t table, fixed Bytes) error {
	compute, err := c.find(e, r, c.compute)
	if err != nil {
		return err
	}
	r.Compute = r.Devices[compute].ID
	r.Devices[compute].Fixed = fixed
	q, err := c.quotas(e, r, t, compute)
	if err != nil {
		return err
	}
	for i, u := range r.Devices {
		if !slices.ContainsFunc(q, func(x quota) bool { return x.key == string(u.ID) }) {
			q = append(q, quota{key: string(u.ID), device: i})
		}
	}
	for i := range q {
		u := &r.Devices[q[i].device]
		q[i].left = float64(u.Total) * q[i].fraction
		if q[i].from == "" {
			continue
		}
		u.Named, u.Asked = true, q[i].word
		u.Limit += Bytes(min(max(q[i].left, 0), maxBytes)) // NaN gives 0
		u.Why = fmt.Sprintf("%s: quota of %.4f of %s in total, filled from the tail", q[i].from, q[i].fraction, u.Total)
	}
	slices.SortStableFunc(q, func(a, b quota) int {
		if isCPU := (a.key == "cpu"); isCPU != (b.key == "cpu") {
			if isCPU {
				return 1
			}
			return -1
		}
		return cmp.Compare(a.key, b.key)
	})
	place, orphans, tiny := firstFit(q, t, compute)
	r.collect(place, t)
	if orphans > 0 {
		r.warn("no quota has room for %s: the compute device %s takes what is left over", count(orphans), r.Compute)
		r.Devices[compute].Why = join(r.Devices[compute].Why, count(orphans)+" for which no quota has room")
	}
	if tiny > 0 {
		r.warn("%s takes %s below 0.01 %% of the model", r.Compute, count(tiny))
	}
	r.judgeCompat()
	return nil
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// firstFit gives every block its device.
func firstFit(q quotas, t table, compute int) (place []int, orphans, tiny int) {
	place = make([]int, t.count())
	smallest := minBlock * float64(t.total())
	for b := t.count() - 1; b >= 0; b-- {
		size := float64(t.bytes(b, b+1))
		place[b] = compute
		if size < smallest {
			tiny++
			continue
		}
		i := slices.IndexFunc(q, func(x quota) bool { return x.left >= size })
		if i < 0 {
			orphans++
			continue
		}
		q[i].left -= size
		place[b] = q[i].device
	}
	return place, orphans, tiny
}

// collect writes the places of all blocks down as segments.
func (r *Result) collect(place []int, t table) {
	for from := 0; from < len(place); {
		to := from + 1
		for to < len(place) && place[to] == place[from] {
			to++
		}
		u := &r.Devices[place[from]]
		s := Segment{u.ID, from, to - from, t.bytes(from, to)}
		r.Assignment = append(r.Assignment, s)
		u.Given += s.Bytes
		u.Blocks += s.Blocks
		from = to
	}
}

// judgeCompat warns of what distorch2 does not look at.
func (r *Result) judgeCompat() {
	for _, u := range r.Devices {
		if over := u.Over(); over > 0 {
			r.warn("%s would hold %s and has %s free: out of memory by %s", u.ID, u.Given+u.Fixed, u.Free, over)
		}
		n := 0
		for _, s := range r.Assignment {
			if s.Device == u.ID {
				n++
			}
		}
		if n > 1 {
			r.warn("%s holds %d separate ranges of blocks", u.ID, n)
		}
		if u.Named && u.Blocks == 0 && u.Limit > 0 {
			r.warn("%s is asked for %s and gets no block", u.ID, u.Limit)
		}
	}
}

func (c *compatExpr) find(e *Expr, r *Result, d compatDevice) (int, error) {
	i := slices.IndexFunc(r.Devices, func(u Usage) bool { return u.ID == d.ID })
	switch {
	case i >= 0:
		return i, nil
	case d.Span.End > d.Span.Start:
		return 0, missing(e, d.DeviceRef, r.Devices, nil)
	}
	return 0, inputError("distorch2 puts blocks on %s where the string names nothing else, and there is no such device; name it, or end the string in #COMPUTE", d.ID)
}

// rounded is a fraction as distorch2 hands it on: with four decimals.
func rounded(b float64, total Bytes) float64 {
	if total == 0 {
		return 0
	}
	f, err := strconv.ParseFloat(strconv.FormatFloat(b/float64(total), 'f', 4, 64), 64)
	if err != nil {
		return math.Inf(1)
	}
	return f
}

// quotas are the devices that the string names, in its order.
func (c *compatExpr) quotas(e *Expr, r *Result, t table, compute int) (q quotas, err error) {
	model := float64(t.total())
	devices := make([]int, len(c.entries))
	for i, x := range c.entries {
		if devices[i], err = c.find(e, r, x.compatDevice); err != nil {
			return nil, err
		}
	}
	switch c.form {
	case compatBytes:
		return c.byteQuotas(e, r, model, devices)
	case compatRatio:
		sum := c.ratioSum()
		for i, x := range c.entries {
			bytes := x.value / sum * model
			q.set(quota{key: x.key, device: devices[i], fraction: rounded(bytes, r.Devices[devices[i]].Total), word: x.word, from: "ratio"})
		}
	case compatFraction:
		for i, x := range c.entries {
			q.set(quota{key: x.key, device: devices[i], fraction: x.value, word: x.word, from: "fraction"})
		}
	case compatVirtual:
		kept := max(0, model-c.virtual*gib)
		q.set(quota{key: c.compute.key, device: compute, fraction: rounded(kept, r.Devices[compute].Total), from: "compute device"})
		left := model - kept
		for _, d := range c.donors {
			i, err := c.find(e, r, d)
			if err != nil {
				return nil, err
			}
			given := min(left, float64(r.Devices[i].Total))
			left -= given
			q.set(quota{key: d.key, device: i, fraction: rounded(given, r.Devices[i].Total), from: "donor"})
		}
		if left > 0 {
			r.warn("the donors have no room for %s of the virtual VRAM, which stay on %s", Bytes(left), r.Compute)
		}
	}
	return q, nil
}

func (c *compatExpr) byteQuotas(e *Expr, r *Result, model float64, devices []int) (q quotas, err error) {
	left := model
	rest, restWord := compatDevice{key: "cpu", DeviceRef: DeviceRef{ID: "cpu"}}, ""
	bytes := map[string]float64{}
	for i, x := range c.entries {
		if x.rest {
			rest, restWord = x.compatDevice, x.word
			continue
		}
		given := min(x.value, left)
		left -= given
		bytes[x.key] = given
		q.set(quota{key: x.key, device: devices[i], fraction: rounded(given, r.Devices[devices[i]].Total), word: x.word, from: "bytes"})
	}
	if left <= 0 {
		return q, nil
	}
	i, err := c.find(e, r, rest)
	if err != nil {
		return nil, err
	}
	// An amount of the same device is kept beside the rest.
	q.set(quota{key: rest.key, device: i, fraction: rounded(bytes[rest.key]+left, r.Devices[i].Total), word: restWord, from: "the rest"})
	return q, nil
}
