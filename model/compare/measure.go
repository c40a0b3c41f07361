// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"

	"github.com/distorch/distorch/model/tensor"
)

// Tensor is one side of a comparison.
type Tensor struct {
	Name  string
	DType tensor.DType
	Shape tensor.Shape
	// Peak is what a picture's whitest white is; 0: the range of the values
	// that are compared.
	Peak float64
	// Planes says that SSIM means something for the last two dimensions.
	Planes bool
	// Read fills dst with the bytes from an offset of the tensor's, which are
	// little-endian and row-major.
	Read func(dst []byte, offset int64) error
}

// FromFloat32s is a latent or a prediction in memory, [n,channels,height,width].
func FromFloat32s(name string, shape tensor.Shape, values []float32) Tensor {
	raw := make([]byte, 4*len(values))
	tensor.PutF32(raw, values)
	return Tensor{Name: name, DType: tensor.F32, Shape: shape, Planes: len(shape) == 4, Read: memory(raw)}
}

// Float is a float64 that JSON writes as null where it is not finite.
type Float float64

// MarshalJSON writes what JSON has no number for as null.
func (f Float) MarshalJSON() ([]byte, error) {
	if v := float64(f); math.IsInf(v, 0) || math.IsNaN(v) {
		return []byte("null"), nil
	}
	return json.Marshal(float64(f))
}

// Odd counts values that are no finite numbers.
type Odd struct {
	NaN int64 `json:"nan"`
	Inf int64 `json:"inf"`
}

// Result is how far B is from A. Values that are not finite on both sides have
// no part in the errors.
type Result struct {
	Values    int64 `json:"values"`
	Differing int64 `json:"differing"`  // in their bits; where the dtypes differ, in their values
	EqualBits bool  `json:"equal_bits"` // same dtype and no value differs
	// MaxError is max|a-b|, at the index MaxAt, which is empty where it is 0.
	MaxError Float   `json:"max_error"`
	MaxAt    []int64 `json:"max_error_at"`
	// Relative is the L2 norm of a-b over that of b: 0 where a = b, infinite
	// where b alone is all zero.
	Relative Float `json:"relative_l2"`
	// PSNR is 20 log10(peak / rms(a-b)) in dB, infinite where a = b. The peak is
	// the pictures' largest value, or the range of the finite values of both
	// tensors.
	PSNR Float `json:"psnr_db"`
	Peak Float `json:"peak"`
	SSIM Float `json:"ssim"` // 1 where a = b; NaN where it has no value, which NoSSIM explains
	// NoSSIM is why there is no SSIM.
	NoSSIM string `json:"no_ssim,omitempty"`
	A      Odd    `json:"not_finite_a"`
	B      Odd    `json:"not_finite_b"`
	// Unlike counts values that are not finite on one side and not the same on
	// the other.
	Unlike int64 `json:"not_finite_on_one_side"`
}

// Within says whether B is as near to A as a tolerance asks: of the relative
// L2; 0 asks for equal values, in their bits where the dtypes are the same.
// A NaN or an infinity that is on one side alone is beyond any tolerance.
func (r Result) Within(tolerance float64) bool {
	if tolerance == 0 {
		return r.Differing == 0
	}
	return r.Unlike == 0 && float64(r.Relative) <= tolerance
}

// ShapeError is two tensors of different shapes.
type ShapeError struct {
	Name string
	A, B tensor.Shape
}

func (e *ShapeError) Error() string {
	return fmt.Sprintf("%s has shape %v in A and %v in B; only equal shapes can be compared", e.Name, e.A, e.B)
}

// piece is how many elements are looked at at once.
const piece = 64 << 10

// measure is a comparison under way.
type measure struct {
	a, b       Tensor
	rawA, rawB []byte
	a64, b64   []float64
	result     Result
	diff, norm sum
	low, high  float64
	maxAt      int64
}

// Tensors compares two tensors of one shape. Errors are *ShapeError, an error
// of Read, or that of a dtype that is not stored as plain values.
func Tensors(a, b Tensor) (Result, error) {
	a, b = parts(a), parts(b)
	if !a.Shape.Equal(b.Shape) {
		return Result{}, &ShapeError{a.Name, a.Shape, b.Shape}
	}
	n, err := a.Shape.Elements()
	if err != nil {
		return Result{}, err
	}
	if a.DType.Size() == 0 || b.DType.Size() == 0 {
		return packed(a, b, n)
	}
	m := &measure{a: a, b: b, low: math.Inf(1), high: math.Inf(-1), maxAt: -1}
	m.result.Values = n
	for at := int64(0); at < n; at += piece {
		if err := m.read(at, int(min(piece, n-at))); err != nil {
			return Result{}, err
		}
		m.add(at)
	}
	return m.finish()
}

// parts is a tensor of complex numbers as one of their two parts each.
func parts(t Tensor) Tensor {
	if t.DType == tensor.C64 {
		t.DType, t.Shape, t.Planes = tensor.F32, append(t.Shape.Clone(), 2), false
	}
	return t
}

