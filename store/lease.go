// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/protobuf/proto"
)

const (
	// DefaultLeaseTTL outlives a change of etcd's leader.
	DefaultLeaseTTL = 30 * time.Second

	revokeTimeout   = 2 * time.Second
	minLeaseTTL     = time.Second
	leaseRetryFirst = 200 * time.Millisecond
	leaseRetryMost  = 5 * time.Second
)

// LeaseConfig configures a Lease. Callbacks run on Run's goroutine.
type LeaseConfig struct {
	TTL time.Duration // DefaultLeaseTTL if zero
	// OnRegister is called after every registration, with true if a lease was
	// lost before, so that others may have thought this process gone.
	OnRegister func(again bool)
}

// Lease keeps a set of records in etcd as long as this process lives. When the
// lease is lost (etcd was away for longer than the TTL), a new one is made and
// every record is written again.
type Lease struct {
	store *Store
	cfg   LeaseConfig
	// writing is held over each write, so that a slow one cannot undo a newer.
	writing chan struct{}

	mu      sync.Mutex
	want    map[string]string // key → value
	id      clientv3.LeaseID  // 0: none at the moment
	changed chan struct{}     // closed and replaced when id changes
}

// NewLease returns a set of records; Run keeps it.
func (s *Store) NewLease(cfg LeaseConfig) (*Lease, error) {
	if cfg.TTL == 0 {
		cfg.TTL = DefaultLeaseTTL
	}
	if cfg.TTL < minLeaseTTL || cfg.TTL%time.Second != 0 {
		return nil, fmt.Errorf("lease of %v: use whole seconds, at least %v", cfg.TTL, minLeaseTTL)
	}
	return &Lease{
		store: s, cfg: cfg, writing: make(chan struct{}, 1),
		want: map[string]string{}, changed: make(chan struct{}),
	}, nil
}

// PutLeased sets a record of the set and returns when etcd has it or the call's
// time is up. Either way it stays in the set: it is written with the next lease.
func PutLeased[T proto.Message](ctx context.Context, l *Lease, key Key[T], value T) error {
	if key.err != nil {
		return key.err
	}
	raw, err := encode(key.name, value)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.want[key.name] = raw
	l.mu.Unlock()
	return l.put(ctx, key.name)
}

// DeleteLeased takes a record out of the set and out of etcd.
func DeleteLeased[T proto.Message](ctx context.Context, l *Lease, key Key[T]) error {
	if key.err != nil {
		return key.err
	}
	ctx, cancel := l.store.call(ctx)
	defer cancel()
	if err := l.enter(ctx, key.name); err != nil {
		return err
	}
	defer l.leave()
	l.mu.Lock()
	delete(l.want, key.name)
	l.mu.Unlock()
	return Delete(ctx, l.store, key, 0)
}

func (l *Lease) enter(ctx context.Context, key string) error {
	select {
	case l.writing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("write %s: %w", key, context.Cause(ctx))
	}
}

func (l *Lease) leave() { <-l.writing }

func (l *Lease) put(ctx context.Context, key string) error {
	ctx, cancel := l.store.call(ctx)
	defer cancel()
	for {
		changed, err := l.tryPut(ctx, key)
		if err != nil || changed == nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("write %s: no lease: %w", key, context.Cause(ctx))
		}
	}
}

// tryPut writes what is wanted now. Without a lease it returns what to wait for.
func (l *Lease) tryPut(ctx context.Context, key string) (<-chan struct{}, error) {
	if err := l.enter(ctx, key); err != nil {
		return nil, err
	}
	defer l.leave()
	l.mu.Lock()
	id, changed := l.id, l.changed
	value, wanted := l.want[key]
	l.mu.Unlock()
	switch {
	case !wanted:
		return nil, nil
	case id == 0:
		return changed, nil
	}
	_, err := l.store.client.Put(ctx, key, value, clientv3.WithLease(id))
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return changed, nil
	}
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", key, explain(err))
	}
	return nil, nil
}

// Run registers and keeps the records until ctx ends, then takes them back (if
// etcd cannot be reached then, they go when the lease ends). A record that this machine may not write ends it with ErrDenied.
func (l *Lease) Run(ctx context.Context) error {
	delay := leaseRetryFirst
	for again := false; ; {
		registered, err := l.hold(ctx, again)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, ErrDenied) {
			return fmt.Errorf("register: %w", err)
		}
		if registered {
			again, delay = true, leaseRetryFirst
		}
		l.store.logger.Warn("lease lost, registering again", "error", err, "delay", delay)
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		delay = min(2*delay, leaseRetryMost)
	}
}

// hold makes a lease, writes every record and waits until the lease is gone.
func (l *Lease) hold(ctx context.Context, again bool) (registered bool, _ error) {
	session, err := l.store.session(ctx, l.cfg.TTL)
	if err != nil {
		return false, err
	}
	defer func() {
		l.setID(0)
		session.Orphan()
		if ctx.Err() != nil {
			l.store.revoke(context.WithoutCancel(ctx), session.Lease())
		}
	}()
	l.setID(session.Lease())
	l.mu.Lock()
	keys := make([]string, 0, len(l.want))
	for k := range l.want {
		keys = append(keys, k)
	}
	l.mu.Unlock()
	slices.Sort(keys)
	for _, k := range keys {
		if err := l.put(session.Ctx(), k); err != nil {
			return false, err
		}
	}
	if l.cfg.OnRegister != nil {
		l.cfg.OnRegister(again)
	}
	select {
	case <-session.Done():
		return true, errors.New("etcd ended the lease")
	case <-ctx.Done():
		return true, ctx.Err()
	}
}

func (l *Lease) setID(id clientv3.LeaseID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.id = id
	close(l.changed)
	l.changed = make(chan struct{})
}

// session grants a lease within the call's time; it then lives until ctx ends.
func (s *Store) session(ctx context.Context, ttl time.Duration) (*concurrency.Session, error) {
	cctx, cancel := s.call(ctx)
	defer cancel()
	lease, err := s.client.Grant(cctx, int64(ttl/time.Second))
	if err != nil {
		return nil, fmt.Errorf("make a lease: %w", explain(err))
	}
	session, err := concurrency.NewSession(s.client, concurrency.WithLease(lease.ID), concurrency.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("keep a lease: %w", explain(err))
	}
	if session == nil {
		return nil, fmt.Errorf("keep a lease: %w", ErrUnavailable)
	}
	return session, nil
}

// revoke is a courtesy: the lease ends by itself.
func (s *Store) revoke(ctx context.Context, id clientv3.LeaseID) {
	ctx, cancel := context.WithTimeout(ctx, revokeTimeout)
	defer cancel()
	if _, err := s.client.Revoke(ctx, id); err != nil {
		s.logger.Debug("lease not revoked", "error", explain(err))
	}
}
