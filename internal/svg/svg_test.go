// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package svg

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestDocument(t *testing.T) {
	d := New(100, 50, `a & "b"`)
	d.Rect(1, 2, 30, -4, Style{Fill: Colour(0), Opacity: 0.5, Tooltip: "1 < 2"})
	d.Line(0, 0, 10.005, 1e9, Style{Stroke: Ink, Width: 1, Dash: "5 4", Fill: "red"})
	d.Polyline([]Point{{0, 1}, {-0.001, math.NaN()}}, Style{Stroke: Colour(9)})
	d.Polyline(nil, Style{})
	d.Circle(5, 5, 2.5, Style{Fill: "none"})
	d.Text(1, 2, "<b>\xff\x01", TextStyle{})
	d.Text(1, 2, "up", TextStyle{Size: 9, Fill: "red", Anchor: Middle, Bold: true, Turned: true})
	want := `<svg xmlns="http://www.w3.org/2000/svg" width="100" height="50" viewBox="0 0 100 50" role="img" font-family="sans-serif">
<title>a &amp; &#34;b&#34;</title>
<rect x="1" y="2" width="30" height="0" fill="#3d85c6" opacity="0.5"><title>1 &lt; 2</title></rect>
<line x1="0" y1="0" x2="10.01" y2="30000" stroke="#767676" stroke-width="1" stroke-dasharray="5 4"/>
<polyline points="0,1 0,0" fill="none" stroke="#d9822b"/>
<circle cx="5" cy="5" r="2.5" fill="none"/>
<text x="1" y="2" font-size="12" fill="#767676">&lt;b&gt;��</text>
<text x="1" y="2" font-size="9" fill="red" text-anchor="middle" font-weight="bold" transform="rotate(-90 1 2)">up</text>
</svg>
`
	if diff := cmp.Diff(want, string(d.Bytes())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestAnyTextIsWellFormed: what comes from files cannot break the drawing.
func TestAnyTextIsWellFormed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := string(rapid.SliceOf(rapid.Byte()).Draw(t, "text"))
		d := New(rapid.Float64().Draw(t, "width"), 10, s)
		d.Text(0, 0, s, TextStyle{Fill: s})
		d.Rect(0, 0, 1, 1, Style{Fill: s, Dash: s, Tooltip: s})
		Frame{Width: 10, Height: 10, Horizontal: Axis{High: rapid.Float64().Draw(t, "high"), Label: s}}.Draw(d)
		dec := xml.NewDecoder(bytes.NewReader(d.Bytes()))
		for {
			if _, err := dec.Token(); errors.Is(err, io.EOF) {
				return
			} else if err != nil {
				t.Fatalf("%v in %s", err, d.Bytes())
			}
		}
	})
}

func TestTicks(t *testing.T) {
	for _, tc := range []struct {
		low, high float64
		most      int
		want      []float64
	}{
		{0, 11.8, 6, []float64{0, 5, 10}},
		{0, 10, 6, []float64{0, 2, 4, 6, 8, 10}},
		{0, 0.3, 4, []float64{0, 0.1, 0.2, 0.3}},
		{-1, 1, 5, []float64{-1, -0.5, 0, 0.5, 1}},
		{3, 3, 5, nil},
		{5, 3, 5, nil},
		{0, math.Inf(1), 5, nil},
		{0, math.NaN(), 5, nil},
		{0, 1, 0, []float64{0, 1}},
	} {
		if diff := cmp.Diff(tc.want, Ticks(tc.low, tc.high, tc.most)); diff != "" {
			t.Errorf("%v to %v, %d at most (-want +got):\n%s", tc.low, tc.high, tc.most, diff)
		}
	}
}

func TestTicksLieInside(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		low := rapid.Float64Range(-1e6, 1e6).Draw(t, "low")
		high := low + rapid.Float64Range(1e-3, 1e6).Draw(t, "span")
		most := rapid.IntRange(2, 20).Draw(t, "most")
		ticks := Ticks(low, high, most)
		slack := (high - low) * 1e-6
		if len(ticks) > most {
			t.Fatalf("%d ticks", len(ticks))
		}
		for i, v := range ticks {
			if v < low-slack || v > high+slack || i > 0 && v <= ticks[i-1] {
				t.Fatalf("ticks %v", ticks)
			}
		}
		if top := Ceiling(low, high, most); top < high-slack {
			t.Fatalf("ceiling %v of %v", top, high)
		}
	})
}

func TestFrame(t *testing.T) {
	f := Frame{X: 50, Y: 10, Width: 200, Height: 100, Horizontal: Axis{High: 10, Label: "offloaded, GB"}, Vertical: Axis{Low: 1, High: 3, Label: "seconds"}}
	if diff := cmp.Diff([]Point{{50, 110}, {250, 10}, {150, 60}}, []Point{f.At(0, 1), f.At(10, 3), f.At(5, 2)}); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	d := New(300, 150, "t")
	f.Draw(d)
	for _, want := range []string{">offloaded, GB<", `transform="rotate(-90 10 60)">seconds<`, ">1.5<", ">10<"} {
		if !strings.Contains(string(d.Bytes()), want) {
			t.Errorf("no %s in\n%s", want, d.Bytes())
		}
	}
	f.Vertical = Axis{} // rows of names
	if p := f.At(5, 7); p.X != 150 || math.IsNaN(p.Y) {
		t.Errorf("at %v", p)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.30000000000000004: "0.3", 1500: "1500", 2.5: "2.5", 1e-7: "1e-07", -4: "-4", 2e9: "2e+09"} {
		if got := Number(v); got != want {
			t.Errorf("%v is written %s, want %s", v, got, want)
		}
	}
}

func TestColour(t *testing.T) {
	if Colour(0) != Colour(8) || Colour(-1) != Colour(7) || Colour(0) == Colour(1) {
		t.Error("colours do not go round")
	}
	if TextWidth("ab", 0) <= TextWidth("a", 12) {
		t.Error("longer text is not wider")
	}
}
