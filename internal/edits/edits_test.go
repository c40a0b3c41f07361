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
		{strings.Repeat("a", 1000), strings.Repeat("b", 1000), 200},
	} {
		if got := Distance(c.a, c.b); got != c.want {
			t.Errorf("%.20q and %.20q are %d apart, want %d", c.a, c.b, got, c.want)
		}
	}
}
