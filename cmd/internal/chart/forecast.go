// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"fmt"

	"github.com/distorch/distorch/internal/svg"
	"github.com/distorch/distorch/placement/forecast"
)

// Sizes of a drawing of panels, in pixels.
const (
	across      = 3 // panels in a row, at most
	panelWidth  = 270
	panelHeight = 215
	left        = 56 // from a panel's edge to its area
	right       = 10
	top         = 26
	bottom      = 44
	header      = 62 // title and legend above the panels
	legendAt    = 44 // base line of the legend
	narrowest   = 2 * panelWidth
)

// What each kind of mark means is the same in every panel.
var (
	lineStyle       = svg.Style{Stroke: svg.Colour(0), Width: 2}
	overlappedStyle = svg.Style{Stroke: svg.Colour(1), Width: 2, Dash: "6 4"}
	fittedStyle     = svg.Style{Fill: svg.Colour(0), Stroke: svg.Colour(0), Width: 1.5}
	predictedStyle  = svg.Style{Fill: "none", Stroke: svg.Ink, Width: 1.5}
)

const radius = 4 // of a measurement

// Forecast draws a table's measurements and lines, a panel for each link: seconds
// per iteration over GB offloaded.
func Forecast(t forecast.TableReport) []byte {
	columns := min(across, len(t.Columns))
	rows := (len(t.Columns) + across - 1) / across
	width := float64(max(narrowest, columns*panelWidth))
	d := svg.New(width, float64(header+rows*panelHeight), fmt.Sprintf("%s: seconds per iteration over GB offloaded, measured and forecast", t.Name))
	worth := fmt.Sprintf("mean error %s, worst %s", Percent(t.Mean), Percent(t.Worst))
	room := width - svg.TextWidth(worth, 12) - 3*right
	d.Text(right, 20, shortened(t.Name, 14, room), svg.TextStyle{Size: 14, Bold: true})
	d.Text(width-right, 20, worth, svg.TextStyle{Anchor: svg.End})
	legend(d)
	for i, c := range t.Columns {
		panel(d, float64(i%across*panelWidth), float64(header+i/across*panelHeight), c)
	}
	return d.Bytes()
}

func legend(d *svg.Document) {
	const mid = legendAt - 4 // of the letters' height
	x := float64(right)
	item := func(text string, draw func(x float64), wide float64) {
		draw(x)
		d.Text(x+wide+5, legendAt, text, svg.TextStyle{Size: 11})
		x += wide + 5 + svg.TextWidth(text, 11) + 14
	}
	dot := func(s svg.Style) func(float64) {
		return func(x float64) { d.Circle(x+radius, mid, radius, s) }
	}
	stroke := func(s svg.Style) func(float64) {
		return func(x float64) { d.Line(x, mid, x+26, mid, s) }
	}
	item("measured, fitted", dot(fittedStyle), 2*radius)
	item("measured, not fitted", dot(predictedStyle), 2*radius)
	item("forecast", stroke(lineStyle), 26)
	item("if copies ran under compute", stroke(overlappedStyle), 26)
}

func panel(d *svg.Document, x, y float64, c forecast.ColumnReport) {
	l, last, highest := c.Line(), 0.0, 0.0
	for _, r := range c.Rows {
		last, highest = max(last, r.OffloadGB), max(highest, r.Measured, r.Predicted, r.Overlapped)
	}
	f := svg.Frame{
		X: x + left, Y: y + top, Width: panelWidth - left - right, Height: panelHeight - top - bottom,
		Horizontal: svg.Axis{High: last * 1.04, Label: "GB offloaded", Ticks: 7},
		Vertical:   svg.Axis{High: highest * 1.08, Label: "s per iteration", Ticks: 5},
	}
	f.Draw(d)
	title := c.Name
	if c.GBPerSecond > 0 {
		title = fmt.Sprintf("%s, %.3g GB/s", c.Name, c.GBPerSecond)
	}
	d.Text(f.X, y+top-8, shortened(title, 12, f.Width), svg.TextStyle{})

	bend := []svg.Point{f.At(0, l.Overlapped(0))}
	if l.SecondsPerGB > 0 {
		if at := l.BaseSeconds / l.SecondsPerGB; at > 0 && at < last {
			bend = append(bend, f.At(at, l.Overlapped(at)))
		}
	}
	d.Polyline(append(bend, f.At(last, l.Overlapped(last))), overlappedStyle)
	d.Polyline([]svg.Point{f.At(0, l.At(0)), f.At(last, l.At(last))}, lineStyle)
	for _, r := range c.Rows {
		at, s := f.At(r.OffloadGB, r.Measured), predictedStyle
		s.Tooltip = fmt.Sprintf("%g GB: measured %g s, forecast %.3g s (%s)", r.OffloadGB, r.Measured, r.Predicted, SignedPercent(r.Error))
		if r.Fitted {
			s = fittedStyle
			s.Tooltip = fmt.Sprintf("%g GB: measured %g s, fitted", r.OffloadGB, r.Measured)
		}
		d.Circle(at.X, at.Y, radius, s)
	}
}

// shortened cuts text to what is about width pixels wide.
func shortened(text string, size, width float64) string {
	r := []rune(text)
	for len(r) > 1 && svg.TextWidth(text, size) > width {
		r = r[:len(r)-1]
		text = string(r) + "…"
	}
	return text
}

// Percent shows a share of one: "2.0 %".
func Percent(v float64) string { return fmt.Sprintf("%.1f %%", v*100) }

// SignedPercent shows a difference: "+0.4 %", "-2.0 %", "0.0 %".
func SignedPercent(v float64) string {
	s := fmt.Sprintf("%+.1f %%", v*100)
	if s == "-0.0 %" || s == "+0.0 %" {
		return "0.0 %"
	}
	return s
}
