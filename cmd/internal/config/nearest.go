// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package config

import "strings"

// nearest is the candidate with the fewest edits from word, comparing the last
// part as well so that a key without its section finds its way.
func nearest(word string, candidates []string) (best string, distance int) {
	distance = -1
	for _, c := range candidates {
		d := edits(word, c)
		if i := strings.LastIndexByte(c, '.'); i >= 0 {
			d = min(d, 1+edits(word, c[i+1:]))
		}
		if distance < 0 || d < distance {
			best, distance = c, d
		}
	}
	return best, distance
}

// edits is the optimal string alignment distance: insertions, deletions,
// substitutions and swaps of neighbours.
func edits(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
