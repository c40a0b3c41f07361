// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package gantt

import (
	"fmt"
	"math"
	"strings"

	"github.com/distorch/distorch/internal/svg"
	"github.com/distorch/distorch/placement"
)

const (
	width     = 1000.0
	margin    = 16.0
	top       = 92.0 // title, subtitle, legend
	bottom    = 52.0 // axis
	rowGap    = 4.0
	minGutter = 90.0
	maxGutter = 240.0
	textSize  = 12.0
	smallText = 10.0
)

// height of a row in pixels.
func (k RowKind) height() float64 {
	return [...]float64{RowEndpoint: 14, RowCompute: 24, RowCopies: 12, RowLink: 14}[k]
}

// kinds are all kinds of spans.
func kinds() []SpanKind { return []SpanKind{SpanCompute, SpanWeights, SpanCopy, SpanHop} }

// colour of a kind where one forward is shown.
func (k SpanKind) colour() string {
	return svg.Colour([...]int{SpanCompute: 0, SpanWeights: 1, SpanCopy: 3, SpanHop: 2}[k])
}

// opacity of a kind where colours tell forwards apart.
func (k SpanKind) opacity() float64 {
	return [...]float64{SpanCompute: 1, SpanWeights: 0.45, SpanCopy: 0.6, SpanHop: 0.75}[k]
}

func (k SpanKind) String() string {
	return [...]string{SpanCompute: "compute", SpanWeights: "waits for or expands weights", SpanCopy: "copies of weights", SpanHop: "hops"}[k]
}

// chart is a drawing in the making.
type chart struct {
	t      *Timeline
	d      *svg.Document
	left   float64 // where time 0 is
	scale  float64 // pixels per second
	y      []float64
	bottom float64
}

// Draw renders the timeline as SVG.
func Draw(t *Timeline) []byte {
	c := &chart{t: t, left: gutter(t)}
	y := top
	for i, r := range t.Rows {
		if r.Kind == RowEndpoint && i > 0 {
			y += 14
		}
		c.y = append(c.y, y)
		y += r.Kind.height() + rowGap
	}
	c.bottom = y
	c.d = svg.New(width, y+bottom, t.Title+", "+t.Subtitle)
	end := math.Max(t.End, 1e-12)
	c.scale = (width - c.left - 2*margin) / end
	c.heading()
	c.axis(end)
	c.rows()
	return c.d.Bytes()
}

func gutter(t *Timeline) float64 {
	w := minGutter
	for _, r := range t.Rows {
		w = math.Max(w, 1.1*svg.TextWidth(r.Name, rowText(r.Kind))+10) // bold is wider
	}
	return margin + math.Min(w, maxGutter)
}

func rowText(k RowKind) float64 {
	if k == RowCompute {
		return textSize
	}
	return smallText
}

func (c *chart) x(seconds float64) float64 { return c.left + seconds*c.scale }

func (c *chart) heading() {
	c.d.Text(margin, 26, c.t.Title, svg.TextStyle{Size: 17, Bold: true})
	c.d.Text(margin, 46, c.t.Subtitle, svg.TextStyle{Size: textSize})
	x := margin
	entry := func(colour, text string, opacity float64) {
		c.d.Rect(x, 60, 12, 12, svg.Style{Fill: colour, Opacity: opacity})
		c.d.Text(x+18, 70, text, svg.TextStyle{Size: 11})
		x += 18 + svg.TextWidth(text, 11) + 18
	}
	present := [4]bool{}
	for _, s := range c.t.Spans {
		present[s.Kind] = true
	}
	if c.t.Forwards == 1 {
		for _, k := range kinds() {
			if present[k] {
				entry(k.colour(), k.String(), 1)
			}
		}
		return
	}
	const named = 8
	for m := range min(c.t.Forwards, named) {
		entry(svg.Colour(m), c.forward(m), 1)
	}
	if c.t.Forwards > named {
		entry(svg.Ink, fmt.Sprintf("and %d more", c.t.Forwards-named), 0.5)
	}
	var pale []string
	for _, k := range []SpanKind{SpanHop, SpanCopy, SpanWeights} {
		if present[k] {
			pale = append(pale, k.String())
		}
	}
	if len(pale) > 0 {
		entry(svg.Ink, "pale: "+strings.Join(pale, ", "), SpanWeights.opacity())
	}
}

// forward names a micro-batch.
func (c *chart) forward(m int) string { return fmt.Sprintf("forward %d", m+1) }

