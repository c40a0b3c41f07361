// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distorch/distorch/coordinator/endpoint"
	"github.com/distorch/distorch/placement"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
)

// Status shows one deployment, or all.
func (c *Coordinator) Status(ctx context.Context, req *pb.StatusRequest) (*pb.StatusResponse, error) {
	st, err := c.read(ctx)
	if err != nil {
		return nil, err
	}
	names := slices.Sorted(maps.Keys(st.Specs))
	if name := req.GetName(); name != "" {
		if _, ok := st.Specs[name]; !ok {
			return nil, toStatus(unknownDeployment(st, name))
		}
		names = []string{name}
	}
	out := &pb.StatusResponse{}
	for _, name := range names {
		d := statusOf(st, name)
		if req.GetName() != "" && d.Ready {
			d.Stages = c.stats(ctx, d.Plan)
		}
		out.Deployments = append(out.Deployments, d)
	}
	out.Leader, err = c.cfg.Store.Leader(ctx)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, toStatus(err)
	}
	return out, nil
}

// statsTimeout bounds what a status waits for an agent.
const statsTimeout = 2 * time.Second

// stats asks the agents of a plan what its stages did; those that do not answer
// in time are left out.
func (c *Coordinator) stats(ctx context.Context, p *pb.Plan) []*pb.StageStats {
	if c.cfg.Stats == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	asked := map[string]bool{}
	var mu sync.Mutex
	var all []*pb.StageStats
	var wg sync.WaitGroup
	for _, s := range p.GetStages() {
		if asked[s.GetNode()] {
			continue
		}
		asked[s.GetNode()] = true
		wg.Go(func() {
			res, err := c.cfg.Stats(ctx, s.GetAddress(), s.GetNode(), &pb.StageStatsRequest{DeploymentId: p.GetDeploymentId()})
			if err != nil {
				c.log.Info("no statistics of stages", "node_id", s.GetNode(), "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, res.GetStages()...)
		})
	}
	wg.Wait()
	slices.SortFunc(all, func(a, b *pb.StageStats) int {
		return cmp.Or(cmp.Compare(a.GetStage(), b.GetStage()), cmp.Compare(a.GetNode(), b.GetNode()))
	})
	return all
}

// statusOf is a deployment that has a spec.
func statusOf(st *store.State, name string) *pb.DeploymentStatus {
	d := &pb.DeploymentStatus{Spec: st.Specs[name].Value, Plan: st.Plans[name].Value}
	for of, e := range st.Observed {
		if of.Of == name {
			d.Observed = append(d.Observed, e.Value)
		}
	}
	slices.SortFunc(d.Observed, func(a, b *pb.Observed) int { return cmp.Compare(a.GetNode(), b.GetNode()) })
	d.Ready, d.Message = readiness(st, d)
	return d
}

// readiness says whether every stage of the plan is loaded by the process that
// the plan means, or what is missing.
func readiness(st *store.State, d *pb.DeploymentStatus) (bool, string) {
	p := d.Plan
	switch {
	case p == nil:
		return false, "the leader has not placed it yet"
	case p.GetDeploymentId() != d.Spec.GetId() || p.GetGeneration() != d.Spec.GetGeneration():
		return false, fmt.Sprintf("the leader has not placed generation %d yet", d.Spec.GetGeneration())
	case len(p.GetStages()) == 0:
		return false, p.GetInfeasible()
	}
	var missing []string
	for i, s := range p.GetStages() {
		if what := stageState(st, p, s); what != "" {
			missing = append(missing, fmt.Sprintf("stage %d on %s: %s", i, s.GetNodeName(), what))
		}
	}
	if len(missing) > 0 {
		return false, strings.Join(missing, "; ")
	}
	return true, "ready"
}

// stageState is what keeps a stage from running, or nothing.
func stageState(st *store.State, p *pb.Plan, s *pb.Stage) string {
	n, ok := st.Nodes[s.GetNode()]
	switch {
	case !ok:
		return "the node left the cluster; start its agent again"
	case n.Value.GetIncarnation() != s.GetIncarnation():
		return "the node restarted"
	}
	o := st.Observed[store.NodeOf{Of: p.GetDeployment(), Node: s.GetNode()}].Value
	if o.GetDeploymentId() != p.GetDeploymentId() || o.GetEpoch() != p.GetEpoch() || o.GetIncarnation() != s.GetIncarnation() {
		return "it has not begun to load"
	}
	switch o.GetState() {
	case pb.Observed_READY:
		return ""
	case pb.Observed_LOADING:
		return fmt.Sprintf("loading, %s of %s", bytesText(o.GetLoadedBytes()), bytesText(o.GetTotalBytes()))
	case pb.Observed_FAILED:
		return "failed: " + short(o.GetMessage(), maxMessage)
	}
	return "it freed its memory"
}

func bytesText(n uint64) string { return placement.Bytes(n & (1<<63 - 1)).String() }

// Deployment implements endpoint.Plans.
func (c *Coordinator) Deployment(ctx context.Context, name string) (endpoint.Deployment, error) {
	select {
	case <-c.loaded:
	case <-ctx.Done():
		return endpoint.Deployment{}, toStatus(context.Cause(ctx))
	}
	st := c.latest()
	d, err := c.deployment(st, name)
	if err == nil && d.Ready {
		return d, nil
	}
	// Another coordinator may have answered from a newer state already.
	if st, err = c.cfg.Store.ReadState(ctx); err != nil {
		return endpoint.Deployment{}, toStatus(err)
	}
	d, err = c.deployment(st, name)
	return d, toStatus(err)
}

func (c *Coordinator) deployment(st *store.State, name string) (endpoint.Deployment, error) {
	if _, ok := st.Specs[name]; !ok {
		return endpoint.Deployment{}, unknownDeployment(st, name)
	}
	s := statusOf(st, name)
	d := endpoint.Deployment{Plan: s.Plan, Ready: s.Ready, Message: s.Message}
	g, err := c.deployedGraph(st, s.Plan, s.Spec.GetModel())
	d.Graph = g
	return d, err
}