// packed compares what has more than one element to a byte, by its bytes.
func packed(a, b Tensor, n int64) (Result, error) {
	if a.DType != b.DType {
		return Result{}, fmt.Errorf("%s is %v in A and %v in B; elements smaller than a byte are compared with their like alone", a.Name, a.DType, b.DType)
	}
	size, err := a.Shape.Bytes(a.DType)
	if err != nil {
		return Result{}, err
	}
	bits := func(t Tensor) Tensor {
		t.DType, t.Shape, t.Planes = tensor.U8, tensor.Shape{int64(size)}, false
		return t
	}
	r, err := Tensors(bits(a), bits(b))
	none := Float(math.NaN())
	r.Values, r.MaxError, r.MaxAt, r.PSNR, r.Peak, r.SSIM = n, none, []int64{}, none, none, none
	r.NoSSIM = fmt.Sprintf("%v is compared by its bytes", a.DType)
	if r.Relative = 0; r.Differing > 0 {
		r.Relative = Float(math.Inf(1))
	}
	return r, err
}

// read reads n elements of both sides from element at.
func (m *measure) read(at int64, n int) (err error) {
	if m.rawA, m.a64, err = elements(m.a, m.rawA, m.a64, at, n); err != nil {
		return fmt.Errorf("side A: %w", err)
	}
	if m.rawB, m.b64, err = elements(m.b, m.rawB, m.b64, at, n); err != nil {
		return fmt.Errorf("side B: %w", err)
	}
	return nil
}

// elements reads n elements of t, in the given memory where that is enough.
func elements(t Tensor, raw []byte, values []float64, at int64, n int) ([]byte, []float64, error) {
	size := t.DType.Size()
	if cap(raw) < n*size {
		raw = make([]byte, n*size)
	}
	if cap(values) < n {
		values = make([]float64, n)
	}
	raw, values = raw[:n*size], values[:n]
	if err := t.Read(raw, at*int64(size)); err != nil {
		return raw, values, err
	}
	return raw, values, expand(values, raw, t.DType)
}

// add counts a piece that was read.
func (m *measure) add(at int64) {
	r := &m.result
	same := m.a.DType == m.b.DType
	size := m.a.DType.Size()
	if same && bytes.Equal(m.rawA, m.rawB) {
		m.same()
		return
	}
	diff, norm := m.a64[:0], m.b64[:0]
	for i, a := range m.a64 {
		b := m.b64[i]
		differs := math.Float64bits(a) != math.Float64bits(b)
		if same {
			differs = !bytes.Equal(m.rawA[i*size:(i+1)*size], m.rawB[i*size:(i+1)*size])
		}
		if differs {
			r.Differing++
		}
		r.A.count(a)
		r.B.count(b)
		m.span(a)
		m.span(b)
		if !finite(a) || !finite(b) {
			if a != b && !(math.IsNaN(a) && math.IsNaN(b)) {
				r.Unlike++
			}
			continue
		}
		d := math.Abs(a - b)
		if d > float64(r.MaxError) {
			r.MaxError, m.maxAt = Float(d), at+int64(i)
		}
		// Both lie behind what is still to be read of the same memory.
		diff, norm = append(diff, d), append(norm, b)
	}
	m.diff.add(diff)
	m.norm.add(norm)
}

// same counts a piece whose two sides are the same.
func (m *measure) same() {
	norm := m.b64[:0]
	for _, b := range m.b64 {
		m.result.B.count(b)
		m.result.A.count(b)
		m.span(b)
		if finite(b) {
			norm = append(norm, b)
		}
	}
	m.diff.n += int64(len(norm))
	m.norm.add(norm)
}

func (m *measure) span(v float64) {
	if finite(v) {
		m.low, m.high = min(m.low, v), max(m.high, v)
	}
}

func (m *measure) finish() (Result, error) {
	r := &m.result
	r.EqualBits = r.Differing == 0 && m.a.DType == m.b.DType
	r.MaxAt = index(m.maxAt, m.a.Shape)
	diff, norm := m.diff.norm(), m.norm.norm()
	switch {
	case diff == 0:
	case norm == 0:
		r.Relative = Float(math.Inf(1))
	default:
		r.Relative = Float(diff / norm)
	}
	peak := max(m.a.Peak, m.b.Peak)
	if peak == 0 && m.high >= m.low {
		peak = m.high - m.low
	}
	r.Peak, r.PSNR = Float(peak), Float(math.Inf(1))
	if diff > 0 {
		r.PSNR = Float(20 * (math.Log10(peak) - math.Log10(diff) + math.Log10(float64(m.diff.n))/2))
	}
	var err error
	var s float64
	s, r.NoSSIM, err = m.ssim(peak)
	r.SSIM = Float(s)
	return *r, err
}

// index is where an element lies; empty for -1.
func index(at int64, shape tensor.Shape) []int64 {
	if at < 0 {
		return []int64{}
	}
	out := make([]int64, len(shape))
	for d := len(shape) - 1; d >= 0; d-- {
		out[d], at = at%shape[d], at/shape[d]
	}
	return out
}

func (o *Odd) count(v float64) {
	if math.IsNaN(v) {
		o.NaN++
	} else if math.IsInf(v, 0) {
		o.Inf++
	}
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// sum is the L2 norm of values that come in pieces.
type sum struct {
	n    int64
	root float64
}

func (s *sum) add(values []float64) {
	s.n += int64(len(values))
	most := 0.0
	for _, v := range values {
		most = max(most, math.Abs(v))
	}
	if most == 0 {
		return
	}
	// Squares of very large and very small values leave float64's range.
	scale := 1.0
	if most > 1e100 || most < 1e-100 {
		scale = most
	}
	total := 0.0
	for _, v := range values {
		v /= scale
		total += v * v
	}
	s.root = math.Hypot(s.root, scale*math.Sqrt(total))
}

func (s *sum) norm() float64 { return s.root }
