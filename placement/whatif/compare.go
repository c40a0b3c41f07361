// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package whatif

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/distorch/distorch/placement"
)

// Row is one scenario's plan beside the base.
type Row struct {
	Change      string                `json:"change"` // empty for the base
	Fits        bool                  `json:"fits"`
	StepSeconds float64               `json:"step_seconds,omitempty"`
	Delta       float64               `json:"delta,omitempty"` // relative to the base: -0.2 is a fifth less time
	Stages      int                   `json:"stages,omitempty"`
	Pipelines   int                   `json:"pipelines,omitempty"`
	Nodes       []string              `json:"nodes,omitempty"`
	Peak        placement.Bytes       `json:"peak_bytes,omitempty"` // the largest of its devices
	Certificate placement.Certificate `json:"certificate,omitzero"`
	Short       placement.Bytes       `json:"short_bytes,omitempty"` // what it lacks where it does not fit
	Why         string                `json:"why,omitempty"`
}

// Compare places the base, each change alone, and all changes together where there are several. The first row is the
// base. Errors are those of [Apply] and of [placement.Place], but for a scenario that does not fit, which is a row.
func Compare(base Scenario, changes []string, opt Options) ([]Row, error) {
	texts, scenarios := []string{""}, []Scenario{base}
	all := base
	for _, c := range changes {
		s, err := Apply(base, c, opt)
		if err != nil {
			return nil, err
		}
		if all, err = Apply(all, c, opt); err != nil {
			return nil, fmt.Errorf("after the changes before it: %w", err)
		}
		texts, scenarios = append(texts, c), append(scenarios, s)
	}
	if len(changes) > 1 {
		texts, scenarios = append(texts, strings.Join(changes, "; ")), append(scenarios, all)
	}
	var rows []Row
	for i, s := range scenarios {
		r, err := place(s.Problem)
		if err != nil {
			if texts[i] != "" {
				err = fmt.Errorf("what-if %q: %w", texts[i], err)
			}
			return nil, err
		}
		r.Change = texts[i]
		if i > 0 && r.Fits && rows[0].Fits {
			r.Delta = r.StepSeconds/rows[0].StepSeconds - 1
		}
		rows = append(rows, r)
	}
	return rows, nil
}

func place(p placement.Problem) (Row, error) {
	plan, err := placement.Place(p, placement.Options{SkipLosses: true})
	if err != nil {
		if !placement.Infeasible(err) {
			return Row{}, err
		}
		return refused(err), nil
	}
	r := Row{
		Fits: true, StepSeconds: plan.StepSeconds, Stages: len(plan.Stages), Pipelines: max(1, len(plan.Pipelines)), Certificate: plan.Certificate,
	}
	for _, s := range plan.Stages {
		r.Peak = max(r.Peak, s.Peak)
		if !slices.Contains(r.Nodes, s.Name) {
			r.Nodes = append(r.Nodes, s.Name)
		}
	}
	return r, nil
}

// Header names the columns of [Row.Cells].
func Header() []string {
	return []string{"CHANGE", "STEP", "DELTA", "STAGES", "NODES", "PEAK", "CERTIFICATE"}
}

// Cells are the row as a table shows it.
func (r Row) Cells() []string {
	name := r.Change
	if name == "" {
		name = "as it is"
	}
	if !r.Fits {
		return []string{name, "does not fit", "", "", "", "", r.Why}
	}
	delta := ""
	switch {
	case r.Change != "" && math.Abs(r.Delta) < 0.0005:
		delta = "="
	case r.Change != "":
		delta = fmt.Sprintf("%+.1f %%", 100*r.Delta)
	}
	stages := fmt.Sprint(r.Stages)
	if r.Pipelines > 1 {
		stages += fmt.Sprintf(" in %d pipelines", r.Pipelines)
	}
	certificate := "optimal"
	if !r.Certificate.Optimal {
		certificate = fmt.Sprintf("gap %.2f %%", 100*r.Certificate.Gap)
	}
	return []string{name, placement.PerStep(r.StepSeconds), delta, stages, nodesText(r.Nodes), r.Peak.String(), certificate}
}

func nodesText(names []string) string {
	const named = 4
	if len(names) > named {
		return strings.Join(names[:named], ", ") + fmt.Sprintf(", %d more", len(names)-named)
	}
	return strings.Join(names, ", ")
}

// refused is the row of a scenario that does not fit.
func refused(err error) Row {
	if nowhere, ok := errors.AsType[*placement.InfeasibleError](err); ok {
		why := nowhere.Why
		if nowhere.Short > 0 && nowhere.ShortNode != "" {
			why = nowhere.Short.String() + " short"
		}
		return Row{Short: nowhere.Short, Why: why}
	}
	return Row{Why: err.Error()}
}
