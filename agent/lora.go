// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/distorch/distorch/agent/catalog"
	"github.com/distorch/distorch/agent/stage"
	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/graph/wire"
	"github.com/distorch/distorch/model/lora"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// onTop puts the plan's LoRAs on a model and its file, which stays the
// caller's; done closes what was opened besides and says whether a LoRA's file
// is still the one that was announced.
func (a *Agent) onTop(p *pb.Plan, m *graph.Model, file checkpoint.File, known *arch.Recognised) (_ *graph.Model, _ stage.Checkpoint, done func() error, err error) {
	plain := stage.Checkpoint{File: file, Source: known.Source}
	if len(p.Loras) == 0 {
		return m, plain, func() error { return nil }, nil
	}
	var files []checkpoint.File
	var entries []*catalog.Entry
	closeAll := func() error {
		var errs []error
		for _, f := range files {
			errs = append(errs, f.Close())
		}
		for _, e := range entries {
			errs = append(errs, unchanged(e))
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil { // a return with an error has made done nil
			err = errors.Join(err, closeAll())
		}
	}()
	compute, err := tensor.ParseDType(strings.ToUpper(p.Dtype))
	if err != nil {
		return nil, plain, nil, err
	}
	var uses []lora.Use
	for _, l := range p.Loras {
		i := slices.IndexFunc(a.entries, func(e catalog.Entry) bool { return e.Record.Id == l.Id })
		if i < 0 {
			return nil, plain, nil, fmt.Errorf("no file of LoRA %s (%s) in models.dirs", l.Name, l.Id)
		}
		entries = append(entries, &a.entries[i])
		f, err := checkpoint.Open(a.entries[i].Path)
		if err != nil {
			return nil, plain, nil, err
		}
		files = append(files, f)
		parsed, err := lora.Read(wire.LoRATensors(f), f.Metadata())
		if err != nil {
			return nil, plain, nil, fmt.Errorf("%s: %w", f.Path(), err)
		}
		mode, err := lora.ParseMode(l.Mode)
		if err != nil {
			return nil, plain, nil, err
		}
		uses = append(uses, lora.Use{Name: l.Name, Patch: lora.Match(m, known.Params, parsed), Mode: mode, Strength: l.Strength})
	}
	with, err := lora.Apply(lora.Base{Graph: m, Params: known.Params, Stored: known.Stored}, compute, uses)
	if err != nil {
		return nil, plain, nil, err
	}
	over, err := lora.NewOverlay(file, known.Source, with, files)
	if err != nil {
		return nil, plain, nil, err
	}
	return with.Graph, stage.Checkpoint{File: over, Source: over.Source, Open: over.Reopen}, closeAll, nil
}
