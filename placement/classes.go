// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"fmt"
	"strings"
)

// Numerics says what of the plan's arithmetic depends on where blocks run: "equals one device (native/1/bf16)" when all
// have one class, "stable for this plan (2 classes: A blocks 0-20, B 21-56)" otherwise. It is empty where a class is
// not known.
func (p *Plan) Numerics() string {
	type span struct {
		class     string
		pipeline  int
		from, to  int
		pipelines int // that have the same span, from this one on
	}
	var spans []span
	var classes []string
	seen := make(map[string]bool)
	for _, s := range p.Stages {
		if s.Class == "" {
			return ""
		}
		if !seen[s.Class] {
			seen[s.Class] = true
			classes = append(classes, s.Class)
		}
		last := len(spans) - 1
		if last >= 0 && spans[last].class == s.Class && spans[last].pipeline == s.Pipeline && spans[last].to+1 == s.First {
			spans[last].to = s.First + s.Blocks - 1
			continue
		}
		spans = append(spans, span{s.Class, s.Pipeline, s.First, s.First + s.Blocks - 1, 1})
	}
	// Neighbouring pipelines that are whole in one class count together.
	joined := spans[:0]
	for _, s := range spans {
		if n := len(joined); n > 0 && joined[n-1].pipeline+joined[n-1].pipelines == s.pipeline &&
			joined[n-1].class == s.class && joined[n-1].from == s.from && joined[n-1].to == s.to {
			joined[n-1].pipelines++
			continue
		}
		joined = append(joined, s)
	}
	spans = joined
	switch len(classes) {
	case 0:
		return ""
	case 1:
		return "equals one device (" + classes[0] + ")"
	}
	parts := make([]string, 0, maxNamed+1)
	for i, s := range spans {
		if i == maxNamed {
			parts = append(parts, fmt.Sprintf("%d more", len(spans)-i))
			break
		}
		where := ""
		if len(p.Pipelines) > 1 {
			where = " of pipeline " + PipelineName(s.pipeline)
			if s.pipelines > 1 {
				where = fmt.Sprintf(" of pipelines %s to %s", PipelineName(s.pipeline), PipelineName(s.pipeline+s.pipelines-1))
			}
		}
		blocks := fmt.Sprintf("blocks %d-%d", s.from, s.to)
		if s.from == s.to {
			blocks = fmt.Sprintf("block %d", s.from)
		}
		parts = append(parts, fmt.Sprintf("%s %s%s", s.class, blocks, where))
	}
	return fmt.Sprintf("stable for this plan (%d classes: %s)", len(classes), strings.Join(parts, ", "))
}
