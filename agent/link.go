// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
	"github.com/distorch/distorch/transport"
)

const (
	// maxPeers bounds the links that one agent measures at its start.
	maxPeers = 8
	// maxLinks is how many a record holds.
	maxLinks = 64
)

// links is what this node measured of its network; one link at a time.
type links struct {
	mu     sync.Mutex
	record *pb.LinkRecord
}

// first probes the nodes that are there; without any, the link is as fast as
// this machine talks to itself.
func (l *links) first(ctx context.Context, a *Agent) *pb.LinkRecord {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.record = &pb.LinkRecord{Node: a.ID()}
	members, err := a.members(ctx)
	if err != nil {
		a.log.Warn("peers are not known yet", "error", err)
	}
	for i, m := range members {
		if i == maxPeers {
			break
		}
		p, err := a.probe(ctx, m.Id, m.Address)
		if err != nil {
			a.log.Warn("link not measured", "peer", m.Name, "address", m.Address, "error", err)
			continue
		}
		l.put(p)
	}
	if l.record.NicBytesPerSecond == 0 {
		if p, err := a.probe(ctx, a.ID(), a.Address()); err == nil {
			l.best(p)
		} else {
			a.log.Warn("own link not measured", "error", err)
		}
	}
	return proto.CloneOf(l.record)
}

// put takes one link into the record, whose rate is that of the best.
func (l *links) put(p *pb.PeerLink) {
	r := l.record
	if i := slices.IndexFunc(r.Peers, func(x *pb.PeerLink) bool { return x.Node == p.Node }); i >= 0 {
		r.Peers[i] = p
	} else {
		if len(r.Peers) == maxLinks {
			r.Peers = slices.Delete(r.Peers, 0, 1) // the oldest
		}
		r.Peers = append(r.Peers, p)
	}
	l.best(slices.MaxFunc(r.Peers, func(a, b *pb.PeerLink) int {
		return int(min(max(a.BytesPerSecond-b.BytesPerSecond, -1), 1))
	}))
}

func (l *links) best(p *pb.PeerLink) {
	l.record.NicBytesPerSecond, l.record.Latency = p.BytesPerSecond, durationpb.New(p.RoundTrip.AsDuration()/2)
}

func (a *Agent) probe(ctx context.Context, id, address string) (*pb.PeerLink, error) {
	r, err := a.node.Host().Probe(ctx, address, transport.NodeID(id))
	if err != nil {
		return nil, err
	}
	return &pb.PeerLink{Node: id, BytesPerSecond: r.BytesPerSecond, RoundTrip: durationpb.New(r.RoundTrip)}, nil
}

// link measures the link to one node again and tells the cluster.
func (a *Agent) link(ctx context.Context, peer string) (*pb.PeerLink, error) {
	a.links.mu.Lock()
	defer a.links.mu.Unlock()
	members, err := a.members(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(members, func(m *pb.NodeRecord) bool { return m.Id == peer })
	if i < 0 || a.links.record == nil {
		return nil, fmt.Errorf("node %.80q is not registered", peer)
	}
	p, err := a.probe(ctx, peer, members[i].Address)
	if err != nil {
		return nil, err
	}
	a.links.put(p)
	a.mu.Lock()
	lease := a.lease
	a.mu.Unlock()
	return p, store.PutLeased(ctx, lease, store.LinkKey(a.ID()), proto.CloneOf(a.links.record))
}
