// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/distorch/distorch/coordinator"
	"github.com/distorch/distorch/coordinator/comfy"
	"github.com/distorch/distorch/coordinator/comfy/pool"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
)

// comfyAPI is ComfyUI's own API and the workers behind it. Without an address to
// listen on it registers workers and does nothing else.
type comfyAPI struct {
	server   *comfy.Server
	pool     *pool.Pool
	listener net.Listener

	mu      sync.Mutex
	cluster *coordinator.Coordinator // that has the models; nil before it is there
}

// comfy opens the port that the configuration names, if it names one.
func (c Coordinator) comfy(ctx context.Context, st *store.Store) (_ *comfyAPI, err error) {
	a, cfg := &comfyAPI{}, c.Config.Comfy
	if cfg.Listen == "" {
		return a, nil
	}
	allow, err := cfg.Networks()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(c.Dir.Path(), "comfy")
	a.pool, err = pool.New(pool.Config{
		Workers: pool.Registered(st), Models: a.models, Dir: filepath.Join(dir, "files"), Storage: int64(cfg.Storage), Log: c.Log,
	})
	if err != nil {
		return nil, room(c.Dir, err)
	}
	a.server, err = comfy.New(comfy.Config{Backend: a.pool, Dir: dir, Allow: allow, Origins: cfg.Origins, Log: c.Log})
	if err != nil {
		return nil, room(c.Dir, err)
	}
	var lc net.ListenConfig
	a.listener, err = lc.Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for ComfyUI's clients (comfy.listen): %w", err)
	}
	return a, nil
}

func (a *comfyAPI) run(ctx context.Context) error {
	if a.pool == nil {
		return nil
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.pool.Run(gctx) })
	g.Go(func() error { return a.server.Run(gctx, a.listener) })
	return g.Wait()
}

// close gives the port back, if run has not.
func (a *comfyAPI) close() {
	if a.listener != nil {
		_ = a.listener.Close() //nolint:errcheck // it may be closed already
	}
}

// serve says whose models loaders can run.
func (a *comfyAPI) serve(co *coordinator.Coordinator) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cluster = co
}

func (a *comfyAPI) models() (out []pool.Model) {
	a.mu.Lock()
	co := a.cluster
	a.mu.Unlock()
	if co == nil {
		return nil
	}
	for _, m := range co.ModelFiles() {
		out = append(out, pool.Model{File: m.File, Deployment: m.Deployment})
	}
	return out
}

// Parse implements coordinator.ComfyWorkers.
func (a *comfyAPI) Parse(url string) (string, error) { return pool.ParseURL(url) }

// Probe implements coordinator.ComfyWorkers.
func (a *comfyAPI) Probe(ctx context.Context, url string) (string, error) {
	return pool.Probe(ctx, url)
}

// States implements coordinator.ComfyWorkers.
func (a *comfyAPI) States() (workers map[string]*pb.ComfyWorker, listen string) {
	if a.pool == nil {
		return nil, ""
	}
	workers = map[string]*pb.ComfyWorker{}
	for _, s := range a.pool.State() {
		workers[s.Name] = s.Proto()
	}
	return workers, a.listener.Addr().String()
}
