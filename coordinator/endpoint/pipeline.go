// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport"
)

// pipelineKey names one plan of one deployment.
type pipelineKey struct {
	name, id string
	epoch    uint64
}

// pipeline is the endpoint's side of one plan: a drive stream per stage and
// in_flight slots, each with an output region.
type pipeline struct {
	key     pipelineKey
	plan    *pb.Plan
	depID   [16]byte
	drivers []*driver
	slots   chan int
	outputs []*output
	host    *transport.Host

	incarnation [16]byte // of this process
	last        [16]byte // of the last stage's

	mu     sync.Mutex
	users  int // runs and calls of runs; guarded by Server.mu
	seq    []uint64
	flying map[int]*forward // by slot
	failed error
	done   chan struct{} // closed when failed is set
}

// output is one slot's registered memory and the buffer below it.
type output struct {
	pipeline *pipeline
	slot     int
	buf      []byte
	free     func()
	region   *transport.Region
}

// forward is one call in flight.
type forward struct {
	id      *pb.ForwardID
	want    uint64 // bytes of the output
	arrived chan struct{}
	faults  chan *pb.StageFault // capacity: stages
	mu      sync.Mutex
	left    int // stages that have not reported done
	timing  []*pb.StageTiming
	all     chan struct{}
}

// Fault is the error of a forward that a stage or a lost stage ended. It names
// the culprit.
type Fault struct {
	Deployment string
	Stage      int
	Node       string
	Blocks     string // "blocks 0-18"
	Kind       pb.StageFault_Kind
	Reason     string
}

func (f *Fault) Error() string {
	return fmt.Sprintf("deployment %s: stage %d on node %s (%s): %s", f.Deployment, f.Stage, f.Node, f.Blocks, f.Reason)
}

func (p *pipeline) fault(stage int, kind pb.StageFault_Kind, reason string) *Fault {
	s := p.plan.Stages[stage]
	blocks := fmt.Sprintf("blocks %d-%d", s.FirstBlock, s.FirstBlock+s.Blocks-1)
	if s.Blocks == 0 {
		blocks = "no blocks"
	}
	return &Fault{Deployment: p.key.name, Stage: stage, Node: s.NodeName, Blocks: blocks, Kind: kind, Reason: reason}
}

