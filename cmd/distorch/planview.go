// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/distorch/distorch/cmd/internal/output"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

type planView struct {
	Deployment  string           `json:"deployment,omitempty"`
	Epoch       uint64           `json:"epoch"`
	Generation  uint64           `json:"generation"`
	Model       string           `json:"model"`
	ModelName   string           `json:"model_name"`
	DType       string           `json:"dtype"`
	Workload    map[string]int64 `json:"workload"`
	InFlight    uint32           `json:"in_flight"`
	Stages      []stageView      `json:"stages"`
	Forecast    forecastView     `json:"forecast"`
	Unused      []reasonView     `json:"unused"`
	IfLost      []reasonView     `json:"if_lost"`
	Certificate certificateView  `json:"certificate"`
	Numerics    string           `json:"numerics"`
	Infeasible  string           `json:"infeasible,omitempty"`
	LoRAs       []loraView       `json:"loras,omitempty"`
	Fit         string           `json:"fit,omitempty"`
	Notes       []string         `json:"notes,omitempty"`
}

type stageView struct {
	Node          string  `json:"node"`
	NodeID        string  `json:"node_id"`
	Device        string  `json:"device"`
	Address       string  `json:"address"`
	FirstBlock    uint32  `json:"first_block"`
	Blocks        uint32  `json:"blocks"`
	Head          bool    `json:"head"`
	Tail          bool    `json:"tail"`
	Stored        bool    `json:"stored"`
	Slots         uint32  `json:"slots"`
	NumericsClass string  `json:"numerics_class"`
	Compute       float64 `json:"compute_seconds"`
	Expand        float64 `json:"expand_seconds"`
	Hop           float64 `json:"hop_seconds"`
	Load          float64 `json:"load_seconds"`
	PeakBytes     uint64  `json:"peak_bytes"`

	HostPeakBytes uint64     `json:"host_peak_bytes"` // of RAM, beside a device with memory of its own
	Ring          uint32     `json:"ring"`            // staging slots for blocks that rest elsewhere
	Stream        float64    `json:"stream_seconds"`
	Stall         float64    `json:"stall_seconds"`
	Storage       string     `json:"storage,omitempty"`
	Tiers         []tierView `json:"tiers"`
}

// tierView is where blocks of a stage rest that do not rest on its device.
type tierView struct {
	Tier       string `json:"tier"`            // device, donor, ram, remote, disk
	Where      string `json:"where,omitempty"` // the donor device, or the other node
	FirstBlock uint32 `json:"first_block"`
	Blocks     uint32 `json:"blocks"`
	Bytes      uint64 `json:"bytes"`
	Compressed bool   `json:"compressed,omitempty"`
}

func newTierViews(s *pb.Stage) []tierView {
	out := []tierView{}
	for _, t := range s.GetTiers() {
		out = append(out, tierView{
			strings.ToLower(t.Kind.String()), cmp.Or(t.Device, t.NodeName, t.Node), t.FirstBlock, t.Blocks, t.Bytes, t.Compressed,
		})
	}
	return out
}

// name is the tier with whose memory it is.
func (t tierView) name() string {
	name := t.Tier
	if t.Where != "" {
		name += " " + t.Where
	}
	if t.Compressed {
		name += ", compressed"
	}
	return name
}

// restView is what of a stage rests in one tier.
type restView struct {
	name   string
	blocks uint32
	bytes  uint64
	ranges []string
}

// rests sums a stage's ranges up by tier, in their order.
func (s stageView) rests() []restView {
	var out []restView
	for _, t := range s.Tiers {
		i := slices.IndexFunc(out, func(r restView) bool { return r.name == t.name() })
		if i < 0 {
			i = len(out)
			out = append(out, restView{name: t.name()})
		}
		r := &out[i]
		r.blocks += t.Blocks
		r.bytes += t.Bytes
		span := fmt.Sprint(t.FirstBlock)
		if t.Blocks > 1 {
			span = fmt.Sprintf("%d-%d", t.FirstBlock, t.FirstBlock+t.Blocks-1)
		}
		r.ranges = append(r.ranges, span)
	}
	return out
}

type forecastView struct {
	Step    float64 `json:"step_seconds"`
	Pair    float64 `json:"pair_seconds"`
	Compute float64 `json:"compute_seconds"`
	Expand  float64 `json:"expand_seconds"`
	Hop     float64 `json:"hop_seconds"`
	Waiting float64 `json:"waiting_seconds"`
	Load    float64 `json:"load_seconds"`
}

type reasonView struct {
	Node   string `json:"node"`
	NodeID string `json:"node_id"`
	Reason string `json:"reason"`
}

type certificateView struct {
	Optimal    bool    `json:"optimal"`
	LowerBound float64 `json:"lower_bound_seconds"`
	Gap        float64 `json:"gap"`
}

