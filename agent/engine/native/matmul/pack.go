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

// Pack is Kernels.Pack in pure Go; the bytes are the same.
func Pack(d DType, dst, src []byte, n, k, rowFrom, rowTo int) error {
	return generic().Pack(d, dst, src, n, k, rowFrom, rowTo)
}

// Pack packs rows rowFrom to rowTo of the [n,k] row-major weights into dst,
// which holds all of them (PackedLen bytes). src holds those rows alone.
// rowFrom, and rowTo unless it is n, are multiples of PanelColumns; pieces may
// be packed at the same time.
func (k *Kernels) Pack(d DType, dst, src []byte, n, depth, rowFrom, rowTo int) error {
	rows := rowTo - rowFrom
	switch {
	case rowFrom < 0 || rows < 0 || rowTo > n || rowFrom%PanelColumns != 0 || rowTo%PanelColumns != 0 && rowTo != n:
		return fmt.Errorf("pack rows %d to %d of %d: not on panels of %d", rowFrom, rowTo, n, PanelColumns)
	case len(dst) < PackedLen(d, n, depth):
		return fmt.Errorf("pack %d×%d %s weights: %d bytes given, %d needed", n, depth, d, len(dst), PackedLen(d, n, depth))
	case len(src) < rows*depth*d.Size():
		return fmt.Errorf("pack rows %d to %d of %d×%d %s weights: %d bytes of them given, %d needed",
			rowFrom, rowTo, n, depth, d, len(src), rows*depth*d.Size())
	case rows == 0 || depth == 0:
		return nil
	}
	k.PackRight(d, &dst[rowFrom/PanelColumns*panelBytes*d.Steps(depth)], &src[0], depth*d.Size(), rows, depth)
	return nil
}

// PackRight packs rows of depth elements, rowBytes apart, into panels at dst.
func (k *Kernels) PackRight(d DType, dst, src *byte, rowBytes, rows, depth int) {
	for r := 0; r < rows; r += PanelColumns {
		k.mover.pack(d, false, add(dst, r*4*d.Steps(depth)), PanelColumns, add(src, r*rowBytes), rowBytes,
			min(PanelColumns, rows-r), depth)
	}
}

// PackRightRows packs a right factor whose k runs over rows: depth rows of n
// elements, rowBytes apart, become panels of n at dst.
func (k *Kernels) PackRightRows(d DType, dst, src *byte, rowBytes, depth, n int) {
	steps := d.Steps(depth)
	for c := 0; c < n; c += PanelColumns {
		k.mover.packRows(d, add(dst, c*4*steps), add(src, c*d.Size()), rowBytes, depth, min(PanelColumns, n-c))
	}
}

// PackLeft packs rows of depth elements, rowBytes apart, as a left factor, by
// tiles: row r's tile begins at dst + r*4*LeftWords(d, depth). Rows packed by
// several calls must be cut at multiples of TileRows.
func (k *Kernels) PackLeft(d DType, dst, src *byte, rowBytes, rows, depth int) {
	for row := 0; row < rows; {
		t := k.tileFor(rows - row)
		k.mover.pack(d, d == BF16 && k.expand, add(dst, row*4*k.LeftWords(d, depth)), t.rows,
			add(src, row*rowBytes), rowBytes, t.rows, depth)
		row += t.rows
	}
}

// TileRows is the number of rows of a full tile.
func (k *Kernels) TileRows() int { return k.tiles[0].rows }

// transposeFunc moves blocks of 8 words of its number of rows, rowBytes apart,
// to steps stepBytes apart; in its pairs form a word becomes two steps.
type transposeFunc func(blocks int, src *byte, rowBytes int, dst *byte, stepBytes int)

// mover rearranges factors. Its routines are nil where there is pure Go alone.
type mover struct {
	words8, words6, pairs8, pairs6 transposeFunc
	// pairRows makes steps of a panel from rows of bf16, 2·rowBytes apart.
	pairRows func(steps int, even, odd *byte, rowBytes int, dst *byte)
}

// packChunk is the number of words of a row that are moved at once: a page of
// the source, and what is written stays in the second-level cache.
const packChunk = 1024

