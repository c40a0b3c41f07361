// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"encoding/json"
	"strings"

	"github.com/distorch/distorch/model/tensor"
)

// readable refuses a tensor of the model whose storage this build cannot
// expand.
func readable(name string, t Tensor) error {
	switch t.DType {
	case tensor.F32, tensor.BF16, tensor.F16, tensor.F8E4M3, tensor.F8E5M2:
		return nil
	}
	if !t.DType.Blocked() {
		return unsupported("dtype", "tensor %s is stored as %v: must be F32, BF16, F16, F8_E4M3, F8_E5M2 or a GGUF type", name, t.DType)
	}
	if _, err := t.Shape.Bytes(t.DType); err != nil {
		return unsupported("dtype", "tensor %s: %v", name, err)
	}
	return nil
}

// Names around the scales of fp8 files, as ComfyUI writes them: the older files
// have a tensor scaled_fp8 and NAME.scale_weight beside NAME.weight, the newer
// ones the metadata _quantization_metadata and NAME.weight_scale. The scales of
// inputs serve multiplication in fp8 and change no weight.
const (
	scaledMarker      = "scaled_fp8"
	quantizedMetadata = "_quantization_metadata"
)

// takeScales takes the scales out of a model's tensors: the scale's name by
// that of its weight. A file without any is returned as it is.
func takeScales(own map[string]Tensor, metadata map[string]string) (rest map[string]Tensor, scales map[string]string, err error) {
	if err := refuseFormats(metadata[quantizedMetadata]); err != nil {
		return nil, nil, err
	}
	rest, scales = make(map[string]Tensor, len(own)), map[string]string{}
	for _, name := range sortedKeys(own) {
		dot := strings.LastIndexByte(name, '.')
		layer, kind := name[:max(dot, 0)], name[dot+1:]
		switch {
		case name == scaledMarker || kind == "scale_input" || kind == "input_scale":
		case kind == "weight_scale_2" || kind == "pre_quant_scale":
			return nil, nil, unsupported("fp8-scaled", "quantised file with scales of another kind (tensor %s): use an fp8 or bf16 file of the same model", quote(name))
		case kind == "scale_weight" || kind == "weight_scale":
			weight := layer + ".weight"
			if err := checkScale(name, own[name], weight, own); err != nil {
				return nil, nil, err
			}
			if other, twice := scales[weight]; twice {
				return nil, nil, malformed("fp8-scaled", "tensor %s has two scales, %s and %s", quote(weight), quote(other), quote(name))
			}
			scales[weight] = name
		default:
			rest[name] = own[name]
		}
	}
	return rest, scales, nil
}

// refuseFormats wants every layer that _quantization_metadata names to be fp8
// with one scale.
func refuseFormats(text string) error {
	if text == "" {
		return nil
	}
	var q struct {
		Layers map[string]struct {
			Format string `json:"format"`
		} `json:"layers"`
	}
	if err := json.Unmarshal([]byte(text), &q); err != nil {
		return malformed("fp8-scaled", "metadata %s is not JSON with layers: %.200v", quantizedMetadata, err)
	}
	for _, layer := range sortedKeys(q.Layers) {
		switch f := q.Layers[layer].Format; f {
		case "float8_e4m3fn", "float8_e5m2":
		default:
			return unsupported("fp8-scaled", "layer %s is quantised as %s (metadata %s): use an fp8 or bf16 file of the same model", quote(layer), quote(f), quantizedMetadata)
		}
	}
	return nil
}

func checkScale(name string, t Tensor, weight string, own map[string]Tensor) error {
	if n, err := t.Shape.Elements(); err != nil || n != 1 || t.DType != tensor.F32 {
		return unsupported("fp8-scaled", "scale %s is %v %v: must be one F32 for the whole tensor; use a plain fp8 or bf16 file of the same model", quote(name), t.DType, t.Shape)
	}
	w, ok := own[weight]
	if !ok {
		return malformed("fp8-scaled", "scale %s without %s", quote(name), quote(weight))
	}
	if w.DType != tensor.F8E4M3 && w.DType != tensor.F8E5M2 {
		return malformed("fp8-scaled", "scale %s of a tensor that is stored as %v, must be F8_E4M3 or F8_E5M2", quote(name), w.DType)
	}
	return nil
}

// scale gives the weights their scales. The tensors that make up a weight must
// share one: a weight has one scale.
func (r *Recognised) scale(scales map[string]string) error {
	if len(scales) == 0 {
		return nil
	}
	for _, name := range sortedKeys(r.Stored) {
		src := r.Source(name)
		for i, s := range src.Slices {
			scale := scales[strings.TrimPrefix(s.Tensor, r.Prefix)]
			if i > 0 && scale != src.Scale {
				return unsupported("fp8-scaled", "tensor %s is a part of a weight and has a scale of its own: use the file under ComfyUI's or BFL's names", quote(s.Tensor))
			}
			src.Scale = scale
		}
		if src.Scale == "" {
			continue
		}
		src.Scale = r.Prefix + src.Scale
		if r.Sources == nil {
			r.Sources = map[string]Source{}
		}
		r.Sources[name] = src
	}
	return nil
}
