// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"cmp"
	"fmt"

	"github.com/distorch/distorch/coordinator/reconcile"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/graph/wire"
	"github.com/distorch/distorch/model/lora"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
)

// loraFromProto reads the tensors of a LoRA's record.
func loraFromProto(m reconcile.Model, r *pb.ModelRecord) reconcile.Model {
	m.Problem = "it is a LoRA, which goes on top of a model (deploy --lora)"
	f, err := wire.LoRAFile(r)
	if err != nil {
		m.Problem = err.Error()
		return m
	}
	m.LoRA = f
	return m
}

func lorasFromProto(in []*pb.LoRA) (out []reconcile.LoRA) {
	for _, l := range in {
		out = append(out, reconcile.LoRA{
			ID: l.GetId(), Name: l.GetName(), Mode: lora.Mode(cmp.Or(l.GetMode(), string(lora.Add))), Strength: l.GetStrength(), Layers: int(l.GetLayers()), Notes: l.GetNotes(),
			Params: l.GetHyperParameters(), Brought: l.GetBrought(),
		})
	}
	return out
}

func lorasToProto(in []reconcile.LoRA) (out []*pb.LoRA) {
	for i := range in {
		l := &in[i]
		out = append(out, &pb.LoRA{Id: l.ID, Name: l.Name, Mode: string(l.Mode), Strength: l.Strength, Layers: uint32(l.Layers), Notes: l.Notes, HyperParameters: l.Params, Brought: l.Brought})
	}
	return out
}

// completeLoRAs checks the LoRAs of a spec and finds their files.
func completeLoRAs(st *store.State, spec *pb.DeploymentSpec) error {
	if n := len(spec.GetLoras()); n > lora.MaxUses {
		return invalid("%d LoRAs: at most %d", n, lora.MaxUses)
	}
	seen := map[string]bool{}
	for _, l := range spec.GetLoras() {
		id, err := resolve(st, kindLoRA, cmp.Or(l.GetId(), l.GetName()))
		if err != nil {
			return err
		}
		mode, err := lora.ParseMode(l.GetMode())
		if err != nil {
			return invalid("%w", err)
		}
		l.Id, l.Name, l.Mode = id, st.Models[id].Value.GetName(), string(mode)
		if err := lora.CheckStrength(float64(l.GetStrength())); err != nil {
			return invalid("LoRA %s: %w", l.Name, err)
		}
		if seen[id] {
			return invalid("LoRA %s is named twice", l.Name)
		}
		seen[id] = true
	}
	return nil
}

// deployedGraph is the graph that a deployment's stages run.
func (c *Coordinator) deployedGraph(st *store.State, p *pb.Plan, model string) (*graph.Model, error) {
	all := c.graphs.models(st.Models)
	find := func(id string) *reconcile.Model {
		for i := range all {
			if all[i].ID == id {
				return &all[i]
			}
		}
		return nil
	}
	m := find(model)
	if m == nil || m.Graph == nil || len(p.GetLoras()) == 0 {
		if m == nil {
			return nil, nil
		}
		return m.Graph, nil
	}
	with, _, _, err := reconcile.WithLoRAs(m, find, lorasFromProto(p.GetLoras()), p.GetDtype())
	if err != nil {
		return nil, fmt.Errorf("deployment %s: %w", p.GetDeployment(), err)
	}
	return with.Graph, nil
}
