// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/distorch/distorch/agent/engine/native/isa"
)

// TestExtendResumes starts from sums that include denormals and -0, in two
// slices of k, and compares with the rule.
func TestExtendResumes(t *testing.T) {
	const k, first = 24, 10
	for _, d := range []DType{F32, BF16} {
		for _, kind := range []string{"normal", "denormal", "bits", "negzero"} {
			r := rand.New(rand.NewPCG(11, uint64(len(kind))))
			for _, set := range isa.Supported() {
				kern, err := New(set)
				if err != nil {
					t.Fatal(err)
				}
				for _, rows := range []int{1, 2, 3, 4, 6, 8, 14, 15, 29} {
					x, w := values(d, kind, r, rows*k), values(d, kind, r, PanelColumns*k)
					sums := values(F32, kind, r, rows*PanelColumns)
					got, want := slices.Clone(sums), slices.Clone(sums)
					for i := range want {
						want[i] = chain(d, want[i], x[i/PanelColumns*k:][:k], w[i%PanelColumns*k:][:k])
					}
					left := make([]byte, rows*4*kern.LeftWords(d, k))
					kern.PackLeft(d, &left[0], &encode(d, x)[0], k*d.Size(), rows, k)
					right := make([]byte, PackedLen(d, PanelColumns, k))
					kern.PackRight(d, &right[0], &encode(d, w)[0], k*d.Size(), PanelColumns, k)
					a := Left{Base: &left[0], RowBytes: 4 * kern.LeftWords(d, k)}
					kern.Extend(d, rows, d.Steps(first), a, &right[0], &got[0], panelBytes, true)
					a.From = d.Steps(first)
					kern.Extend(d, rows, d.Steps(k-first), a, &right[a.From*panelBytes], &got[0], panelBytes, true)
					for i := range got {
						if math.Float32bits(got[i]) != math.Float32bits(want[i]) && (got[i] == got[i] || want[i] == want[i]) {
							t.Fatalf("%s %s %s rows=%d: sum %d is %x, want %x", d, kind, set, rows, i, got[i], want[i])
						}
					}
				}
			}
		}
	}
}

// TestDenormalsAfterwards checks that flushing ends with the routine.
func TestDenormalsAfterwards(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, set := range isa.Supported() {
		p := newProblem(t, BF16, BF16, "normal", 1, 32, 8, 0, false)
		k, err := New(set)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Run(alone{}, &p.l, make([]byte, ScratchLen(BF16, 1, 8, 1))); err != nil {
			t.Fatal(err)
		}
		if v := p.w[0]; math.Float32frombits(1)*(v/v) == 0 {
			t.Errorf("%s: denormals are flushed after the kernel", set)
		}
	}
}
