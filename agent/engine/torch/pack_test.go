// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package torch_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/enginetest"
	"github.com/distorch/distorch/agent/engine/torch"
	"github.com/distorch/distorch/agent/engine/torch/torchtest"
	"github.com/distorch/distorch/model/tensor"
)

func storedTypes() []tensor.DType {
	return []tensor.DType{
		tensor.F32, tensor.F64, tensor.BF16, tensor.F16, tensor.F8E4M3, tensor.F8E5M2, tensor.F8E4M3FNUZ, tensor.F8E5M2FNUZ, tensor.F8E8M0,
		tensor.Q8_0, tensor.Q5_0, tensor.Q5_1, tensor.Q4_0, tensor.Q4_1, tensor.Q2_K, tensor.Q3_K, tensor.Q4_K, tensor.Q5_K, tensor.Q6_K,
		tensor.IQ4_NL, tensor.IQ4_XS, tensor.F8E4M3B64,
	}
}

// packed packs one weight [rows,k] and gives what lies in the packed block.
func packed(t *testing.T, s engine.Session, w engine.Weight, raw []byte, compute tensor.DType) []byte {
	t.Helper()
	p, err := s.Compile(t.Context(), enginetest.Matrix(t, 1, w.Shape[0], w.Shape[1], compute))
	if err != nil {
		t.Fatal(err)
	}
	src, err := s.HostBuffer(tensor.Bytes(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Free()
	copy(src.Host(), raw)
	dst, err := s.Buffer(p.PackedBytes())
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Free()
	back, err := s.HostBuffer(p.PackedBytes())
	if err != nil {
		t.Fatal(err)
	}
	defer back.Free()
	e := s.Pack(p, dst, 0, src, []engine.Weight{w})
	if err := s.Wait(t.Context(), s.Copy(back, 0, dst, 0, p.PackedBytes(), e)); err != nil {
		t.Fatalf("%v to %v: %v", w.DType, compute, err)
	}
	elements, _ := w.Shape.Elements()
	return append([]byte(nil), back.Host()[:elements*int64(compute.Size())]...)
}

// expected is what Go's expansion gives: float32(stored)·scale, rounded once.
func expected(t *testing.T, w engine.Weight, raw []byte) []float32 {
	t.Helper()
	n, _ := w.Shape.Elements()
	v := make([]float32, n)
	if err := tensor.ToF32(v, raw, w.DType); err != nil {
		t.Fatal(err)
	}
	for i := range v {
		if w.Scale != 0 {
			v[i] *= w.Scale
		}
	}
	return v
}

// Every stored type, with and without a scale, is expanded to the bits that Go
// gives, on a device that computes in the host's memory and on one of its own.
func TestPackExpandsAsGo(t *testing.T) {
	devices := map[string]engine.Session{
		"cpu":     open(t, torchtest.Engine(t, torch.Config{Threads: 2})),
		"streams": openStreams(t, streams(t, torch.Config{Threads: 2})),
	}
	const rows, k = 37, 512
	for _, d := range storedTypes() {
		for _, scale := range []float32{0, 0.7} {
			w := engine.Weight{Name: "matrix", DType: d, Shape: tensor.Shape{rows, k}, Scale: scale}
			size, err := w.Shape.Bytes(d)
			if err != nil {
				t.Fatal(err)
			}
			raw := make([]byte, size)
			rng := rand.New(rand.NewPCG(7, uint64(d)))
			for i := range raw {
				raw[i] = byte(rng.Uint32())
			}
			want := expected(t, w, raw)
			for name, s := range devices {
				t.Run(fmt.Sprintf("%v %v %s", d, scale, name), func(t *testing.T) {
					compare(t, packed(t, s, w, raw, tensor.F32), want, tensor.F32)
					compare(t, packed(t, s, w, raw, tensor.BF16), want, tensor.BF16)
				})
			}
		}
	}
}

// compare holds bits against values rounded once; which NaN it is does not
// matter.
func compare(t *testing.T, got []byte, want []float32, d tensor.DType) {
	t.Helper()
	wrong := 0
	for i, x := range want {
		var g, w uint32
		isNaN := false
		if d == tensor.F32 {
			g, w = binary.LittleEndian.Uint32(got[4*i:]), math.Float32bits(x)
			isNaN = math.IsNaN(float64(math.Float32frombits(g)))
		} else {
			g, w = uint32(binary.LittleEndian.Uint16(got[2*i:])), uint32(tensor.BF16FromF32(x))
			isNaN = math.IsNaN(float64(tensor.F32FromBF16(uint16(g))))
		}
		if g == w || isNaN && math.IsNaN(float64(x)) {
			continue
		}
		if wrong++; wrong == 1 {
			t.Errorf("%v: element %d is %#x, want %#x (%v)", d, i, g, w, x)
		}
	}
	if wrong > 1 {
		t.Errorf("%v: %d of %d elements are off", d, wrong, len(want))
	}
}
