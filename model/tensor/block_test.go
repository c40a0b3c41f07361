// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package tensor

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"
)

func blockDTypes() (out []DType) {
	for d := Bool; d < numDTypes; d++ {
		if d.Blocked() {
			out = append(out, d)
		}
	}
	return out
}

func TestBlockSizes(t *testing.T) {
	for name, want := range map[string][2]int{
		"Q8_0": {32, 34}, "Q5_0": {32, 22}, "Q5_1": {32, 24}, "Q4_0": {32, 18}, "Q4_1": {32, 20},
		"Q2_K": {256, 84}, "Q3_K": {256, 110}, "Q4_K": {256, 144}, "Q5_K": {256, 176}, "Q6_K": {256, 210},
		"IQ4_NL": {32, 18}, "IQ4_XS": {256, 136}, "F8_E4M3_B64": {64, 68},
		"F32": {1, 4}, "BF16": {1, 2}, "F8_E4M3": {1, 1}, "F4": {2, 1}, "F6_E2M3": {4, 3},
	} {
		d, err := ParseDType(name)
		if err != nil {
			t.Fatal(err)
		}
		elements, size := d.Block()
		if elements != want[0] || size != want[1] {
			t.Errorf("%s: %d in %d bytes, want %v", name, elements, size, want)
		}
		if got := d.RowBytes(3072); got != 3072/int64(elements)*int64(size) {
			t.Errorf("%s: a row of 3072 takes %d bytes", name, got)
		}
		if d.Blocked() && (d.Size() != 0 || d.Bits() != 0 || !d.Float()) {
			t.Errorf("%s: size %d, bits %d, float %v", name, d.Size(), d.Bits(), d.Float())
		}
	}
	if e, b := Invalid.Block(); e != 0 || b != 0 || Invalid.RowBytes(32) != 0 {
		t.Error("an invalid dtype has a block")
	}
}

func TestShapeBytesOfBlocks(t *testing.T) {
	for _, c := range []struct {
		shape Shape
		dtype DType
		want  Bytes
		fails bool
	}{
		{Shape{9216, 3072}, Q4_K, 9216 * 12 * 144, false},
		{Shape{64}, Q8_0, 68, false},
		{Shape{4, 48}, Q8_0, 0, true}, // 192 elements are whole blocks, rows of 48 are not
		{Shape{2, 128}, Q4_K, 0, true},
		{Shape{}, Q8_0, 0, true},
		{Shape{0, 32}, Q8_0, 0, false},
		{Shape{1 << 40, 1 << 23}, Q8_0, 0, true},
		{Shape{1 << 40, 1 << 20}, Q4_0, 18 << 55, false},
	} {
		got, err := c.shape.Bytes(c.dtype)
		if !c.fails && got != c.want || (err != nil) != c.fails {
			t.Errorf("%v of %v: got %d, %v", c.shape, c.dtype, got, err)
		}
	}
}

// TestBlocksByFormula compares with a slow reading of the layouts that takes
// every code's bits one by one and computes in float64, rounded once.
func TestBlocksByFormula(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, d := range blockDTypes() {
		elements, size := d.Block()
		for range 200 {
			src := make([]byte, 2*size)
			for i := range src {
				src[i] = byte(r.Uint32())
			}
			for b := range 2 {
				finite(d, src[b*size:][:size], r)
			}
			got, half := make([]float32, 2*elements), make([]uint16, 2*elements)
			if err := ToF32(got, src, d); err != nil {
				t.Fatal(err)
			}
			if err := ToBF16(half, src, d); err != nil {
				t.Fatal(err)
			}
			for i, g := range got {
				want := float32(slowly(d, src[i/elements*size:][:size], i%elements))
				if g != want || half[i] != BF16FromF32(g) {
					t.Fatalf("%v element %d: got %g and %#x, want %g", d, i, g, half[i], want)
				}
			}
		}
	}
	if ToF32(make([]float32, 33), make([]byte, 34), Q8_0) == nil || ToBF16(make([]uint16, 32), make([]byte, 33), Q8_0) == nil {
		t.Error("a wrong length was accepted")
	}
}

