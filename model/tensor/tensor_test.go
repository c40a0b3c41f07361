// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package tensor

import (
	"encoding/binary"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

func TestDTypeNames(t *testing.T) {
	sizes := map[string]int{
		"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8,
		"F16": 2, "BF16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
		"F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "C64": 8, "F4": 0, "F6_E2M3": 0, "F6_E3M2": 0,
	}
	for _, d := range blockDTypes() {
		sizes[d.String()] = 0
	}
	if len(sizes) != int(numDTypes)-1 {
		t.Fatalf("%d names for %d dtypes", len(sizes), numDTypes-1)
	}
	for name, size := range sizes {
		d, err := ParseDType(name)
		if err != nil || d.String() != name || d.Size() != size {
			t.Errorf("%s: got %v size %d, %v", name, d, d.Size(), err)
		}
		var back DType
		text, _ := d.MarshalText()
		if err := back.UnmarshalText(text); err != nil || back != d {
			t.Errorf("%s: text %q read as %v, %v", name, text, back, err)
		}
	}
	for _, bad := range []string{"", "F31", "bf16", "invalid", "q4_k"} {
		if d, err := ParseDType(bad); err == nil {
			t.Errorf("%q parsed as %v", bad, d)
		}
	}
}

func TestShapeBytes(t *testing.T) {
	for _, c := range []struct {
		shape Shape
		dtype DType
		want  Bytes
		fails bool
	}{
		{Shape{}, F32, 4, false},
		{Shape{3, 0}, F32, 0, false},
		{Shape{0, math.MaxInt64, math.MaxInt64}, F32, 0, false},
		{Shape{math.MaxInt64, math.MaxInt64, 0}, F32, 0, false},
		{Shape{math.MaxInt64, math.MaxInt64, 0, -1}, F32, 0, true},
		{Shape{16, 64}, BF16, 2048, false},
		{Shape{3}, F4, 0, true},
		{Shape{4}, F4, 2, false},
		{Shape{4}, F6E2M3, 3, false},
		{Shape{1 << 32, 1 << 32}, U8, 0, true},
		{Shape{1 << 62}, F32, 0, true},
		{Shape{1 << 62}, U8, 1 << 62, false},
		{Shape{-1, -2}, F32, 0, true},
		{Shape{1}, Invalid, 0, true},
	} {
		got, err := c.shape.Bytes(c.dtype)
		if got != c.want || (err != nil) != c.fails {
			t.Errorf("%v of %v: got %d, %v", c.shape, c.dtype, got, err)
		}
	}
}

func TestBytesString(t *testing.T) {
	for b, want := range map[Bytes]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 23_802_816_000: "23.8 GB", 999_960: "1.0 MB",
		-5_100_000_000: "-5.1 GB", math.MaxInt64: "9.2 EB",
	} {
		if got := b.String(); got != want {
			t.Errorf("%d: got %q, want %q", int64(b), got, want)
		}
	}
}

// bf16Oracle rounds with math/big, away from the code under test.
func bf16Oracle(x float64) uint16 {
	if math.IsInf(x, 0) || x == 0 {
		return uint16(math.Float32bits(float32(x)) >> 16)
	}
	e := max(math.Ilogb(x), -126)
	ulp := new(big.Float).SetMantExp(big.NewFloat(1), e-7)
	q, _ := new(big.Float).SetPrec(200).Quo(new(big.Float).SetPrec(200).SetFloat64(math.Abs(x)), ulp).Int(nil)
	rest := new(big.Float).SetPrec(200).Sub(
		new(big.Float).SetPrec(200).Quo(new(big.Float).SetPrec(200).SetFloat64(math.Abs(x)), ulp),
		new(big.Float).SetInt(q))
	n := q.Int64()
	if c := rest.Cmp(big.NewFloat(0.5)); c > 0 || c == 0 && n%2 == 1 {
		n++
	}
	v := math.Copysign(math.Ldexp(float64(n), e-7), x)
	return uint16(math.Float32bits(float32(v)) >> 16)
}

