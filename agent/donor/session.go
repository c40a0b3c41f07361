// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package donor

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// beats is how many heartbeats each side sends in Keep.
const beats = 5

// Serve answers for one session with a node, which the caller has
// authenticated as an agent. It returns when the memory is released or lost, or
// the stream ends.
func (m *Memory) Serve(stream pb.StageService_DonateServer, node string) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	req := first.GetRequest()
	if req == nil {
		return status.Error(codes.InvalidArgument, "the first command must be a request for memory")
	}
	l, session, err := m.grant(stream.Context(), node, req)
	if err != nil {
		return err
	}
	defer m.leave(l, session)
	used, offer := m.Use()
	if err := stream.Send(&pb.DonorEvent{Event: &pb.DonorEvent_Granted{Granted: &pb.Donation{
		Hello: m.cfg.Hello, Lease: l.id, Key: l.region.Key().Proto(),
		OfferedBytes: uint64(offer), UsedBytes: uint64(used), Keep: durationpb.New(m.cfg.Keep),
	}}}); err != nil {
		return err
	}
	return m.attend(stream, l, session)
}

// attend exchanges heartbeats until something ends the session.
func (m *Memory) attend(stream pb.StageService_DonateServer, l *lease, session chan struct{}) error {
	commands := commandsOf(stream)
	beat := time.NewTicker(m.cfg.Keep / beats)
	defer beat.Stop()
	silence := time.NewTimer(m.cfg.Keep)
	defer silence.Stop()
	began := time.Now()
	for {
		select {
		case c := <-commands:
			switch c.GetCommand().(type) {
			case *pb.DonorCommand_Heartbeat:
				silence.Reset(m.cfg.Keep)
			case *pb.DonorCommand_Release_:
				m.release(l)
				return stream.Send(&pb.DonorEvent{Event: &pb.DonorEvent_Released_{Released: &pb.DonorEvent_Released{}}})
			default:
				return status.Error(codes.InvalidArgument, "a command that this agent does not know; update the agent")
			}
		case <-beat.C:
			if err := stream.Send(&pb.DonorEvent{Event: &pb.DonorEvent_Heartbeat{Heartbeat: durationpb.New(time.Since(began))}}); err != nil {
				return err
			}
		case <-silence.C:
			return status.Error(codes.Unavailable, errSilent.Error())
		case <-session:
			return status.Error(codes.Aborted, errTakenOver.Error())
		case <-l.gone:
			return status.Errorf(codes.NotFound, "node %s has freed the memory: %s", m.cfg.NodeName, m.why(l))
		case <-stream.Context().Done():
			return status.FromContextError(context.Cause(stream.Context())).Err()
		}
	}
}

func (m *Memory) why(l *lease) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return l.reason
}

// commandsOf hands on what comes. gRPC ends Recv when the handler returns, so
// the goroutine does not outlive it by long.
func commandsOf(stream pb.StageService_DonateServer) <-chan *pb.DonorCommand {
	out := make(chan *pb.DonorCommand)
	go func() {
		for {
			c, err := stream.Recv()
			if err != nil {
				return // the stream's context says so too
			}
			select {
			case out <- c:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	return out
}
