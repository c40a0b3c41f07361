// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"github.com/distorch/distorch/coordinator/reconcile"
	"github.com/distorch/distorch/placement"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

func planToProto(p *reconcile.Plan) *pb.Plan {
	out := &pb.Plan{
		Deployment: p.Deployment, DeploymentId: p.DeploymentID, Epoch: p.Epoch, Generation: p.Generation,
		Model: p.Model, ModelName: p.ModelName, Dtype: p.DType, Workload: workloadToProto(p.Workload),
		Numerics: p.Numerics, InputDigest: p.InputDigest, Infeasible: p.Infeasible,
		Loras: lorasToProto(p.LoRAs),
		Fit:   p.Fit, Notes: p.Notes,
	}
	if len(p.Stages) > 0 {
		f, c := p.Forecast, p.Certificate
		out.Forecast = &pb.Forecast{
			StepSeconds: f.Step, PairSeconds: f.Pair, ComputeSeconds: f.Compute, ExpandSeconds: f.Expand,
			HopSeconds: f.Hop, WaitingSeconds: f.Waiting, LoadSeconds: f.Load,
		}
		out.Certificate = &pb.Certificate{Optimal: c.Optimal, LowerBoundSeconds: c.LowerBound, Gap: c.Gap}
	}
	for i := range p.Stages {
		out.Stages = append(out.Stages, stageToProto(&p.Stages[i]))
	}
	for _, u := range p.Unused {
		out.Unused = append(out.Unused, &pb.UnusedNode{Node: u.Node, Reason: u.Reason})
	}
	for _, l := range p.IfLost {
		out.IfLost = append(out.IfLost, &pb.NodeLoss{Node: l.Node, Consequence: l.Consequence})
	}
	for _, b := range p.Barred {
		out.Barred = append(out.Barred, &pb.BarredNode{Node: b.Node, Name: b.Name, Failed: b.Failed, Message: b.Message, Revision: b.Revision, Device: b.Device, Donor: b.Donor})
	}
	return out
}

func stageToProto(s *reconcile.Stage) *pb.Stage {
	f := s.Forecast
	return &pb.Stage{
		Node: s.Node, NodeName: s.Name, Device: s.Device, Address: s.Address, Incarnation: s.Incarnation,
		FirstBlock: uint32(s.First), Blocks: uint32(s.Blocks), Head: s.Head, Tail: s.Tail,
		Stored: s.Stored, Slots: uint32(s.Slots), Ring: uint32(s.Ring), Storage: s.Storage, NumericsClass: s.Class, Tiers: tiersToProto(s.Tiers),
		Forecast: &pb.StageForecast{
			ComputeSeconds: f.Compute, ExpandSeconds: f.Expand, HopSeconds: f.Hop, LoadSeconds: f.Load, PeakBytes: f.PeakBytes,
			Correction: f.Correction, Calibration: f.Calibration,
			HostPeakBytes: f.HostPeakBytes, StreamSeconds: f.Stream, StallSeconds: f.Stall,
		},
	}
}

// tierKinds pairs the words of the plan with those of placement.
func tierKinds() map[pb.BlockTier_Kind]placement.TierKind {
	return map[pb.BlockTier_Kind]placement.TierKind{
		pb.BlockTier_DEVICE: placement.TierDevice, pb.BlockTier_DONOR: placement.TierDonor, pb.BlockTier_RAM: placement.TierRAM,
		pb.BlockTier_REMOTE: placement.TierRemote, pb.BlockTier_DISK: placement.TierDisk,
	}
}

func tiersToProto(tiers []reconcile.Tier) []*pb.BlockTier {
	words := map[placement.TierKind]pb.BlockTier_Kind{}
	for k, v := range tierKinds() {
		words[v] = k
	}
	var out []*pb.BlockTier
	for _, t := range tiers {
		out = append(out, &pb.BlockTier{
			FirstBlock: uint32(t.First), Blocks: uint32(t.Blocks), Kind: words[t.Kind], Device: t.Device,
			Node: t.Node, Address: t.Address, Incarnation: t.Incarnation, Compressed: t.Compressed, NodeName: t.Name, Bytes: t.Bytes,
		})
	}
	return out
}

