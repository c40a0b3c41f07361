// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/blocktable"
	"github.com/distorch/distorch/placement/cluster"
	"github.com/distorch/distorch/placement/report"
)

// request is a plan that the pages of docs/hardware show.
type request struct {
	model, workload string // as on the command line
	w               blocktable.Workload
	objective       placement.ObjectiveKind
	title           string
}

func requests() []request {
	return []request{
		{"flux1-dev", "1024x1024", blocktable.Workload{Width: 1024, Height: 1024}, placement.ObjectiveLatency, "FLUX.1 dev, one picture of 1024x1024"},
		{"qwen-image", "1328x1328,tokens=128", blocktable.Workload{Width: 1328, Height: 1328}, placement.ObjectivePair, "Qwen-Image, 1328x1328, with guidance (two forwards a step)"},
		{"wan2.1-14b", "832x480,frames=81", blocktable.Workload{Width: 832, Height: 480, Frames: 81}, placement.ObjectivePair, "WAN 2.1 14B, five seconds of 832x480, with guidance"},
	}
}

// TestHardwarePages: docs/hardware has a page for each example, as plan
// --explain says it.
func TestHardwarePages(t *testing.T) {
	files, err := filepath.Glob("../../examples/clusters/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d examples, %v", len(files), err)
	}
	_, err = os.Stat("../../docs/hardware")
	written := err == nil // before the pages are there, it is enough that they can be made
	index := "# Hardware\n\nWhat plans come to on five clusters, from two PCs at home to a lab of 64 machines. The pages are generated from [examples/clusters](../../examples/clusters) by `go test ./placement/cluster -update`; a test fails when one is stale. All figures rest on what makers publish ([devices.md](../devices.md)), not on measurements.\n\n"
	for _, name := range files {
		base := strings.TrimSuffix(filepath.Base(name), ".yaml")
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		title, about := heading(string(text))
		index += fmt.Sprintf("- [%s](%s.md)\n", title, base)
		t.Run(base, func(t *testing.T) {
			t.Parallel()
			c, err := cluster.Parse(name, text)
			if err != nil {
				t.Fatal(err)
			}
			text := page(t, base, title, about, c)
			if written {
				committed(t, "../../docs/hardware/"+base+".md", text)
			}
		})
	}
	if written {
		committed(t, "../../docs/hardware/README.md", index)
	}
}

// heading is the first comment of a file: its first line, and the paragraphs
// below it.
func heading(text string) (title, about string) {
	var paragraphs []string
	line := ""
	for l := range strings.Lines(text) {
		words, comment := strings.CutPrefix(strings.TrimSpace(l), "#")
		if !comment {
			break
		}
		if words == "" {
			paragraphs, line = append(paragraphs, line), ""
			continue
		}
		line = strings.TrimSpace(line + words)
	}
	paragraphs = append(paragraphs, line)
	return paragraphs[0], strings.Join(paragraphs[1:], "\n\n")
}

func page(t *testing.T, base, title, about string, c cluster.Cluster) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n", title)
	if about != "" {
		fmt.Fprintf(&b, "%s\n\n", about)
	}
	fmt.Fprintf(&b, "Cluster file: [%s.yaml](../../examples/clusters/%s.yaml). This page is generated; [README.md](README.md) says how.\n\n", base, base)
	b.WriteString("| nodes | devices | network | RAM for weights |\n|---|---|---|---|\n")
	for _, row := range machines(c) {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
	}
	for _, q := range requests() {
		k, err := blocktable.Lookup(q.model)
		if err != nil {
			t.Fatal(err)
		}
		m, err := k.Model(q.w)
		if err != nil {
			t.Fatal(err)
		}
		p := placement.Problem{Model: m, Nodes: c.Nodes, Links: c.Links, Groups: c.Groups, Objective: placement.Objective{Kind: q.objective}}
		line := fmt.Sprintf("distorch plan --model %s --workload %s --objective %s --cluster examples/clusters/%s.yaml --explain", q.model, q.workload, q.objective, base)
		fmt.Fprintf(&b, "\n## %s\n\n```\n$ %s\n", q.title, line)
		plan, err := placement.Place(p, placement.Options{})
		if err != nil {
			fmt.Fprintf(&b, "%v\n```\n", err)
			continue
		}
		// Comparisons search anew for each node; on large clusters they would say
		// the same of many machines alike.
		small := len(c.Nodes) <= 16
		r, err := report.New(p, plan, report.Options{Queue: small, Alternatives: small, Rivals: true, Sensitivity: small})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s```\n", r.Explain())
	}
	return b.String()
}

// machines are rows of nodes that are alike but for their names.
func machines(c cluster.Cluster) [][]string {
	var rows [][]string
	names := map[string][]string{}
	for _, n := range c.Nodes {
		var devices []string
		for i := 0; i < len(n.Devices); {
			same := i
			for same < len(n.Devices) && n.Devices[same].Model == n.Devices[i].Model {
				same++
			}
			devices = append(devices, fmt.Sprintf("%d x %s, %s free", same-i, n.Devices[i].Model, n.Devices[i].Allocatable-n.Devices[i].Reserve))
			i = same
		}
		row := []string{"", strings.Join(devices, "; "), fmt.Sprintf("%s/s, %s", placement.Bytes(n.Link.BytesPerSecond), placement.Seconds(n.Link.Latency)), n.RAM.String()}
		key := strings.Join(row, "|")
		if names[key] == nil {
			rows = append(rows, row)
		}
		names[key] = append(names[key], n.Name)
	}
	for _, row := range rows {
		of := names[strings.Join(append([]string{""}, row[1:]...), "|")]
		row[0] = strings.Join(of, ", ")
		if len(of) > 3 {
			row[0] = fmt.Sprintf("%s to %s (%d)", of[0], of[len(of)-1], len(of))
		}
	}
	slices.SortStableFunc(rows, func(a, b []string) int { return strings.Compare(a[0], b[0]) })
	return rows
}
