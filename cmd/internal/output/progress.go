// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package output

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

const (
	barWidth   = 30
	drawEvery  = 50 * time.Millisecond
	plainLines = 10 // of one piece of work, at most
)

// Progress shows how far some work has come: on a terminal as a bar that is
// drawn over itself, elsewhere as about ten lines. Safe for concurrent use.
type Progress struct {
	w        io.Writer
	terminal bool
	now      func() time.Time

	mu    sync.Mutex
	drawn time.Time // when the bar was drawn last
	open  bool      // a bar stands on the line
	wide  int       // characters of it
	tenth int       // of the work that was printed last, as plain lines
	label string
}

// NewProgress writes to w, which is a terminal or is not.
func NewProgress(w io.Writer) *Progress {
	f, ok := w.(*os.File)
	return &Progress{w: w, terminal: ok && term.IsTerminal(int(f.Fd())), now: time.Now, tenth: -1}
}

// Terminal says whether bars are drawn.
func (p *Progress) Terminal() bool { return p.terminal }

// Line prints a line of its own.
func (p *Progress) Line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	p.print(fmt.Sprintf(format, args...) + "\n")
}

// Step says that done of total parts of the work named label are done; note is
// shown behind.
func (p *Progress) Step(label string, done, total int64, note string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if label != p.label {
		p.clear()
		p.label, p.tenth = label, -1
	}
	last := done >= total
	if !p.terminal {
		tenth := 0
		if total > 0 {
			tenth = int(done * plainLines / total)
		}
		if tenth > p.tenth {
			p.tenth = tenth
			p.print(strings.TrimRight(fmt.Sprintf("%s %d/%d %s", label, done, total, note), " ") + "\n")
		}
		return
	}
	now := p.now()
	if !last && now.Sub(p.drawn) < drawEvery {
		return
	}
	p.drawn = now
	full := 0
	if total > 0 {
		full = int(min(done, total) * barWidth / total)
	}
	text := fmt.Sprintf("%s [%s%s] %d/%d %s", label, strings.Repeat("=", full), strings.Repeat(" ", barWidth-full), done, total, note)
	p.print("\r" + text + strings.Repeat(" ", max(0, p.wide-len(text))))
	p.open, p.wide = true, len(text)
}

// Done ends the bar's line, if there is one.
func (p *Progress) Done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open {
		p.print("\n")
	}
	p.open, p.wide, p.label, p.tenth = false, 0, "", -1
}

// clear wipes the bar so that a line can stand in its place.
func (p *Progress) clear() {
	if p.open {
		p.print("\r" + strings.Repeat(" ", p.wide) + "\r")
		p.open, p.wide = false, 0
	}
}

// print shows text; progress that cannot be shown is no reason to fail.
func (p *Progress) print(text string) { _, _ = io.WriteString(p.w, text) }