func tiersFromProto(tiers []*pb.BlockTier) []reconcile.Tier {
	words := tierKinds()
	var out []reconcile.Tier
	for _, t := range tiers {
		out = append(out, reconcile.Tier{
			First: int(t.GetFirstBlock()), Blocks: int(t.GetBlocks()), Kind: words[t.GetKind()], Device: t.GetDevice(),
			Node: t.GetNode(), Address: t.GetAddress(), Incarnation: t.GetIncarnation(), Compressed: t.GetCompressed(),
			Name: t.GetNodeName(), Bytes: t.GetBytes(),
		})
	}
	return out
}

func planFromProto(name string, p *pb.Plan) reconcile.Plan {
	f, c := p.GetForecast(), p.GetCertificate()
	out := reconcile.Plan{
		Deployment: name, DeploymentID: p.GetDeploymentId(), Epoch: p.GetEpoch(), Generation: p.GetGeneration(),
		Model: p.GetModel(), ModelName: p.GetModelName(), DType: p.GetDtype(), Workload: workloadFromProto(p.GetWorkload()),
		Forecast: reconcile.Forecast{
			Step: f.GetStepSeconds(), Pair: f.GetPairSeconds(), Compute: f.GetComputeSeconds(), Expand: f.GetExpandSeconds(),
			Hop: f.GetHopSeconds(), Waiting: f.GetWaitingSeconds(), Load: f.GetLoadSeconds(),
		},
		Certificate: reconcile.Certificate{Optimal: c.GetOptimal(), LowerBound: c.GetLowerBoundSeconds(), Gap: c.GetGap()},
		Numerics:    p.GetNumerics(), InputDigest: p.GetInputDigest(), Infeasible: p.GetInfeasible(),
		LoRAs: lorasFromProto(p.GetLoras()),
		Fit:   p.GetFit(), Notes: p.GetNotes(),
	}
	for _, s := range p.GetStages() {
		out.Stages = append(out.Stages, stageFromProto(s))
	}
	for _, u := range p.GetUnused() {
		out.Unused = append(out.Unused, reconcile.Unused{Node: u.GetNode(), Reason: u.GetReason()})
	}
	for _, l := range p.GetIfLost() {
		out.IfLost = append(out.IfLost, reconcile.Loss{Node: l.GetNode(), Consequence: l.GetConsequence()})
	}
	for _, b := range p.GetBarred() {
		out.Barred = append(out.Barred, reconcile.Barred{
			Node: b.GetNode(), Name: b.GetName(), Failed: b.GetFailed(), Message: b.GetMessage(), Revision: b.GetRevision(),
			Device: b.GetDevice(), Donor: b.GetDonor(),
		})
	}
	return out
}

func stageFromProto(s *pb.Stage) reconcile.Stage {
	f := s.GetForecast()
	return reconcile.Stage{
		Node: s.GetNode(), Name: s.GetNodeName(), Device: s.GetDevice(), Address: s.GetAddress(), Incarnation: s.GetIncarnation(),
		First: int(s.GetFirstBlock()), Blocks: int(s.GetBlocks()), Head: s.GetHead(), Tail: s.GetTail(),
		Stored: s.GetStored(), Slots: int(s.GetSlots()), Ring: int(s.GetRing()), Storage: s.GetStorage(), Class: s.GetNumericsClass(),
		Tiers: tiersFromProto(s.GetTiers()),
		Forecast: reconcile.StageForecast{
			Compute: f.GetComputeSeconds(), Expand: f.GetExpandSeconds(), Hop: f.GetHopSeconds(), Load: f.GetLoadSeconds(),
			PeakBytes: f.GetPeakBytes(), Correction: f.GetCorrection(), Calibration: f.GetCalibration(),
			HostPeakBytes: f.GetHostPeakBytes(), Stream: f.GetStreamSeconds(), Stall: f.GetStallSeconds(),
		},
	}
}
