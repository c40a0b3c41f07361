// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package output writes what commands show: tables, JSON or YAML, and progress
// as a bar on a terminal and as plain lines elsewhere.
//
// The commands import it; of distorch it imports internal/edits alone.
package output

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/distorch/distorch/internal/edits"
)

// Format is how a result is printed. It is a flag value.
type Format string

// The formats.
const (
	Table Format = "table"
	JSON  Format = "json"
	YAML  Format = "yaml"
)

// Formats are the names of all formats.
func Formats() []string { return []string{string(Table), string(JSON), string(YAML)} }

// Set reads the format given as a flag.
func (f *Format) Set(s string) error {
	if err := OneOf(s, Formats()); err != nil {
		return err
	}
	*f = Format(s)
	return nil
}

func (f *Format) String() string { return string(*f) }

// Type names the format in a flag's help.
func (f *Format) Type() string { return strings.Join(Formats(), "|") }

// OneOf is the error of a word that is none of a list's; it names the nearest.
func OneOf(word string, list []string) error {
	if slices.Contains(list, word) {
		return nil
	}
	return fmt.Errorf("%q: want %s%s", word, Or(list), DidYouMean(word, list))
}

// Or lists words: "table, json or yaml".
func Or(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}

// DidYouMean is the end of a sentence that names the nearest of the candidates,
// empty if none is near.
func DidYouMean(word string, candidates []string) string {
	if near := edits.Nearest(word, candidates); near != "" {
		return fmt.Sprintf(", did you mean %q?", near)
	}
	return ""
}

// Write prints a value as JSON or YAML; a table is its owner's to print.
func Write(w io.Writer, f Format, v any) error {
	switch f {
	case JSON:
		return WriteJSON(w, v)
	case YAML:
		return WriteYAML(w, v)
	}
	return fmt.Errorf("%T cannot be written as %s", v, f)
}

// WriteJSON prints a value as indented JSON and a line end.
func WriteJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// WriteTable prints rows in columns below a header, which may be nil. Control characters in
// cells, which may come from files and other machines, are shown quoted.
func WriteTable(w io.Writer, header []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	if header != nil {
		rows = append([][]string{header}, rows...)
	}
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, c := range row {
			cells[i] = Clean(c)
			if cells[i] == "" {
				cells[i] = "-"
			}
		}
		if _, err := fmt.Fprintln(tw, strings.Join(cells, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// Clean makes text of another machine safe for a terminal: one line, no
// control characters.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0:
			return '?'
		}
		return r
	}, s)
}

// Seconds shows a time with three digits: "1.24 s", "38.1 ms".
func Seconds(s float64) string {
	switch {
	case s >= 100:
		return fmt.Sprintf("%.0f s", s)
	case s >= 10:
		return fmt.Sprintf("%.1f s", s)
	case s >= 1:
		return fmt.Sprintf("%.2f s", s)
	case s >= 1e-3:
		return fmt.Sprintf("%.3g ms", s*1e3)
	case s > 0:
		return fmt.Sprintf("%.3g µs", s*1e6)
	}
	return "0 s"
}

// Duration is Seconds of a time.Duration.
func Duration(d time.Duration) string { return Seconds(d.Seconds()) }

// Bytes shows an amount in decimal units: "23.8 GB".
func Bytes(n uint64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	return scale(float64(n), "B")
}

// Rate shows a speed in decimal units per second: Rate(1.2e9, "B") is "1.20 GB/s".
func Rate(v float64, unit string) string {
	if v <= 0 {
		return ""
	}
	return scale(v, unit) + "/s"
}

// Count shows a number in decimal units: Count(3.1e12, "FLOP") is "3.10 TFLOP".
func Count(v float64, unit string) string { return scale(v, unit) }

func scale(v float64, unit string) string {
	prefix := ""
	for _, p := range []string{"k", "M", "G", "T", "P"} {
		if v < 999.5 {
			break
		}
		v, prefix = v/1000, p
	}
	digits := 2
	switch {
	case prefix == "" && v == float64(int64(v)):
		digits = 0
	case v >= 100:
		digits = 0
	case v >= 10:
		digits = 1
	}
	return fmt.Sprintf("%.*f %s%s", digits, v, prefix, unit)
}
