// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package allocation

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// compatForm is how distorch2 reads what stands before #.
type compatForm int

const (
	compatBytes compatForm = iota
	compatRatio
	compatFraction
	compatVirtual
)

// compatExpr is a string as distorch2 reads it.
type compatExpr struct {
	form    compatForm
	entries []compatEntry
	compute compatDevice
	virtual float64 // GB
	donors  []compatDevice
}

type compatEntry struct {
	compatDevice
	value float64 // bytes, ratio or fraction
	rest  bool
	word  string
	at    Span // of word
}

// compatDevice is a device as written, which distorch2 keeps apart from other ways to write it.
type compatDevice struct {
	key string
	DeviceRef
}

// raises is a string at which distorch2 fails with a Python exception.
func raises(at Span, exception, expected, mended string) *problem {
	return &problem{at, "distorch2 fails with " + exception, expected, mended, false}
}

func (e *Expr) readCompat() *problem {
	c := &compatExpr{}
	e.compat = c
	left, right, _ := strings.Cut(e.Text, "#")
	rightStart := min(len(left)+1, len(e.Text))
	lower := strings.ToLower(left)
	switch {
	case left == "":
		c.form = compatVirtual
	case strings.ContainsAny(lower, "gmkb"):
		c.form = compatBytes
	case strings.Contains(left, "%"):
		c.form = compatRatio
	default:
		c.form = compatFraction
	}
	if c.form == compatVirtual {
		if p := c.readVirtual(right, rightStart); p != nil {
			return p
		}
	} else {
		if strings.Contains(right, ";") {
			e.notes = append(e.notes, "the entries before # decide; the virtual VRAM behind it is without effect on where blocks lie")
		}
		if p := e.readCompatEntries(left); p != nil {
			return p
		}
	}
	compute, _, _ := strings.Cut(right, ";")
	at := Span{rightStart, rightStart + len(compute)}
	if compute == "" {
		compute = "cuda:0"
	}
	d, p := compatName(compute, at)
	c.compute = d
	if p == nil {
		c.publish(e)
	}
	return p
}

// publish fills in what other packages see of the string.
func (c *compatExpr) publish(e *Expr) {
	e.Compute = &c.compute.DeviceRef
	for _, x := range c.entries {
		kind := [...]Kind{compatBytes: Amount, compatRatio: Share, compatFraction: Plain}[c.form]
		if x.rest {
			kind = Rest
		}
		v := Value{Span: x.at, Kind: kind, Number: x.value}
		if kind == Amount {
			v.Bytes = Bytes(min(max(x.value, 0), maxBytes))
		}
		e.Entries = append(e.Entries, Entry{Device: x.DeviceRef, Span: Span{x.Span.Start, x.at.End}, Value: v})
	}
	if c.form == compatVirtual {
		e.Virtual = &Virtual{Bytes: Bytes(min(max(c.virtual*gib, 0), maxBytes))}
		for _, d := range c.donors {
			e.Virtual.Donors = append(e.Virtual.Donors, d.DeviceRef)
		}
	}
}

// compatName reads a device as torch does: no white space, lower case, no leading zeros, index 0 where none is given.
func compatName(s string, at Span) (compatDevice, *problem) {
	id, p := readDevice(strings.TrimFunc(s, unicode.IsSpace))
	switch {
	case p != nil && p.unsupported:
		return compatDevice{}, &problem{at, p.found, p.expected, p.mended, true}
	case p != nil:
		mended := p.mended
		return compatDevice{}, raises(at, fmt.Sprintf("RuntimeError: Invalid device string: '%s'", clip(s)), wantDevice, mended)
	case string(id) != s && string(id) != s+":0" && string(id)+":0" != s || id.Node() != "":
		return compatDevice{}, raises(at, fmt.Sprintf("RuntimeError: Invalid device string: '%s'", clip(s)), "a device of one machine without white space around it", id.Local())
	}
	return compatDevice{s, DeviceRef{at, id}}, nil
}

