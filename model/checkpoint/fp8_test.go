// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package checkpoint_test

import (
	"bytes"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

// wave is n values of both signs and many magnitudes.
func wave(n int) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(math.Sin(float64(i)) * math.Exp(float64(i%19)-9))
	}
	return v
}

func TestInFP8(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.safetensors")
	data := []safetensors.Data{
		safetensors.FromFloat32s("a", tensor.Shape{3, 64}, wave(192)),
		safetensors.FromFloat32s("bias", tensor.Shape{64}, wave(64)),
		safetensors.FromFloat32s("large", tensor.Shape{300, 128}, wave(300*128)),
		safetensors.FromFloat32s("odd", tensor.Shape{4, 48}, wave(192)),
		safetensors.FromFloat32s("left", tensor.Shape{2, 64}, wave(128)),
	}
	if err := safetensors.WriteFile(path, data, nil); err != nil {
		t.Fatal(err)
	}
	f := open(t, path)
	q := checkpoint.InFP8(f, func(name string) bool { return name != "left" })
	want := map[string][]byte{}
	var all []byte
	for _, x := range q.Tensors() {
		stored, _ := f.Lookup(x.Name)
		raw := make([]byte, stored.Size)
		if err := f.ReadAt(raw, stored, 0); err != nil {
			t.Fatal(err)
		}
		if narrow := x.Name == "a" || x.Name == "large"; narrow != (x.DType == tensor.F8E4M3B64) {
			t.Errorf("%s is %v", x.Name, x.DType)
		}
		if x.DType == tensor.F8E4M3B64 {
			values := make([]float32, stored.Size/4)
			if err := tensor.ToF32(values, raw, tensor.F32); err != nil {
				t.Fatal(err)
			}
			raw = make([]byte, x.Size)
			if err := tensor.FromF32(raw, values, x.DType); err != nil {
				t.Fatal(err)
			}
			all = append(all, raw...)
		}
		want[x.Name] = raw
		got := make([]byte, x.Size)
		if err := q.ReadAt(got, x, 0); err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%s: other bytes, %v", x.Name, err)
		}
	}
	a, _ := q.Lookup("a")
	rapid.Check(t, func(rt *rapid.T) {
		from := rapid.IntRange(0, len(all)).Draw(rt, "from")
		to := rapid.IntRange(from, len(all)).Draw(rt, "to")
		got := make([]byte, to-from)
		if err := q.ReadPart(got, a.Part, int64(from)); err != nil || !bytes.Equal(got, all[from:to]) {
			rt.Errorf("bytes %d to %d differ, %v", from, to, err)
		}
	})
	for _, at := range []int64{-1, int64(len(all)), math.MaxInt64} {
		if q.ReadPart(make([]byte, 1), a.Part, at) == nil {
			t.Errorf("a byte at %d of %d was read", at, len(all))
		}
	}
	if q.ReadAt(make([]byte, 2), a, int64(a.Size)-1) == nil {
		t.Error("bytes outside a tensor were read")
	}
	id, err := f.QuickID()
	if other, err2 := q.QuickID(); err != nil || err2 != nil || id != other {
		t.Errorf("ids %s and %s: %v, %v", id, other, err, err2)
	}
	if left, _ := q.Lookup("left"); left.DType != tensor.F32 {
		t.Errorf("left is %v", left.DType)
	}
}

func TestInFP8OfGGUFAndOfInfinity(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.gguf")
	writeGGUF(t, path, 0, 1, 7, "a")
	if x, _ := checkpoint.InFP8(open(t, path), nil).Lookup("a"); x.DType != tensor.Q8_0 { // as small already
		t.Errorf("Q8_0 became %v", x.DType)
	}
	path = filepath.Join(t.TempDir(), "inf.safetensors")
	v := wave(128)
	v[70] = float32(math.Inf(1))
	if err := safetensors.WriteFile(path, []safetensors.Data{safetensors.FromFloat32s("w", tensor.Shape{2, 64}, v)}, nil); err != nil {
		t.Fatal(err)
	}
	q := checkpoint.InFP8(open(t, path), nil)
	w, _ := q.Lookup("w")
	if err := q.ReadAt(make([]byte, w.Size), w, 0); err == nil || !strings.Contains(err.Error(), `tensor "w"`) || !strings.Contains(err.Error(), "must be finite") {
		t.Errorf("an infinity: %v", err)
	}
}

func BenchmarkInFP8(b *testing.B) {
	path := filepath.Join(b.TempDir(), "m.safetensors")
	if err := safetensors.WriteFile(path, []safetensors.Data{safetensors.FromFloat32s("w", tensor.Shape{1024, 3072}, wave(1024*3072))}, nil); err != nil {
		b.Fatal(err)
	}
	f, err := checkpoint.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	q := checkpoint.InFP8(f, nil)
	w, _ := q.Lookup("w")
	dst := make([]byte, w.Size)
	b.SetBytes(1024 * 3072)
	for b.Loop() {
		if err := q.ReadAt(dst, w, 0); err != nil {
			b.Fatal(err)
		}
	}
}
