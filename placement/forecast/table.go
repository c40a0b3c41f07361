// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package forecast

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of a table. Times and offloads outside them are refused, so that no
// quotient of two overflows.
const (
	maxFileBytes   = 1 << 20
	maxRows        = 1000
	maxColumns     = 100
	maxNameBytes   = 100
	leastSamples   = 3 // two to fit, one to predict
	leastOffloadGB = 1e-9
	mostOffloadGB  = 1e9
	leastSeconds   = 1e-9
	mostSeconds    = 1e9
	maxForwards    = 100
)

const offloadColumn = "offload_gb"

// Sample is one measurement.
type Sample struct {
	OffloadGB float64 // GB (10^9 bytes) of weights kept off the compute device
	Seconds   float64 // of one iteration
}

// Column is one kind of link.
type Column struct {
	Name    string
	Samples []Sample // by ascending offload; the first has none
}

// Table is what one file holds: one model on one compute device.
type Table struct {
	Name     string
	Forwards int // forward passes per iteration, at least 1: 2 where CFG is not batched
	Columns  []Column
}

// SyntaxError is what is wrong with a file, and where.
type SyntaxError struct {
	Line, Column int // from 1; columns count bytes
	Problem      string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("%d:%d: %s", e.Line, e.Column, e.Problem) }

func wrong(line, column int, format string, args ...any) error {
	return &SyntaxError{line, column, fmt.Sprintf(format, args...)}
}

// Parse reads a table: CSV with the header offload_gb and a name for each link,
// then a row per offload, ascending and beginning with 0, in seconds per
// iteration. A cell may be empty but for the first row's; each link has three
// values at least. Lines that begin with # are comments; the first that says "N
// forward passes per iteration" (a number, or one to four as words) sets
// Forwards, which is 1 otherwise. Errors of content are *SyntaxError.
func Parse(name string, r io.Reader) (*Table, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFileBytes {
		return nil, wrong(1, 1, "more than %d bytes; a table of measurements is smaller", maxFileBytes)
	}
	content := strings.TrimPrefix(string(text), "\ufeff") // Excel's
	p := &parser{csv: csv.NewReader(strings.NewReader(content)), table: &Table{Name: name, Forwards: 1}, offload: math.Inf(-1)}
	p.csv.Comment, p.csv.FieldsPerRecord, p.csv.ReuseRecord = '#', -1, true
	if p.table.Forwards, err = forwards(content); err != nil {
		return nil, err
	}
	return p.table, p.read()
}

var forwardPasses = regexp.MustCompile(`(?i)\b(one|two|three|four|[0-9]{1,9})\s+forward\s+pass(?:es)?\s+per\s+iteration\b`)

// forwards looks for the number of passes in the comments.
func forwards(content string) (int, error) {
	line := 0
	for s := range strings.Lines(content) {
		line++
		if !strings.HasPrefix(s, "#") {
			continue
		}
		at := forwardPasses.FindStringSubmatchIndex(s)
		if at == nil {
			continue
		}
		word := strings.ToLower(s[at[2]:at[3]])
		if n, ok := map[string]int{"one": 1, "two": 2, "three": 3, "four": 4}[word]; ok {
			return n, nil
		}
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 || n > maxForwards {
			return 0, wrong(line, at[2]+1, "%s forward passes per iteration; want 1 to %d", word, maxForwards)
		}
		return n, nil
	}
	return 1, nil
}

type parser struct {
	csv     *csv.Reader
	table   *Table
	offload float64 // of the row before
	rows    int
	heads   [][2]int // line and column of each link's name
}

func (p *parser) read() error {
	line := 1
	for {
		cells, err := p.csv.Read()
		if syntax, ok := errors.AsType[*csv.ParseError](err); ok {
			return wrong(syntax.Line, syntax.Column, "%v", syntax.Err)
		}
		if errors.Is(err, io.EOF) {
			return p.finish(line)
		}
		if err != nil {
			return err
		}
		line, _ = p.csv.FieldPos(len(cells) - 1)
		if p.heads == nil {
			err = p.header(cells)
		} else {
			err = p.row(cells)
		}
		if err != nil {
			return err
		}
	}
}

