// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/distorch/distorch/agent/engine/native/isa"
)

// SelfTest runs every tile of set on numbers that tell rounding rules apart
// (cancelling sums, denormals and the edge of the normal range, -0, infinite)
// and compares the bytes with pure Go. It takes a few milliseconds. An error
// means that this CPU must not be used with set in this numerics class.
func SelfTest(set isa.ISA) error {
	k, err := New(set)
	if err != nil {
		return err
	}
	return k.selfTest()
}

// alone is a Par of the caller's goroutine.
type alone struct{}

func (alone) Workers() int { return 1 }

func (alone) Do(n int, f func(worker, i int)) {
	for i := range n {
		f(0, i)
	}
}

func (k *Kernels) selfTest() error {
	const columns, depth = PanelColumns, selfTestDepth
	rule := generic()
	r := rand.New(rand.NewPCG(0x6e61746976652f31, 1))
	for _, d := range []DType{F32, BF16} {
		for kind := range kindsOfSamples {
			src := samples(r, d, kind, columns*depth)
			w := make([]byte, PackedLen(d, columns, depth))
			if err := Pack(d, w, src, columns, depth, 0, columns); err != nil {
				return err
			}
			for _, t := range k.tiles {
				l := Linear{
					Type: d, M: t.rows, N: columns, K: depth, W: w,
					X: Matrix{samples(r, d, kind, t.rows*depth), depth},
				}
				if kind <= cancelling {
					l.Bias, l.BiasType = samples(r, d, kind, columns), d
				}
				for _, l.OutType = range []DType{F32, BF16} {
					if same, err := equal(k, rule, &l); err != nil || !same {
						return errors.Join(err, fmt.Errorf("%s kernels round %s sums otherwise than native/1 on this CPU (tile of %d rows, sample %d): force another set with agent.cpu_isa",
							k.set, d, t.rows, kind))
					}
				}
			}
		}
	}
	return nil
}

func equal(a, b *Kernels, l *Linear) (bool, error) {
	scratch := make([]byte, ScratchLen(l.Type, l.M, l.K, 1))
	var out [2][]byte
	for i, k := range []*Kernels{a, b} {
		out[i] = make([]byte, l.M*l.N*l.OutType.Size())
		l.Out = Matrix{out[i], l.N}
		if err := k.Run(alone{}, l, scratch); err != nil {
			return false, err
		}
	}
	return bytes.Equal(out[0], out[1]), nil
}

// The kinds of samples that the self-test runs.
const (
	ordinary   = iota
	cancelling // 40 binary orders
	tinyProducts
	denormalInputs // with large ones, -0 and a few infinite
	edgeOfNormal   // 2^-126 and then products too small to move it
	kindsOfSamples
)

// selfTestDepth is the k of the self-test.
const selfTestDepth = 64

// samples are n numbers of a kind.
func samples(r *rand.Rand, d DType, kind, n int) []byte {
	b := make([]byte, 0, n*d.Size())
	for i := range n {
		f := r.NormFloat64()
		switch kind {
		case cancelling:
			f = math.Ldexp(f, r.IntN(40)-20)
		case tinyProducts:
			f = math.Ldexp(f, -61-r.IntN(5))
		case denormalInputs:
			switch n := r.IntN(512); {
			case n == 0:
				f = math.Inf(1)
			case n < 64:
				f = math.Copysign(0, -1)
			case n < 256:
				f = math.Ldexp(f, -129)
			default:
				f = math.Ldexp(f, r.IntN(110))
			}
		case edgeOfNormal:
			if i%selfTestDepth == 1 { // the first of the chain in bf16
				f = 0x1p-63
			} else {
				f = math.Ldexp(f, -76-r.IntN(14))
			}
		}
		u := math.Float32bits(float32(f))
		if d == F32 {
			b = binary.LittleEndian.AppendUint32(b, u)
		} else {
			b = binary.LittleEndian.AppendUint16(b, uint16(u>>16))
		}
	}
	return b
}
