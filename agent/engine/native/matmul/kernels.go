// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"fmt"
	"unsafe"

	"github.com/distorch/distorch/agent/engine/native/isa"
)

// DType is the type of a matrix's elements.
type DType uint8

// The element types of matrices.
const (
	F32 DType = iota
	BF16
)

// Size is the bytes of one element.
func (d DType) Size() int {
	if d == BF16 {
		return 2
	}
	return 4
}

func (d DType) String() string {
	if d == BF16 {
		return "bf16"
	}
	return "f32"
}

// Steps is the number of 4-byte slots of k: floats, or pairs of bf16.
func (d DType) Steps(k int) int {
	if d == BF16 {
		return (k + 1) / 2
	}
	return k
}

// Par runs n independent pieces of work and returns when all are done. worker
// is below Workers() and no two pieces run at once with the same one.
type Par interface {
	Workers() int
	Do(n int, f func(worker, i int))
}

const (
	// PanelColumns is the number of outputs of a packed panel; weights are
	// padded with zeros to a multiple of it.
	PanelColumns = 32

	panelBytes = PanelColumns * 4
)

// tileFunc extends the chains of a tile by kc steps. A step's left factors lie
// lda bytes after the last one's, side by side; its right factors ldb bytes;
// rows of sums ldc bytes. resume 0 starts the chains at +0.
type tileFunc func(kc int, a *byte, lda int, b *byte, ldb int, c *float32, ldc int, resume int)

// storeFunc finishes rows of a panel of sums (panelBytes each).
type storeFunc func(rows int, c *float32, bias *float32, out *byte, ldo int)

type tile struct {
	rows      int
	columns   int // divides PanelColumns
	f32, bf16 tileFunc
}

// Kernels are the routines of one instruction set. They hold no state.
type Kernels struct {
	set       isa.ISA
	tiles     []tile // fewer rows later; the last one has 1
	expand    bool   // the left factors of bf16 are two floats for each pair
	sliceF32  int    // steps of k that stay in the first-level cache
	sliceBF16 int
	storeF32  storeFunc
	storeBF16 storeFunc
	mover     mover
}

// New gives the kernels of set. It fails when this CPU lacks the set.
func New(set isa.ISA) (*Kernels, error) {
	for _, s := range isa.Supported() {
		if s != set {
			continue
		}
		if set == isa.Generic {
			return generic(), nil
		}
		return native(set)
	}
	return nil, fmt.Errorf("matrix kernels for %s: this CPU lacks it; force another one with agent.cpu_isa", set)
}

// ISA is the instruction set of the kernels.
func (k *Kernels) ISA() isa.ISA { return k.set }

// LeftWords is the number of 4-byte slots that the packed left factor of one
// row takes for k elements.
func (k *Kernels) LeftWords(d DType, n int) int { return d.Steps(n) * k.leftPerStep(d) }

func (k *Kernels) leftPerStep(d DType) int {
	if d == BF16 && k.expand {
		return 2
	}
	return 1
}

// tileFor is the largest tile of at most rows rows.
func (k *Kernels) tileFor(rows int) *tile {
	for i := range k.tiles {
		if k.tiles[i].rows <= rows {
			return &k.tiles[i]
		}
	}
	return &k.tiles[len(k.tiles)-1]
}

// Left is a left factor packed by tiles (PackLeft), RowBytes for each row;
// From is the number of steps of k to pass over.
type Left struct {
	Base     *byte
	RowBytes int
	From     int
}

// Extend extends the chains of rows×PanelColumns sums at c (rows ldc bytes
// apart) by steps > 0 steps of k: left factor a, a panel b. With resume false
// the chains start at +0.
func (k *Kernels) Extend(d DType, rows, steps int, a Left, b *byte, c *float32, ldc int, resume bool) {
	r := 0
	if resume {
		r = 1
	}
	skip := a.From * k.leftPerStep(d) * 4
	for col := 0; col < PanelColumns; col += k.tiles[0].columns {
		for row := 0; row < rows; {
			t := k.tileFor(rows - row)
			f := t.f32
			if d == BF16 {
				f = t.bf16
			}
			if col%t.columns == 0 {
				f(steps, add(a.Base, row*a.RowBytes+skip*t.rows), t.rows*4,
					add(b, col*4), panelBytes, addF32(c, row*ldc+col*4), ldc, r)
			}
			row += t.rows
		}
	}
}

func add(p *byte, n int) *byte { return (*byte)(unsafe.Add(unsafe.Pointer(p), n)) }

func addF32(p *float32, n int) *float32 { return (*float32)(unsafe.Add(unsafe.Pointer(p), n)) }
