// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/stage"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport"
)

// Hosted is a loaded stage that may be driven.
type Hosted struct {
	server   *Server
	key      key
	depID    [16]byte
	plan     *pb.Plan
	stage    *stage.Stage
	released *stage.Stage // the same, until it is given up
	session  engine.Session
	previous string   // node of the stage before; "" for the first
	prevInc  [16]byte // and its incarnation
	slots    []*slot

	mu     sync.Mutex
	wake   *sync.Cond
	queue  []*job
	driver *driver
	closed bool
	wg     sync.WaitGroup

	blocksRun, forwards atomic.Uint64
	compute             atomic.Int64
}

// slot is one input region. Its numbers are guarded by Hosted.mu.
type slot struct {
	hosted *Hosted
	index  uint32
	// region is nil for the first stage while nobody drives it. Host, the drive
	// session and Close touch it, one after another.
	region *transport.Region
	// taken is the newest sequence whose frame was let in, cancelled the newest
	// that was cancelled.
	taken, cancelled uint64
	// sending is the job whose output is being computed or sent, nil for none:
	// the slot has one output region.
	sending *job
}

// job is a forward whose inputs have arrived.
type job struct {
	slot    *slot
	imm     transport.Immediate
	run     *run
	arrived time.Time
	// ctx ends when nobody wants the output any more.
	ctx  context.Context
	drop context.CancelFunc
}

