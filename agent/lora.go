// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
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
func (a *Agent) onTop(ctx context.Context, p *pb.Plan, m *graph.Model, file checkpoint.File, known *arch.Recognised) (_ *graph.Model, _ stage.Checkpoint, done func() error, err error) {
	plain := stage.Checkpoint{File: file, Source: known.Source}
	if len(p.Loras) == 0 {
		return m, plain, func() error { return nil }, nil
	}
	var files []checkpoint.File
	var ends []func() error
	closeAll := func() error {
		var errs []error
		for _, f := range files {
			errs = append(errs, f.Close())
		}
		for _, end := range ends {
			errs = append(errs, end())
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
		path, end, err := a.loraFile(ctx, l)
		if err != nil {
			return nil, plain, nil, err
		}
		ends = append(ends, end)
		f, err := checkpoint.Open(path)
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
	made := func(weight string) bool {
		_, ok := with.Made[weight]
		return ok
	}
	return with.Graph, stage.Checkpoint{File: over, Source: over.Source, Open: over.Reopen, Made: made}, closeAll, nil
}

// loraFile finds the file of a LoRA: in a folder of this node, or, of one that a
// client brought, with a coordinator. end lets it go and says whether it is
// still the one that was announced.
func (a *Agent) loraFile(ctx context.Context, l *pb.LoRA) (path string, end func() error, err error) {
	i := slices.IndexFunc(a.entries, func(e catalog.Entry) bool { return e.Record.Id == l.Id })
	switch {
	case i >= 0:
		e := &a.entries[i]
		return e.Path, func() error { return unchanged(e) }, nil
	case !l.Brought:
		return "", nil, fmt.Errorf("no file of LoRA %s (%s) in models.dirs", l.Name, l.Id)
	case a.cfg.Brought == nil:
		return "", nil, fmt.Errorf("LoRA %s is a client's, and this agent asks no coordinator for files", l.Id)
	}
	path, release, err := a.cfg.Brought.File(ctx, l.Id)
	if err != nil {
		return "", nil, err
	}
	return path, func() error { release(); return nil }, nil
}
