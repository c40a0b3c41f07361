// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"

	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/lora"
	"github.com/distorch/distorch/model/tensor"
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

// LoRARecord is the record of a LoRA file: what it changes depends on the model
// that it is put on.
func LoRARecord(id, name string, f checkpoint.File) (*pb.ModelRecord, error) {
	tensors := LoRATensors(f)
	metadata := f.Metadata()
	parsed, err := lora.Read(tensors, metadata)
	if err != nil {
		return nil, err
	}
	r := &pb.ModelRecord{
		Id: id, Name: name, Architecture: lora.Architecture,
		Variant: fmt.Sprintf("%s names, rank %d", parsed.Style, parsed.Rank), FileBytes: uint64(f.Size()),
	}
	var weights []*pb.WeightEntry
	for _, t := range tensors {
		n, err := t.Shape.Elements()
		if err != nil {
			return nil, fmt.Errorf("tensor %q: %w", t.Name, err)
		}
		r.Parameters += uint64(n)
		weights = append(weights, &pb.WeightEntry{Name: t.Name, Dtype: t.DType.String(), Shape: t.Shape})
	}
	if r.PackedWeights, err = PackWeights(weights); err != nil {
		return nil, err
	}
	if parsed.Patches != nil {
		r.Variant = fmt.Sprintf("a client's patches, rank %d", parsed.Rank)
		r.PackedPatches, err = deflate([]byte(metadata[lora.PatchesKey]))
	}
	return r, err
}

// LoRAFile reads a LoRA's record.
func LoRAFile(r *pb.ModelRecord) (*lora.File, error) {
	weights, err := UnpackWeights(r.GetPackedWeights())
	if err != nil {
		return nil, err
	}
	var tensors []lora.Tensor
	for _, w := range weights {
		d, err := tensor.ParseDType(w.GetDtype())
		if err != nil {
			return nil, err
		}
		tensors = append(tensors, lora.Tensor{Name: w.GetName(), DType: d, Shape: w.GetShape()})
	}
	if len(r.GetPackedPatches()) == 0 {
		return lora.Parse(tensors)
	}
	list, err := inflate(r.GetPackedPatches())
	if err != nil {
		return nil, fmt.Errorf("read packed patches: %w", err)
	}
	return lora.ParsePatches(string(list), tensors)
}
