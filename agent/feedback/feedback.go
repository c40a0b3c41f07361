// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package feedback learns from each forward how far a device is from its
// calibration: a pure state machine, one state for each compute dtype and size
// of activations of a device.
//
// Imported by the agent, which feeds it and acts on its events. It imports
// nothing of distorch, and holds no clock: time is an argument.
package feedback

import (
	"fmt"
	"math"
	"time"
)

// The state machine's constants.
const (
	// Alpha is the weight of a new forward in the moving average: a change is
	// taken up to nine tenths after 22 forwards, about one picture.
	Alpha = 0.1
	// Limit is how far a forward may be from what the device did when it was
	// measured last before it counts as off.
	Limit = 0.15
	// Steps is how many forwards in a row must be off, to the same side, and how
	// many a new calibration is given to settle.
	Steps = 10
	// furthest bounds one observation: a machine that was suspended for a night
	// says nothing of its speed.
	furthest = 8.0
	// MaxFactor bounds what is published.
	MaxFactor = 4.0
)

// When a factor is published: it moved by more than moved since it was last,
// and that is Least ago.
const (
	moved = 0.05
	Least = time.Minute
)

// State is what was learned. The zero State has learned nothing.
type State struct {
	Ratio   float64 // moving average of measured over forecast, geometric; 0: none yet
	Samples uint64  // forwards since the device was measured last
	// Base is what Ratio was found to be then: a forward is off against it. 0 is
	// 1, or, after another measuring, that it is found from the next forwards.
	Base  float64
	Again bool // an event asked for another measuring, or one was made

	off    int     // forwards in a row beyond Limit, negative where faster
	streak float64 // sum of their logarithms
	calm   float64 // Ratio when they began; 0: too few forwards were seen to tell
	before float64 // calm of the first event since the device was measured
}

// Event is something to act on: the device has been off for Steps forwards and
// is to be measured again.
type Event struct {
	Off   float64 // 0.31: 31 % slower than when it was measured; negative: faster
	Steps int
	Known bool // the base is not 1: an earlier measuring did not explain all
}

// Step takes one forward's measured time and the model's forecast of it by the
// device's rates, uncorrected, both in seconds. What is not a positive number
// changes nothing.
func Step(s State, forecast, measured float64) (State, *Event) {
	x := measured / forecast
	if !(forecast > 0) || !(measured > 0) || math.IsInf(x, 0) || x == 0 {
		return s, nil
	}
	x = min(max(x, 1/furthest), furthest)
	known := 0.0
	if s.Settled() {
		known = s.Ratio
	}
	s.Samples++
	if s.Ratio == 0 || s.Samples == 1 {
		s.Ratio = x
	} else {
		// At first the average of all, so that one slow first forward does not last.
		a := max(Alpha, 1/float64(s.Samples))
		s.Ratio = math.Exp((1-a)*math.Log(s.Ratio) + a*math.Log(x))
	}
	if s.Again && s.Base == 0 {
		if s.Samples >= Steps {
			s.Base = s.Ratio
		}
		return s, nil
	}
	return s.watch(x, known)
}

// watch counts the forwards that are off; known is the ratio before this one, 0
// if it was not known.
func (s State) watch(x, known float64) (State, *Event) {
	base := s.base()
	side := 0
	switch {
	case x > base*(1+Limit):
		side = 1
	case x < base/(1+Limit):
		side = -1
	}
	if side == 0 || side*s.off < 0 {
		s.off, s.streak = 0, 0
	}
	if side == 0 {
		return s, nil
	}
	if s.off == 0 {
		s.calm = known
	}
	s.off += side
	s.streak += math.Log(x / base)
	if s.off*side < Steps {
		return s, nil
	}
	e := &Event{Off: math.Exp(s.streak/Steps) - 1, Steps: Steps, Known: math.Abs(base-1) > Limit}
	// Until the device has been measured, what it does now is what it does.
	s.Ratio = min(max(base*(1+e.Off), 1/furthest), furthest)
	if s.before == 0 {
		s.before = s.calm
	}
	s.Again, s.Base, s.Samples = true, s.Ratio, Steps
	s.off, s.streak = 0, 0
	return s, e
}

func (s State) base() float64 {
	if s.Base > 0 {
		return s.Base
	}
	return 1
}

// Measured says that the device has new rates, by which the forecast of the
// same forward is change times what it was.
//
// Where a ratio was known before the device went off, it holds again: it is
// how far the model is from this work, whatever the device's speed. That is
// right for a device that became slower, and for one that was disturbed for a
// while and measures as before. Otherwise what the new rates do not explain is
// the model's. Either is an opening value: the next forwards decide.
func Measured(s State, change float64) State {
	if s.before > 0 {
		s.Ratio = s.before
	} else if s.Ratio > 0 && change > 0 && !math.IsInf(change, 0) {
		s.Ratio = min(max(s.Ratio/change, 1/furthest), furthest)
	}
	s.Samples, s.Base, s.Again = 0, 0, true
	s.off, s.streak, s.before = 0, 0, 0
	return s
}

// Factor is what a forecast is to be multiplied with; 1 while too few forwards
// were seen.
func (s State) Factor() float64 {
	if s.Ratio == 0 || s.Samples < Steps {
		return 1
	}
	return min(max(s.Ratio, 1/MaxFactor), MaxFactor)
}

// Settled says whether enough forwards were seen for Factor to be told.
func (s State) Settled() bool { return s.Ratio > 0 && s.Samples >= Steps }

// Publish says whether others are to be told of a factor: it is more than 5 %
// from the one that they know (1 at first), which was told a minute ago or more.
func Publish(known, now float64, since time.Duration) bool {
	if !(known > 0) {
		known = 1
	}
	return since >= Least && (now > known*(1+moved) || now < known/(1+moved))
}

// String is the event in words that follow a device's name: "31 % slower than
// its calibration for 10 steps; measuring again".
func (e *Event) String() string {
	how, by := "slower", e.Off
	if e.Off < 0 {
		// As fast as 1/(1+off): 100 % faster is half of the time.
		how, by = "faster", 1/(1+e.Off)-1
	}
	than := "its calibration"
	if e.Known {
		than = "it has been since it was measured last"
	}
	return fmt.Sprintf("%.0f %% %s than %s for %d steps; measuring again", 100*by, how, than, e.Steps)
}
