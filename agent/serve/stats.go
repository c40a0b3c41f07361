// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/distorch/distorch/agent/offload"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// stats says what the stage did since it was loaded.
func (h *Hosted) stats(runID string) *pb.StageStats {
	facts, st := h.server.cfg.Facts, h.plan.Stages[h.key.stage]
	used, peak, _ := h.session.Account()
	device := h.session.Device()
	s := &pb.StageStats{
		Run: runID, Node: st.Node, NodeName: facts.NodeName, Pid: facts.PID, Isa: device.ISA, Threads: uint32(device.Threads),
		Device: st.Device, Stage: h.key.stage,
		BlocksRun: h.blocksRun.Load(), Forwards: h.forwards.Load(), Compute: durationpb.New(time.Duration(h.compute.Load())),
		AccountBytes: uint64(used), AccountPeakBytes: uint64(peak),
		FirstBlock: st.FirstBlock, Blocks: st.Blocks, NumericsClass: st.NumericsClass,
	}
	need, hostNeed := h.server.needs(h.session)
	s.AccountNeedBytes = uint64(need)
	if !device.Unified {
		s.HostNeedBytes = uint64(hostNeed)
		host, hostPeak, _ := h.session.HostAccount()
		s.HostBytes, s.HostPeakBytes = uint64(host), uint64(hostPeak)
	}
	if n := h.forwards.Load(); n > 0 {
		s.ForwardSeconds = time.Duration(h.compute.Load()).Seconds() / float64(n)
	}
	s.LentBytes = uint64(h.server.Lent(st.Device))
	h.tierStats(s)
	if facts.Memory != nil {
		s.VmHwmBytes = facts.Memory()
	}
	if f := h.server.cfg.Feedback; f != nil {
		s.Feedback = f(st.Device, h.plan.Dtype, elements(h.stage.Program()))
	}
	return s
}

// tierKind is a tier's kind in the record.
func tierKind(k offload.Kind) pb.BlockTier_Kind {
	switch k {
	case offload.Device:
		return pb.BlockTier_DEVICE
	case offload.Donor:
		return pb.BlockTier_DONOR
	case offload.RAM:
		return pb.BlockTier_RAM
	case offload.Remote:
		return pb.BlockTier_REMOTE
	case offload.Disk:
		return pb.BlockTier_DISK
	}
	return pb.BlockTier_KIND_UNSPECIFIED
}

// tierStats adds where the stage's weights rest and what came from there.
func (h *Hosted) tierStats(s *pb.StageStats) {
	resting, traffic := h.stage.Resting(), h.stage.Traffic()
	for _, k := range offload.Kinds() {
		r, t := resting[k], traffic[k]
		if r.Bytes == 0 && t.Uses == 0 {
			continue
		}
		s.Tiers = append(s.Tiers, &pb.TierStats{
			Kind: tierKind(k), Where: h.where(tierKind(k)), Blocks: uint32(r.Blocks), Bytes: uint64(r.Bytes),
			StreamedBytes: uint64(t.Streamed), StreamedBlocks: t.Uses, Hits: t.Hits, Stall: durationpb.New(t.Stall),
		})
	}
	s.Stall = durationpb.New(traffic.Total().Stall)
}

// where are the devices and nodes of a tier, as the plan has them.
func (h *Hosted) where(kind pb.BlockTier_Kind) string {
	st := h.plan.Stages[h.key.stage]
	if kind == pb.BlockTier_DEVICE {
		return st.Device
	}
	var names []string
	for _, t := range st.Tiers {
		name := t.Device
		if kind == pb.BlockTier_REMOTE {
			name = cmp.Or(t.NodeName, t.Node)
		}
		if t.Kind == kind && name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}
