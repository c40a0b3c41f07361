// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package sampling

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/distorch/distorch/model/numeric"
)

// Scheduler chooses which noise levels a picture's steps visit; the names are
// ComfyUI's.
type Scheduler string

// The schedulers.
const (
	Simple          Scheduler = "simple"
	SGMUniform      Scheduler = "sgm_uniform"
	Karras          Scheduler = "karras"
	Exponential     Scheduler = "exponential"
	DDIMUniform     Scheduler = "ddim_uniform"
	Beta            Scheduler = "beta"
	Normal          Scheduler = "normal"
	LinearQuadratic Scheduler = "linear_quadratic"
	KLOptimal       Scheduler = "kl_optimal"
)

// maxSteps bounds what a request can ask for; no table has more levels.
const maxSteps = 10_000

// Schedulers are all schedulers.
func Schedulers() []Scheduler {
	return []Scheduler{Simple, SGMUniform, Karras, Exponential, DDIMUniform, Beta, Normal, LinearQuadratic, KLOptimal}
}

// ParseScheduler is the scheduler of that name.
func ParseScheduler(name string) (Scheduler, error) {
	if slices.Contains(Schedulers(), Scheduler(name)) {
		return Scheduler(name), nil
	}
	var names []string
	for _, s := range Schedulers() {
		names = append(names, string(s))
	}
	return "", fmt.Errorf("unknown scheduler %q; known are %s", name, strings.Join(names, ", "))
}

// Sigmas are the noise levels of a picture from the largest to 0, one more
// than steps. ddim_uniform and beta can give a few levels more or fewer, as in
// ComfyUI: the number of steps is one less than the number of levels.
func (l *Levels) Sigmas(s Scheduler, steps int) ([]float32, error) {
	if steps < 1 || steps > maxSteps {
		return nil, fmt.Errorf("steps %d is not between 1 and %d", steps, maxSteps)
	}
	switch s {
	case Simple:
		return l.simple(steps), nil
	case SGMUniform:
		return l.normal(steps, true), nil
	case Normal:
		return l.normal(steps, false), nil
	case Karras:
		return l.karras(steps), nil
	case Exponential:
		return l.exponential(steps), nil
	case DDIMUniform:
		return l.ddimUniform(steps), nil
	case Beta:
		return l.beta(steps), nil
	case LinearQuadratic:
		return l.linearQuadratic(steps), nil
	case KLOptimal:
		return l.klOptimal(steps), nil
	}
	_, err := ParseScheduler(string(s))
	return nil, err
}

// DenoiseSigmas are the levels when only a share denoise in (0,1] of the noise
// is added to a latent: the last steps+1 levels of a longer schedule.
func (l *Levels) DenoiseSigmas(s Scheduler, steps int, denoise float64) ([]float32, error) {
	if denoise > 0.9999 && denoise <= 1 {
		return l.Sigmas(s, steps)
	}
	if !(denoise > 0 && denoise <= 1) {
		return nil, fmt.Errorf("denoise %g is not above 0 and at most 1", denoise)
	}
	longer := math.Floor(float64(steps) / denoise)
	if longer > maxSteps {
		return nil, fmt.Errorf("%d steps at denoise %g need a schedule of %.0f levels, at most %d", steps, denoise, longer, maxSteps)
	}
	all, err := l.Sigmas(s, int(longer))
	if err != nil {
		return nil, err
	}
	return all[max(0, len(all)-steps-1):], nil
}

func (l *Levels) simple(steps int) []float32 {
	stride := float64(len(l.table)) / float64(steps)
	out := make([]float32, steps+1)
	for i := range steps {
		out[i] = l.table[len(l.table)-1-int(float64(i)*stride)]
	}
	return out
}

// linspace is n numbers from a to b inclusive, in float32 as torch makes them.
func linspace(a, b float64, n int) []float64 {
	out := make([]float64, n)
	step := 0.0
	if n > 1 {
		step = (b - a) / float64(n-1)
	}
	for i := range out {
		v := a + float64(float64(i)*step)
		if i >= n/2 {
			v = b - float64(float64(n-1-i)*step)
		}
		if n == 1 {
			v = a
		}
		out[i] = float64(float32(v))
	}
	return out
}

