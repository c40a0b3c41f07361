// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"fmt"
	"math"
	"slices"

	"github.com/distorch/distorch/model/tensor"
)

// typed is a value's shape at concrete dimensions and its kind.
type typed struct {
	name  string
	shape tensor.Shape
	kind  Kind
}

// arity is how many inputs, outputs and weights an operation takes; max -1 is
// no bound.
type arity struct{ minIn, maxIn, minOut, maxOut, minW, maxW int }

func (o Op) arity() (arity, bool) {
	switch o {
	case OpCast, OpScale, OpPatchify, OpUnpatchify, OpSiLU, OpGELUTanh, OpReshape, OpTranspose, OpAllReduce:
		return arity{1, 1, 1, 1, 0, 0}, true
	case OpTimestepEmbedding, OpAdd, OpMul:
		return arity{2, 2, 1, 1, 0, 0}, true
	case OpLinear:
		return arity{1, 1, 1, 1, 1, 2}, true
	case OpLowRank, OpLowRankAdd:
		return arity{2, 2, 1, 1, 1, 1}, true
	case OpLayerNorm:
		return arity{1, 1, 1, 1, 0, 2}, true
	case OpRMSNorm:
		return arity{1, 1, 1, 1, 0, 1}, true
	case OpModulate, OpGatedAdd, OpRoPE:
		return arity{3, 3, 1, 1, 0, 0}, true
	case OpAttention:
		return arity{3, 4, 1, 1, 0, 0}, true
	case OpConcat:
		return arity{2, -1, 1, 1, 0, 0}, true
	case OpSplit:
		return arity{1, 1, 2, -1, 0, 0}, true
	}
	return arity{}, false
}

func within(n, low, high int) bool { return n >= low && (high < 0 || n <= high) }