// open attaches to every stage, last one first. On an error nothing stays open.
func (s *Server) open(ctx context.Context, key pipelineKey, plan *pb.Plan, outputBytes uint64) (_ *pipeline, err error) {
	depID, err := transport.ParseID(plan.DeploymentId)
	if err != nil {
		return nil, fmt.Errorf("plan of %s: deployment id: %w", plan.Deployment, err)
	}
	last, err := transport.ParseID(plan.Stages[len(plan.Stages)-1].Incarnation)
	if err != nil {
		return nil, fmt.Errorf("plan of %s: incarnation of its last stage: %w", plan.Deployment, err)
	}
	n := int(max(plan.Workload.GetInFlight(), 1))
	p := &pipeline{
		key: key, plan: plan, depID: depID, host: s.cfg.Transport, incarnation: s.incarnation, last: last,
		slots: make(chan int, n), seq: make([]uint64, n), flying: map[int]*forward{}, done: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	var keys []*pb.RemoteKey
	for i := range n {
		o, err := s.newOutput(p, i, int(outputBytes))
		if err != nil {
			return nil, fmt.Errorf("output memory of %s: %w", key.name, err)
		}
		p.outputs = append(p.outputs, o)
		keys = append(keys, o.region.Key().Proto())
		p.slots <- i
	}
	// A stage asks the next one for its regions, so that one comes first: then
	// who does not answer is asked here and named.
	p.drivers = make([]*driver, len(plan.Stages))
	for i := len(plan.Stages) - 1; i >= 0; i-- {
		d := newDriver(p, i, s.cfg.Silence)
		p.drivers[i] = d
		req := &pb.AttachRequest{
			Hello: s.cfg.Hello, Deployment: plan.Deployment, DeploymentId: plan.DeploymentId,
			Epoch: plan.Epoch, Stage: uint32(i), ExpectIncarnation: plan.Stages[i].Incarnation,
		}
		if i == len(plan.Stages)-1 {
			req.Outputs, req.OutputAddress = keys, s.cfg.Address
		}
		if err := d.open(ctx, req); err != nil {
			return nil, err
		}
	}
	for _, d := range p.drivers {
		d.start()
	}
	return p, nil
}

func (s *Server) newOutput(p *pipeline, slot, n int) (*output, error) {
	buf, free, err := transport.Alloc(n)
	if err != nil {
		return nil, err
	}
	o := &output{pipeline: p, slot: slot, buf: buf, free: free}
	last := p.plan.Stages[len(p.plan.Stages)-1]
	o.region, err = s.cfg.Transport.Register(buf, transport.OnQueue(s.queue), transport.WithTag(o),
		transport.ForPeer(transport.NodeID(last.Node)), transport.AtEpoch(p.key.epoch),
		transport.WithAccept(func(_ transport.Peer, _ transport.RegionInfo, imm transport.Immediate, total uint64) error {
			return p.acceptOutput(slot, imm, total)
		}))
	if err != nil {
		free()
		return nil, err
	}
	return o, nil
}

// close ends the streams and gives the memory back. Idempotent per resource.
func (p *pipeline) close() {
	p.fail(errClosed)
	for _, d := range p.drivers {
		if d != nil {
			d.close()
		}
	}
	for _, o := range p.outputs {
		o.region.Deregister()
		o.free()
	}
}

// fail ends every forward in flight, now and later, with err, and the sessions
// with the stages: another pipeline may be opened at once.
func (p *pipeline) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed != nil {
		return
	}
	p.failed = err
	close(p.done)
	for _, d := range p.drivers {
		if d != nil {
			d.cancel()
		}
	}
}

func (p *pipeline) err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

func (p *pipeline) inFlight() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.flying) > 0
}

func (p *pipeline) acceptOutput(slot int, imm transport.Immediate, total uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.flying[slot]
	switch {
	case imm.Epoch != p.key.epoch || imm.DeploymentID != p.depID:
		return transport.ErrStaleEpoch
	case imm.SenderIncarnation != p.last:
		return fmt.Errorf("%w: node %s was restarted since the plan was made", transport.ErrStaleIncarnation, p.plan.Stages[len(p.plan.Stages)-1].NodeName)
	case int(imm.Stage) != len(p.plan.Stages) || int(imm.Slot) != slot:
		return fmt.Errorf("%w: it is for stage %d slot %d", transport.ErrUnexpectedFrame, imm.Stage, imm.Slot)
	case f == nil || f.id.Sequence != imm.Sequence:
		return fmt.Errorf("%w: slot %d has no forward with sequence %d", transport.ErrUnexpectedFrame, slot, imm.Sequence)
	case total != f.want:
		return fmt.Errorf("%w: %d bytes where the output has %d", transport.ErrLength, total, f.want)
	}
	return nil
}

func (p *pipeline) arrived(slot int, imm transport.Immediate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.flying[slot]; f != nil && f.id.Sequence == imm.Sequence {
		select {
		case <-f.arrived:
		default:
			close(f.arrived)
		}
	}
}

func (p *pipeline) stageDone(stage int, d *pb.StageDone) {
	p.mu.Lock()
	f := p.flying[int(d.Forward.GetSlot())]
	p.mu.Unlock()
	if f == nil || f.id.Sequence != d.Forward.GetSequence() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.timing[stage] != nil {
		return
	}
	f.timing[stage] = &pb.StageTiming{
		Node: p.plan.Stages[stage].NodeName, Compute: d.Compute, Waiting: d.Waiting, Blocks: d.Blocks,
	}
	if f.left--; f.left == 0 {
		close(f.all)
	}
}

