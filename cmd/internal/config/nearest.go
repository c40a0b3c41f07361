// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strings"

	"github.com/distorch/distorch/internal/edits"
)

// nearest is the candidate with the fewest edits from word, comparing the last
// part as well so that a key without its section finds its way.
func nearest(word string, candidates []string) (best string, distance int) {
	distance = -1
	for _, c := range candidates {
		d := edits.Distance(word, c)
		if i := strings.LastIndexByte(c, '.'); i >= 0 {
			d = min(d, 1+edits.Distance(word, c[i+1:]))
		}
		if distance < 0 || d < distance {
			best, distance = c, d
		}
	}
	return best, distance
}
