// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"context"
	"encoding/hex"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// known refuses answers that no error of ours has.
func known(t *testing.T, err error) {
	t.Helper()
	switch c := status.Code(err); c {
	case codes.Unknown, codes.Internal:
		t.Errorf("answered with %v: %v", c, err)
	}
	if n := len(status.Convert(err).Message()); n > 8<<10 {
		t.Errorf("the error has %d bytes", n)
	}
}

// as is the rig in the hands of one execution.
func (r *rig) as(t *testing.T) *rig {
	q := *r
	q.t = t
	return &q
}

func marshal(f *testing.F, m proto.Message) []byte {
	f.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

func FuzzForward(f *testing.F) {
	r := newRig(f, "bf16", []int{6}, nil)
	run, digest, step := r.begin(f)
	good := &pb.ForwardRequest{Conditioning: digest, Tensors: step}
	f.Add(marshal(f, good))
	f.Add(marshal(f, &pb.ForwardRequest{Conditioning: strings.Repeat("00", 32), Tensors: step, Deadline: durationpb.New(time.Millisecond)}))
	f.Add(marshal(f, &pb.ForwardRequest{Conditioning: "x", Deadline: &durationpb.Duration{Seconds: math.MinInt64, Nanos: -1}, Tensors: step[:1]}))
	f.Add([]byte{0x2a, 0x00, 0x2a, 0x00, 0x32, 0x0b, 0x08, 0xff, 0xff})
	want, err := r.server.Forward(f.Context(), &pb.ForwardRequest{Run: run, Conditioning: digest, Tensors: step})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var req pb.ForwardRequest
		if proto.Unmarshal(raw, &req) != nil {
			return
		}
		for _, id := range []string{req.Run, run} { // also as a request for a run that is open
			req.Run = id
			_, err := r.server.Forward(t.Context(), &req)
			known(t, err)
		}
		res, err := r.server.Forward(t.Context(), &pb.ForwardRequest{Run: run, Conditioning: digest, Tensors: step})
		if err != nil || string(res.Out.Data) != string(want.Out.Data) {
			t.Errorf("the next forward: other bits, or %v", err)
		}
	})
}

func FuzzPutConditioning(f *testing.F) {
	r := newRig(f, "bf16", []int{6}, nil)
	cond, _ := request(f, "large red circle on blue")
	f.Add(marshal(f, &pb.PutConditioningRequest{Tensors: cond}))
	f.Add(marshal(f, &pb.PutConditioningRequest{Tensors: cond[:2], Digest: "00"}))
	f.Add(marshal(f, &pb.PutConditioningRequest{Run: strings.Repeat("f", 32), Tensors: []*pb.Tensor{{Name: "context", Dtype: "F32", Shape: []int64{math.MaxInt64, -1}}}}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var req pb.PutConditioningRequest
		if proto.Unmarshal(raw, &req) != nil {
			return
		}
		begun, err := r.server.BeginRun(t.Context(), &pb.BeginRunRequest{Deployment: "demo", Dims: r.plan.Workload.Dims})
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{req.Run, begun.Run} {
			req.Run = id
			_, err := r.server.PutConditioning(t.Context(), &req)
			known(t, err)
		}
		if _, err := r.server.EndRun(t.Context(), &pb.EndRunRequest{Run: begun.Run}); err != nil {
			t.Error(err)
		}
	})
}

func FuzzBeginRun(f *testing.F) {
	r := newRig(f, "bf16", []int{6}, nil)
	f.Add(marshal(f, &pb.BeginRunRequest{Deployment: "demo", Dims: demoDims}))
	f.Add(marshal(f, &pb.BeginRunRequest{Dims: map[string]int64{"width": math.MaxInt64, "height": math.MinInt64, "text_tokens": 0, "batch": -1}}))
	f.Add(marshal(f, &pb.BeginRunRequest{Dims: map[string]int64{"width": 64, "height": 17, "text_tokens": 1, "batch": 1, "frames": 3}}))
	f.Add(marshal(f, &pb.BeginRunRequest{Dims: map[string]int64{"": 1, "B": 2}}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var req pb.BeginRunRequest
		if proto.Unmarshal(raw, &req) != nil {
			return
		}
		res, err := r.server.BeginRun(t.Context(), &req)
		known(t, err)
		if err == nil {
			_, err = r.server.EndRun(t.Context(), &pb.EndRunRequest{Run: res.Run})
			known(t, err)
		}
		if len(raw)%8 == 0 {
			if _, _, err := r.as(t).forward(t.Context()); err != nil {
				t.Errorf("the next run: %v", err)
			}
		}
	})
}

