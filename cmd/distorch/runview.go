// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"time"

	"github.com/distorch/distorch/cmd/internal/output"
	"github.com/distorch/distorch/cmd/internal/picture"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

type runView struct {
	Deployment string      `json:"deployment"`
	Model      string      `json:"model"`
	Width      int         `json:"width"`
	Height     int         `json:"height"`
	Seed       uint64      `json:"seed"`
	Scheduler  string      `json:"scheduler"`
	CFG        float64     `json:"cfg"`
	Guidance   float64     `json:"guidance"`
	Plan       *planView   `json:"plan"`
	Forecast   float64     `json:"forecast_seconds"` // per step
	Median     float64     `json:"median_seconds"`
	Ratio      float64     `json:"ratio"` // median over forecast
	Steps      []float64   `json:"steps_seconds"`
	Time       timeView    `json:"per_forward"`
	Agents     []agentView `json:"agents"`
	Numerics   string      `json:"numerics"`
	Digest     string      `json:"digest"`
	// LoRAs are the strengths that the run gave.
	LoRAs []strengthView `json:"loras,omitempty"`
	Check *checkView     `json:"check,omitempty"`
}

// timeView is where the time of one forward went, on average.
type timeView struct {
	Compute float64 `json:"compute_seconds"`
	Hops    float64 `json:"hop_seconds"`
	Waiting float64 `json:"waiting_seconds"`
}

type agentView struct {
	Node       string       `json:"node"`
	NodeID     string       `json:"node_id"`
	PID        int64        `json:"pid"`
	ISA        string       `json:"isa"`
	Threads    uint32       `json:"threads"`
	FirstBlock uint32       `json:"first_block"`
	Blocks     uint32       `json:"blocks"`
	BlocksRun  uint64       `json:"blocks_run"` // counted by its stage runtime since it loaded the stage
	Forwards   uint64       `json:"forwards"`
	Compute    float64      `json:"compute_seconds"` // per forward
	PeakBytes  uint64       `json:"account_peak_bytes"`
	VmHWM      uint64       `json:"vm_hwm_bytes"`
	Class      string       `json:"numerics_class"`
	Forecast   float64      `json:"forecast_compute_seconds"` // per forward
	Ratio      float64      `json:"ratio"`                    // compute over its forecast; 0: not known
	Learned    *learnedView `json:"learned,omitempty"`
}

// learnedView is what an agent's forwards have taught it about forwards of this
// size and dtype.
type learnedView struct {
	Ratio   float64 `json:"ratio"`    // measured over what its calibration says
	Samples uint64  `json:"forwards"` // since it was calibrated
	Event   string  `json:"event,omitempty"`
}

func newRunView(r picture.Request, result *picture.Result, names map[string]string) *runView {
	v := &runView{
		Deployment: r.Deployment, Model: r.Model.Name, Width: r.Width, Height: r.Height, Seed: r.Seed, Scheduler: string(r.Scheduler),
		CFG: r.CFG, Guidance: r.Guidance, Plan: newPlanView(result.Plan, names), Forecast: r.Forecast(result.Plan),
		Median: round(result.Median()), Numerics: result.Plan.GetNumerics(), Digest: result.Digest, Agents: []agentView{},
	}
	for _, l := range r.LoRAs {
		v.LoRAs = append(v.LoRAs, strengthView{l.Name, l.ID, l.First, l.Last})
	}
	if v.Forecast > 0 {
		v.Ratio = result.Median().Seconds() / v.Forecast
	}
	for _, s := range result.Steps {
		v.Steps = append(v.Steps, round(s))
	}
	n := time.Duration(max(result.Forwards, 1))
	v.Time = timeView{round(result.Time.Compute / n), round(result.Time.Hops / n), round(result.Time.Waiting / n)}
	for _, s := range result.Stages {
		v.Agents = append(v.Agents, agentView{
			s.NodeName, s.Node, s.Pid, s.Isa, s.Threads, s.FirstBlock, s.Blocks, s.BlocksRun, s.Forwards,
			round(result.PerNode[s.NodeName].Compute / n), s.AccountPeakBytes, s.VmHwmBytes, s.NumericsClass, 0, 0, nil,
		})
		v.Agents[len(v.Agents)-1].compare(s, result.Plan)
	}
	return v
}

func (v *runView) write(w io.Writer) error {
	p := &printer{w: w}
	v.writeTimes(p)
	v.writeAgents(p)
	v.writeLearned(p)
	for _, l := range v.LoRAs {
		p.line("%s", l)
	}
	v.Check.write(p)
	p.line("numerics: %s", v.Numerics)
	p.line("digest %s", v.Digest)
	return p.err
}

func (v *runView) writeTimes(p *printer) {
	p.line("measured %s per step (median of %d), forecast %s: ratio %.2f", output.Seconds(v.Median), len(v.Steps), output.Seconds(v.Forecast), v.Ratio)
	p.line("per forward: compute %s, hops %s, waiting %s", output.Seconds(v.Time.Compute), output.Seconds(v.Time.Hops), output.Seconds(v.Time.Waiting))
}

func (v *runView) writeAgents(p *printer) {
	rows := [][]string{}
	for _, s := range v.Agents {
		blocks := fmt.Sprint(s.FirstBlock)
		if s.Blocks != 1 {
			blocks = fmt.Sprintf("%d-%d", s.FirstBlock, int64(s.FirstBlock)+int64(s.Blocks)-1)
		}
		rows = append(rows, []string{
			s.Node, fmt.Sprint(s.PID), s.ISA, fmt.Sprint(s.Threads), blocks, fmt.Sprint(s.BlocksRun), fmt.Sprint(s.Forwards),
			output.Seconds(s.Compute), output.Bytes(s.PeakBytes), s.ratio(),
		})
	}
	p.table([]string{"AGENT", "PID", "ISA", "THREADS", "BLOCKS", "BLOCKS RUN", "FORWARDS", "COMPUTE", "PEAK", "OF FORECAST"}, rows)
}

// compare holds an agent's compute time against its stage's forecast.
func (v *agentView) compare(s *pb.StageStats, plan *pb.Plan) {
	for _, st := range plan.GetStages() {
		if st.Node == s.Node && st.FirstBlock == s.FirstBlock {
			v.Forecast = st.GetForecast().GetComputeSeconds() + st.GetForecast().GetExpandSeconds() + st.GetForecast().GetStallSeconds()
		}
	}
	if v.Forecast > 0 {
		v.Ratio = v.Compute / v.Forecast
	}
	if f := s.GetFeedback(); f != nil {
		v.Learned = &learnedView{f.Ratio, f.Samples, f.Event}
	}
}

func (v *agentView) ratio() string {
	if v.Ratio == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", v.Ratio)
}

// writeLearned says what later forecasts will rest on.
func (v *runView) writeLearned(p *printer) {
	for _, s := range v.Agents {
		if s.Learned == nil {
			continue
		}
		if s.Learned.Event != "" {
			p.line("%s", output.Clean(s.Learned.Event))
		}
		p.line("learned: %s takes %.2f times what its calibration says (%d forwards); later plans are forecast by that", output.Clean(s.Node), s.Learned.Ratio, s.Learned.Samples)
	}
}
