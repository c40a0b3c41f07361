// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package patches

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/internal/digestdir"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph/wire"
	"github.com/distorch/distorch/model/lora"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
)

// Ensure returns when the deployment's plan that is loaded has all of the LoRAs,
// named by the SHA-256 of their files, which file finds. A deployment that lacks
// some gets them: its weights stay where they are, the LoRAs' are loaded beside
// them. Errors are gRPC's and name the one at fault: NotFound for a deployment,
// InvalidArgument for a file that is no list of patches or does not fit the
// model or the cluster, ResourceExhausted where others use all that a deployment
// may have, Unavailable for a deployment that is not loaded; an error of file is
// in the chain. When ctx ends, the error says what was waited for.
func (p *Patches) Ensure(ctx context.Context, deployment string, digests []string, file func(digest string) (string, error)) error {
	digests = unique(digests)
	for _, d := range digests {
		if err := digestdir.Check(d); err != nil {
			return status.Errorf(codes.InvalidArgument, "LoRA %v", err)
		}
	}
	if len(digests) == 0 {
		return nil
	}
	p.touch(deployment, digests)
	st, _, err := p.cfg.Deployments.State(ctx)
	if err != nil {
		return err
	}
	if ready, _, err := p.cfg.Deployments.Readiness(st, deployment); err != nil || ready && has(st.Plans[deployment].Value.GetLoras(), digests) {
		return err
	}
	defer p.want(digests)()
	done, err := p.turn(ctx, deployment)
	if err != nil {
		return late(err, "another change of the deployment's LoRAs", deployment)
	}
	defer done()
	defer func() { p.touch(deployment, digests) }() // a load may take long
	c := &change{Patches: p, deployment: deployment, digests: digests, file: file}
	c.refill()
	return c.run(ctx)
}

