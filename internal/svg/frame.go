// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package svg

import (
	"math"
	"strconv"
)

// Ticks are round numbers (1, 2 or 5 times a power of ten apart) from the first
// not below low to the last not above high; at most most of them, which is taken
// as at least 2. There are none unless low < high and both are finite.
func Ticks(low, high float64, most int) []float64 {
	step := tickStep(low, high, most)
	if step == 0 {
		return nil
	}
	var ticks []float64
	const slack = 1e-9 // a bound that is a tick may be off by rounding
	for i := math.Ceil(low/step - slack); i <= high/step+slack && len(ticks) < max(2, most); i++ {
		t := i * step
		if step < 1 {
			t = i / math.Round(1/step) // 3 * 0.1 is not 0.3
		}
		ticks = append(ticks, t)
	}
	return ticks
}

func tickStep(low, high float64, most int) float64 {
	span := high - low
	if !(span > 0) || math.IsInf(span, 0) {
		return 0
	}
	least := span / float64(max(2, most)-1)
	power := math.Pow(10, math.Floor(math.Log10(least)))
	if power == 0 {
		return 0
	}
	for _, m := range []float64{1, 2, 5, 10} {
		if m*power >= least*(1-1e-9) {
			return m * power
		}
	}
	return 10 * power
}

// Ceiling is the lowest number not below high that is a tick of [low, high'],
// so that an axis can end on a tick.
func Ceiling(low, high float64, most int) float64 {
	step := tickStep(low, high, most)
	if step == 0 {
		return high
	}
	return math.Ceil(high/step-1e-9) * step
}

// Axis is a range of values with what they are.
type Axis struct {
	Low, High float64
	Label     string // with the unit, such as "offloaded, GB"
	Ticks     int    // at most; 0 stands for 6
}

func (a Axis) ticks() []float64 {
	most := a.Ticks
	if most == 0 {
		most = 6
	}
	return Ticks(a.Low, a.High, most)
}

// part is where a value lies between Low (0) and High (1).
func (a Axis) part(v float64) float64 {
	if !(a.High > a.Low) {
		return 0
	}
	return (v - a.Low) / (a.High - a.Low)
}

// Frame is the area of a chart: values are drawn inside, ticks and labels left of
// it and below it. An axis without a range (High not above Low) is not drawn, for
// charts whose rows are names.
type Frame struct {
	X, Y, Width, Height float64 // of the area, pixels
	Horizontal          Axis
	Vertical            Axis // grows upward
}

// At is where a pair of values lies in the drawing.
func (f Frame) At(x, y float64) Point {
	return Point{f.X + f.Width*f.Horizontal.part(x), f.Y + f.Height*(1-f.Vertical.part(y))}
}

const (
	tickSize   = 11
	tickGap    = 6  // between axis and the ticks' numbers
	labelBelow = 34 // from the area to the base line of the horizontal label
	labelLeft  = 40 // from the area to the base line of the vertical label
)

// Draw draws grid, axes, ticks and labels.
func (f Frame) Draw(d *Document) {
	bottom := f.Y + f.Height
	grid := Style{Stroke: Faint, Width: 0.5, Opacity: 0.5}
	axis := Style{Stroke: Ink, Width: 1}
	for _, t := range f.Horizontal.ticks() {
		x := f.At(t, 0).X
		d.Line(x, f.Y, x, bottom, grid)
		d.Text(x, bottom+tickGap+tickSize-1, Number(t), TextStyle{Size: tickSize, Anchor: Middle})
	}
	for _, t := range f.Vertical.ticks() {
		y := f.At(0, t).Y
		d.Line(f.X, y, f.X+f.Width, y, grid)
		d.Text(f.X-tickGap, y+tickSize/2-1.5, Number(t), TextStyle{Size: tickSize, Anchor: End})
	}
	d.Line(f.X, bottom, f.X+f.Width, bottom, axis)
	d.Line(f.X, f.Y, f.X, bottom, axis)
	if f.Horizontal.Label != "" {
		d.Text(f.X+f.Width/2, bottom+labelBelow, f.Horizontal.Label, TextStyle{Size: tickSize, Anchor: Middle})
	}
	if f.Vertical.Label != "" {
		d.Text(f.X-labelLeft, f.Y+f.Height/2, f.Vertical.Label, TextStyle{Size: tickSize, Anchor: Middle, Turned: true})
	}
}

// Number writes a tick's value: as short as it is exact to six digits.
func Number(v float64) string {
	v, _ = strconv.ParseFloat(strconv.FormatFloat(v, 'g', 6, 64), 64)
	if v == 0 {
		return "0"
	}
	if a := math.Abs(v); a >= 1e7 || a < 1e-4 {
		return strconv.FormatFloat(v, 'g', -1, 64)
	}
	return strconv.FormatFloat(v, 'f', -1, 64)
}
