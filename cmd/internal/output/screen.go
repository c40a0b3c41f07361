// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package output

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// Screen shows one text after another: on a terminal each in the place of the
// one before, elsewhere one below the other. Not for concurrent use.
type Screen struct {
	w    io.Writer
	size func() (columns, rows int) // nil: no terminal
	last string                     // what stands on the terminal
}

// NewScreen writes to w, which is a terminal or is not.
func NewScreen(w io.Writer) *Screen {
	s := &Screen{w: w}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		s.size = func() (int, int) {
			columns, rows, err := term.GetSize(int(f.Fd()))
			if err != nil {
				return 0, 0
			}
			return columns, rows
		}
	}
	return s
}

// Terminal says whether texts are drawn in place.
func (s *Screen) Terminal() bool { return s.size != nil }

// Show shows a text of whole lines.
func (s *Screen) Show(text string) error {
	before := ""
	if s.size != nil && s.last != "" {
		columns, rows := s.size()
		if n := linesOn(s.last, columns); rows == 0 || n < rows {
			before = fmt.Sprintf("\x1b[%dF\x1b[J", n) // to the first line of the last text, and wipe from there
		} else {
			before = "\x1b[H\x1b[2J" // its beginning has left the screen
		}
	}
	s.last = text
	_, err := io.WriteString(s.w, before+text)
	return err
}

// linesOn is how many lines of a terminal a text takes; long ones wrap.
func linesOn(text string, columns int) int {
	n := 0
	for line := range strings.Lines(text) {
		n++
		if wide := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); columns > 0 && wide > 0 {
			n += (wide - 1) / columns
		}
	}
	return n
}
