// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/output"
	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

type inspectView struct {
	File            string           `json:"file"`
	ID              string           `json:"id"` // quick id
	FileBytes       int64            `json:"file_bytes"`
	Architecture    string           `json:"architecture"`
	Variant         string           `json:"variant"`
	Prefix          string           `json:"prefix"`
	HyperParameters json.RawMessage  `json:"hyper_parameters"`
	Parameters      int64            `json:"parameters"`
	Tensors         int              `json:"tensors"`
	StoredDTypes    map[string]int   `json:"stored_dtypes"` // tensors of each
	DType           string           `json:"dtype"`         // of the computation
	Workload        map[string]int64 `json:"workload"`
	StoredBytes     int64            `json:"stored_bytes"`
	PackedBytes     int64            `json:"packed_bytes"`
	FLOPs           int64            `json:"flops"` // of one forward
	Parts           []partView       `json:"parts"`
	Unknown         []string         `json:"unknown_tensors"`
	Foreign         int              `json:"tensors_of_other_models"`
}

type partView struct {
	Name          string `json:"name"`
	Block         int    `json:"block"` // -1: head and tail
	Parameters    int64  `json:"parameters"`
	Tensors       int    `json:"tensors"`
	StoredBytes   int64  `json:"stored_bytes"`
	PackedBytes   int64  `json:"packed_bytes"`
	LinearFLOPs   int64  `json:"linear_flops"`
	AttentionFLOP int64  `json:"attention_flops"`
	ArenaBytes    int64  `json:"arena_bytes"`
	BoundaryBytes int64  `json:"boundary_bytes"` // what a cut behind it carries
}

func newModelsInspect(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Say what a checkpoint is, and what each of its blocks weighs and costs",
		Long: `Reads the header of a safetensors or GGUF file on this machine and says which
architecture it is, with its hyper-parameters and its block table at a workload.
A file that this build does not run ends with exit code 4 and the reason.`,
		Args: arguments(1, "FILE"),
	}
	format := outputFlag(cmd)
	load := cmd.Flags().String("workload", "1024x1024", workloadHelp)
	dtype := cmd.Flags().String("dtype", "", "compute dtype, f32 or bf16 (default: the model's own)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		words, _, err := parseWorkload(*load)
		if err != nil {
			return usage(err)
		}
		v, err := inspect(args[0], words, *dtype)
		if err != nil {
			return err
		}
		if *format != output.Table {
			return output.Write(a.stdout, *format, v)
		}
		return v.write(a)
	}
	return cmd
}

// openCheckpoint is checkpoint.Open. The error of a sound file of a form that
// this build does not read is infeasible.
func openCheckpoint(path string) (checkpoint.File, error) {
	f, err := checkpoint.Open(path)
	if errors.Is(err, checkpoint.ErrUnsupported) {
		return nil, infeasible(err)
	}
	return f, err
}

// recognise is arch.Recognise on a file's header. The error of a file that is
// sound but not for this build is infeasible.
func recognise(f checkpoint.File) (*arch.Recognised, error) {
	tensors := map[string]arch.Tensor{}
	for _, t := range f.Tensors() {
		tensors[t.Name] = arch.Tensor{Shape: t.Shape, DType: t.DType}
	}
	r, err := arch.Recognise(tensors, f.Metadata())
	if errors.Is(err, arch.ErrNotSupported) {
		return nil, infeasible(err)
	}
	return r, err
}