// Host begins to serve a loaded stage, which it then owns.
func (s *Server) Host(plan *pb.Plan, index int, st *stage.Stage, session engine.Session) (*Hosted, error) {
	depID, err := transport.ParseID(plan.DeploymentId)
	if err != nil {
		return nil, fmt.Errorf("plan of %s: deployment id: %w", plan.Deployment, err)
	}
	h := &Hosted{
		server: s, key: key{plan.DeploymentId, plan.Epoch, uint32(index)}, depID: depID,
		plan: plan, stage: st, released: st, session: session,
	}
	h.wake = sync.NewCond(&h.mu)
	if index > 0 {
		h.previous = plan.Stages[index-1].Node
		if h.prevInc, err = transport.ParseID(plan.Stages[index-1].Incarnation); err != nil {
			return nil, fmt.Errorf("plan of %s: incarnation of stage %d: %w", plan.Deployment, index-1, err)
		}
	}
	for i := range st.Inputs {
		h.slots = append(h.slots, &slot{hosted: h, index: uint32(i)})
	}
	if h.previous != "" {
		if err := h.register(h.previous); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	s.hosted[h.key] = h
	s.mu.Unlock()
	h.wg.Go(h.work)
	return h, nil
}

// register lets one node write the slots, with new keys. The stage before is
// the same process for as long as the plan lives; the first stage gets its
// inputs from whichever coordinator drives it, so a new session fences what
// the one before may still be sending.
func (h *Hosted) register(from string) (err error) {
	h.deregister()
	for _, sl := range h.slots {
		sl.region, err = h.server.cfg.Transport.Register(h.stage.Inputs[sl.index].Host(),
			transport.OnQueue(h.server.queue), transport.WithTag(sl), transport.AtEpoch(h.plan.Epoch), transport.ForPeer(transport.NodeID(from)),
			transport.WithAccept(func(_ transport.Peer, _ transport.RegionInfo, imm transport.Immediate, total uint64) error {
				return h.accept(sl, imm, total)
			}))
		if err != nil {
			h.deregister()
			return err
		}
	}
	return nil
}

func (h *Hosted) deregister() {
	for _, s := range h.slots {
		if s.region != nil {
			s.region.Deregister()
			s.region = nil
		}
	}
}

// Close ends the drive session and the queue and frees the stage.
func (h *Hosted) Close() {
	if st := h.Release(); st != nil {
		st.Close()
	}
}

// Release is Close without freeing the stage, which becomes the caller's; nil
// the second time.
func (h *Hosted) Release() *stage.Stage {
	h.server.mu.Lock()
	delete(h.server.hosted, h.key)
	h.server.mu.Unlock()
	h.mu.Lock()
	h.closed = true
	d := h.driver
	h.wake.Broadcast()
	h.mu.Unlock()
	if d != nil {
		d.end(errClosing)
		<-d.done
	}
	h.wg.Wait()
	h.deregister()
	h.mu.Lock()
	defer h.mu.Unlock()
	st := h.released
	h.released = nil
	return st
}

// errClosing ends the session of a stage that is being freed.
var errClosing = errors.New("the stage is being freed, for the deployment was placed again or undeployed; when its status says ready, begin the picture again")

func (h *Hosted) attached(own *pb.Hello) *pb.AttachResponse {
	res := &pb.AttachResponse{Hello: own}
	for _, s := range h.slots {
		res.Slots = append(res.Slots, s.region.Key().Proto())
	}
	return res
}

// accept is asked before the first byte of a frame is placed. The region has
// checked the sender's node, the key and the epoch.
func (h *Hosted) accept(s *slot, imm transport.Immediate, total uint64) error {
	if imm.DeploymentID != h.depID || imm.Epoch != h.key.epoch {
		return fmt.Errorf("%w: the frame is of epoch %d, the stage of %d", transport.ErrStaleEpoch, imm.Epoch, h.key.epoch)
	}
	if h.previous != "" && imm.SenderIncarnation != h.prevInc {
		return fmt.Errorf("%w: node %s was restarted since the plan was made", transport.ErrStaleIncarnation, h.previous)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.driver == nil:
		return fmt.Errorf("%w: no coordinator drives this stage", transport.ErrUnexpectedFrame)
	case h.previous == "" && imm.SenderIncarnation != h.driver.incarnation:
		return fmt.Errorf("%w: coordinator %s was restarted since it attached", transport.ErrStaleIncarnation, h.driver.endpoint)
	case imm.Stage != h.key.stage || imm.Slot != s.index:
		return fmt.Errorf("%w: it is for stage %d slot %d", transport.ErrUnexpectedFrame, imm.Stage, imm.Slot)
	case imm.Sequence <= s.taken || imm.Sequence <= s.cancelled:
		return fmt.Errorf("%w: sequence %d of slot %d has passed", transport.ErrUnexpectedFrame, imm.Sequence, s.index)
	}
	r := h.runOf(imm.Run)
	if r == nil {
		return fmt.Errorf("%w: its run was not announced", transport.ErrUnexpectedFrame)
	}
	if want := uint64(r.run.InputBytes()); total != want {
		return fmt.Errorf("%w: %d bytes where the run's dimensions give %d", transport.ErrLength, total, want)
	}
	s.taken = imm.Sequence
	return nil
}

// runOf needs h.mu.
func (h *Hosted) runOf(id [16]byte) *run {
	if h.driver == nil {
		return nil
	}
	return h.driver.runs[id]
}

// arrived queues a forward whose last byte is there.
func (h *Hosted) arrived(s *slot, imm transport.Immediate) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.runOf(imm.Run)
	if r == nil || imm.Sequence <= s.cancelled || imm.Sequence != s.taken {
		return
	}
	h.dropOvertaken(s)
	j := &job{slot: s, imm: imm, run: r, arrived: time.Now()}
	j.ctx, j.drop = context.WithCancel(r.driver.ctx)
	h.queue = append(h.queue, j)
	slices.SortStableFunc(h.queue, func(a, b *job) int {
		return cmp.Or(cmp.Compare(a.run.order, b.run.order), cmp.Compare(a.imm.Step, b.imm.Step), cmp.Compare(a.imm.Branch, b.imm.Branch))
	})
	h.wake.Broadcast()
}

// stale says that a job's forward was cancelled or overtaken.
func (h *Hosted) stale(j *job) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.overtaken(j)
}

