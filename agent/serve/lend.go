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
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// Lending is how the server reaches what it lends of.
type Lending struct {
	// Device gives the session of a device, or an error that says which there are.
	Device func(name string) (engine.Session, error)
	// Bus is bytes/s from RAM to the device; 0: not measured.
	Bus func(name string) float64
}

const (
	// restoreAgain is between tries to take back what others still use.
	restoreAgain = 2 * time.Second
	maxLendFor   = 30 * 24 * time.Hour
)

// tenant is a stage whose blocks can leave its device.
type tenant interface {
	Lend(ctx context.Context, n tensor.Bytes) (freed tensor.Bytes, err error)
	Restore(ctx context.Context) error
	// Lendable is what Lend can free at most now.
	Lendable() tensor.Bytes
	// Streamed is what comes to the device in each forward.
	Streamed() tensor.Bytes
}

// lent is a tenant with what a forecast of it needs.
type lent struct {
	tenant
	deployment string
	epoch      uint64
	stage      uint32
	compute    float64 // seconds of a forward
	release    func()
}

// lender keeps what is lent of each device. Calls come one after another.
type lender struct {
	cfg    Lending
	node   string
	stages func(device string) []lent // held until released
	failed func(device string, err error)

	calls sync.Mutex

	mu   sync.Mutex
	lent map[string]*loan
	wake chan struct{} // holds a token when a time has changed
}

// loan is what is lent of one device.
type loan struct {
	bytes tensor.Bytes
	until time.Time // zero: until restored
}

func newLender(cfg Lending, node string, stages func(string) []lent, failed func(string, error)) *lender {
	return &lender{cfg: cfg, node: node, stages: stages, failed: failed, lent: map[string]*loan{}, wake: make(chan struct{}, 1)}
}

// bytes is what is lent of a device.
func (l *lender) bytes(device string) tensor.Bytes {
	l.mu.Lock()
	defer l.mu.Unlock()
	if x := l.lent[device]; x != nil {
		return x.bytes
	}
	return 0
}

// set notes a loan, or with none its end.
func (l *lender) set(device string, x *loan) {
	l.mu.Lock()
	if x == nil {
		delete(l.lent, device)
	} else {
		l.lent[device] = x
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// handle answers a request. Errors are of gRPC's kinds.
func (l *lender) handle(ctx context.Context, req *pb.LendRequest) (*pb.LendResponse, error) {
	l.calls.Lock()
	defer l.calls.Unlock()
	began := time.Now()
	session, err := l.cfg.Device(req.GetDevice())
	if err != nil {
		return nil, status.Errorf(codes.NotFound, "node %s: %s", l.node, err)
	}
	tenants := l.stages(req.Device)
	defer func() {
		for _, t := range tenants {
			t.release()
		}
	}()
	rows := make([]*pb.LentStage, len(tenants))
	for i, t := range tenants {
		rows[i] = &pb.LentStage{Deployment: t.deployment, Epoch: t.epoch, Stage: t.stage, ComputeSeconds: t.compute, BeforeSeconds: l.forecast(req.Device, t)}
	}
	if req.Restore {
		err = l.restore(ctx, req.Device, tenants, rows)
	} else {
		err = l.lend(ctx, req, session, tenants, rows)
	}
	if err != nil {
		return nil, err
	}
	for i, t := range tenants {
		rows[i].StreamedBytes, rows[i].AfterSeconds = uint64(t.Streamed()), l.forecast(req.Device, t)
	}
	res := &pb.LendResponse{Node: l.node, Device: req.Device, Took: durationpb.New(time.Since(began)), Stages: rows}
	used, limit := account(session)
	res.FreeBytes = uint64(max(limit-used, 0))
	l.mu.Lock()
	defer l.mu.Unlock()
	if x := l.lent[req.Device]; x != nil {
		res.LentBytes = uint64(x.bytes)
		if !x.until.IsZero() {
			res.Left = durationpb.New(time.Until(x.until))
		}
	}
	return res, nil
}

// forecast is how long a forward takes on a stage: what streams hides behind
// what computes, or the other way round.
func (l *lender) forecast(device string, t lent) float64 {
	n := t.Streamed()
	if n == 0 {
		return t.compute
	}
	if bus := l.cfg.Bus(device); bus > 0 {
		return max(t.compute, float64(n)/bus)
	}
	return 0
}

// account is a device's, as large as the device where it has no limit.
func account(s engine.Session) (used, limit tensor.Bytes) {
	used, _, limit = s.Account()
	return used, cmp.Or(limit, s.Device().Memory)
}

// lend frees what the request asks for beyond what is free.
func (l *lender) lend(ctx context.Context, req *pb.LendRequest, session engine.Session, tenants []lent, rows []*pb.LentStage) error {
	device, want, d := req.Device, tensor.Bytes(req.Bytes), req.Duration.AsDuration()
	switch {
	case want <= 0:
		return status.Errorf(codes.InvalidArgument, "%d bytes of device %s are asked for; say how many with --bytes, or --restore", req.Bytes, device)
	case d < 0 || d > maxLendFor:
		return status.Errorf(codes.InvalidArgument, "memory is lent for up to %v, not for %v", maxLendFor, d)
	case session.Device().Unified:
		return status.Errorf(codes.FailedPrecondition, "device %s of node %s computes in the node's RAM; agent.memory says how much of that distorch uses", device, l.node)
	}
	until := time.Time{}
	if d > 0 {
		until = time.Now().Add(d)
	}
	had := l.bytes(device)
	if want <= had { // asked before: the time is the new one
		l.set(device, &loan{had, until})
		return nil
	}
	used, limit := account(session)
	free, can := max(limit-used, 0), tensor.Bytes(0)
	if want > free {
		for _, t := range tenants {
			can += t.Lendable()
		}
	}
	if want > free+can {
		return status.Errorf(codes.ResourceExhausted, "device %s of node %s has %v for distorch, of which it can lend %v at most: %v are free and blocks of %v can leave it; asked %v",
			device, l.node, limit, free+can, free, can, want)
	}
	// From now on no stage that is loaded takes it.
	l.set(device, &loan{want, until})
	var errs []error
	for i, t := range tenants {
		used, limit := account(session)
		need := want - max(limit-used, 0)
		if need <= 0 {
			break
		}
		if t.Lendable() <= 0 {
			continue
		}
		freed, err := t.Lend(ctx, need)
		rows[i].MovedBytes = uint64(max(freed, 0))
		errs = append(errs, err)
	}
	used, limit = account(session)
	if short := want - max(limit-used, 0); short > 0 {
		l.set(device, &loan{max(limit-used, had), until})
		return status.Errorf(codes.ResourceExhausted, "device %s of node %s: %v of %v are free, %v more could not be freed: %v; \"distorch lend --restore\" takes them back",
			device, l.node, max(limit-used, 0), want, short, errors.Join(errs...))
	}
	return nil
}

// restore takes a loan back.
func (l *lender) restore(ctx context.Context, device string, tenants []lent, rows []*pb.LentStage) error {
	for i, t := range tenants {
		was := t.Streamed()
		if err := t.Restore(ctx); err != nil {
			return status.Errorf(codes.FailedPrecondition, "device %s of node %s: stage %d of %s: %s; free the memory and ask again", device, l.node, t.stage, t.deployment, err)
		}
		rows[i].MovedBytes = uint64(max(was-t.Streamed(), 0))
	}
	l.set(device, nil)
	return nil
}

// run takes back what is due until ctx ends.
func (l *lender) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		device, at := l.due()
		if !at.IsZero() {
			timer.Reset(max(time.Until(at), 0))
		}
		select {
		case <-timer.C:
		case <-l.wake:
			continue
		case <-ctx.Done():
			return
		}
		if at.IsZero() || time.Now().Before(at) {
			continue
		}
		if _, err := l.handle(ctx, &pb.LendRequest{Device: device, Restore: true}); err != nil && ctx.Err() == nil {
			l.failed(device, err)
			l.postpone(device, at)
		}
	}
}

