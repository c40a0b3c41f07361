// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package comfystack is ComfyUI's API of the coordinator with scripted workers
// behind it, on loopback, for benchmarks and for other programs' clients.
//
// bench and its programs import it.
package comfystack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/distorch/distorch/coordinator/comfy"
	"github.com/distorch/distorch/coordinator/comfy/pool"
	"github.com/distorch/distorch/internal/comfyworker"
)

// Stack is what Start started.
type Stack struct {
	URL     string
	Pool    *pool.Pool
	Workers []*comfyworker.Worker

	cancel context.CancelFunc
	group  *errgroup.Group
}

// Start starts a worker for each configuration and the API in front of them, and
// waits until all are there. Files are kept in dir; log may be nil.
func Start(ctx context.Context, dir string, log io.Writer, workers ...comfyworker.Config) (_ *Stack, err error) {
	s := &Stack{}
	var urls []string
	for _, cfg := range workers {
		w, err := comfyworker.Start(cfg)
		if err != nil {
			return nil, errors.Join(err, s.Stop())
		}
		s.Workers = append(s.Workers, w)
		urls = append(urls, w.URL())
	}
	if err := s.serve(ctx, dir, log, urls); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// Over starts the API in front of ComfyUIs that run already.
func Over(ctx context.Context, dir string, log io.Writer, urls ...string) (*Stack, error) {
	s := &Stack{}
	if err := s.serve(ctx, dir, log, urls); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

func (s *Stack) serve(ctx context.Context, dir string, log io.Writer, urls []string) (err error) {
	var all []pool.Registration
	for i, u := range urls {
		u, err := pool.ParseURL(u)
		if err != nil {
			return err
		}
		all = append(all, pool.Registration{Name: fmt.Sprint("worker-", i+1), URL: u})
	}
	logger := slog.New(slog.DiscardHandler)
	if log != nil {
		logger = slog.New(slog.NewTextHandler(log, nil))
	}
	s.Pool, err = pool.New(pool.Config{
		Dir: filepath.Join(dir, "files"), Log: logger, Poll: 100 * time.Millisecond,
		Workers: func(ctx context.Context, fn func([]pool.Registration)) error {
			fn(all)
			<-ctx.Done()
			return nil
		},
	})
	if err != nil {
		return err
	}
	server, err := comfy.New(comfy.Config{Backend: s.Pool, Dir: dir, Log: logger})
	if err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.URL = "http://" + l.Addr().String()
	ctx, s.cancel = context.WithCancel(ctx)
	s.group, ctx = errgroup.WithContext(ctx)
	s.group.Go(func() error { return s.Pool.Run(ctx) })
	s.group.Go(func() error { return server.Run(ctx, l) })
	return s.ready(ctx, len(urls))
}

func (s *Stack) ready(ctx context.Context, workers int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		changed := s.Pool.Changed()
		live := 0
		for _, w := range s.Pool.State() {
			if w.Live {
				live++
			}
		}
		if live == workers {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d workers answered: %w", live, workers, context.Cause(ctx))
		}
	}
}

// Stop ends all of it.
func (s *Stack) Stop() error {
	var err error
	if s.cancel != nil {
		s.cancel()
		err = s.group.Wait()
	}
	for _, w := range s.Workers {
		w.Kill()
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
