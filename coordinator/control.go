// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/distorch/distorch/coordinator/reconcile"
	"github.com/distorch/distorch/model/lora"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
	"github.com/distorch/distorch/transport/identity"
)

// maxTokenTTL is what the store keeps a token for.
const maxTokenTTL = 30 * 24 * time.Hour

// operator refuses everyone but an operator, and the endpoint for a client that
// it has admitted.
func operator(ctx context.Context) error {
	if _, ok := Client(ctx); ok {
		return nil
	}
	return operatorAlone(ctx)
}

// operatorAlone refuses clients too.
func operatorAlone(ctx context.Context) error {
	if name, ok := Client(ctx); ok {
		return fmt.Errorf("client %s: %w: this call takes an operator's certificate", name, errForbidden)
	}
	p, err := identity.PeerFromContext(ctx)
	if err != nil {
		return err
	}
	if p.Role != identity.RoleOperator {
		return fmt.Errorf("%s: %w: this call takes an operator's certificate", p, errForbidden)
	}
	return nil
}

// read authorises the caller and reads the state, newer than any write that
// was answered before.
func (c *Coordinator) read(ctx context.Context) (*store.State, error) {
	if err := operator(ctx); err != nil {
		return nil, toStatus(err)
	}
	st, err := c.cfg.Store.ReadState(ctx)
	return st, toStatus(err)
}

// Version says what runs here.
func (c *Coordinator) Version(ctx context.Context, _ *pb.VersionRequest) (*pb.VersionResponse, error) {
	if err := operator(ctx); err != nil {
		return nil, toStatus(err)
	}
	return &pb.VersionResponse{
		Version: c.cfg.Version, ProtocolMin: c.cfg.ProtocolMin, ProtocolMax: c.cfg.ProtocolMax, Cluster: c.cfg.Credentials.Self().Cluster,
	}, nil
}

// CreateToken makes a join token, for 24 h unless the request says otherwise,
// or the token of a client of the HTTPS endpoint, for a year.
func (c *Coordinator) CreateToken(ctx context.Context, req *pb.CreateTokenRequest) (*pb.CreateTokenResponse, error) {
	if err := operatorAlone(ctx); err != nil {
		return nil, toStatus(err)
	}
	if req.GetClient() != "" {
		made, err := c.createClient(ctx, req)
		return made, toStatus(err)
	}
	ttl := identity.DefaultTokenTTL
	if req.GetTtl() != nil {
		ttl = req.GetTtl().AsDuration()
	}
	if ttl < time.Second || ttl > maxTokenTTL {
		return nil, toStatus(invalid("token lifetime %v: use 1s to %v", ttl, maxTokenTTL))
	}
	token, err := c.cfg.Credentials.NewToken(c.cfg.Addresses)
	if err != nil {
		return nil, toStatus(fmt.Errorf("create token: %w", err))
	}
	text, err := token.Text()
	if err != nil {
		return nil, toStatus(fmt.Errorf("create token: %w", err))
	}
	if err := c.cfg.Store.CreateToken(ctx, token.ID, token.SecretHash(), ttl); err != nil {
		return nil, toStatus(err)
	}
	c.log.Info("token created", "token_id", token.ID, "ttl", ttl)
	return &pb.CreateTokenResponse{Token: text}, nil
}

// ListNodes lists the registered nodes by name.
func (c *Coordinator) ListNodes(ctx context.Context, _ *pb.ListNodesRequest) (*pb.ListNodesResponse, error) {
	st, err := c.read(ctx)
	if err != nil {
		return nil, err
	}
	models := map[string][]string{}
	for of := range st.Holders {
		models[of.Node] = append(models[of.Node], modelName(st, of.Of))
	}
	out := &pb.ListNodesResponse{}
	for id, e := range st.Nodes {
		slices.Sort(models[id])
		out.Nodes = append(out.Nodes, &pb.NodeStatus{Record: e.Value, Link: st.Links[id].Value, Models: models[id]})
	}
	slices.SortFunc(out.Nodes, func(a, b *pb.NodeStatus) int {
		return cmp.Or(cmp.Compare(a.Record.Name, b.Record.Name), cmp.Compare(a.Record.Id, b.Record.Id))
	})
	return out, nil
}

// MeasureLink has one node measure its link to another.
func (c *Coordinator) MeasureLink(ctx context.Context, req *pb.MeasureLinkRequest) (*pb.PeerLink, error) {
	st, err := c.read(ctx)
	if err != nil {
		return nil, err
	}
	var ends [2]*pb.NodeRecord
	for i, name := range []string{req.GetNode(), req.GetPeer()} {
		if ends[i], err = named(st, name); err != nil {
			return nil, toStatus(err)
		}
	}
	switch {
	case ends[0].Id == ends[1].Id:
		return nil, toStatus(invalid("the link of node %s to itself says nothing", ends[0].Name))
	case c.cfg.Link == nil:
		return nil, toStatus(invalid("this coordinator cannot ask agents"))
	}
	return c.cfg.Link(ctx, ends[0].Address, ends[0].Id, ends[1].Id)
}

