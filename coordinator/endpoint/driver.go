// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport"
)

// driver is the session with one stage: commands down, heartbeats and events
// up. It decides that its stage is lost: the stream broke, or it stayed silent
// while forwards were in flight.
type driver struct {
	pipeline *pipeline
	stage    int
	silence  time.Duration
	keys     []transport.RemoteKey

	ctx    context.Context // of the stream
	cancel context.CancelFunc
	stream grpc.BidiStreamingClient[pb.StageCommand, pb.StageEvent]
	out    chan *pb.StageCommand
	last   atomic.Int64 // of the last event, nanoseconds since opened
	opened time.Time
	wg     sync.WaitGroup

	asked   atomic.Int64 // commands that wait for an answer
	mu      sync.Mutex
	waiting map[string][]chan *pb.StageEvent // callers by what they wait for: kind and run
}

const (
	// attachTimeout bounds the handshake with one stage.
	attachTimeout = 5 * time.Second
	// maxQueued is how many commands wait for a stage that does not read; beyond
	// it callers wait, for as long as silence allows.
	maxQueued = 64
)

func newDriver(p *pipeline, stage int, silence time.Duration) *driver {
	d := &driver{pipeline: p, stage: stage, silence: silence, out: make(chan *pb.StageCommand, maxQueued), waiting: map[string][]chan *pb.StageEvent{}, opened: time.Now()}
	// The session outlives the call that opens it, and ends with the pipeline.
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// open dials the stage and attaches to it.
func (d *driver) open(ctx context.Context, req *pb.AttachRequest) error {
	st := d.pipeline.plan.Stages[d.stage]
	conn, err := d.pipeline.host.Dial(st.Address, transport.NodeID(st.Node))
	if err != nil {
		return d.pipeline.fault(d.stage, pb.StageFault_PEER_UNREACHABLE, "cannot be reached at "+st.Address+": "+err.Error())
	}
	late := make(chan struct{})
	timer := time.AfterFunc(attachTimeout, func() { close(late); d.cancel() })
	stop := context.AfterFunc(ctx, d.cancel)
	ev, err := d.attach(d.ctx, conn, req)
	if !timer.Stop() {
		<-late
		err = context.DeadlineExceeded // even if the answer came in the same moment
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		d.cancel()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return d.refused(err, late)
	}
	if ev.Hello.GetIncarnation() != st.Incarnation {
		d.cancel()
		return d.pipeline.fault(d.stage, pb.StageFault_FRAME_REFUSED, "was restarted since the plan was made; the deployment is being placed again")
	}
	want := int(max(d.pipeline.plan.Workload.GetInFlight(), 1))
	if d.stage == 0 && len(ev.Slots) != want {
		d.cancel()
		return d.pipeline.fault(0, pb.StageFault_FRAME_REFUSED, fmt.Sprintf("offers %d slots, the plan has %d", len(ev.Slots), want))
	}
	for _, k := range ev.Slots {
		key, err := transport.KeyFromProto(k)
		if err != nil {
			d.cancel()
			return d.pipeline.fault(d.stage, pb.StageFault_FRAME_REFUSED, err.Error())
		}
		d.keys = append(d.keys, key)
	}
	return nil
}

// refused names what kept the stage from attaching.
func (d *driver) refused(err error, late chan struct{}) error {
	st := d.pipeline.plan.Stages[d.stage]
	select {
	case <-late:
		return d.pipeline.fault(d.stage, pb.StageFault_PEER_UNREACHABLE,
			fmt.Sprintf("did not answer at %s within %s; it is frozen or its link is cut", st.Address, attachTimeout))
	default:
	}
	if status.Code(err) == codes.Unavailable {
		return d.pipeline.fault(d.stage, pb.StageFault_PEER_UNREACHABLE, "cannot be reached at "+st.Address+": "+reason(err))
	}
	return d.pipeline.fault(d.stage, pb.StageFault_FRAME_REFUSED, "refused the plan: "+reason(err))
}

func (d *driver) attach(ctx context.Context, conn grpc.ClientConnInterface, req *pb.AttachRequest) (*pb.AttachResponse, error) {
	stream, err := pb.NewStageServiceClient(conn).Drive(ctx)
	if err != nil {
		return nil, err
	}
	d.stream = stream
	if err := stream.Send(&pb.StageCommand{Command: &pb.StageCommand_Attach{Attach: req}}); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	ev, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	at := ev.GetAttached()
	if at == nil {
		return nil, errors.New("the first answer is not attached")
	}
	return at, nil
}

// start begins reading events and writing commands.
func (d *driver) start() {
	d.last.Store(int64(time.Since(d.opened)))
	d.wg.Go(d.read)
	d.wg.Go(d.watch)
	d.wg.Go(d.write)
}

func (d *driver) close() {
	d.cancel()
	d.wg.Wait()
}

// write sends what is queued. A broken stream is found by its reader, which
// knows why.
func (d *driver) write() {
	for {
		select {
		case c := <-d.out:
			if d.stream.Send(c) != nil {
				return
			}
		case <-d.ctx.Done():
			return
		}
	}
}

// send queues a command; a pipeline that has failed sends nothing more.
func (d *driver) send(ctx context.Context, c *pb.StageCommand) {
	select {
	case d.out <- c:
	case <-d.pipeline.done:
	case <-ctx.Done():
	}
}

func (d *driver) read() {
	for {
		ev, err := d.stream.Recv()
		if err != nil {
			d.pipeline.fail(d.ended(err)) // nothing happens when the pipeline ended it
			return
		}
		d.last.Store(int64(time.Since(d.opened)))
		switch e := ev.Event.(type) {
		case *pb.StageEvent_Heartbeat:
		case *pb.StageEvent_Done:
			d.pipeline.stageDone(d.stage, e.Done)
		case *pb.StageEvent_Fault:
			d.pipeline.stageFault(e.Fault)
		case *pb.StageEvent_RunReady:
			d.answer("run/"+e.RunReady.Run, ev)
		case *pb.StageEvent_ConditioningReady:
			d.answer("conditioning/"+e.ConditioningReady.Run+"/"+e.ConditioningReady.Digest, ev)
		case *pb.StageEvent_Stats:
			d.answer("stats/"+e.Stats.Run, ev)
		}
	}
}

// ended names why a stage left: it was told to, or it is lost.
func (d *driver) ended(err error) error {
	if status.Code(err) == codes.Aborted {
		return d.pipeline.fault(d.stage, pb.StageFault_STALE_EPOCH,
			fmt.Sprintf("ended the session at epoch %d: %s", d.pipeline.key.epoch, reason(err)))
	}
	return d.pipeline.fault(d.stage, pb.StageFault_PEER_UNREACHABLE, "is gone: "+reason(err))
}

var errClosed = errors.New("the pipeline is closed")

func reason(err error) string {
	if errors.Is(err, io.EOF) {
		return "it ended the session"
	}
	return status.Convert(err).Message()
}

// watch declares the stage lost when it stays silent while it owes an answer or
// forwards are in flight.
func (d *driver) watch() {
	every := d.silence / 16
	limit := d.silence - 2*every // noticed late by one tick, begun late by another
	tick := time.NewTicker(every)
	defer tick.Stop()
	busySince := time.Duration(-1)
	for {
		select {
		case <-d.ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Since(d.opened)
		if d.asked.Load() == 0 && !d.pipeline.inFlight() {
			busySince = -1
			continue
		}
		if busySince < 0 {
			busySince = now
		}
		silent := now - max(time.Duration(d.last.Load()), busySince)
		if silent > limit {
			d.pipeline.fail(d.pipeline.fault(d.stage, pb.StageFault_PEER_UNREACHABLE,
				fmt.Sprintf("has been silent for %.1f s; it is frozen or its link is cut", silent.Seconds())))
			return
		}
	}
}

// ask sends a command and waits for its answer.
func (d *driver) ask(ctx context.Context, key string, c *pb.StageCommand) (*pb.StageEvent, error) {
	ch := make(chan *pb.StageEvent, 1)
	d.mu.Lock()
	d.waiting[key] = append(d.waiting[key], ch)
	d.mu.Unlock()
	d.asked.Add(1)
	defer d.asked.Add(-1)
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.waiting[key] = slices.DeleteFunc(d.waiting[key], func(c chan *pb.StageEvent) bool { return c == ch })
		if len(d.waiting[key]) == 0 {
			delete(d.waiting, key)
		}
	}()
	d.send(ctx, c)
	select {
	case ev := <-ch:
		return ev, nil
	case <-d.pipeline.done:
		return nil, d.pipeline.err()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// answer goes to all who wait for it: equal commands have equal answers.
func (d *driver) answer(key string, ev *pb.StageEvent) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, ch := range d.waiting[key] {
		select {
		case ch <- ev:
		default: // it has the answer to a command that was the same
		}
	}
}
