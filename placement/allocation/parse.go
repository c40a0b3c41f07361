// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package allocation

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"

	"github.com/distorch/distorch/internal/edits"
)

// Bounds of a string.
const (
	MaxLength  = 64 << 10
	MaxEntries = 256
)

// Parse reads a string by the rules of a mode. Its error is a *[SyntaxError].
func Parse(text string, mode Mode) (*Expr, error) {
	if mode != Distorch2 {
		mode = Default
	}
	e, p := read(text, mode)
	if p != nil {
		return nil, fault(text, mode, p)
	}
	return e, nil
}

func read(text string, mode Mode) (*Expr, *problem) {
	if len(text) > MaxLength {
		return nil, &problem{Span{0, len(text)}, fmt.Sprintf("a string of %d bytes", len(text)), fmt.Sprintf("at most %d", MaxLength), anyString, false}
	}
	e := &Expr{Text: text, Mode: mode}
	if mode == Distorch2 {
		p := e.readCompat()
		return e, p
	}
	left, right, marked := strings.Cut(text, "#")
	if marked {
		if p := e.readRight(right, len(left)+1); p != nil {
			return nil, p
		}
	}
	if p := e.readLeft(left); p != nil {
		return nil, p
	}
	if len(e.Entries) == 0 && e.Virtual == nil && e.Compute == nil {
		return nil, &problem{Span{0, len(text)}, "the string names no device", "DEVICE,AMOUNT;… or #COMPUTE", "cpu,*", false}
	}
	return e, e.judge()
}

// piece is a part of a text without the white space around it.
type piece struct {
	text string
	Span
}

func trimmed(s string, start int) piece {
	left := strings.TrimLeftFunc(s, unicode.IsSpace)
	start += len(s) - len(left)
	body := strings.TrimRightFunc(left, unicode.IsSpace)
	return piece{body, Span{start, start + len(body)}}
}

// pieces cuts a text at every separator; start is where the text begins.
func pieces(s, separators string, start int) (list []piece) {
	for {
		i := strings.IndexAny(s, separators)
		if i < 0 {
			return append(list, trimmed(s, start))
		}
		list = append(list, trimmed(s[:i], start))
		s, start = s[i+1:], start+i+1
	}
}

func (e *Expr) readLeft(left string) *problem {
	if rest, ok := cutVirtual(left); ok {
		return e.readVirtual(rest, len(left)-len(rest))
	}
	for _, item := range pieces(left, ";", 0) {
		if item.text == "" {
			continue
		}
		if len(e.Entries) == MaxEntries {
			return &problem{Span{item.Start - 1, len(left)}, fmt.Sprintf("more than %d entries", MaxEntries), "fewer", "", false}
		}
		entry, p := readEntry(item)
		if p != nil {
			return p
		}
		e.Entries = append(e.Entries, entry)
		e.shares = e.shares || entry.Value.Kind == Share
		if entry.Value.note != "" {
			e.notes = append(e.notes, entry.Value.note)
		}
	}
	return nil
}

func readEntry(item piece) (Entry, *problem) {
	device, value, ok := strings.Cut(item.text, ",")
	if !ok {
		mended := item.text + ",*"
		if _, p := readDevice(item.text); p != nil {
			mended = ""
		}
		return Entry{}, &problem{item.Span, quoted(item.text) + " has no comma", "DEVICE,AMOUNT", mended, false}
	}
	d, v := trimmed(device, item.Start), trimmed(value, item.Start+len(device)+1)
	id, p := readDevice(d.text)
	if p != nil {
		return Entry{}, p.shifted(d.Start)
	}
	read, p := readValue(v.text)
	if p != nil {
		return Entry{}, p.shifted(v.Start)
	}
	read.Span = v.Span
	if read.note != "" {
		read.note = fmt.Sprintf("%s: %s", id, read.note)
	}
	return Entry{item.Span, DeviceRef{d.Span, id}, read}, nil
}

const virtualWord = "virtual_vram"

