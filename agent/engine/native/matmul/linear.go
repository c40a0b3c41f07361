// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"fmt"
	"unsafe"
)

// Matrix is rows of elements in memory; Stride is from one row to the next,
// in elements.
type Matrix struct {
	Data   []byte
	Stride int
}

// Linear is out[m,n] = scale[n] · (x[m,k] · w[n,k]ᵀ) + bias[n], or + add[m,n]
// where there is no bias.
type Linear struct {
	Type     DType // of X and W
	M, N, K  int
	X        Matrix
	W        []byte // packed (Pack)
	Bias     []byte // nil, or N elements
	BiasType DType
	Scale    []float32 // nil, or N
	Add      Matrix    // of OutType; no Data: none. It may be Out itself
	Out      Matrix
	OutType  DType
}

const (
	// maxRows bounds the rows whose packed form is held at once; a multiple of
	// the rows of every full tile (14 and 6).
	maxRows = 546
	// blockRows and blockPanels bound what one piece of work computes, so that
	// its slice of both factors and its sums stay in the second-level cache.
	blockRows   = 280
	blockPanels = 8

	align = 64
	// workerBytes: the sums, a row of bias and a row of output.
	workerBytes = blockRows*blockPanels*panelBytes + 2*align*2
)

// ScratchLen is the scratch bytes that Run needs for m rows of k elements with
// the given number of workers. It is the same on every instruction set.
func ScratchLen(d DType, m, k, workers int) int {
	words := k
	if d == BF16 {
		words = k + k%2
	}
	return align + (min(m, maxRows)*words*4+align-1)/align*align + workers*workerBytes
}

func (l *Linear) check(scratch []byte, workers int) error {
	bad := func(what string, have, need int) error {
		return fmt.Errorf("linear %s m=%d n=%d k=%d: %s has %d bytes, %d needed", l.Type, l.M, l.N, l.K, what, have, need)
	}
	if l.M < 0 || l.N < 0 || l.K < 0 || l.M > 0 && (l.X.Stride < l.K || l.Out.Stride < l.N) {
		return fmt.Errorf("linear m=%d n=%d k=%d, strides x=%d out=%d: out of range", l.M, l.N, l.K, l.X.Stride, l.Out.Stride)
	}
	if l.M == 0 || l.N == 0 {
		return nil
	}
	for _, c := range []struct {
		what       string
		have, need int
	}{
		{"x", len(l.X.Data), ((l.M-1)*l.X.Stride + l.K) * l.Type.Size()},
		{"w", len(l.W), PackedLen(l.Type, l.N, l.K)},
		{"out", len(l.Out.Data), ((l.M-1)*l.Out.Stride + l.N) * l.OutType.Size()},
		{"scratch", len(scratch), ScratchLen(l.Type, l.M, l.K, workers)},
	} {
		if c.have < c.need {
			return bad(c.what, c.have, c.need)
		}
	}
	if l.Bias != nil && len(l.Bias) < l.N*l.BiasType.Size() {
		return bad("bias", len(l.Bias), l.N*l.BiasType.Size())
	}
	return l.checkMore(bad)
}

// run is one Linear on its way.
type run struct {
	*Linear
	k       *Kernels
	steps   int
	packed  *byte // rows of this part of X, packed
	rowByte int   // bytes of a packed row
	worker  *byte // workerBytes for each worker

	row0, rows  int // this part
	blockRows   int
	blockPanels int
	rowBlocks   int
	panelBlocks int
}

// Run computes l with scratch of ScratchLen bytes. The output may not overlap
// the input. The result has no dependence on par or on the kernels.
func (k *Kernels) Run(par Par, l *Linear, scratch []byte) error {
	workers := par.Workers()
	if err := l.check(scratch, workers); err != nil || l.M == 0 || l.N == 0 {
		return err
	}
	base := unsafe.SliceData(scratch)
	base = add(base, int(-uintptr(unsafe.Pointer(base))&(align-1)))
	r := &run{Linear: l, k: k, steps: l.Type.Steps(l.K), rowByte: 4 * k.LeftWords(l.Type, l.K), packed: base}
	held := (min(l.M, maxRows)*r.rowByte + align - 1) / align * align
	r.worker = add(base, held)
	parts := (l.M + maxRows - 1) / maxRows
	tile := k.TileRows()
	part := roundUp((l.M+parts-1)/parts, tile)
	for r.row0 = 0; r.row0 < l.M; r.row0 += r.rows {
		r.rows = min(part, l.M-r.row0)
		r.cut(workers)
		if l.K > 0 {
			par.Do((r.rows+tile-1)/tile, func(_, i int) { r.pack(i * tile) })
		}
		par.Do(r.rowBlocks*r.panelBlocks, func(w, i int) { r.compute(w, i%r.rowBlocks, i/r.rowBlocks) })
	}
	return nil
}

