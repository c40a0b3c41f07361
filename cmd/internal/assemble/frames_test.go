// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"context"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/coordinator/endpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport"
	"github.com/distorch/distorch/transport/identity"
	"github.com/distorch/distorch/transport/node"
)

// hand drives one stage by hand, as an endpoint that may misbehave.
type hand struct {
	*rig
	node    *node.Node
	stage   int
	stream  grpc.BidiStreamingClient[pb.StageCommand, pb.StageEvent]
	outputs []*transport.Region
	slots   []*pb.RemoteKey
	run     [16]byte
	inputs  []byte
}

// member runs one more node of the cluster.
func (r *rig) member(role identity.Role, name string) *node.Node {
	r.t.Helper()
	n := r.newNode(r.ctx, role, name)
	r.group.Go(func() error { return n.Run(r.ctx) })
	return n
}

func id16(t testing.TB, text string) [16]byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != 16 {
		t.Fatalf("%q is no id", text)
	}
	return [16]byte(b)
}

func (r *rig) stageService(t testing.TB, from *node.Node, stage int) pb.StageServiceClient {
	t.Helper()
	st := r.plan.Stages[stage]
	conn, err := from.Host().Dial(st.Address, transport.NodeID(st.Node))
	if err != nil {
		t.Fatal(err)
	}
	return pb.NewStageServiceClient(conn)
}

func (r *rig) attachRequest(from *node.Node, stage int) *pb.AttachRequest {
	return &pb.AttachRequest{
		Hello: hello(from), Deployment: r.plan.Deployment, DeploymentId: r.plan.DeploymentId, Epoch: r.plan.Epoch,
		Stage: uint32(stage), ExpectIncarnation: r.plan.Stages[stage].Incarnation, OutputAddress: from.Address(),
	}
}

// attach opens a session; the error is the stage's answer.
func (h *hand) attach(ctx context.Context, req *pb.AttachRequest) error {
	stream, err := h.stageService(h.t, h.node, h.stage).Drive(ctx)
	if err != nil {
		return err
	}
	h.stream = stream
	if err := stream.Send(&pb.StageCommand{Command: &pb.StageCommand_Attach{Attach: req}}); err != nil {
		return err
	}
	ev, err := stream.Recv()
	h.slots = ev.GetAttached().GetSlots()
	return err
}

