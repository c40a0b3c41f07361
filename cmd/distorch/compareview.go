// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/distorch/distorch/cmd/internal/output"
	"github.com/distorch/distorch/model/compare"
)

type compareView struct {
	A         string         `json:"a"`
	B         string         `json:"b"`
	EqualBits bool           `json:"equal_bits"` // of all
	Tensors   []comparedView `json:"tensors"`
	OnlyA     []string       `json:"only_a"`
	OnlyB     []string       `json:"only_b"`
	// FirstDiffering is the first of several that has a value that differs; the
	// step is there where its name says one.
	FirstDiffering     string   `json:"first_differing,omitempty"`
	FirstDifferingStep *int     `json:"first_differing_step,omitempty"`
	Notes              []string `json:"notes"`
	Tolerance          *float64 `json:"tolerance,omitempty"`
	Within             *bool    `json:"within,omitempty"`
}

type comparedView struct {
	File   string  `json:"file,omitempty"` // within the folders
	Tensor string  `json:"tensor"`
	Shape  []int64 `json:"shape"`
	DTypeA string  `json:"dtype_a"`
	DTypeB string  `json:"dtype_b"`
	compare.Result
}

func newComparedView(file string, p compare.Pair, r compare.Result) comparedView {
	return comparedView{file, p.A.Name, append([]int64{}, p.A.Shape...), p.A.DType.String(), p.B.DType.String(), r}
}

// label names it among all.
func (t comparedView) label() string {
	if t.File != "" {
		return t.File
	}
	return t.Tensor
}

// conclude says what all results come to.
func (v *compareView) conclude() {
	v.EqualBits = len(v.OnlyA)+len(v.OnlyB) == 0
	within := v.EqualBits
	for _, t := range v.Tensors {
		v.EqualBits = v.EqualBits && t.EqualBits
		within = within && (v.Tolerance == nil || t.Result.Within(*v.Tolerance))
	}
	if v.Tolerance != nil {
		v.Within = &within
	}
	first := slices.IndexFunc(v.Tensors, func(t comparedView) bool { return t.Differing > 0 })
	if first < 0 || len(v.Tensors) < 2 {
		return
	}
	v.FirstDiffering = v.Tensors[first].label()
	if step, ok := compare.Step(v.FirstDiffering); ok {
		v.FirstDifferingStep = &step
	}
}

func (v *compareView) print(w io.Writer, f output.Format) error {
	if f != output.Table {
		return output.Write(w, f, v)
	}
	p := &printer{w: w}
	folders := slices.ContainsFunc(v.Tensors, func(t comparedView) bool { return t.File != "" })
	header := []string{"TENSOR", "SHAPE", "DTYPE", "VALUES", "DIFFERING", "MAX ERROR", "RELATIVE L2", "PSNR", "SSIM", "BITS"}
	if folders {
		header = append([]string{"FILE"}, header...)
	}
	rows := [][]string{}
	for _, t := range v.Tensors {
		row := t.row()
		if folders {
			row = append([]string{t.File}, row...)
		}
		rows = append(rows, row)
	}
	p.table(header, rows)
	for _, n := range append(v.reasons(), v.Notes...) {
		p.line("%s", n)
	}
	v.odd(p)
	onOneSide(p, "only in A", v.OnlyA)
	onOneSide(p, "only in B", v.OnlyB)
	p.line("%s", v.verdict())
	if v.Within != nil && *v.Within {
		p.line("within the tolerance of %g", *v.Tolerance)
	}
	return p.err
}

func (t comparedView) row() []string {
	dtype, bits := t.DTypeA, "equal"
	if t.DTypeA != t.DTypeB {
		dtype += ", " + t.DTypeB
	}
	if !t.EqualBits {
		bits = "differ"
	}
	ssim, psnr := "", ""
	if t.NoSSIM == "" {
		ssim = fmt.Sprintf("%.6f", float64(t.SSIM))
	}
	switch psnrValue := float64(t.PSNR); {
	case math.IsInf(psnrValue, 1):
		psnr = "inf"
	case !math.IsNaN(psnrValue):
		psnr = fmt.Sprintf("%.2f dB", psnrValue)
	}
	shape := strings.ReplaceAll(fmt.Sprint(t.Shape), " ", ",")
	return []string{t.Tensor, shape, dtype, fmt.Sprint(t.Values), fmt.Sprint(t.Differing), t.maxError(), showError(t.Relative), psnr, ssim, bits}
}

// maxError says where it is, in a tensor that has more than one value.
func (t comparedView) maxError() string {
	if len(t.MaxAt) == 0 || t.Values == 1 {
		return showError(t.MaxError)
	}
	return fmt.Sprintf("%s at %s", showError(t.MaxError), strings.ReplaceAll(fmt.Sprint(t.MaxAt), " ", ","))
}

func showError(f compare.Float) string {
	switch v := float64(f); {
	case math.IsNaN(v):
		return ""
	case math.IsInf(v, 0):
		return "inf"
	default:
		return fmt.Sprintf("%.3g", v)
	}
}

// reasons say why pictures and latents have no SSIM.
func (v *compareView) reasons() (out []string) {
	for _, t := range v.Tensors {
		if t.NoSSIM == "" || t.NoSSIM == compare.NoPlanes {
			continue
		}
		if line := "no SSIM: " + t.NoSSIM; !slices.Contains(out, line) {
			out = append(out, line)
		}
	}
	return out
}

// odd says how many values are not finite.
func (v *compareView) odd(p *printer) {
	for _, t := range v.Tensors {
		if t.Result.A == (compare.Odd{}) && t.Result.B == (compare.Odd{}) {
			continue
		}
		p.line("%s: not finite: %s in A, %s in B, %d of them on one side alone; the errors are those of the other values", t.label(), showOdd(t.Result.A), showOdd(t.Result.B), t.Unlike)
	}
}

func showOdd(o compare.Odd) string { return fmt.Sprintf("%d NaN and %d infinite", o.NaN, o.Inf) }

// listed prints names, of many the first.
func onOneSide(p *printer, what string, names []string) {
	const most = 20
	if len(names) == 0 {
		return
	}
	more := ""
	if n := len(names) - most; n > 0 {
		names, more = names[:most], fmt.Sprintf(" and %d more", n)
	}
	p.line("%s: %s%s", what, strings.Join(names, ", "), more)
}

// verdict is one sentence.
func (v *compareView) verdict() string {
	differing := 0
	for _, t := range v.Tensors {
		if t.Differing > 0 {
			differing++
		}
	}
	switch {
	case v.EqualBits:
		return "equal bits"
	case differing == 0 && len(v.OnlyA)+len(v.OnlyB) > 0:
		return "equal where both sides have something"
	case differing == 0:
		return "equal values, of different dtypes"
	case v.FirstDifferingStep != nil:
		return fmt.Sprintf("first differing step: %d (%s); %d of %d differ", *v.FirstDifferingStep, v.FirstDiffering, differing, len(v.Tensors))
	case v.FirstDiffering != "":
		return fmt.Sprintf("first to differ: %s; %d of %d differ", v.FirstDiffering, differing, len(v.Tensors))
	}
	return fmt.Sprintf("%d of %d values differ", v.Tensors[0].Differing, v.Tensors[0].Values)
}
