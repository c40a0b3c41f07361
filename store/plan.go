// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	distorchv1 "github.com/distorch/distorch/proto/distorch/v1"
)

// WritePlan writes a deployment's next plan: a copy of plan with the epoch after
// previous's. It happens only if l still leads (ErrNotLeader), the spec is the
// one that was read and the previous plan is still in place (ErrConflict).
// previous is the zero Entry if there is none.
func WritePlan(ctx context.Context, l *Leadership, spec Entry[*distorchv1.DeploymentSpec], previous Entry[*distorchv1.Plan], plan *distorchv1.Plan) (Entry[*distorchv1.Plan], error) {
	name := spec.Value.GetName()
	key := PlanKey(name)
	if SpecKey(name).name != spec.Key {
		return Entry[*distorchv1.Plan]{}, fmt.Errorf("write %s: the spec is that of %s", key, spec.Key)
	}
	next, ok := proto.Clone(plan).(*distorchv1.Plan)
	if !ok {
		return Entry[*distorchv1.Plan]{}, fmt.Errorf("write %s: cannot copy the plan", key)
	}
	next.Epoch = previous.Value.GetEpoch() + 1
	next.Generation = spec.Value.GetGeneration()
	revision, err := Fenced(ctx, l, key, next,
		Unchanged(SpecKey(name), spec.Revision),
		Unchanged(key, previous.Revision))
	if err != nil {
		return Entry[*distorchv1.Plan]{}, err
	}
	created := previous.Created
	if created == 0 {
		created = revision
	}
	return Entry[*distorchv1.Plan]{Key: key.name, Value: next, Revision: revision, Created: created}, nil
}

// DeletePlan removes the plan of a deployment whose spec is gone, under the
// rules of WritePlan.
func DeletePlan(ctx context.Context, l *Leadership, previous Entry[*distorchv1.Plan]) error {
	name := previous.Part(1)
	key := PlanKey(name)
	return FencedDelete(ctx, l, key, Unchanged(SpecKey(name), 0), Unchanged(key, previous.Revision))
}
