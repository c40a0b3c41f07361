// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/distorch/distorch/bench/comfystack"
	"github.com/distorch/distorch/internal/comfyworker"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
	"github.com/distorch/distorch/transport/identity"
)

const (
	overlapPrompts = 4
	overlapSteps   = 4
	overlapSide    = 512 // pixels
)

// comfyOverlap is a queue of 4 prompts on one worker and on three. Denoising is
// real: every step of every worker's sampler is a forward of one deployment over
// the cluster's HTTPS endpoint. Text encoding and VAE are pauses, each half as long
// as denoising takes alone: the machines that would do them are not here.
func comfyOverlap(ctx context.Context, o *options, r *report) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	models, err := filepath.Abs("demo")
	if err != nil {
		return err
	}
	c, err := startCluster(ctx, o, models, 0, member{name: "gpu", threads: 1})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	if _, err := c.command(ctx, "deploy", "demo", "--wait", "--model", "demo.safetensors", "--workload", fmt.Sprintf("%dx%d,tokens=5", overlapSide, overlapSide)); err != nil {
		return err
	}
	d, err := newDenoiser(ctx, c)
	if err != nil {
		return err
	}
	defer d.http.CloseIdleConnections()
	began := time.Now()
	rounds := min(o.rounds, 3)
	for i := range rounds + 1 {
		if i == 1 {
			began = time.Now() // the first one warms up
		}
		for step := range overlapSteps {
			if err := d.step(ctx, fmt.Sprint("alone-", i), step); err != nil {
				return err
			}
		}
	}
	denoise := time.Since(began) / time.Duration(rounds)
	pause := denoise / 2
	var sides []side
	for _, workers := range []int{1, 3} {
		sides = append(sides, func(ctx context.Context) (time.Duration, error) { return d.queueOf(ctx, o, workers, pause) })
	}
	times, err := alternate(ctx, rounds, sides...)
	if err != nil {
		return err
	}
	ideal := pause + overlapPrompts*denoise + pause
	one, three := median(times[0]), median(times[1])
	r.note("denoising alone %s (%d forwards of the demo at %d x %d); text encoding and VAE are pauses of %s each", seconds(denoise), overlapSteps, overlapSide, overlapSide, seconds(pause))
	r.figure("queue of 4 on 3 workers against denoising alone", float64(three)/float64(ideal), target{want: 1.1, below: true},
		"%s; encode + 4 denoise + VAE are %s", seconds(three), seconds(ideal))
	r.figure("the same against one worker", float64(one)/float64(three), target{want: 1.4}, "%s on one worker; nothing overlaps there", seconds(one))
	return nil
}

// denoiser is a client of the endpoint.
type denoiser struct {
	http   *http.Client
	url    string
	secret string
}

func newDenoiser(ctx context.Context, c *cluster) (*denoiser, error) {
	line, err := c.command(ctx, "token", "create", "--client", "bench")
	if err != nil {
		return nil, err
	}
	text := strings.TrimSpace(string(line))
	if i := strings.Index(text, "distorch1."); i >= 0 {
		text = strings.Fields(text[i:])[0]
	}
	conn, err := identity.ParseConnection(text)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(conn.CA)
	d := &denoiser{
		http:   &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: identity.WebHost}, MaxIdleConnsPerHost: 8}, Timeout: time.Minute},
		url:    "https://" + conn.Addresses[0] + "/v1/deployments/demo/forward",
		secret: conn.Secret,
	}
	return d, d.known(ctx)
}

// known waits until the token has reached the endpoint.
func (d *denoiser) known(ctx context.Context) error {
	var err error
	for range 50 {
		if err = d.step(ctx, "first", 0); err == nil || !strings.Contains(err.Error(), "401") {
			return err
		}
		wait(ctx, 100*time.Millisecond)
	}
	return err
}

// step is one forward of a run.
func (d *denoiser) step(ctx context.Context, run string, step int) error {
	side := int64(overlapSide / 8)
	var all []safetensors.Data
	for name, shape := range map[string][]int64{"x": {1, 16, side, side}, "timestep": {1}, "context": {1, 5, 64}, "y": {1, 64}, "guidance": {1}} {
		n := int64(1)
		for _, s := range shape {
			n *= s
		}
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(math.Sin(float64(i + 1)))
		}
		if name == "timestep" {
			v[0] = 1 - float32(step)/overlapSteps
		}
		raw := make([]byte, 4*n)
		if err := tensor.PutFloats(raw, v, tensor.F32); err != nil {
			return err
		}
		all = append(all, safetensors.Data{Entry: safetensors.Entry{Name: name, DType: tensor.F32, Shape: shape}, Bytes: raw})
	}
	var body bytes.Buffer
	if err := safetensors.Encode(&body, all, map[string]string{"run": run, "step": strconv.Itoa(step)}); err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url, &body)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+d.secret)
	resp, err := d.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("forward: %d %.300s", resp.StatusCode, out)
	}
	return err
}

// queueOf is the time from the first prompt queued to the last one's end.
func (d *denoiser) queueOf(ctx context.Context, o *options, workers int, pause time.Duration) (took time.Duration, err error) {
	dir, err := os.MkdirTemp(o.dir, "comfy-")
	if err != nil {
		return 0, err
	}
	node := func(ctx context.Context, n comfyworker.Node, step int) error {
		switch n.Class {
		case "CLIPTextEncode", "VAEDecode":
			wait(ctx, pause)
		case "KSampler":
			return d.step(ctx, n.Prompt, step-1)
		}
		return nil
	}
	cfg := make([]comfyworker.Config, workers)
	for i := range cfg {
		cfg[i] = comfyworker.Config{Files: comfyFiles(), Node: node}
	}
	s, err := comfystack.Start(ctx, dir, nil, cfg...)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	c, err := newComfyClient(ctx, s.URL, "bench")
	if err != nil {
		return 0, err
	}
	defer c.conn.CloseNow() //nolint:errcheck // it is over
	began := time.Now()
	ids, err := c.queue(ctx, overlapPrompts, overlapSteps)
	if err != nil {
		return 0, err
	}
	all, err := c.listen(ctx, overlapPrompts, func(int) {})
	took = time.Since(began)
	if err != nil {
		return 0, err
	}
	results, twice, err := c.results(ctx, ids, all)
	if err == nil && (results != overlapPrompts || twice > 0) {
		var history json.RawMessage
		err = c.call(ctx, http.MethodGet, "/history", nil, &history)
		err = errors.Join(err, fmt.Errorf("%d results, %d twice: %.2000s", results, twice, history))
	}
	return took, err
}