// finite gives a block's float scales values that are numbers.
func finite(d DType, b []byte, r *rand.Rand) {
	put := func(at int) {
		h := uint16(r.Uint32())
		if h&0x7c00 == 0x7c00 {
			h &^= 0x4000
		}
		binary.LittleEndian.PutUint16(b[at:], h)
	}
	switch d {
	case Q5_1, Q4_1, Q4_K, Q5_K:
		put(0)
		put(2)
	case Q2_K:
		put(80)
		put(82)
	case Q3_K:
		put(108)
	case Q6_K:
		put(208)
	case F8E4M3B64:
		binary.LittleEndian.PutUint32(b, math.Float32bits(r.Float32()*0x1p-9))
		for i := range 64 {
			if b[4+i]&0x7f == 0x7f {
				b[4+i] = 0
			}
		}
	default:
		put(0)
	}
}

// slowly is element i of a block, from ggml's description of the layouts.
func slowly(d DType, b []byte, i int) float64 {
	half := func(at int) float64 { return float64(F32FromF16(binary.LittleEndian.Uint16(b[at:]))) }
	bits := func(at, bit, n int) int { // n bits from bit of the little-endian bytes at
		v := 0
		for k := range n {
			v |= int(b[at+(bit+k)/8]) >> ((bit + k) % 8) & 1 << k
		}
		return v
	}
	nibble32 := func(at int) int { return bits(at+i%16, i/16*4, 4) }           // 32 in 16 bytes
	nibble64 := func(at int) int { return bits(at+i/64*32+i%32, i/32%2*4, 4) } // 64 in 32 bytes
	levels := []float64{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}
	six := func(g int) (int, int) { // scales and minimums of Q4_K, Q5_K
		if g < 4 {
			return bits(4+g, 0, 6), bits(8+g, 0, 6)
		}
		return bits(8+g, 0, 4) | bits(g, 6, 2)<<4, bits(8+g, 4, 4) | bits(4+g, 6, 2)<<4
	}
	switch d {
	case Q8_0:
		return half(0) * float64(int8(b[2+i]))
	case Q4_0:
		return half(0) * float64(nibble32(2)-8)
	case Q4_1:
		return half(0)*float64(nibble32(4)) + half(2)
	case Q5_0:
		return half(0) * float64(nibble32(6)+bits(2, i, 1)*16-16)
	case Q5_1:
		return half(0)*float64(nibble32(8)+bits(4, i, 1)*16) + half(2)
	case IQ4_NL:
		return half(0) * levels[nibble32(2)]
	case Q2_K:
		code := bits(16+i/128*32+i%32, i%128/32*2, 2)
		return half(80)*float64(bits(i/16, 0, 4))*float64(code) - half(82)*float64(bits(i/16, 4, 4))
	case Q3_K:
		g := i / 16
		scale := bits(96+g%8, g/8*4, 4) | bits(104+g%4, g/4*2, 2)<<4
		code := bits(32+i/128*32+i%32, i%128/32*2, 2) - 4*(1-bits(i%32, i/32, 1))
		return half(108) * float64(scale-32) * float64(code)
	case Q4_K:
		s, m := six(i / 32)
		return half(0)*float64(s)*float64(nibble64(16)) - half(2)*float64(m)
	case Q5_K:
		s, m := six(i / 32)
		return half(0)*float64(s)*float64(nibble64(48)+16*bits(16+i%32, i/32, 1)) - half(2)*float64(m)
	case Q6_K:
		code := bits(i/128*64+i%64, i%128/64*4, 4) | bits(128+i/128*32+i%32, i%128/32*2, 2)<<4
		return half(208) * float64(int8(b[192+i/16])) * float64(code-32)
	case IQ4_XS:
		g := i / 32
		scale := bits(4, g*4, 4) | bits(2, g*2, 2)<<4
		return half(0) * float64(scale-32) * levels[bits(8+g*16+i%16, i%32/16*4, 4)]
	case F8E4M3B64:
		scale := math.Float32frombits(binary.LittleEndian.Uint32(b))
		return float64(scale) * float64(F32FromF8(F8E4M3, b[4+i]))
	}
	panic("no formula for " + d.String())
}