func roundUp(n, to int) int { return (n + to - 1) / to * to }

// cut chooses the pieces of work: rows in equal blocks, and as many panels
// each as leave every worker several pieces.
func (r *run) cut(workers int) {
	tile := r.k.TileRows()
	r.rowBlocks = (r.rows + blockRows - tile - 1) / (blockRows - tile)
	r.blockRows = roundUp((r.rows+r.rowBlocks-1)/r.rowBlocks, tile)
	r.rowBlocks = (r.rows + r.blockRows - 1) / r.blockRows
	panels := (r.N + PanelColumns - 1) / PanelColumns
	r.blockPanels = min(blockPanels, max(1, panels*r.rowBlocks/(6*workers)))
	r.panelBlocks = (panels + r.blockPanels - 1) / r.blockPanels
}

func (r *run) pack(row int) {
	size := r.Type.Size()
	r.k.PackLeft(r.Type, add(r.packed, row*r.rowByte), r.x(r.row0+row),
		r.X.Stride*size, min(r.k.TileRows(), r.rows-row), r.K)
}

func (r *run) x(row int) *byte { return add(unsafe.SliceData(r.X.Data), row*r.X.Stride*r.Type.Size()) }

func (r *run) compute(worker, rowBlock, panelBlock int) {
	row := rowBlock * r.blockRows
	rows := min(r.blockRows, r.rows-row)
	first := panelBlock * r.blockPanels
	panels := min(r.blockPanels, (r.N+PanelColumns-1)/PanelColumns-first)
	own := add(r.worker, worker*workerBytes)
	slice := r.k.sliceF32
	if r.Type == BF16 {
		slice = r.k.sliceBF16
	}
	if r.rows <= 2*r.k.TileRows() {
		slice = r.steps // weights are read once or twice: the longer the run, the better
	}
	for at := 0; at < r.steps; at += slice {
		n := min(slice, r.steps-at)
		for p := range panels {
			sums := (*float32)(unsafe.Pointer(add(own, p*rows*panelBytes)))
			b := add(unsafe.SliceData(r.W), ((first+p)*r.steps+at)*panelBytes)
			r.k.Extend(r.Type, rows, n, Left{add(r.packed, row*r.rowByte), r.rowByte, at}, b, sums, panelBytes, at > 0)
		}
	}
	bias := add(own, blockRows*blockPanels*panelBytes)
	finish := r.store
	if r.Scale != nil || r.Add.Data != nil {
		finish = r.storeMore
	}
	for p := range panels {
		sums := (*float32)(unsafe.Pointer(add(own, p*rows*panelBytes)))
		if r.steps == 0 {
			clear(unsafe.Slice(sums, rows*PanelColumns))
		}
		finish(r.row0+row, rows, (first+p)*PanelColumns, sums, bias)
	}
}

// store writes a panel of finished sums to out, with bias; own is scratch for
// a row of bias and a row of output.
func (r *run) store(row, rows, column int, sums *float32, own *byte) {
	put, size := r.k.storeF32, r.OutType.Size()
	if r.OutType == BF16 {
		put = r.k.storeBF16
	}
	columns := min(PanelColumns, r.N-column)
	var bias *float32
	if r.Bias != nil {
		bias = (*float32)(unsafe.Pointer(own))
		r.biasTo(unsafe.Slice(bias, PanelColumns)[:columns], column)
	}
	ldo := r.Out.Stride * size
	out := add(unsafe.SliceData(r.Out.Data), row*ldo+column*size)
	if columns == PanelColumns {
		put(rows, sums, bias, out, ldo)
		return
	}
	line := add(own, panelBytes)
	for i := range rows {
		put(1, addF32(sums, i*panelBytes), bias, line, 0)
		copy(unsafe.Slice(add(out, i*ldo), columns*size), unsafe.Slice(line, columns*size))
	}
}

func (r *run) biasTo(dst []float32, column int) {
	expand(dst, add(unsafe.SliceData(r.Bias), column*r.BiasType.Size()), r.BiasType)
}

// expand writes values as floats.
func expand(dst []float32, from *byte, d DType) {
	src := unsafe.Pointer(from)
	if d == F32 {
		copy(dst, unsafe.Slice((*float32)(src), len(dst)))
		return
	}
	words := unsafe.Slice((*uint32)(unsafe.Pointer(unsafe.SliceData(dst))), len(dst))
	for i, v := range unsafe.Slice((*uint16)(src), len(dst)) {
		words[i] = uint32(v) << 16
	}
}
