// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package sampling

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"

	"github.com/distorch/distorch/model/safetensors"
)

func golden(t *testing.T, name string) map[string][]float32 {
	t.Helper()
	f, err := safetensors.Open("testdata/" + name + ".safetensors")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string][]float32{}
	for _, e := range f.Tensors() {
		v, _, err := f.Float32s(e.Name)
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name] = v
	}
	return out
}

// off is max|got-want| / max|want|.
func off(got, want []float32) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	diff, top := 0.0, 0.0
	for i := range want {
		d := math.Abs(float64(got[i]) - float64(want[i]))
		if d != d {
			return math.Inf(1)
		}
		diff, top = max(diff, d), max(top, math.Abs(float64(want[i])))
	}
	return diff / max(top, 1e-30)
}

func TestRandnIsTorchs(t *testing.T) {
	for name, want := range golden(t, "randn") {
		digits, _, _ := strings.Cut(strings.TrimPrefix(name, "seed"), ".")
		seed, err := strconv.ParseUint(digits, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if e := off(Randn(seed, len(want)), want); !(e <= 5e-7) {
			t.Errorf("%s: off by %.2g", name, e)
		}
	}
}

// Fewer than 16 values keep one for the next call, 16 and more do not touch it.
func TestNoiseAcrossCalls(t *testing.T) {
	whole := Randn(7, 10)
	g, parts := NewNoise(7), make([]float32, 10)
	g.Fill(parts[:3])
	g.Fill(parts[3:])
	if off(parts, whole) != 0 {
		t.Errorf("got %v, want %v", parts, whole)
	}
	tail := Randn(7, 17)
	if tail[0] != Randn(7, 16)[0] || tail[16] == Randn(7, 32)[16] {
		t.Error("the last partial block was not drawn anew")
	}
}

func levelsOf(model string) *Levels {
	switch model {
	case "dev":
		return FluxLevels(DefaultFluxShift)
	case "node_512x512":
		return FluxLevels(FluxShift(512, 512, 0.5, 1.15))
	case "node_1536x1024":
		return FluxLevels(FluxShift(1536, 1024, 0.5, 1.15))
	}
	return DiscreteFlowLevels(1, 1)
}

func TestSchedules(t *testing.T) {
	seen := map[Scheduler]bool{}
	for name, want := range golden(t, "schedules") {
		parts := strings.Split(name, ".")
		steps, _ := strconv.Atoi(parts[2])
		s, err := ParseScheduler(parts[1])
		if err != nil {
			t.Fatal(err)
		}
		seen[s] = true
		got, err := levelsOf(parts[0]).Sigmas(s, steps)
		if e := off(got, want); err != nil || !(e <= 1e-6) {
			t.Errorf("%s: off by %.2g, %v\n got %v\nwant %v", name, e, err, got, want)
		}
	}
	if len(seen) != len(Schedulers()) {
		t.Errorf("only %d of %d schedulers tested", len(seen), len(Schedulers()))
	}
}

func TestSchedulesRefuse(t *testing.T) {
	l := FluxLevels(DefaultFluxShift)
	for _, c := range []struct {
		s       Scheduler
		steps   int
		denoise float64
	}{{"simpel", 20, 1}, {Simple, 0, 1}, {Simple, -3, 0.5}, {Simple, 10_001, 1}, {Simple, 20, 0}, {Simple, 20, 1e-9}, {Simple, 20, 1.1}, {Simple, 20, math.NaN()}} {
		if got, err := l.DenoiseSigmas(c.s, c.steps, c.denoise); err == nil {
			t.Errorf("%v gave %v", c, got)
		}
	}
	for _, s := range Schedulers() {
		for _, steps := range []int{1, 2, 3, 7, 1000} {
			got, err := l.Sigmas(s, steps)
			if err != nil || got[len(got)-1] != 0 {
				t.Errorf("%s %d: %v", s, steps, err)
			}
			for i := 1; i < len(got); i++ {
				if !(got[i] < got[i-1]) {
					t.Errorf("%s %d: level %d is %g after %g", s, steps, i, got[i], got[i-1])
					break
				}
			}
		}
	}
}

func TestSamplingAgainstComfyUI(t *testing.T) {
	g := golden(t, "sampling")
	l := FluxLevels(DefaultFluxShift)
	sigmas, err := l.Sigmas(Simple, 8)
	if e := off(sigmas, g["cfg1.sigmas"]); err != nil || e > 1e-6 {
		t.Errorf("sigmas off by %g, %v", e, err)
	}
	partial, err := l.DenoiseSigmas(Simple, 8, 0.6)
	if e := off(partial, g["img2img.sigmas"]); err != nil || e > 1e-6 {
		t.Errorf("img2img sigmas off by %g, %v", e, err)
	}
	empty := make([]float32, len(g["in.noise"]))
	FluxLatents().In(empty)
	if e := off(Start(g["in.noise"], empty, sigmas[0]), g["cfg1.start"]); e > 1e-6 {
		t.Errorf("start off by %g", e)
	}
	latent := append([]float32(nil), g["in.latent"]...)
	FluxLatents().In(latent)
	if e := off(Start(g["in.noise"], latent, partial[0]), g["img2img.start"]); e > 1e-6 {
		t.Errorf("img2img start off by %g", e)
	}
	// The first step from the recorded estimate of x0.
	x := Start(g["in.noise"], nil, sigmas[0])
	cfg := Config{Sigmas: sigmas[:2], CFG: 1, OnStep: func(_ int, _, denoised []float32) {
		if e := off(denoised, g["cfg1.denoised.0"]); e > 1e-6 {
			t.Errorf("estimate off by %g", e)
		}
	}}
	err = Euler(t.Context(), x, cfg, func(_ context.Context, _ int, sigma float32, x []float32) ([]float32, []float32, error) {
		v := make([]float32, len(x))
		for i := range v {
			v[i] = (x[i] - g["cfg1.denoised.0"][i]) / sigma
		}
		return v, nil, nil
	})
	if e := off(x, g["cfg1.step.0"]); err != nil || e > 1e-6 {
		t.Errorf("first step off by %g, %v", e, err)
	}
	last := append([]float32(nil), g["cfg1.step.7"]...)
	Finish(last, sigmas[8])
	FluxLatents().Out(last)
	if e := off(last, g["cfg1.samples"]); e > 1e-6 {
		t.Errorf("samples off by %g", e)
	}
}

func TestCFGActsOnEstimates(t *testing.T) {
	// At sigma 0.5: c = x-0.5*2 = 0, u = x+0.5*2 = 2, x0 = 2+(0-2)*3 = -4,
	// d = (1+4)/0.5 = 10, x = 1-0.25*10.
	x := []float32{1}
	cfg := Config{Sigmas: []float32{0.5, 0.25}, CFG: 3}
	err := Euler(t.Context(), x, cfg, func(context.Context, int, float32, []float32) ([]float32, []float32, error) {
		return []float32{2}, []float32{-2}, nil
	})
	if err != nil || x[0] != -1.5 {
		t.Errorf("got %v, %v", x, err)
	}
	if (Config{CFG: 1}).NeedsUncond() || !(Config{CFG: 1.5}).NeedsUncond() {
		t.Error("NeedsUncond is wrong")
	}
}

func TestEulerErrors(t *testing.T) {
	fine := func(_ context.Context, _ int, _ float32, x []float32) ([]float32, []float32, error) {
		return make([]float32, len(x)), nil, nil
	}
	broken := errors.New("node b lost")
	for name, c := range map[string]struct {
		sigmas  []float32
		cfg     float64
		predict Predict
	}{
		"no levels":     {nil, 1, fine},
		"zero level":    {[]float32{0, 0}, 1, fine},
		"missing cond":  {[]float32{1, 0}, 1, func(context.Context, int, float32, []float32) ([]float32, []float32, error) { return nil, nil, nil }},
		"missing other": {[]float32{1, 0}, 2, fine},
		"forward fails": {[]float32{1, 0}, 1, func(context.Context, int, float32, []float32) ([]float32, []float32, error) {
			return nil, nil, broken
		}},
	} {
		if err := Euler(t.Context(), make([]float32, 2), Config{Sigmas: c.sigmas, CFG: c.cfg}, c.predict); err == nil {
			t.Errorf("%s: accepted", name)
		} else if name == "forward fails" && !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(fmt.Errorf("interrupted"))
	if err := Euler(ctx, make([]float32, 2), Config{Sigmas: []float32{1, 0}, CFG: 1}, fine); err == nil || err.Error() != "interrupted" {
		t.Errorf("cancelled: %v", err)
	}
}

func BenchmarkRandn(b *testing.B) {
	for b.Loop() {
		Randn(1, 16*128*128)
	}
}
