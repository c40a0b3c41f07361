// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package edits measures how far one word is from another, for errors that
// name what was probably meant.
//
// Any package may import it; it imports nothing.
package edits

// maxCompared bounds the work on a word from outside.
const maxCompared = 200

// Distance is the number of single-byte changes between two words
// (Levenshtein), over at most the first 200 bytes of each.
func Distance(a, b string) int {
	a, b = a[:min(len(a), maxCompared)], b[:min(len(b), maxCompared)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