// pack transposes rows of k elements (rowBytes apart) to dst[step][width] in
// 4-byte slots; slots of missing rows and of an odd k are zero. With expand
// each pair of bf16 becomes two steps of floats, the odd element first.
func (v *mover) pack(d DType, expand bool, dst *byte, width int, src *byte, rowBytes, rows, k int) {
	whole := k * d.Size() / 4
	per := 1
	if expand {
		per = 2
	}
	for p := 0; p < whole; p += packChunk {
		v.packWords(expand, add(dst, p*per*width*4), width, add(src, p*4), rowBytes, rows, min(packChunk, whole-p))
	}
	if whole < d.Steps(k) {
		for r := range rows {
			last := uint32(*(*uint16)(unsafe.Pointer(add(src, r*rowBytes+(k-1)*2))))
			to := add(dst, (whole*per*width+r)*4)
			if expand {
				*(*uint32)(unsafe.Pointer(to)) = 0
				to, last = add(to, width*4), last<<16
			}
			*(*uint32)(unsafe.Pointer(to)) = last
		}
	}
	if rows == width {
		return
	}
	for p := range d.Steps(k) * per {
		clear(unsafe.Slice((*uint32)(unsafe.Pointer(add(dst, (p*width+rows)*4))), width-rows))
	}
}

// packWords moves words words of each row.
func (v *mover) packWords(expand bool, dst *byte, width int, src *byte, rowBytes, rows, words int) {
	eight, six, per := v.words8, v.words6, 1
	if expand {
		eight, six, per = v.pairs8, v.pairs6, 2
	}
	done := 0
	if blocks := words / 8; blocks > 0 && eight != nil {
		switch {
		case rows >= 8:
			for r := 0; r < rows; r += 8 {
				r := min(r, rows-8) // the last ones may be moved twice
				eight(blocks, add(src, r*rowBytes), rowBytes, add(dst, r*4), width*4)
			}
			done = blocks * 8
		case rows == 6:
			six(blocks, src, rowBytes, dst, width*4)
			done = blocks * 8
		}
	}
	if done == words {
		return
	}
	for r := range rows {
		from := unsafe.Slice((*uint32)(unsafe.Pointer(add(src, r*rowBytes+done*4))), words-done)
		to := unsafe.Pointer(add(dst, (done*per*width+r)*4))
		for i, w := range from {
			at := i * per * width * 4
			if expand {
				*(*uint32)(unsafe.Add(to, at)) = w & 0xffff0000
				at, w = at+width*4, w<<16
			}
			*(*uint32)(unsafe.Add(to, at)) = w
		}
	}
}

// packRows makes one panel of n columns of depth rows.
func (v *mover) packRows(d DType, dst, src *byte, rowBytes, depth, n int) {
	whole := depth * d.Size() / 4
	if n == PanelColumns {
		switch {
		case d == F32:
			for s := range whole {
				*(*[PanelColumns]uint32)(unsafe.Pointer(add(dst, s*panelBytes))) =
					*(*[PanelColumns]uint32)(unsafe.Pointer(add(src, s*rowBytes)))
			}
			return
		case v.pairRows != nil && whole > 0:
			v.pairRows(whole, src, add(src, rowBytes), rowBytes, dst)
			if whole == d.Steps(depth) {
				return
			}
			dst, src, depth = add(dst, whole*panelBytes), add(src, 2*whole*rowBytes), depth-2*whole
		}
	}
	for s := range d.Steps(depth) {
		to := unsafe.Slice((*uint32)(unsafe.Pointer(add(dst, s*panelBytes))), PanelColumns)
		clear(to[n:])
		if d == F32 {
			copy(to[:n], unsafe.Slice((*uint32)(unsafe.Pointer(add(src, s*rowBytes))), n))
			continue
		}
		even := unsafe.Slice((*uint16)(unsafe.Pointer(add(src, 2*s*rowBytes))), n)
		for j, w := range even {
			to[j] = uint32(w)
		}
		if 2*s+1 == depth {
			continue
		}
		odd := unsafe.Slice((*uint16)(unsafe.Pointer(add(src, (2*s+1)*rowBytes))), n)
		for j, w := range odd {
			to[j] |= uint32(w) << 16
		}
	}
}