func (e *Expr) readCompatEntries(left string) *problem {
	c := e.compat
	start := 0
	for item := range strings.SplitSeq(left, ";") {
		at := Span{start, start + len(item)}
		start = at.End + 1
		name, value, ok := strings.Cut(item, ",")
		if !ok {
			if item != "" {
				e.notes = append(e.notes, fmt.Sprintf("%s has no comma and is skipped", quoted(item)))
			}
			continue
		}
		if len(c.entries) == MaxEntries {
			return &problem{Span{at.Start - 1, len(left)}, fmt.Sprintf("more than %d entries", MaxEntries), "fewer", "", false}
		}
		valueAt := Span{at.Start + len(name) + 1, at.End}
		d, p := compatName(name, Span{at.Start, at.Start + len(name)})
		if p != nil {
			return p
		}
		x := compatEntry{compatDevice: d, word: value, at: valueAt}
		if c.form == compatBytes {
			x, p = e.readCompatBytes(x, valueAt)
		} else {
			x.value, p = c.readNumber(value, valueAt, left)
		}
		if p != nil {
			return p
		}
		c.entries = append(c.entries, x)
	}
	e.noteCompat(left)
	if c.form == compatRatio && len(c.entries) > 0 && c.ratioSum() == 0 {
		return raises(Span{len(left) - len(c.entries[len(c.entries)-1].word), len(left)}, "ZeroDivisionError: float division by zero", "ratios that do not sum to 0", "100%")
	}
	return nil
}

// noteCompat says what of the entries may surprise.
func (e *Expr) noteCompat(left string) {
	c := e.compat
	seen := map[string]int{}
	rests := 0
	for _, x := range c.entries {
		seen[x.key]++
		if x.rest {
			rests++
		}
		if seen[x.key] == 2 && !x.rest {
			e.notes = append(e.notes, fmt.Sprintf("%s is named twice: its last amount counts, and what the first took is lost", x.key))
		}
		if c.form == compatFraction && x.value > 1 {
			e.notes = append(e.notes, fmt.Sprintf("%s is asked for more than its memory", x.key))
		}
	}
	if rests > 1 {
		e.notes = append(e.notes, "of several *, the last counts")
	}
	if c.form == compatBytes && rests == 0 {
		e.notes = append(e.notes, "no device has *: cpu takes the rest")
	}
	if c.form == compatRatio && strings.Count(left, "%") < len(c.entries) {
		e.notes = append(e.notes, "one % makes every number a ratio")
	}
}

// readCompatBytes reads as much of a value as looks like an amount.
func (e *Expr) readCompatBytes(x compatEntry, at Span) (compatEntry, *problem) {
	if strings.Contains(x.word, "*") {
		x.rest = true
		if strings.TrimSpace(x.word) != "*" {
			e.notes = append(e.notes, fmt.Sprintf("%s: %s is read as *", x.key, quoted(x.word)))
		}
		return x, nil
	}
	s := strings.ToLower(strings.TrimSpace(x.word))
	digits := 0
	for digits < len(s) && s[digits] >= '0' && s[digits] <= '9' {
		digits++
	}
	if digits == 0 {
		return x, raises(at, "ValueError: Invalid memory string format", "an amount that begins with a digit, such as 2.5gb", compatAmount(s))
	}
	if digits < len(s) && s[digits] == '.' {
		digits++
		for digits < len(s) && s[digits] >= '0' && s[digits] <= '9' {
			digits++
		}
	}
	number, err := strconv.ParseFloat(s[:digits], 64)
	if err != nil {
		number = math.Inf(1) // more digits than a float has
	}
	unit := strings.TrimLeftFunc(s[digits:], unicode.IsSpace)
	scale := 1.0
	if unit != "" {
		scale = map[byte]float64{'g': gib, 'm': mib, 'k': kib}[unit[0]]
		if scale == 0 {
			scale = 1
		}
	}
	x.value = math.Floor(number * scale)
	if meant, p := readValue(s); p != nil || meant.Kind == Plain || meant.Kind == Amount && meant.Bytes != Bytes(x.value) || meant.Kind == Share {
		e.notes = append(e.notes, fmt.Sprintf("%s: %s is read as %s", x.key, quoted(x.word), Bytes(min(x.value, maxBytes))))
	}
	return x, nil
}

