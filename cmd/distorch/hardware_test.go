// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/cluster"
)

var update = flag.Bool("update", false, "rewrite docs/hardware")

// request is a plan that the pages of docs/hardware show.
type request struct{ title, flags string }

func requests() []request {
	return []request{
		{"FLUX.1 dev, one picture of 1024x1024", "--model flux1-dev"},
		{"FLUX.1 dev in Q8_0, a queue of pictures", "--model flux1-dev --stored q8_0 --objective throughput"},
		{"Qwen-Image, 1328x1328, with guidance (two forwards a step)", "--model qwen-image --objective pair"},
		{"WAN 2.1 14B, five seconds of 832x480, with guidance", "--model wan2.1-14b --objective pair"},
	}
}

// TestHardwarePages: docs/hardware has a page for each example, with what plan
// prints.
func TestHardwarePages(t *testing.T) {
	const docs, examples = "docs/hardware/", "examples/clusters/"
	t.Chdir("../..")
	files, err := filepath.Glob(examples + "*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d examples, %v", len(files), err)
	}
	var index strings.Builder
	index.WriteString("# Hardware\n\nWhat plans come to on five clusters, from two PCs at home to a lab of 64 machines. The pages are generated from [examples/clusters](../../examples/clusters) by `go test ./cmd/distorch -run TestHardwarePages -update`; a test fails when one is stale. All figures rest on what makers publish ([devices.md](../devices.md)), not on measurements.\n\n")
	for _, name := range files {
		base := strings.TrimSuffix(filepath.Base(name), ".yaml")
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		c, err := cluster.Parse(name, text)
		if err != nil {
			t.Fatal(err)
		}
		title, about := heading(string(text))
		fmt.Fprintf(&index, "- [%s](%s.md)\n", title, base)
		current(t, docs+base+".md", page(t, base, title, about, c))
	}
	current(t, docs+"README.md", index.String())
}

// current holds a page against what it should be, or rewrites it.
func current(t *testing.T, name, want string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(text), want); diff != "" {
		t.Errorf("%s is stale; go test ./cmd/distorch -run TestHardwarePages -update rewrites it\n%s", name, diff)
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
		line := fmt.Sprintf("plan %s --cluster examples/clusters/%s.yaml --explain", q.flags, base)
		var out, problem bytes.Buffer
		code := (&app{stdin: strings.NewReader(""), stdout: &out, stderr: &problem}).run(t.Context(), strings.Fields(line))
		if code != exitOK && code != exitInfeasible {
			t.Fatalf("%s: code %d, %s", line, code, problem.String())
		}
		fmt.Fprintf(&b, "\n## %s\n\n```\n$ distorch %s\n%s%s```\n", q.title, line, out.String(), problem.String())
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
