// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/distorch/distorch/model/lora"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
)

// State is the newest state that was followed, and a channel that is closed when
// there is a newer one.
func (c *Coordinator) State(ctx context.Context) (*store.State, <-chan struct{}, error) {
	select {
	case <-c.loaded:
	case <-ctx.Done():
		return nil, nil, toStatus(context.Cause(ctx))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state, c.newer, nil
}

// Readiness says whether a deployment's plan is the one of its spec and every
// stage of it is loaded, or what is missing; NOT_FOUND for a deployment that
// there is none of.
func (c *Coordinator) Readiness(st *store.State, deployment string) (ready bool, message string, err error) {
	if _, ok := st.Specs[deployment]; !ok {
		return false, "", toStatus(unknownDeployment(st, deployment))
	}
	d := statusOf(st, deployment)
	return d.GetReady(), d.GetMessage(), nil
}

// Bring makes the LoRAs that clients brought to a deployment exactly these, by
// the digests of their files, whose records must be there; those of an operator
// stay. The spec must have the revision that the choice was made from, else the
// error is ABORTED. A model that does not take the LoRAs, or a cluster that has
// no room for them, is an error that says so, and nothing has changed. It gives
// the revision at which the spec has them.
func (c *Coordinator) Bring(ctx context.Context, deployment string, digests []string, revision int64) (int64, error) {
	st, err := c.cfg.Store.ReadState(ctx)
	if err != nil {
		return 0, toStatus(err)
	}
	e, ok := st.Specs[deployment]
	switch {
	case !ok:
		return 0, toStatus(unknownDeployment(st, deployment))
	case e.Revision != revision:
		return 0, toStatus(fmt.Errorf("LoRAs of deployment %s: %w", deployment, store.ErrConflict))
	}
	in := proto.CloneOf(e.Value)
	in.Loras = slices.DeleteFunc(in.Loras, (*pb.LoRA).GetBrought)
	for _, d := range digests {
		in.Loras = append(in.Loras, &pb.LoRA{Id: d, Mode: string(lora.Add), Brought: true})
	}
	spec, p, err := c.propose(st, in)
	switch {
	case err != nil:
		return 0, toStatus(err)
	case p.Err != nil:
		return 0, toStatus(invalid("with these LoRAs: %w", p.Err))
	}
	// The same id: agents keep what they have loaded of the deployment.
	spec.Generation++
	at, err := store.Update(ctx, c.cfg.Store, store.SpecKey(deployment), spec, e.Revision)
	if err != nil {
		return 0, toStatus(fmt.Errorf("LoRAs of deployment %s: %w", deployment, err))
	}
	c.log.Info("clients' LoRAs changed", "deployment", deployment, "generation", spec.Generation, "loras", len(digests))
	return at, nil
}

// Announce writes the record of a client's LoRA where there is none.
func (c *Coordinator) Announce(ctx context.Context, r *pb.ModelRecord) error {
	_, err := store.Create(ctx, c.cfg.Store, store.ModelKey(r.GetId()), r)
	if errors.Is(err, store.ErrExists) {
		return nil
	}
	return toStatus(err)
}

// Forget removes the record of a client's LoRA, if it is still of the revision.
func (c *Coordinator) Forget(ctx context.Context, id string, revision int64) error {
	err := store.Delete(ctx, c.cfg.Store, store.ModelKey(id), revision)
	if errors.Is(err, store.ErrConflict) {
		return nil
	}
	return toStatus(err)
}

// byOperator is a spec as an operator sends it: none of its LoRAs are a client's.
// Those that were, in a spec that was read and is sent again, come back with
// their clients' forwards.
func byOperator(st *store.State, in *pb.DeploymentSpec) *pb.DeploymentSpec {
	if in == nil {
		return nil
	}
	out := proto.CloneOf(in)
	before := st.Specs[in.GetName()].Value.GetLoras()
	out.Loras = slices.DeleteFunc(out.Loras, func(l *pb.LoRA) bool {
		l.Brought = false
		return slices.ContainsFunc(before, func(b *pb.LoRA) bool { return b.GetBrought() && b.GetId() == l.GetId() }) && !held(st, l.GetId())
	})
	return out
}

// held says whether a node has a file in its folders.
func held(st *store.State, id string) bool {
	for of := range st.Holders {
		if of.Of == id {
			return true
		}
	}
	return false
}
