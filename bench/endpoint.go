// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

// What the endpoint is measured with: FLUX.1's sizes of a request on a model so
// narrow that a step is short, one whose steps are long, and one whose forward is
// next to nothing.
const (
	wideRequest  = 1024 // pixels
	wideText     = 512
	narrowHidden = 128

	pairHidden = 512
	pairBlocks = 8 // of each kind, so that each stage has one kind
	pairPixels = 256
	pairText   = 64

	loadHidden  = 128
	loadPixels  = 32
	loadText    = 2
	loadFLOPs   = 10e6
	loadClients = 16
	loadFor     = 10 * time.Second
)

// endpointFigures measures the HTTPS endpoint on loopback, with processes of
// their own for coordinator and agents.
func endpointFigures(ctx context.Context, o *options, r *report) (err error) {
	models := filepath.Join(o.dir, "endpoint-models")
	if err := os.Mkdir(models, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(models)
	bf16 := func(string) tensor.DType { return tensor.BF16 }
	for name, f := range map[string]arch.Flux{
		"narrow": fluxOf(narrowHidden, 1, 1, 1), "pair": fluxOf(pairHidden, pairHidden/128, pairBlocks, pairBlocks), "load": loadModel(),
	} {
		if err := writeCheckpoint(filepath.Join(models, name+".safetensors"), entriesOf(f.Build(arch.Options{}), bf16)); err != nil {
			return err
		}
	}
	c, err := startCluster(ctx, o, models, 0, member{name: "a", threads: 1}, member{name: "b", threads: 1})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	cores, err := c.pin("a", "b")
	if err != nil {
		return err
	}
	r.note("coordinator and two agents of one thread each on loopback; %s", cores)
	w, err := c.webClient(ctx)
	if err != nil {
		return err
	}
	defer w.http.CloseIdleConnections()
	return errors.Join(overheadFigure(ctx, o, r, c, w), pairFigure(ctx, o, r, c, w), loadFigure(ctx, r, c, w))
}

// loadModel is narrow on all sides.
func loadModel() arch.Flux {
	f := fluxOf(loadHidden, 1, 1, 1)
	f.Channels, f.Context, f.Vector = 4, 64, 64
	return f
}

// ask is a forward's body and where it goes.
type ask struct {
	deployment string
	flux       arch.Flux
	pixels     int64
	text       int64
	dtype      tensor.DType
}

// blob is the conditioning of an ask.
func (a ask) blob() ([]byte, error) {
	return encoded(nil,
		zeros("context", tensor.F32, 1, a.text, a.flux.Context), zeros("y", tensor.F32, 1, a.flux.Vector), zeros("guidance", tensor.F32, 1))
}

func (a ask) body(metadata map[string]string) ([]byte, error) {
	x := zeros("x", a.dtype, 1, a.flux.Channels, a.pixels/8, a.pixels/8)
	return encoded(metadata, x, safetensors.FromFloat32s("timestep", tensor.Shape{1}, []float32{0.75}))
}

func zeros(name string, d tensor.DType, shape ...int64) safetensors.Data {
	n := d.Size()
	for _, s := range shape {
		n *= int(s)
	}
	return safetensors.Data{Entry: safetensors.Entry{Name: name, DType: d, Shape: shape}, Bytes: make([]byte, n)}
}

func encoded(metadata map[string]string, all ...safetensors.Data) ([]byte, error) {
	var b bytes.Buffer
	err := safetensors.Encode(&b, all, metadata)
	return b.Bytes(), err
}

// prepare sends the conditioning and gives its digest.
func (a ask) prepare(ctx context.Context, w *webClient) (string, error) {
	blob, err := a.blob()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(blob)
	digest := hex.EncodeToString(sum[:])
	_, err = w.call(ctx, "PUT", "/v1/blobs/"+digest, blob)
	return digest, err
}

// forward makes one and says how long it took here and, of it, the cluster.
func (a ask) forward(ctx context.Context, w *webClient, digest, run string, step, branch int) (wall, cluster time.Duration, err error) {
	body, err := a.body(map[string]string{"run": run, "step": strconv.Itoa(step), "branch": strconv.Itoa(branch), "conditioning": digest})
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	answer, err := w.call(ctx, "POST", "/v1/deployments/"+a.deployment+"/forward", body)
	wall = time.Since(began)
	if err != nil {
		return 0, 0, err
	}
	f, err := safetensors.Parse(bytes.NewReader(answer))
	if err != nil {
		return 0, 0, err
	}
	var timing struct {
		Forward float64 `json:"forward_s"`
	}
	if err := json.Unmarshal([]byte(f.Metadata()["timing"]), &timing); err != nil {
		return 0, 0, err
	}
	return wall, time.Duration(timing.Forward * float64(time.Second)), nil
}

func (c *cluster) deploy(ctx context.Context, name, model, workload string, pins string) error {
	args := []string{"deploy", name, "--wait", "--model", model + ".safetensors", "--dtype", "f32", "--workload", workload}
	if pins != "" {
		args = append(args, "--pin", pins)
	}
	_, err := c.command(ctx, args...)
	return err
}

// overheadFigure is what a forward over HTTPS takes beyond the cluster's own
// part, for the bytes of FLUX.1 at 1024x1024.
func overheadFigure(ctx context.Context, o *options, r *report, c *cluster, w *webClient) error {
	f := fluxOf(narrowHidden, 1, 1, 1)
	if err := c.deploy(ctx, "narrow", "narrow", fmt.Sprintf("%dx%[1]d,tokens=%d", wideRequest, wideText), "a=2"); err != nil {
		return err
	}
	for _, d := range []tensor.DType{tensor.F32, tensor.BF16} {
		a := ask{"narrow", f, wideRequest, wideText, d}
		digest, err := a.prepare(ctx, w)
		if err != nil {
			return err
		}
		bytesBoth := 2 * 16 * 128 * 128 * int64(d.Size())
		var over, wires, walls, own []time.Duration
		for round := range o.rounds + 1 {
			wall, cluster, err := a.forward(ctx, w, digest, "overhead", round, 0)
			if err != nil {
				return err
			}
			wire, err := loopback(ctx, bytesBoth/2)
			if err != nil {
				return err
			}
			if round > 0 {
				over, wires, walls, own = append(over, wall-cluster-wire), append(wires, wire), append(walls, wall), append(own, cluster)
			}
		}
		r.figure(fmt.Sprintf("ms beyond the step and its bytes, x in %v", d), max(0, float64(median(over))/1e6), target{5, true},
			"%v to the client, %v of it the cluster's, %v for 2×%v over TLS; hidden %d, 1+1 blocks, 1024², %d tokens",
			median(walls).Round(time.Microsecond), median(own).Round(time.Microsecond), median(wires).Round(time.Microsecond), tensor.Bytes(bytesBoth/2), narrowHidden, wideText)
	}
	return nil
}

// pairFigure is a step at CFG 3 against one at CFG 1, on two equal stages.
func pairFigure(ctx context.Context, o *options, r *report, c *cluster, w *webClient) error {
	f := fluxOf(pairHidden, pairHidden/128, pairBlocks, pairBlocks)
	if err := c.deploy(ctx, "pair", "pair", fmt.Sprintf("%dx%[1]d,tokens=%d", pairPixels, pairText), fmt.Sprintf("a=%d,b=%[1]d", pairBlocks)); err != nil {
		return err
	}
	a := ask{"pair", f, pairPixels, pairText, tensor.F32}
	digest, err := a.prepare(ctx, w)
	if err != nil {
		return err
	}
	step := 0
	branches := func(n int) side {
		return func(ctx context.Context) (time.Duration, error) {
			step++
			began := time.Now()
			g, gctx := errgroup.WithContext(ctx)
			for branch := range n {
				g.Go(func() error {
					_, _, err := a.forward(gctx, w, digest, "pair", step, branch)
					return err
				})
			}
			err := g.Wait()
			return time.Since(began), err
		}
	}
	times, err := alternate(ctx, o.rounds, branches(1), branches(2))
	if err != nil {
		return err
	}
	r.figure("CFG 3 against CFG 1, two equal stages", medianRatio(times[0], times[1]), target{1.65, true}, "%s and %s per step; hidden %d, %d+%[4]d blocks, %d×%[5]d pixels, f32",
		seconds(median(times[1])), seconds(median(times[0])), pairHidden, pairBlocks, pairPixels)
	return nil
}

// loadFigure is many small forwards from many clients.
func loadFigure(ctx context.Context, r *report, c *cluster, w *webClient) error {
	f := loadModel()
	flops, err := flopsOf(f.Build(arch.Options{}), loadPixels, loadText)
	if err != nil {
		return err
	}
	if flops > loadFLOPs {
		return fmt.Errorf("the model of the load takes %.3g FLOP, more than %.3g", flops, loadFLOPs)
	}
	if err := c.deploy(ctx, "load", "load", fmt.Sprintf("%dx%[1]d,tokens=%d,in_flight=8", loadPixels, loadText), "a=2"); err != nil {
		return err
	}
	a := ask{"load", f, loadPixels, loadText, tensor.F32}
	digest, err := a.prepare(ctx, w)
	if err != nil {
		return err
	}
	var done, failed atomic.Int64
	var first error
	var once sync.Once
	var wg sync.WaitGroup
	began := time.Now()
	for client := range loadClients {
		wg.Go(func() {
			for step := 0; time.Since(began) < loadFor && ctx.Err() == nil; step++ {
				if _, _, err := a.forward(ctx, w, digest, fmt.Sprint("load", client), step, 0); err != nil {
					failed.Add(1)
					once.Do(func() { first = err })
					continue
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	rate := float64(done.Load()) / time.Since(began).Seconds()
	r.figure("forwards per second", rate, target{200, false}, "%d clients, %.2g MFLOP each, for %v; %d CPUs for all of it", loadClients, flops/1e6, loadFor, runtime.NumCPU())
	r.figure("errors of these", float64(failed.Load()), target{0, true}, "of %d", done.Load()+failed.Load())
	return first
}

// flopsOf is a whole forward.
func flopsOf(m *graph.Model, pixels, text int64) (float64, error) {
	p, err := specialise(m, tensor.F32, pixels, pixels, text)
	if err != nil {
		return 0, err
	}
	all := int64(0)
	add := func(s *graph.Segment, n int) {
		if s != nil {
			all += int64(n) * (s.Cost.LinearFLOPs + s.Cost.AttentionFLOPs)
		}
	}
	add(p.Head, 1)
	for _, run := range p.Runs {
		add(run.Entry, 1)
		add(run.Block, run.Count)
	}
	add(p.Tail, 1)
	if all < 0 || all == math.MaxInt64 {
		return 0, errors.New("the model's operations cannot be counted")
	}
	return float64(all), nil
}
