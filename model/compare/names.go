// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/distorch/distorch/model/tensor"
)

// Names sorts the names of two lists, none of which has one twice, into those
// of both and of one alone, each in the order of Order.
func Names(a, b []string) (both, onlyA, onlyB []string) {
	inB := make(map[string]bool, len(b))
	for _, n := range b {
		inB[n] = true
	}
	inA := make(map[string]bool, len(a))
	for _, n := range a {
		inA[n] = true
		if inB[n] {
			both = append(both, n)
		} else {
			onlyA = append(onlyA, n)
		}
	}
	for _, n := range b {
		if !inA[n] {
			onlyB = append(onlyB, n)
		}
	}
	for _, list := range [][]string{both, onlyA, onlyB} {
		slices.SortFunc(list, Order)
	}
	return both, onlyA, onlyB
}

// Order orders names as people do: runs of digits by their value, so that
// step.9 comes before step.10.
func Order(a, b string) int {
	x, y := a, b
	for x != "" && y != "" {
		runX, runY := run(x), run(y)
		x, y = x[len(runX):], y[len(runY):]
		c := strings.Compare(runX, runY)
		if digit(runX[0]) && digit(runY[0]) {
			valueX, valueY := strings.TrimLeft(runX, "0"), strings.TrimLeft(runY, "0")
			c = cmp.Or(cmp.Compare(len(valueX), len(valueY)), strings.Compare(valueX, valueY))
		}
		if c != 0 {
			return c
		}
	}
	return cmp.Or(cmp.Compare(len(x), len(y)), strings.Compare(a, b))
}

func digit(b byte) bool { return b >= '0' && b <= '9' }

// run is the digits that s begins with, or what stands before the first.
func run(s string) string {
	i := 1
	for i < len(s) && digit(s[i]) == digit(s[0]) {
		i++
	}
	return s[:i]
}

var stepName = regexp.MustCompile(`(?i)(?:^|[^a-z])step[^a-z0-9]{0,2}([0-9]{1,9})(?:[^0-9]|$)`)

// Step is the number of the step that a name says it is of: step.3,
// cfg1.step.3, step-00003.latent.
func Step(name string) (int, bool) {
	found := stepName.FindStringSubmatch(name)
	if found == nil {
		return 0, false
	}
	n, err := strconv.Atoi(found[1])
	return n, err == nil
}

func emptyShape(s tensor.Shape) bool { return slices.Contains(s, 0) }

// some lists the first few names.
func some(list []string) string {
	const most = 8
	sorted := slices.SortedFunc(slices.Values(list), Order)
	if len(sorted) == 0 {
		return "none"
	}
	more := ""
	if n := len(sorted) - most; n > 0 {
		sorted, more = sorted[:most], fmt.Sprintf(" and %d more", n)
	}
	for i, n := range sorted {
		sorted[i] = fmt.Sprintf("%.80q", n)
	}
	return strings.Join(sorted, ", ") + more
}
