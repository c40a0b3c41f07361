// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/stage"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport"
)

// Limits of one drive session.
const (
	heartbeat       = 250 * time.Millisecond
	maxRuns         = 64
	maxConditioning = 16 // per run
	attachTimeout   = 5 * time.Second
)

// driver is the session of one endpoint with one stage.
type driver struct {
	hosted *Hosted
	stream pb.StageService_DriveServer
	ctx    context.Context // of the stream; ends with a cause
	end    context.CancelCauseFunc
	done   chan struct{} // closed when another session may begin
	wg     sync.WaitGroup
	began  time.Time

	endpoint    string // the coordinator's node id
	incarnation [16]byte

	// where outputs go
	addr string
	node transport.NodeID
	keys []transport.RemoteKey

	sendMu sync.Mutex
	runs   map[[16]byte]*run // guarded by Hosted.mu
	orders int
}

// run is one announced run of a session.
type run struct {
	id           string
	order        int
	driver       *driver
	run          *stage.Run
	digestAt     int64
	conditioning map[[32]byte]engine.Buffer // guarded by Hosted.mu
	busy         int                        // jobs being computed or sent; guarded by Hosted.mu
	ended        bool                       // its jobs are dropped; guarded by Hosted.mu
}

// errReplaced ends a session when its own coordinator begins another.
var errReplaced = errors.New("the coordinator began another session with this stage")

// drive serves a session until its stream or the stage ends.
func (h *Hosted) drive(stream pb.StageService_DriveServer, req *pb.AttachRequest, endpoint string) error {
	inc, err := transport.ParseID(req.GetHello().GetIncarnation())
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "incarnation of the coordinator: %s", err)
	}
	ctx, end := context.WithCancelCause(stream.Context())
	defer end(nil)
	d := &driver{
		hosted: h, stream: stream, ctx: ctx, end: end, done: make(chan struct{}), began: time.Now(),
		endpoint: endpoint, incarnation: inc, runs: map[[16]byte]*run{},
	}
	if err := h.enter(d); err != nil {
		return err
	}
	defer d.close()
	if err := d.findNext(req); err != nil {
		return err
	}
	if h.previous == "" {
		if err := h.register(endpoint); err != nil {
			return status.Error(codes.Internal, err.Error())
		}
	}
	d.send(&pb.StageEvent{Event: &pb.StageEvent_Attached{Attached: h.attached(h.server.cfg.Hello)}})
	d.wg.Go(d.beat)
	d.wg.Go(d.read)
	<-ctx.Done()
	if cause := context.Cause(ctx); !errors.Is(cause, io.EOF) && !errors.Is(cause, context.Canceled) {
		return status.Error(codes.Aborted, cause.Error())
	}
	return nil
}

// enter makes d the stage's session. One coordinator drives a stage at a time;
// its own later session takes the place of an earlier one, which has failed.
func (h *Hosted) enter(d *driver) error {
	for {
		h.mu.Lock()
		old := h.driver
		if h.closed {
			h.mu.Unlock()
			return status.Error(codes.Aborted, errClosing.Error())
		}
		if old == nil {
			h.driver = d
			for _, s := range h.slots { // sequences are the endpoint's own
				s.taken, s.cancelled = 0, 0
			}
			h.mu.Unlock()
			return nil
		}
		h.mu.Unlock()
		if old.endpoint != d.endpoint && old.ctx.Err() == nil {
			return status.Errorf(codes.ResourceExhausted, "deployment %s is driven by another coordinator, node %s; send the request to that one or wait until its runs end",
				h.plan.Deployment, old.endpoint)
		}
		old.end(errReplaced)
		select {
		case <-old.done:
		case <-d.ctx.Done():
			return status.FromContextError(d.ctx.Err()).Err()
		}
	}
}

// close ends what the session has in flight and frees its runs. A segment that
// is being computed does not keep the next session waiting.
func (d *driver) close() {
	h := d.hosted
	d.end(io.EOF)
	d.wg.Wait() // now nobody adds a run
	h.mu.Lock()
	h.driver = nil
	for _, s := range h.slots { // what the session has queued goes with it
		h.dropOvertaken(s)
	}
	for _, r := range d.runs {
		r.ended = true
		h.wg.Go(func() { h.free(r) })
	}
	clear(d.runs)
	h.mu.Unlock()
	close(d.done)
}

// free gives a run's memory back once nothing computes or sends for it.
func (h *Hosted) free(r *run) {
	h.mu.Lock()
	for r.busy > 0 {
		h.wake.Wait()
	}
	h.mu.Unlock()
	r.run.Close()
	for _, b := range r.conditioning {
		b.Free()
	}
	h.server.usage.leave()
}

// end forgets a run: what it has queued is dropped, what is being computed is
// stopped before its next segment.
func (h *Hosted) end(d *driver, id [16]byte) {
	h.mu.Lock()
	r := d.runs[id]
	if r == nil {
		h.mu.Unlock()
		return
	}
	delete(d.runs, id)
	r.ended = true
	for _, s := range h.slots {
		h.dropOvertaken(s)
	}
	idle := r.busy == 0
	if !idle { // the reader of commands does not wait for the device
		h.wg.Go(func() { h.free(r) })
	}
	h.mu.Unlock()
	if idle {
		h.free(r)
	}
}

