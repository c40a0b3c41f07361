// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"
	"pgregory.net/rapid"

	"github.com/distorch/distorch/placement/cluster"
)

var update = flag.Bool("update", false, "rewrite docs/schema/cluster.schema.json and the tables of docs/cluster-file.md")

func committed(t *testing.T, name, want string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != want {
		t.Errorf("%s is stale; go test ./placement/cluster -update rewrites it", name)
	}
}

func TestSchemaIsCommitted(t *testing.T) {
	committed(t, "../../docs/schema/cluster.schema.json", string(cluster.Schema()))
}

const begin, end = "<!-- generated: go test ./placement/cluster -update -->\n", "<!-- end of generated -->\n"

func TestReference(t *testing.T) {
	const name = "../../docs/cluster-file.md"
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	_, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("%s lacks the lines %q and %q", name, begin, end)
	}
	committed(t, name, before+begin+cluster.Reference()+end+after)
}

// TestDocumentedExamples: every file in the reference's text can be read.
func TestDocumentedExamples(t *testing.T) {
	text, err := os.ReadFile("../../docs/cluster-file.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, part := range strings.Split(string(text), "```yaml\n")[1:] {
		file, _, _ := strings.Cut(part, "```")
		n++
		if _, err := cluster.Parse(fmt.Sprintf("example %d", n), []byte(file)); err != nil {
			t.Error(err)
		}
	}
	if n < 3 {
		t.Errorf("%d examples", n)
	}
}

