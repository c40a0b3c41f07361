// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"fmt"
	"unsafe"
)

// PackedLen is the bytes of n×k weights once packed: n padded to a multiple
// of PanelColumns and, in bf16, k to an even number. It is the same on every
// instruction set.
func PackedLen(d DType, n, k int) int {
	return (n + PanelColumns - 1) / PanelColumns * panelBytes * d.Steps(k)
}

// Pack packs rows rowFrom to rowTo of the [n,k] row-major weights into dst,
// which holds all of them (PackedLen bytes). src holds those rows alone.
// rowFrom, and rowTo unless it is n, are multiples of PanelColumns; pieces may
// be packed at the same time.
func Pack(d DType, dst, src []byte, n, k, rowFrom, rowTo int) error {
	rows := rowTo - rowFrom
	switch {
	case rowFrom < 0 || rows < 0 || rowTo > n || rowFrom%PanelColumns != 0 || rowTo%PanelColumns != 0 && rowTo != n:
		return fmt.Errorf("pack rows %d to %d of %d: not on panels of %d", rowFrom, rowTo, n, PanelColumns)
	case len(dst) < PackedLen(d, n, k):
		return fmt.Errorf("pack %d×%d %s weights: %d bytes given, %d needed", n, k, d, len(dst), PackedLen(d, n, k))
	case len(src) < rows*k*d.Size():
		return fmt.Errorf("pack rows %d to %d of %d×%d %s weights: %d bytes of them given, %d needed",
			rowFrom, rowTo, n, k, d, len(src), rows*k*d.Size())
	case rows == 0 || k == 0:
		return nil
	}
	PackRight(d, &dst[rowFrom/PanelColumns*panelBytes*d.Steps(k)], &src[0], k*d.Size(), rows, k)
	return nil
}

// PackRight packs rows of k elements, rowBytes apart, into panels at dst.
func PackRight(d DType, dst, src *byte, rowBytes, rows, k int) {
	for r := 0; r < rows; r += PanelColumns {
		packWords(d, add(dst, r*4*d.Steps(k)), PanelColumns, add(src, r*rowBytes), rowBytes, min(PanelColumns, rows-r), k)
	}
}

// packChunk is the number of steps that are transposed at once, so that the
// lines written stay in the first-level cache.
const packChunk = 64

// packWords transposes rows of k elements (rowBytes apart) to dst[step][width]
// in 4-byte slots; slots of missing rows and of an odd k are zero.
func packWords(d DType, dst *byte, width int, src *byte, rowBytes, rows, k int) {
	steps := d.Steps(k)
	whole := k * d.Size() / 4
	for p := 0; p < whole; p += packChunk {
		n := min(packChunk, whole-p)
		for r := range rows {
			from := unsafe.Slice((*uint32)(unsafe.Pointer(add(src, r*rowBytes+p*4))), n)
			to := unsafe.Pointer(add(dst, (p*width+r)*4))
			for _, v := range from {
				*(*uint32)(to) = v
				to = unsafe.Add(to, width*4)
			}
		}
	}
	if whole < steps {
		for r := range rows {
			last := *(*uint16)(unsafe.Pointer(add(src, r*rowBytes+(k-1)*2)))
			*(*uint32)(unsafe.Pointer(add(dst, (whole*width+r)*4))) = uint32(last)
		}
	}
	if rows == width {
		return
	}
	for p := range steps {
		clear(unsafe.Slice((*uint32)(unsafe.Pointer(add(dst, (p*width+rows)*4))), width-rows))
	}
}

// expandWords is packWords for bf16 with each pair as two floats, odd first.
func expandWords(dst *byte, width int, src *byte, rowBytes, rows, k int) {
	whole := k / 2
	for p := 0; p < whole; p += packChunk {
		n := min(packChunk, whole-p)
		for r := range rows {
			from := unsafe.Slice((*uint32)(unsafe.Pointer(add(src, r*rowBytes+p*4))), n)
			to := unsafe.Pointer(add(dst, (p*2*width+r)*4))
			for _, v := range from {
				*(*uint32)(to) = v & 0xffff0000
				*(*uint32)(unsafe.Add(to, width*4)) = v << 16
				to = unsafe.Add(to, width*8)
			}
		}
	}
	if whole*2 < k {
		for r := range rows {
			last := *(*uint16)(unsafe.Pointer(add(src, r*rowBytes+(k-1)*2)))
			to := unsafe.Pointer(add(dst, (whole*2*width+r)*4))
			*(*uint32)(to) = 0
			*(*uint32)(unsafe.Add(to, width*4)) = uint32(last) << 16
		}
	}
}

// PackLeft packs rows of k elements (rowBytes apart) as a left factor, by
// tiles: row r's tile begins at dst + r*4*LeftWords(d, k). first and every cut
// before the last row must be where a tile of all rows begins (TileRows).
func (k *Kernels) PackLeft(d DType, dst, src *byte, rowBytes, rows, n int) {
	for row := 0; row < rows; {
		t := k.tileFor(rows - row)
		k.packTile(d, add(dst, row*4*k.LeftWords(d, n)), t.rows, add(src, row*rowBytes), rowBytes, n)
		row += t.rows
	}
}

// TileRows is the number of rows of a full tile.
func (k *Kernels) TileRows() int { return k.tiles[0].rows }

func (k *Kernels) packTile(d DType, dst *byte, width int, src *byte, rowBytes, n int) {
	if d == BF16 && k.expand {
		expandWords(dst, width, src, rowBytes, width, n)
		return
	}
	packWords(d, dst, width, src, rowBytes, width, n)
}
