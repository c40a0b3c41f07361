// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/distorch/distorch/cmd/internal/output"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// stageState is what a stage did since it was loaded, beside what was forecast.
type stageState struct {
	Stage           uint32  `json:"stage"`
	Node            string  `json:"node"`
	Device          string  `json:"device"`
	FirstBlock      uint32  `json:"first_block"`
	Blocks          uint32  `json:"blocks"`
	Forwards        uint64  `json:"forwards"`
	Forward         float64 `json:"forward_seconds"`          // mean; 0: none yet
	ForwardForecast float64 `json:"forward_forecast_seconds"` // compute, expansion and stall
	Stall           float64 `json:"stall_seconds"`            // per forward
	StallForecast   float64 `json:"stall_forecast_seconds"`
	PeakBytes       uint64  `json:"peak_bytes"` // of the device
	PeakForecast    uint64  `json:"peak_forecast_bytes"`
	// PeakNeed is what the agent counted for all stages on the device when it loaded
	// them, the engine's own temporaries included; the same of RAM.
	PeakNeed         uint64      `json:"peak_need_bytes"`
	HostPeakNeed     uint64      `json:"host_peak_need_bytes"`
	HostPeakBytes    uint64      `json:"host_peak_bytes"` // of RAM beside a device with memory of its own
	HostPeakForecast uint64      `json:"host_peak_forecast_bytes"`
	LentBytes        uint64      `json:"lent_bytes,omitempty"` // of the device, left to other programs
	Tiers            []tierState `json:"tiers"`
}

// tierState is what a stage did with the blocks of one tier.
type tierState struct {
	Tier          string  `json:"tier"`
	Where         string  `json:"where,omitempty"`
	Blocks        uint32  `json:"blocks"`
	Bytes         uint64  `json:"bytes"` // at rest
	StreamedBytes uint64  `json:"streamed_bytes"`
	Uses          uint64  `json:"uses"` // of streamed blocks
	HitRate       float64 `json:"hit_rate"`
	Stall         float64 `json:"stall_seconds"` // in all
}

func newStageStates(d *pb.DeploymentStatus) []stageState {
	var out []stageState
	stages := d.GetPlan().GetStages()
	for _, s := range d.GetStages() {
		v := stageState{
			Stage: s.Stage, Node: cmp.Or(s.NodeName, s.Node), Device: s.Device, FirstBlock: s.FirstBlock, Blocks: s.Blocks, Forwards: s.Forwards,
			Forward: s.ForwardSeconds, PeakBytes: s.AccountPeakBytes, HostPeakBytes: s.HostPeakBytes, LentBytes: s.LentBytes, Tiers: []tierState{},
			PeakNeed: s.AccountNeedBytes, HostPeakNeed: s.HostNeedBytes,
		}
		if s.Forwards > 0 {
			v.Stall = s.Stall.AsDuration().Seconds() / float64(s.Forwards)
		}
		if int(s.Stage) < len(stages) {
			f := stages[s.Stage].GetForecast()
			v.ForwardForecast = f.GetComputeSeconds() + f.GetExpandSeconds() + f.GetStallSeconds()
			v.StallForecast, v.PeakForecast, v.HostPeakForecast = f.GetStallSeconds(), f.GetPeakBytes(), f.GetHostPeakBytes()
		}
		for _, t := range s.Tiers {
			one := tierState{
				Tier: strings.ToLower(t.Kind.String()), Where: t.Where, Blocks: t.Blocks, Bytes: t.Bytes,
				StreamedBytes: t.StreamedBytes, Uses: t.StreamedBlocks, Stall: t.Stall.AsDuration().Seconds(), HitRate: 1,
			}
			if t.StreamedBlocks > 0 {
				one.HitRate = float64(t.Hits) / float64(t.StreamedBlocks)
			}
			v.Tiers = append(v.Tiers, one)
		}
		out = append(out, v)
	}
	return out
}

// writeStages shows stages and their tiers.
func writeStages(p *printer, stages []stageState) {
	var rows, tiers [][]string
	for _, s := range stages {
		of := func(real, forecast float64) string {
			if s.Forwards == 0 {
				return "- of " + output.Seconds(forecast)
			}
			return output.Seconds(real) + " of " + output.Seconds(forecast)
		}
		rows = append(rows, []string{
			fmt.Sprint(s.Stage), s.Node, s.Device, fmt.Sprint(s.Forwards), of(s.Forward, s.ForwardForecast), of(s.Stall, s.StallForecast),
			output.Bytes(s.PeakBytes) + " of " + output.Bytes(cmp.Or(s.PeakNeed, s.PeakForecast)),
			output.Bytes(s.HostPeakBytes) + " of " + output.Bytes(cmp.Or(s.HostPeakNeed, s.HostPeakForecast)),
		})
		for _, t := range s.Tiers {
			hits := ""
			if t.Uses > 0 {
				hits = fmt.Sprintf("%.0f %%", 100*t.HitRate)
			}
			tiers = append(tiers, []string{
				fmt.Sprint(s.Stage), t.Tier, t.Where, fmt.Sprint(t.Blocks), output.Bytes(t.Bytes), output.Bytes(t.StreamedBytes), hits, output.Seconds(t.Stall),
			})
		}
	}
	if len(rows) > 0 {
		p.table([]string{"STAGE", "NODE", "DEVICE", "FORWARDS", "FORWARD, FORECAST", "STALL, FORECAST", "PEAK, COUNTED", "RAM, COUNTED"}, rows)
		p.table([]string{"STAGE", "TIER", "WHERE", "BLOCKS", "AT REST", "STREAMED", "HITS", "STALL"}, tiers)
	}
	for _, s := range stages {
		if s.LentBytes > 0 {
			p.line("stage %d: %s of %s/%s are lent to other programs; `distorch lend %s --device %s --restore` takes them back", s.Stage, output.Bytes(s.LentBytes), s.Node, s.Device, s.Node, s.Device)
		}
	}
}
