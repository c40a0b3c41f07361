// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/distorch/distorch/coordinator/comfy"
)

const (
	firstDelay  = 200 * time.Millisecond
	maxDelay    = 15 * time.Second
	callTimeout = 10 * time.Second
	infoTimeout = 60 * time.Second // packs with many models list their folders first
	patience    = 3                // polls in a row that may fail while the socket lives
	maxOrphans  = 1000
	maxNames    = 100_000
)

// worker is one registered ComfyUI. What is below api is guarded by the pool's
// mutex.
type worker struct {
	pool         *Pool
	registration Registration
	log          *slog.Logger
	stop         func()
	client       string // the client id that its socket has
	refresh      chan struct{}
	api          api

	live    bool
	refused bool // it refuses connections: its process is gone
	session int  // grows with each connection
	problem string
	classes map[string]class
	digest  [sha256.Size]byte // of the answer that classes come from
	listed  map[string]bool   // input files that its nodes offer
	stats   comfy.SystemStats
	foreign int // prompts in its queue that are not ours
	lease   *lease
	used    int64 // when it was last leased, in leases
	prompts int64
	lost    int64
	orphans []string      // prompts that were given up: to be withdrawn
	names   map[file]file // its output files: the coordinator's name
	sent    map[sent]file // input files that it was given: its name
}

// sent is an input file by name and content.
type sent struct {
	file file
	sum  string
}

// run connects and polls until ctx ends, waiting longer after each failure.
func (w *worker) run(ctx context.Context) error {
	delay := firstDelay
	for {
		began := time.Now()
		err := w.converse(ctx)
		w.down(err, ctx.Err() != nil)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > maxDelay {
			delay = firstDelay
		}
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
		delay = min(2*delay, maxDelay)
	}
}

// down records that a worker does not answer.
func (w *worker) down(err error, final bool) {
	p := w.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	wasLive := w.live
	w.live = false
	w.refused = final || errors.Is(err, syscall.ECONNREFUSED)
	if err != nil {
		w.problem = err.Error()
	}
	if w.lease != nil {
		w.lease.wake()
	}
	if wasLive {
		w.log.Warn("comfyui worker is gone", "error", err)
		p.offer()
		p.notify()
	}
}

// up records that a worker answers, and returns the prompts to withdraw.
func (w *worker) up() []string {
	p := w.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	w.live, w.refused, w.problem = true, false, ""
	w.session++
	clear(w.sent)
	orphans := w.orphans
	w.orphans = nil
	if w.lease != nil {
		w.lease.wake()
	}
	w.log.Info("comfyui worker answers", "url", w.registration.URL, "version", w.stats.System.ComfyUIVersion, "classes", len(w.classes))
	p.offer()
	p.notify()
	return orphans
}

// converse is one connection, from its begin to its end.
func (w *worker) converse(ctx context.Context) error {
	if err := w.examine(ctx); err != nil {
		return err
	}
	if err := w.learn(ctx); err != nil {
		return err
	}
	flags, err := w.api.features(ctx)
	if err != nil {
		return err
	}
	s, err := dial(ctx, w.pool.http, w.registration.URL, w.client, flags)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { // closes what the others read
		<-gctx.Done()
		s.close()
		return nil
	})
	g.Go(func() error { return w.listen(gctx, s) })
	g.Go(func() error { return w.ping(gctx, s) })
	g.Go(func() error {
		for _, id := range w.up() {
			if err := w.within(gctx, func(ctx context.Context) error { return w.api.withdraw(ctx, id) }); err != nil {
				w.log.Warn("withdraw prompt that was given up", "prompt_id", id, "error", err)
			}
		}
		return w.poll(gctx)
	})
	return g.Wait()
}

func (w *worker) within(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return call(ctx)
}

// listen hands frames to the lease of the moment.
func (w *worker) listen(ctx context.Context, s *socket) error {
	for {
		f, err := s.read(ctx)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		w.pool.mu.Lock()
		l := w.lease
		w.pool.mu.Unlock()
		if l == nil {
			continue
		}
		if err := l.hand(ctx, f); err != nil {
			return err
		}
	}
}

// ping finds out that a machine is gone without a word.
func (w *worker) ping(ctx context.Context, s *socket) error {
	t := time.NewTicker(w.pool.cfg.Silence / 3)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
		pctx, cancel := context.WithTimeout(ctx, w.pool.cfg.Silence)
		err := s.ping(pctx)
		cancel()
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("no answer to a ping in %v: %w", w.pool.cfg.Silence, err)
		}
	}
}

// poll looks at the worker's queue and classes from time to time.
func (w *worker) poll(ctx context.Context) error {
	t := time.NewTicker(w.pool.cfg.Poll)
	defer t.Stop()
	failed := 0
	learned := time.Now()
	for {
		again := false
		select {
		case <-t.C:
		case <-w.refresh:
			again = true
		case <-ctx.Done():
			return nil
		}
		err := w.examine(ctx)
		if err == nil && (again || time.Since(learned) >= w.pool.cfg.Refresh) {
			err = w.learn(ctx)
			learned = time.Now()
		}
		if err == nil {
			failed = 0
			continue
		}
		if failed++; failed >= patience && ctx.Err() == nil {
			return err
		}
	}
}

// examine asks for stats and queue.
func (w *worker) examine(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	raw, err := w.api.stats(ctx)
	if err != nil {
		return err
	}
	var stats comfy.SystemStats
	if err := json.Unmarshal(raw, &stats); err != nil {
		return fmt.Errorf("/system_stats: %w", err)
	}
	q, err := w.api.queue(ctx)
	if err != nil {
		return err
	}
	p := w.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	w.stats = stats
	w.foreign = len(q.running) + len(q.pending)
	if w.lease != nil && q.has(w.lease.promptID()) {
		w.foreign--
	}
	return nil
}

// learn asks for the node classes.
func (w *worker) learn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	raw, err := w.api.objectInfo(ctx)
	if err != nil {
		return err
	}
	p := w.pool
	p.mu.Lock()
	same := w.digest == sha256.Sum256(raw)
	p.mu.Unlock()
	if same {
		return nil
	}
	classes, err := parseClasses(raw)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	w.classes, w.digest, w.listed = classes, sha256.Sum256(raw), listedFiles(classes)
	if w.live {
		p.offer()
		p.notify()
	}
	return nil
}

// again asks for the node classes soon: the worker refused what they allow.
func (w *worker) again() {
	select {
	case w.refresh <- struct{}{}:
	default:
	}
}

// abandon remembers a prompt whose outcome nobody waits for any more.
func (w *worker) abandon(id string) {
	w.pool.mu.Lock()
	defer w.pool.mu.Unlock()
	w.lost++
	if id != "" && len(w.orphans) < maxOrphans {
		w.orphans = append(w.orphans, id)
	}
}
