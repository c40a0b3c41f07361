// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/distorch/distorch/coordinator/reconcile"
	"github.com/distorch/distorch/model/lora"
	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/allocation"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
	"github.com/distorch/distorch/transport/identity"
)

const (
	maxInFlight = 64
	maxPins     = 1024
	latency     = "latency"
)

func isNotFound(err error) bool { return status.Code(err) == codes.NotFound }

// Plan says what a deployment would look like, and changes nothing. A model
// that fits nowhere gives a plan that says so.
func (c *Coordinator) Plan(ctx context.Context, req *pb.PlanRequest) (*pb.PlanResponse, error) {
	st, err := c.read(ctx)
	if err != nil {
		return nil, err
	}
	_, p, err := c.propose(st, byOperator(st, req.GetSpec()))
	if err != nil {
		return nil, toStatus(err)
	}
	out := &pb.PlanResponse{Plan: planToProto(&p.Plan), Explanation: p.Explanation}
	if p.Err != nil {
		out.Explanation = p.Err.Error() + "\n"
	}
	if p.Report != nil {
		if out.Report, err = json.Marshal(p.Report); err != nil {
			return nil, toStatus(fmt.Errorf("plan: %w", err))
		}
	}
	return out, nil
}

// Deploy writes what the operator wants: a new deployment, or the next
// generation of one. The leader places it.
func (c *Coordinator) Deploy(ctx context.Context, req *pb.DeployRequest) (*pb.DeployResponse, error) {
	st, err := c.read(ctx)
	if err != nil {
		return nil, err
	}
	name := req.GetSpec().GetName()
	if err := identity.ValidName(name); req.GetSpec() != nil && err != nil {
		return nil, toStatus(invalid("deployment: %w", err))
	}
	spec, _, err := c.propose(st, byOperator(st, req.GetSpec()))
	if err != nil {
		return nil, toStatus(err)
	}
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, toStatus(fmt.Errorf("draw a deployment id: %w", err))
	}
	before := st.Specs[name]
	client, _ := Client(ctx)
	spec.Client = client
	switch {
	case req.GetIfChanged() && sameSpec(before.Value, req.GetSpec(), spec):
		return &pb.DeployResponse{Spec: before.Value}, nil
	case client != "" && before.Value != nil && before.Value.GetClient() == "":
		return nil, toStatus(notTheClients(client, name))
	}
	spec.Generation, spec.Id = before.Value.GetGeneration()+1, hex.EncodeToString(id[:])
	_, err = store.Update(ctx, c.cfg.Store, store.SpecKey(name), spec, before.Revision)
	if errors.Is(err, store.ErrConflict) {
		err = fmt.Errorf("deployment %s: someone else changed it at the same time; look at it and try again: %w", name, err)
	}
	if err != nil {
		return nil, toStatus(err)
	}
	c.log.Info("deployment changed", "deployment", name, "generation", spec.Generation, "model", spec.ModelName)
	return &pb.DeployResponse{Spec: spec}, nil
}

// Undeploy removes a deployment; its plan follows and agents free its memory.
func (c *Coordinator) Undeploy(ctx context.Context, req *pb.UndeployRequest) (*pb.UndeployResponse, error) {
	st, err := c.read(ctx)
	if err != nil {
		return nil, err
	}
	name := req.GetName()
	e, ok := st.Specs[name]
	if !ok {
		return nil, toStatus(unknownDeployment(st, name))
	}
	if client, ok := Client(ctx); ok && e.Value.GetClient() == "" {
		return nil, toStatus(notTheClients(client, name))
	}
	if err := store.Delete(ctx, c.cfg.Store, store.SpecKey(name), e.Revision); err != nil {
		return nil, toStatus(fmt.Errorf("undeploy %s: %w", name, err))
	}
	c.log.Info("deployment removed", "deployment", name)
	return &pb.UndeployResponse{}, nil
}

func notTheClients(client, name string) error {
	return fmt.Errorf("client %s: %w: deployment %s was made by an operator; use another name, or ask an operator to change it", client, errForbidden, name)
}

