// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	distorchv1 "github.com/distorch/distorch/proto/distorch/v1"
)

// NodeOf names what one node says of a model or a deployment.
type NodeOf struct {
	Of   string // model id or deployment name
	Node string
}

// State is everything that the control plane decides from, at one revision.
// A State that was handed out is never changed.
type State struct {
	Revision int64
	Nodes    map[string]Entry[*distorchv1.NodeRecord]
	Links    map[string]Entry[*distorchv1.LinkRecord]
	Models   map[string]Entry[*distorchv1.ModelRecord]
	Holders  map[NodeOf]Entry[*distorchv1.HolderRecord]
	Specs    map[string]Entry[*distorchv1.DeploymentSpec]
	Plans    map[string]Entry[*distorchv1.Plan]
	Observed map[NodeOf]Entry[*distorchv1.Observed]
}

func newState() *State {
	return &State{
		Nodes:    map[string]Entry[*distorchv1.NodeRecord]{},
		Links:    map[string]Entry[*distorchv1.LinkRecord]{},
		Models:   map[string]Entry[*distorchv1.ModelRecord]{},
		Holders:  map[NodeOf]Entry[*distorchv1.HolderRecord]{},
		Specs:    map[string]Entry[*distorchv1.DeploymentSpec]{},
		Plans:    map[string]Entry[*distorchv1.Plan]{},
		Observed: map[NodeOf]Entry[*distorchv1.Observed]{},
	}
}

// clone copies the maps; the records are shared and never written to.
func (st *State) clone() *State {
	return &State{
		Revision: st.Revision,
		Nodes:    maps.Clone(st.Nodes),
		Links:    maps.Clone(st.Links),
		Models:   maps.Clone(st.Models),
		Holders:  maps.Clone(st.Holders),
		Specs:    maps.Clone(st.Specs),
		Plans:    maps.Clone(st.Plans),
		Observed: maps.Clone(st.Observed),
	}
}

// WatchState calls fn with the whole state, first as it is and then after every
// change, all of one transaction at once. It is for a coordinator: agents may
// not read everything. It ends like Watch.
func (s *Store) WatchState(ctx context.Context, fn func(*State) error) error {
	state := newState()
	return s.follow(ctx, root, func(b batch) error {
		next := newState()
		if !b.reset {
			next = state.clone()
		}
		changed := b.reset
		for _, key := range b.deleted {
			changed = next.drop(key) || changed
		}
		for _, kv := range b.put {
			known, err := next.put(kv)
			if err != nil {
				return err
			}
			changed = changed || known
		}
		next.Revision = b.revision
		state = next
		if !changed {
			return nil
		}
		return fn(state)
	})
}

// ReadState reads the whole state once.
func (s *Store) ReadState(ctx context.Context) (*State, error) {
	ctx, cancel := s.call(ctx)
	defer cancel()
	resp, err := s.client.Get(ctx, root, clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("read the cluster's state: %w", explain(err))
	}
	st := newState()
	st.Revision = resp.Header.Revision
	for _, kv := range resp.Kvs {
		if _, err := st.put(kv); err != nil {
			return nil, err
		}
	}
	return st, nil
}

func parts(key string) []string {
	return strings.Split(strings.TrimPrefix(key, root), "/")
}

// put takes a record in; keys of other kinds are not known.
func (st *State) put(kv *mvccpb.KeyValue) (known bool, err error) {
	p := parts(string(kv.Key))
	switch {
	case len(p) == 2 && p[0] == kindNodes:
		err = take(st.Nodes, p[1], kv)
	case len(p) == 2 && p[0] == kindLinks:
		err = take(st.Links, p[1], kv)
	case len(p) == 2 && p[0] == kindModels:
		err = take(st.Models, p[1], kv)
	case len(p) == 3 && p[0] == kindHolders:
		err = take(st.Holders, NodeOf{p[1], p[2]}, kv)
	case len(p) == 3 && p[0] == kindDeployments && p[2] == partSpec:
		err = take(st.Specs, p[1], kv)
	case len(p) == 3 && p[0] == kindDeployments && p[2] == partPlan:
		err = take(st.Plans, p[1], kv)
	case len(p) == 3 && p[0] == kindObserved:
		err = take(st.Observed, NodeOf{p[1], p[2]}, kv)
	default:
		return false, nil
	}
	return true, err
}

func take[K comparable, T proto.Message](m map[K]Entry[T], key K, kv *mvccpb.KeyValue) error {
	e, err := decode[T](kv)
	if err != nil {
		return err
	}
	m[key] = e
	return nil
}

func (st *State) drop(key string) (known bool) {
	p := parts(key)
	switch {
	case len(p) == 2 && p[0] == kindNodes:
		delete(st.Nodes, p[1])
	case len(p) == 2 && p[0] == kindLinks:
		delete(st.Links, p[1])
	case len(p) == 2 && p[0] == kindModels:
		delete(st.Models, p[1])
	case len(p) == 3 && p[0] == kindHolders:
		delete(st.Holders, NodeOf{p[1], p[2]})
	case len(p) == 3 && p[0] == kindDeployments && p[2] == partSpec:
		delete(st.Specs, p[1])
	case len(p) == 3 && p[0] == kindDeployments && p[2] == partPlan:
		delete(st.Plans, p[1])
	case len(p) == 3 && p[0] == kindObserved:
		delete(st.Observed, NodeOf{p[1], p[2]})
	default:
		return false
	}
	return true
}
