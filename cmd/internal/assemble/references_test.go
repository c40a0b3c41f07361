// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"bytes"
	"maps"
	"math"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// withImages is a forward of the demo with the words and tensors given.
func (r *rig) withImages(t testing.TB, words map[string]int64, more ...*pb.Tensor) ([]byte, error) {
	t.Helper()
	dims := map[string]int64{"width": 128, "height": 128, "text_tokens": 5, "batch": 1}
	maps.Copy(dims, words)
	begun, err := r.server.BeginRun(t.Context(), &pb.BeginRunRequest{Deployment: "demo", Dims: dims})
	if err != nil {
		return nil, err
	}
	defer func() {
		if _, err := r.server.EndRun(t.Context(), &pb.EndRunRequest{Run: begun.Run}); err != nil {
			t.Error(err)
		}
	}()
	cond, step := request(t, "large red circle on blue")
	put, err := r.server.PutConditioning(t.Context(), &pb.PutConditioningRequest{Run: begun.Run, Tensors: append(cond, more...)})
	if err != nil {
		return nil, err
	}
	res, err := r.server.Forward(t.Context(), &pb.ForwardRequest{Run: begun.Run, Conditioning: put.Digest, Tensors: step})
	if err != nil {
		return nil, err
	}
	return res.Out.Data, nil
}

func latent(name string, h, w int) *pb.Tensor {
	v := make([]float32, 16*h*w)
	for i := range v {
		v[i] = float32(math.Cos(float64(i)))
	}
	return &pb.Tensor{Name: name, Dtype: "F32", Shape: []int64{1, 16, int64(h), int64(w)}, Data: floats(v...)}
}

func attentionMask(tokens int) *pb.Tensor {
	v := make([]float32, tokens*tokens)
	for i := range v {
		v[i] = -float32(i % 3)
	}
	v[1] = float32(math.Inf(-1))
	return &pb.Tensor{Name: "attention_mask", Dtype: "F32", Shape: []int64{1, int64(tokens), int64(tokens)}, Data: floats(v...)}
}

// References and a mask are a request's own: a deployment placed for them gives
// others the same bits as one that is not, and several agents those of one.
func TestReferencesAndMasks(t *testing.T) {
	workload := map[string]int64{"ref0_width": 96, "ref0_height": 64, "ref1_width": 48, "ref1_height": 72, "attention_mask": 1}
	plain, _, err := newRig(t, "bf16", []int{6}, nil).forward(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var first map[string][]byte
	for _, counts := range [][]int{{6}, {2, 1, 3}} {
		r := newRig(t, "bf16", counts, nil)
		if _, err := r.withImages(t, map[string]int64{"ref0_width": 96, "ref0_height": 64}, latent("ref.0", 8, 12)); status.Code(err) != codes.InvalidArgument ||
			!strings.Contains(err.Error(), "ref0_height 64 is more than the 0 that this deployment is placed for; deploy it again with a larger workload") {
			t.Errorf("references on a deployment without gave %v", err)
		}
		r = newRig(t, "bf16", counts, nil, workload)
		out := map[string][]byte{}
		run := func(name string, words map[string]int64, more ...*pb.Tensor) {
			if out[name], err = r.withImages(t, words, more...); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		run("none", nil)
		run("mask", map[string]int64{"attention_mask": 1}, attentionMask(5+64))
		two := map[string]int64{"ref0_width": 96, "ref0_height": 64, "ref1_width": 40, "ref1_height": 72}
		run("offset", two, latent("ref.0", 8, 12), latent("ref.1", 9, 5))
		two["ref_method"] = 1
		run("index", two, latent("ref.0", 8, 12), latent("ref.1", 9, 5))
		two["ref_method"] = 2
		run("uxo", two, latent("ref.0", 8, 12), latent("ref.1", 9, 5))
		two["attention_mask"] = 1
		run("both", two, latent("ref.0", 8, 12), latent("ref.1", 9, 5), attentionMask(5+64+24+15))
		if !bytes.Equal(out["none"], plain) {
			t.Error("a request without references has other bits where the deployment takes some")
		}
		seen := map[string]string{}
		for name, v := range out {
			if other, ok := seen[string(v)]; ok {
				t.Errorf("%s and %s give the same output", name, other)
			}
			seen[string(v)] = name
		}
		if first == nil {
			first = out
		}
		for name := range out {
			if !bytes.Equal(out[name], first[name]) {
				t.Errorf("%s: the outputs of one and %d agents differ", name, len(counts))
			}
		}
		refusals(t, r)
	}
}

func refusals(t *testing.T, r *rig) {
	one := map[string]int64{"ref0_width": 96, "ref0_height": 64}
	for want, do := range map[string]func() ([]byte, error){
		"tensor ref.0 is missing": func() ([]byte, error) { return r.withImages(t, one) },
		"tensor ref.0 is \"F32\" [1,16,8,11]": func() ([]byte, error) {
			return r.withImages(t, one, latent("ref.0", 8, 11))
		},
		"tensor ref.1 is \"F32\" [1,16,8,12]": func() ([]byte, error) {
			return r.withImages(t, one, latent("ref.0", 8, 12), latent("ref.1", 8, 12))
		},
		"want F32 [1,69,69]": func() ([]byte, error) {
			return r.withImages(t, map[string]int64{"attention_mask": 1}, attentionMask(68))
		},
		"attention_mask is missing":             func() ([]byte, error) { return r.withImages(t, map[string]int64{"attention_mask": 1}) },
		"ref0_width 104 is more than the 96":    func() ([]byte, error) { return r.withImages(t, map[string]int64{"ref0_width": 104, "ref0_height": 64}) },
		"ref2_height 8 is more than the 0":      func() ([]byte, error) { return r.withImages(t, map[string]int64{"ref2_width": 8, "ref2_height": 8}) },
		"does not know \"ref4_width\"":          func() ([]byte, error) { return r.withImages(t, map[string]int64{"ref4_width": 8}) },
		"ref_method is 3, must be 0 to 2":       func() ([]byte, error) { return r.withImages(t, map[string]int64{"ref_method": 3}) },
		"attention_mask is -1, must be 0 to 1":  func() ([]byte, error) { return r.withImages(t, map[string]int64{"attention_mask": -1}) },
		"smaller than one patch":                func() ([]byte, error) { return r.withImages(t, map[string]int64{"ref0_width": 8, "ref0_height": 64}) },
		"tensor \"concat\" is not an input of ": func() ([]byte, error) { return r.withImages(t, nil, latent("concat", 16, 16)) },
	} {
		if _, err := do(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
	if _, err := r.withImages(t, nil); err != nil {
		t.Errorf("after the refusals: %v", err)
	}
}
