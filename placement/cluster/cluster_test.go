// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/cluster"
)

// TestFiles parses files and shows what they come to, or their problems.
func TestFiles(t *testing.T) {
	datadriven.Walk(t, "testdata/files", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(_ *testing.T, d *datadriven.TestData) string {
			c, err := cluster.Parse("den.yaml", []byte(d.Input+"\n"))
			if err != nil {
				return err.Error() + "\n"
			}
			out, err := cluster.Marshal(c)
			if err != nil {
				return err.Error() + "\n"
			}
			return string(out)
		})
	})
}

// TestLeast is the least that a user writes, with all defaults.
func TestLeast(t *testing.T) {
	c, err := cluster.Parse("den.yaml", []byte("nodes: [{name: den, nic: 1gbps, ram: 32GB, devices: [{device: rtx3090}]}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	n := c.Nodes[0]
	d := n.Devices[0]
	if n.ID != "den" || !n.HasModel || n.RAM != 28e9 || n.Link.BytesPerSecond != 1e9/8*0.94 || n.Link.Source != placement.SourcePublished {
		t.Errorf("node %+v", n)
	}
	if d.ID != "cuda:0" || d.Allocatable != 24<<30 || d.Reserve != 1e9 || d.Source != placement.SourcePublished || d.Spread != 0.25 || d.HostToDevice < 26e9 || d.HostToDevice > 27e9 {
		t.Errorf("device %+v", d)
	}
}

func TestUnits(t *testing.T) {
	for text, want := range map[string]float64{
		"1.2GB/s": 1.2e9, "10gbps": 1.175e9, "10 Gbps": 1.175e9, "2.5Gbit/s": 2.5e9 / 8 * 0.94, "1GiB/s": 1 << 30, "0": 0, "100mbps": 11.75e6, "7e-1GB/s": 7e8, "0.1GB/s": 1e8,
	} {
		if got, _, err := cluster.ParseRate(text); err != nil || math.Abs(got-want) > want*1e-15 {
			t.Errorf("%s is %g, %v; want %g", text, got, err, want)
		}
	}
	for text, want := range map[string]placement.Bytes{"24GB": 24e9, "24 GiB": 24 << 30, "1.5gb": 15e8, "17B": 17, "512mib": 512 << 20} {
		if got, err := cluster.ParseSize(text); err != nil || got != want {
			t.Errorf("%s is %d, %v; want %d", text, got, err, want)
		}
	}
	for text, want := range map[string]float64{"100us": 100e-6, "2ms": 2e-3, "1s": 1, "30µs": 30e-6, "5ns": 5e-9} {
		if got, err := cluster.ParseSeconds(text); err != nil || got != want {
			t.Errorf("%s is %g, %v; want %g", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"10": "no unit", "-1GB/s": "negative", "1e300GB/s": "out of range", "1e999999GB/s": "unknown unit", "1e999GB/s": "out of range", "nan": "not a rate", "0.5B/s": "out of range",
		"1gb/s": "GB/s counts bytes, gbps bits", "1GBs": `did you mean`, "": "not a rate", strings.Repeat("1", 200): "not a rate",
	} {
		if _, _, err := cluster.ParseRate(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.30q: %v, want %q", text, err, want)
		}
	}
}

// clusters makes any cluster that a file can hold.
func clusters(t *rapid.T) cluster.Cluster {
	rate := rapid.OneOf(rapid.Float64Range(1, 1e18), rapid.SampledFrom([]float64{1, 1e9, 1.175e9, 1e18, 1 << 30}))
	zeroRate := rapid.OneOf(rate, rapid.Just(0.0))
	seconds := rapid.OneOf(rapid.Float64Range(0, 60), rapid.SampledFrom([]float64{0, 100e-6, 1e-300, 60}))
	size := rapid.Map(rapid.OneOf(rapid.Int64Range(1, 1<<50), rapid.SampledFrom([]int64{24 << 30, 24e9, 1})), func(n int64) placement.Bytes { return placement.Bytes(n) })
	words := rapid.OneOf(rapid.StringMatching(`[a-z0-9][a-z0-9.:_-]{0,8}`), rapid.SampledFrom([]string{"true", "null", "~", "1e3", "yes", "a b", "é: #x", "'", "- x", "0x10", "<<", "&a", "*a", "!x", "%x", "@x", "...", "---", ".nan"}))
	source := rapid.SampledFrom([]placement.Source{placement.SourceMeasured, placement.SourcePublished, placement.SourceGiven})
	names := rapid.SliceOfNDistinct(words, 1, 5, rapid.ID[string]).Draw(t, "names")
	var c cluster.Cluster
	for i, name := range names {
		n := placement.Node{
			ID: placement.NodeID(name), Name: name, HasModel: rapid.Bool().Draw(t, "model"), Load: zeroRate.Draw(t, "load"),
			RAM: size.Draw(t, "ram"), Disk: zeroRate.Draw(t, "disk"), HostBus: zeroRate.Draw(t, "bus"), PeerLatency: seconds.Draw(t, "peer latency"),
			Link: placement.Link{BytesPerSecond: rate.Draw(t, "nic"), Latency: seconds.Draw(t, "latency"), Source: source.Draw(t, "source")},
		}
		n.Lend = placement.Bytes(rapid.Int64Range(0, int64(n.RAM)).Draw(t, "lend"))
		if rapid.Bool().Draw(t, "id") {
			n.ID = placement.NodeID(fmt.Sprintf("%032d", i))
		}
		if rapid.IntRange(0, 4).Draw(t, "unlimited") == 0 {
			n.Link.BytesPerSecond = math.Inf(1)
		}
		if rapid.IntRange(0, 4).Draw(t, "rejected") == 0 {
			n.Rejected = placement.Reason{Kind: placement.ReasonDraining, Detail: rapid.SampledFrom([]string{"", "by hand: x"}).Draw(t, "detail")}
		}
		for j := range rapid.IntRange(1, 3).Draw(t, "devices") {
			d := placement.Device{
				ID: fmt.Sprintf("cuda:%d", j), Kind: rapid.SampledFrom([]placement.DeviceKind{placement.KindGPU, placement.KindCPU}).Draw(t, "kind"),
				Model: rapid.OneOf(words, rapid.Just("")).Draw(t, "model"), Allocatable: size.Draw(t, "memory"), Memory: rate.Draw(t, "bandwidth"),
				Expansion: zeroRate.Draw(t, "expansion"), Overlap: rapid.Bool().Draw(t, "overlap"), HostToDevice: zeroRate.Draw(t, "h2d"), Peer: zeroRate.Draw(t, "peer"),
				Class: rapid.OneOf(words, rapid.Just("")).Draw(t, "class"), Source: source.Draw(t, "source"), Spread: rapid.SampledFrom([]float64{0, 0.25, 0.1, 0.9}).Draw(t, "spread"),
			}
			d.Reserve = placement.Bytes(rapid.Int64Range(0, int64(d.Allocatable)).Draw(t, "reserve"))
			for _, dtype := range []placement.DType{"bf16", "f32"} {
				for k := range rapid.IntRange(0, 2).Draw(t, "points") {
					d.Rates = append(d.Rates, placement.Rate{DType: dtype, Tokens: float64(k) * rapid.Float64Range(1, 2).Draw(t, "tokens"), Linear: rate.Draw(t, "linear"), Attention: rate.Draw(t, "attention")})
				}
			}
			n.Devices = append(n.Devices, d)
		}
		for j := range rapid.IntRange(0, 3).Draw(t, "alike") {
			d := n.Devices[len(n.Devices)-1]
			d.ID = fmt.Sprintf("cuda:%d", len(n.Devices)+rapid.IntRange(0, 1).Draw(t, "gap")*(j+8))
			if !slices.ContainsFunc(n.Devices, func(o placement.Device) bool { return o.ID == d.ID }) {
				n.Devices = append(n.Devices, d)
			}
		}
		c.Nodes = append(c.Nodes, n)
	}
	for i := range c.Nodes {
		for j := range c.Nodes {
			if i != j && rapid.IntRange(0, 3).Draw(t, "link") == 0 {
				c.Links = append(c.Links, placement.PeerLink{From: c.Nodes[i].ID, To: c.Nodes[j].ID, BytesPerSecond: rate.Draw(t, "rate"), Latency: seconds.Draw(t, "latency")})
			}
		}
	}
	for _, kind := range []placement.GroupKind{placement.GroupRack, placement.GroupIsland} {
		if cut := rapid.IntRange(0, len(c.Nodes)).Draw(t, "group"); cut > 0 {
			g := placement.Group{Name: words.Draw(t, "group name"), Kind: kind, BytesPerSecond: rate.Draw(t, "rate"), Latency: seconds.Draw(t, "latency")}
			for _, n := range c.Nodes[:cut] {
				g.Nodes = append(g.Nodes, n.ID)
			}
			c.Groups = append(c.Groups, g)
		}
	}
	return c
}

// TestRoundTrip: what Marshal writes, Parse reads, and once more is the same.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := clusters(t)
		first, err := cluster.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		back, err := cluster.Parse("x", first)
		if err != nil {
			t.Fatalf("%v\n%s", err, first)
		}
		second, err := cluster.Marshal(back)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(first), string(second)); diff != "" {
			t.Error(diff)
		}
		again, err := cluster.Parse("x", second)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(back, again); diff != "" {
			t.Error(diff)
		}
		// Apart from the order of nodes and members nothing was changed.
		byID := map[placement.NodeID]placement.Node{}
		for _, n := range c.Nodes {
			byID[n.ID] = n
		}
		for _, n := range back.Nodes {
			if diff := cmp.Diff(byID[n.ID], n); diff != "" {
				t.Errorf("%s\n%s", diff, first)
			}
		}
		if len(back.Links) != len(c.Links) || len(back.Groups) != len(c.Groups) {
			t.Errorf("%d links and %d groups became %d and %d", len(c.Links), len(c.Groups), len(back.Links), len(back.Groups))
		}
	})
}

