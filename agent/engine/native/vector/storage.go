// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package vector

import "math"

// nan32 and nan16 are the canonical bits of what is not a number.
const (
	nan32 = 0x7fc00000
	nan16 = 0x7fc0
)

// canonical replaces any NaN by the one that is stored.
func canonical(x float32) float32 {
	if x != x {
		return math.Float32frombits(nan32)
	}
	return x
}

// roundBF16 rounds to nearest even.
func roundBF16(x float32) uint16 {
	if x != x {
		return nan16
	}
	b := math.Float32bits(x)
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}

func widenBF16(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }

// chunk is how many elements the pure Go kernels hold at a time, a multiple of
// the 16 lanes.
const chunk = 256

type buffer [chunk]float32

// load widens src into b and returns the used part.
func load[T Elem](b *buffer, src []T) []float32 {
	out := b[:len(src)]
	switch s := any(src).(type) {
	case []float32:
		copy(out, s)
	case []uint16:
		for i, h := range s {
			out[i] = widenBF16(h)
		}
	}
	return out
}

// store rounds v to T.
func store[T Elem](dst []T, v []float32) {
	switch d := any(dst).(type) {
	case []float32:
		for i, x := range v {
			d[i] = canonical(x)
		}
	case []uint16:
		for i, x := range v {
			d[i] = roundBF16(x)
		}
	}
}

// round rounds to T and stays in f32.
func round[T Elem](v []float32) {
	var t T
	if _, bf16 := any(t).(uint16); !bf16 {
		return
	}
	for i, x := range v {
		v[i] = widenBF16(roundBF16(x))
	}
}

// pieces calls do for each chunk [from, to) of n elements.
func pieces(n int) func(do func(from, to int) bool) {
	return func(do func(from, to int) bool) {
		for from := 0; from < n; from += chunk {
			if !do(from, min(from+chunk, n)) {
				return
			}
		}
	}
}

// expandF16 is exact.
func expandF16(h uint16) float32 {
	sign, mag := uint32(h&0x8000)<<16, uint32(h&0x7fff)
	switch {
	case mag > 0x7c00:
		return math.Float32frombits(nan32)
	case mag == 0x7c00:
		return math.Float32frombits(sign | 0x7f800000)
	case mag < 0x400: // subnormal: a multiple of 2⁻²⁴
		return math.Float32frombits(sign | math.Float32bits(float32(mag)*(1.0/(1<<24))))
	}
	return math.Float32frombits(sign | (mag<<13 + 112<<23))
}

// expandE4M3 is exact.
func expandE4M3(b byte) float32 {
	sign, mag := uint32(b&0x80)<<24, uint32(b&0x7f)
	switch {
	case mag == 0x7f:
		return math.Float32frombits(nan32)
	case mag < 8: // subnormal: a multiple of 2⁻⁹
		return math.Float32frombits(sign | math.Float32bits(float32(mag)*(1.0/(1<<9))))
	}
	return math.Float32frombits(sign | (mag<<20 + 120<<23))
}

// genericConversions holds each 8-bit format as a table of its 256 values.
func genericConversions() conversions {
	var e4m3, e5m2 [256]float32
	for i := range 256 {
		e4m3[i], e5m2[i] = expandE4M3(byte(i)), expandF16(uint16(i)<<8)
	}
	return conversions{
		f32ToBF16: func(dst []uint16, src []float32) { store(dst, src) },
		bf16ToF32: func(dst []float32, src []uint16) {
			for i, h := range src {
				dst[i] = canonical(widenBF16(h))
			}
		},
		f16ToF32: func(dst []float32, src []uint16) {
			for i, h := range src {
				dst[i] = expandF16(h)
			}
		},
		f16ToBF16: func(dst, src []uint16) {
			for i, h := range src {
				dst[i] = roundBF16(expandF16(h))
			}
		},
		e4m3ToF32:  lookup(&e4m3, func(x float32) float32 { return x }),
		e4m3ToBF16: lookup(&e4m3, roundBF16),
		e5m2ToF32:  lookup(&e5m2, func(x float32) float32 { return x }),
		e5m2ToBF16: lookup(&e5m2, roundBF16),
	}
}

func lookup[T Elem](values *[256]float32, to func(float32) T) func(dst []T, src []byte) {
	var t [256]T
	for i, v := range values {
		t[i] = to(v)
	}
	return func(dst []T, src []byte) {
		for i, b := range src {
			dst[i] = t[b]
		}
	}
}
