// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/distorch/distorch/model/lora"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// strengths are those of a run's LoRAs of mode add, in the order of the model's
// input.
type strengths struct {
	deployment string
	all        []*pb.LoRA // of the plan
	values     []float32
}

// newStrengths are those that the plan's LoRAs have, with those given over them.
func newStrengths(p *pb.Plan, given map[string]float32) (strengths, error) {
	s := strengths{deployment: p.GetDeployment(), all: p.GetLoras()}
	for _, l := range s.all {
		if l.GetMode() != string(lora.Merge) {
			s.values = append(s.values, l.GetStrength())
		}
	}
	return s.over(given)
}

// over are the strengths with those given, by name or id.
func (s strengths) over(given map[string]float32) (strengths, error) {
	if len(given) == 0 {
		return s, nil
	}
	s.values = slices.Clone(s.values)
	for _, ref := range slices.Sorted(maps.Keys(given)) {
		if err := s.set(ref, given[ref]); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (s strengths) set(ref string, strength float32) error {
	if err := lora.CheckStrength(float64(strength)); err != nil {
		return err
	}
	at := 0
	var names []string
	for _, l := range s.all {
		merged := l.GetMode() == string(lora.Merge)
		if ref == l.GetName() || ref == l.GetId() {
			switch {
			case merged && strength != l.GetStrength():
				return fmt.Errorf("LoRA %s is merged into deployment %s at strength %g; deploy it again with mode %s, or with the other strength", l.GetName(), s.deployment, l.GetStrength(), lora.Add)
			case !merged:
				s.values[at] = strength
			}
			return nil
		}
		if !merged {
			at++
		}
		names = append(names, l.GetName())
	}
	has := "it has none"
	if len(names) > 0 {
		has = "it has " + strings.Join(names, ", ")
	}
	return fmt.Errorf("deployment %s has no LoRA %.80q; %s", s.deployment, ref, has)
}

// tensor is the model's input, nil for a model that has none.
func (s strengths) tensor() *pb.Tensor {
	if len(s.values) == 0 {
		return nil
	}
	raw := make([]byte, 4*len(s.values))
	tensor.PutF32(raw, s.values)
	return &pb.Tensor{Name: lora.StrengthInput, Dtype: tensor.F32.String(), Shape: []int64{int64(len(s.values))}, Data: raw}
}