func TestF8E4M3NearestEven(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	nearest := func(x float64) float64 {
		best, code := math.Inf(1), 0
		for c := range 127 {
			v := float64(F32FromF8(F8E4M3, byte(c)))
			if off := math.Abs(math.Abs(x) - v); off < best || off == best && c%2 == 0 {
				best, code = off, c
			}
		}
		return math.Copysign(float64(F32FromF8(F8E4M3, byte(code))), x)
	}
	check := func(x float32) {
		t.Helper()
		if got, want := F32FromF8(F8E4M3, f8E4M3FromF32(x)), float32(nearest(float64(x))); math.Float32bits(got) != math.Float32bits(want) {
			t.Fatalf("%g: got %g, want %g", x, got, want)
		}
	}
	for c := range 256 {
		v := F32FromF8(F8E4M3, byte(c))
		if v != v {
			continue
		}
		check(v)
		next := F32FromF8(F8E4M3, byte(c+1))
		if mid := (v + next) / 2; mid == mid {
			check(mid)
			check(math.Nextafter32(mid, 500))
			check(math.Nextafter32(mid, -500))
		}
	}
	for range 20000 {
		check(float32(r.NormFloat64() * math.Exp(r.Float64()*12-8)))
	}
	check(1e30)
	check(-math.MaxFloat32)
	check(1e-40)
}

func TestQuantiseF8Blocks(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	src := make([]float32, 256)
	for i := range src {
		src[i] = float32(r.NormFloat64()) / 30
		if i >= 128 && i < 192 {
			src[i] = 0
		}
	}
	dst, again := make([]byte, 4*68), make([]byte, 4*68)
	if err := FromF32(dst, src, F8E4M3B64); err != nil {
		t.Fatal(err)
	}
	back := make([]float32, 256)
	if err := ToF32(back, dst, F8E4M3B64); err != nil {
		t.Fatal(err)
	}
	for i, x := range src {
		top := float32(0)
		for _, y := range src[i/64*64:][:64] {
			top = max(top, float32(math.Abs(float64(y))))
		}
		// Half a unit in the last of three bits, or of the smallest denormal.
		if off := math.Abs(float64(back[i] - x)); off > math.Max(math.Abs(float64(x))/15.9, float64(top)/448*0x1.1p-10) {
			t.Errorf("element %d: %g became %g", i, x, back[i])
		}
	}
	// What came out goes in again to the same codes: the largest stays 448.
	if err := FromF32(again, back, F8E4M3B64); err != nil {
		t.Fatal(err)
	}
	for b := range 4 {
		if !bytes.Equal(dst[b*68+4:][:64], again[b*68+4:][:64]) {
			t.Errorf("block %d: other codes the second time", b)
		}
	}
	src[70] = float32(math.Inf(1))
	if FromF32(dst, src, F8E4M3B64) == nil {
		t.Error("infinity was quantised")
	}
	src[70] = float32(math.NaN())
	if FromF32(dst, src, F8E4M3B64) == nil {
		t.Error("NaN was quantised")
	}
	if FromF32(dst, back, Q8_0) == nil || FromF32(dst, back[:63], F8E4M3B64) == nil || FromF32(dst[:68], back, F8E4M3B64) == nil {
		t.Error("wrong arguments were taken")
	}
}

func BenchmarkBlocks(b *testing.B) {
	const n = 1 << 18
	for _, d := range blockDTypes() {
		src := make([]byte, d.RowBytes(n))
		for i := range src {
			src[i] = byte(i * 7)
		}
		b.Run(d.String()+"/f32", func(b *testing.B) {
			dst := make([]float32, n)
			b.SetBytes(4 * n)
			for b.Loop() {
				_ = ToF32(dst, src, d)
			}
		})
		b.Run(d.String()+"/bf16", func(b *testing.B) {
			dst := make([]uint16, n)
			b.SetBytes(2 * n)
			for b.Loop() {
				_ = ToBF16(dst, src, d)
			}
		})
	}
}

func TestStorageF8(t *testing.T) {
	for _, c := range []struct {
		shape Shape
		is    DType
		want  DType
	}{
		{Shape{3072, 3072}, BF16, F8E4M3B64},
		{Shape{3072, 64}, F32, F8E4M3B64},
		{Shape{9216}, BF16, BF16},
		{Shape{64, 48}, F16, F16},
		{Shape{64, 64}, F8E4M3, F8E4M3},
		{Shape{64, 64}, Q8_0, Q8_0}, // as many bytes
		{Shape{64, 256}, Q4_K, Q4_K},
		{Shape{64, 64}, I32, I32},
		{Shape{0, 64}, F32, F32},
	} {
		if got := StorageF8(c.shape, c.is); got != c.want {
			t.Errorf("%v %v is kept as %v, want %v", c.is, c.shape, got, c.want)
		}
	}
}
