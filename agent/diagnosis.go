// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/distorch/distorch/agent/diagnose"
	"github.com/distorch/distorch/agent/examine"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport/identity"
	"github.com/distorch/distorch/transport/node"
)

// nodeService answers what a coordinator asks of the node as a whole.
type nodeService struct {
	pb.UnimplementedNodeServiceServer
	agent *Agent
}

// Diagnose examines this node for a coordinator.
func (s *nodeService) Diagnose(ctx context.Context, req *pb.DiagnoseRequest) (*pb.DiagnoseResponse, error) {
	caller, role, err := node.PeerFrom(ctx)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	if role != string(identity.RoleCoordinator) {
		return nil, status.Errorf(codes.PermissionDenied, "a node is diagnosed for a coordinator, not for %s with the role %s", caller, role)
	}
	a := s.agent
	out := &pb.DiagnoseResponse{Node: a.cfg.Credentials.Self().Name, UnixNanos: time.Now().UnixNano()}
	peers, ids, err := a.peers(ctx, req.GetReach())
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	cfg := a.examination()
	cfg.Peers, cfg.Dial = peers, func(ctx context.Context, p diagnose.Peer) error {
		want := identity.Expect{Roles: []identity.Role{identity.RoleAgent}, ID: ids[p.Name]}
		conn, err := a.cfg.Credentials.Dial(ctx, p.Address, identity.ALPNControl, want)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	var facts diagnose.Facts
	if req.GetReach() != "" {
		facts.Peers = examine.Dial(ctx, cfg)
	} else {
		facts = examine.Examine(ctx, cfg)
		for _, f := range diagnose.Check(facts) {
			out.Findings = append(out.Findings, findingToProto(f))
		}
		if out.Facts, err = json.Marshal(facts); err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
	}
	for _, p := range facts.Peers {
		out.Peers = append(out.Peers, &pb.PeerReach{
			Node: ids[p.Name], Name: p.Name, Address: p.Address, Failure: string(p.Failure), Error: p.Error, RoundTrip: durationpb.New(p.RoundTrip),
		})
	}
	return out, nil
}

// peers are the nodes to dial: all others, or the one whose id is given.
func (a *Agent) peers(ctx context.Context, only string) (peers []diagnose.Peer, ids map[string]string, err error) {
	members, err := a.members(ctx)
	if err != nil {
		return nil, nil, err
	}
	ids = map[string]string{}
	for _, m := range members {
		if only == "" || m.Id == only {
			peers, ids[m.Name] = append(peers, diagnose.Peer{Name: m.Name, Address: m.Address}), m.Id
		}
	}
	return peers, ids, nil
}

// examination is what there is to look at here.
func (a *Agent) examination() examine.Config {
	cfg := a.cfg.Examine
	cfg.Address = a.Address()
	cfg.Node, cfg.Version, cfg.Engine, cfg.Models = a.cfg.Credentials.Self().Name, a.cfg.Version, a.cfg.EngineName, a.cfg.ModelDirs
	cfg.Memory, cfg.Reserve, cfg.Running = a.cfg.Memory+a.cfg.Reserve, a.cfg.Reserve, true
	return cfg
}

func findingToProto(f diagnose.Finding) *pb.Finding {
	severity := map[diagnose.Severity]pb.Finding_Severity{
		diagnose.OK: pb.Finding_OK, diagnose.Note: pb.Finding_NOTE, diagnose.Warning: pb.Finding_WARNING, diagnose.Broken: pb.Finding_BROKEN,
	}[f.Severity]
	return &pb.Finding{Severity: severity, Check: f.Check, Subject: f.Subject, Text: f.Text, Mend: f.Mend, Unused: f.Unused}
}

// seen are the cards of this machine for its record, with the devices that the
// node computes on, by which cards are known as used.
func (a *Agent) seen(ctx context.Context, devices []*pb.Device) []*pb.SeenDevice {
	facts := examine.Cards(ctx, a.examination())
	var out []*pb.SeenDevice
	for _, g := range facts.Cards.GPUs {
		if g.Integrated {
			continue
		}
		s := &pb.SeenDevice{
			Vendor: g.Vendor, Model: g.Model, Uuid: g.UUID, PciAddress: g.PCI, Architecture: g.Architecture, MemoryTotalBytes: uint64(g.MemoryTotal),
			PcieGeneration: uint32(g.PCIe.MaxGeneration), PcieLanes: uint32(g.PCIe.Width), Sources: g.Sources,
		}
		if i := slices.IndexFunc(devices, func(d *pb.Device) bool { return g.UUID != "" && d.Uuid == g.UUID }); i >= 0 {
			s.UsedAs = devices[i].Name
		} else if f, unused := diagnose.Unused(facts, g); unused {
			s.Reason, s.Blocked = f.Text, f.Severity != diagnose.Note
		} else {
			s.Reason = "engine " + a.cfg.EngineName + " does not offer it"
		}
		out = append(out, s)
		a.log.Info("card seen", "model", g.Model, "pci", g.PCI, "used_as", s.UsedAs, "reason", s.Reason)
	}
	return out
}
