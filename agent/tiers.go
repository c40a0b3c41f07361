// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"fmt"
	"sync"

	"github.com/distorch/distorch/agent/donor"
	"github.com/distorch/distorch/agent/offload"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport"
)

// tiers are those of a stage of a plan, for the stage runtime.
func (a *Agent) tiers(p *pb.Plan, index int) ([]offload.Tier, error) {
	var out []offload.Tier
	for _, t := range p.Stages[index].Tiers {
		tier := offload.Tier{FirstBlock: int(t.FirstBlock), Blocks: int(t.Blocks)}
		switch t.Kind {
		case pb.BlockTier_DEVICE:
			tier.Kind = offload.Device
		case pb.BlockTier_RAM:
			tier.Kind = offload.RAM
		case pb.BlockTier_DISK:
			tier.Kind = offload.Disk
		case pb.BlockTier_DONOR:
			u, err := a.unit(t.Device)
			if err != nil {
				return nil, fmt.Errorf("donor of blocks %d-%d: %w", t.FirstBlock, t.FirstBlock+t.Blocks-1, err)
			}
			tier.Kind = offload.Donor
			if tier.Donor, err = u.open(); err != nil {
				return nil, err
			}
		case pb.BlockTier_REMOTE:
			tier.Kind, tier.Place = offload.Remote, a.place(p, index, t)
		default:
			return nil, fmt.Errorf("blocks %d-%d rest in tier %v, which this agent does not know; update it", t.FirstBlock, t.FirstBlock+t.Blocks-1, t.Kind)
		}
		out = append(out, tier)
	}
	return out, nil
}

// place is another node's RAM that a plan gives to a stage.
type place struct {
	owner *donor.Owner
	all   *claims
	want  donor.Want
}

func (a *Agent) place(p *pb.Plan, index int, t *pb.BlockTier) *place {
	return &place{a.owner, &a.claims, donor.Want{
		Node: transport.NodeID(t.Node), NodeName: cmp.Or(t.NodeName, t.Node), Address: t.Address, Incarnation: t.Incarnation,
		Deployment: p.Deployment, DeploymentID: p.DeploymentId, Epoch: p.Epoch, Stage: uint32(index),
		Compressed: t.Compressed, Lost: a.lookAgain,
	}}
}

// claims are those of stages that are held, so that a stage ends when a node has
// lost its blocks.
type claims struct {
	mu   sync.Mutex
	open map[*claim]bool
}

func (c *claims) put(x *claim, open bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[*claim]bool{}
	}
	if open {
		c.open[x] = true
	} else {
		delete(c.open, x)
	}
}

// lost says why blocks of a plan are gone; nil where they are not.
func (c *claims) lost(p *pb.Plan) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for x := range c.open {
		if x.id == p.DeploymentId && x.epoch == p.Epoch {
			if err := x.Err(); err != nil {
				return err
			}
		}
	}
	return nil
}

// Name is the node's.
func (l *place) Name() string { return l.want.NodeName }

// Claim asks the node for room.
func (l *place) Claim(ctx context.Context, sizes []tensor.Bytes) (offload.Claim, error) {
	w := l.want
	w.Blocks = sizes
	c, err := l.owner.Claim(ctx, w)
	if err != nil {
		return nil, err
	}
	x := &claim{c, l.all, w.DeploymentID, w.Epoch}
	l.all.put(x, true)
	return x, nil
}

// claim is room that a node gave.
type claim struct {
	*donor.Claim
	all   *claims
	id    string // of the deployment
	epoch uint64
}

// Reader gives one block that is kept there.
func (c *claim) Reader(i int) offload.Reader { return c.Claim.Reader(i) }

// Close gives the room back.
func (c *claim) Close() {
	c.all.put(c, false)
	c.Claim.Close()
}
