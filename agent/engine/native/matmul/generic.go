// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"math"
	"unsafe"

	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/model/numeric"
)

func generic() *Kernels {
	k := &Kernels{
		set: isa.Generic, sliceF32: 256, sliceBF16: 256,
		storeF32: storeF32Generic, storeBF16: storeBF16Generic,
	}
	for _, rows := range []int{6, 1} {
		k.tiles = append(k.tiles, tile{rows, PanelColumns, genericTile(rows, stepF32), genericTile(rows, stepBF16)})
	}
	return k
}

func stepF32(c *[PanelColumns]float32, a uint32, b *[PanelColumns]uint32) {
	x := math.Float32frombits(a)
	for j, w := range b {
		c[j] = numeric.FMA32(x, math.Float32frombits(w), c[j])
	}
}

func stepBF16(c *[PanelColumns]float32, a uint32, b *[PanelColumns]uint32) {
	odd, even := math.Float32frombits(a&0xffff0000), math.Float32frombits(a<<16)
	for j, w := range b {
		c[j] = flushFMA(odd, math.Float32frombits(w&0xffff0000), c[j])
		c[j] = flushFMA(even, math.Float32frombits(w<<16), c[j])
	}
}

func genericTile(rows int, step func(c *[PanelColumns]float32, a uint32, b *[PanelColumns]uint32)) tileFunc {
	return func(kc int, a *byte, lda int, b *byte, ldb int, c *float32, ldc int, resume int) {
		for i := range rows {
			sums := (*[PanelColumns]float32)(unsafe.Pointer(addF32(c, i*ldc)))
			if resume == 0 {
				*sums = [PanelColumns]float32{}
			}
			for p := range kc {
				step(sums, *(*uint32)(unsafe.Pointer(add(a, p*lda+4*i))),
					(*[PanelColumns]uint32)(unsafe.Pointer(add(b, p*ldb))))
			}
		}
	}
}

func storeF32Generic(rows int, c *float32, bias *float32, out *byte, ldo int) {
	for i := range rows {
		dst := (*[PanelColumns]float32)(unsafe.Pointer(add(out, i*ldo)))
		for j := range dst {
			dst[j] = finish(c, bias, i, j)
		}
	}
}

func storeBF16Generic(rows int, c *float32, bias *float32, out *byte, ldo int) {
	for i := range rows {
		dst := (*[PanelColumns]uint16)(unsafe.Pointer(add(out, i*ldo)))
		for j := range dst {
			u := math.Float32bits(finish(c, bias, i, j))
			dst[j] = uint16((u + 0x7fff + u>>16&1) >> 16)
		}
	}
}

func finish(c, bias *float32, i, j int) float32 {
	v := *addF32(c, i*panelBytes+4*j)
	if bias != nil {
		v += *addF32(bias, 4*j)
	}
	if v != v {
		return math.Float32frombits(canonicalNaN)
	}
	return v
}
