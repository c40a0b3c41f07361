// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"strings"

	"github.com/distorch/distorch/model/arch"
)

// halvesUnswapped is the quick id of a golden file under diffusers names that
// was written after ComfyUI had loaded it. Loading swaps the halves of
// norm_out.linear in place, so that the file has them as BFL's names do and not,
// as every file of diffusers', the scale's first. Its outputs are those of the
// file before.
const halvesUnswapped = "25c54fadd4307e0e730090e925b48c8397eccf13d0d695e022ddd2453ed92c18"

// mend reads a golden file that is known to be at odds with its outputs as they
// take it, and says so; "" for every other file.
func mend(m *modelFile) string {
	if id, err := m.File.QuickID(); err != nil || id != halvesUnswapped {
		return ""
	}
	source := m.Source
	m.Source = func(name string) arch.Source {
		s := source(name)
		if strings.HasPrefix(name, "final_layer.adaLN_modulation.") && len(s.Slices) == 2 {
			s.Slices = []arch.Slice{s.Slices[1], s.Slices[0]}
		}
		return s
	}
	return "erratum: the file's norm_out.linear has its halves swapped"
}
