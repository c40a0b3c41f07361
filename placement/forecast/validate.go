// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package forecast

import (
	"fmt"
	"math"
	"slices"
)

// Errors sums up relative errors, predicted/measured - 1, by their size.
type Errors struct {
	Compared int     `json:"compared_rows"`
	Mean     float64 `json:"mean_error"`  // of the absolute errors
	Worst    float64 `json:"worst_error"` // the largest of them
}

// Row is one measurement and what was forecast for it.
type Row struct {
	OffloadGB  float64 `json:"offload_gb"`
	Measured   float64 `json:"measured_seconds"`
	Predicted  float64 `json:"predicted_seconds"`
	Error      float64 `json:"error"`  // Predicted/Measured - 1
	Fitted     bool    `json:"fitted"` // one of the two that the line goes through
	Overlapped float64 `json:"overlapped_seconds"`
}

// ColumnReport is one link's line and rows.
type ColumnReport struct {
	Name         string  `json:"name"`
	BaseSeconds  float64 `json:"base_seconds"`
	SecondsPerGB float64 `json:"seconds_per_gb"`
	GBPerSecond  float64 `json:"gb_per_second"` // 0 where offloading costs nothing
	Rows         []Row   `json:"rows"`
	Errors               // of the predicted rows
}

// Line is the column's line.
func (c ColumnReport) Line() Line { return Line{c.BaseSeconds, c.SecondsPerGB} }

// TableReport is one table's columns.
type TableReport struct {
	Name     string         `json:"name"`
	Forwards int            `json:"forwards_per_iteration"`
	Columns  []ColumnReport `json:"columns"`
	Errors
}

// OtherTable is how far off the first table's seconds per GB and forward are on
// the later tables' columns of the same name, with those tables' own time at
// offload 0 and forwards per iteration.
type OtherTable struct {
	From     string `json:"from"`
	Errors          // of every row with an offload, as none of them was fitted
	SameRows Errors `json:"same_rows"` // of those that the columns' own lines predict too
}

// Baselines are cruder rules on the same measurements.
type Baselines struct {
	NoSlowdown Errors      `json:"no_slowdown"`           // every predicted row takes the time of offload 0
	OtherTable *OtherTable `json:"other_table,omitempty"` // nil unless a later table shares a column's name with the first
}

// Overlap is the share of the measured time of predicted rows that copies running
// ahead of compute would save: 1 - overlapped/measured.
type Overlap struct {
	MeanSaving float64 `json:"mean_saving"`
	BestSaving float64 `json:"best_saving"`
}

// Report is the outcome over all tables.
type Report struct {
	Tables []TableReport `json:"tables"`
	Errors
	Baselines Baselines `json:"baselines"`
	Overlap   Overlap   `json:"overlap"`
}

// tally adds up relative errors.
type tally struct {
	rows       int
	sum, worst float64
}

func (t *tally) add(predicted, measured float64) float64 {
	e := predicted/measured - 1
	t.rows++
	t.sum += math.Abs(e)
	t.worst = max(t.worst, math.Abs(e))
	return e
}

func (t *tally) errors() Errors {
	if t.rows == 0 {
		return Errors{}
	}
	return Errors{t.rows, t.sum / float64(t.rows), t.worst}
}

// fitted is how many rows of a column, by ascending offload, make its line.
const fitted = 2

