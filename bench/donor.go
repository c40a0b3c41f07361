// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/offload"
	"github.com/distorch/distorch/agent/stage"
	"github.com/distorch/distorch/bench/donorlink"
	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

// The model whose blocks come over the link: as many bytes as take about as
// long as computing with them, at some of the widths.
const (
	donorHidden = 512
	donorHeads  = 4
	donorDouble = 3
	donorSingle = 6
	donorRing   = 2
	donorOffer  = 2 << 30
)

// donorFigures holds a step whose every block comes out of another node's RAM,
// over 1 Gbit/s, against computing and reading alone: of the same blocks, in
// the same run, by turns.
func donorFigures(ctx context.Context, o *options, r *report) (err error) {
	room, err := hostRoom(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, room.Close()) }()
	l, err := donorlink.New(ctx, donorlink.Config{BitsPerSecond: donorLink, Room: room, Offer: donorOffer, Threads: 1})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	model := fluxOf(donorHidden, donorHeads, donorDouble, donorSingle).Build(arch.Options{})
	path := filepath.Join(o.dir, "donor.safetensors")
	if err := writeCheckpoint(path, entriesOf(model, func(string) tensor.DType { return tensor.BF16 })); err != nil {
		return err
	}
	defer os.Remove(path)
	f, err := safetensors.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r.note("hidden %d, %d+%d blocks, all in the RAM of a node over 1 Gbit/s with mutual TLS; one thread computes, a ring of %d slots", donorHidden, donorDouble, donorSingle, donorRing)
	for _, width := range []int64{256, 448, 576, 704, 960} {
		p, err := specialise(model, smallCompute(), width, 512, 256)
		if err != nil {
			return err
		}
		if err := donorRow(ctx, o, r, l, f, p, false); err != nil {
			return err
		}
		if width > 256 {
			continue
		}
		if err := donorRow(ctx, o, r, l, f, p, true); err != nil {
			return err
		}
	}
	return nil
}

func donorRow(ctx context.Context, o *options, r *report, l *donorlink.Link, f *safetensors.File, p *graph.Program, compressed bool) error {
	e, err := native.New(native.Config{ISA: best(), Threads: 1})
	if err != nil {
		return err
	}
	whole := stage.Config{Program: p, Blocks: p.Model.Blocks(), Head: true, Tail: true}
	alone, streamed := &chain{}, &chain{}
	defer alone.close()
	defer streamed.close()
	if err := alone.add(ctx, e, f, whole); err != nil {
		return err
	}
	place := &kept{Place: l.Place(compressed)}
	whole.Ring = donorRing
	whole.Tiers = []offload.Tier{{Blocks: whole.Blocks, Kind: offload.Remote, Place: place}}
	if err := streamed.add(ctx, e, f, whole); err != nil {
		return err
	}
	if err := errors.Join(alone.inputs(p), streamed.inputs(p)); err != nil {
		return err
	}
	// Reading and streaming share the link, so the ring's reads ahead are let end
	// before reading alone is measured, and paid for before streaming is.
	steps := func(ctx context.Context) (time.Duration, error) {
		if _, err := streamed.forward(ctx); err != nil {
			return 0, err
		}
		return streamed.forward(ctx)
	}
	times, err := alternate(ctx, o.rounds, steps, alone.forward, place.read)
	if err != nil {
		return err
	}
	if !bytes.Equal(alone.output(), streamed.output()) {
		return errors.New("blocks from another node give other bits")
	}
	bound := make([]time.Duration, len(times[0]))
	sum := make([]time.Duration, len(times[0]))
	for i := range bound {
		bound[i] = max(times[1][i], times[2][i])
		sum[i] = times[1][i] + times[2][i]
	}
	form := "as it is"
	if compressed {
		form = "compressed"
	}
	compute, transfer := median(times[1]), median(times[2])
	r.figure("step / max(compute, transfer), "+form, 1/medianRatio(times[0], bound), target{1.05, true},
		"%s; compute %s, transfer %s (%.2f), sum %s; %d tokens; equal bits", seconds(median(times[0])), seconds(compute), seconds(transfer),
		compute.Seconds()/transfer.Seconds(), seconds(median(sum)), p.Dims["S"])
	return nil
}

// kept remembers what was claimed, to read it without computing.
type kept struct {
	offload.Place
	claim offload.Claim
	sizes []tensor.Bytes
}

func (k *kept) Claim(ctx context.Context, sizes []tensor.Bytes) (offload.Claim, error) {
	c, err := k.Place.Claim(ctx, sizes)
	k.claim, k.sizes = c, sizes
	return c, err
}

// read reads every block once, as many at a time as the ring has bounces.
func (k *kept) read(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(donorRing)
	for i, n := range k.sizes {
		g.Go(func() error { return k.claim.Reader(i).Read(ctx, make([]byte, n)) })
	}
	err := g.Wait()
	return time.Since(began), err
}