// findNext learns where outputs go: to the endpoint from the last stage, else
// to the next stage.
func (d *driver) findNext(req *pb.AttachRequest) error {
	h := d.hosted
	keys, next := req.Outputs, int(h.key.stage)+1
	if next < len(h.plan.Stages) {
		st := h.plan.Stages[next]
		d.addr, d.node = st.Address, transport.NodeID(st.Node)
		conn, err := h.server.cfg.Transport.Dial(st.Address, d.node)
		if err != nil {
			return status.Error(codes.Unavailable, err.Error())
		}
		ctx, cancel := context.WithTimeout(d.ctx, attachTimeout)
		defer cancel()
		res, err := pb.NewStageServiceClient(conn).Attach(ctx, &pb.AttachRequest{
			Hello: h.server.cfg.Hello, Deployment: req.Deployment, DeploymentId: req.DeploymentId,
			Epoch: req.Epoch, Stage: uint32(next), ExpectIncarnation: st.Incarnation,
		})
		if err != nil {
			return status.Errorf(codes.Unavailable, "cannot attach to the next stage on %s at %s: %s", st.NodeName, st.Address, status.Convert(err).Message())
		}
		keys = res.Slots
	} else {
		d.addr = req.OutputAddress
		d.node = transport.NodeID(d.endpoint)
	}
	if len(keys) != len(h.slots) {
		return status.Errorf(codes.InvalidArgument, "%d output regions for %d slots", len(keys), len(h.slots))
	}
	for _, k := range keys {
		key, err := transport.KeyFromProto(k)
		if err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		d.keys = append(d.keys, key)
	}
	return nil
}

// send never fails by itself: the reader finds a broken stream.
func (d *driver) send(e *pb.StageEvent) {
	d.sendMu.Lock()
	defer d.sendMu.Unlock()
	if err := d.stream.Send(e); err != nil {
		d.end(fmt.Errorf("send to the endpoint: %w", err))
	}
}

func (d *driver) beat() {
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			d.send(&pb.StageEvent{Event: &pb.StageEvent_Heartbeat{Heartbeat: durationpb.New(time.Since(d.began))}})
		case <-d.ctx.Done():
			return
		}
	}
}

