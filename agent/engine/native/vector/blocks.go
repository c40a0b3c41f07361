// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package vector

import (
	"fmt"

	"github.com/distorch/distorch/model/tensor"
)

// expander holds the kernels of one block type, for whole blocks.
type expander struct {
	f32  func(dst []float32, src []byte)
	bf16 func(dst []uint16, src []byte)
}

// BlocksToF32 expands len(dst) elements that lie in blocks (tensor.DType's
// Blocked), to the values of tensor.ToF32; what is not a number becomes the
// canonical one. dst is whole blocks and src has their bytes.
func (k *Kernels) BlocksToF32(dst []float32, src []byte, d tensor.DType) error {
	if err := checkBlocks(len(dst), len(src), d); err != nil {
		return err
	}
	if e, ok := k.convert.blocks[d]; ok {
		e.f32(dst, src)
		return nil
	}
	if err := tensor.ToF32(dst, src, d); err != nil {
		return err
	}
	for i, x := range dst {
		dst[i] = canonical(x)
	}
	return nil
}

// BlocksToBF16 is BlocksToF32 rounded to bf16 once.
func (k *Kernels) BlocksToBF16(dst []uint16, src []byte, d tensor.DType) error {
	if err := checkBlocks(len(dst), len(src), d); err != nil {
		return err
	}
	if e, ok := k.convert.blocks[d]; ok {
		e.bf16(dst, src)
		return nil
	}
	var b buffer
	for from, to := range pieces(len(dst)) {
		values, n := b[:to-from], int(d.RowBytes(int64(to-from)))
		if err := tensor.ToF32(values, src[:n], d); err != nil {
			return err
		}
		store(dst[from:to], values)
		src = src[n:]
	}
	return nil
}

func checkBlocks(n, bytes int, d tensor.DType) error {
	elements, size := d.Block()
	if !d.Blocked() || n%elements != 0 || bytes != n/elements*size {
		return fmt.Errorf("expand %v: %d bytes are not the blocks of %d elements", d, bytes, n)
	}
	return nil
}
