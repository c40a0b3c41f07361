// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"fmt"

	"github.com/distorch/distorch/agent/engine/native/isa"
)

// moverAVX2 serves every set from AVX2 on.
func moverAVX2() mover {
	return mover{
		words8: transposeWordsx8, words6: transposeWordsx6,
		pairs8: transposePairsx8, pairs6: transposePairsx6,
		pairRows: pairRowsAVX2,
	}
}

func native(set isa.ISA) (*Kernels, error) {
	switch set {
	case isa.AVX2:
		return &Kernels{
			set: set, expand: true, sliceF32: 256, sliceBF16: 384,
			mover: moverAVX2(), storeF32: storeF32AVX2, storeBF16: storeBF16AVX2,
			tiles: []tile{
				{6, 16, tileF32AVX2x6, tileBF16AVX2x6},
				{4, 16, tileF32AVX2x4, tileBF16AVX2x4},
				{2, 32, tileF32AVX2x2, tileBF16AVX2x2},
				{1, 32, tileF32AVX2x1, tileBF16AVX2x1},
			},
		}, nil
	case isa.AVX512, isa.AVX512BF16:
		k := &Kernels{
			set: set, expand: true, sliceF32: 384, sliceBF16: 384,
			mover: moverAVX2(), storeF32: storeF32AVX512, storeBF16: storeBF16AVX512,
			tiles: []tile{
				{14, 32, tileF32AVX512x14, tileBF16AVX512x14},
				{8, 32, tileF32AVX512x8, tileBF16AVX512x8},
				{4, 32, tileF32AVX512x4, tileBF16AVX512x4},
				{2, 32, tileF32AVX512x2, tileBF16AVX512x2},
				{1, 32, tileF32AVX512x1, tileBF16AVX512x1},
			},
		}
		if set == isa.AVX512BF16 {
			k.expand = false
			for i, f := range []tileFunc{
				tileDotAVX512x14, tileDotAVX512x8, tileDotAVX512x4, tileDotAVX512x2, tileDotAVX512x1,
			} {
				k.tiles[i].bf16 = f
			}
		}
		return k, nil
	default:
		return nil, fmt.Errorf("matrix kernels for %s: there are none", set)
	}
}
