// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package feedback

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// steps feeds n forwards of one ratio and counts the events.
func steps(s State, ratio float64, n int) (State, []*Event) {
	var all []*Event
	for range n {
		var e *Event
		if s, e = Step(s, 2, 2*ratio); e != nil {
			all = append(all, e)
		}
	}
	return s, all
}

func TestDrift(t *testing.T) {
	type part struct {
		ratio float64
		n     int
	}
	for _, c := range []struct {
		name   string
		parts  []part
		events int
		text   string // of the first
	}{
		{"as forecast", []part{{1, 100}}, 0, ""},
		{"within the limit", []part{{1.149, 100}, {1 / 1.149, 100}}, 0, ""},
		{"nine are not ten", []part{{1.31, 9}, {1, 1}, {1.31, 9}}, 0, ""},
		{"slower and faster do not add up", []part{{1.31, 9}, {0.7, 9}, {1.31, 9}}, 0, ""},
		{"slower", []part{{1, 30}, {1.31, 10}}, 1, "31 % slower than its calibration for 10 steps; measuring again"},
		{"faster", []part{{0.5, 10}}, 1, "100 % faster than its calibration for 10 steps; measuring again"},
		{"once, for what measuring does not explain", []part{{1.31, 500}}, 1, "31 % slower than its calibration for 10 steps; measuring again"},
		{"again when it changes again", []part{{1.31, 100}, {2, 10}}, 2, ""},
		{"one night of sleep", []part{{1, 20}, {1e6, 1}, {1, 20}}, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s State
			var all []*Event
			for _, p := range c.parts {
				var events []*Event
				s, events = steps(s, p.ratio, p.n)
				all = append(all, events...)
			}
			if len(all) != c.events {
				t.Fatalf("%d events, want %d: %v", len(all), c.events, all)
			}
			if c.text != "" && all[0].String() != c.text {
				t.Errorf("event %q, want %q", all[0], c.text)
			}
		})
	}
}

// A device that slowed down and was measured again: its new rates say so, and
// nothing is left to correct.
func TestMeasured(t *testing.T) {
	s, events := steps(State{}, 1.5, Steps)
	if len(events) != 1 {
		t.Fatalf("%d events", len(events))
	}
	s = Measured(s, 1.5)
	if s, events = steps(s, 1, 5*Steps); len(events) != 0 || math.Abs(s.Factor()-1) > 1e-9 {
		t.Errorf("factor %g after %d more events", s.Factor(), len(events))
	}
	// What the device is found to be off now is told against its new base.
	s, _ = steps(State{}, 1.5, 5*Steps)
	s, events = steps(Measured(s, 1), 1.5, 5*Steps)
	if len(events) != 0 || math.Abs(s.Factor()-1.5) > 1e-9 {
		t.Errorf("factor %g after %d more events", s.Factor(), len(events))
	}
	_, events = steps(s, 3, Steps)
	if len(events) != 1 || events[0].String() != "100 % slower than it has been since it was measured last for 10 steps; measuring again" {
		t.Errorf("events %v", events)
	}
}

// A machine that had other work for a while measures as before; what was known
// of it counts again.
func TestDisturbed(t *testing.T) {
	s, _ := steps(State{}, 1.1, 30)
	s, first := steps(s, 2, 30)
	s, second := steps(s, 5, 30)
	if len(first) != 1 || len(second) != 1 {
		t.Fatalf("events %v, %v", first, second)
	}
	if s = Measured(s, 1); math.Abs(s.Ratio-1.1) > 1e-9 || s.Settled() {
		t.Errorf("opens with %+v", s)
	}
	if s, _ = steps(s, 1.1, 20); math.Abs(s.Factor()-1.1) > 1e-9 {
		t.Errorf("goes on with %+v", s)
	}
}

func TestFactorWaits(t *testing.T) {
	s, _ := steps(State{}, 1.1, Steps-1)
	if s.Settled() || s.Factor() != 1 {
		t.Errorf("factor %g after %d forwards", s.Factor(), s.Samples)
	}
	if s, _ = steps(s, 1.1, 1); !s.Settled() || math.Abs(s.Factor()-1.1) > 1e-9 {
		t.Errorf("factor %g after %d forwards", s.Factor(), s.Samples)
	}
}

func TestPublish(t *testing.T) {
	for _, c := range []struct {
		known, now float64
		since      time.Duration
		want       bool
	}{
		{0, 1.04, time.Hour, false}, {0, 1.06, time.Hour, true}, {1, 1 / 1.06, time.Hour, true},
		{1, 2, 59 * time.Second, false}, {2, 2.09, time.Hour, false}, {2, 2.11, time.Minute, true},
	} {
		if got := Publish(c.known, c.now, c.since); got != c.want {
			t.Errorf("known %g, now %g, %v ago: %v", c.known, c.now, c.since, got)
		}
	}
}

// Whatever arrives, the state stays a number within bounds, and an event comes
// only after Steps forwards that were all off to its side.
func TestStepProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s State
		var last []float64 // since the last event
		for _, x := range rapid.SliceOfN(rapid.OneOf(rapid.Float64(), rapid.Float64Range(0.5, 2)), 0, 80).Draw(t, "ratios") {
			base, watching := s.base(), !s.Again || s.Base > 0
			before := s
			var e *Event
			s, e = Step(s, 1, x)
			if !(x > 0) || math.IsInf(x, 0) {
				if s != before || e != nil {
					t.Fatalf("%g changed %+v to %+v", x, before, s)
				}
				continue
			}
			if s.Ratio < 1/furthest || s.Ratio > furthest || s.Factor() < 1/MaxFactor || s.Factor() > MaxFactor {
				t.Fatalf("state %+v", s)
			}
			last = append(last, x)
			if e == nil {
				continue
			}
			if !watching || len(last) < Steps {
				t.Fatalf("an event after %d forwards (%+v)", len(last), before)
			}
			for _, y := range last[len(last)-Steps:] {
				if off := y / base; off <= 1+Limit && off >= 1/(1+Limit) || (y > base) != (e.Off > 0) {
					t.Fatalf("event %v after %g over base %g", e, y, base)
				}
			}
			last = nil
		}
	})
}

// The unit of time does not matter.
func TestStepScales(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		unit := math.Exp2(float64(rapid.IntRange(-20, 20).Draw(t, "unit")))
		var a, b State
		for _, x := range rapid.SliceOfN(rapid.Float64Range(0.1, 10), 0, 40).Draw(t, "seconds") {
			var ea, eb *Event
			a, ea = Step(a, 1, x)
			if b, eb = Step(b, unit, x*unit); a != b || (ea == nil) != (eb == nil) {
				t.Fatalf("%+v and %+v", a, b)
			}
		}
	})
}