// drive attaches to a stage, announces a run and, to the first, gives a
// conditioning.
func (r *rig) drive(t testing.TB, n *node.Node, stage int) *hand {
	t.Helper()
	h := &hand{rig: r, node: n, stage: stage, run: [16]byte{1, 2, 3}}
	req := r.attachRequest(n, stage)
	for range r.plan.Workload.InFlight {
		o, err := n.Host().Register(make([]byte, 1<<20))
		if err != nil {
			t.Fatal(err)
		}
		k := o.Key()
		h.outputs = append(h.outputs, o)
		req.Outputs = append(req.Outputs, &pb.RemoteKey{Region: k.Region, Key: k.Key[:], Bytes: k.Bytes})
	}
	if err := h.attach(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	h.begin(t)
	return h
}

func (h *hand) send(t testing.TB, c *pb.StageCommand) {
	t.Helper()
	if err := h.stream.Send(c); err != nil {
		t.Fatal(err)
	}
}

// event is the next one that is no heartbeat.
func (h *hand) event(t testing.TB) *pb.StageEvent {
	t.Helper()
	for {
		ev, err := h.stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if ev.GetHeartbeat() == nil {
			return ev
		}
	}
}

func (h *hand) begin(t testing.TB) {
	t.Helper()
	h.send(t, &pb.StageCommand{Command: &pb.StageCommand_BeginRun{BeginRun: &pb.BeginStageRun{
		Run: hex.EncodeToString(h.run[:]), Dims: h.plan.Workload.Dims}}})
	if e := h.event(t).GetRunReady(); e == nil || e.Error != "" {
		t.Fatalf("the run was not taken: %v", e)
	}
	p := h.program(t)
	if h.stage > 0 {
		l, err := graph.BoundaryLayout(p, int(h.plan.Stages[h.stage].FirstBlock))
		if err != nil {
			t.Fatal(err)
		}
		h.inputs = make([]byte, l.Bytes)
		return
	}
	cond, step := request(t, "large red circle on blue")
	digest := endpoint.Digest(cond)
	h.send(t, &pb.StageCommand{Command: &pb.StageCommand_Conditioning{Conditioning: &pb.PutConditioningRequest{
		Run: hex.EncodeToString(h.run[:]), Tensors: cond, Digest: digest}}})
	if e := h.event(t).GetConditioningReady(); e == nil || e.Error != "" {
		t.Fatalf("the conditioning was not taken: %v", e)
	}
	l, at := graph.StepLayout(p)
	h.inputs = make([]byte, l.Bytes)
	for i, v := range l.Values {
		copy(h.inputs[v.Place.Offset:], step[i].Data)
	}
	raw, err := hex.DecodeString(digest)
	if err != nil {
		t.Fatal(err)
	}
	copy(h.inputs[at:], raw)
}

func (r *rig) program(t testing.TB) *graph.Program {
	t.Helper()
	dtype, err := tensor.ParseDType(strings.ToUpper(r.plan.Dtype))
	if err != nil {
		t.Fatal(err)
	}
	dims, err := r.graph.Request(r.plan.Workload.Dims)
	if err != nil {
		t.Fatal(err)
	}
	p, err := graph.Specialise(r.graph, dims, dtype)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// frame is the immediate of a forward in slot 0 that the stage takes.
func (h *hand) frame(sender *node.Node, sequence uint64) transport.Immediate {
	return transport.Immediate{
		DeploymentID: id16(h.t, h.plan.DeploymentId), Epoch: h.plan.Epoch, Stage: uint32(h.stage), Sequence: sequence,
		Run: h.run, SenderIncarnation: id16(h.t, sender.Incarnation()),
	}
}

func (h *hand) write(t testing.TB, sender *node.Node, key *pb.RemoteKey, data []byte, imm transport.Immediate) error {
	t.Helper()
	st := h.plan.Stages[h.stage]
	return sender.Host().WriteImm(t.Context(), st.Address, transport.NodeID(st.Node),
		transport.RemoteKey{Region: key.Region, Key: [16]byte(key.Key), Bytes: key.Bytes}, 0, [][]byte{data}, imm)
}

// forwards is what the stage counted.
func (h *hand) forwards(t testing.TB) uint64 {
	t.Helper()
	h.send(t, &pb.StageCommand{Command: &pb.StageCommand_EndRun{EndRun: strings.Repeat("0", 32)}})
	return h.event(t).GetStats().GetForwards()
}

func TestFramesThatAreRefused(t *testing.T) {
	r := newRig(t, "bf16", []int{6}, nil)
	h := r.drive(t, r.node, 0)
	if err := h.write(t, r.node, h.slots[0], h.inputs, h.frame(r.node, 5)); err != nil {
		t.Fatal(err)
	}
	if d := h.event(t).GetDone(); d == nil || d.Blocks != 6 {
		t.Fatalf("the forward ended with %v", d)
	}
	h.send(t, &pb.StageCommand{Command: &pb.StageCommand_Cancel{Cancel: &pb.ForwardID{Slot: 0, Sequence: 9}}})
	if n := h.forwards(t); n != 1 {
		t.Fatalf("the stage counted %d forwards, want 1", n)
	}
	other := r.member(identity.RoleCoordinator, "second")
	agent := r.member(identity.RoleAgent, "other")
	type changed = func(*transport.Immediate)
	for _, c := range []struct {
		name   string
		from   *node.Node
		data   []byte
		change changed
		want   error
		words  string
	}{
		{"duplicate", r.node, h.inputs, func(i *transport.Immediate) { i.Sequence = 5 }, transport.ErrUnexpectedFrame, "sequence 5 of slot 0 has passed"},
		{"older sequence", r.node, h.inputs, func(i *transport.Immediate) { i.Sequence = 4 }, transport.ErrUnexpectedFrame, "sequence 4 of slot 0 has passed"},
		{"cancelled before it came", r.node, h.inputs, func(i *transport.Immediate) { i.Sequence = 9 }, transport.ErrUnexpectedFrame, "has passed"},
		{"stale epoch", r.node, h.inputs, func(i *transport.Immediate) { i.Epoch-- }, transport.ErrStaleEpoch, "epoch 3"},
		{"later epoch", r.node, h.inputs, func(i *transport.Immediate) { i.Epoch++ }, transport.ErrStaleEpoch, "epoch 3"},
		{"other deployment", r.node, h.inputs, func(i *transport.Immediate) { i.DeploymentID[0]++ }, transport.ErrStaleEpoch, "epoch"},
		{"wrong incarnation", r.node, h.inputs, func(i *transport.Immediate) { i.SenderIncarnation[0]++ }, transport.ErrStaleIncarnation, "was restarted"},
		{"too short", r.node, h.inputs[:len(h.inputs)-64], nil, transport.ErrLength, "where the run's dimensions give"},
		{"unknown run", r.node, h.inputs, func(i *transport.Immediate) { i.Run[0]++ }, transport.ErrUnexpectedFrame, "its run was not announced"},
		{"wrong slot", r.node, h.inputs, func(i *transport.Immediate) { i.Slot = 1 }, transport.ErrUnexpectedFrame, "slot 1"},
		{"wrong stage", r.node, h.inputs, func(i *transport.Immediate) { i.Stage = 1 }, transport.ErrUnexpectedFrame, "stage 1"},
		{"other coordinator", other, h.inputs, nil, transport.ErrWrongKey, other.ID()},
		{"agent", agent, h.inputs, nil, transport.ErrWrongKey, agent.ID()},
	} {
		imm := h.frame(c.from, 20)
		if c.change != nil {
			c.change(&imm)
		}
		err := h.write(t, c.from, h.slots[0], c.data, imm)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: got %v, want %v with %q", c.name, err, c.want, c.words)
		}
	}
	if n := h.forwards(t); n != 1 {
		t.Errorf("the stage computed %d forwards, want 1", n)
	}
	if err := h.write(t, r.node, h.slots[0], h.inputs, h.frame(r.node, 20)); err != nil {
		t.Errorf("after the refusals: %v", err)
	}
	if d := h.event(t).GetDone(); d.GetForward().GetSequence() != 20 {
		t.Errorf("after the refusals the stage answered %v", d)
	}
}

func TestLaterStageRefusesStrangers(t *testing.T) {
	r := newRig(t, "bf16", []int{3, 3}, nil)
	first := r.agents[0].node
	res, err := r.stageService(t, first, 1).Attach(t.Context(), r.attachRequest(first, 1))
	if err != nil {
		t.Fatal(err)
	}
	h := r.drive(t, r.node, 1)
	h.slots = res.Slots
	imm := h.frame(first, 1)
	imm.SenderIncarnation[0]++
	if err := h.write(t, first, h.slots[0], h.inputs, imm); !errors.Is(err, transport.ErrStaleIncarnation) {
		t.Errorf("a frame of the stage before's other incarnation: %v", err)
	}
	if err := h.write(t, r.node, h.slots[0], h.inputs, h.frame(first, 1)); !errors.Is(err, transport.ErrWrongKey) {
		t.Errorf("a frame of the coordinator past the first stage: %v", err)
	}
	if err := h.write(t, first, h.slots[0], h.inputs, h.frame(first, 1)); err != nil {
		t.Errorf("the right frame: %v", err)
	}
	if h.event(t).GetDone() == nil {
		t.Error("the right frame was not computed")
	}
}

func TestAttachmentsThatAreRefused(t *testing.T) {
	r := newRig(t, "bf16", []int{3, 3}, nil)
	first, agent := r.agents[0].node, r.member(identity.RoleAgent, "other")
	for _, c := range []struct {
		name   string
		from   *node.Node
		change func(*pb.AttachRequest)
		code   codes.Code
		words  string
	}{
		{"other agent", agent, nil, codes.PermissionDenied, "is not the stage before"},
		{"coordinator", r.node, nil, codes.PermissionDenied, "is not the stage before"},
		{"restarted since the plan", first, func(q *pb.AttachRequest) { q.ExpectIncarnation = strings.Repeat("0", 32) }, codes.FailedPrecondition, "was restarted since the plan"},
		{"peer restarted since the plan", first, func(q *pb.AttachRequest) { q.Hello.Incarnation = strings.Repeat("0", 32) }, codes.FailedPrecondition, "was restarted since the plan"},
		{"older epoch", first, func(q *pb.AttachRequest) { q.Epoch-- }, codes.Aborted, "epoch 2"},
		{"no such stage", first, func(q *pb.AttachRequest) { q.Stage = 7 }, codes.NotFound, "stage 7"},
		{"older protocol", first, func(q *pb.AttachRequest) { q.Hello.ProtocolMin, q.Hello.ProtocolMax = 0, 0 }, codes.FailedPrecondition, "speaks protocol 0 to 0"},
		{"no hello", first, func(q *pb.AttachRequest) { q.Hello = nil }, codes.FailedPrecondition, "protocol"},
	} {
		req := r.attachRequest(c.from, 1)
		if c.change != nil {
			c.change(req)
		}
		_, err := r.stageService(t, c.from, 1).Attach(t.Context(), req)
		if status.Code(err) != c.code || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: got %v, want %v with %q", c.name, err, c.code, c.words)
		}
	}
	h := &hand{rig: r, node: r.node, stage: 1}
	for name, c := range map[string]struct {
		change func(*pb.AttachRequest)
		code   codes.Code
	}{
		"no outputs":       {nil, codes.InvalidArgument},
		"no incarnation":   {func(q *pb.AttachRequest) { q.Hello.Incarnation = "x" }, codes.InvalidArgument},
		"outputs, no keys": {func(q *pb.AttachRequest) { q.Outputs = make([]*pb.RemoteKey, 2) }, codes.InvalidArgument},
	} {
		req := r.attachRequest(r.node, 1)
		if c.change != nil {
			c.change(req)
		}
		if err := h.attach(t.Context(), req); status.Code(err) != c.code {
			t.Errorf("drive with %s: %v", name, err)
		}
	}
	if _, _, err := r.forward(t.Context()); err != nil {
		t.Errorf("after the refusals: %v", err)
	}
}

func TestSecondCoordinatorIsRefused(t *testing.T) {
	r := newRig(t, "bf16", []int{6}, nil)
	run, _, _ := r.begin(t)
	_, second := r.newEndpoint(r.ctx)
	_, err := second.BeginRun(t.Context(), &pb.BeginRunRequest{Deployment: "demo", Dims: r.plan.Workload.Dims})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "driven by another coordinator, node "+r.node.ID()) {
		t.Errorf("a second coordinator got %v", err)
	}
	if _, err := r.server.EndRun(t.Context(), &pb.EndRunRequest{Run: run}); err != nil {
		t.Fatal(err)
	}
	// The stage learns of the end of the session by the network.
	deadline := time.After(10 * time.Second)
	for {
		if b, err := second.BeginRun(t.Context(), &pb.BeginRunRequest{Deployment: "demo", Dims: r.plan.Workload.Dims}); err == nil {
			if _, err := second.EndRun(t.Context(), &pb.EndRunRequest{Run: b.Run}); err != nil {
				t.Error(err)
			}
			return
		}
		select {
		case <-deadline:
			t.Fatal("the second coordinator was not let in after the first had left")
		case <-time.After(5 * time.Millisecond):
		}
	}
}
