// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

const (
	headerTensors = 10_000
	headerLimit   = 20 * time.Millisecond
	preadBytes    = 8 << 20
)

// fileFigures reads the middle blocks of a checkpoint cold and warm, and the
// header of one with many tensors.
func fileFigures(ctx context.Context, o *options, r *report) error {
	if err := headerFigure(o, r); err != nil {
		return err
	}
	path := filepath.Join(o.dir, "files.safetensors")
	var entries []safetensors.Entry
	for _, e := range entriesOf(fluxOf(blockHidden, blockHeads, 1, 5).Build(arch.Options{}), func(string) tensor.DType { return tensor.BF16 }) {
		if strings.HasPrefix(e.Name, "single_blocks.") {
			entries = append(entries, e)
		}
	}
	if err := writeCheckpoint(path, entries); err != nil {
		return err
	}
	defer os.Remove(path)
	f, err := checkpoint.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	raw, err := os.Open(path)
	if err != nil {
		return err
	}
	defer raw.Close()
	if err := raw.Sync(); err != nil {
		return err
	}
	s := newStageBytes(f, raw, "single_blocks.1.", "single_blocks.2.", "single_blocks.3.")
	r.note("blocks 1 to 3 of 5: %v in %d tensors", s.size, len(s.spans))
	return s.figures(ctx, o, r)
}

// stageBytes is a stretch of a file with the tensors of a stage.
type stageBytes struct {
	file   checkpoint.File
	raw    *os.File
	spans  []checkpoint.Span
	from   int64 // in the file
	length int64
	size   tensor.Bytes // of the arena
	arena  []byte
}

func newStageBytes(f checkpoint.File, raw *os.File, prefixes ...string) *stageBytes {
	s := &stageBytes{file: f, raw: raw}
	var found []checkpoint.Tensor
	for _, t := range f.Tensors() {
		for _, p := range prefixes {
			if strings.HasPrefix(t.Name, p) {
				found = append(found, t)
			}
		}
	}
	last := found[len(found)-1]
	s.from = found[0].Offset
	s.length = last.Offset + int64(last.Size) - s.from
	s.spans, s.size = checkpoint.Pack(found, int64(graph.Align))
	s.arena = make([]byte, max(int64(s.size), s.length))
	return s
}

func (s *stageBytes) figures(ctx context.Context, o *options, r *report) error {
	warm, err := alternate(ctx, o.rounds, s.read, s.preads)
	if err != nil {
		return err
	}
	rate := func(d time.Duration) float64 { return float64(s.length) / d.Seconds() / 1e9 }
	r.figure("read warm ÷ pread loop", medianRatio(warm[0], warm[1]), target{want: 0.9}, "%.2f and %.2f GB/s", rate(median(warm[0])), rate(median(warm[1])))
	if err := dropCache(s.raw.Fd()); err != nil {
		r.note("read cold ÷ dd: %v", err)
		return nil
	}
	cold, err := alternate(ctx, o.rounds, s.cold(s.read), s.cold(s.dd))
	if err != nil {
		return err
	}
	r.figure("read cold ÷ dd", medianRatio(cold[0], cold[1]), target{want: 0.9}, "%.2f and %.2f GB/s", rate(median(cold[0])), rate(median(cold[1])))
	return nil
}

// read is what an agent does.
func (s *stageBytes) read(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	err := checkpoint.ReadArena(ctx, s.file, s.arena[:s.size], s.spans, 2)
	return time.Since(began), err
}

func (s *stageBytes) preads(context.Context) (time.Duration, error) {
	began := time.Now()
	for at := int64(0); at < s.length; at += preadBytes {
		n := min(preadBytes, s.length-at)
		if _, err := s.raw.ReadAt(s.arena[at:at+n], s.from+at); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}

func (s *stageBytes) dd(ctx context.Context) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, "dd", "if="+s.raw.Name(), "of="+os.DevNull, "bs=8M", "iflag=skip_bytes,count_bytes",
		fmt.Sprintf("skip=%d", s.from), fmt.Sprintf("count=%d", s.length))
	began := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("dd: %w: %s", err, out)
	}
	return time.Since(began), nil
}

// cold has the kernel forget the file before each read.
func (s *stageBytes) cold(do side) side {
	return func(ctx context.Context) (time.Duration, error) {
		if err := dropCache(s.raw.Fd()); err != nil {
			return 0, err
		}
		return do(ctx)
	}
}

// headerFigure parses a header of many tensors; the time is the CPU's.
func headerFigure(o *options, r *report) error {
	var entries []safetensors.Entry
	for i := range headerTensors {
		entries = append(entries, safetensors.Entry{
			Name: fmt.Sprintf("double_blocks.%d.img_attn.part.%d.weight", i/100, i%100), DType: tensor.F8E4M3, Shape: tensor.Shape{1, 1},
		})
	}
	header, size, err := safetensors.Header(entries, map[string]string{"format": "pt"})
	if err != nil {
		return err
	}
	src := bytes.NewReader(append(header, make([]byte, int64(size)-int64(len(header)))...))
	times := make([]time.Duration, o.rounds)
	for i := range times {
		before := cpuTime()
		f, err := safetensors.Parse(src)
		if err != nil {
			return err
		}
		if len(f.Tensors()) != headerTensors {
			return fmt.Errorf("a header of %d tensors was read as %d", headerTensors, len(f.Tensors()))
		}
		times[i] = cpuTime() - before
	}
	r.figure(fmt.Sprintf("header of %d tensors, CPU ÷ %v", headerTensors, headerLimit), median(times).Seconds()/headerLimit.Seconds(),
		target{1, true}, "%v, %d bytes", median(times).Round(10*time.Microsecond), len(header))
	return nil
}
