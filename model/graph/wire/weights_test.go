// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"bytes"
	"compress/flate"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/distorch/distorch/model/graph/wire"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

func TestPackWeights(t *testing.T) {
	var all []*pb.WeightEntry
	for i := range 57 {
		for _, part := range []string{"lora_down", "lora_up"} {
			all = append(all, &pb.WeightEntry{Name: fmt.Sprintf("lora_unet_double_blocks_%d_img_attn_qkv.%s.weight", i, part), Dtype: "BF16", Shape: []int64{16, 3072}})
		}
	}
	packed, err := wire.PackWeights(all)
	if err != nil {
		t.Fatal(err)
	}
	if len(packed) > 15*len(all) {
		t.Errorf("%d tensors take %d bytes", len(all), len(packed))
	}
	back, err := wire.UnpackWeights(packed)
	if err != nil || !proto.Equal(&pb.ModelRecord{Weights: all}, &pb.ModelRecord{Weights: back}) {
		t.Errorf("they come back as %v (%v)", back, err)
	}
	var bomb bytes.Buffer
	w, _ := flate.NewWriter(&bomb, 9)
	for range 17 {
		_, _ = w.Write(make([]byte, 1<<20))
	}
	_ = w.Close()
	for _, bad := range [][]byte{nil, {1, 2, 3}, bomb.Bytes(), packed[:len(packed)/2]} {
		if _, err := wire.UnpackWeights(bad); err == nil {
			t.Errorf("%d bytes that are none were taken", len(bad))
		}
	}
}

func FuzzUnpackWeights(f *testing.F) {
	packed, err := wire.PackWeights([]*pb.WeightEntry{{Name: "a.lora_up.weight", Dtype: "F32", Shape: []int64{4, 2}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packed)
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := wire.UnpackWeights(b)
		if err != nil {
			return
		}
		again, err := wire.PackWeights(all)
		if err != nil {
			t.Fatal(err)
		}
		back, err := wire.UnpackWeights(again)
		if err != nil || !proto.Equal(&pb.ModelRecord{Weights: all}, &pb.ModelRecord{Weights: back}) {
			t.Fatalf("%v becomes %v (%v)", all, back, err)
		}
	})
}
