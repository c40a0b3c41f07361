// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package output

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTable(t *testing.T) {
	var b bytes.Buffer
	if err := WriteTable(&b, []string{"NAME", "STATE"}, [][]string{{"a", "rea\x1b[31mdy"}, {"longer", ""}}); err != nil {
		t.Fatal(err)
	}
	want := "NAME    STATE\na       rea?[31mdy\nlonger  -\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNumbers(t *testing.T) {
	for got, want := range map[string]string{
		Seconds(0): "0 s", Seconds(0.0381): "38.1 ms", Seconds(1.238): "1.24 s", Seconds(123.4): "123 s", Seconds(5e-6): "5 µs",
		Bytes(512): "512 B", Bytes(23_800_000_000): "23.8 GB", Bytes(18_500_000): "18.5 MB",
		Rate(1.2e9, "B"): "1.20 GB/s", Rate(0, "B"): "", Count(3.1e12, "FLOP"): "3.10 TFLOP", Count(999.9e3, "FLOP"): "1.00 MFLOP",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestPlainProgress: a log gets some lines, not one per step.
func TestPlainProgress(t *testing.T) {
	var b bytes.Buffer
	p := NewProgress(&b)
	for i := range int64(101) {
		p.Step("sampling", i, 100, "")
	}
	p.Done()
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != plainLines+1 || lines[0] != "sampling 0/100" || lines[plainLines] != "sampling 100/100" || strings.Contains(b.String(), "\r") {
		t.Errorf("lines: %q", lines)
	}
}

// TestBar: on a terminal the bar is drawn over itself and a line replaces it.
func TestBar(t *testing.T) {
	var b bytes.Buffer
	now := time.Unix(0, 0)
	p := &Progress{w: &b, terminal: true, now: func() time.Time { return now }, tenth: -1}
	p.Step("s", 1, 2, "")
	p.Step("s", 1, 2, "too soon to be drawn")
	p.Line("a line")
	p.Step("s", 2, 2, "")
	p.Done()
	p.Done()
	got := b.String()
	if strings.Contains(got, "too soon") || strings.Count(got, "\n") != 2 || !strings.HasSuffix(got, "] 2/2 \n") ||
		!strings.Contains(got, "\ra line\n") || !strings.Contains(got, strings.Repeat("=", barWidth/2)+strings.Repeat(" ", barWidth/2)) {
		t.Errorf("drawn: %q", got)
	}
}
