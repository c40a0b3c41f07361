// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package allocation

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Span is a piece of the string: bytes [Start, End).
type Span struct{ Start, End int }

// Expr is an allocation string that was read.
type Expr struct {
	Text    string
	Mode    Mode
	Entries []Entry     // in written order; empty in the virtual VRAM form
	Virtual *Virtual    // nil if the string has none; without effect beside entries
	Compute *DeviceRef  // nil: the mode's own
	compat  *compatExpr // distorch2's reading
	notes   []string    // what was read otherwise than it looks
	shares  bool        // a % is somewhere: numbers without a unit are percentages
}

// Entry is DEVICE,VALUE.
type Entry struct {
	Span   Span
	Device DeviceRef
	Value  Value
}

// DeviceRef is a device as a string names it.
type DeviceRef struct {
	Span Span
	ID   DeviceID
}

// Kind says what a value means.
type Kind int

// The kinds of values.
const (
	Amount Kind = iota // of bytes
	Share              // percent of the model
	Plain              // fraction of the device's memory
	Rest               // "*"
)

// Value is what an entry asks for.
type Value struct {
	Span   Span
	Kind   Kind
	Number float64 // as written, without its unit
	Bytes  Bytes   // of an Amount
	note   string
}

// Virtual is virtual VRAM: so many bytes of the model lie on donors and not on the compute device.
type Virtual struct {
	Span   Span // of the amount
	Bytes  Bytes
	Donors []DeviceRef // empty: the cpu of the compute device's node
	named  bool        // written as virtual_vram=
}

// SyntaxError says where a string is wrong. Its Nearest string is valid in the same mode.
type SyntaxError struct {
	Text        string
	At          Span   // what is wrong
	Column      int    // 1-based, in characters, of At
	Found       string // what is there
	Expected    string
	Nearest     string
	Unsupported bool // a known kind of device, which distorch does not run
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("allocation string, column %d: %s; want %s; nearest valid string: %s", e.Column, e.Found, e.Expected, shown(e.Nearest))
}

// Picture is the part of the string around the fault, and below it a caret under its first character.
func (e *SyntaxError) Picture() string {
	const before, after = 60, 40
	line := []rune(e.Text)
	at := min(e.Column-1, len(line))
	from, to := max(0, at-before), min(len(line), at+after)
	shown := strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, string(line[from:to]))
	return shown + "\n" + strings.Repeat(" ", at-from) + "^"
}

// problem is a fault in a piece of text, with a change that mends it.
type problem struct {
	at              Span // in the text that was looked at
	found, expected string
	mended          string // what takes the place of the piece
	unsupported     bool
}

// shifted is the problem in a text in which the piece begins at by.
func (p *problem) shifted(by int) *problem {
	p.at.Start += by
	p.at.End += by
	return p
}

const maxMends = 64

// anyString is valid in both modes.
const anyString = "cpu,1b"

// fault makes the error of a problem: the string is mended and read again until it is valid.
func fault(text string, mode Mode, p *problem) *SyntaxError {
	e := &SyntaxError{
		Text: text, At: p.at, Column: utf8.RuneCountInString(text[:p.at.Start]) + 1, Found: p.found, Expected: p.expected, Unsupported: p.unsupported,
	}
	for range maxMends {
		text = text[:p.at.Start] + p.mended + text[p.at.End:]
		if _, p = read(text, mode); p == nil {
			e.Nearest = text
			return e
		}
	}
	e.Nearest = anyString
	return e
}

// quoted shows a piece of a string, which may be long.
func quoted(s string) string {
	if s == "" {
		return "nothing"
	}
	return fmt.Sprintf("%q", clip(s))
}

// shown is a string for a message: as it is, quoted where it has characters that do not print.
func shown(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Sprintf("%q", clip(s))
	}
	return clip(s)
}

func clip(s string) string {
	const most = 200
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
