// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"github.com/distorch/distorch/internal/edits"
	"github.com/distorch/distorch/placement"
)

// LineShare is how much of a network's line rate carries payload: Ethernet, IP
// and TCP headers take the rest.
const LineShare = 0.94

// unit is a spelling and its value: 10^decimal * 2^binary, an eighth of it and
// [LineShare] where it counts bits on the line.
type unit struct {
	text            string
	decimal, binary int
	line            bool
}

// quantity is a kind of figure with a unit.
type quantity struct {
	what    string // for messages
	example string
	units   []unit
	low     float64 // least value but 0
	high    float64
	limits  string
}

func sizes() quantity {
	return quantity{"a size", "24GB", sizeUnits(), 1, 1 << 50, "0 to 1024TiB"}
}

func rates() quantity {
	q := quantity{"a rate", "10gbps or 1.2GB/s", nil, 1, 1e18, "1B/s to 1e18B/s"}
	for i, p := range []string{"", "k", "M", "G", "T"} {
		e := 3 * i
		q.units = append(q.units, unit{p + "B/s", e, 0, false})
		if p == "k" {
			q.units = append(q.units, unit{"KB/s", e, 0, false})
		}
		for _, s := range []string{p + "bps", p + "bit/s", strings.ToLower(p) + "bps", strings.ToLower(p) + "bit/s"} {
			q.units = appendNew(q.units, unit{s, e, 0, true})
		}
		if i > 0 {
			q.units = append(q.units, unit{strings.ToUpper(p) + "iB/s", 0, 10 * i, false})
		}
	}
	return q
}

func flops() quantity {
	q := quantity{"a compute rate", "60TFLOP/s", nil, 1, 1e18, "1FLOP/s to 1e18FLOP/s"}
	for i, p := range []string{"", "k", "M", "G", "T", "P"} {
		for _, s := range []string{p + "FLOP/s", p + "FLOPS", p + "FLOPs"} {
			q.units = append(q.units, unit{s, 3 * i, 0, false})
		}
	}
	return q
}

func times() quantity {
	return quantity{"a time", "100us", []unit{{"s", 0, 0, false}, {"ms", -3, 0, false}, {"us", -6, 0, false}, {"µs", -6, 0, false}, {"ns", -9, 0, false}}, 0, 60, "0 to 60s"}
}

// sizeUnits are spelt as people write them.
func sizeUnits() []unit {
	units := []unit{{"B", 0, 0, false}, {"KB", 3, 0, false}}
	for i, p := range []string{"k", "M", "G", "T"} {
		e := 3 * (i + 1)
		for _, s := range []string{p + "B", strings.ToLower(p) + "b"} {
			units = appendNew(units, unit{s, e, 0, false})
		}
		for _, s := range []string{strings.ToUpper(p) + "iB", strings.ToLower(p) + "ib"} {
			units = appendNew(units, unit{s, 0, 10 * (i + 1), false})
		}
	}
	return units
}

func appendNew(units []unit, u unit) []unit {
	for _, have := range units {
		if have.text == u.text {
			return units
		}
	}
	return append(units, u)
}

const numberPattern = `[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?`

// figurePattern is any number with anything as its unit.
const figurePattern = `^\s*([+-]?)(` + numberPattern + `)\s*(\S*)\s*$`

var figure = regexp.MustCompile(figurePattern)

// amount reads a figure with its unit; line says that it counted bits.
func (q quantity) amount(text string) (v float64, line bool, err error) {
	if len(text) > 100 {
		return 0, false, fmt.Errorf("%.20q and so on is not %s; write it like %s", text, q.what, q.example)
	}
	m := figure.FindStringSubmatch(text)
	if m == nil {
		return 0, false, fmt.Errorf("%q is not %s; write it like %s", text, q.what, q.example)
	}
	sign, number, name := m[1], m[2], m[5]
	if sign == "-" {
		return 0, false, fmt.Errorf("%q is negative; %s must be %s", text, q.what, q.limits)
	}
	if name == "" {
		zero, _ := strconv.ParseFloat(number, 64)
		if zero == 0 {
			return 0, false, nil
		}
		return 0, false, fmt.Errorf("%q has no unit; write it like %s", text, q.example)
	}
	for _, u := range q.units {
		if u.text != name {
			continue
		}
		v = u.value(number)
		if v != 0 && v < q.low || v > q.high {
			return 0, false, fmt.Errorf("%q is out of range; %s must be %s", text, q.what, q.limits)
		}
		return v, u.line, nil
	}
	return 0, false, fmt.Errorf("%q has an unknown unit %q%s; write it like %s", text, name, q.nearest(name), q.example)
}

