// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package forecast

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// failer is what *testing.T and *rapid.T have in common.
type failer interface {
	Helper()
	Fatal(args ...any)
}

// published are the tables of ComfyUI-MultiGPU's own benchmark.
func published(t testing.TB) (flux, qwen *Table) {
	t.Helper()
	var tables []*Table
	for _, name := range []string{"flux-q8", "qwen-fp8"} {
		text, err := os.ReadFile(filepath.Join("testdata", "distorch-published-"+name+".csv"))
		if err != nil {
			t.Fatal(err)
		}
		table, err := Parse(name, bytes.NewReader(text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		tables = append(tables, table)
	}
	return tables[0], tables[1]
}

func validate(t failer, tables ...*Table) *Report {
	t.Helper()
	r, err := Validate(tables...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestPublished: two rows of each link forecast its others within the limits that
// the method claims, and the cruder rules do not.
func TestPublished(t *testing.T) {
	flux, qwen := published(t)
	if flux.Forwards != 1 || qwen.Forwards != 2 {
		t.Errorf("%d and %d forwards per iteration, want 1 and 2", flux.Forwards, qwen.Forwards)
	}
	r := validate(t, flux, qwen)
	other := r.Baselines.OtherTable
	if other == nil || other.From != "flux-q8" {
		t.Fatalf("constants of another table: %+v", other)
	}
	if r.Mean > 0.02 || r.Worst > 0.06 {
		t.Errorf("mean error %.4f, worst %.4f; want at most 0.02 and 0.06", r.Mean, r.Worst)
	}
	for _, c := range []struct {
		what      string
		got, want float64
	}{
		{"compared", float64(r.Compared), 31},
		{"mean", r.Mean, 0.0107},
		{"worst", r.Worst, 0.0582},
		{"mean of flux", r.Tables[0].Mean, 0.0068},
		{"mean of qwen", r.Tables[1].Mean, 0.0135},
		{"no slowdown", r.Baselines.NoSlowdown.Mean, 0.3589},
		{"no slowdown, worst", r.Baselines.NoSlowdown.Worst, 0.8489},
		{"rows by flux's constants", float64(other.Compared), 23},
		{"flux's constants", other.Mean, 0.1174},
		{"flux's constants on the predicted rows", other.SameRows.Mean, 0.1311},
		{"flux's constants, worst", other.Worst, 0.4286},
		{"overlap's saving", r.Overlap.MeanSaving, 0.2633},
		{"nvlink, GB/s", r.Tables[0].Columns[2].GBPerSecond, 50},
	} {
		if math.Abs(c.got-c.want) > 5e-5 {
			t.Errorf("%s: %.4f, want %.4f", c.what, c.got, c.want)
		}
	}
}

func TestOtherTableNeedsACommonName(t *testing.T) {
	flux, qwen := published(t)
	if r := validate(t, qwen); r.Baselines.OtherTable != nil || len(r.Tables) != 1 {
		t.Errorf("one table alone: %+v", r.Baselines.OtherTable)
	}
	renamed := &Table{Name: "renamed", Forwards: 1}
	for _, c := range flux.Columns {
		renamed.Columns = append(renamed.Columns, Column{"x" + c.Name, c.Samples})
	}
	if r := validate(t, renamed, qwen); r.Baselines.OtherTable != nil {
		t.Errorf("no name in common: %+v", r.Baselines.OtherTable)
	}
}

func TestLine(t *testing.T) {
	l := Fit(Sample{0, 2}, Sample{4, 3})
	if diff := cmp.Diff(Line{2, 0.25}, l); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, c := range []struct{ got, want float64 }{
		{l.At(8), 4}, {l.Overlapped(4), 2}, {l.Overlapped(12), 3}, {l.GBPerSecond(1), 4}, {l.GBPerSecond(2), 8}, {Line{1, -1}.GBPerSecond(1), 0},
		{Line{1, -1}.Overlapped(5), 1},
	} {
		if c.got != c.want {
			t.Errorf("got %v, want %v", c.got, c.want)
		}
	}
}

func TestValidateRefuses(t *testing.T) {
	good := []Sample{{0, 1}, {1, 2}, {2, 3}}
	edit := func(i int, s Sample) Table {
		c := slices.Clone(good)
		c[i] = s
		return Table{"t", 1, []Column{{"c", c}}}
	}
	for want, table := range map[string]Table{
		"0 forwards":       {"t", 0, []Column{{"c", good}}},
		"2 samples":        {"t", 1, []Column{{"c", good[:2]}}},
		"offloads 0.5 GB":  edit(0, Sample{0.5, 1}),
		"offload 1 GB is":  edit(2, Sample{1, 1}),
		"offload NaN GB":   edit(1, Sample{math.NaN(), 1}),
		"offload +Inf GB":  edit(2, Sample{math.Inf(1), 1}),
		"NaN seconds":      edit(1, Sample{1, math.NaN()}),
		"0 seconds at 0":   edit(0, Sample{0, 0}),
		"+Inf seconds at ": edit(2, Sample{2, math.Inf(1)}),
	} {
		if _, err := Validate(&table); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `table "t"`) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	if r, err := Validate(); err != nil || r.Compared != 0 {
		t.Errorf("no tables: %+v, %v", r, err)
	}
}

func drawTable(t *rapid.T) *Table {
	table := &Table{Name: "drawn", Forwards: rapid.IntRange(1, 4).Draw(t, "forwards")}
	for i := range rapid.IntRange(1, 4).Draw(t, "columns") {
		c := Column{Name: fmt.Sprint("link", i)}
		offload := 0.0
		for range rapid.IntRange(3, 8).Draw(t, "rows") {
			c.Samples = append(c.Samples, Sample{offload, rapid.Float64Range(0.1, 100).Draw(t, "seconds")})
			offload += rapid.Float64Range(0.1, 10).Draw(t, "more")
		}
		table.Columns = append(table.Columns, c)
	}
	return table
}

var nearly = cmpopts.EquateApprox(1e-9, 1e-9)

// TestLinesAreRecovered: what lies on a line is forecast without error.
func TestLinesAreRecovered(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := drawTable(t)
		var want []Line
		for _, c := range table.Columns {
			l := Line{rapid.Float64Range(0.1, 10).Draw(t, "base"), rapid.Float64Range(0.01, 10).Draw(t, "slope")}
			for i := range c.Samples {
				c.Samples[i].Seconds = l.At(c.Samples[i].OffloadGB)
			}
			want = append(want, l)
		}
		r := validate(t, table)
		for i, c := range r.Tables[0].Columns {
			if diff := cmp.Diff(want[i], c.Line(), nearly); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
			if rate := c.GBPerSecond * want[i].SecondsPerGB; math.Abs(rate-float64(table.Forwards)) > 1e-6 {
				t.Fatalf("rate times slope is %v", rate)
			}
		}
		if r.Worst > 1e-9 {
			t.Fatalf("worst error %v", r.Worst)
		}
	})
}

// TestUnitsScale: times in another unit scale the forecast, offloads in another
// unit the rate; errors do not move.
func TestUnitsScale(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := drawTable(t)
		seconds, gb := rapid.Float64Range(0.5, 100).Draw(t, "seconds"), rapid.Float64Range(0.5, 100).Draw(t, "gb")
		want := validate(t, table, table)
		scaled := &Table{Name: table.Name, Forwards: table.Forwards}
		for _, c := range table.Columns {
			s := Column{Name: c.Name}
			for _, x := range c.Samples {
				s.Samples = append(s.Samples, Sample{x.OffloadGB * gb, x.Seconds * seconds})
			}
			scaled.Columns = append(scaled.Columns, s)
		}
		got := validate(t, scaled, scaled)
		for i := range want.Tables {
			for j := range want.Tables[i].Columns {
				c := &want.Tables[i].Columns[j]
				c.BaseSeconds *= seconds
				c.SecondsPerGB *= seconds / gb
				c.GBPerSecond *= gb / seconds
				for k := range c.Rows {
					x := &c.Rows[k]
					x.OffloadGB, x.Measured, x.Predicted, x.Overlapped = x.OffloadGB*gb, x.Measured*seconds, x.Predicted*seconds, x.Overlapped*seconds
				}
			}
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateApprox(1e-6, 1e-9)); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	})
}

// TestALaterRowChangesNoOther: only the two smallest offloads are fitted.
func TestALaterRowChangesNoOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := drawTable(t)
		want := validate(t, table).Tables[0]
		i := rapid.IntRange(0, len(table.Columns)-1).Draw(t, "column")
		c := &table.Columns[i]
		last := c.Samples[len(c.Samples)-1]
		c.Samples = append(c.Samples, Sample{last.OffloadGB + 1, rapid.Float64Range(0.1, 1e6).Draw(t, "outlier")})
		got := validate(t, table).Tables[0]
		grown := got.Columns[i].Rows
		got.Columns[i].Rows = grown[:len(grown)-1]
		sums := cmpopts.IgnoreTypes(Errors{})
		if diff := cmp.Diff(want, got, sums); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
		if got.Compared != want.Compared+1 {
			t.Fatalf("%d rows compared, then %d", want.Compared, got.Compared)
		}
	})
}
