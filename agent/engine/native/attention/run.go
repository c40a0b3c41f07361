// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package attention

import (
	"unsafe"

	"github.com/distorch/distorch/agent/engine/native/matmul"
	"github.com/distorch/distorch/agent/engine/native/vector"
)

const (
	// blockRows are the query rows whose scores are held at once; a multiple
	// of the rows of every full tile of package matmul.
	blockRows = 84
	// chunkRows are the query rows that one piece of work takes over all keys.
	chunkRows = 6 * blockRows
	// scoreStride keeps rows of scores apart in the cache's sets.
	scoreStride = KeyTile + 16

	panel = matmul.PanelColumns
	align = 64
)

// layout is where a worker's scratch holds what, in bytes.
type layout struct {
	q, sums, keys, values, scores, probs, packed, state, total int
}

// layoutFor is the same for every instruction set.
func layoutFor(d matmul.DType, dim int) layout {
	var l layout
	take := func(at *int, n int) { *at, l.total = l.total, l.total+(n+align-1)/align*align }
	padded := (dim + panel - 1) / panel * panel
	take(&l.q, chunkRows*(dim+dim%2)*4)
	take(&l.sums, chunkRows*padded*4)
	take(&l.keys, d.Steps(dim)*KeyTile*4)
	take(&l.values, d.Steps(KeyTile)*padded*4)
	take(&l.scores, blockRows*scoreStride*4)
	take(&l.probs, blockRows*scoreStride*4)
	take(&l.packed, blockRows*KeyTile*4)
	take(&l.state, 3*chunkRows*4)
	return l
}

// ScratchLen is the scratch bytes that Run needs; the number of rows and keys
// has no part in it, nor has the instruction set.
func ScratchLen(d matmul.DType, dim, workers int) int {
	return align + workers*layoutFor(d, dim).total
}

// worker computes a chunk of query rows of one head in its own scratch.
type worker struct {
	*Attention
	layout
	k       *Kernels
	base    *byte
	size    int // of an element
	padded  int // Dim, padded to panels
	state   vector.Softmax
	qBytes  int   // of a packed row
	columns int   // of this tile of keys
	mask    *byte // of the chunk's first row and the tile's first key; nil for none
}

// Run computes a with scratch of ScratchLen bytes. Out may be Q when their
// views are the same. The result has no dependence on par or on the kernels.
func (k *Kernels) Run(par matmul.Par, a *Attention, scratch []byte) error {
	workers := par.Workers()
	if err := a.check(scratch, workers); err != nil || a.Batch*a.Heads*a.Queries == 0 {
		return err
	}
	base := unsafe.SliceData(scratch)
	base = add(base, int(-uintptr(unsafe.Pointer(base))&(align-1)))
	l := layoutFor(a.Type, a.Dim)
	rows := a.chunk(workers)
	chunks := (a.Queries + rows - 1) / rows
	par.Do(a.Batch*a.Heads*chunks, func(w, i int) {
		own := worker{Attention: a, layout: l, k: k, base: add(base, w*l.total), size: a.Type.Size()}
		own.padded = (a.Dim + panel - 1) / panel * panel
		own.qBytes = 4 * k.mat.LeftWords(a.Type, a.Dim)
		st := unsafe.Slice((*float32)(unsafe.Pointer(add(own.base, l.state))), 3*chunkRows)
		own.state = vector.Softmax{Max: st[:chunkRows], Sum: st[chunkRows : 2*chunkRows], Alpha: st[2*chunkRows:]}
		head, from := i/chunks, i%chunks*rows
		own.run(head/a.Heads, head%a.Heads, from, min(rows, a.Queries-from))
	})
	return nil
}

// chunk is the query rows of one piece: as many as leave each worker several
// pieces, since every piece packs all keys and values.
func (a *Attention) chunk(workers int) int {
	chunks := (a.Queries + chunkRows - 1) / chunkRows
	if want := 3 * workers; a.Batch*a.Heads*chunks < want {
		chunks = (want + a.Batch*a.Heads - 1) / (a.Batch * a.Heads)
	}
	rows := (a.Queries + chunks - 1) / chunks
	return min(chunkRows, (rows+blockRows/2-1)/(blockRows/2)*(blockRows/2))
}

func (w *worker) at(v *View, batch, row, head int) *byte {
	return add(unsafe.SliceData(v.Data), (batch*v.Batch+row*v.Row+head*v.Head)*w.size)
}

func (w *worker) run(batch, head, from, rows int) {
	w.k.mat.PackLeft(w.Type, add(w.base, w.q), w.at(&w.Q, batch, from, head), w.Q.Row*w.size, rows, w.Dim)
	w.state.Start(rows)
	for key := 0; key < w.Keys; key += KeyTile {
		w.columns = min(KeyTile, w.Keys-key)
		w.k.mat.PackRight(w.Type, add(w.base, w.keys), w.at(&w.K, batch, key, head), w.K.Row*w.size, w.columns, w.Dim)
		w.k.mat.PackRightRows(w.Type, add(w.base, w.values), w.at(&w.V, batch, key, head), w.V.Row*w.size, w.columns, w.Dim)
		if w.Mask.Data != nil {
			w.mask = add(w.at(&w.Mask, batch, from, 0), key*w.size)
		}
		for row := 0; row < rows; row += blockRows {
			w.tile(row, min(blockRows, rows-row), key > 0)
		}
	}
	w.finish(w.at(&w.Out, batch, from, head), rows)
}

