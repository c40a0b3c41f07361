// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// TestDecisions runs the golden decision tables: a cluster in, the explained plan or the refusal out. Refresh them with
// -rewrite.
//
//	place [pins=a=0-3,b=4-5] [exclude=(a,b)] [max-nodes=N] [in-flight=N] [slots=N]
//	model NAME dtype=bf16 stored=bf16 runs=double:19x680MB,single:38x283MB ...
//	node ID memory=12GB rate=1T link=118MB ...
func TestDecisions(t *testing.T) {
	datadriven.Walk(t, "testdata/decisions", func(t *testing.T, path string) {
		var plan *Plan
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			p := parseProblem(t, d)
			switch d.Cmd {
			case "place":
				var err error
				plan, err = Place(p, Options{})
				if err != nil {
					return refusal(err)
				}
				return plan.Explain()
			case "decide":
				dec, err := Decide(p, plan, 0, Options{SkipLosses: true})
				if err != nil {
					return refusal(err)
				}
				plan = dec.Plan
				var spans []string
				for _, s := range plan.Stages {
					spans = append(spans, s.Name+"="+s.span())
				}
				return fmt.Sprintf("changed=%v: %s\n%s", dec.Changed, dec.Why, strings.Join(spans, ", "))
			default:
				t.Fatalf("unknown command %s", d.Cmd)
				return ""
			}
		})
	})
}

func refusal(err error) string {
	return fmt.Sprintf("%T (waits=%v)\n%s", err, Infeasible(err), err)
}

func parseProblem(t *testing.T, d *datadriven.TestData) Problem {
	p := Problem{Deployment: "flux"}
	for _, arg := range d.CmdArgs {
		value := strings.Join(arg.Vals, ",")
		switch arg.Key {
		case "pins":
			pins, err := ParsePins(value)
			if err != nil {
				t.Fatal(err)
			}
			p.Constraints.Pins = pins
		case "exclude":
			p.Constraints.Exclude = arg.Vals
		case "max-nodes":
			p.Constraints.MaxNodes = int(number(t, value))
		case "in-flight":
			p.Constraints.InFlight = int(number(t, value))
		case "slots":
			p.Constraints.Slots = int(number(t, value))
		default:
			t.Fatalf("unknown argument %s", arg.Key)
		}
	}
	for line := range strings.SplitSeq(d.Input, "\n") {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kv := map[string]string{}
		for _, f := range fields[2:] {
			k, v, _ := strings.Cut(f, "=")
			kv[k] = v
		}
		if fields[0] == "model" {
			p.Model = parseModel(t, fields[1], kv)
		} else {
			p.Nodes = append(p.Nodes, parseNode(t, fields[1], kv))
		}
	}
	return p
}

// parseModel: compute per block is proportional to its weights, tokens FLOPs per byte.
func parseModel(t *testing.T, name string, kv map[string]string) Model {
	m := Model{Name: name, ComputeDType: "bf16", StoredDType: DType(kv["stored"])}
	tokens, expand := 1000.0, 0.0
	boundary, scratch := Bytes(28e6), Bytes(1e8)
	if v, ok := kv["tokens"]; ok {
		tokens = number(t, v)
	}
	if v, ok := kv["boundary"]; ok {
		boundary = Bytes(number(t, v))
	}
	if v, ok := kv["scratch"]; ok {
		scratch = Bytes(number(t, v))
	}
	if v, ok := kv["expand"]; ok {
		expand = number(t, v)
	}
	cost := func(w float64) Cost {
		c := Cost{Weights: Bytes(w), Linear: w * tokens, Attention: w * tokens / 10, Scratch: scratch}
		if expand > 0 {
			c.Expansion, c.Staging = c.Weights, Bytes(w*expand)
		}
		return c
	}
	for f := range strings.SplitSeq(kv["runs"], ",") {
		run, rest, _ := strings.Cut(f, ":")
		count, size, _ := strings.Cut(rest, "x")
		m.Runs = append(m.Runs, Run{Name: run, Count: int(number(t, count)), Block: cost(number(t, size)), Boundary: boundary})
	}
	if v, ok := kv["head"]; ok {
		m.Head = cost(number(t, v))
	}
	if v, ok := kv["tail"]; ok {
		m.Tail = cost(number(t, v))
	}
	return m
}

func parseNode(t *testing.T, id string, kv map[string]string) Node {
	n := Node{ID: NodeID(id), HasModel: true, Link: Link{BytesPerSecond: 118e6, Latency: 1e-4}}
	d := Device{ID: "cpu", Kind: KindCPU, Allocatable: 16e9, Expansion: 2e9, Memory: 2e10}
	rate, dtype := 1e12, DType("bf16")
	for k, v := range kv {
		switch k {
		case "memory":
			d.Allocatable = Bytes(number(t, v))
		case "reserve":
			d.Reserve = Bytes(number(t, v))
		case "rate":
			rate = number(t, v)
		case "dtype":
			dtype = DType(v)
		case "link":
			n.Link.BytesPerSecond = number(t, v)
		case "latency":
			n.Link.Latency = number(t, v)
		case "load":
			n.Load = number(t, v)
		case "expansion":
			d.Expansion = number(t, v)
		case "bandwidth":
			d.Memory = number(t, v)
		case "name":
			n.Name = v
		case "overlap":
			d.Overlap = true
		case "no-file":
			n.HasModel = false
		case "rejected":
			n.Rejected = Reason{ReasonKind(v), "told by the agent"}
		case "no-device":
			d.Kind = "npu"
		default:
			t.Fatalf("unknown key %s", k)
		}
	}
	d.Rates = []Rate{{dtype, rate, rate, 0}}
	n.Devices = []Device{d}
	return n
}