// cutVirtual gives what stands behind "virtual_vram=".
func cutVirtual(left string) (rest string, ok bool) {
	s := strings.TrimLeftFunc(left, unicode.IsSpace)
	if len(s) < len(virtualWord) || !strings.EqualFold(s[:len(virtualWord)], virtualWord) {
		return "", false
	}
	return strings.CutPrefix(strings.TrimLeftFunc(s[len(virtualWord):], unicode.IsSpace), "=")
}

// readVirtual reads "4gb[;donor[,donor…]]", which begins at start.
func (e *Expr) readVirtual(s string, start int) *problem {
	if e.Virtual != nil {
		e.notes = append(e.notes, virtualWord+"= decides; the virtual VRAM behind # is without effect")
	}
	list := pieces(s, ";,", start)
	v, p := readVirtualAmount(list[0])
	if p != nil {
		return p
	}
	v.named = true
	e.Virtual = v
	return e.readDonors(list[1:])
}

func (e *Expr) readDonors(list []piece) *problem {
	for _, d := range list {
		if d.text == "" {
			continue
		}
		if len(e.Virtual.Donors) == MaxEntries {
			return &problem{Span{d.Start - 1, d.End}, fmt.Sprintf("more than %d donors", MaxEntries), "fewer", "", false}
		}
		id, p := readDevice(d.text)
		if p != nil {
			return p.shifted(d.Start)
		}
		e.Virtual.Donors = append(e.Virtual.Donors, DeviceRef{d.Span, id})
	}
	return nil
}

// readVirtualAmount reads bytes; a number without a unit is in GB, as ComfyUI-MultiGPU's widget has it.
func readVirtualAmount(d piece) (*Virtual, *problem) {
	const expected = "virtual VRAM in GB, such as 4.0, or with a unit"
	if d.text == "" {
		return nil, &problem{d.Span, "nothing", expected, "0", false}
	}
	v, p := readValue(d.text)
	switch {
	case p != nil:
		p.shifted(d.Start)
		p.expected = expected
		if p.mended == "*" {
			p.mended = "0"
		}
		return nil, p
	case v.Kind == Plain && v.Number < maxBytes/gib:
		return &Virtual{Span: d.Span, Bytes: Bytes(v.Number * gib)}, nil
	case v.Kind == Amount:
		return &Virtual{Span: d.Span, Bytes: v.Bytes}, nil
	}
	return nil, &problem{d.Span, quoted(d.text), expected, "0", false}
}

// readRight reads "compute[;vv[;donor[,donor…]]]", which begins at start.
func (e *Expr) readRight(right string, start int) *problem {
	if i := strings.IndexByte(right, '#'); i >= 0 {
		return &problem{Span{start + i, start + len(right)}, "a second #", "one # before the compute device", "", false}
	}
	list := pieces(right, ";", start)
	if c := list[0]; c.text != "" {
		id, p := readDevice(c.text)
		if p != nil {
			return p.shifted(c.Start)
		}
		e.Compute = &DeviceRef{c.Span, id}
	}
	for len(list) > 1 && list[len(list)-1].text == "" {
		list = list[:len(list)-1]
	}
	if len(list) == 1 {
		return nil
	}
	if len(list) > 3 {
		return &problem{Span{list[2].End, list[3].Start}, "a fourth part behind #", "donors separated by commas", ",", false}
	}
	v, p := readVirtualAmount(list[1])
	if p != nil {
		return p
	}
	e.Virtual = v
	if len(list) == 3 {
		return e.readDonors(pieces(right[list[2].Start-start:list[2].End-start], ",", list[2].Start))
	}
	return nil
}

// judge looks at values that depend on each other.
func (e *Expr) judge() *problem {
	if len(e.Entries) > 0 && e.Virtual != nil {
		e.notes = append(e.notes, "the entries before # decide; the virtual VRAM behind it is without effect")
	}
	if e.shares {
		if e.Normalised() && e.shareSum() <= 0 {
			v := e.Entries[len(e.Entries)-1].Value.Span
			return &problem{v, "the percentages sum to nothing", "one above 0", "100%", false}
		}
		return nil
	}
	allPlain := true
	for _, x := range e.Entries {
		allPlain = allPlain && x.Value.Kind == Plain
	}
	for _, x := range e.Entries {
		if x.Value.Kind != Plain || x.Value.Number <= 1 {
			continue
		}
		unit := "b"
		switch {
		case allPlain:
			unit = "%"
		case x.Value.Number < 1024:
			unit = "gb"
		}
		number := e.Text[x.Value.Span.Start:x.Value.Span.End]
		return &problem{x.Value.Span, quoted(number) + " has no unit and is more than 1", "a fraction of the device's memory from 0 to 1, or a unit (b, kb, mb, gb, tb, %)", number + unit, false}
	}
	return nil
}