// Validate fits every column on its two smallest offloads, predicts its other rows
// and compares. Tables and columns keep their order; the first table is the one
// whose constants the other-table baseline uses. An error names the table and
// column that break what Parse guarantees.
func Validate(tables ...*Table) (*Report, error) {
	for _, t := range tables {
		if err := t.check(); err != nil {
			return nil, err
		}
	}
	r := &Report{Tables: []TableReport{}}
	var all, none tally
	var saved float64
	for _, t := range tables {
		var ofTable tally
		report := TableReport{Name: t.Name, Forwards: t.Forwards, Columns: []ColumnReport{}}
		for _, c := range t.Columns {
			column, own := predict(c, t.Forwards)
			report.Columns = append(report.Columns, column)
			ofTable.merge(own)
			for _, row := range column.Rows[fitted:] {
				none.add(c.Samples[0].Seconds, row.Measured)
				saving := 1 - row.Overlapped/row.Measured
				saved += saving
				if none.rows == 1 || saving > r.Overlap.BestSaving {
					r.Overlap.BestSaving = saving
				}
			}
		}
		report.Errors = ofTable.errors()
		all.merge(ofTable)
		r.Tables = append(r.Tables, report)
	}
	r.Errors, r.Baselines.NoSlowdown = all.errors(), none.errors()
	if all.rows > 0 {
		r.Overlap.MeanSaving = saved / float64(all.rows)
	}
	r.Baselines.OtherTable = otherTable(tables)
	return r, nil
}

func (t *tally) merge(o tally) {
	t.rows += o.rows
	t.sum += o.sum
	t.worst = max(t.worst, o.worst)
}

func predict(c Column, forwards int) (ColumnReport, tally) {
	l := Fit(c.Samples[0], c.Samples[1])
	report := ColumnReport{Name: c.Name, BaseSeconds: l.BaseSeconds, SecondsPerGB: l.SecondsPerGB, GBPerSecond: l.GBPerSecond(forwards)}
	var own tally
	for i, s := range c.Samples {
		row := Row{OffloadGB: s.OffloadGB, Measured: s.Seconds, Predicted: s.Seconds, Fitted: i < fitted, Overlapped: l.Overlapped(s.OffloadGB)}
		if !row.Fitted {
			row.Predicted = l.At(s.OffloadGB)
			row.Error = own.add(row.Predicted, s.Seconds)
		}
		report.Rows = append(report.Rows, row)
	}
	report.Errors = own.errors()
	return report, own
}

func otherTable(tables []*Table) *OtherTable {
	if len(tables) < 2 {
		return nil
	}
	from := tables[0]
	var every, same tally
	for _, t := range tables[1:] {
		for _, c := range t.Columns {
			i := slices.IndexFunc(from.Columns, func(f Column) bool { return f.Name == c.Name })
			if i < 0 {
				continue
			}
			theirs := Fit(from.Columns[i].Samples[0], from.Columns[i].Samples[1])
			l := Line{c.Samples[0].Seconds, theirs.SecondsPerGB * float64(t.Forwards) / float64(from.Forwards)}
			for j, s := range c.Samples[1:] {
				every.add(l.At(s.OffloadGB), s.Seconds)
				if j+1 >= fitted {
					same.add(l.At(s.OffloadGB), s.Seconds)
				}
			}
		}
	}
	if every.rows == 0 {
		return nil
	}
	return &OtherTable{from.Name, every.errors(), same.errors()}
}

// check holds a table against what Parse guarantees.
func (t *Table) check() error {
	if t.Forwards < 1 || t.Forwards > maxForwards {
		return fmt.Errorf("table %q: %d forwards per iteration; want 1 to %d", t.Name, t.Forwards, maxForwards)
	}
	for _, c := range t.Columns {
		if err := c.check(); err != nil {
			return fmt.Errorf("table %q: column %q: %w", t.Name, c.Name, err)
		}
	}
	return nil
}

func (c Column) check() error {
	if len(c.Samples) < leastSamples {
		return fmt.Errorf("%d samples; want %d at least", len(c.Samples), leastSamples)
	}
	for i, s := range c.Samples {
		switch {
		case i == 0 && s.OffloadGB != 0:
			return fmt.Errorf("the first sample offloads %v GB; want 0", s.OffloadGB)
		case i > 0 && !(s.OffloadGB-c.Samples[i-1].OffloadGB >= leastOffloadGB) || s.OffloadGB > mostOffloadGB:
			return fmt.Errorf("offload %v GB is not ascending or out of range", s.OffloadGB)
		case !(s.Seconds >= leastSeconds && s.Seconds <= mostSeconds):
			return fmt.Errorf("%v seconds at %v GB are out of range", s.Seconds, s.OffloadGB)
		}
	}
	return nil
}