// checkAttrs refuses parameters that the operation does not use or that have
// no meaning.
func checkAttrs(o Op, a Attrs) error {
	var used Attrs
	switch o {
	case OpScale:
		used.Factor = a.Factor
		if !finite(a.Factor) || a.Factor == 0 {
			return fmt.Errorf("factor %v is not a finite number other than 0", a.Factor)
		}
	case OpLayerNorm, OpRMSNorm:
		used.Eps = a.Eps
		if !finite(a.Eps) || a.Eps <= 0 {
			return fmt.Errorf("eps %v is not a positive number", a.Eps)
		}
	case OpAttention:
		used.Scale = a.Scale
		if !finite(a.Scale) || a.Scale <= 0 {
			return fmt.Errorf("scale %v is not a positive number", a.Scale)
		}
	case OpPatchify, OpUnpatchify:
		used.Patch = a.Patch
		if a.Patch[0] < 1 || a.Patch[1] < 1 || a.Patch[0] > 64 || a.Patch[1] > 64 {
			return fmt.Errorf("patch %v is not between 1 and 64", a.Patch)
		}
	case OpConcat, OpSplit:
		used.Axis = a.Axis
	case OpTranspose:
		used.Perm = a.Perm
	case OpGatedAdd:
		used.Fused = a.Fused
	case OpLowRank:
		used.Ranks = a.Ranks
	case OpLowRankAdd:
		used.First = a.First
	}
	if a.Eps != used.Eps || a.Factor != used.Factor || a.Scale != used.Scale || a.Axis != used.Axis ||
		a.Patch != used.Patch || a.Fused != used.Fused || a.First != used.First ||
		len(a.Perm) != len(used.Perm) || len(a.Ranks) != len(used.Ranks) {
		return fmt.Errorf("%s has a parameter that it does not use", o)
	}
	return nil
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

// checkNode says whether the operation takes these inputs and weights and makes
// these outputs. Arity and parameters were checked before.
func checkNode(o Op, a Attrs, in, out []typed, w []Weight) error {
	switch o {
	case OpCast:
		return sameShape(in[0], out[0])
	case OpScale, OpSiLU, OpGELUTanh, OpAllReduce:
		return sameType(in[0], out[0])
	case OpAdd, OpMul:
		if err := sameType(in[0], in[1]); err != nil {
			return err
		}
		return sameType(in[0], out[0])
	case OpTimestepEmbedding:
		return checkEmbedding(in, out[0])
	case OpPatchify:
		return checkPatches(a, in[0], out[0])
	case OpUnpatchify:
		return checkPatches(a, out[0], in[0])
	case OpLinear:
		return checkLinear(in[0], out[0], w)
	case OpLowRank:
		return checkLowRank(a.Ranks, in, out[0], w[0])
	case OpLowRankAdd:
		return checkLowRankAdd(a.First, in, out[0], w[0])
	case OpLayerNorm, OpRMSNorm:
		return checkNorm(in[0], out[0], w)
	case OpModulate:
		return checkModulate(in[0], in[1], in[2], out[0])
	case OpGatedAdd:
		return checkGatedAdd(in, out[0])
	case OpRoPE:
		return checkRoPE(in, out[0])
	case OpAttention:
		return checkAttention(in, out[0])
	case OpConcat:
		return checkParts(a.Axis, out[0], in)
	case OpSplit:
		return checkParts(a.Axis, in[0], out)
	case OpReshape:
		return checkReshape(in[0], out[0])
	case OpTranspose:
		return checkTranspose(a.Perm, in[0], out[0])
	}
	return fmt.Errorf("unknown operation %q", o)
}

func mismatch(a, b typed) error {
	return fmt.Errorf("%s %v %v does not match %s %v %v", a.name, a.kind, a.shape, b.name, b.kind, b.shape)
}

func sameShape(a, b typed) error {
	if !a.shape.Equal(b.shape) {
		return mismatch(a, b)
	}
	return nil
}

func sameType(a, b typed) error {
	if a.kind != b.kind {
		return mismatch(a, b)
	}
	return sameShape(a, b)
}

func rank(v typed, n int) error {
	if len(v.shape) != n {
		return fmt.Errorf("%s %v must have %d dimensions", v.name, v.shape, n)
	}
	return nil
}

func kindIs(v typed, k Kind) error {
	if v.kind != k {
		return fmt.Errorf("%s is %v, must be %v", v.name, v.kind, k)
	}
	return nil
}

func last(s tensor.Shape) int64 { return s[len(s)-1] }

func checkEmbedding(in []typed, out typed) error {
	v, f := in[0], in[1]
	if err := firstError(rank(v, 1), rank(f, 1), rank(out, 2), kindIs(f, F32), kindIs(out, F32)); err != nil {
		return err
	}
	if out.shape[0] != v.shape[0] || out.shape[1] != 2*f.shape[0] {
		return mismatch(out, f)
	}
	return nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func checkPatches(a Attrs, image, tokens typed) error {
	if err := firstError(rank(image, 4), rank(tokens, 3)); err != nil {
		return err
	}
	if image.kind != tokens.kind {
		return mismatch(image, tokens)
	}
	p, q := a.Patch[0], a.Patch[1]
	rows, cols := (image.shape[2]+p-1)/p, (image.shape[3]+q-1)/q
	if empty := image.shape[2] == 0 || image.shape[3] == 0; !empty && (image.shape[2] < p || image.shape[3] < q) {
		return fmt.Errorf("%s %v is smaller than one patch %v", image.name, image.shape, a.Patch)
	}
	want := tensor.Shape{image.shape[0], rows * cols, image.shape[1] * p * q}
	if !tokens.shape.Equal(want) {
		return fmt.Errorf("%s is %v, must be %v for %s %v in patches of %v", tokens.name, tokens.shape, want, image.name, image.shape, a.Patch)
	}
	return nil
}

func checkLinear(x, y typed, w []Weight) error {
	if err := firstError(kindIs(x, Compute), kindIs(y, Compute)); err != nil {
		return err
	}
	if len(x.shape) < 2 || len(w[0].Shape) != 2 {
		return fmt.Errorf("%s %v and weight %s %v must have at least 2 and exactly 2 dimensions", x.name, x.shape, w[0].Name, w[0].Shape)
	}
	if last(x.shape) != w[0].Shape[1] {
		return fmt.Errorf("%s %v does not multiply weight %s %v", x.name, x.shape, w[0].Name, w[0].Shape)
	}
	want := x.shape.Clone()
	want[len(want)-1] = w[0].Shape[0]
	if !y.shape.Equal(want) {
		return fmt.Errorf("%s is %v, must be %v", y.name, y.shape, want)
	}
	return checkVector(w[1:], w[0].Shape[0])
}

func checkVector(w []Weight, n int64) error {
	for _, v := range w {
		if !v.Shape.Equal(tensor.Shape{n}) {
			return fmt.Errorf("weight %s is %v, must be [%d]", v.Name, v.Shape, n)
		}
	}
	return nil
}

func checkNorm(x, y typed, w []Weight) error {
	if err := sameType(x, y); err != nil {
		return err
	}
	if len(x.shape) < 2 {
		return fmt.Errorf("%s %v must have at least 2 dimensions", x.name, x.shape)
	}
	return checkVector(w, last(x.shape))
}

func checkModulate(x, scale, shift, out typed) error {
	if err := firstError(rank(x, 3), sameType(x, out), sameType(scale, shift)); err != nil {
		return err
	}
	return perSample(x, scale)
}

// perSample wants v to be [B,D] of x [B,S,D].
func perSample(x, v typed) error {
	if v.kind != x.kind || !v.shape.Equal(tensor.Shape{x.shape[0], x.shape[2]}) {
		return mismatch(v, x)
	}
	return nil
}

func checkGatedAdd(in []typed, out typed) error {
	x, gate, y := in[0], in[1], in[2]
	if err := firstError(rank(x, 3), sameType(x, y), sameType(x, out)); err != nil {
		return err
	}
	return perSample(x, gate)
}

func checkRoPE(in []typed, out typed) error {
	x, cos, sin := in[0], in[1], in[2]
	if err := firstError(rank(x, 4), sameType(x, out), sameType(cos, sin), kindIs(cos, F32)); err != nil {
		return err
	}
	if x.shape[3]%2 != 0 || !cos.shape.Equal(tensor.Shape{x.shape[1], x.shape[3] / 2}) {
		return mismatch(cos, x)
	}
	return nil
}

func checkAttention(in []typed, out typed) error {
	q, k, v := in[0], in[1], in[2]
	if err := firstError(rank(q, 4), rank(k, 4), sameType(k, v), sameType(q, out), kindIs(q, Compute), kindIs(k, Compute)); err != nil {
		return err
	}
	if q.shape[0] != k.shape[0] || q.shape[2] != k.shape[2] || q.shape[3] != k.shape[3] {
		return mismatch(q, k)
	}
	if k.shape[1] == 0 && q.shape[1] != 0 {
		return fmt.Errorf("%s %v has no keys", k.name, k.shape)
	}
	if len(in) > 3 {
		return checkMask(in[3], q, k)
	}
	return nil
}

func checkMask(mask, q, k typed) error {
	if err := firstError(rank(mask, 3), kindIs(mask, Compute)); err != nil {
		return err
	}
	m, b := mask.shape[0], q.shape[0]
	if m != 0 && m != b || mask.shape[1] != q.shape[1] || mask.shape[2] != k.shape[1] {
		return fmt.Errorf("mask %s is %v, must be [%d,%d,%d], or [0,%[4]d,%[5]d] for none", mask.name, mask.shape, b, q.shape[1], k.shape[1])
	}
	return nil
}

func checkParts(axis int, whole typed, parts []typed) error {
	if axis < 0 || axis >= len(whole.shape) {
		return fmt.Errorf("axis %d of %s %v does not exist", axis, whole.name, whole.shape)
	}
	sum := int64(0)
	for _, p := range parts {
		if len(p.shape) != len(whole.shape) || p.kind != whole.kind {
			return mismatch(p, whole)
		}
		for i := range p.shape {
			if i != axis && p.shape[i] != whole.shape[i] {
				return mismatch(p, whole)
			}
		}
		sum += p.shape[axis]
	}
	if sum != whole.shape[axis] {
		return fmt.Errorf("parts of %s add up to %d along axis %d, must be %d", whole.name, sum, axis, whole.shape[axis])
	}
	return nil
}

func checkReshape(a, b typed) error {
	n, err := a.shape.Elements()
	if err != nil {
		return err
	}
	m, err := b.shape.Elements()
	if err != nil {
		return err
	}
	if n != m || a.kind != b.kind {
		return mismatch(a, b)
	}
	return nil
}

func checkTranspose(perm []int, a, b typed) error {
	if a.kind != b.kind || len(perm) != len(a.shape) || len(b.shape) != len(a.shape) {
		return mismatch(a, b)
	}
	for i, p := range perm {
		if p < 0 || p >= len(perm) || slices.Contains(perm[:i], p) {
			return fmt.Errorf("%v is not a permutation", perm)
		}
		if b.shape[i] != a.shape[p] {
			return mismatch(a, b)
		}
	}
	return nil
}