func (p *parser) wrong(cell int, format string, args ...any) error {
	line, column := p.csv.FieldPos(cell)
	return wrong(line, column, format, args...)
}

func (p *parser) header(cells []string) error {
	if first := strings.TrimSpace(cells[0]); first != offloadColumn {
		return p.wrong(0, "the first column is %.100q; want %q, then a name for each link, separated by commas", first, offloadColumn)
	}
	if len(cells) < 2 || len(cells) > maxColumns+1 {
		return p.wrong(len(cells)-1, "%d links; want 1 to %d", len(cells)-1, maxColumns)
	}
	seen := map[string]bool{offloadColumn: true}
	p.heads = make([][2]int, 0, len(cells)-1)
	for i := 1; i < len(cells); i++ {
		name := strings.TrimSpace(cells[i])
		switch {
		case name == "":
			return p.wrong(i, "this column has no name")
		case len(name) > maxNameBytes || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
			return p.wrong(i, "the name %.100q is longer than %d bytes or not plain text", name, maxNameBytes)
		case seen[name]:
			return p.wrong(i, "two columns are named %q", name)
		}
		seen[name] = true
		line, column := p.csv.FieldPos(i)
		p.heads = append(p.heads, [2]int{line, column})
		p.table.Columns = append(p.table.Columns, Column{Name: strings.Clone(name)})
	}
	return nil
}

func (p *parser) row(cells []string) error {
	if len(cells) != len(p.heads)+1 {
		return p.wrong(len(cells)-1, "%d cells; the header has %d (leave a cell empty where nothing was measured)", len(cells), len(p.heads)+1)
	}
	if p.rows++; p.rows > maxRows {
		return p.wrong(0, "more than %d rows", maxRows)
	}
	offload, err := p.number(0, cells[0], 0, mostOffloadGB, "an offload in GB")
	switch {
	case err != nil:
		return err
	case p.rows == 1 && offload != 0:
		return p.wrong(0, "the first row offloads %s GB; want 0, the time with all weights on the compute device", cells[0])
	case p.rows > 1 && offload-p.offload < leastOffloadGB:
		return p.wrong(0, "offload %s after %v: want ascending offloads, each once", cells[0], p.offload)
	}
	p.offload = offload
	for i := range p.table.Columns {
		c := &p.table.Columns[i]
		if strings.TrimSpace(cells[i+1]) == "" {
			if p.rows == 1 {
				return p.wrong(i+1, "%q has no time at offload 0, which all others are compared with", c.Name)
			}
			continue
		}
		seconds, err := p.number(i+1, cells[i+1], leastSeconds, mostSeconds, "seconds per iteration")
		if err != nil {
			return err
		}
		c.Samples = append(c.Samples, Sample{offload, seconds})
	}
	return nil
}

func (p *parser) number(cell int, text string, low, high float64, what string) (float64, error) {
	text = strings.TrimSpace(text)
	v, err := strconv.ParseFloat(text, 64)
	switch {
	case errors.Is(err, strconv.ErrSyntax) || math.IsNaN(v):
		return 0, p.wrong(cell, "%.40q is not a number; want %s", text, what)
	case v < 0:
		return 0, p.wrong(cell, "%.40s is negative; want %s", text, what)
	case !(v >= low && v <= high):
		return 0, p.wrong(cell, "%.40s is out of range; want %s from %g to %g", text, what, low, high)
	}
	return v, nil
}

func (p *parser) finish(line int) error {
	if p.heads == nil {
		return wrong(line, 1, "the file is empty; want a header %q with a name for each link, then rows", offloadColumn)
	}
	if p.rows < leastSamples {
		return wrong(line, 1, "%d rows; want %d at least: two to fit and one to predict", p.rows, leastSamples)
	}
	for i, c := range p.table.Columns {
		if len(c.Samples) < leastSamples {
			return wrong(p.heads[i][0], p.heads[i][1], "%q has %d values; want %d at least: two to fit and one to predict", c.Name, len(c.Samples), leastSamples)
		}
	}
	return nil
}
