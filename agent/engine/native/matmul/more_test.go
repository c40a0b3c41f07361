// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/distorch/distorch/agent/engine/native/isa"
)

// Scaled columns and an addend that may be the output itself, by the rule.
func TestLinearScaledAndAdded(t *testing.T) {
	for _, d := range []DType{F32, BF16} {
		for i, s := range [][3]int{{1, 1, 1}, {3, 33, 4}, {29, 64, 6}, {16, 40, 33}, {560, 33, 3}} {
			p := newProblem(t, d, d, kinds[i%3], s[0], s[1], s[2], 2, false)
			r := rand.New(rand.NewPCG(7, uint64(i)))
			scale, addend := values(F32, "normal", r, p.l.N), values(d, "cancel", r, p.l.M*p.l.Out.Stride)
			want := make([]byte, 0, len(p.l.Out.Data))
			for m := range p.l.M {
				row := append([]float32(nil), addend[m*p.l.Out.Stride:][:p.l.Out.Stride]...)
				for n := range p.l.N {
					sum := chain(d, 0, p.x[m*p.l.X.Stride:][:p.l.K], p.w[n*p.l.K:][:p.l.K])
					row[n] = float32(sum*scale[n]) + row[n]
				}
				want = append(want, encode(d, row)...)
			}
			p.l.Scale = scale
			for _, set := range isa.Supported() {
				k, err := New(set)
				if err != nil {
					t.Fatal(err)
				}
				for threads := 1; threads <= 3; threads++ {
					p.l.Out.Data = encode(d, addend)
					p.l.Add = p.l.Out
					scratch := make([]byte, ScratchLen(d, p.l.M, p.l.K, threads))
					if err := k.Run(pool(threads), &p.l, scratch); err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(p.l.Out.Data, want) {
						t.Errorf("%s %v %s threads=%d: %s", d, s, set, threads, firstDifference(p.l.Out.Data, want, d))
					}
				}
			}
		}
	}
}

func TestLinearRefusesShortScaleAndAddend(t *testing.T) {
	for want, change := range map[string]func(l *Linear){
		"scale": func(l *Linear) { l.Scale = make([]float32, l.N-1) },
		"add":   func(l *Linear) { l.Add = Matrix{make([]byte, 4), l.N} },
		"bias":  func(l *Linear) { l.Add, l.Bias = l.Out, make([]byte, 4*l.N) },
	} {
		p := newProblem(t, F32, F32, "normal", 3, 40, 4, 0, false)
		change(&p.l)
		err := generic().Run(alone{}, &p.l, make([]byte, ScratchLen(F32, 3, 4, 1)))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
