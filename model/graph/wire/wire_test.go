// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/graph/wire"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

var update = flag.Bool("update", false, "write the golden files again")

func small(guidance bool) *graph.Model {
	return arch.Flux{
		Channels: 16, Hidden: 64, Heads: 2, MLP: 256, Context: 64, Vector: 64,
		Double: 2, Single: 3, Axes: []int64{8, 12, 12}, Guidance: guidance,
	}.Build(arch.Options{})
}

func TestRoundTrip(t *testing.T) {
	m := small(true)
	b, err := wire.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	back, err := wire.Unmarshal(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(m, back); d != "" {
		t.Errorf("protobuf round trip (-sent +received):\n%s", d)
	}
	j, err := wire.JSON(m)
	if err != nil {
		t.Fatal(err)
	}
	back, err = wire.FromJSON(j)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(m, back); d != "" {
		t.Errorf("JSON round trip (-sent +received):\n%s", d)
	}
	again, err := wire.Marshal(back)
	if err != nil || !bytes.Equal(b, again) {
		t.Errorf("bytes differ after a round trip (%v)", err)
	}
}

// The JSON of a small FLUX.1 is part of the contract with the torch worker.
func TestCanonicalJSON(t *testing.T) {
	got, err := wire.JSON(small(true))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", "flux-small.json")
	if *update {
		if err := os.WriteFile(path, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(bytes.TrimSuffix(want, []byte("\n")), got) {
		t.Errorf("the JSON of FLUX.1 is not that of %s; run with -update if that is intended", path)
	}
}

func TestFromProtoRefuses(t *testing.T) {
	deep := &pb.Expr{Form: &pb.Expr_Value{Value: 1}}
	for range 20 {
		deep = &pb.Expr{Form: &pb.Expr_Sum{Sum: &pb.Expr_List{Args: []*pb.Expr{deep}}}}
	}
	for name, change := range map[string]func(*pb.Model){
		"no op set":             func(m *pb.Model) { m.OpSet = 0 },
		"newer op set":          func(m *pb.Model) { m.OpSet = graph.OpSet + 1 },
		"no head":               func(m *pb.Model) { m.Head = nil },
		"no output":             func(m *pb.Model) { m.Output = nil },
		"no runs":               func(m *pb.Model) { m.Runs = nil },
		"expression without":    func(m *pb.Model) { m.Inputs[0].Shape[0] = &pb.Expr{} },
		"nil expression":        func(m *pb.Model) { m.Inputs[0].Shape[0] = nil },
		"deep expression":       func(m *pb.Model) { m.Inputs[0].Shape[0] = deep },
		"kind wraps":            func(m *pb.Model) { m.Inputs[0].Kind = 257 },
		"layout wraps":          func(m *pb.Model) { m.Head.Taps[0].Layout = 256 },
		"patch of three":        func(m *pb.Model) { m.Head.Nodes[1].Attrs.Patch = []int64{2, 2, 2} },
		"many blocks":           func(m *pb.Model) { m.Runs[0].Count = 1 << 62 },
		"weight of 2^80":        func(m *pb.Model) { m.Head.Weights[0].Shape = []int64{1 << 40, 1 << 40} },
		"negative value id":     func(m *pb.Model) { m.Head.Nodes[0].Inputs[0] = -1 },
		"dimension of 2^62":     func(m *pb.Model) { m.Dims[0].Max = 1 << 62 },
		"values beyond a bound": func(m *pb.Model) { m.Head.Values = make([]*pb.GraphValue, 1<<13) },
	} {
		t.Run(name, func(t *testing.T) {
			p := wire.ToProto(small(true))
			change(p)
			if _, err := wire.FromProto(p); err == nil {
				t.Error("accepted")
			} else {
				t.Log(err)
			}
		})
	}
}

// Whatever bytes arrive: no panic, and a model that is accepted can be
// specialised at its smallest dimensions, sent on and read back the same.
func FuzzUnmarshal(f *testing.F) {
	for _, guidance := range []bool{false, true} {
		b, err := wire.Marshal(small(guidance))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := wire.Unmarshal(b)
		if err != nil {
			return
		}
		dims := graph.Dims{}
		for _, d := range m.Dims {
			if d.Derived == nil {
				dims[d.Name] = d.Min
			}
		}
		p, err := graph.Specialise(m, dims, tensor.BF16)
		if err != nil {
			t.Logf("specialise: %v", err)
			return
		}
		if _, err := p.Stage(0, m.Blocks(), true, true); err != nil {
			t.Fatal(err)
		}
		again, err := wire.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := wire.Unmarshal(again); err != nil {
			t.Fatal(err)
		}
	})
}