// unit shows ticks in the unit of the end.
func unit(end float64) (factor float64, name string) {
	switch {
	case end >= 1:
		return 1, "s"
	case end >= 1e-3:
		return 1e3, "ms"
	default:
		return 1e6, "µs"
	}
}

func (c *chart) axis(end float64) {
	factor, name := unit(end)
	grid := svg.Style{Stroke: svg.Faint, Width: 1, Opacity: 0.35}
	for _, v := range svg.Ticks(0, end*factor, 10) {
		x := c.x(v / factor)
		c.d.Line(x, top-8, x, c.bottom, grid)
		c.d.Text(x, c.bottom+16, svg.Number(v), svg.TextStyle{Size: 11, Anchor: svg.Middle})
	}
	c.d.Line(c.left, c.bottom, c.x(end), c.bottom, svg.Style{Stroke: svg.Ink, Width: 1})
	c.d.Text((c.left+c.x(end))/2, c.bottom+34, "time in the step ("+name+")", svg.TextStyle{Size: 11, Anchor: svg.Middle})
	mark := svg.Style{Stroke: svg.Colour(4), Width: 1.5, Dash: "5 4"}
	switch label := placement.Seconds(c.t.Step); {
	case math.Abs(c.t.Step-c.t.End) <= 1e-9*c.t.End:
		c.d.Line(c.x(end), top-8, c.x(end), c.bottom, mark)
		c.d.Text(c.x(end), top-14, label, svg.TextStyle{Size: 11, Anchor: svg.End, Fill: svg.Colour(4), Bold: true})
	case c.t.Step > 0 && c.t.Step < c.t.End:
		from := c.t.End - c.t.Step
		c.d.Line(c.x(from), top-10, c.x(end), top-10, svg.Style{Stroke: svg.Colour(4), Width: 1.5})
		c.d.Text(c.x(end), top-16, "an output every "+label, svg.TextStyle{Size: 11, Anchor: svg.End, Fill: svg.Colour(4), Bold: true})
	}
}

func (c *chart) rows() {
	for i, r := range c.t.Rows {
		h := r.Kind.height()
		size := rowText(r.Kind)
		c.d.Text(c.left-8, c.y[i]+h/2+size*0.36, shorten(r.Name, maxGutter-10, size), svg.TextStyle{Size: size, Anchor: svg.End, Bold: r.Kind == RowCompute})
		c.d.Rect(c.left, c.y[i], c.x(c.t.End)-c.left, h, svg.Style{Fill: svg.Faint, Opacity: 0.12})
	}
	for _, s := range c.t.Spans {
		c.span(s)
	}
}

func (c *chart) span(s Span) {
	r := c.t.Rows[s.Row]
	h := r.Kind.height()
	x, w := c.x(s.Start), (s.End-s.Start)*c.scale
	style := svg.Style{Fill: s.Kind.colour(), Tooltip: fmt.Sprintf("%s: %s, %s at %s", r.Name, s.Kind, placement.Seconds(s.End-s.Start), placement.Seconds(s.Start))}
	if c.t.Forwards > 1 {
		style.Fill, style.Opacity = svg.Colour(s.MicroBatch), s.Kind.opacity()
		style.Tooltip = c.forward(s.MicroBatch) + ", " + style.Tooltip
	}
	const thin = 1.2 // pixels; what is shorter is drawn so wide
	c.d.Rect(x, c.y[s.Row], math.Max(w-0.6, thin), h, style)
	text := s.Label
	if s.Kind == SpanCompute && text != "" {
		text += " · " + placement.Seconds(s.End-s.Start)
	}
	size := 11.0
	if h < 16 {
		size = 9
	}
	short := strings.TrimSuffix(strings.TrimPrefix(s.Label, "head "), " tail")
	for _, t := range []string{text, s.Label, short, placement.Seconds(s.End - s.Start)} {
		if t != "" && svg.TextWidth(t, size) < w-8 {
			c.d.Text(x+w/2, c.y[s.Row]+h/2+size*0.36, t, svg.TextStyle{Size: size, Anchor: svg.Middle, Fill: "#ffffff"})
			return
		}
	}
}

// shorten cuts a name to a width.
func shorten(text string, most, size float64) string {
	runes := []rune(text)
	for len(runes) > 1 && svg.TextWidth(string(runes), size) > most {
		runes = runes[:len(runes)-1]
	}
	if len(runes) < len([]rune(text)) {
		return string(runes[:len(runes)-1]) + "…"
	}
	return text
}
