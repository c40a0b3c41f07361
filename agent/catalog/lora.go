// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"fmt"
	"path/filepath"

	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph/wire"
	"github.com/distorch/distorch/model/lora"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// LoRATensors is a file's header as model/lora takes it.
func LoRATensors(f checkpoint.File) []lora.Tensor {
	all := f.Tensors()
	out := make([]lora.Tensor, len(all))
	for i, t := range all {
		out[i] = lora.Tensor{Name: t.Name, DType: t.DType, Shape: t.Shape}
	}
	return out
}

func looksLikeLoRA(f checkpoint.File) bool {
	var names []string
	for _, t := range f.Tensors() {
		names = append(names, t.Name)
	}
	return lora.Looks(names)
}

// describeLoRA is the record of a LoRA file: what it changes depends on the
// model that it is put on.
func describeLoRA(f checkpoint.File) (*pb.ModelRecord, error) {
	tensors := LoRATensors(f)
	parsed, err := lora.Parse(tensors)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path(), err)
	}
	id, err := f.QuickID()
	if err != nil {
		return nil, err
	}
	r := &pb.ModelRecord{
		Id: id, Name: filepath.Base(f.Path()), Architecture: lora.Architecture,
		Variant:   fmt.Sprintf("%s names, rank %d", parsed.Style, parsed.Rank),
		FileBytes: uint64(f.Size()),
	}
	var weights []*pb.WeightEntry
	for _, t := range tensors {
		n, err := t.Shape.Elements()
		if err != nil {
			return nil, fmt.Errorf("%s: tensor %q: %w", f.Path(), t.Name, err)
		}
		r.Parameters += uint64(n)
		weights = append(weights, &pb.WeightEntry{Name: t.Name, Dtype: t.DType.String(), Shape: t.Shape})
	}
	if r.PackedWeights, err = wire.PackWeights(weights); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path(), err)
	}
	return r, nil
}
