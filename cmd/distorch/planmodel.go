// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/output"
	"github.com/distorch/distorch/coordinator/reconcile"
	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/graph/wire"
	"github.com/distorch/distorch/model/tensor"
	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/blocktable"
	"github.com/distorch/distorch/placement/whatif"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// modelSource makes block tables of one model.
type modelSource interface {
	// defaults fills in what the model has of its own: workload, dtype and how its weights are stored.
	defaults(t whatif.Tables) whatif.Tables
	// table is the model at a workload, for size requests in one forward, and the forwards that are in flight.
	table(t whatif.Tables, size int) (m placement.Model, inFlight int, err error)
	// branches is how many forwards a step takes with guidance.
	branches() int
}

// tables are the block table of one request and those of larger micro-batches.
func tables(s modelSource, t whatif.Tables) (placement.Model, []placement.Batch, error) {
	m, _, err := s.table(t, 1)
	if err != nil {
		return m, nil, err
	}
	var batches []placement.Batch
	for _, size := range t.Sizes {
		b, _, err := s.table(t, size)
		if err != nil {
			return m, nil, err
		}
		batches = append(batches, placement.Batch{Size: size, Model: b})
	}
	return m, batches, nil
}

// findSource is a file of this machine, or else a model by its published name.
func findSource(ref string) (modelSource, error) {
	if ref == "" {
		return nil, usage(fmt.Errorf("--model is missing: name a checkpoint file, or one of %s", output.Or(blocktable.Names())))
	}
	info, err := os.Stat(ref)
	if err == nil && info.Mode().IsRegular() {
		return openHeader(ref)
	}
	known, unknown := blocktable.Lookup(ref)
	if unknown == nil {
		return &publishedModel{known}, nil
	}
	if err == nil || strings.ContainsAny(ref, `/\`) || checkpoint.Stem(ref) != ref {
		return nil, usage(fmt.Errorf("--model %s: no such file here; a published model is one of %s", ref, output.Or(blocktable.Names())))
	}
	return nil, usage(fmt.Errorf("--model %s: no such file here, and %w", ref, unknown))
}

// publishedModel is a block table by name.
type publishedModel struct{ known blocktable.Known }

func (p *publishedModel) branches() int { return p.known.Branches }

func (p *publishedModel) defaults(t whatif.Tables) whatif.Tables {
	d := p.known.Default
	if t.Workload == "" {
		t.Workload = fmt.Sprintf("%dx%d", d.Width, d.Height)
		if d.Frames > 1 {
			t.Workload += fmt.Sprintf(",frames=%d", d.Frames)
		}
	}
	t.DType = cmp.Or(t.DType, "bf16")
	t.Stored = cmp.Or(t.Stored, t.DType)
	return t
}

func (p *publishedModel) table(t whatif.Tables, size int) (placement.Model, int, error) {
	words, inFlight, err := parseWorkload(t.Workload)
	if err != nil {
		return placement.Model{}, 0, usage(err)
	}
	w := blocktable.Workload{
		Width: int(words["width"]), Height: int(words["height"]), Frames: int(words["frames"]), Batch: int(words["batch"]) * size,
		Compute: t.DType, Stored: t.Stored,
	}
	w.Mask = words["attention_mask"] > 0
	for k := range maxRefs {
		if width := int(words[fmt.Sprintf("ref%d_width", k)]); width > 0 {
			w.References = append(w.References, blocktable.Size{Width: width, Height: int(words[fmt.Sprintf("ref%d_height", k)])})
		}
	}
	if strings.Contains(t.Workload, "tokens=") { // the model's own otherwise
		w.Text = int(words["text_tokens"])
	}
	m, err := p.known.Model(w)
	return m, max(1, int(inFlight)), usage(err)
}

// headerModel is a checkpoint's header.
type headerModel struct {
	path    string
	graph   *graph.Model
	heads   int
	stored  map[string]tensor.DType
	wide    map[string]tensor.Shape // weights of two dimensions or more, which narrow formats hold
	compute tensor.DType
}

func openHeader(path string) (*headerModel, error) {
	f, err := openCheckpoint(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := recognise(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	h := &headerModel{path: path, graph: r.Params.Build(arch.Options{}), heads: headsOf(r.Params), stored: r.Stored, wide: map[string]tensor.Shape{}, compute: r.ComputeDType()}
	for name, shape := range h.graph.Weights() {
		if len(shape) > 1 {
			h.wide[name] = shape
		}
	}
	return h, nil
}

// headsOf is the number of attention heads; 0 where it is not known.
func headsOf(p arch.Params) int {
	if f, ok := p.(arch.Flux); ok {
		return int(f.Heads)
	}
	return 0
}

// liveModel is a checkpoint that nodes hold, by its name, its id or the beginning of it; nil when none has it. holders
// are the names of the nodes that do.
func liveModel(cmd *cobra.Command, o *operator, ref string) (h *headerModel, holders []string, err error) {
	all, err := ask(cmd.Context(), o, "list models", o.Control.ListModels, &pb.ListModelsRequest{})
	if err != nil {
		return nil, nil, err
	}
	var id string
	for _, m := range all.Models {
		r := m.GetRecord()
		if r.GetId() == ref || r.GetName() == ref || shortName(r.GetName()) == ref || partOfID.MatchString(ref) && strings.HasPrefix(r.GetId(), ref) {
			if id != "" {
				return nil, nil, usage(fmt.Errorf("model %s: several checkpoints are called so; give the id", ref))
			}
			id, holders = r.GetId(), m.GetHolders()
		}
	}
	if id == "" {
		return nil, nil, nil
	}
	all, err = ask(cmd.Context(), o, "list models", o.Control.ListModels, &pb.ListModelsRequest{GraphOf: id})
	if err != nil {
		return nil, nil, err
	}
	for _, m := range all.Models {
		if m.GetRecord().GetId() == id {
			h, err = recordModel(m.GetRecord())
			return h, holders, err
		}
	}
	return nil, nil, notFound(fmt.Errorf("model %s is gone meanwhile", ref))
}

// recordModel is a checkpoint as its node registered it.
func recordModel(r *pb.ModelRecord) (*headerModel, error) {
	g, err := wire.FromProto(r.GetGraph())
	if err != nil {
		return nil, infeasible(fmt.Errorf("model %s: its graph cannot be used here: %w", r.GetName(), err))
	}
	h := &headerModel{path: r.GetName(), graph: g, stored: map[string]tensor.DType{}, wide: map[string]tensor.Shape{}, compute: tensor.BF16}
	if n, err := strconv.Atoi(r.GetHyperParameters()["heads"]); err == nil {
		h.heads = n
	}
	if d, err := tensor.ParseDType(strings.ToUpper(r.GetDefaultDtype())); err == nil {
		h.compute = d
	}
	for _, w := range r.GetWeights() {
		d, err := tensor.ParseDType(w.GetDtype())
		if err != nil {
			return nil, fmt.Errorf("model %s: %w", r.GetName(), err)
		}
		h.stored[w.GetName()] = d
		if len(w.GetShape()) > 1 {
			h.wide[w.GetName()] = w.GetShape()
		}
	}
	return h, nil
}

func (h *headerModel) branches() int { return 1 }

func (h *headerModel) defaults(t whatif.Tables) whatif.Tables {
	t.Workload = cmp.Or(t.Workload, "1024x1024")
	t.DType = cmp.Or(t.DType, placement.DType(strings.ToLower(h.compute.String())))
	return t
}

// asStored are the file's dtypes, or those that it would have with its large weights in another.
func (h *headerModel) asStored(d placement.DType) (map[string]tensor.DType, error) {
	if d == "" {
		return h.stored, nil
	}
	dtype, err := tensor.ParseDType(strings.ToUpper(string(d)))
	if err != nil {
		return nil, usage(fmt.Errorf("stored dtype %q: a file has f32, bf16, f16, f8_e4m3, f8_e5m2 or a GGUF type such as q8_0 or q4_k", d))
	}
	out := maps.Clone(h.stored)
	for name := range out {
		if _, err := h.wide[name].Bytes(dtype); err == nil && h.wide[name] != nil {
			out[name] = dtype // rows that are not whole blocks stay
		}
	}
	return out, nil
}

func (h *headerModel) table(t whatif.Tables, size int) (placement.Model, int, error) {
	fail := func(err error) (placement.Model, int, error) {
		return placement.Model{}, 0, fmt.Errorf("%s: %w", h.path, err)
	}
	words, inFlight, err := parseWorkload(t.Workload)
	if err != nil {
		return placement.Model{}, 0, usage(err)
	}
	words["batch"] *= int64(size)
	compute, err := parseCompute(string(t.DType))
	if err != nil {
		return placement.Model{}, 0, usage(err)
	}
	dims, err := h.graph.Request(words)
	if err != nil {
		return fail(usage(fmt.Errorf("workload: %w", err)))
	}
	p, err := graph.Specialise(h.graph, dims, compute)
	if err != nil {
		return fail(usage(fmt.Errorf("workload: %w", err)))
	}
	stored, err := h.asStored(t.Stored)
	if err != nil {
		return fail(err)
	}
	const both = 2 // cond and uncond, as a deployment counts them
	n := cmp.Or(int(inFlight), both)
	packed, file, err := reconcile.Tables(h.path, p, stored, n)
	if err != nil {
		return fail(err)
	}
	m := packed
	if file.Weights() < packed.Weights() {
		m = file
	}
	m.Name = shortName(h.path)
	h.parallel(&m, p)
	return m, 1, nil // the table's scratch counts the forwards in flight already
}

// parallel adds what tensor parallelism and curves of rates need, and the graph of one device does not say: the tokens
// of a forward, the heads, and the partial sums of a block, once for a block whose attention and feed-forward lie side
// by side and twice otherwise (Megatron-LM's cut).
func (h *headerModel) parallel(m *placement.Model, p *graph.Program) {
	if len(p.Runs) == 0 {
		return
	}
	m.Heads = h.heads
	for i := range m.Runs {
		r := &m.Runs[i]
		reduces := placement.Bytes(2)
		if r.Name == "single_blocks" {
			reduces = 1
		}
		r.Block.Collective = reduces * r.Boundary
	}
	for _, s := range p.Runs[0].State {
		n := 1.0
		for _, d := range s.Shape[:max(0, len(s.Shape)-1)] {
			n *= float64(d)
		}
		m.Tokens += n
	}
}

func shortName(path string) string {
	if i := strings.LastIndexAny(path, `/\`); i >= 0 {
		path = path[i+1:]
	}
	return checkpoint.Stem(path)
}

// parseObjective reads latency, pair, throughput, or batch=N.
func parseObjective(text string) (placement.Objective, error) {
	kind, size, sized := strings.Cut(strings.TrimSpace(text), "=")
	known := []string{"latency", "pair", "batch=4", "throughput"}
	if err := output.OneOf(strings.ToLower(kind), choices("objective")); err != nil {
		return placement.Objective{}, fmt.Errorf("objective %w", err)
	}
	o := placement.Objective{Kind: placement.ObjectiveKind(strings.ToLower(kind))}
	if o.Kind != placement.ObjectiveBatch {
		if sized {
			return o, fmt.Errorf("objective %q: only a batch has a size; want %s", text, output.Or(known))
		}
		return o, nil
	}
	n, err := extent(size)
	if !sized || err != nil || n > 1024 {
		return o, fmt.Errorf("objective %q: want batch=N with N from 1 to 1024", text)
	}
	o.Size = int(n)
	return o, nil
}

// microBatches are the sizes that a batch may be cut into evenly, at most 32.
func microBatches(o placement.Objective) []int {
	if o.Kind != placement.ObjectiveBatch {
		return nil
	}
	var sizes []int
	for n := 1; n <= min(o.Size, 32); n++ {
		if o.Size%n == 0 {
			sizes = append(sizes, n)
		}
	}
	return sizes
}

// storedNames are what --stored takes.
func storedNames() []string {
	names := []string{"fp8"}
	for _, d := range blocktable.StoredDTypes() {
		names = append(names, string(d))
	}
	slices.Sort(names)
	return names
}

// storedDType reads --stored.
func storedDType(text string) (placement.DType, error) {
	low := strings.ToLower(text)
	if low == "" {
		return "", nil
	}
	if err := output.OneOf(low, storedNames()); err != nil {
		return "", fmt.Errorf("--stored %w", err)
	}
	if low == "fp8" {
		low = "f8_e4m3"
	}
	return placement.DType(low), nil
}

// computeDType reads --dtype of a plan, which may be one that this build does not compute in.
func computeDType(text string) (placement.DType, error) {
	low := strings.ToLower(text)
	if low != "" && low != "f16" {
		if err := chosen("dtype", low); err != nil {
			return "", err
		}
	}
	return placement.DType(low), nil
}
