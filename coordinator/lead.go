// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"context"
	"errors"
	"time"

	"github.com/distorch/distorch/coordinator/reconcile"
	"github.com/distorch/distorch/store"
)

const (
	firstRetry = 200 * time.Millisecond
	maxRetry   = 5 * time.Second
)

// lead stands for election again and again until ctx ends.
func (c *Coordinator) lead(ctx context.Context) error {
	delay := firstRetry
	for {
		l, err := c.cfg.Store.Campaign(ctx, c.id, c.cfg.LeaseTTL)
		if ctx.Err() != nil {
			if err == nil {
				l.Resign(ctx)
			}
			return nil
		}
		if err != nil {
			if errors.Is(err, store.ErrDenied) {
				return err
			}
			c.log.Warn("election interrupted", "error", err)
			if !wait(ctx, delay) {
				return nil
			}
			delay = min(2*delay, maxRetry)
			continue
		}
		delay = firstRetry
		c.log.Info("leading", "revision", l.Revision())
		c.reign(ctx, l)
		l.Resign(ctx)
		c.log.Info("no longer leading", "revision", l.Revision())
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// reign settles every new state until the leadership or ctx ends.
func (c *Coordinator) reign(ctx context.Context, l *store.Leadership) {
	c.poke()
	var retry <-chan time.Time
	delay := firstRetry
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.Done():
			return
		case <-retry:
		case <-c.changed:
		}
		retry = nil
		st := c.latest()
		if st == nil {
			continue
		}
		err := c.settle(ctx, l, st)
		switch {
		case err == nil:
			delay = firstRetry
		case ctx.Err() != nil, errors.Is(err, store.ErrNotLeader):
			return
		case errors.Is(err, store.ErrConflict):
			// Whoever was first changed the state: it comes by itself.
			c.log.Debug("plan overtaken", "error", err)
		default:
			c.log.Warn("plans not written", "error", err)
			retry = time.After(delay)
			delay = min(2*delay, maxRetry)
		}
	}
}

// settle makes the writes that a state lacks. Those of other deployments are
// made even if one is lost.
func (c *Coordinator) settle(ctx context.Context, l *store.Leadership, st *store.State) error {
	var errs []error
	for _, e := range reconcile.Step(c.snapshot(st)) {
		err := c.apply(ctx, l, st, e)
		if err != nil {
			errs = append(errs, err)
		}
		if errors.Is(err, store.ErrNotLeader) {
			break
		}
	}
	return errors.Join(errs...)
}

func (c *Coordinator) apply(ctx context.Context, l *store.Leadership, st *store.State, e reconcile.Effect) error {
	if e.Plan == nil {
		if err := store.DeletePlan(ctx, l, st.Plans[e.Deployment]); err != nil {
			return err
		}
		c.log.Info("plan deleted", "deployment", e.Deployment, "reason", e.Why)
		return nil
	}
	written, err := store.WritePlan(ctx, l, st.Specs[e.Deployment], st.Plans[e.Deployment], planToProto(e.Plan))
	if err != nil {
		return err
	}
	p := written.Value
	if p.Infeasible != "" {
		c.log.Warn("deployment has no room", "deployment", p.Deployment, "epoch", p.Epoch, "reason", e.Why, "infeasible", p.Infeasible)
	} else {
		c.log.Info("deployment placed", "deployment", p.Deployment, "epoch", p.Epoch, "reason", e.Why, "stages", len(p.Stages))
	}
	return nil
}