// newPlanView shows a plan; names are the nodes' names by id.
func newPlanView(p *pb.Plan, names map[string]string) *planView {
	if p == nil {
		return nil
	}
	f, c := p.GetForecast(), p.GetCertificate()
	v := &planView{
		Deployment: p.Deployment, Epoch: p.Epoch, Generation: p.Generation, Model: p.Model, ModelName: p.ModelName, DType: p.Dtype,
		Workload: p.GetWorkload().GetDims(), InFlight: p.GetWorkload().GetInFlight(), Stages: []stageView{},
		Forecast: forecastView{
			f.GetStepSeconds(), f.GetPairSeconds(), f.GetComputeSeconds(), f.GetExpandSeconds(), f.GetHopSeconds(), f.GetWaitingSeconds(), f.GetLoadSeconds(),
		},
		Certificate: certificateView{c.GetOptimal(), c.GetLowerBoundSeconds(), c.GetGap()},
		Numerics:    p.Numerics, Infeasible: p.Infeasible, Unused: []reasonView{}, IfLost: []reasonView{},
		LoRAs: newLoRAViews(p.Loras), Fit: p.Fit, Notes: p.Notes,
	}
	name := func(id string) string {
		for _, s := range p.Stages {
			if s.Node == id {
				return s.NodeName
			}
		}
		if n := names[id]; n != "" {
			return n
		}
		return id
	}
	for _, s := range p.Stages {
		t := s.GetForecast()
		v.Stages = append(v.Stages, stageView{
			s.NodeName, s.Node, s.Device, s.Address, s.FirstBlock, s.Blocks, s.Head, s.Tail, s.Stored, s.Slots, s.NumericsClass,
			t.GetComputeSeconds(), t.GetExpandSeconds(), t.GetHopSeconds(), t.GetLoadSeconds(), t.GetPeakBytes(),
			t.GetHostPeakBytes(), s.Ring, t.GetStreamSeconds(), t.GetStallSeconds(), s.Storage, newTierViews(s),
		})
	}
	for _, u := range p.Unused {
		v.Unused = append(v.Unused, reasonView{name(u.Node), u.Node, u.Reason})
	}
	for _, l := range p.IfLost {
		v.IfLost = append(v.IfLost, reasonView{name(l.Node), l.Node, l.Consequence})
	}
	return v
}

// span is what of the model a stage runs: "head, 0-18".
func (s stageView) span() string {
	text := ""
	if s.Head {
		text = "head "
	}
	switch s.Blocks {
	case 0:
	case 1:
		text += fmt.Sprint(s.FirstBlock)
	default:
		text += fmt.Sprintf("%d-%d", s.FirstBlock, s.FirstBlock+s.Blocks-1)
	}
	if s.Tail {
		text += " tail"
	}
	return text
}

func (v *planView) write(w io.Writer) error {
	p := &printer{w: w}
	p.line("%s in %s at %s", v.ModelName, v.DType, showWorkload(v.Workload))
	if v.Infeasible != "" {
		p.line("no plan: %s", v.Infeasible)
		return p.err
	}
	rows := [][]string{}
	for i, s := range v.Stages {
		weights := "packed"
		if s.Stored {
			weights = fmt.Sprintf("stored, %d slots", s.Slots)
		}
		if s.Storage != "" {
			weights = s.Storage + ", " + weights
		}
		rows = append(rows, []string{
			fmt.Sprint(i), s.Node, s.Device, s.span(), weights, output.Bytes(s.PeakBytes),
			output.Seconds(s.Compute), output.Seconds(s.Expand), output.Seconds(s.Hop), s.NumericsClass,
		})
	}
	p.table([]string{"STAGE", "NODE", "DEVICE", "BLOCKS", "WEIGHTS", "PEAK", "COMPUTE", "EXPAND", "HOP", "NUMERICS"}, rows)
	for i, s := range v.Stages {
		if len(s.Tiers) == 0 {
			continue
		}
		var parts []string
		for _, r := range s.rests() {
			parts = append(parts, fmt.Sprintf("blocks %s (%s) in %s", strings.Join(r.ranges, ","), output.Bytes(r.bytes), r.name))
		}
		p.line("stage %d: %s; ring %d, %s of RAM; copies %s per forward, of which %s are waited for", i, strings.Join(parts, ", "), s.Ring,
			output.Bytes(s.HostPeakBytes), output.Seconds(s.Stream), output.Seconds(s.Stall))
	}
	f := v.Forecast
	p.line("forecast %s per step: compute %s, expansion %s, hops %s, waiting %s; %s with cond and uncond; loading %s", output.Seconds(f.Step),
		output.Seconds(f.Compute), output.Seconds(f.Expand), output.Seconds(f.Hop), output.Seconds(f.Waiting), output.Seconds(f.Pair), output.Seconds(f.Load))
	if v.Certificate.Optimal {
		p.line("proven optimal for the cost model")
	} else {
		p.line("at most %.1f %% above the best possible for the cost model (%s)", 100*v.Certificate.Gap, output.Seconds(v.Certificate.LowerBound))
	}
	writeLoRAs(p, v.LoRAs)
	for _, u := range v.Unused {
		p.line("not used: %s: %s", u.Node, u.Reason)
	}
	for _, l := range v.IfLost {
		p.line("if %s is lost: %s", l.Node, l.Reason)
	}
	for _, n := range v.Notes {
		p.line("note: %s", n)
	}
	p.line("numerics: %s", v.Numerics)
	return p.err
}

// printer writes lines and keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintln(p.w, output.Clean(fmt.Sprintf(format, args...)))
	}
}

func (p *printer) table(header []string, rows [][]string) {
	if p.err == nil {
		p.err = output.WriteTable(p.w, header, rows)
	}
}