// compatAmount is what was probably meant by a value that distorch2 does not read.
func compatAmount(s string) string {
	if v, p := readValue(strings.TrimLeft(s, "+-")); p == nil && v.Kind == Amount {
		return strconv.FormatInt(int64(v.Bytes), 10) + "b"
	}
	return "*"
}

// readNumber is Python's float() of a value without its percent signs.
func (c *compatExpr) readNumber(value string, at Span, left string) (float64, *problem) {
	s := value
	if c.form == compatRatio {
		s = strings.ReplaceAll(value, "%", "")
	}
	if f, ok := pythonFloat(s); ok {
		return f, nil
	}
	mended := "1.0"
	if c.form == compatRatio {
		given := 0.0
		for item := range strings.SplitSeq(left, ";") {
			if _, v, ok := strings.Cut(item, ","); ok {
				if f, ok := pythonFloat(strings.ReplaceAll(v, "%", "")); ok && f > 0 {
					given += f
				}
			}
		}
		mended = strconv.FormatFloat(max(0, 100-given), 'g', 6, 64) + "%"
	}
	return 0, raises(at, fmt.Sprintf("ValueError: could not convert string to float: '%s'", clip(s)), "a number", mended)
}

// pythonFloat reads what Python's float() does.
func pythonFloat(s string) (float64, bool) {
	s = strings.ToLower(strings.TrimSpace(s))
	body := strings.TrimLeft(s, "+-")
	if len(s)-len(body) > 1 {
		return 0, false
	}
	switch body {
	case "inf", "infinity", "nan":
	default:
		for i := range len(body) {
			if body[i] == '_' && (i == 0 || i == len(body)-1 || !isDigit(body[i-1]) || !isDigit(body[i+1])) {
				return 0, false
			}
		}
		body = strings.ReplaceAll(body, "_", "")
		if n := numberLength(body); n == 0 || n != len(body) {
			return 0, false
		}
	}
	f, _ := strconv.ParseFloat(body, 64) // out of range is infinite in both languages
	if s[0] == '-' {
		f = -f
	}
	return f, true
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func (c *compatExpr) readVirtual(right string, start int) *problem {
	parts := strings.Split(right, ";")
	whole := Span{start, start + len(right)}
	compute := parts[0]
	if _, p := compatName(compute, whole); p != nil {
		compute = "cuda:0"
	}
	const expected = "#COMPUTE;GB;DONOR, or entries before #"
	prefix := "#"
	if start > 0 {
		prefix = ""
	}
	switch {
	case len(parts) < 3:
		return raises(whole, fmt.Sprintf("ValueError: not enough values to unpack (expected 3, got %d)", len(parts)), expected, prefix+compute+";4.0;cpu")
	case len(parts) > 3:
		return raises(whole, "ValueError: too many values to unpack (expected 3)", expected, strings.Join(parts[:3], ";"))
	}
	at := Span{start + len(parts[0]) + 1, start + len(parts[0]) + 1 + len(parts[1])}
	f, ok := pythonFloat(parts[1])
	if !ok {
		return raises(at, fmt.Sprintf("ValueError: could not convert string to float: '%s'", clip(parts[1])), "GB as a number without a unit, such as 4.0", "4.0")
	}
	c.virtual = f
	begin := at.End + 1
	for donor := range strings.SplitSeq(parts[2], ",") {
		if len(c.donors) == MaxEntries {
			return &problem{Span{begin - 1, whole.End}, fmt.Sprintf("more than %d donors", MaxEntries), "fewer", "", false}
		}
		d, p := compatName(donor, Span{begin, begin + len(donor)})
		if p != nil {
			return p
		}
		c.donors = append(c.donors, d)
		begin += len(donor) + 1
	}
	return nil
}

// ratioSum is over what is left when later entries have replaced earlier ones of their device.
func (c *compatExpr) ratioSum() (sum float64) {
	for i, x := range c.entries {
		if !slices.ContainsFunc(c.entries[i+1:], func(y compatEntry) bool { return y.key == x.key }) {
			sum += x.value
		}
	}
	return sum
}