func compiled(t testing.TB) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(cluster.Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("cluster.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("cluster.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// bySchema judges a YAML file by the schema.
func bySchema(s *jsonschema.Schema, text []byte) error {
	var v any
	if err := yaml.Load(text, &v); err != nil {
		return err
	}
	asJSON, err := json.Marshal(v)
	if err != nil {
		return err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
	if err != nil {
		return err
	}
	return s.Validate(doc)
}

// TestExamples: the reader and the schema take all example files.
func TestExamples(t *testing.T) {
	s := compiled(t)
	files, err := filepath.Glob("../../examples/clusters/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatalf("%d examples, %v", len(files), err)
	}
	want := map[string]int{"home-two-pcs-1gbe": 2, "mixed-three-pcs-wifi": 3, "workshop-eight-hosts": 8, "two-8x4090-servers": 2, "lab-64-nodes": 64}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		c, err := cluster.Parse(filepath.Base(name), text)
		if err != nil {
			t.Error(err)
			continue
		}
		if n := want[strings.TrimSuffix(filepath.Base(name), ".yaml")]; len(c.Nodes) != n {
			t.Errorf("%s has %d nodes, want %d", name, len(c.Nodes), n)
		}
		if err := bySchema(s, text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		out, err := cluster.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := bySchema(s, out); err != nil {
			t.Errorf("%s, written again: %v", name, err)
		}
	}
}

// TestSchemaAgrees: of files that are wrong in one value or key, the schema and
// the reader take the same ones.
func TestSchemaAgrees(t *testing.T) {
	s := compiled(t)
	node := func(keys string) string { return "nodes: [{name: a, devices: [{device: rtx3090}], " + keys + "}]" }
	device := func(keys string) string { return "nodes: [{name: a, ram: 32GB, devices: [{" + keys + "}]}]" }
	values := []string{
		"1GB", "1 GiB", "24gb", "1.5TB", "1gbps", "10Gbps", "2.5 Gbit/s", "1.2GB/s", "1GiB/s", "60TFLOP/s", "1.5 GFLOPS", "100us", "2 ms", "1s", "30µs", "0", "'0'", "0.5",
		"1", "2", "64", "65", "1e3", "-1", "-1GB", ".nan", ".inf", "true", "false", "yes", "null", "''", "' x'", "x", "[]", "[a, b]", "[a]", "{}", "{linear: 1TFLOP/s}",
		"{bf16: {linear: 1TFLOP/s}}", "{bf16: [{linear: 1TFLOP/s, tokens: 5}]}", "{bf16: []}", "{bf17: {linear: 1TFLOP/s}}", "{kind: draining}", "{kind: draining, why: x}",
		"wifi6", "wifi9", "unlimited", "nvme", "gpu", "cpu", "measured", "given", "rack", "island", "3 GBs", "1gb/s", "1e2GB/s", "1GB/s ", "1 GB /s", "GB/s", "1.GB", ".5GB",
	}
	var files []string
	for _, v := range values {
		for _, key := range []string{"nic", "latency", "link_source", "ram", "lend", "disk", "load", "host_bus", "peer_latency", "has_model", "rejected", "nik"} {
			files = append(files, node(key+": "+v))
		}
		for _, key := range []string{"count", "kind", "model", "reserve", "rates", "memory_bandwidth", "expansion", "overlap", "host_to_device", "peer", "class", "source", "spread"} {
			files = append(files, device("device: rtx3090, "+key+": "+v))
		}
		files = append(files,
			device("memory: "+v+", memory_bandwidth: 1GB/s, rates: {bf16: {linear: 1TFLOP/s}}"),
			device("memory: 4GB, memory_bandwidth: 1GB/s, rates: {bf16: {linear: "+v+"}}"),
			device("memory: 4GB, memory_bandwidth: 1GB/s, rates: {bf16: {linear: 1TFLOP/s, attention: "+v+"}}"),
			device("memory: 4GB, memory_bandwidth: 1GB/s, rates: {bf16: {linear: 1TFLOP/s, tokens: "+v+"}}"),
			"version: "+v+"\nnodes: [{name: a, devices: [{device: rtx3090}]}]",
			"nodes: [{name: a, devices: [{device: rtx3090}]}]\nlinks: "+v,
			"nodes: [{name: a, devices: [{device: rtx3090}]}, {name: b, devices: [{device: rtx3090}]}]\nlinks: [{between: "+v+", rate: 1GB/s}]",
			"nodes: [{name: a, devices: [{device: rtx3090}]}, {name: b, devices: [{device: rtx3090}]}]\nlinks: [{from: a, to: b, rate: "+v+"}]",
			"nodes: [{name: a, devices: [{device: rtx3090}]}]\ngroups: [{name: x, kind: "+v+", nodes: [a], rate: 1GB/s}]",
			"nodes: [{name: a, devices: [{device: rtx3090}]}]\ngroups: [{name: x, kind: rack, nodes: [a], latency: "+v+", rate: 1GB/s}]",
		)
	}
	files = append(files,
		device("device: rtx3090, id: x, count: 2"), device("memory: 4GB, rates: {bf16: {linear: 1TFLOP/s}}"), device("memory: 4GB"),
		node("id: 17"), "nodes: {}", "a: 1", "[]", "nodes: [{}]", "nodes: [1]",
		"nodes: [{name: a, devices: [{device: rtx3090}]}, {name: b, devices: [{device: rtx3090}]}]\nlinks: [{from: a, to: b, rate: 1GB/s, latency: 1ms, round_trip: 1ms}]",
		"nodes: [{name: a, devices: [{device: rtx3090}]}, {name: b, devices: [{device: rtx3090}]}]\nlinks: [{from: a, rate: 1GB/s}]",
		"nodes: [{name: a, devices: [{device: rtx3090}]}, {name: b, devices: [{device: rtx3090}]}]\nlinks: [{from: a, to: b, between: [a, b], rate: 1GB/s}]",
	)
	// What compares one value with another, or knows a range, is the reader's.
	readerOnly := []string{"is out of range", "make it smaller", "has no memory", "in line", "its id", "not in this file", "a processor", "no devices", "is the number 1e3"} // which JSON writes as 1000
	taken := 0
	for _, file := range files {
		_, byReader := cluster.Parse("x", []byte(file))
		schemaSays := bySchema(s, []byte(file))
		if byReader == nil {
			taken++
		}
		if (byReader == nil) == (schemaSays == nil) {
			continue
		}
		if byReader != nil && schemaSays == nil {
			known := false
			for _, text := range readerOnly {
				known = known || strings.Contains(byReader.Error(), text)
			}
			if known {
				continue
			}
		}
		t.Errorf("%s\nreader: %v\nschema: %v", file, byReader, schemaSays)
	}
	t.Logf("%d files, of which the reader takes %d", len(files), taken)
	if taken < 50 {
		t.Error("too few good files to tell anything")
	}
}

// TestSchemaTakesWhatIsWritten: any cluster that Marshal writes.
func TestSchemaTakesWhatIsWritten(t *testing.T) {
	s := compiled(t)
	rapid.Check(t, func(t *rapid.T) {
		out, err := cluster.Marshal(clusters(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := bySchema(s, out); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	})
}