// TestLarge: the largest cluster is written and read.
func TestLarge(t *testing.T) {
	c, err := cluster.Parse("x", []byte("nodes: [{name: 'n{0001..1024}', ram: 1TB, nic: 100gbps, devices: [{device: h100, count: 8}, {device: epyc-9654}]}]"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := cluster.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	back, err := cluster.Parse("x", out)
	if err != nil || len(back.Nodes) != 1024 || len(back.Nodes[7].Devices) != 9 {
		t.Errorf("%d nodes, %v", len(back.Nodes), err)
	}
}

// TestBombs: what a small file stands for is bounded.
func TestBombs(t *testing.T) {
	var laugh strings.Builder
	laugh.WriteString("nodes:\n- name: a\n  devices: [{device: rtx3090}]\n  rates: &a0 [x, x, x, x, x, x, x, x, x]\n")
	for i := range 9 {
		fmt.Fprintf(&laugh, "  k%d: &a%d [%s]\n", i, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i), 9), ", "))
	}
	var many strings.Builder
	many.WriteString("nodes:\n- name: a\n  devices: &d\n" + strings.Repeat("  - {memory: 1GB, memory_bandwidth: 1GB/s, rates: {bf16: {linear: 1TFLOP/s}}}\n", 60))
	for i := range 1000 {
		fmt.Fprintf(&many, "- {name: n%d, devices: *d}\n", i)
	}
	for name, text := range map[string]string{
		"laughs": laugh.String(),
		"cycle":  "nodes: &a\n- *a\n",
		"self":   "a: &a {b: *a}\n",
		"many":   many.String(),
		"long":   strings.Repeat("#", cluster.MaxFile+1),
		"deep":   strings.Repeat("[", 100000),
		"keys":   "nodes:\n" + strings.Repeat("- {x: 1}\n", 5000),
		"range":  "nodes: [{name: 'a{1..999999}', devices: [{device: rtx3090}]}]\n",
		"ranges": "nodes: [{name: 'a{1..1024}', devices: [{device: rtx3090}]}, {name: 'b{1..1024}', devices: [{device: rtx3090}]}]\n",
	} {
		_, err := cluster.Parse("x.yaml", []byte(text))
		if err == nil || len(err.Error()) > 20000 {
			t.Errorf("%s: %.300v", name, err)
			continue
		}
		t.Logf("%s: %.200v", name, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("nodes: [{name: den, nic: 1gbps, ram: 32GB, devices: [{device: rtx3090}]}]"))
	f.Add([]byte("version: 1\nnodes:\n- name: a{01..03}\n  nic: wifi6\n  disk: nvme\n  devices:\n  - {kind: cpu, memory: 8GB, memory_bandwidth: 40GB/s, rates: {bf16: [{tokens: 1, linear: 1TFLOP/s}, {tokens: 9, linear: 2TFLOP/s}]}}\nlinks:\n- {between: [a01, a02], rate: 1GB/s, round_trip: 1ms}\ngroups:\n- {name: r, kind: rack, nodes: ['a{01..03}'], rate: 10gbps}\n"))
	f.Add([]byte("nodes: &a [*a]"))
	f.Add([]byte("nodes:\n- {name: a, name: a, nic: -1, memroy: .nan, devices: []}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := cluster.Parse("f", data)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "f:") {
				t.Errorf("no file in %q", err)
			}
			return
		}
		out, err := cluster.Marshal(c)
		if err != nil {
			t.Fatalf("%v of\n%s", err, data)
		}
		back, err := cluster.Parse("f", out)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if diff := cmp.Diff(c, back); diff != "" {
			t.Error(diff)
		}
	})
}
