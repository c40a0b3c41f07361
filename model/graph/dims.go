// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// ErrTooLarge is in every error about a request beyond a bound: that of the
// model or of the workload a deployment was placed for.
var ErrTooLarge = errors.New("request too large")

// DimError is a dimension that is missing or out of bounds.
type DimError struct {
	Dim      string
	Got      int64
	Min, Max int64
	Missing  bool
	Workload bool // the bound is the workload's, not the model's
}

func (e *DimError) Error() string {
	switch {
	case e.Missing:
		return fmt.Sprintf("dimension %s is missing, must be %d to %d", e.Dim, e.Min, e.Max)
	case e.Workload:
		return fmt.Sprintf("%s %d is more than the %d that this deployment is placed for; deploy it again with a larger workload", e.Dim, e.Got, e.Max)
	}
	return fmt.Sprintf("dimension %s is %d, must be %d to %d", e.Dim, e.Got, e.Min, e.Max)
}

// Is reports a value above its bound as ErrTooLarge.
func (e *DimError) Is(target error) bool {
	return target == ErrTooLarge && !e.Missing && e.Got > e.Max
}

func sortedNames[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// Resolve gives every dimension its value, derived ones included. Free ones
// that may be 0 are 0 when they are missing; others that are missing, unknown
// or out of bounds give a *DimError.
func (m *Model) Resolve(free Dims) (Dims, error) {
	dims := make(Dims, len(m.Dims))
	taken := 0
	for _, d := range m.Dims {
		if d.Derived != nil {
			v, err := d.Derived.Eval(dims)
			if err != nil {
				return nil, fmt.Errorf("dimension %q: %w", d.Name, err)
			}
			dims[d.Name] = v
			if given, ok := free[d.Name]; ok {
				if given != v {
					return nil, &DimError{Dim: d.Name, Got: given, Min: v, Max: v}
				}
				taken++
			}
			continue
		}
		v, ok := free[d.Name]
		if !ok && d.Min > 0 {
			return nil, &DimError{Dim: d.Name, Min: d.Min, Max: d.Max, Missing: true}
		}
		if v < d.Min || v > d.Max {
			return nil, &DimError{Dim: d.Name, Got: v, Min: d.Min, Max: d.Max}
		}
		if ok {
			taken++
		}
		dims[d.Name] = v
	}
	if taken != len(free) {
		for _, name := range sortedNames(free) {
			if _, ok := dims[name]; !ok {
				return nil, fmt.Errorf("%s has no dimension %s", m.Arch, quote(name))
			}
		}
	}
	return dims, nil
}

// Request turns a workload or request in a user's words (FLUX: width, height in
// pixels, text_tokens, batch) into free dimensions. Words that are missing are
// an error unless 0 is in bounds, which they mean then; unknown ones are one.
func (m *Model) Request(words map[string]int64) (Dims, error) {
	dims := Dims{}
	known := map[string]bool{}
	for _, d := range m.Dims {
		if d.Derived != nil {
			continue
		}
		if d.Request == "" {
			return nil, fmt.Errorf("%s: dimension %s cannot be requested", m.Arch, d.Name)
		}
		known[d.Request] = true
		v, ok := words[d.Request]
		if !ok && d.Min > 0 {
			return nil, fmt.Errorf("%s needs %s", m.Arch, d.Request)
		}
		if v < min(d.Min, 1) || v > MaxExtent {
			return nil, &DimError{Dim: d.Request, Got: v, Min: d.Min, Max: satMul(d.Max, d.Unit)}
		}
		n := (v + d.Unit - 1) / d.Unit
		if n < d.Min || n > d.Max {
			return nil, &DimError{Dim: d.Request, Got: v, Min: satMul(d.Min, d.Unit), Max: satMul(d.Max, d.Unit)}
		}
		dims[d.Name] = n
	}
	for _, w := range sortedNames(words) {
		if !known[w] {
			return nil, fmt.Errorf("%s does not know %s; it takes %v", m.Arch, quote(w), sortedNames(known))
		}
	}
	return dims, nil
}

func satMul(a, b int64) int64 {
	if b != 0 && a > MaxExtent/b {
		return MaxExtent
	}
	return a * b
}

// Within says whether a request fits a workload: every free dimension but a
// Choice at most the workload's. The error is a *DimError that is ErrTooLarge.
func (m *Model) Within(request, workload Dims) error {
	for _, d := range m.Dims {
		if d.Derived == nil && !d.Choice && request[d.Name] > workload[d.Name] {
			e := &DimError{Dim: d.Name, Got: request[d.Name], Max: workload[d.Name], Workload: true}
			if d.Request != "" {
				e.Dim, e.Got, e.Max = d.Request, satMul(e.Got, d.Unit), satMul(e.Max, d.Unit)
			}
			return e
		}
	}
	return nil
}