// FuzzDrive sends commands, each one's bytes after a byte of length, in a
// session that is attached.
func FuzzDrive(f *testing.F) {
	r := newRig(f, "bf16", []int{6}, nil)
	cond, _ := request(f, "large red circle on blue")
	id := hex.EncodeToString(make([]byte, 16))
	pack := func(commands ...*pb.StageCommand) (out []byte) {
		for _, c := range commands {
			b := marshal(f, c)
			out = append(append(out, byte(len(b))), b[:min(len(b), 255)]...)
		}
		return out
	}
	begin := &pb.StageCommand{Command: &pb.StageCommand_BeginRun{BeginRun: &pb.BeginStageRun{Run: id, Dims: demoDims}}}
	end := &pb.StageCommand{Command: &pb.StageCommand_EndRun{EndRun: id}}
	f.Add(pack(begin, end))
	f.Add(pack(begin, begin, end, end))
	f.Add(pack(&pb.StageCommand{Command: &pb.StageCommand_Cancel{Cancel: &pb.ForwardID{Slot: math.MaxUint32, Sequence: math.MaxUint64}}}))
	f.Add(pack(begin, &pb.StageCommand{Command: &pb.StageCommand_Conditioning{Conditioning: &pb.PutConditioningRequest{Run: id, Digest: strings.Repeat("0", 64), Tensors: cond[2:]}}}))
	f.Add(pack(&pb.StageCommand{}, &pb.StageCommand{Command: &pb.StageCommand_Attach{Attach: r.attachRequest(r.node, 0)}}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r := r.as(t)
		h := &hand{rig: r, node: r.node}
		req := r.attachRequest(r.node, 0)
		for range r.plan.Workload.InFlight {
			req.Outputs = append(req.Outputs, &pb.RemoteKey{Key: make([]byte, 16)})
		}
		if err := h.attach(ctx, req); err != nil {
			t.Fatal(err)
		}
		for len(raw) > 0 {
			n := min(int(raw[0]), len(raw)-1)
			var c pb.StageCommand
			if proto.Unmarshal(raw[1:1+n], &c) == nil {
				if h.stream.Send(&c) != nil {
					break
				}
			}
			raw = raw[1+n:]
		}
		if err := h.stream.CloseSend(); err != nil {
			t.Error(err)
		}
		for {
			if _, err := h.stream.Recv(); err != nil {
				if status.Code(err) != codes.Aborted { // io.EOF, or a command that is refused
					if err.Error() != "EOF" {
						t.Error(err)
					}
				}
				break
			}
		}
		if _, _, err := r.forward(t.Context()); err != nil {
			t.Errorf("the next run: %v", err)
		}
	})
}

func FuzzAttach(f *testing.F) {
	r := newRig(f, "bf16", []int{3, 3}, nil)
	first := r.agents[0].node
	service := r.stageService(f, first, 1)
	f.Add(marshal(f, r.attachRequest(first, 1)))
	f.Add(marshal(f, &pb.AttachRequest{Hello: hello(first), Stage: math.MaxUint32, Epoch: math.MaxUint64}))
	f.Add(marshal(f, &pb.AttachRequest{Hello: &pb.Hello{Incarnation: "zz", ProtocolMin: 1, ProtocolMax: math.MaxUint32}, Outputs: make([]*pb.RemoteKey, 100)}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var req pb.AttachRequest
		if proto.Unmarshal(raw, &req) != nil {
			return
		}
		_, err := service.Attach(t.Context(), &req)
		known(t, err)
		if _, err := service.Attach(t.Context(), r.attachRequest(first, 1)); err != nil {
			t.Errorf("the next attachment: %v", err)
		}
		// The same bytes as the opening of a session.
		h := &hand{rig: r.as(t), node: r.node, stage: 1}
		if err := h.attach(t.Context(), &req); err == nil {
			if err := h.stream.CloseSend(); err != nil {
				t.Error(err)
			}
			for err == nil {
				_, err = h.stream.Recv()
			}
		} else {
			known(t, err)
		}
	})
}

// FuzzControl sends what an operator's commands send, as a kind and a message.
func FuzzControl(f *testing.F) {
	conn := operator(f, startCoordinator(f, testConfig(f.TempDir())))
	control := pb.NewControlClient(conn)
	f.Add(byte(0), marshal(f, &pb.CreateTokenRequest{Ttl: durationpb.New(time.Hour)}))
	f.Add(byte(0), marshal(f, &pb.CreateTokenRequest{Ttl: &durationpb.Duration{Seconds: math.MaxInt64, Nanos: math.MinInt32}}))
	f.Add(byte(1), marshal(f, &pb.DeployRequest{Spec: &pb.DeploymentSpec{Name: "demo", Model: "demo", Workload: &pb.Workload{Dims: demoDims, InFlight: 2}, Pins: []*pb.Pin{{Node: "a", Blocks: math.MaxUint32}}}}))
	f.Add(byte(1), marshal(f, &pb.DeployRequest{Spec: &pb.DeploymentSpec{Name: "../x", Workload: &pb.Workload{InFlight: math.MaxUint32}}}))
	f.Add(byte(2), marshal(f, &pb.PlanRequest{}))
	f.Add(byte(3), marshal(f, &pb.UndeployRequest{Name: strings.Repeat("x", 20000)}))
	f.Add(byte(4), marshal(f, &pb.RemoveNodeRequest{Name: strings.Repeat("n", 20000)}))
	f.Add(byte(5), marshal(f, &pb.BeginRunRequest{Deployment: strings.Repeat("d", 20000), Dims: demoDims}))
	f.Fuzz(func(t *testing.T, kind byte, raw []byte) {
		var err error
		call := func(m proto.Message, do func() error) {
			if proto.Unmarshal(raw, m) == nil {
				err = do()
			}
		}
		ctx, ep := t.Context(), pb.NewEndpointClient(conn)
		token, deploy, plan := &pb.CreateTokenRequest{}, &pb.DeployRequest{}, &pb.PlanRequest{}
		undeploy, remove, begin := &pb.UndeployRequest{}, &pb.RemoveNodeRequest{}, &pb.BeginRunRequest{}
		switch kind % 6 {
		case 0:
			call(token, func() error { _, err := control.CreateToken(ctx, token); return err })
		case 1:
			call(deploy, func() error { _, err := control.Deploy(ctx, deploy); return err })
		case 2:
			call(plan, func() error { _, err := control.Plan(ctx, plan); return err })
		case 3:
			call(undeploy, func() error { _, err := control.Undeploy(ctx, undeploy); return err })
		case 4:
			call(remove, func() error { _, err := control.RemoveNode(ctx, remove); return err })
		case 5:
			call(begin, func() error { _, err := ep.BeginRun(ctx, begin); return err })
		}
		known(t, err)
		if _, err := control.Version(ctx, &pb.VersionRequest{}); err != nil {
			t.Errorf("the next call: %v", err)
		}
	})
}