// Normalised is true of a string whose values are all shares of the model: they are taken by their sum.
func (e *Expr) Normalised() bool {
	for _, x := range e.Entries {
		if x.Value.Kind != Share && x.Value.Kind != Plain {
			return false
		}
	}
	return e.shares
}

func (e *Expr) shareSum() (sum float64) {
	for _, x := range e.Entries {
		sum += x.Value.Number
	}
	return sum
}

const (
	wantValue = "an amount (2.5gb), a share of the model (25%), a fraction of the device's free memory (0.5) or *"
	wantUnit  = "b, kb, mb, gb, tb or %"
)

var units = map[string]Bytes{
	"b": 1, "k": kib, "kb": kib, "kib": kib, "m": mib, "mb": mib, "mib": mib, "g": gib, "gb": gib, "gib": gib, "t": tib, "tb": tib, "tib": tib,
}

// readValue reads a trimmed value.
func readValue(s string) (Value, *problem) {
	whole := Span{0, len(s)}
	switch {
	case s == "*":
		return Value{Kind: Rest}, nil
	case s == "":
		return Value{}, &problem{whole, "no amount", wantValue, "*", false}
	case s[0] == '-' || s[0] == '+':
		return Value{}, &problem{Span{0, 1}, quoted(s) + " has a sign", "an amount without one", "", false}
	}
	n := numberLength(s)
	if n == 0 {
		return Value{}, &problem{whole, quoted(s) + " is no amount", wantValue, "*", false}
	}
	number, err := strconv.ParseFloat(s[:n], 64)
	if err != nil || number > maxBytes {
		return Value{}, &problem{whole, quoted(s) + " is too much", "an amount below 65536 TB", "*", false}
	}
	unit := trimmed(s[n:], n)
	switch scale, known := units[strings.ToLower(unit.text)]; {
	case unit.text == "":
		return Value{Kind: Plain, Number: number}, nil
	case unit.text == "%":
		return Value{Kind: Share, Number: number}, nil
	case known && number*float64(scale) > maxBytes:
		return Value{}, &problem{whole, quoted(s) + " is too much", "an amount below 65536 TB", "*", false}
	case known:
		return Value{Kind: Amount, Number: number, Bytes: Bytes(math.Floor(number * float64(scale)))}, nil
	}
	if head, ok := strings.CutSuffix(unit.text, "*"); ok {
		head = strings.ToLower(strings.TrimSpace(head))
		if _, known := units[head]; known || head == "" || head == "%" {
			return Value{Kind: Rest, note: fmt.Sprintf("%q is read as *: the number before it is without effect", s)}, nil
		}
	}
	return Value{}, badUnit(unit)
}

func badUnit(unit piece) *problem {
	if i := strings.IndexByte(unit.text, ','); i >= 0 {
		return &problem{Span{unit.Start + i, unit.Start + i + 1}, "a second comma", "; between entries", ";", false}
	}
	mended := "gb"
	if c := strings.ToLower(unit.text[:1]); strings.Contains("bkmgt", c) {
		mended = strings.TrimSuffix(c, "b") + "b"
	}
	return &problem{unit.Span, quoted(unit.text) + " is no unit", wantUnit, mended, false}
}