func TestBF16Rounding(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 100_000 {
		x := math.Float32frombits(r.Uint32())
		if x != x {
			continue
		}
		if got, want := BF16FromF32(x), bf16Oracle(float64(x)); got != want {
			t.Fatalf("%g (%#x): got %#x, want %#x", x, math.Float32bits(x), got, want)
		}
		// A float64 near a tie of bfloat16: rounding by way of float32 would lose the last bits.
		b := math.Float32frombits(r.Uint32() &^ 0xffff)
		if b != b || math.IsInf(float64(b), 0) {
			continue
		}
		tie := math.Float32frombits(math.Float32bits(b) | 0x8000)
		y := float64(tie)
		if r.IntN(2) == 0 {
			y = math.Nextafter(y, math.Inf(1-2*r.IntN(2)))
		}
		if got, want := BF16FromF64(y), bf16Oracle(y); got != want {
			t.Fatalf("float64 %g: got %#x, want %#x", y, got, want)
		}
	}
	for _, x := range []float64{0, math.Copysign(0, -1), math.Inf(1), math.Inf(-1), 1e300, -1e300, 1e-300, -1e-300, math.MaxFloat32, 0x1p-134, 0x1.8p-134} {
		want := bf16Oracle(x)
		if math.Abs(x) == 1e300 {
			want = bf16Oracle(math.Copysign(math.Inf(1), x))
		}
		if got := BF16FromF64(x); got != want {
			t.Errorf("%g: got %#x, want %#x", x, got, want)
		}
	}
	if nan := F32FromBF16(BF16FromF32(math.Float32frombits(0xff800001))); nan == nan {
		t.Error("a NaN whose payload is in the low bits became a number")
	}
	if nan := F32FromBF16(BF16FromF64(math.NaN())); nan == nan {
		t.Error("a float64 NaN became a number")
	}
}

func TestF16EveryCode(t *testing.T) {
	for i := range 1 << 16 {
		h := uint16(i)
		e, m := int(h>>10&31), float64(h&0x3ff)
		var want float64
		switch {
		case e == 31 && m != 0:
			want = math.NaN()
		case e == 31:
			want = math.Inf(1)
		case e == 0:
			want = math.Ldexp(m, -24)
		default:
			want = math.Ldexp(m+1024, e-25)
		}
		if h>>15 == 1 {
			want = math.Copysign(want, -1)
		}
		got := F32FromF16(h)
		if want != want && got == got || want == want && math.Float32bits(got) != math.Float32bits(float32(want)) {
			t.Fatalf("%#04x: got %g, want %g", h, got, want)
		}
		// Each code beside normal ones and beside a rare one.
		for _, other := range []byte{0x3c, 0x7c} {
			b := make([]uint16, 4)
			raw := []byte{0, other, byte(h), byte(h >> 8), 1, 0x40, 0, other}
			if err := ToBF16(b, raw, F16); err != nil || b[1] != BF16FromF32(got) || b[2] != 0x4000 {
				t.Fatalf("%#04x: bfloat16 %#x, want %#x (%v)", h, b, BF16FromF32(got), err)
			}
		}
	}
}

func TestF8EveryCodeIsExactInBF16(t *testing.T) {
	for d := Bool; d < numDTypes; d++ {
		if f8Table(d) == nil {
			continue
		}
		for i := range 256 {
			v := F32FromF8(d, byte(i))
			b := F32FromBF16(f8Table(d).bf16[i])
			if v == v && math.Float32bits(v) != math.Float32bits(b) || v != v && b == b {
				t.Errorf("%v %#02x: float32 %g, bfloat16 %g", d, i, v, b)
			}
		}
	}
	for _, c := range []struct {
		d    DType
		b    byte
		want float32
	}{
		{F8E4M3, 0x7e, 448}, {F8E4M3, 0x01, 0x1p-9}, {F8E5M2, 0x7b, 57344}, {F8E5M2, 0xfc, float32(math.Inf(-1))},
		{F8E4M3FNUZ, 0x7f, 240}, {F8E5M2FNUZ, 0x7f, 57344}, {F8E8M0, 127, 1}, {F8E8M0, 0, 0x1p-127},
	} {
		if got := F32FromF8(c.d, c.b); got != c.want {
			t.Errorf("%v %#02x: got %g, want %g", c.d, c.b, got, c.want)
		}
	}
}

