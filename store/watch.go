// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

const (
	firstWatchDelay = 100 * time.Millisecond
	maxWatchDelay   = 5 * time.Second
)

// Change is what a watch tells. The first one is a reset.
type Change[T proto.Message] struct {
	// Reset: Entries are all the records there are; forget what was known. It
	// comes first, and again whenever the history was compacted away while the
	// connection was down.
	Reset bool
	// Entries were created or changed, or are all of them after a reset.
	Entries []Entry[T]
	// Deleted keys.
	Deleted []string
	// Revision up to which the receiver now knows everything.
	Revision int64
}

// Watch reads the records under a prefix and follows them from the revision of
// that read, so that nothing falls between. It calls fn in order of revision,
// from one goroutine, until ctx ends (nil) or fn fails (its error). Broken
// connections are repaired, with a log line.
func Watch[T proto.Message](ctx context.Context, s *Store, prefix Prefix[T], fn func(Change[T]) error) error {
	if prefix.err != nil {
		return prefix.err
	}
	return s.follow(ctx, prefix.name, func(b batch) error {
		c := Change[T]{Reset: b.reset, Revision: b.revision}
		for _, kv := range b.put {
			if !prefix.match(string(kv.Key)) {
				continue
			}
			e, err := decode[T](kv)
			if err != nil {
				return err
			}
			c.Entries = append(c.Entries, e)
		}
		for _, key := range b.deleted {
			if prefix.match(key) {
				c.Deleted = append(c.Deleted, key)
			}
		}
		if !c.Reset && len(c.Entries) == 0 && len(c.Deleted) == 0 {
			return nil
		}
		return fn(c)
	})
}

// batch is the changes of whole revisions: never a part of a transaction.
type batch struct {
	reset    bool
	put      []*mvccpb.KeyValue
	deleted  []string
	revision int64
}

// stopError carries an error of fn through the loop that repairs connections.
type stopError struct{ err error }

func (e *stopError) Error() string { return e.err.Error() }

func (s *Store) follow(ctx context.Context, prefix string, fn func(batch) error) error {
	delay := firstWatchDelay
	var next int64 // revision to watch from; 0: a snapshot is needed
	for {
		progressed, err := s.followOnce(ctx, prefix, &next, fn)
		var stop *stopError
		switch {
		case errors.As(err, &stop):
			return stop.err
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrDenied):
			return fmt.Errorf("watch %s: %w", prefix, err)
		}
		s.logger.Warn("watch interrupted", "prefix", prefix, "error", err)
		if progressed {
			delay = firstWatchDelay
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		delay = min(2*delay, maxWatchDelay)
	}
}

// followOnce takes a snapshot if next is 0 and watches until the stream breaks.
func (s *Store) followOnce(ctx context.Context, prefix string, next *int64, fn func(batch) error) (progressed bool, _ error) {
	if *next == 0 {
		cctx, cancel := s.call(ctx)
		resp, err := s.client.Get(cctx, prefix, clientv3.WithPrefix())
		cancel()
		if err != nil {
			return false, explain(err)
		}
		if err := fn(batch{reset: true, put: resp.Kvs, revision: resp.Header.Revision}); err != nil {
			return true, &stopError{err}
		}
		*next, progressed = resp.Header.Revision+1, true
	}
	wctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	// Without WithFragment a response holds all events of its revisions.
	for resp := range s.client.Watch(wctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(*next)) {
		if resp.CompactRevision != 0 {
			*next = 0
		}
		if err := resp.Err(); err != nil {
			return progressed, explain(err)
		}
		if len(resp.Events) == 0 {
			continue
		}
		b := batch{revision: resp.Header.Revision}
		seen := map[string]int{}
		for i, ev := range resp.Events {
			seen[string(ev.Kv.Key)] = i
		}
		for i, ev := range resp.Events {
			switch {
			case seen[string(ev.Kv.Key)] != i: // a later event of this response replaces it
			case ev.Type == mvccpb.Event_DELETE:
				b.deleted = append(b.deleted, string(ev.Kv.Key))
			default:
				b.put = append(b.put, ev.Kv)
			}
		}
		// The header may be ahead of the events: more of them follow.
		b.revision = resp.Events[len(resp.Events)-1].Kv.ModRevision
		if err := fn(b); err != nil {
			return true, &stopError{err}
		}
		*next, progressed = b.revision+1, true
	}
	return progressed, errors.New("stream ended")
}
