// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"fmt"
	"math"
	"math/bits"
	"strings"
)

// ExprKind is the form of an Expr.
type ExprKind uint8

// The forms of an Expr.
const (
	ExprInvalid   ExprKind = iota
	ExprInt                // Value
	ExprDim                // the dimension Name
	ExprSum                // of Args
	ExprProduct            // of Args
	ExprCeilDiv            // Args[0] divided by Args[1], rounded up
	ExprIfGreater          // Args[2] where Args[0] > Args[1], else Args[3]
)

// Expr is an integer over named dimensions. The zero Expr is invalid.
type Expr struct {
	Kind  ExprKind
	Value int64
	Name  string
	Args  []Expr
}

// Int is the constant n.
func Int(n int64) Expr { return Expr{Kind: ExprInt, Value: n} }

// D is the dimension called name.
func D(name string) Expr { return Expr{Kind: ExprDim, Name: name} }

// Sum is a + b + ….
func Sum(args ...Expr) Expr { return Expr{Kind: ExprSum, Args: args} }

// Product is a·b·….
func Product(args ...Expr) Expr { return Expr{Kind: ExprProduct, Args: args} }

// CeilDiv is a/b rounded up.
func CeilDiv(a, b Expr) Expr { return Expr{Kind: ExprCeilDiv, Args: []Expr{a, b}} }

// IfGreater is then where a > b, else otherwise.
func IfGreater(a, b, then, otherwise Expr) Expr {
	return Expr{Kind: ExprIfGreater, Args: []Expr{a, b, then, otherwise}}
}

// Max is the greater of a and b.
func Max(a, b Expr) Expr { return IfGreater(a, b, a, b) }

// Dims gives named dimensions their values.
type Dims map[string]int64

// MaxExtent bounds every dimension and expression.
const MaxExtent = 1 << 40

const maxExprDepth = 8

// Eval is the value of e, which is at least 0 and at most MaxExtent; an error
// names the unknown dimension or the sub-expression that overflows.
func (e Expr) Eval(dims Dims) (int64, error) { return e.eval(dims, 0) }

func (e Expr) eval(dims Dims, depth int) (int64, error) {
	if depth > maxExprDepth {
		return 0, fmt.Errorf("expression nested deeper than %d", maxExprDepth)
	}
	var n int64
	switch e.Kind {
	case ExprInt:
		n = e.Value
	case ExprDim:
		v, ok := dims[e.Name]
		if !ok {
			return 0, fmt.Errorf("unknown dimension %q", e.Name)
		}
		n = v
	case ExprSum, ExprProduct:
		v, err := e.fold(dims, depth)
		if err != nil {
			return 0, err
		}
		n = v
	case ExprCeilDiv:
		if len(e.Args) != 2 {
			return 0, fmt.Errorf("ceildiv of %d arguments, want 2", len(e.Args))
		}
		a, err := e.Args[0].eval(dims, depth+1)
		if err != nil {
			return 0, err
		}
		b, err := e.Args[1].eval(dims, depth+1)
		if err != nil {
			return 0, err
		}
		if b == 0 {
			return 0, fmt.Errorf("%v: division by zero", e)
		}
		n = (a + b - 1) / b
	case ExprIfGreater:
		v, err := e.choose(dims, depth)
		if err != nil {
			return 0, err
		}
		n = v
	default:
		return 0, fmt.Errorf("expression of unknown form %d", e.Kind)
	}
	if n < 0 || n > MaxExtent {
		return 0, fmt.Errorf("%v is out of range 0..%d", e, int64(MaxExtent))
	}
	return n, nil
}

// choose evaluates all four arguments, so that none hides a fault.
func (e Expr) choose(dims Dims, depth int) (int64, error) {
	if len(e.Args) != 4 {
		return 0, fmt.Errorf("ifgreater of %d arguments, want 4", len(e.Args))
	}
	var v [4]int64
	for i, a := range e.Args {
		n, err := a.eval(dims, depth+1)
		if err != nil {
			return 0, err
		}
		v[i] = n
	}
	if v[0] > v[1] {
		return v[2], nil
	}
	return v[3], nil
}

// names calls f with every dimension that e has a part of.
func (e Expr) names(f func(string)) {
	if e.Kind == ExprDim {
		f(e.Name)
	}
	for _, a := range e.Args {
		a.names(f)
	}
}

// fold adds or multiplies the arguments. Each is at most 2^40, and so is every
// partial result, so a sum cannot overflow and a product's high word shows it.
func (e Expr) fold(dims Dims, depth int) (int64, error) {
	if len(e.Args) == 0 {
		return 0, fmt.Errorf("sum or product of nothing")
	}
	acc := int64(0)
	if e.Kind == ExprProduct {
		acc = 1
	}
	for _, a := range e.Args {
		v, err := a.eval(dims, depth+1)
		if err != nil {
			return 0, err
		}
		if e.Kind == ExprSum {
			acc += v
		} else {
			hi, lo := bits.Mul64(uint64(acc), uint64(v))
			if hi != 0 || lo > math.MaxInt64 {
				return 0, fmt.Errorf("%v overflows", e)
			}
			acc = int64(lo)
		}
		if acc > MaxExtent {
			return 0, fmt.Errorf("%v is above %d", e, int64(MaxExtent))
		}
	}
	return acc, nil
}

// String is "S_txt+S_img", "H2*W2", "ceildiv(h,2)".
func (e Expr) String() string {
	var b strings.Builder
	e.print(&b, 0)
	return b.String()
}

func (e Expr) print(b *strings.Builder, depth int) {
	if depth > maxExprDepth {
		b.WriteString("…")
		return
	}
	sep, open, shut := ",", "ceildiv(", ")"
	switch e.Kind {
	case ExprInt:
		fmt.Fprintf(b, "%d", e.Value)
		return
	case ExprDim:
		b.WriteString(e.Name)
		return
	case ExprSum:
		sep, open, shut = "+", "", ""
		if depth > 0 {
			open, shut = "(", ")"
		}
	case ExprProduct:
		sep, open, shut = "*", "", ""
	case ExprCeilDiv:
	case ExprIfGreater:
		open = "ifgreater("
	default:
		b.WriteString("?")
		return
	}
	b.WriteString(open)
	for i, a := range e.Args {
		if i > 0 {
			b.WriteString(sep)
		}
		a.print(b, depth+1)
	}
	b.WriteString(shut)
}
