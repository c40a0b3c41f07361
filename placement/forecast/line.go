// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package forecast

// Line is a step's time against the weights kept off the compute device, without
// overlap of copy and compute: seconds = BaseSeconds + SecondsPerGB * offload.
type Line struct {
	BaseSeconds  float64 // of a step with all weights on the device
	SecondsPerGB float64 // of a step, per GB offloaded: forwards / rate
}

// Fit is the line through two measurements at different offloads.
func Fit(a, b Sample) Line {
	slope := (b.Seconds - a.Seconds) / (b.OffloadGB - a.OffloadGB)
	return Line{a.Seconds - slope*a.OffloadGB, slope}
}

// At is the seconds of a step with offloadGB GB off the device, each copied when
// it is needed.
func (l Line) At(offloadGB float64) float64 { return l.BaseSeconds + l.SecondsPerGB*offloadGB }

// Overlapped is the seconds of the same step when copies run ahead of compute: the
// longer of the two, not the sum.
func (l Line) Overlapped(offloadGB float64) float64 {
	return max(l.BaseSeconds, l.SecondsPerGB*offloadGB)
}

// GBPerSecond is the link's rate as the measured program uses it, when every
// offloaded byte crosses it forwards times per step; 0 where offloading costs no
// time that was measured.
func (l Line) GBPerSecond(forwards int) float64 {
	if l.SecondsPerGB <= 0 {
		return 0
	}
	return float64(forwards) / l.SecondsPerGB
}
