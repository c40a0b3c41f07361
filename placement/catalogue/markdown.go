// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package catalogue

import (
	"fmt"
	"strings"
)

// Markdown is the catalogue's tables for docs/devices.md: the fractions, the
// published figures, and what they are planned with.
func Markdown() string {
	var b strings.Builder
	b.WriteString("### Fractions of the peak\n\n| tier | linear | attention | why |\n|---|---|---|---|\n")
	for _, f := range Fractions() {
		fmt.Fprintf(&b, "| %s | %.2f | %.2f | %s |\n", f.Tier, f.Linear, f.Attention, f.Reason)
	}
	b.WriteString("\n### Devices\n\nPublished figures; rates are dense TFLOP/s with sums in float32.\n\n")
	b.WriteString("| name | device | tier | memory | GB/s | bf16 | f16 | f32 | PCIe | fabric GB/s | source |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, e := range Entries() {
		memory, fabric, note := "the host's", "", ""
		if e.Memory > 0 {
			memory = e.Memory.String()
		}
		if e.Fabric > 0 {
			fabric = fmt.Sprintf("%g", e.Fabric/giga)
		}
		if e.Note != "" {
			note = "; " + e.Note
		}
		name := "`" + strings.Join(append([]string{e.Name}, e.Aliases...), "`, `") + "`"
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %g |", name, e.Title, e.Tier, memory, e.Memrate/giga)
		for _, p := range e.Peaks {
			fmt.Fprintf(&b, " %.4g |", p.FLOPs/tera)
		}
		fmt.Fprintf(&b, " %s | %s | %s%s |\n", e.PCIe, fabric, e.Source, note)
	}
	return b.String()
}