// numberLength is how many bytes of s are an unsigned decimal number.
func numberLength(s string) int {
	digits := func(i int) int {
		for i < len(s) && s[i] >= '0' && s[i] <= '9' {
			i++
		}
		return i
	}
	n := digits(0)
	whole := n > 0
	if n < len(s) && s[n] == '.' {
		end := digits(n + 1)
		if !whole && end == n+1 {
			return 0
		}
		n, whole = end, true
	}
	if !whole {
		return 0
	}
	if n < len(s) && (s[n] == 'e' || s[n] == 'E') {
		exponent := n + 1
		if exponent < len(s) && (s[exponent] == '+' || s[exponent] == '-') {
			exponent++
		}
		if end := digits(exponent); end > exponent {
			n = end
		}
	}
	return n
}

const wantDevice = "cuda:N (NVIDIA, and AMD with ROCm), xpu:N, mps or cpu, with NODE/ before it if wanted"

// unsupported are kinds of devices that ComfyUI may show and distorch does not run, with what takes their place in the
// nearest string.
var unsupported = map[string]string{
	"npu": "cpu", "mlu": "cpu", "directml": "cpu", "privateuseone": "cpu", "dml": "cpu", "hpu": "cpu", "ipu": "cpu", "xla": "cpu", "tpu": "cpu",
	"vulkan": "cpu", "opencl": "cpu", "meta": "cpu",
}

// otherNames are wrong names of what is supported.
var otherNames = map[string]string{"rocm": "cuda", "hip": "cuda", "gpu": "cuda", "nvidia": "cuda", "metal": "mps", "ram": "cpu", "host": "cpu"}

const maxIndex = 9999

// readDevice reads a trimmed name and gives it as it is written everywhere else: lower case, with an index where the kind
// has one.
func readDevice(s string) (DeviceID, *problem) {
	if s == "" {
		return "", &problem{Span{0, 0}, "no device", wantDevice, "cpu", false}
	}
	slash := strings.LastIndexByte(s, '/')
	node, local := s[:max(slash, 0)], s[slash+1:]
	if slash >= 0 && !nodeName(node) {
		return "", &problem{Span{0, slash + 1}, fmt.Sprintf("%s is no node's name", quoted(node)), "letters, digits, dots, dashes and underscores before the slash", "", false}
	}
	kind, index, indexed := strings.Cut(strings.ToLower(local), ":")
	at := Span{slash + 1, len(s)}
	prefix := s[:slash+1]
	switch kind {
	case "cpu", "mps":
		if !indexed || index == "0" {
			return DeviceID(prefix + kind), nil
		}
		return "", &problem{at, fmt.Sprintf("there is no %s: %s has no index", quoted(local), kind), wantDevice, kind, false}
	case "cuda", "xpu", "sim": // sim: a simulated device of a test cluster
		if !indexed {
			return DeviceID(prefix + kind + ":0"), nil
		}
		n, err := strconv.ParseUint(index, 10, 16)
		if err != nil || n > maxIndex {
			return "", &problem{at, fmt.Sprintf("%s: %s is no index", quoted(local), quoted(index)), kind + ":N with a number N", kind + ":0", false}
		}
		return DeviceID(fmt.Sprintf("%s%s:%d", prefix, kind, n)), nil
	}
	if other, ok := unsupported[kind]; ok {
		return "", &problem{at, fmt.Sprintf("%s devices are not supported (%s)", kind, quoted(local)), wantDevice, other, true}
	}
	return "", unknownDevice(local, kind, index, at)
}

func unknownDevice(local, kind, index string, at Span) *problem {
	p := &problem{at, quoted(local) + " is no device", wantDevice, "", false}
	nearest, ok := otherNames[kind]
	fewest := len(kind) + 10
	for _, k := range [...]string{"cuda", "cpu", "xpu", "mps"} {
		if d := edits.Distance(kind, k); !ok && d < fewest {
			nearest, fewest = k, d
		}
	}
	if nearest == "cuda" || nearest == "xpu" {
		if n, err := strconv.ParseUint(index, 10, 16); err == nil && n <= maxIndex {
			nearest = fmt.Sprintf("%s:%d", nearest, n)
		} else {
			nearest += ":0"
		}
	}
	p.mended = nearest
	return p
}

func nodeName(s string) bool {
	for _, r := range s {
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("._-", r) {
			return false
		}
	}
	return s != ""
}