func (p *pipeline) stageFault(e *pb.StageFault) {
	p.mu.Lock()
	f := p.flying[int(e.Forward.GetSlot())]
	p.mu.Unlock()
	if f == nil || f.id.Sequence != e.Forward.GetSequence() {
		return
	}
	select {
	case f.faults <- e:
	default: // one per stage fits; a stage that repeats itself adds nothing
	}
}

// begin takes a slot for a forward.
func (p *pipeline) begin(ctx context.Context, id *pb.ForwardID, want uint64) (*forward, error) {
	var slot int
	select {
	case slot = <-p.slots:
	case <-p.done:
		return nil, p.err()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed != nil {
		p.slots <- slot
		return nil, p.failed
	}
	p.seq[slot]++
	id.Slot, id.Sequence = uint32(slot), p.seq[slot]
	f := &forward{
		id: id, want: want, arrived: make(chan struct{}), all: make(chan struct{}),
		faults: make(chan *pb.StageFault, len(p.plan.Stages)), left: len(p.plan.Stages),
		timing: make([]*pb.StageTiming, len(p.plan.Stages)),
	}
	p.flying[slot] = f
	return f, nil
}

// end releases the slot. A forward that was not delivered is cancelled on
// every stage first, so that they drop what is left of it.
func (p *pipeline) end(f *forward, delivered bool) {
	if !delivered {
		for _, d := range p.drivers {
			d.send(context.Background(), &pb.StageCommand{Command: &pb.StageCommand_Cancel{Cancel: f.id}})
		}
	}
	p.mu.Lock()
	delete(p.flying, int(f.id.Slot))
	p.mu.Unlock()
	p.slots <- int(f.id.Slot)
}

// forward runs one forward: inputs to the first stage, output from the last.
// Queued is how long it waited for a slot.
func (p *pipeline) forward(ctx context.Context, id *pb.ForwardID, run [16]byte, inputs [][]byte, out []byte) (_ []*pb.StageTiming, queued time.Duration, _ error) {
	asked := time.Now()
	f, err := p.begin(ctx, id, uint64(len(out)))
	if err != nil {
		return nil, 0, err
	}
	queued = time.Since(asked)
	delivered := false
	defer func() { p.end(f, delivered) }()

	imm := transport.Immediate{
		DeploymentID: p.depID, Epoch: p.key.epoch, Stage: 0, Slot: id.Slot, Sequence: id.Sequence,
		Run: run, Step: id.Step, Branch: id.Branch, Attempt: id.Attempt, SenderIncarnation: p.incarnation,
	}
	first := p.plan.Stages[0]
	if err := p.host.WriteImm(ctx, first.Address, transport.NodeID(first.Node), p.drivers[0].keys[id.Slot], 0, inputs, imm); err != nil {
		if ctx.Err() != nil {
			return nil, queued, context.Cause(ctx)
		}
		if failed := p.err(); failed != nil {
			return nil, queued, failed
		}
		return nil, queued, p.fault(0, pb.StageFault_PEER_UNREACHABLE, "the inputs could not be sent: "+err.Error())
	}
	for _, ready := range []chan struct{}{f.arrived, f.all} {
		select {
		case <-ready:
		case e := <-f.faults:
			return nil, queued, p.named(e)
		case <-p.done:
			return nil, queued, p.err()
		case <-ctx.Done():
			return nil, queued, context.Cause(ctx)
		}
	}
	copy(out, p.outputs[id.Slot].buf)
	delivered = true
	return f.timing, queued, nil
}

// named turns a stage's fault into an error that names the culprit: the peer
// that the stage could not reach, or the stage itself.
func (p *pipeline) named(e *pb.StageFault) error {
	for i, s := range p.plan.Stages {
		if s.Node == e.Culprit {
			return p.fault(i, e.Kind, e.Message)
		}
	}
	return errors.New("deployment " + p.key.name + ": " + e.Message)
}
