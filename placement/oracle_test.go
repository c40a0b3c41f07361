// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	. "github.com/distorch/distorch/placement"
)

// exactInstances and wideInstances are how many random problems each run solves twice.
const (
	exactInstances = 7200
	wideInstances  = 2000
)

// describeProblem is a problem in a form that can be read and pasted into a test.
func describeProblem(p Problem) string {
	for i := range p.Nodes {
		if math.IsInf(p.Nodes[i].Link.BytesPerSecond, 1) {
			p.Nodes[i].Link.BytesPerSecond = 1e300
		}
	}
	text, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// judge compares a plan with the optimum; exact demands equality and the claim of it.
func judge(p Problem, want optimum, exact bool) (*Plan, error) {
	plan, err := Place(p, Options{SkipLosses: true})
	if math.IsInf(want.value, 1) {
		if _, ok := errors.AsType[*InfeasibleError](err); !ok {
			return nil, fmt.Errorf("plan %v, error %w; no plan exists", plan, err)
		}
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w; the oracle found %g: %s", err, want.value, want.how)
	}
	got, bound := plan.StepSeconds, plan.Certificate.LowerBound
	switch slack := 1e-9 * want.value; {
	case exact && math.Abs(got-want.value) > slack:
		return plan, fmt.Errorf("got %.12g, the optimum is %.12g: %s", got, want.value, want.how)
	case exact && !plan.Certificate.Optimal:
		return plan, fmt.Errorf("certificate %+v of an optimal plan", plan.Certificate)
	case got < want.value-slack:
		return plan, fmt.Errorf("got %.12g, better than the optimum %.12g", got, want.value)
	case bound > want.value+slack:
		return plan, fmt.Errorf("bound %.12g over the optimum %.12g", bound, want.value)
	case plan.Certificate.Optimal && got > want.value+slack:
		return plan, fmt.Errorf("claims that %.12g is optimal, the optimum is %.12g", got, want.value)
	}
	again, err := newOracle(p).price(plan)
	if err == nil && !near(again, got) {
		err = fmt.Errorf("the plan says %.12g, its stages take %.12g", got, again)
	}
	return plan, err
}

// TestOracle compares the search with brute force where the model promises the optimum: one pipeline, star links.
func TestOracle(t *testing.T) {
	var mix mixture
	failed := map[string]int{}
	for seed := range uint64(exactInstances) {
		objective := objectives[seed%uint64(len(objectives))]
		p := randomProblem(rand.New(rand.NewPCG(seed, 7)), objective)
		want := bruteForce(p)
		mix.add(p, want)
		if plan, err := judge(p, want, true); err != nil {
			report(t, failed, string(objective), seed, p, plan, err)
		}
	}
	mix.show(t)
	mix.check(t)
}

// report shows the first failures of a kind in full and counts the rest.
func report(t *testing.T, failed map[string]int, kind string, seed uint64, p Problem, plan *Plan, err error) {
	if failed[kind]++; failed[kind] > 1 {
		t.Errorf("%s, seed %d: %v", kind, seed, err)
		return
	}
	text := ""
	if plan != nil {
		text = plan.Explain()
	}
	t.Errorf("%s, seed %d: %v\n%s\n%s", kind, seed, err, text, describeProblem(p))
}
