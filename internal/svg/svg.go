// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package svg writes drawings: shapes, text and chart frames as SVG 1.1.
//
// Commands and their charts import it; it imports nothing of distorch and does
// no I/O. The same calls give the same bytes. Colours are middle tones that can
// be read on light and on dark pages; the ground is left transparent.
package svg

import (
	"bytes"
	"encoding/xml"
	"math"
	"strconv"
	"strings"
)

// Colours of what is not data.
const (
	Ink   = "#767676" // text and axes
	Faint = "#9a9a9a" // grid lines, drawn thin and half transparent
)

var palette = [...]string{"#3d85c6", "#d9822b", "#3a9d6e", "#a66bc9", "#d65a56", "#8a8f2c", "#c65a94", "#2c9fa8"}

// Colour is the i-th colour of data; after eight they begin again.
func Colour(i int) string {
	n := len(palette)
	return palette[((i%n)+n)%n]
}

// Point is a place in a drawing: x to the right, y down, in pixels.
type Point struct{ X, Y float64 }

// Style is how a shape is drawn. Its zero value is SVG's own: filled black, no
// stroke; lines and polylines are never filled.
type Style struct {
	Fill    string  // a colour or "none"
	Stroke  string  // a colour
	Width   float64 // of the stroke, pixels
	Dash    string  // stroke-dasharray, such as "5 4"
	Opacity float64 // of the whole shape; 0 stands for 1
	Tooltip string  // shown while the pointer is on the shape
}

// Anchor is which part of a text lies at its place.
type Anchor string

// The anchors. Empty is Start.
const (
	Start  Anchor = "start"
	Middle Anchor = "middle"
	End    Anchor = "end"
)

// TextStyle is how a text is written.
type TextStyle struct {
	Size   float64 // pixels; 0 stands for 12
	Fill   string  // empty stands for Ink
	Anchor Anchor
	Bold   bool
	Turned bool // a quarter to the left, around its place
}

const defaultSize = 12

// Document is a drawing in the making.
type Document struct {
	width, height float64
	title         string
	body          bytes.Buffer
}

// New is an empty drawing of a size in pixels. The title is what screen readers
// say in its place.
func New(width, height float64, title string) *Document {
	return &Document{width: width, height: height, title: title}
}

// Bytes is the drawing as a file.
func (d *Document) Bytes() []byte {
	var b bytes.Buffer
	w, h := number(d.width), number(d.height)
	b.WriteString(`<svg xmlns="http://www.w3.org/2000/svg" width="` + w + `" height="` + h + `" viewBox="0 0 ` + w + ` ` + h + `" role="img" font-family="sans-serif">` + "\n")
	b.WriteString("<title>" + escape(d.title) + "</title>\n")
	b.Write(d.body.Bytes())
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// Rect draws a rectangle by its upper left corner and size.
func (d *Document) Rect(x, y, width, height float64, s Style) {
	d.shape(s, "rect", "x", number(x), "y", number(y), "width", number(max(0, width)), "height", number(max(0, height)))
}

// Line draws a straight line.
func (d *Document) Line(x1, y1, x2, y2 float64, s Style) {
	s.Fill = ""
	d.shape(s, "line", "x1", number(x1), "y1", number(y1), "x2", number(x2), "y2", number(y2))
}

// Polyline draws straight lines from point to point.
func (d *Document) Polyline(points []Point, s Style) {
	if len(points) == 0 {
		return
	}
	var at strings.Builder
	for i, p := range points {
		if i > 0 {
			at.WriteByte(' ')
		}
		at.WriteString(number(p.X) + "," + number(p.Y))
	}
	s.Fill = "none"
	d.shape(s, "polyline", "points", at.String())
}

// Circle draws a circle around a point.
func (d *Document) Circle(x, y, radius float64, s Style) {
	d.shape(s, "circle", "cx", number(x), "cy", number(y), "r", number(max(0, radius)))
}

// Text writes one line with its base line at y.
func (d *Document) Text(x, y float64, text string, t TextStyle) {
	size, fill := t.Size, t.Fill
	if size == 0 {
		size = defaultSize
	}
	if fill == "" {
		fill = Ink
	}
	at := []string{"x", number(x), "y", number(y), "font-size", number(size), "fill", fill}
	if t.Anchor != "" && t.Anchor != Start {
		at = append(at, "text-anchor", string(t.Anchor))
	}
	if t.Bold {
		at = append(at, "font-weight", "bold")
	}
	if t.Turned {
		at = append(at, "transform", "rotate(-90 "+number(x)+" "+number(y)+")")
	}
	d.element("text", at, escape(text))
}

func (d *Document) shape(s Style, name string, attributes ...string) {
	if s.Fill != "" {
		attributes = append(attributes, "fill", s.Fill)
	}
	if s.Stroke != "" {
		attributes = append(attributes, "stroke", s.Stroke)
	}
	if s.Width > 0 {
		attributes = append(attributes, "stroke-width", number(s.Width))
	}
	if s.Dash != "" {
		attributes = append(attributes, "stroke-dasharray", s.Dash)
	}
	if s.Opacity > 0 && s.Opacity < 1 {
		attributes = append(attributes, "opacity", number(s.Opacity))
	}
	inner := ""
	if s.Tooltip != "" {
		inner = "<title>" + escape(s.Tooltip) + "</title>"
	}
	d.element(name, attributes, inner)
}

func (d *Document) element(name string, attributes []string, inner string) {
	d.body.WriteString("<" + name)
	for i := 0; i < len(attributes); i += 2 {
		d.body.WriteString(" " + attributes[i] + `="` + escape(attributes[i+1]) + `"`)
	}
	if inner == "" {
		d.body.WriteString("/>\n")
		return
	}
	d.body.WriteString(">" + inner + "</" + name + ">\n")
}

// TextWidth is about how wide a line of text is, in pixels: sans-serif fonts
// differ by a tenth.
func TextWidth(text string, size float64) float64 {
	if size == 0 {
		size = defaultSize
	}
	return 0.58 * size * float64(len([]rune(text)))
}

// farthest is beyond any page; renderers overflow at 16-bit coordinates.
const farthest = 30000

// number writes a length with at most two decimals. What is not a number is 0.
func number(v float64) string {
	if math.IsNaN(v) {
		return "0"
	}
	v = math.Round(max(-farthest, min(farthest, v))*100) / 100
	if v == 0 {
		return "0" // of either sign
	}
	return strconv.FormatFloat(v, 'f', -1, 64)
}

// escape makes any text, valid UTF-8 or not, safe in content and attributes.
func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}