// dropOvertaken forgets what nobody waits for: queued forwards and the sending
// of an output whose sequence was cancelled or overtaken. It needs h.mu.
func (h *Hosted) dropOvertaken(s *slot) {
	h.queue = slices.DeleteFunc(h.queue, func(j *job) bool {
		old := j.slot == s && h.overtaken(j)
		if old {
			j.drop()
		}
		return old
	})
	if s.sending != nil && h.overtaken(s.sending) {
		s.sending.drop()
	}
}

// overtaken needs h.mu.
func (h *Hosted) overtaken(j *job) bool {
	return h.closed || h.driver != j.run.driver || j.run.ended || j.imm.Sequence <= j.slot.cancelled || j.imm.Sequence != j.slot.taken
}

// work is the stage's compute loop: the oldest run first, then step, then
// branch.
func (h *Hosted) work() {
	for j := h.next(); j != nil; j = h.next() {
		if !h.forward(j) {
			h.left(j)
		}
	}
}

// next waits for a job that may be computed; nil when the stage is closed. One
// whose slot still sends lets others pass: a peer that does not take its bytes
// holds up its slot alone.
func (h *Hosted) next() *job {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		if h.closed {
			return nil
		}
		i := slices.IndexFunc(h.queue, func(j *job) bool { return j.slot.sending == nil })
		if i >= 0 {
			j := h.queue[i]
			h.queue = slices.Delete(h.queue, i, i+1)
			j.slot.sending = j
			j.run.busy++
			return j
		}
		h.wake.Wait()
	}
}

// left says that a job is neither computed nor sent any more.
func (h *Hosted) left(j *job) {
	j.drop()
	h.mu.Lock()
	defer h.mu.Unlock()
	j.slot.sending = nil
	j.run.busy--
	h.wake.Broadcast()
}

// forward computes one job and hands it with its output to a sender, or says
// that it did not.
func (h *Hosted) forward(j *job) (handed bool) {
	d := j.run.driver
	if h.stale(j) {
		return false
	}
	f := stage.Forward{Slot: int(j.slot.index), Stop: func() bool { return h.stale(j) }}
	if h.key.stage == 0 {
		var err error
		if f.Conditioning, err = h.conditioning(j); err != nil {
			d.fault(j, pb.StageFault_CONDITIONING_MISSING, "", err)
			return false
		}
	}
	waited := time.Since(j.arrived)
	// The device drains what was issued, so the wait is not cut short.
	end := h.server.usage.work(h.session)
	res, err := j.run.run.Do(context.WithoutCancel(d.ctx), f)
	alone := end()
	h.blocksRun.Add(res.Blocks)
	switch {
	case errors.Is(err, stage.ErrStopped) || err == nil && h.stale(j):
		return false
	case err != nil:
		h.failed(err)
		// Blocks in another node's RAM fail by that node.
		if c, ok := errors.AsType[interface {
			error
			Culprit() string
		}](err); ok {
			d.fault(j, pb.StageFault_PEER_UNREACHABLE, c.Culprit(), err)
		} else {
			d.fault(j, pb.StageFault_ENGINE, "", err)
		}
		return false
	}
	h.forwards.Add(1)
	h.compute.Add(int64(res.Compute))
	h.report(j, res.Compute, alone)
	out := h.stage.Outputs[j.slot.index].Host()[:j.run.run.OutputBytes()]
	h.wg.Go(func() {
		defer h.left(j)
		d.sendOn(j, out, res, waited)
	})
	return true
}

// failed tells of an error of the stage's device.
func (h *Hosted) failed(err error) {
	if h.server.cfg.Failed != nil {
		h.server.cfg.Failed(h.plan.Stages[h.key.stage].Device, err)
	}
}

// conditioning finds what the forward names at the end of its inputs.
func (h *Hosted) conditioning(j *job) (engine.Buffer, error) {
	at := j.run.digestAt
	digest := [32]byte(h.stage.Inputs[j.slot.index].Host()[at : at+32])
	h.mu.Lock()
	defer h.mu.Unlock()
	if b := j.run.conditioning[digest]; b != nil {
		return b, nil
	}
	return nil, fmt.Errorf("conditioning %x is not here; send it again", digest[:8])
}
