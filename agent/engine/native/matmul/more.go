// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"fmt"
	"unsafe"
)

// checkMore checks Scale and Add.
func (l *Linear) checkMore(bad func(what string, have, need int) error) error {
	if l.Scale != nil && len(l.Scale) < l.N {
		return bad("scale", 4*len(l.Scale), 4*l.N)
	}
	if l.Add.Data == nil {
		return nil
	}
	if l.Bias != nil || l.Add.Stride < l.N {
		return fmt.Errorf("linear n=%d with a stride of %d of what is added, and a bias: %v", l.N, l.Add.Stride, l.Bias != nil)
	}
	if need := ((l.M-1)*l.Add.Stride + l.N) * l.OutType.Size(); len(l.Add.Data) < need {
		return bad("add", len(l.Add.Data), need)
	}
	return nil
}

// storeMore is store with the sums scaled and a matrix added: a row of it takes
// the place of the bias.
func (r *run) storeMore(row, rows, column int, sums *float32, own *byte) {
	columns := min(PanelColumns, r.N-column)
	if r.Scale != nil {
		by := r.Scale[column : column+columns]
		for i := range rows {
			line := unsafe.Slice(addF32(sums, i*panelBytes), PanelColumns)
			for j, s := range by {
				line[j] *= s
			}
		}
	}
	if r.Add.Data == nil {
		r.store(row, rows, column, sums, own)
		return
	}
	put, size := r.k.storeF32, r.OutType.Size()
	if r.OutType == BF16 {
		put = r.k.storeBF16
	}
	addend := (*float32)(unsafe.Pointer(own))
	line := add(own, panelBytes)
	for i := range rows {
		from := add(unsafe.SliceData(r.Add.Data), ((row+i)*r.Add.Stride+column)*size)
		expand(unsafe.Slice(addend, PanelColumns)[:columns], from, r.OutType)
		out := add(unsafe.SliceData(r.Out.Data), ((row+i)*r.Out.Stride+column)*size)
		if columns == PanelColumns {
			put(1, addF32(sums, i*panelBytes), addend, out, 0)
			continue
		}
		put(1, addF32(sums, i*panelBytes), addend, line, 0)
		copy(unsafe.Slice(out, columns*size), unsafe.Slice(line, columns*size))
	}
}