func TestBulkEqualsSingle(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, d := range []DType{F8E4M3, F8E5M2, F8E8M0, F8E4M3FNUZ, F8E5M2FNUZ, F16, BF16, F32, F64} {
		for n := range 21 {
			src := make([]byte, n*d.Size())
			for i := range src {
				src[i] = byte(r.Uint32())
			}
			f, b := make([]float32, n), make([]uint16, n)
			if err := ToF32(f, src, d); err != nil {
				t.Fatal(err)
			}
			if err := ToBF16(b, src, d); err != nil {
				t.Fatal(err)
			}
			for i := range n {
				wf, wb := single(d, src[i*d.Size():])
				if math.Float32bits(f[i]) != math.Float32bits(wf) && wf == wf || b[i] != wb {
					t.Fatalf("%v n=%d i=%d: got %g %#x, want %g %#x", d, n, i, f[i], b[i], wf, wb)
				}
			}
		}
	}
	if ToF32(make([]float32, 2), make([]byte, 9), F32) == nil || ToBF16(make([]uint16, 2), make([]byte, 6), BF16) == nil {
		t.Error("a wrong length was accepted")
	}
	if ToF32(nil, nil, I32) == nil || ToF32(nil, nil, F4) == nil {
		t.Error("a dtype that is not expanded was accepted")
	}
}

func single(d DType, s []byte) (float32, uint16) {
	switch d {
	case F64:
		x := math.Float64frombits(binary.LittleEndian.Uint64(s))
		return float32(x), BF16FromF64(x)
	case F32:
		x := math.Float32frombits(binary.LittleEndian.Uint32(s))
		return x, BF16FromF32(x)
	case F16:
		x := F32FromF16(binary.LittleEndian.Uint16(s))
		return x, BF16FromF32(x)
	case BF16:
		b := binary.LittleEndian.Uint16(s)
		return F32FromBF16(b), b
	}
	x := F32FromF8(d, s[0])
	return x, BF16FromF32(x)
}

func TestPutReadsBack(t *testing.T) {
	f := []float32{1, -2.5, 3e-40}
	raw := make([]byte, 12)
	PutF32(raw, f)
	got := make([]float32, 3)
	if err := ToF32(got, raw, F32); err != nil || got[0] != f[0] || got[1] != f[1] || got[2] != f[2] {
		t.Errorf("got %v, %v", got, err)
	}
	b := make([]uint16, 3)
	BF16FromF32s(b, f)
	PutBF16(raw, b)
	back := make([]uint16, 3)
	if err := ToBF16(back, raw[:6], BF16); err != nil || back[0] != b[0] || back[1] != b[1] || back[2] != b[2] {
		t.Errorf("got %v, %v", back, err)
	}
	F32FromBF16s(got, b)
	if got[0] != 1 || got[1] != -2.5 {
		t.Errorf("got %v", got)
	}
}

func BenchmarkConvert(b *testing.B) {
	const n = 1 << 18
	for _, d := range []DType{F8E4M3, F16, BF16, F32} {
		src := make([]byte, n*d.Size())
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

// TestF16FromF32: every half comes back from float32, and what lies between two
// goes to the nearer, to the even one in the middle.
func TestF16FromF32(t *testing.T) {
	for h := range 1 << 16 {
		x := F32FromF16(uint16(h))
		if math.IsNaN(float64(x)) {
			if !math.IsNaN(float64(F32FromF16(F16FromF32(x)))) {
				t.Fatalf("NaN %#x became a number", h)
			}
			continue
		}
		if got := F16FromF32(x); got != uint16(h) {
			t.Fatalf("%#x became %#x by way of %g", h, got, x)
		}
		if h&0x7fff >= 0x7bff {
			continue
		}
		next := F32FromF16(uint16(h) + 1)
		middle := float32((float64(x) + float64(next)) / 2)
		even := uint16(h) + uint16(h)&1
		for _, c := range []struct {
			v    float32
			want uint16
		}{{middle, even}, {math.Nextafter32(middle, x), uint16(h)}, {math.Nextafter32(middle, next), uint16(h) + 1}} {
			if got := F16FromF32(c.v); got != c.want {
				t.Fatalf("%g between %#x and the next became %#x, want %#x", c.v, h, got, c.want)
			}
		}
	}
	for x, want := range map[float32]uint16{65519.996: 0x7bff, 65520: 0x7c00, 1e30: 0x7c00, -65520: 0xfc00} {
		if got := F16FromF32(x); got != want {
			t.Errorf("%g became %#x, want %#x", x, got, want)
		}
	}
}