func inspect(path string, words map[string]int64, dtypeName string) (*inspectView, error) {
	f, err := openCheckpoint(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := recognise(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	id, err := f.QuickID()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	compute := r.ComputeDType()
	if dtypeName != "" {
		if compute, err = parseCompute(dtypeName); err != nil {
			return nil, usage(err)
		}
	}
	m := r.Params.Build(arch.Options{})
	dims, err := m.Request(words)
	if err != nil {
		return nil, usage(fmt.Errorf("workload: %w", err))
	}
	p, err := graph.Specialise(m, dims, compute)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	table, err := p.Table(r.Stored)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	hyper, err := json.Marshal(r.Params)
	if err != nil {
		return nil, err
	}
	v := &inspectView{
		File: path, ID: id, FileBytes: int64(f.Size()), Architecture: r.Arch, Variant: r.Variant, Prefix: r.Prefix,
		HyperParameters: hyper, StoredDTypes: map[string]int{}, DType: strings.ToLower(compute.String()), Workload: words,
		Unknown: append([]string{}, r.Unknown...), Foreign: len(r.Foreign),
	}
	for _, d := range r.Stored {
		v.StoredDTypes[d.String()]++
	}
	v.totals(table)
	return v, nil
}

func parseCompute(name string) (tensor.DType, error) {
	if err := output.OneOf(strings.ToLower(name), choices("dtype")); err != nil {
		return 0, fmt.Errorf("dtype %w; this build computes in no other", err)
	}
	return tensor.ParseDType(strings.ToUpper(name))
}

func (v *inspectView) totals(t *graph.Table) {
	params, tensors, stored, packed, flops := t.Totals()
	v.Parameters, v.Tensors, v.StoredBytes, v.PackedBytes, v.FLOPs = params, tensors, int64(stored), int64(packed), flops
	for _, p := range append(append([]graph.Part{t.Head}, t.Blocks...), t.Tail) {
		v.Parts = append(v.Parts, partView{
			p.Name, p.Index, p.Params, p.Tensors, int64(p.Stored), int64(p.Packed),
			p.Cost.LinearFLOPs, p.Cost.AttentionFLOPs, int64(p.Arena), int64(p.Boundary),
		})
	}
}

func (v *inspectView) write(a *app) error {
	hyper := map[string]any{}
	if err := json.Unmarshal(v.HyperParameters, &hyper); err != nil {
		return err
	}
	var params, dtypes []string
	for _, k := range slices.Sorted(maps.Keys(hyper)) {
		params = append(params, fmt.Sprintf("%s %v", k, hyper[k]))
	}
	for _, k := range slices.Sorted(maps.Keys(v.StoredDTypes)) {
		dtypes = append(dtypes, fmt.Sprintf("%d %s", v.StoredDTypes[k], k))
	}
	rows := [][]string{
		{"path", v.File},
		{"architecture", fmt.Sprintf("%s (%s)", v.Architecture, v.Variant)},
		{"quick id", v.ID},
		{"file", fmt.Sprintf("%s, %d tensors used (%s)", output.Bytes(uint64(v.FileBytes)), v.Tensors, strings.Join(dtypes, ", "))},
		{"parameters", output.Count(float64(v.Parameters), "")},
		{"hyper-parameters", strings.Join(params, ", ")},
		{"at " + showWorkload(v.Workload), fmt.Sprintf("%s in %s, %s per forward", output.Bytes(uint64(v.PackedBytes)), v.DType, output.Count(float64(v.FLOPs), "FLOP"))},
	}
	if v.Prefix != "" {
		rows = append(rows, []string{"prefix", fmt.Sprintf("%s (%d tensors of other models beside it)", v.Prefix, v.Foreign)})
	}
	if err := output.WriteTable(a.stdout, nil, rows); err != nil {
		return err
	}
	parts := [][]string{}
	for _, p := range v.Parts {
		block := ""
		if p.Block >= 0 {
			block = fmt.Sprint(p.Block)
		}
		parts = append(parts, []string{
			block, p.Name, output.Count(float64(p.Parameters), ""), output.Bytes(uint64(p.StoredBytes)), output.Bytes(uint64(p.PackedBytes)),
			output.Count(float64(p.LinearFLOPs), "FLOP"), output.Count(float64(p.AttentionFLOP), "FLOP"),
			output.Bytes(uint64(p.ArenaBytes)), output.Bytes(uint64(p.BoundaryBytes)),
		})
	}
	if _, err := fmt.Fprintln(a.stdout); err != nil {
		return err
	}
	if err := output.WriteTable(a.stdout, []string{"BLOCK", "NAME", "PARAMETERS", "STORED", strings.ToUpper(v.DType), "LINEAR", "ATTENTION", "SCRATCH", "BOUNDARY"}, parts); err != nil {
		return err
	}
	for i, n := range v.Unknown {
		const most = 20
		if i == most {
			_, err := fmt.Fprintf(a.stdout, "and %d more; -o json lists all\n", len(v.Unknown)-most)
			return err
		}
		if _, err := fmt.Fprintf(a.stdout, "unknown tensor, not used: %.200q\n", n); err != nil {
			return err
		}
	}
	return nil
}