func (q quantity) nearest(name string) string {
	names := make([]string, len(q.units))
	for i, u := range q.units {
		names[i] = u.text
	}
	if low := strings.ToLower(name); low == "gb/s" || low == "mb/s" {
		return fmt.Sprintf(" (%sB/s counts bytes, %sbps bits)", strings.ToUpper(low[:1]), low[:1])
	}
	if near := edits.Nearest(name, names); near != "" {
		return fmt.Sprintf(", did you mean %q?", near)
	}
	return ""
}

// value shifts the decimal exponent in the text, so that what was written is
// rounded once.
func (u unit) value(number string) float64 {
	mantissa, exponent := number, 0
	if i := strings.IndexAny(number, "eE"); i >= 0 {
		exponent, _ = strconv.Atoi(number[i+1:])
		mantissa = number[:i]
	}
	v, err := strconv.ParseFloat(fmt.Sprintf("%se%d", mantissa, exponent+u.decimal), 64)
	if err != nil {
		return math.Inf(1)
	}
	v = math.Ldexp(v, u.binary)
	if u.line {
		v = v / 8 * LineShare
	}
	return v
}

// pattern matches what amount takes, but for the range.
func (q quantity) pattern() string {
	names := make([]string, len(q.units))
	for i, u := range q.units {
		names[i] = regexp.QuoteMeta(u.text)
	}
	return `^\s*` + numberPattern + `\s*(` + strings.Join(names, "|") + `)\s*$`
}

// ParseSize reads "24GB" or "24GiB".
func ParseSize(text string) (placement.Bytes, error) {
	v, _, err := sizes().amount(text)
	return placement.Bytes(math.Round(v)), err
}

// ParseRate reads "1.2GB/s" as it is and "10gbps", which counts bits on the
// line, as the payload that fits. The source of the second is published.
func ParseRate(text string) (float64, placement.Source, error) {
	v, line, err := rates().amount(text)
	if line {
		return v, placement.SourcePublished, err
	}
	return v, placement.SourceGiven, err
}

// ParseFLOPs reads "60TFLOP/s".
func ParseFLOPs(text string) (float64, error) {
	v, _, err := flops().amount(text)
	return v, err
}

// ParseSeconds reads "100us" or "2ms".
func ParseSeconds(text string) (float64, error) {
	v, _, err := times().amount(text)
	return v, err
}

// shift writes v in units of 10^decimal with no digit lost.
func shift(v float64, decimal int) string {
	digits, exponent, _ := strings.Cut(strconv.FormatFloat(v, 'e', -1, 64), "e")
	e, _ := strconv.Atoi(exponent)
	e -= decimal
	if e < -6 || e > 15 {
		return fmt.Sprintf("%se%d", digits, e)
	}
	digits = strings.Replace(digits, ".", "", 1)
	switch point := e + 1; {
	case point <= 0:
		return "0." + strings.Repeat("0", -point) + digits
	case point >= len(digits):
		return digits + strings.Repeat("0", point-len(digits))
	default:
		return digits[:point] + "." + digits[point:]
	}
}

// scaled picks the unit that leaves one to three digits before the point.
func scaled(v float64, low, high int, prefix map[int]string, end string) string {
	if v == 0 {
		return "0"
	}
	_, exponent, _ := strings.Cut(strconv.FormatFloat(v, 'e', -1, 64), "e")
	e, _ := strconv.Atoi(exponent)
	decimal := min(max(3*int(math.Floor(float64(e)/3)), low), high)
	return shift(v, decimal) + prefix[decimal] + end
}

func prefixes() map[int]string {
	return map[int]string{-9: "n", -6: "u", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P"}
}

func formatRate(v float64) string    { return scaled(v, 0, 12, prefixes(), "B/s") }
func formatFLOPs(v float64) string   { return scaled(v, 0, 15, prefixes(), "FLOP/s") }
func formatSeconds(v float64) string { return scaled(v, -9, 0, prefixes(), "s") }

func formatSize(b placement.Bytes) string {
	for _, u := range []struct {
		size placement.Bytes
		text string
	}{{1e12, "TB"}, {1 << 40, "TiB"}, {1e9, "GB"}, {1 << 30, "GiB"}, {1e6, "MB"}, {1 << 20, "MiB"}, {1e3, "kB"}, {1 << 10, "KiB"}} {
		if b >= u.size && b%u.size == 0 {
			return fmt.Sprintf("%d%s", b/u.size, u.text)
		}
	}
	if b == 0 {
		return "0"
	}
	return fmt.Sprintf("%dB", b)
}
