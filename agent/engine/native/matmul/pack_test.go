// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/distorch/distorch/agent/engine/native/isa"
)

// packed is the layout of Pack said once more, word by word.
func packed(d DType, src []byte, n, k int) []byte {
	steps := d.Steps(k)
	out := make([]byte, PackedLen(d, n, k))
	for i := range n {
		for s := range steps {
			at := i/PanelColumns*panelBytes*steps + s*panelBytes + i%PanelColumns*4
			if d == F32 {
				copy(out[at:at+4], src[(i*k+s)*4:])
				continue
			}
			for e := range min(2, k-2*s) {
				copy(out[at+2*e:at+2*e+2], src[(i*k+2*s+e)*2:])
			}
		}
	}
	return out
}

func TestPackIsTheSameEverywhere(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, s := range [][2]int{{1, 1}, {31, 17}, {32, 16}, {33, 15}, {70, 129}, {96, 300}, {8, 64}} {
		for _, d := range []DType{F32, BF16} {
			n, k := s[0], s[1]
			src := make([]byte, n*k*d.Size())
			for i := range src {
				src[i] = byte(r.Uint32())
			}
			want := packed(d, src, n, k)
			for _, set := range isa.Supported() {
				kern, err := New(set)
				if err != nil {
					t.Fatal(err)
				}
				got := bytes.Repeat([]byte{0xee}, len(want))
				for from := 0; from < n; from += PanelColumns {
					to := min(n, from+PanelColumns)
					if err := kern.Pack(d, got, src[from*k*d.Size():to*k*d.Size()], n, k, from, to); err != nil {
						t.Fatal(err)
					}
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%s %v %s: other bytes", d, s, set)
				}
			}
		}
	}
}

// TestPackRightRows compares with Pack of the transpose.
func TestPackRightRows(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, s := range [][2]int{{1, 1}, {9, 32}, {16, 64}, {7, 33}, {2, 31}} {
		for _, d := range []DType{F32, BF16} {
			depth, n := s[0], s[1]
			rowBytes := (n + 3) * d.Size()
			src := make([]byte, depth*rowBytes)
			turned := make([]byte, n*depth*d.Size())
			for i := range depth {
				for j := range n {
					v := r.Uint32()
					if d == F32 {
						binary.LittleEndian.PutUint32(src[i*rowBytes+4*j:], v)
						binary.LittleEndian.PutUint32(turned[(j*depth+i)*4:], v)
					} else {
						binary.LittleEndian.PutUint16(src[i*rowBytes+2*j:], uint16(v))
						binary.LittleEndian.PutUint16(turned[(j*depth+i)*2:], uint16(v))
					}
				}
			}
			want := packed(d, turned, n, depth)
			for _, set := range isa.Supported() {
				k, err := New(set)
				if err != nil {
					t.Fatal(err)
				}
				got := bytes.Repeat([]byte{0xee}, len(want))
				k.PackRightRows(d, &got[0], &src[0], rowBytes, depth, n)
				if !bytes.Equal(got, want) {
					t.Errorf("%s %v %s: other bytes", d, s, set)
				}
			}
		}
	}
}

func TestBadSizesAreRefused(t *testing.T) {
	if err := Pack(F32, make([]byte, 10), make([]byte, 4096), 32, 8, 0, 32); err == nil {
		t.Error("pack: a short destination gives no error")
	}
	if err := Pack(F32, make([]byte, 1024), make([]byte, 10), 32, 8, 0, 32); err == nil {
		t.Error("pack: a short source gives no error")
	}
	if err := Pack(F32, make([]byte, 4096), make([]byte, 4096), 64, 8, 16, 64); err == nil {
		t.Error("pack: rows off a panel give no error")
	}
	k, err := New(isa.Generic)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Linear){
		"x":      func(l *Linear) { l.X.Data = l.X.Data[1:] },
		"w":      func(l *Linear) { l.W = l.W[1:] },
		"out":    func(l *Linear) { l.Out.Data = l.Out.Data[1:] },
		"bias":   func(l *Linear) { l.Bias = l.Bias[1:] },
		"stride": func(l *Linear) { l.X.Stride = 1 },
		"m":      func(l *Linear) { l.M = -1 },
	} {
		p := newProblem(t, F32, F32, "normal", 3, 5, 7, 0, true)
		spoil(&p.l)
		if err := k.Run(pool(1), &p.l, make([]byte, 1<<20)); err == nil {
			t.Errorf("run: %s out of range gives no error", name)
		}
	}
	p := newProblem(t, F32, F32, "normal", 3, 5, 7, 0, true)
	if err := k.Run(pool(1), &p.l, make([]byte, 64)); err == nil {
		t.Error("run: short scratch gives no error")
	}
}

func BenchmarkPack(b *testing.B) {
	const n, k = 3072, 3072
	for _, d := range []DType{F32, BF16} {
		for _, set := range isa.Supported() {
			b.Run(fmt.Sprintf("%s/%s", d, set), func(b *testing.B) {
				kern, err := New(set)
				if err != nil {
					b.Fatal(err)
				}
				src, dst := make([]byte, n*k*d.Size()), make([]byte, PackedLen(d, n, k))
				b.SetBytes(int64(len(src)))
				for b.Loop() {
					pool(2).Do(n/PanelColumns, func(_, i int) {
						at := i * PanelColumns
						if err := kern.Pack(d, dst, src[at*k*d.Size():], n, k, at, at+PanelColumns); err != nil {
							b.Error(err)
						}
					})
				}
			})
		}
	}
}
