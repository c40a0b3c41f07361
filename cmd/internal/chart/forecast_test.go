// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/placement/forecast"
)

var update = flag.Bool("update", false, "write the generated parts of docs")

const (
	docs   = "../../../docs"
	tables = "../../../placement/forecast/testdata"
	begin  = "<!-- generated: go test ./cmd/internal/chart -update -->\n"
	end    = "<!-- end of generated -->\n"
)

func report(t *testing.T) *forecast.Report {
	t.Helper()
	var parsed []*forecast.Table
	for _, name := range []string{"distorch-published-flux-q8", "distorch-published-qwen-fp8"} {
		text, err := os.ReadFile(filepath.Join(tables, name+".csv"))
		if err != nil {
			t.Fatal(err)
		}
		table, err := forecast.Parse(name, bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, table)
	}
	r, err := forecast.Validate(parsed...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// compare holds a file of docs against what the code makes, or writes it.
func compare(t *testing.T, name, want string) {
	t.Helper()
	path := filepath.Join(docs, name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(want), 0o666); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("docs/%s is not what the code makes; go test ./cmd/internal/chart -update writes it (-want +got):\n%s", name, diff)
	}
}

// TestDocumentedForecast: the plots and tables of docs/forecast.md are the code's.
func TestDocumentedForecast(t *testing.T) {
	r := report(t)
	for _, table := range r.Tables {
		compare(t, "img/forecast-"+strings.TrimPrefix(table.Name, "distorch-published-")+".svg", string(Forecast(table)))
	}
	page, err := os.ReadFile(filepath.Join(docs, "forecast.md"))
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(page), begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("docs/forecast.md lacks the lines\n%s%s", begin, end)
	}
	compare(t, "forecast.md", before+begin+markdown(r)+end+after)
}

func markdown(r *forecast.Report) string {
	var b strings.Builder
	for _, t := range r.Tables {
		fmt.Fprintf(&b, "\n`%s`, forwards per iteration: %d\n\n", t.Name, t.Forwards)
		b.WriteString("| link | base, s | s per GB | GB/s | largest offload, GB | measured, s | forecast, s | overlapped, s | mean error | worst |\n")
		b.WriteString("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
		for _, c := range t.Columns {
			last := c.Rows[len(c.Rows)-1]
			fmt.Fprintf(&b, "| %s | %.2f | %.3f | %.1f | %g | %.2f | %.2f | %.2f | %s | %s |\n", c.Name, c.BaseSeconds, c.SecondsPerGB, c.GBPerSecond,
				last.OffloadGB, last.Measured, last.Predicted, last.Overlapped, Percent(c.Mean), Percent(c.Worst))
		}
	}
	b.WriteString("\n| rule | rows | mean error | worst |\n|---|--:|--:|--:|\n")
	row := func(rule string, e forecast.Errors) {
		fmt.Fprintf(&b, "| %s | %d | %s | %s |\n", rule, e.Compared, Percent(e.Mean), Percent(e.Worst))
	}
	row("two smallest offloads of each link", r.Errors)
	row("no slowdown", r.Baselines.NoSlowdown)
	row("FLUX's seconds per GB on QWEN", r.Baselines.OtherTable.Errors)
	row("the same, on the rows of the first rule", r.Baselines.OtherTable.SameRows)
	fmt.Fprintf(&b, "\nCopies that run under compute would save %s of the measured time of the first rule's rows in the mean, %s at best.\n\n",
		Percent(r.Overlap.MeanSaving), Percent(r.Overlap.BestSaving))
	return b.String()
}

// TestForecastTakesAnyTable: names from files and lines that fall do not break a
// drawing.
func TestForecastTakesAnyTable(t *testing.T) {
	for _, text := range []string{
		"offload_gb,<&>\n0,3\n1,2\n9,1\n",
		"offload_gb," + strings.Repeat("wide", 20) + ",b,c,d\n0,1,1,1,1\n1e-9,1e9,1,1,1\n1e9,1e-9,1,1,1\n",
		"offload_gb,flat\n0,1\n1,1\n2,1\n",
	} {
		table, err := forecast.Parse("a & "+strings.Repeat("long name ", 30), strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		r, err := forecast.Validate(table)
		if err != nil {
			t.Fatal(err)
		}
		drawing := Forecast(r.Tables[0])
		for dec := xml.NewDecoder(bytes.NewReader(drawing)); ; {
			if _, err := dec.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%v in %s", err, drawing)
			}
		}
		for _, bad := range []string{"NaN", "Inf"} {
			if bytes.Contains(drawing, []byte(bad)) {
				t.Errorf("%s in %s", bad, drawing)
			}
		}
	}
}

func TestPercent(t *testing.T) {
	for got, want := range map[string]string{
		Percent(0.0204): "2.0 %", SignedPercent(0.0041): "+0.4 %", SignedPercent(-0.02): "-2.0 %", SignedPercent(-1e-9): "0.0 %", SignedPercent(1e-9): "0.0 %",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := shortened("abcdef", 10, 20); got != "ab…" {
		t.Errorf("shortened to %q", got)
	}
}
