// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

func TestReadArena(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.safetensors")
	var data []safetensors.Data
	for i, n := range []int64{5_000_000, 3, 0, 7, 3_000_000, 64} {
		v := make([]byte, 4*n)
		for j := range v {
			v[j] = byte(j*7 + i)
		}
		data = append(data, safetensors.Data{Entry: safetensors.Entry{Name: fmt.Sprintf("t%d", i), DType: tensor.F32, Shape: tensor.Shape{n}}, Bytes: v})
	}
	if err := safetensors.WriteFile(path, data, nil); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, align := range []int64{1, 64} {
		shuffled := slices.Clone(f.Tensors())
		slices.Reverse(shuffled)
		spans, size := Pack(shuffled, align)
		arena := make([]byte, size)
		if err := ReadArena(t.Context(), f, arena, spans, 2); err != nil {
			t.Fatal(err)
		}
		for i, s := range spans {
			want := make([]byte, s.Size)
			if err := f.ReadAt(want, shuffled[i], 0); err != nil {
				t.Fatal(err)
			}
			if s.At%align != 0 || !bytes.Equal(arena[s.At:s.At+s.Size], want) {
				t.Errorf("align %d: %s differs", align, shuffled[i].Name)
			}
		}
		if err := ReadArena(t.Context(), f, arena[:size-1], spans, 2); err == nil {
			t.Error("an arena too short was accepted")
		}
	}
	spans, size := Pack(f.Tensors(), 1)
	if got := coalesce(spans); len(got) != 1 || got[0].Size != int64(size) {
		t.Errorf("adjoining tensors were not read together: %v", got)
	}
	total := int64(0)
	for _, s := range chunks(coalesce(spans)) {
		if s.Size > readChunk*3/2 {
			t.Errorf("a read of %d bytes", s.Size)
		}
		total += s.Size
	}
	if total != int64(size) {
		t.Errorf("chunks cover %d of %d bytes", total, size)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := ReadArena(ctx, f, make([]byte, size), spans, 2); err == nil {
		t.Error("a cancelled read went on")
	}
}