// read takes commands. gRPC ends Recv when the handler returns, which it does
// as soon as ctx ends.
func (d *driver) read() {
	commands := make(chan *pb.StageCommand)
	go func() {
		defer close(commands)
		for {
			c, err := d.stream.Recv()
			if err != nil {
				d.end(io.EOF)
				return
			}
			select {
			case commands <- c:
			case <-d.ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case c, ok := <-commands:
			if !ok {
				return
			}
			d.command(c)
		case <-d.ctx.Done():
			return
		}
	}
}

func (d *driver) command(c *pb.StageCommand) {
	switch c := c.Command.(type) {
	case *pb.StageCommand_BeginRun:
		ready := &pb.RunReady{Run: c.BeginRun.Run}
		if err := d.beginRun(c.BeginRun); err != nil {
			ready.Error = err.Error()
		}
		d.send(&pb.StageEvent{Event: &pb.StageEvent_RunReady{RunReady: ready}})
	case *pb.StageCommand_Conditioning:
		ready := &pb.ConditioningReady{Run: c.Conditioning.Run}
		digest, err := d.putConditioning(c.Conditioning)
		if ready.Digest = digest; err != nil {
			ready.Error = err.Error()
		}
		d.send(&pb.StageEvent{Event: &pb.StageEvent_ConditioningReady{ConditioningReady: ready}})
	case *pb.StageCommand_Cancel:
		d.cancel(c.Cancel)
	case *pb.StageCommand_EndRun:
		d.endRun(c.EndRun)
	default:
		d.end(errors.New("the endpoint sent a command that this agent does not know; update the agent"))
	}
}

func (d *driver) beginRun(req *pb.BeginStageRun) error {
	id, err := transport.ParseID(req.Run)
	if err != nil {
		return fmt.Errorf("run id: %w", err)
	}
	dims, err := d.hosted.stage.Request(req.Dims)
	if err != nil {
		return err
	}
	if len(d.runs) >= maxRuns {
		return fmt.Errorf("%d runs are open on this stage, the limit", maxRuns)
	}
	sr, err := d.hosted.stage.NewRun(d.ctx, dims)
	if err != nil {
		d.hosted.failed(err)
		return err
	}
	_, at := graph.StepLayout(sr.Program())
	d.hosted.mu.Lock()
	defer d.hosted.mu.Unlock()
	if d.runs[id] != nil {
		sr.Close()
		return fmt.Errorf("run %.40q was begun before", req.Run)
	}
	d.orders++
	d.hosted.server.usage.enter()
	d.runs[id] = &run{id: req.Run, order: d.orders, driver: d, run: sr, digestAt: at, conditioning: map[[32]byte]engine.Buffer{}}
	return nil
}

// putConditioning keeps tensors for a run, laid out as the head reads them.
func (d *driver) putConditioning(req *pb.PutConditioningRequest) (string, error) {
	digest, err := hex.DecodeString(req.Digest)
	if err != nil || len(digest) != graph.DigestBytes {
		return req.Digest, fmt.Errorf("digest %.80q is not %d bytes in hex", req.Digest, graph.DigestBytes)
	}
	id, err := transport.ParseID(req.Run)
	if err != nil {
		return req.Digest, err
	}
	h := d.hosted
	h.mu.Lock()
	r := d.runs[id]
	full := r != nil && len(r.conditioning) >= maxConditioning
	h.mu.Unlock()
	switch {
	case r == nil:
		return req.Digest, fmt.Errorf("run %.40q is not open on this stage", req.Run)
	case full:
		return req.Digest, fmt.Errorf("run %.40q holds %d conditionings, the limit", req.Run, maxConditioning)
	}
	b, err := h.conditioningBuffer(graph.ConditioningLayout(r.run.Program()), req.Tensors)
	if err != nil {
		return req.Digest, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if r.conditioning[[32]byte(digest)] != nil {
		b.Free()
		return req.Digest, nil
	}
	r.conditioning[[32]byte(digest)] = b
	return req.Digest, nil
}

func (h *Hosted) conditioningBuffer(l graph.Layout, tensors []*pb.Tensor) (engine.Buffer, error) {
	b, err := h.session.HostBuffer(l.Bytes)
	if err != nil {
		h.failed(err)
		return nil, fmt.Errorf("memory for the conditioning: %w", err)
	}
	for _, v := range l.Values {
		found := v.Bytes == 0
		for _, t := range tensors {
			if t.Name == v.Name && t.Dtype == tensor.F32.String() && tensor.Bytes(len(t.Data)) == v.Bytes {
				copy(b.Host()[v.Place.Offset:], t.Data)
				found = true
			}
		}
		if !found {
			b.Free()
			return nil, fmt.Errorf("conditioning lacks %s, F32 %v", v.Name, v.Shape)
		}
	}
	return b, nil
}

func (d *driver) cancel(id *pb.ForwardID) {
	h := d.hosted
	h.mu.Lock()
	defer h.mu.Unlock()
	if int(id.GetSlot()) >= len(h.slots) {
		return
	}
	s := h.slots[id.Slot]
	s.cancelled = max(s.cancelled, id.Sequence)
	h.dropOvertaken(s)
}

func (d *driver) endRun(runID string) {
	h := d.hosted
	if id, err := transport.ParseID(runID); err == nil {
		h.end(d, id)
	}
	d.send(&pb.StageEvent{Event: &pb.StageEvent_Stats{Stats: h.stats(runID)}})
}

// sendOn writes a forward's output to the next stage or the endpoint.
func (d *driver) sendOn(j *job, out []byte, res stage.Result, waited time.Duration) {
	// The report travels beside the output: the endpoint needs both, and the
	// output's arrival is what says that the stage's work was taken.
	d.send(&pb.StageEvent{Event: &pb.StageEvent_Done{Done: &pb.StageDone{
		Forward: forwardID(j), Compute: durationpb.New(res.Compute), Waiting: durationpb.New(waited), Blocks: res.Blocks,
	}}})
	imm := j.imm
	imm.Stage++
	imm.SenderIncarnation = d.hosted.server.incarnation
	err := d.hosted.server.cfg.Transport.WriteImm(j.ctx, d.addr, d.node, d.keys[j.slot.index], 0, [][]byte{out}, imm)
	if err != nil {
		if j.ctx.Err() != nil || d.hosted.stale(j) {
			return
		}
		if _, ok := errors.AsType[transport.ErrPeerUnreachable](err); ok {
			d.fault(j, pb.StageFault_PEER_UNREACHABLE, string(d.node), err)
		} else {
			d.fault(j, pb.StageFault_FRAME_REFUSED, string(d.node), err)
		}
	}
}

func (d *driver) fault(j *job, kind pb.StageFault_Kind, culprit string, err error) {
	if culprit == "" {
		culprit = d.hosted.server.cfg.Hello.Node
	}
	d.hosted.server.log.Warn("forward failed", "deployment", d.hosted.plan.Deployment, "stage", d.hosted.key.stage, "step", j.imm.Step, "error", err)
	d.send(&pb.StageEvent{Event: &pb.StageEvent_Fault{Fault: &pb.StageFault{
		Forward: forwardID(j), Kind: kind, Message: err.Error(), Culprit: culprit,
	}}})
}

func forwardID(j *job) *pb.ForwardID {
	return &pb.ForwardID{
		Run: j.run.id, Step: j.imm.Step, Branch: j.imm.Branch, Attempt: j.imm.Attempt,
		Sequence: j.imm.Sequence, Slot: j.imm.Slot,
	}
}
