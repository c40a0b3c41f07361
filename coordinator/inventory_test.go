// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/distorch/distorch/placement"
	clusterfile "github.com/distorch/distorch/placement/cluster"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// TestInventory: nodes become what a cluster file of them is read as.
func TestInventory(t *testing.T) {
	rates := func(dtype string, elements uint64, linear float64) *pb.Rates {
		return &pb.Rates{Dtype: dtype, Elements: elements, LinearFlopsPerSecond: linear, AttentionFlopsPerSecond: linear / 2, ExpandBytesPerSecond: 5e9, ElementwiseBytesPerSecond: 2e10}
	}
	node := func(name string, link *pb.LinkRecord, rs ...*pb.Rates) *pb.NodeStatus {
		return &pb.NodeStatus{Link: link, Record: &pb.NodeRecord{Id: "n-" + name, Name: name, LoadBytesPerSecond: 1e9, Devices: []*pb.Device{{
			Name: "cpu", MemoryAllocatableBytes: 8e9, OverheadBytes: 1e9, NumericsClasses: []string{"native/1/f32", "native/1/bf16"}, Rates: rs,
		}}}}
	}
	link := &pb.LinkRecord{NicBytesPerSecond: 1.25e8, Latency: durationpb.New(100 * time.Microsecond), Peers: []*pb.PeerLink{
		{Node: "n-b", BytesPerSecond: 1.1e8, RoundTrip: durationpb.New(400 * time.Microsecond)}, {Node: "n-gone", BytesPerSecond: 1e8},
	}}
	c := Inventory([]*pb.NodeStatus{
		node("a", link, rates("bf16", 1<<20, 4e11), rates("bf16", 1<<16, 2e11), rates("f32", 1<<20, 1e11)),
		node("b", nil, rates("bf16", 1<<20, 4e11)),
		node("c", link, &pb.Rates{Dtype: "bf16"}),
	})
	want := placement.Node{
		ID: "n-a", Name: "a", Load: 1e9, HasModel: true, Link: placement.Link{BytesPerSecond: 1.25e8, Latency: 1e-4, Source: placement.SourceMeasured},
		Devices: []placement.Device{{
			ID: "cpu", Kind: placement.KindCPU, Allocatable: 7e9, Memory: 2e10, Expansion: 5e9, Class: "native/1", Source: placement.SourceMeasured,
			Rates: []placement.Rate{
				{DType: "bf16", Linear: 2e11, Attention: 1e11, Tokens: 256}, {DType: "bf16", Linear: 4e11, Attention: 2e11, Tokens: 1024},
				{DType: "f32", Linear: 1e11, Attention: 5e10, Tokens: 1024},
			},
		}},
	}
	if diff := cmp.Diff(want, c.Nodes[0]); diff != "" {
		t.Error(diff)
	}
	for i, why := range []string{"", "not been measured", "memory bytes/s is 0"} {
		if got := c.Nodes[i].Rejected; (why == "") != (got.Kind == "") || !strings.Contains(got.Detail, why) {
			t.Errorf("node %s: %v, want %q", c.Nodes[i].Name, got, why)
		}
	}
	if diff := cmp.Diff([]placement.PeerLink{{From: "n-a", To: "n-b", BytesPerSecond: 1.1e8, Latency: 2e-4}, {From: "n-c", To: "n-b", BytesPerSecond: 1.1e8, Latency: 2e-4}}, c.Links); diff != "" {
		t.Error(diff)
	}
	// What forwards taught counts, near the size that taught it.
	slow := node("d", link, rates("bf16", 1<<20, 4e11), rates("bf16", 1<<16, 2e11))
	slow.Record.Devices[0].Feedback = []*pb.Feedback{{Dtype: "bf16", Elements: 1 << 20, Ratio: 2, Samples: 20}}
	slow.Record.Devices[0].Rates[0].Uncertainty = &pb.RateUncertainty{Linear: 0.03, Attention: 0.05}
	d := Inventory([]*pb.NodeStatus{slow}).Nodes[0].Devices[0]
	if diff := cmp.Diff([]placement.Rate{{DType: "bf16", Linear: 2e11, Attention: 1e11, Tokens: 256}, {DType: "bf16", Linear: 2e11, Attention: 1e11, Tokens: 1024}}, d.Rates); diff != "" || d.Spread != 0.05 || d.Memory != 1e10 {
		t.Errorf("%s spread %g, memory %g", diff, d.Spread, d.Memory)
	}
	text, err := clusterfile.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	back, err := clusterfile.Parse("x", text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, back.Nodes[0]); diff != "" {
		t.Error(diff)
	}
}