// due is the loan that ends first.
func (l *lender) due() (device string, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, x := range l.lent {
		if !x.until.IsZero() && (at.IsZero() || x.until.Before(at)) {
			device, at = name, x.until
		}
	}
	return device, at
}

// postpone tries again later, unless the loan is another one by now.
func (l *lender) postpone(device string, was time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if x := l.lent[device]; x != nil && x.until.Equal(was) {
		x.until = time.Now().Add(restoreAgain)
	}
}

// Lend leaves memory of a device to other programs, or takes it back.
func (s *Server) Lend(ctx context.Context, req *pb.LendRequest) (*pb.LendResponse, error) {
	node, role, err := s.cfg.PeerFrom(ctx)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	if role != roleCoordinator {
		return nil, status.Errorf(codes.PermissionDenied, "memory is lent for a coordinator, not for %s with the role %s", node, role)
	}
	if s.cfg.Lending.Device == nil {
		return nil, status.Errorf(codes.Unimplemented, "%s lends no memory", s.cfg.Facts.NodeName)
	}
	return s.lender.handle(ctx, req)
}

// Lent is what of a device is left to other programs now: stages that are
// loaded keep it free.
func (s *Server) Lent(device string) tensor.Bytes { return s.lender.bytes(device) }

// tenants are the stages on a device, which do not end before they are released.
func (s *Server) tenants(device string) []lent {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []lent
	for k, h := range s.hosted {
		if string(h.session.Device().ID) != device {
			continue
		}
		h.mu.Lock()
		if !h.closed {
			h.wg.Add(1)
			f := h.plan.Stages[k.stage].GetForecast()
			x := lent{tenant: h.stage, deployment: h.plan.Deployment, epoch: k.epoch, stage: k.stage, release: h.wg.Done, compute: f.GetComputeSeconds() + f.GetExpandSeconds()}
			if n := h.forwards.Load(); n > 0 {
				x.compute = time.Duration(h.compute.Load()).Seconds() / float64(n)
			}
			out = append(out, x)
		}
		h.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b lent) int {
		return cmp.Or(cmp.Compare(a.deployment, b.deployment), cmp.Compare(a.epoch, b.epoch), cmp.Compare(a.stage, b.stage))
	})
	return out
}

func (s *Server) lendFailed(device string, err error) {
	s.log.Warn("lent memory not taken back yet", "device", device, "error", fmt.Sprint(status.Convert(err).Message()))
}