func number(t *testing.T, text string) float64 {
	scale := 1.0
	digits := strings.TrimSuffix(text, "B")
	for suffix, s := range map[string]float64{"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} {
		if rest, ok := strings.CutSuffix(digits, suffix); ok {
			digits, scale = rest, s
			break
		}
	}
	v, err := strconv.ParseFloat(digits, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v * scale
}

func TestBadFigures(t *testing.T) {
	good := func() Problem {
		return Problem{Model: fluxModel(), Nodes: fluxCluster(3, 1, 64)}
	}
	for name, c := range map[string]struct {
		change func(*Problem)
		as     func(error) bool
		text   string
	}{
		"nan rate":         {func(p *Problem) { p.Nodes[1].Devices[0].Rates[0].Linear = math.NaN() }, is[*NodeError], `node "n01": cpu linear FLOP/s in bf16 is NaN`},
		"zero rate":        {func(p *Problem) { p.Nodes[1].Devices[0].Rates[0].Attention = 0 }, is[*NodeError], `attention FLOP/s in bf16 is 0`},
		"negative link":    {func(p *Problem) { p.Nodes[2].Link.BytesPerSecond = -1 }, is[*NodeError], `node "n02": link bytes/s is -1`},
		"1e300 link":       {func(p *Problem) { p.Nodes[2].Link.BytesPerSecond = 1e300 }, is[*NodeError], `1e+300`},
		"-Inf link":        {func(p *Problem) { p.Nodes[2].Link.BytesPerSecond = math.Inf(-1) }, is[*NodeError], `-Inf`},
		"nan latency":      {func(p *Problem) { p.Nodes[0].Link.Latency = math.NaN() }, is[*NodeError], `link latency is NaN`},
		"no bandwidth":     {func(p *Problem) { p.Nodes[0].Devices[0].Memory = 0 }, is[*NodeError], `memory bytes/s is 0`},
		"no expansion":     {func(p *Problem) { p.Model.Head.Expansion, p.Nodes[0].Devices[0].Expansion = 1, 0 }, is[*NodeError], `expansion bytes/s is 0`},
		"tiny rate":        {func(p *Problem) { p.Nodes[0].Devices[0].Memory = 1e-300 }, is[*NodeError], `1e-300`},
		"bad load rate":    {func(p *Problem) { p.Nodes[0].Load = -3 }, is[*NodeError], `load bytes/s is -3`},
		"negative memory":  {func(p *Problem) { p.Nodes[0].Devices[0].Allocatable = -1 }, is[*NodeError], `allocatable`},
		"huge reserve":     {func(p *Problem) { p.Nodes[0].Devices[0].Reserve = math.MaxInt64 }, is[*NodeError], `reserved`},
		"two of one id":    {func(p *Problem) { p.Nodes[2].ID = "n00" }, is[*NodeError], `node "n00": two nodes have this id`},
		"no id":            {func(p *Problem) { p.Nodes[2].ID = "" }, is[*NodeError], `empty id`},
		"no nodes":         {func(p *Problem) { p.Nodes = nil }, func(err error) bool { return errors.Is(err, ErrNoNodes) }, `start an agent`},
		"too many nodes":   {func(p *Problem) { p.Nodes = make([]Node, 2000) }, is[*NodeError], `at most 1024`},
		"no runs":          {func(p *Problem) { p.Model.Runs = nil }, is[*ModelError], `0 runs of blocks`},
		"many runs":        {func(p *Problem) { p.Model.Runs = slices.Repeat(p.Model.Runs, 9) }, is[*ModelError], `18 runs`},
		"empty run":        {func(p *Problem) { p.Model.Runs[0].Count = 0 }, is[*ModelError], `run 0 (double): 0 blocks`},
		"long runs":        {func(p *Problem) { p.Model.Runs[0].Count, p.Model.Runs[1].Count = 900, 900 }, is[*ModelError], `product`},
		"nan flops":        {func(p *Problem) { p.Model.Runs[1].Block.Linear = math.NaN() }, is[*ModelError], `NaN linear FLOPs`},
		"1e300 flops":      {func(p *Problem) { p.Model.Tail.Attention = 1e300 }, is[*ModelError], `tail: 1e+300 attention`},
		"negative weights": {func(p *Problem) { p.Model.Head.Weights = -5 }, is[*ModelError], `weights of -5`},
		"bad boundary":     {func(p *Problem) { p.Model.Runs[0].Boundary = -5 }, is[*ModelError], `boundary of -5`},
		"bad vec":          {func(p *Problem) { p.Model.Vec = math.MaxInt64 }, is[*ModelError], `vec`},
		"no dtype":         {func(p *Problem) { p.Model.ComputeDType = "" }, is[*ModelError], `compute dtype`},
		"max nodes":        {func(p *Problem) { p.Constraints.MaxNodes = -1 }, is[*ConstraintError], `max nodes is -1`},
		"slots":            {func(p *Problem) { p.Constraints.Slots = 3 }, is[*ConstraintError], `slots is 3`},
		"in flight":        {func(p *Problem) { p.Constraints.InFlight = 65 }, is[*ConstraintError], `in flight is 65`},
	} {
		t.Run(name, func(t *testing.T) {
			p := good()
			c.change(&p)
			plan, err := Place(p, Options{})
			if err == nil || !c.as(err) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("plan %v, error %T %v; want %q", plan, err, err, c.text)
			}
		})
	}
	p := good()
	p.Nodes[1].Devices[0].Memory, p.Nodes[1].Rejected = math.NaN(), Reason{Kind: ReasonRates}
	if _, err := Place(p, Options{}); err != nil {
		t.Errorf("a rejected node's figures must not matter: %v", err)
	}
}

func is[E error](err error) bool {
	var e E
	return errors.As(err, &e)
}
