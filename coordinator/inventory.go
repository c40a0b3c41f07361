// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"github.com/distorch/distorch/placement"
	clusterfile "github.com/distorch/distorch/placement/cluster"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
)

// Inventory is what a plan can rest on, of the nodes that ListNodes answers:
// the same as a cluster file, and converted as for a deployment's plan.
func Inventory(nodes []*pb.NodeStatus) clusterfile.Cluster {
	var c clusterfile.Cluster
	known := map[string]bool{}
	for _, n := range nodes {
		known[n.GetRecord().GetId()] = true
	}
	for _, n := range nodes {
		id := n.GetRecord().GetId()
		r := nodeFromProto(id, store.Entry[*pb.NodeRecord]{Value: n.GetRecord()}, n.GetLink())
		c.Nodes = append(c.Nodes, r.Inventory())
		for _, p := range n.GetLink().GetPeers() {
			if known[p.GetNode()] && p.GetNode() != id && p.GetBytesPerSecond() >= 1 {
				c.Links = append(c.Links, placement.PeerLink{
					From: placement.NodeID(id), To: placement.NodeID(p.GetNode()),
					BytesPerSecond: p.GetBytesPerSecond(), Latency: p.GetRoundTrip().AsDuration().Seconds() / 2,
				})
			}
		}
	}
	return c
}