// tile takes a tile of keys into rows row to row+n of the chunk.
func (w *worker) tile(row, n int, resume bool) {
	q := matmul.Left{Base: add(w.base, w.q+row*w.qBytes), RowBytes: w.qBytes}
	for c := 0; c < w.columns; c += panel {
		w.k.mat.Extend(w.Type, n, w.Type.Steps(w.Dim), q, add(w.base, w.keys+c*4*w.Type.Steps(w.Dim)),
			w.floats(w.scores+c*4), scoreStride*4, false)
	}
	st := vector.Softmax{Max: w.state.Max[row:], Sum: w.state.Sum[row:], Alpha: w.state.Alpha[row:]}
	scores := vector.Rows[float32]{Data: unsafe.Slice(w.floats(w.scores), n*scoreStride), Stride: scoreStride}
	scale := w.Scale
	if w.mask != nil {
		w.addMask(scores, row, n)
		scale = 1
	}
	probs := add(w.base, w.probs)
	if w.Type == matmul.BF16 {
		p := vector.Rows[uint16]{Data: unsafe.Slice((*uint16)(unsafe.Pointer(probs)), n*scoreStride), Stride: scoreStride}
		w.k.vec.BF16.SoftmaxTile(p, scores, scale, st, &w.k.vec.F32, n, w.columns)
	} else {
		w.k.vec.F32.SoftmaxTile(scores, scores, scale, st, &w.k.vec.F32, n, w.columns)
		probs = add(w.base, w.scores)
	}
	p := matmul.Left{Base: add(w.base, w.packed), RowBytes: 4 * w.k.mat.LeftWords(w.Type, w.columns)}
	w.k.mat.PackLeft(w.Type, p.Base, probs, scoreStride*w.size, n, w.columns)
	sums := w.sumRows(row, n)
	if resume {
		w.k.vec.F32.RowScale(sums, sums, st.Alpha, n, w.padded)
	}
	steps := w.Type.Steps(w.columns)
	for c := 0; c < w.padded; c += panel {
		w.k.mat.Extend(w.Type, n, steps, p, add(w.base, w.values+c*4*steps), &sums.Data[c], w.padded*4, resume)
	}
}

// addMask makes scale·score + mask of the scores of rows row to row+n of the
// chunk. Where the probabilities will lie, a row of a bf16 mask is widened.
func (w *worker) addMask(scores vector.Rows[float32], row, n int) {
	f := &w.k.vec.F32
	f.Scale(scores, scores, w.Scale, n, w.columns)
	first := add(w.mask, row*w.Mask.Row*w.size)
	if w.Type == matmul.F32 {
		mask := vector.Rows[float32]{Data: unsafe.Slice((*float32)(unsafe.Pointer(first)), (n-1)*w.Mask.Row+w.columns), Stride: w.Mask.Row}
		f.Add(scores, scores, mask, n, w.columns)
		return
	}
	wide := vector.Rows[float32]{Data: unsafe.Slice(w.floats(w.probs), w.columns), Stride: scoreStride}
	for i := range n {
		w.k.vec.BF16ToF32(wide.Data, unsafe.Slice((*uint16)(unsafe.Pointer(add(first, i*w.Mask.Row*w.size))), w.columns))
		one := vector.Rows[float32]{Data: scores.Data[i*scoreStride:], Stride: scoreStride}
		f.Add(one, one, wide, 1, w.columns)
	}
}

// finish divides the sums by those of the softmax and writes them out.
func (w *worker) finish(out *byte, rows int) {
	s := w.state.Sum[:rows]
	for i, v := range s {
		s[i] = 1 / v
	}
	n := (rows-1)*w.Out.Row + w.Dim
	if w.Type == matmul.BF16 {
		dst := vector.Rows[uint16]{Data: unsafe.Slice((*uint16)(unsafe.Pointer(out)), n), Stride: w.Out.Row}
		w.k.vec.BF16.RowScale(dst, w.sumRows(0, rows), s, rows, w.Dim)
		return
	}
	dst := vector.Rows[float32]{Data: unsafe.Slice((*float32)(unsafe.Pointer(out)), n), Stride: w.Out.Row}
	w.k.vec.F32.RowScale(dst, w.sumRows(0, rows), s, rows, w.Dim)
}

func (w *worker) floats(at int) *float32 { return (*float32)(unsafe.Pointer(add(w.base, at))) }

func (w *worker) sumRows(row, n int) vector.Rows[float32] {
	return vector.Rows[float32]{Data: unsafe.Slice(w.floats(w.sums+row*w.padded*4), n*w.padded), Stride: w.padded}
}

func add(p *byte, n int) *byte { return (*byte)(unsafe.Add(unsafe.Pointer(p), n)) }
