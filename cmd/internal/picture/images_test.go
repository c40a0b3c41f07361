// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package picture

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

func tensorsFile(t *testing.T, tensors ...safetensors.Data) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.latent")
	if err := safetensors.WriteFile(path, tensors, nil); err != nil {
		t.Fatal(err)
	}
	return path
}

func filled(t *testing.T, name string, v float32, shape ...int64) safetensors.Data {
	t.Helper()
	n, err := tensor.Shape(shape).Elements()
	if err != nil {
		t.Fatal(err)
	}
	values := make([]float32, n)
	for i := range values {
		values[i] = v
	}
	return safetensors.FromFloat32s(name, shape, values)
}

func TestModelsThatTakeMoreChannels(t *testing.T) {
	for concat, want := range map[string]int64{"0": 0, "16": 16, "80": 80, "": 0} {
		m, err := NewModel(&pb.ModelRecord{Architecture: "flux", HyperParameters: map[string]string{"channels": "16", "concat": concat}})
		if err != nil || m.Concat != want || m.Channels != 16 {
			t.Errorf("concat %q: %+v, %v", concat, m, err)
		}
	}
}

func TestInputs(t *testing.T) {
	control := Model{Variant: "FLUX.1 Control", Channels: 16, Concat: 16}
	fill := Model{Variant: "FLUX.1 Fill", Channels: 16, Concat: 80}
	latent, mask := filled(t, "latent_tensor", 1.1159, 1, 16, 3, 2), filled(t, "mask", 1, 1, 1, 24, 16)
	l, err := ReadInput(tensorsFile(t, latent), control, 16, 24)
	if err != nil || !l.Shape.Equal(tensor.Shape{1, 16, 3, 2}) || l.Values[0] < 0.361 || l.Values[0] > 0.3612 {
		t.Errorf("%v, %v", l, err)
	}
	l, err = ReadInput(tensorsFile(t, latent, mask), fill, 16, 24)
	if err != nil || !l.Shape.Equal(tensor.Shape{1, 80, 3, 2}) || len(l.Values) != 80*6 || l.Values[95] > 0.3612 || l.Values[96] != 1 {
		t.Errorf("%v, %v", l.Shape, err)
	}
	for _, c := range []struct {
		want  string
		model Model
		path  string
	}{
		{"takes a tensor mask [1,1,24,16]", fill, tensorsFile(t, latent)},
		{"tensor mask is [1,1,3,2], must be [1,1,24,16]", fill, tensorsFile(t, latent, filled(t, "mask", 1, 1, 1, 3, 2))},
		{"latent_tensor is missing", control, tensorsFile(t, mask)},
		{"must be [1,16,height/8,width/8]", control, tensorsFile(t, filled(t, "latent_tensor", 1, 1, 4, 3, 2))},
		{"give --width 24 --height 16", control, tensorsFile(t, filled(t, "latent_tensor", 1, 1, 16, 2, 3))},
		{"no such file", control, filepath.Join(t.TempDir(), "none")},
	} {
		if _, err := ReadInput(c.path, c.model, 16, 24); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("want an error about %q, got %v", c.want, err)
		}
	}
}

// What a request brings of images is in its words and in every branch.
func TestSampleWithImages(t *testing.T) {
	r := request(t)
	ref := func(h, w int64) Latent {
		return Latent{Values: make([]float32, 16*h*w), Shape: tensor.Shape{1, 16, h, w}}
	}
	r.References, r.RefMethod = []Latent{ref(4, 5), ref(2, 2)}, "uxo"
	r.CFG = 2
	tokens := r.tokens() // 24x16 pixels are 2 tokens, the references 6 and 1
	r.Text.Mask, r.Text.MaskShape = make([]float32, tokens*tokens), tensor.Shape{1, tokens, tokens}
	if want := r.Text.Tokens() + 2 + 6 + 1; tokens != want {
		t.Errorf("%d tokens, want %d", tokens, want)
	}
	want := map[string]int64{
		"width": 16, "height": 24, "text_tokens": r.Text.Tokens(), "batch": 1, "attention_mask": 1, "ref_method": 2,
		"ref0_width": 40, "ref0_height": 32, "ref1_width": 16, "ref1_height": 16,
	}
	if d := cmp.Diff(want, r.Dims()); d != "" {
		t.Errorf("words (-want +got):\n%s", d)
	}
	e := &endpoint{together: 2, both: make(chan struct{})}
	if _, err := Sample(t.Context(), e, r); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"context", "y", "guidance", "ref.0", "ref.1", "attention_mask"}, e.names); d != "" {
		t.Errorf("the negative branch's tensors (-want +got):\n%s", d)
	}
	for want, change := range map[string]func(*Request){
		"--input":                            func(r *Request) { r.Model.Concat = 16 },
		"takes no --input":                   func(r *Request) { r.Input = &r.References[0] },
		"reference method \"x\"":             func(r *Request) { r.RefMethod = "x" },
		"attention_mask is [1,3,3], must be": func(r *Request) { r.Text.MaskShape = tensor.Shape{1, 3, 3} },
	} {
		bad := r
		change(&bad)
		if _, err := Sample(t.Context(), &endpoint{}, bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error about %q, got %v", want, err)
		}
	}
}