// sameSpec says whether a spec, as asked for and as completed, wants what the
// stored one does. What was left open stays as it was chosen.
func sameSpec(before, asked, spec *pb.DeploymentSpec) bool {
	if before == nil {
		return false
	}
	want := proto.CloneOf(spec)
	want.Generation, want.Id, want.Client = before.GetGeneration(), before.GetId(), before.GetClient()
	for _, l := range before.GetLoras() { // come and go with forwards
		if l.GetBrought() {
			want.Loras = append(want.Loras, l)
		}
	}
	if asked.GetDtype() == "" {
		want.Dtype = before.GetDtype()
	}
	if asked.GetWorkload().GetInFlight() == 0 {
		want.Workload.InFlight = before.GetWorkload().GetInFlight()
	}
	return proto.Equal(before, want)
}

// propose checks a spec, completes it and places it. The error is for specs
// that no cluster could meet; lack of room is in the proposal.
func (c *Coordinator) propose(st *store.State, in *pb.DeploymentSpec) (*pb.DeploymentSpec, *reconcile.Proposal, error) {
	spec, ok := proto.Clone(in).(*pb.DeploymentSpec)
	if !ok || in == nil {
		return nil, nil, invalid("the request has no deployment")
	}
	if err := checkSpec(spec); err != nil {
		return nil, nil, err
	}
	id, err := resolve(st, "model", cmp.Or(spec.GetModel(), spec.GetModelName()))
	if err != nil {
		return nil, nil, err
	}
	if err := completeLoRAs(st, spec); err != nil {
		return nil, nil, err
	}
	spec.Model, spec.ModelName, spec.Objective = id, st.Models[id].Value.GetName(), latency
	for _, p := range spec.Pins {
		if err := knownNode(st, p.GetNode()); err != nil {
			return nil, nil, err
		}
	}
	for _, node := range spec.Excludes {
		if err := knownNode(st, node); err != nil {
			return nil, nil, fmt.Errorf("exclude: %w", err)
		}
	}
	s := c.snapshot(st)
	p := reconcile.Propose(s, specFromProto(spec.GetName(), spec))
	if p.Err != nil && !reconcile.Infeasible(p.Err) {
		return nil, nil, &InvalidError{p.Err}
	}
	if spec.Workload == nil {
		spec.Workload = &pb.Workload{}
	}
	spec.Workload.InFlight, spec.Dtype = uint32(p.Plan.Workload.InFlight), p.Plan.DType
	return spec, &p, nil
}

// checkSpec checks what can be checked without the cluster.
func checkSpec(s *pb.DeploymentSpec) error {
	if o := s.GetObjective(); o != "" && o != latency {
		return invalid("objective %q: this version places for %s", o, latency)
	}
	switch s.GetDtype() {
	case "", "f32", "bf16":
	default:
		return invalid("compute dtype %q: use f32 or bf16", s.GetDtype())
	}
	if n := s.GetWorkload().GetInFlight(); n > maxInFlight {
		return invalid("%d forwards in flight: use 1 to %d", n, maxInFlight)
	}
	if len(s.GetPins()) > maxPins || len(s.GetExcludes()) > maxPins {
		return invalid("%d pins and %d excludes: at most %d of each", len(s.GetPins()), len(s.GetExcludes()), maxPins)
	}
	if err := checkModes(s); err != nil {
		return err
	}
	for _, p := range s.GetPins() {
		if p.GetBlocks() > 1<<20 || p.GetFirstBlock() > 1<<20 {
			return invalid("pin of node %q: no model has block %d", p.GetNode(), uint64(p.GetFirstBlock())+uint64(p.GetBlocks()))
		}
	}
	return nil
}

