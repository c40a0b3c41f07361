// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"fmt"
	"math"
)

// The constants of SSIM as published: Wang, Bovik, Sheikh and Simoncelli, "Image
// quality assessment: from error visibility to structural similarity", IEEE
// Transactions on Image Processing 13 (4), 2004, section III.B and equation 13.
const (
	window = 11  // taps of the Gaussian, in both directions
	sigma  = 1.5 // of the Gaussian, in values
	k1     = 0.01
	k2     = 0.03
)

// maxRow bounds a row, eleven of which are kept.
const maxRow = 1 << 16

// NoPlanes is why there is no SSIM of tensors that are no pictures.
const NoPlanes = "not a picture or a latent"

// taps is the Gaussian, which adds up to 1.
func taps() (w [window]float64) {
	total := 0.0
	for i := range w {
		d := float64(i - window/2)
		w[i] = math.Exp(-d * d / (2 * sigma * sigma))
		total += w[i]
	}
	for i := range w {
		w[i] /= total
	}
	return w
}

// ssim is the mean of SSIM over all windows that lie within a plane, and over
// all planes: each channel counts alike. peak is L of the formula. Where it has
// no value, the answer is NaN and why.
func (m *measure) ssim(peak float64) (mean float64, why string, err error) {
	none := math.NaN()
	if !m.a.Planes || !m.b.Planes || len(m.a.Shape) < 2 {
		return none, NoPlanes, nil
	}
	height, width := m.a.Shape[len(m.a.Shape)-2], m.a.Shape[len(m.a.Shape)-1]
	odd := m.result.A.NaN + m.result.A.Inf + m.result.B.NaN + m.result.B.Inf
	switch {
	case m.result.Values == 0:
		return none, "no values", nil
	case height < window || width < window:
		return none, fmt.Sprintf("%dx%d is smaller than its window of %dx%[3]d", width, height, window), nil
	case width > maxRow:
		return none, fmt.Sprintf("rows of %d are longer than %d", width, maxRow), nil
	case odd > 0:
		return none, "values that are not finite", nil
	case m.result.MaxError == 0:
		return 1, "", nil
	case !(peak < 1e100) || peak < 1e-100:
		return none, fmt.Sprintf("its squares of a range of %g leave float64's", peak), nil
	}
	p := newPlane(int(width), peak)
	rows := m.result.Values / width
	band := max(1, piece/width) // rows read at once
	for at := int64(0); at < rows; at += band {
		n := min(band, rows-at)
		if err := m.read(at*width, int(n*width)); err != nil {
			return 0, "", err
		}
		for i := range n {
			if (at+i)%height == 0 {
				p.rows = 0
			}
			p.add(m.a64[i*width:(i+1)*width], m.b64[i*width:(i+1)*width])
		}
	}
	return p.total / float64(p.windows), "", nil
}

// moments are the weighted means within a window.
const (
	meanA = iota
	meanB
	squareA
	squareB
	product
	moments
)

// plane is SSIM of a plane whose rows come one after another: each is weighted
// along itself when it comes, and eleven of them down the plane.
type plane struct {
	taps    [window]float64
	c1, c2  float64
	ring    [window][moments][]float64 // the last rows
	rows    int                        // of this plane so far
	total   float64
	windows int64
}

func newPlane(width int, peak float64) *plane {
	p := &plane{taps: taps(), c1: square(k1 * peak), c2: square(k2 * peak)}
	for i := range p.ring {
		for j := range p.ring[i] {
			p.ring[i][j] = make([]float64, width-window+1)
		}
	}
	return p
}

func square(v float64) float64 { return v * v }

func (p *plane) add(a, b []float64) {
	row := &p.ring[p.rows%window]
	for x := range row[0] {
		var sums [moments]float64
		for i, w := range p.taps {
			va, vb := a[x+i], b[x+i]
			sums[meanA] += w * va
			sums[meanB] += w * vb
			sums[squareA] += w * va * va
			sums[squareB] += w * vb * vb
			sums[product] += w * va * vb
		}
		for j, s := range sums {
			row[j][x] = s
		}
	}
	if p.rows++; p.rows < window {
		return
	}
	for x := range row[0] {
		var s [moments]float64
		for i, w := range p.taps {
			for j := range s {
				s[j] += w * p.ring[(p.rows+i)%window][j][x] // the oldest first
			}
		}
		p.total += p.similarity(s)
		p.windows++
	}
}

// similarity is equation 13 of the paper.
func (p *plane) similarity(s [moments]float64) float64 {
	ab, aa, bb := s[meanA]*s[meanB], square(s[meanA]), square(s[meanB])
	above := (2*ab + p.c1) * (2*(s[product]-ab) + p.c2)
	below := (aa + bb + p.c1) * (s[squareA] - aa + s[squareB] - bb + p.c2)
	return above / below
}