func unique(digests []string) (out []string) {
	for _, d := range digests {
		if !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	return out
}

// has says whether all digests are among a plan's or spec's LoRAs.
func has(loras []*pb.LoRA, digests []string) bool { return len(lacking(loras, digests)) == 0 }

func lacking(loras []*pb.LoRA, digests []string) (out []string) {
	for _, d := range digests {
		if !slices.ContainsFunc(loras, func(l *pb.LoRA) bool { return l.GetId() == d }) {
			out = append(out, d)
		}
	}
	return out
}

// late is the error of a wait that ctx ended.
func late(err error, what, deployment string) error {
	code := codes.Canceled
	if errors.Is(err, context.DeadlineExceeded) {
		code = codes.DeadlineExceeded
	}
	return status.Errorf(code, "LoRAs of deployment %s: waited for %s: %v", deployment, what, err)
}

// change is one call of Ensure that found something missing.
type change struct {
	*Patches
	deployment string
	digests    []string
	file       func(string) (string, error)

	added []string // by this call, and the brought LoRAs before
	was   []string
	at    int64 // revision of the spec that has them
}

func (c *change) run(ctx context.Context) error {
	for {
		st, newer, err := c.cfg.Deployments.State(ctx)
		if err != nil {
			return err
		}
		what := "the spec that has them"
		if st.Revision >= c.at {
			done, message, err := c.look(ctx, st)
			if done || err != nil {
				return err
			}
			what = message
		}
		select {
		case <-newer:
		case <-ctx.Done():
			return late(context.Cause(ctx), what, c.deployment)
		}
	}
}

// refill takes the files that a deployment has and that are not kept here, as
// after a loss of the folder; where the client has them no more either, the
// loaded plan does without.
func (c *change) refill() {
	for _, d := range c.digests {
		if c.files.Has(d) {
			continue
		}
		if from, err := c.file(d); err == nil {
			if _, release, err := c.files.Take(d, from); err == nil {
				release()
			}
		}
	}
}

// look takes the next step from a state, or says what is to be waited for.
func (c *change) look(ctx context.Context, st *store.State) (done bool, message string, err error) {
	ready, message, err := c.cfg.Deployments.Readiness(st, c.deployment)
	if err != nil {
		return false, "", err
	}
	spec, plan := st.Specs[c.deployment], st.Plans[c.deployment].Value
	current := plan.GetDeploymentId() == spec.Value.GetId() && plan.GetGeneration() == spec.Value.GetGeneration()
	switch missing := lacking(spec.Value.GetLoras(), c.digests); {
	case ready && len(missing) == 0:
		return true, "", nil
	case current && len(plan.GetStages()) == 0:
		return false, "", c.withdraw(ctx, spec, plan.GetInfeasible())
	case len(missing) > 0 && ready: // a load under way is not given up
		return false, "the leader to place it", c.add(ctx, spec, missing)
	}
	return false, message, nil
}

// withdraw takes back what this call added and does not fit after all.
func (c *change) withdraw(ctx context.Context, spec store.Entry[*pb.DeploymentSpec], why string) error {
	if len(c.added) == 0 {
		return status.Errorf(codes.Unavailable, "deployment %s is not placed: %s", c.deployment, why)
	}
	err := status.Errorf(codes.InvalidArgument, "with LoRA %v deployment %s does not run: %s", c.added, c.deployment, why)
	if _, undo := c.cfg.Deployments.Bring(ctx, c.deployment, c.was, spec.Revision); undo != nil {
		c.log.Warn("clients' LoRAs not taken back", "deployment", c.deployment, "error", undo)
	}
	return err
}

// add keeps the files, writes their records and gives the deployment the LoRAs.
func (c *change) add(ctx context.Context, spec store.Entry[*pb.DeploymentSpec], missing []string) error {
	next, err := c.choose(spec.Value, missing)
	if err != nil {
		return err
	}
	for _, d := range missing {
		if err := c.keep(ctx, d); err != nil {
			return err
		}
	}
	at, err := c.cfg.Deployments.Bring(ctx, c.deployment, next, spec.Revision)
	switch {
	case status.Code(err) == codes.Aborted: // somebody changed it: from the newer state again
		return nil
	case err != nil:
		return err
	}
	c.at, c.added, c.was = at, missing, brought(spec.Value)
	return nil
}

func brought(spec *pb.DeploymentSpec) (out []string) {
	for _, l := range spec.GetLoras() {
		if l.GetBrought() {
			out = append(out, l.GetId())
		}
	}
	return out
}

// choose is the digests that the deployment is to have: those that it has and
// somebody uses, then the new ones.
func (c *change) choose(spec *pb.DeploymentSpec, missing []string) ([]string, error) {
	now := brought(spec)
	own := len(spec.GetLoras()) - len(now)
	room := lora.MaxUses - own
	asked := len(missing)
	for _, d := range c.digests {
		if slices.Contains(now, d) {
			asked++
		}
	}
	if asked > room {
		return nil, status.Errorf(codes.InvalidArgument, "%d LoRAs beside the %d that deployment %s has of its own: at most %d", asked, own, c.deployment, lora.MaxUses)
	}
	next := slices.DeleteFunc(slices.Clone(now), func(d string) bool {
		return !slices.Contains(c.digests, d) && c.idle(c.deployment, d) > idleAfter
	})
	byAge := slices.SortedFunc(slices.Values(next), func(a, b string) int {
		return cmp.Compare(c.idle(c.deployment, b), c.idle(c.deployment, a))
	})
	for _, d := range byAge {
		if len(next)+len(missing) <= room {
			break
		}
		if !slices.Contains(c.digests, d) && c.idle(c.deployment, d) > busyFor {
			next = slices.DeleteFunc(next, func(x string) bool { return x == d })
		}
	}
	if len(next)+len(missing) > room {
		return nil, status.Errorf(codes.ResourceExhausted, "LoRA %s: deployment %s has %d LoRAs that clients used within %v, at most %d; try again later, or use another deployment",
			missing[0], c.deployment, own+len(next), busyFor, lora.MaxUses)
	}
	return append(next, missing...), nil
}

// keep takes a client's file and announces it.
func (c *change) keep(ctx context.Context, digest string) error {
	path, release, err := c.files.Use(digest)
	if errors.Is(err, digestdir.ErrMissing) || errors.Is(err, digestdir.ErrMismatch) {
		var from string
		if from, err = c.file(digest); err != nil {
			return fmt.Errorf("LoRA %s: %w", digest, err)
		}
		path, release, err = c.files.Take(digest, from)
	}
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "LoRA %s: %v", digest, err)
	}
	defer release()
	r, err := record(digest, path)
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "LoRA %s: %v", digest, err)
	}
	return c.cfg.Deployments.Announce(ctx, r)
}

// named is how many digits of a digest are its name to people.
const named = 16

func record(digest, path string) (*pb.ModelRecord, error) {
	f, err := checkpoint.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // was only read
	if _, ok := f.Metadata()[lora.PatchesKey]; !ok {
		return nil, fmt.Errorf("its metadata has no %s: a client sends a loader's patches, not a LoRA file", lora.PatchesKey)
	}
	return wire.LoRARecord(digest, digest[:named], f)
}