func (l *Levels) normal(steps int, open bool) []float32 {
	start, end := float64(l.Timestep(l.Max())), float64(l.Timestep(l.Min()))
	zero := true
	var times []float64
	switch {
	case open:
		times = linspace(start, end, steps+1)[:steps]
	case math.Abs(float64(l.at(end))) <= 1e-5:
		times, zero = linspace(start, end, steps+1), false
	default:
		times = linspace(start, end, steps)
	}
	var out []float32
	for _, t := range times {
		out = append(out, l.at(t))
	}
	if zero {
		out = append(out, 0)
	}
	return out
}

// karras is Karras et al. 2022 (arXiv:2206.00364), equation 5, rho 7.
func (l *Levels) karras(steps int) []float32 {
	const rho = 7
	hi, lo := numeric.Pow(float64(l.Max()), 1.0/rho), numeric.Pow(float64(l.Min()), 1.0/rho)
	out := make([]float32, 0, steps+1)
	for _, ramp := range linspace(0, 1, steps) {
		out = append(out, float32(numeric.Pow(hi+float64(ramp*(lo-hi)), rho)))
	}
	return append(out, 0)
}

func (l *Levels) exponential(steps int) []float32 {
	out := make([]float32, 0, steps+1)
	for _, v := range linspace(numeric.Log(float64(l.Max())), numeric.Log(float64(l.Min())), steps) {
		out = append(out, float32(numeric.Exp(v)))
	}
	return append(out, 0)
}

func (l *Levels) ddimUniform(steps int) []float32 {
	out := []float32{0}
	if math.Abs(float64(l.table[1])) <= 1e-5 {
		steps++
		out = nil
	}
	stride := max(len(l.table)/steps, 1)
	for i := 1; i < len(l.table); i += stride {
		out = append(out, l.table[i])
	}
	slices.Reverse(out)
	return out
}

// beta is "Beta Sampling is All You Need" (arXiv:2407.12173), alpha = beta = 0.6.
func (l *Levels) beta(steps int) []float32 {
	var out []float32
	last := -1
	for i := range steps {
		share := betaQuantile(1 - float64(i)/float64(steps))
		if at := int(math.RoundToEven(share * float64(len(l.table)-1))); at != last {
			out = append(out, l.table[at])
			last = at
		}
	}
	return append(out, 0)
}

// linearQuadratic is linear over half of the steps, up to a share of 0.025 of
// the way, then quadratic (Genmo's Mochi).
func (l *Levels) linearQuadratic(steps int) []float32 {
	const threshold = 0.025
	out := make([]float32, steps+1)
	out[0] = l.Max()
	linear := float64(steps / 2)
	if steps == 1 {
		return out
	}
	quadratic := float64(steps) - linear
	diff := linear - float64(threshold*float64(steps))
	a := diff / (linear * quadratic * quadratic)
	b := threshold/linear - 2*diff/(quadratic*quadratic)
	c := a * (linear * linear)
	for i := range steps {
		x := float64(i)
		way := float64(x*threshold) / linear
		if x >= linear {
			way = float64(a*float64(x*x)) + float64(b*x) + float64(c)
		}
		out[i] = float32(1-way) * l.Max()
	}
	return out
}

// klOptimal is "Align Your Steps" (arXiv:2404.14507), the closed form of its
// theorem 3.1.
func (l *Levels) klOptimal(steps int) []float32 {
	hi, lo := arctan(float64(l.Max())), arctan(float64(l.Min()))
	out := make([]float32, steps+1)
	for i := range steps {
		way := 0.0
		if steps > 1 {
			way = float64(i) / float64(steps-1)
		}
		sin, cos := numeric.Sincos(float64(way*lo) + float64((1-way)*hi))
		out[i] = float32(sin / cos)
	}
	return out
}

// arctan of x in [0,1]: an approximation, then steps of third order.
func arctan(x float64) float64 {
	y := x / (1 + float64(0.28*x*x))
	for range 4 {
		sin, cos := numeric.Sincos(y)
		d := (float64(x*cos) - sin) / (cos + float64(x*sin))
		y += d - float64(d*d*d)/3
	}
	return y
}