// named is the record of a node by its name or id.
func named(st *store.State, name string) (*pb.NodeRecord, error) {
	var found *pb.NodeRecord
	for id, e := range st.Nodes {
		if id == name || e.Value.GetName() == name {
			found = e.Value
		}
	}
	if found == nil {
		return nil, &UnknownError{Kind: "node", Name: name, Nearest: nearest(name, nodeNames(st)), Advice: "its agent does not run or does not reach the coordinator, or never joined; look there with `distorch doctor`"}
	}
	return found, nil
}

// Lend has a node leave memory of a device to other programs, or take it back.
func (c *Coordinator) Lend(ctx context.Context, req *pb.LendRequest) (*pb.LendResponse, error) {
	st, err := c.read(ctx)
	if err != nil {
		return nil, err
	}
	n, err := named(st, req.GetNode())
	if err != nil {
		return nil, toStatus(err)
	}
	if c.cfg.Lend == nil {
		return nil, toStatus(invalid("this coordinator cannot ask agents"))
	}
	c.log.Info("memory of a device is lent", "node", n.Name, "device", req.GetDevice(), "bytes", req.GetBytes(), "restore", req.GetRestore())
	return c.cfg.Lend(ctx, n.Address, n.Id, req)
}

// Diagnose asks a node what is wrong with it.
func (c *Coordinator) Diagnose(ctx context.Context, req *pb.DiagnoseRequest) (*pb.DiagnoseResponse, error) {
	st, err := c.read(ctx)
	if err != nil {
		return nil, err
	}
	n, err := named(st, req.GetNode())
	if err != nil {
		return nil, toStatus(err)
	}
	ask := &pb.DiagnoseRequest{Node: n.Id}
	if req.GetReach() != "" {
		peer, err := named(st, req.GetReach())
		if err != nil {
			return nil, toStatus(err)
		}
		ask.Reach = peer.Id
	}
	if c.cfg.Diagnose == nil {
		return nil, toStatus(invalid("this coordinator cannot ask agents"))
	}
	return c.cfg.Diagnose(ctx, n.Address, n.Id, ask)
}

func modelName(st *store.State, id string) string {
	if n := st.Models[id].Value.GetName(); n != "" {
		return n
	}
	return id
}

func nodeName(st *store.State, id string) string {
	if n := st.Nodes[id].Value.GetName(); n != "" {
		return n
	}
	return id
}

func nodeNames(st *store.State) []string {
	var out []string
	for id := range st.Nodes {
		out = append(out, nodeName(st, id))
	}
	slices.Sort(out)
	return out
}

// RemoveNode takes a node's name and records away; its certificate is of no
// use afterwards.
func (c *Coordinator) RemoveNode(ctx context.Context, req *pb.RemoveNodeRequest) (*pb.RemoveNodeResponse, error) {
	if err := operatorAlone(ctx); err != nil {
		return nil, toStatus(err)
	}
	st, err := c.read(ctx)
	if err != nil {
		return nil, err
	}
	name := req.GetName()
	if err := identity.ValidName(name); err != nil {
		return nil, toStatus(invalid("node: %w", err))
	}
	err = c.cfg.Store.RemoveNode(ctx, name)
	if status := toStatus(err); isNotFound(status) {
		return nil, toStatus(&UnknownError{Kind: "node", Name: name, Nearest: nearest(name, nodeNames(st))})
	} else if err != nil {
		return nil, status
	}
	c.log.Info("node removed", "name", name)
	return &pb.RemoveNodeResponse{}, nil
}

// ListModels lists the known checkpoints by name, without graph and weights.
func (c *Coordinator) ListModels(ctx context.Context, req *pb.ListModelsRequest) (*pb.ListModelsResponse, error) {
	st, err := c.read(ctx)
	if err != nil {
		return nil, err
	}
	holders := map[string][]string{}
	for of := range st.Holders {
		holders[of.Of] = append(holders[of.Of], nodeName(st, of.Node))
	}
	made := map[string]*reconcile.Model{}
	all := c.graphs.models(st.Models)
	for i := range all {
		made[all[i].ID] = &all[i]
	}
	out := &pb.ListModelsResponse{}
	for _, id := range slices.Sorted(maps.Keys(st.Models)) {
		r, ok := proto.Clone(st.Models[id].Value).(*pb.ModelRecord)
		if !ok {
			continue
		}
		if id != req.GetGraphOf() {
			r.Graph, r.Weights, r.PackedWeights, r.PackedPatches = nil, nil, nil, nil
		}
		slices.Sort(holders[id])
		m := &pb.ModelStatus{Record: r, Holders: holders[id]}
		switch is := made[id]; {
		case is.Graph != nil:
			m.Blocks = uint32(is.Graph.Blocks())
		case r.GetArchitecture() != lora.Architecture || is.LoRA == nil:
			m.Problem = is.Problem
		}
		out.Models = append(out.Models, m)
	}
	slices.SortStableFunc(out.Models, func(a, b *pb.ModelStatus) int { return cmp.Compare(a.Record.Name, b.Record.Name) })
	return out, nil
}
