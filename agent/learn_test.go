// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"math"
	"testing"
	"time"

	"github.com/distorch/distorch/agent/calibration"
	"github.com/distorch/distorch/agent/measure"
	"github.com/distorch/distorch/agent/serve"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// calibrated is a device of the given speed.
func calibrated(speed float64) *calibration.Calibration {
	r := measure.Rates{DType: tensor.BF16, Tokens: 1024, Elements: 1 << 20, Linear: speed, Attention: speed, Elementwise: speed, Expand: speed}
	return calibration.New(calibration.Identity{Device: "cpu"}, calibration.Quick, [][]measure.Rates{{r}}, time.Unix(1, 0))
}

// took is a forward that the plan says takes a second by the rates of c.
func took(c *calibration.Calibration, elements uint64, ratio, correction float64) serve.Forward {
	f := &pb.StageForecast{ComputeSeconds: 0.75 * max(correction, 1), ExpandSeconds: 0.25 * max(correction, 1), Correction: correction, Calibration: c.ID()}
	return serve.Forward{
		Plan: &pb.Plan{Dtype: "bf16", Stages: []*pb.Stage{{Forecast: f}}}, Elements: elements,
		Compute: time.Duration(ratio * float64(time.Second)),
	}
}

func times(n int, f func()) {
	for range n {
		f()
	}
}

func near(a, b float64) bool { return math.Abs(a-b) < 1e-6 }

func TestLearnerTells(t *testing.T) {
	c, now := calibrated(1e9), time.Unix(1000, 0)
	l := newLearner("node a, cpu", slog.New(slog.DiscardHandler), c, nil)
	l.now = func() time.Time { return now }
	if news, wait := l.tell(); news != nil || wait != forever {
		t.Fatalf("nothing was learned, and it tells %v in %v", news, wait)
	}
	times(9, func() { l.taught(took(c, 1<<20, 1.1, 0)) })
	if news, wait := l.tell(); news != nil || wait != forever || l.feedback("bf16", 1<<20) != nil {
		t.Fatalf("nine forwards tell %v in %v", news, wait)
	}
	l.taught(took(c, 1<<20, 1.1, 0))
	news, wait := l.tell()
	if wait != 0 || len(news) != 1 || news[0].Dtype != "bf16" || news[0].Elements != 1<<20 || !near(news[0].Ratio, 1.1) {
		t.Fatalf("ten forwards tell %v in %v", news, wait)
	}
	// The forecast of a plan that was corrected is taken back to the model's.
	times(50, func() { l.taught(took(c, 1<<20, 1.1, 1.1)) })
	if news, wait := l.tell(); wait != forever {
		t.Errorf("the same again tells %v in %v", news, wait)
	}
	now = now.Add(20 * time.Second)
	times(10, func() { l.taught(took(c, 1<<26, 0.9, 0)) })
	if news, wait := l.tell(); news != nil || wait != 40*time.Second {
		t.Errorf("20 s later it tells %v in %v", news, wait)
	}
	now = now.Add(40 * time.Second)
	news, _ = l.tell()
	if len(news) != 2 || !near(news[0].Ratio, 1.1) || !near(news[1].Ratio, 0.9) {
		t.Errorf("a minute later it tells %v", news)
	}
	if _, again := l.wanted(); again {
		t.Error("it wants to measure")
	}
	f := l.feedback("bf16", 1<<26)
	if f == nil || !near(f.Ratio, 0.9) || f.Samples != 10 || f.Event != "" || l.feedback("f32", 1<<26) != nil || l.feedback("?", 1) != nil {
		t.Errorf("a run's end tells %v", f)
	}
}

func TestLearnerMeasures(t *testing.T) {
	fast, slow := calibrated(2e9), calibrated(1e9)
	l := newLearner("node a, cpu", slog.New(slog.DiscardHandler), fast, nil)
	times(10, func() { l.taught(took(fast, 1<<20, 2, 0)) })
	if _, again := l.wanted(); !again {
		t.Fatal("ten forwards of twice the time and it does not want to measure")
	}
	if f := l.feedback("bf16", 1<<20); f.GetEvent() != "node a, cpu: 100 % slower than its calibration for 10 steps; measuring again" {
		t.Errorf("a run's end tells %v", f)
	}
	// The device is half as fast, which explains all.
	if news := l.measured(slow); len(news) != 1 || !near(news[0].Ratio, 1) {
		t.Errorf("it tells %v", news)
	}
	// A plan that is older than the rates is held against the new ones; one of
	// rates that nobody knows, against none.
	times(20, func() { l.taught(took(fast, 1<<20, 2, 0)) })
	times(20, func() { l.taught(took(calibrated(5), 1<<20, 3, 0)) })
	c, again := l.wanted()
	if f := l.feedback("bf16", 1<<20); again || c != slow || !near(f.GetRatio(), 1) || f.GetSamples() != 20 {
		t.Errorf("it measures %v, a run's end tells %v", again, f)
	}
}

func TestLearnerGoesOn(t *testing.T) {
	c := calibrated(1e9)
	l := newLearner("node a, cpu", slog.New(slog.DiscardHandler), c, nil)
	if of, lessons := l.unkept(); of != nil {
		t.Fatalf("nothing was learned, and it keeps %v", lessons)
	}
	times(12, func() { l.taught(took(c, 1<<20, 1.1, 0)) })
	l.tell()
	of, lessons := l.unkept()
	if of != c || len(lessons) != 1 {
		t.Fatalf("it keeps %v", lessons)
	}
	next := newLearner("node a, cpu", slog.New(slog.DiscardHandler), c, lessons)
	if known := next.known(); len(known) != 1 || !near(known[0].Ratio, 1.1) || known[0].Samples != 12 {
		t.Errorf("after a start it tells %v", known)
	}
	if _, wait := next.tell(); wait != forever {
		t.Error("it tells again what it told")
	}
	for i := range 100 {
		next.taught(took(c, 1<<min(i, 62), 1, 0))
	}
	if _, lessons := next.unkept(); len(lessons) > calibration.MaxLessons {
		t.Errorf("%d lessons", len(lessons))
	}
}
