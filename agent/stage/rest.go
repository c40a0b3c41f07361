// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"fmt"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/offload"
	"github.com/distorch/distorch/model/tensor"
)

// planned is where each launch rests by the configuration, and the tier that
// says so; head, tail and entries are no blocks.
func (st *Stage) planned() ([]offload.Rest, []*offload.Tier, error) {
	rests, tiers := make([]offload.Rest, len(st.launches)), make([]*offload.Tier, len(st.launches))
	own := st.session.Device()
	for k := range st.cfg.Tiers {
		t := &st.cfg.Tiers[k]
		if t.FirstBlock < st.cfg.FirstBlock || t.Blocks < 1 || t.FirstBlock+t.Blocks > st.cfg.FirstBlock+st.cfg.Blocks {
			return nil, nil, fmt.Errorf("tier %v of blocks %d-%d: the stage has blocks %d-%d", t.Kind, t.FirstBlock, t.FirstBlock+t.Blocks-1,
				st.cfg.FirstBlock, st.cfg.FirstBlock+st.cfg.Blocks-1)
		}
		r := offload.Rest{Kind: t.Kind}
		switch {
		case t.Kind == offload.Donor && t.Donor == nil, t.Kind == offload.Remote && t.Place == nil:
			return nil, nil, fmt.Errorf("tier %v of blocks %d-%d: it does not say whose memory that is", t.Kind, t.FirstBlock, t.FirstBlock+t.Blocks-1)
		case t.Kind == offload.Donor:
			r.Donor = t.Donor.Device().ID
		case t.Kind == offload.Remote:
			r.Node = t.Place.Name()
		case t.Kind == offload.RAM && own.Unified:
			r.Kind = offload.Device // its memory is the RAM
		}
		for i := range st.launches {
			if b := st.launches[i].Block; b < t.FirstBlock || b >= t.FirstBlock+t.Blocks {
				continue
			}
			if tiers[i] != nil {
				return nil, nil, fmt.Errorf("block %d has two tiers, %v and %v", st.launches[i].Block, tiers[i].Kind, t.Kind)
			}
			rests[i], tiers[i] = r, t
		}
	}
	return rests, tiers, nil
}

// settle finds where the launches can rest with what is free now.
func (st *Stage) settle() error {
	rests, _, err := st.planned()
	if err != nil {
		return err
	}
	settled, moved, err := offload.Settle(rests, st.movable(), st.room(), st.cfg.Fit, !st.session.Device().Unified, st.needs)
	if err != nil {
		return fmt.Errorf("blocks %d-%d on %s: %w", st.cfg.FirstBlock, st.cfg.FirstBlock+st.cfg.Blocks-1, st.session.Device().ID, err)
	}
	for i := range moved {
		moved[i].Block = st.launches[moved[i].Block].Block
	}
	st.moved, st.need = moved, st.needs(settled)
	for i := range st.launches {
		st.launches[i].rest = settled[i]
	}
	if len(moved) > 0 {
		st.cfg.Log.Warn("blocks rest in a slower tier than planned, for memory is short", "device", string(st.session.Device().ID), "moved", offload.Describe(moved))
	}
	return nil
}

// Moved lists the blocks, counted over all runs, that rest elsewhere than the
// configuration says, since memory was short.
func (st *Stage) Moved() []offload.Move { return st.moved }

// movable are the launches that are blocks.
func (st *Stage) movable() []bool {
	out := make([]bool, len(st.launches))
	for i := range out {
		out[i] = st.launches[i].Block >= 0
	}
	return out
}

// room is what the accounts have left.
func (st *Stage) room() offload.Room {
	free := func(used, _, limit tensor.Bytes) tensor.Bytes {
		if limit == 0 {
			return -1
		}
		return limit - used
	}
	r := offload.Room{Device: free(st.session.Account()), Host: -1, Donors: map[engine.DeviceID]tensor.Bytes{}}
	if r.Device >= 0 {
		r.Device = max(r.Device-st.cfg.Reserve, 0)
	}
	if !st.session.Device().Unified {
		r.Host = free(st.session.HostAccount())
	}
	for _, t := range st.cfg.Tiers {
		if t.Kind == offload.Donor {
			r.Donors[t.Donor.Device().ID] = free(t.Donor.Account())
		}
	}
	st.held(&r)
	return r
}
