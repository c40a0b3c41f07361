// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/distorch/distorch/coordinator/reconcile"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/graph/wire"
	"github.com/distorch/distorch/model/lora"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
)

// graphs keeps what was made from model records, which never change.
type graphs struct {
	mu   sync.Mutex
	made map[string]reconcile.Model // by id
}

// models converts the records and forgets those that are gone.
func (g *graphs) models(records map[string]store.Entry[*pb.ModelRecord]) []reconcile.Model {
	g.mu.Lock()
	defer g.mu.Unlock()
	next := make(map[string]reconcile.Model, len(records))
	out := make([]reconcile.Model, 0, len(records))
	for _, id := range slices.Sorted(maps.Keys(records)) {
		m, ok := g.made[id]
		if !ok {
			m = modelFromProto(id, records[id].Value)
		}
		next[id] = m
		out = append(out, m)
	}
	g.made = next
	return out
}

func modelFromProto(id string, r *pb.ModelRecord) reconcile.Model {
	m := reconcile.Model{
		ID: id, Name: r.GetName(), DefaultDType: r.GetDefaultDtype(), Stored: map[string]tensor.DType{},
		Arch: r.GetArchitecture(), Params: r.GetHyperParameters(),
	}
	if r.GetArchitecture() == lora.Architecture {
		return loraFromProto(m, r)
	}
	g, err := wire.FromProto(r.GetGraph())
	if err == nil && g.OpSet > graph.OpSet {
		m.Problem = "it takes a newer operation set than this coordinator has; install a newer distorch"
		return m
	}
	for _, w := range r.GetWeights() {
		if err != nil {
			break
		}
		m.Stored[w.GetName()], err = tensor.ParseDType(w.GetDtype())
	}
	if err != nil {
		m.Problem = err.Error()
		return m
	}
	m.Graph = g
	return m
}

// snapshot converts the records that decisions are made from.
func (c *Coordinator) snapshot(st *store.State) reconcile.Snapshot {
	s := reconcile.Snapshot{Protocol: c.protocol(), Models: c.graphs.models(st.Models)}
	for id, e := range st.Nodes {
		s.Nodes = append(s.Nodes, nodeFromProto(id, e, st.Links[id].Value))
	}
	for of := range st.Holders {
		s.Holders = append(s.Holders, reconcile.Holder{Model: of.Of, Node: of.Node})
	}
	for name, e := range st.Specs {
		s.Specs = append(s.Specs, specFromProto(name, e.Value))
	}
	for name, e := range st.Plans {
		s.Plans = append(s.Plans, planFromProto(name, e.Value))
	}
	for of, e := range st.Observed {
		o := e.Value
		s.Observed = append(s.Observed, reconcile.Observed{
			Deployment: of.Of, DeploymentID: o.GetDeploymentId(), Node: of.Node, Incarnation: o.GetIncarnation(),
			Epoch: o.GetEpoch(), Failed: o.GetState() == pb.Observed_FAILED, Message: short(o.GetMessage(), maxMessage),
			Device: o.GetDevice(), Donor: o.GetDonor(),
		})
	}
	return s
}

// maxMessage bounds what a node's report adds to a plan.
const maxMessage = 500

func short(message string, most int) string {
	if len(message) > most {
		message = strings.ToValidUTF8(message[:most], "") + "…"
	}
	return message
}

