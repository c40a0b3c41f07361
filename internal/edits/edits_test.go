// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package edits

import (
	"strings"
	"testing"
)

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"kitten", "sitting", 3}, {"deploy", "deply", 1}, {"same", "same", 0},
		{"memroy", "memory", 1}, {"ca", "abc", 3},
		{strings.Repeat("a", 1000), strings.Repeat("b", 1000), 200},
	} {
		if got := Distance(c.a, c.b); got != c.want {
			t.Errorf("%.20q and %.20q are %d apart, want %d", c.a, c.b, got, c.want)
		}
		if got := Distance(c.b, c.a); got != c.want {
			t.Errorf("%.20q and %.20q are %d apart, want %d as the other way round", c.b, c.a, got, c.want)
		}
	}
}

func TestNearest(t *testing.T) {
	for _, c := range []struct {
		word       string
		candidates []string
		want       string
	}{
		{"nods", []string{"models", "nodes"}, "nodes"},
		{"deploym", []string{"deploy", "deployments"}, "deploy"},
		{"fluks", []string{"demo", "flux"}, "flux"},
		{"FLUX", []string{"fluxx", "flux"}, "flux"},
		{"inter", []string{"alien", "internationalisation"}, "internationalisation"},
		{"zebra", []string{"demo", "flux"}, ""},
		{"", []string{"demo"}, ""},
		{"demo", nil, ""},
	} {
		if got := Nearest(c.word, c.candidates); got != c.want {
			t.Errorf("the nearest of %q to %q is %q, want %q", c.candidates, c.word, got, c.want)
		}
	}
}
