// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package footprint

import (
	"fmt"
	"testing"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/stage"
	"github.com/distorch/distorch/coordinator/reconcile"
	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

const (
	modelPath = "../../demo/demo.safetensors"
	inFlight  = 2
	tolerance = 0.05
)

// TestStageFootprint loads stages of the demo modelPath, opens a run and holds
// the account against the forecast.
func TestStageFootprint(t *testing.T) {
	file, err := safetensors.Open(modelPath)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	tensors := map[string]arch.Tensor{}
	for _, x := range file.Tensors() {
		tensors[x.Name] = arch.Tensor{Shape: x.Shape, DType: x.DType}
	}
	model, err := arch.Recognise(tensors, file.Metadata())
	if err != nil {
		t.Fatal(err)
	}
	g := model.Params.Build(arch.Options{})
	dims, err := g.Request(map[string]int64{"width": 256, "height": 256, "text_tokens": 64, "batch": 1})
	if err != nil {
		t.Fatal(err)
	}
	all := g.Blocks()
	for _, dtype := range []tensor.DType{tensor.F32, tensor.BF16} {
		p, err := graph.Specialise(g, dims, dtype)
		if err != nil {
			t.Fatal(err)
		}
		for _, cut := range [][2]int{{0, all}, {0, 2}, {2, all - 4}, {all - 2, 2}} {
			for _, stored := range []bool{false, true} {
				s := reconcile.StageShape{
					First: cut[0], Blocks: cut[1], Head: cut[0] == 0, Tail: cut[0]+cut[1] == all, Stored: stored, Slots: 1, InFlight: inFlight,
				}
				t.Run(fmt.Sprintf("%v/%d+%d/stored=%v", dtype, cut[0], cut[1], stored), func(t *testing.T) {
					compare(t, p, stage.Checkpoint{File: checkpoint.Safetensors(file), Source: model.Source}, model.Stored, dims, s)
				})
			}
		}
	}
}

func compare(t *testing.T, p *graph.Program, c stage.Checkpoint, stored map[string]tensor.DType, dims graph.Dims, s reconcile.StageShape) {
	f, err := reconcile.StageFootprint(p, stored, s)
	if err != nil {
		t.Fatal(err)
	}
	e, err := native.New(native.Config{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	session, err := e.Open(t.Context(), native.CPU)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	scratch, expanding := kernelMemory(t, session, p, s)
	st, err := stage.Load(t.Context(), stage.Config{
		Session: session, Checkpoint: c, Program: p, FirstBlock: s.First, Blocks: s.Blocks, Head: s.Head, Tail: s.Tail,
		Stored: s.Stored, Slots: s.Slots, InFlight: s.InFlight,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	r, err := st.NewRun(t.Context(), dims)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if s.Head { // what the agent takes for each branch
		for range s.InFlight {
			b, err := session.Buffer(graph.ConditioningLayout(p).Bytes)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Free()
		}
	}
	_, peak, _ := session.Account()
	// The kernels' scratch is taken when the buffer for reading is back.
	got, want := f.Weights+max(f.Reading, f.Working()+scratch)+expanding, peak
	if off := float64(got-want) / float64(want); off < -tolerance || off > tolerance {
		t.Errorf("forecast %v, with the engine's own %v, account %v: %+.1f%% off (%+v)", f.Peak(), got, want, 100*off, f)
	} else {
		t.Logf("forecast %v, with the engine's own %v, account %v: %+.1f%% off", f.Peak(), got, want, 100*off)
	}
}

// kernelMemory is what the engine takes beside the stage, part of the node's
// overhead: its kernels' scratch and, at once, buffers to expand weights in.
func kernelMemory(t *testing.T, session engine.Session, p *graph.Program, s reconcile.StageShape) (scratch, expanding tensor.Bytes) {
	launches, err := p.Stage(s.First, s.Blocks, s.Head, s.Tail)
	if err != nil {
		t.Fatal(err)
	}
	var arena tensor.Bytes
	for _, l := range launches {
		c, err := session.Compile(t.Context(), l.Segment)
		if err != nil {
			t.Fatal(err)
		}
		scratch, arena = max(scratch, c.Scratch()), max(arena, l.Segment.Arena)
	}
	expanding, _, _ = session.Account()
	return scratch - arena, expanding
}