// checkModes checks what a deployment says of where blocks rest.
func checkModes(s *pb.DeploymentSpec) error {
	switch s.GetFit() {
	case "", string(placement.FitFallback), string(placement.FitStrict):
	default:
		return invalid("fit %q: use fallback or strict", s.GetFit())
	}
	switch s.GetStorage() {
	case "", reconcile.StorageFP8:
	default:
		return invalid("storage %q: use fp8, or nothing to keep blocks as in the file", s.GetStorage())
	}
	switch s.GetCompat() {
	case "":
	case string(allocation.Distorch2):
		if s.GetAllocation() == "" {
			return invalid("compat distorch2 is for an allocation string, and there is none")
		}
	default:
		return invalid("compat %q: use distorch2, or nothing for distorch's own rules", s.GetCompat())
	}
	switch {
	case len(s.GetAllocation()) > allocation.MaxLength:
		return invalid("an allocation string of %d bytes: at most %d", len(s.GetAllocation()), allocation.MaxLength)
	case s.GetAllocation() != "" && s.GetVirtualVramBytes() > 0:
		return invalid("an allocation string and virtual VRAM are both given; a string can say both: #cuda:0;8gb;cpu")
	case len(s.GetPins()) > 0 && (s.GetAllocation() != "" || s.GetVirtualVramBytes() > 0):
		return invalid("pins put blocks on nodes, an allocation on devices of one: use one of them")
	}
	return nil
}

// resolve finds a model or LoRA by id, name, or file name without its folder or
// extension.
func resolve(st *store.State, kind, ref string) (string, error) {
	if ref == "" {
		return "", invalid("the deployment names no %s", kind)
	}
	if e, ok := st.Models[ref]; ok {
		return ref, isKind(e.Value, kind)
	}
	file := path.Base(strings.ReplaceAll(ref, "\\", "/"))
	var other error // of a file of that name and the other kind
	for _, same := range []func(string) bool{
		func(name string) bool { return name == ref },
		func(name string) bool { return path.Base(name) == file },
		func(name string) bool { return strings.TrimSuffix(path.Base(name), path.Ext(name)) == file },
	} {
		var found []string
		for id, e := range st.Models {
			if !same(e.Value.GetName()) {
				continue
			}
			if err := isKind(e.Value, kind); err != nil {
				other = err
				continue
			}
			found = append(found, id)
		}
		slices.Sort(found)
		switch {
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			return "", invalid("%s %q is the name of %d different files: name one by its id: %s", kind, ref, len(found), strings.Join(found, ", "))
		}
	}
	if other != nil {
		return "", other
	}
	var names []string
	for _, e := range st.Models {
		if isKind(e.Value, kind) == nil {
			names = append(names, e.Value.GetName())
		}
	}
	slices.Sort(names)
	return "", &UnknownError{Kind: kind, Name: ref, Nearest: nearest(file, names), Advice: "start an agent whose models.dirs has the file"}
}

const kindModel, kindLoRA, kindToken = "model", "LoRA", "client's token"

// isKind refuses a LoRA where a model is asked for, and the other way round.
func isKind(r *pb.ModelRecord, kind string) error {
	switch is := r.GetArchitecture() == lora.Architecture; {
	case is && kind != kindLoRA:
		return invalid("%s is a LoRA, which goes on top of a model: name that with --model, and this with --lora", r.GetName())
	case !is && kind == kindLoRA:
		return invalid("%s is a model (%s), not a LoRA", r.GetName(), r.GetArchitecture())
	}
	return nil
}

func knownNode(st *store.State, ref string) error {
	if _, ok := st.Nodes[ref]; ok {
		return nil
	}
	names := nodeNames(st)
	if slices.Contains(names, ref) {
		return nil
	}
	return &UnknownError{Kind: "node", Name: ref, Nearest: nearest(ref, names), Advice: "no agent of that name has joined; see `distorch nodes`"}
}

func unknownDeployment(st *store.State, name string) error {
	var names []string
	for n := range st.Specs {
		names = append(names, n)
	}
	slices.Sort(names)
	return &UnknownError{Kind: "deployment", Name: name, Nearest: nearest(name, names), Advice: "deploy one with `distorch deploy`"}
}
