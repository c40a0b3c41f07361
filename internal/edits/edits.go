// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package edits measures how far one word is from another, for errors that
// name what was probably meant.
//
// Any package may import it; it imports nothing of distorch.
package edits

import "strings"

// maxCompared bounds the work on a word from outside.
const maxCompared = 200

// Distance is the number of single-byte changes between two words, over at most
// the first 200 bytes of each: insertions, deletions, substitutions and swaps of
// neighbours (optimal string alignment).
func Distance(a, b string) int {
	a, b = a[:min(len(a), maxCompared)], b[:min(len(b), maxCompared)]
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := last[j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			row[j] = min(change, last[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

// Nearest is the candidate that was probably meant by word, whatever the case of
// its letters, and "" if none is near: more than half of the letters are to be
// right. A candidate that word begins is as near as one with one wrong letter.
// Among equals the first wins.
func Nearest(word string, candidates []string) string {
	best, fewest := "", len(word)/2+1
	low := strings.ToLower(word)
	for _, c := range candidates {
		lowC := strings.ToLower(c)
		d := Distance(low, lowC)
		if len(word) >= 3 && strings.HasPrefix(lowC, low) {
			d = min(d, 1)
		}
		if d < fewest {
			best, fewest = c, d
		}
	}
	return best
}
