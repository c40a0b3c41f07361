// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const electionName = root + "leader"

// Leadership is a won election. Its revision is the fencing token: writes made
// through it happen only while this leader's key is still there.
type Leadership struct {
	store    *Store
	session  *concurrency.Session
	key      string
	revision int64
	once     sync.Once
}

// Campaign waits until this process leads or ctx ends. The lease of the
// leadership lives until Resign, or until ctx ends.
func (s *Store) Campaign(ctx context.Context, id string, ttl time.Duration) (*Leadership, error) {
	if ttl == 0 {
		ttl = DefaultLeaseTTL
	}
	session, err := s.session(ctx, ttl)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("campaign: %w", err)
	}
	l := &Leadership{store: s, session: session, key: fmt.Sprintf("%s/%x", electionName, session.Lease())}
	if err := l.campaign(session.Ctx(), id); err != nil {
		l.Resign(ctx)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("campaign: %w", explain(err))
	}
	return l, nil
}

// campaign queues up with a key under the lease and waits until every key that
// was created before it is gone.
func (l *Leadership) campaign(ctx context.Context, id string) error {
	name, err := encode(l.key, wrapperspb.String(id))
	if err != nil {
		return err
	}
	none := clientv3.Compare(clientv3.CreateRevision(l.key), "=", 0)
	l.revision, err = l.store.commit(ctx, "queue for the election", ErrExists, []clientv3.Cmp{none},
		clientv3.OpPut(l.key, name, clientv3.WithLease(l.session.Lease())))
	if err != nil {
		return err
	}
	for {
		before, from, err := l.predecessor(ctx)
		if err != nil || before == "" {
			return err
		}
		if err := l.store.waitDeleted(ctx, before, from); err != nil {
			return err
		}
	}
}

// predecessor returns the key that is next before this one, if any, and the
// revision to watch it from.
func (l *Leadership) predecessor(ctx context.Context) (string, int64, error) {
	ctx, cancel := l.store.call(ctx)
	defer cancel()
	resp, err := l.store.client.Get(ctx, electionName+"/", append(clientv3.WithLastCreate(), clientv3.WithMaxCreateRev(l.revision-1))...)
	if err != nil || len(resp.Kvs) == 0 {
		return "", 0, err
	}
	return string(resp.Kvs[0].Key), resp.Header.Revision + 1, nil
}

// waitDeleted returns when the key is deleted or the watch must be made anew.
func (s *Store) waitDeleted(ctx context.Context, key string, from int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for resp := range s.client.Watch(ctx, key, clientv3.WithRev(from)) {
		if resp.CompactRevision != 0 {
			return nil
		}
		if err := resp.Err(); err != nil {
			return err
		}
		for _, ev := range resp.Events {
			if ev.Type == mvccpb.Event_DELETE {
				return nil
			}
		}
	}
	return ctx.Err()
}

// Revision is the election's revision, which grows from leader to leader.
func (l *Leadership) Revision() int64 { return l.revision }

// Done is closed when the lease is known to be lost. Until then the leadership
// may already have gone to another; only a fenced write knows.
func (l *Leadership) Done() <-chan struct{} { return l.session.Done() }

// Resign gives the leadership up at once.
func (l *Leadership) Resign(ctx context.Context) {
	l.once.Do(func() {
		l.session.Orphan()
		l.store.revoke(context.WithoutCancel(ctx), l.session.Lease())
	})
}

func (l *Leadership) fence() clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(l.key), "=", l.revision)
}

// Condition is something that must still be so when a fenced write happens.
type Condition struct {
	cmp clientv3.Cmp
	key string
	err error
}

// Unchanged holds while a key has the revision that was read; revision 0 means
// that it does not exist.
func Unchanged[T proto.Message](key Key[T], revision int64) Condition {
	return Condition{cmp: clientv3.Compare(clientv3.ModRevision(key.name), "=", revision), key: key.name, err: key.err}
}

// Fenced writes a record if l still leads (ErrNotLeader) and every condition
// holds (ErrConflict).
func Fenced[T proto.Message](ctx context.Context, l *Leadership, key Key[T], value T, conditions ...Condition) (int64, error) {
	if key.err != nil {
		return 0, key.err
	}
	raw, err := encode(key.name, value)
	if err != nil {
		return 0, err
	}
	return l.commit(ctx, "write "+key.name, conditions, clientv3.OpPut(key.name, raw))
}

// FencedDelete removes a record under the same rules as Fenced.
func FencedDelete[T proto.Message](ctx context.Context, l *Leadership, key Key[T], conditions ...Condition) error {
	if key.err != nil {
		return key.err
	}
	_, err := l.commit(ctx, "delete "+key.name, conditions, clientv3.OpDelete(key.name))
	return err
}

func (l *Leadership) commit(ctx context.Context, what string, conditions []Condition, op clientv3.Op) (int64, error) {
	cmps := []clientv3.Cmp{l.fence()}
	for _, c := range conditions {
		if c.err != nil {
			return 0, c.err
		}
		cmps = append(cmps, c.cmp)
	}
	ctx, cancel := l.store.call(ctx)
	defer cancel()
	resp, err := l.store.client.Txn(ctx).If(cmps...).Then(op).Else(clientv3.OpGet(l.key)).Commit()
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, explain(err))
	}
	if resp.Succeeded {
		return resp.Header.Revision, nil
	}
	got := resp.Responses[0].GetResponseRange()
	if len(got.Kvs) == 0 || got.Kvs[0].CreateRevision != l.revision {
		return 0, fmt.Errorf("%s: %w", what, ErrNotLeader)
	}
	return 0, fmt.Errorf("%s: %w", what, ErrConflict)
}

// Leader returns the id of the process that leads; ErrNotFound if none does.
func (s *Store) Leader(ctx context.Context) (string, error) {
	ctx, cancel := s.call(ctx)
	defer cancel()
	resp, err := s.client.Get(ctx, electionName+"/", clientv3.WithFirstCreate()...)
	if err != nil {
		return "", fmt.Errorf("read the leader: %w", explain(err))
	}
	if len(resp.Kvs) == 0 {
		return "", fmt.Errorf("leader: %w", ErrNotFound)
	}
	e, err := decode[*wrapperspb.StringValue](resp.Kvs[0])
	return e.Value.GetValue(), err
}