func nodeFromProto(id string, e store.Entry[*pb.NodeRecord], l *pb.LinkRecord) reconcile.Node {
	r := e.Value
	n := reconcile.Node{
		ID: id, Name: r.GetName(), Incarnation: r.GetIncarnation(), Address: r.GetAddress(), Revision: e.Revision,
		Protocol: reconcile.Versions{Min: r.GetProtocolMin(), Max: r.GetProtocolMax()}, OpSet: r.GetOpSet(),
		Load: r.GetLoadBytesPerSecond(), Link: linkFromProto(l),
		HostMemory: r.GetHostMemoryBytes(), Donate: r.GetDonateBytes(), Disk: r.GetDiskBytesPerSecond(), HostBus: r.GetHostBusBytesPerSecond(),
		Decode: r.GetDecodeBytesPerSecond(),
	}
	for _, d := range r.GetLost() {
		n.Lost = append(n.Lost, reconcile.Lost{Name: d.GetName(), Reason: short(d.GetReason(), maxMessage)})
	}
	for _, d := range r.GetDevices() {
		device := reconcile.Device{
			Name: d.GetName(), Allocatable: d.GetMemoryAllocatableBytes(), Overhead: d.GetOverheadBytes(), Classes: d.GetNumericsClasses(),
			Calibration: d.GetCalibration(), Copy: d.GetMemoryBytesPerSecond(),
			Kind: d.GetKind(), Unified: d.GetUnified(), Simulated: d.GetSimulated(), Model: d.GetModel(), Overlaps: d.GetOverlaps(),
			HostToDevice: d.GetHostToDeviceBytesPerSecond(), DeviceToHost: d.GetDeviceToHostBytesPerSecond(),
		}
		for _, p := range d.GetPeers() {
			if r := p.GetBytesPerSecond(); device.Peer == 0 || r < device.Peer {
				device.Peer = r
			}
		}
		for _, x := range d.GetRates() {
			u := x.GetUncertainty()
			device.Rates = append(device.Rates, reconcile.Rates{
				DType: x.GetDtype(), Elements: float64(x.GetElements()), Tokens: float64(x.GetTokens()),
				Uncertainty: reconcile.Uncertainty{Linear: u.GetLinear(), Attention: u.GetAttention(), Expand: u.GetExpand(), Elementwise: u.GetElementwise()},
				Linear:      x.GetLinearFlopsPerSecond(), Attention: x.GetAttentionFlopsPerSecond(),
				Expand: x.GetExpandBytesPerSecond(), Elementwise: x.GetElementwiseBytesPerSecond(),
			})
		}
		for _, x := range d.GetFeedback() {
			device.Feedback = append(device.Feedback, reconcile.Feedback{DType: x.GetDtype(), Elements: float64(x.GetElements()), Ratio: x.GetRatio()})
		}
		n.Devices = append(n.Devices, device)
	}
	return n
}

// linkFromProto is a node's side of the network: its interface's rate, or the
// best that it measured to a peer.
func linkFromProto(l *pb.LinkRecord) *reconcile.Link {
	if l == nil {
		return nil
	}
	out := reconcile.Link{BytesPerSecond: l.GetNicBytesPerSecond(), Latency: l.GetLatency().AsDuration().Seconds()}
	if out.BytesPerSecond == 0 {
		for _, p := range l.GetPeers() {
			out.BytesPerSecond = max(out.BytesPerSecond, p.GetBytesPerSecond())
		}
	}
	return &out
}

func workloadFromProto(w *pb.Workload) reconcile.Workload {
	return reconcile.Workload{Dims: w.GetDims(), InFlight: int(w.GetInFlight())}
}

func workloadToProto(w reconcile.Workload) *pb.Workload {
	return &pb.Workload{Dims: w.Dims, InFlight: uint32(w.InFlight)}
}

func specFromProto(name string, p *pb.DeploymentSpec) reconcile.Spec {
	s := reconcile.Spec{
		Name: name, ID: p.GetId(), Generation: p.GetGeneration(), Model: p.GetModel(),
		Workload: workloadFromProto(p.GetWorkload()), DType: p.GetDtype(), Excludes: p.GetExcludes(),
		LoRAs:      lorasFromProto(p.GetLoras()),
		Allocation: p.GetAllocation(), Compat: p.GetCompat(), VirtualVRAM: p.GetVirtualVramBytes(), Fit: p.GetFit(),
		Reserve: p.GetReserveBytes(), Storage: p.GetStorage(),
	}
	for _, x := range p.GetPins() {
		s.Pins = append(s.Pins, reconcile.Pin{Node: x.GetNode(), First: int(x.GetFirstBlock()), Blocks: int(x.GetBlocks())})
	}
	return s
}
