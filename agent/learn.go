// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"math"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/distorch/distorch/agent/calibration"
	"github.com/distorch/distorch/agent/feedback"
	"github.com/distorch/distorch/agent/measure"
	"github.com/distorch/distorch/agent/serve"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
)

// subject is what a lesson is about: a dtype, and activations of like size.
type subject struct {
	dtype tensor.DType
	class int // a power of four, in elements
}

func subjectOf(d tensor.DType, elements uint64) subject {
	return subject{d, (bits.Len64(max(elements, 1)) - 1) / 2}
}

// lesson is what was learned of a subject.
type lesson struct {
	state    feedback.State
	elements uint64  // of the last forward
	told     float64 // what the cluster knows; 0: nothing
	event    string  // that no run's end has told yet
}

// learner holds forwards against forecasts. Its methods are called from the
// stages' loops; none waits.
type learner struct {
	name string // "node a, cpu"
	log  *slog.Logger
	now  func() time.Time

	mu      sync.Mutex
	current *calibration.Calibration
	older   map[string]*calibration.Calibration // by id, that plans of this process were made with
	lessons map[subject]*lesson
	toldAt  time.Time     // when the cluster was told last
	again   bool          // the device is to be measured
	kept    bool          // all lessons are on the disk
	wake    chan struct{} // holds a token when there may be something to do
}

func newLearner(name string, log *slog.Logger, c *calibration.Calibration, lessons []calibration.Lesson) *learner {
	l := &learner{
		name: name, log: log, now: time.Now, current: c, older: map[string]*calibration.Calibration{c.ID(): c},
		lessons: map[subject]*lesson{}, kept: true, wake: make(chan struct{}, 1),
	}
	for _, x := range lessons {
		if d, err := tensor.ParseDType(x.DType); err == nil {
			l.lessons[subjectOf(d, x.Elements)] = &lesson{state: x.State(), elements: x.Elements, told: x.Told}
		}
	}
	return l
}

// taught takes one forward.
func (l *learner) taught(f serve.Forward) {
	d, err := tensor.ParseDType(strings.ToUpper(f.Plan.Dtype))
	if err != nil {
		return
	}
	s := f.Plan.Stages[f.Stage].GetForecast()
	l.mu.Lock()
	defer l.mu.Unlock()
	forecast := s.GetComputeSeconds() + s.GetExpandSeconds()
	if s.GetCorrection() > 0 {
		forecast /= s.GetCorrection()
	}
	if s.GetCalibration() != "" && s.GetCalibration() != l.current.ID() {
		old := l.older[s.GetCalibration()]
		if old == nil {
			return
		}
		forecast *= calibration.Change(old, l.current, d, float64(f.Elements))
	}
	key := subjectOf(d, f.Elements)
	x := l.lessons[key]
	if x == nil {
		if len(l.lessons) >= calibration.MaxLessons {
			return
		}
		x = &lesson{}
		l.lessons[key] = x
	}
	x.elements, l.kept = f.Elements, false
	var e *feedback.Event
	if x.state, e = feedback.Step(x.state, forecast, f.Compute.Seconds()); e != nil {
		x.event = l.name + ": " + e.String()
		l.log.Warn("device is not as fast as it was measured, measuring again when it is idle", "what", x.event, "dtype", d, "elements", f.Elements)
		l.again = true
	}
	if l.again || l.due(x) == 0 {
		l.poke()
	}
}

func (l *learner) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// forever is longer than any wait.
const forever = time.Duration(math.MaxInt64)

// due is how long a lesson has to wait until the cluster is told.
func (l *learner) due(x *lesson) time.Duration {
	if !x.state.Settled() || !feedback.Publish(x.told, x.state.Factor(), forever) {
		return forever
	}
	if l.toldAt.IsZero() {
		return 0
	}
	return max(0, feedback.Least-l.now().Sub(l.toldAt))
}

// feedback is what a run's end tells of forwards of one dtype and size; events
// are told once.
func (l *learner) feedback(dtype string, elements uint64) *pb.Feedback {
	d, err := tensor.ParseDType(strings.ToUpper(dtype))
	if err != nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	key := subjectOf(d, elements)
	x := l.lessons[key]
	if x == nil || !x.state.Settled() && x.event == "" {
		return nil
	}
	f := message(key, x)
	f.Ratio, f.Event, x.event = x.state.Ratio, x.event, ""
	return f
}

// message is a lesson with the ratio that the cluster knows.
func message(key subject, x *lesson) *pb.Feedback {
	base := x.state.Base
	if base == 0 {
		base = 1
	}
	return &pb.Feedback{Dtype: lower(key.dtype), Elements: x.elements, Ratio: x.told, Samples: x.state.Samples, Base: base}
}

// sorted are the subjects in order. It needs l.mu.
func (l *learner) sorted() []subject {
	return slices.SortedFunc(maps.Keys(l.lessons), func(a, b subject) int {
		return cmp.Or(cmp.Compare(a.dtype, b.dtype), cmp.Compare(a.class, b.class))
	})
}

// tell is what the cluster is to know of all lessons now, or how long to wait
// for it; what forever, until something is learned.
func (l *learner) tell() (news []*pb.Feedback, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	wait = forever
	for _, x := range l.lessons {
		wait = min(wait, l.due(x))
	}
	if wait > 0 {
		return nil, wait
	}
	l.toldAt = l.now()
	for _, x := range l.lessons {
		if x.state.Settled() {
			x.told = x.state.Factor()
		}
	}
	return l.known(), 0
}

// known is what the cluster has been told. It needs l.mu.
func (l *learner) known() []*pb.Feedback {
	var out []*pb.Feedback
	for _, key := range l.sorted() {
		if x := l.lessons[key]; x.told > 0 {
			out = append(out, message(key, x))
		}
	}
	return out
}

// told is what the cluster has been told.
func (l *learner) told() []*pb.Feedback {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.known()
}

// latest is the calibration that counts.
func (l *learner) latest() *calibration.Calibration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current
}

// wanted says whether the device is to be measured again.
func (l *learner) wanted() (*calibration.Calibration, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current, l.again
}

// drop gives the wish to measure up: what was learned corrects forecasts.
func (l *learner) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.again = false
}

// measured takes a newer calibration and says what the cluster is to know.
func (l *learner) measured(c *calibration.Calibration) []*pb.Feedback {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.again, l.kept = false, false
	for _, key := range l.sorted() {
		x := l.lessons[key]
		change := calibration.Change(l.current, c, key.dtype, float64(x.elements))
		tell := x.told > 0 || x.state.Settled()
		if x.state = feedback.Measured(x.state, change); tell {
			x.told = min(max(x.state.Ratio, 1/feedback.MaxFactor), feedback.MaxFactor)
		}
		l.log.Info("device measured again", "dtype", key.dtype, "elements", x.elements, "times_slower", change, "left_to_correct", x.told)
	}
	l.current, l.older[c.ID()], l.toldAt = c, c, l.now()
	return l.known()
}

// unkept are the lessons if they have changed since they were asked for last.
func (l *learner) unkept() (*calibration.Calibration, []calibration.Lesson) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.kept {
		return nil, nil
	}
	l.kept = true
	out := []calibration.Lesson{}
	for _, key := range l.sorted() {
		x := l.lessons[key]
		if s := x.state; s.Ratio > 0 {
			out = append(out, calibration.Lesson{
				DType: key.dtype.String(), Elements: x.elements, Ratio: s.Ratio, Samples: s.Samples, Base: s.Base, Again: s.Again, Told: x.told,
			})
		}
	}
	return l.current, out
}

// taught holds a forward against the forecast of the device that ran it.
func (a *Agent) taught(f serve.Forward) {
	if u, err := a.unit(f.Plan.Stages[f.Stage].Device); err == nil {
		u.learner.taught(f)
	}
}

// feedback is what a run's end tells of a device.
func (a *Agent) feedback(device, dtype string, elements uint64) *pb.Feedback {
	u, err := a.unit(device)
	if err != nil {
		return nil
	}
	return u.learner.feedback(dtype, elements)
}

// learn acts on what a device's forwards teach, until ctx ends.
func (a *Agent) learn(ctx context.Context, u *unit) error {
	defer a.keepLessons(u)
	for {
		if _, again := u.learner.wanted(); again {
			a.measureAgain(ctx, u)
		}
		news, wait := u.learner.tell()
		if wait == 0 {
			a.publishDevice(ctx, u, func(d *pb.Device) { d.Feedback = news })
			a.keepLessons(u)
			continue
		}
		var timer <-chan time.Time
		if wait < forever {
			timer = time.After(wait)
		}
		select {
		case <-u.learner.wake:
		case <-timer:
		case <-ctx.Done():
			return nil
		}
	}
}

// publish changes the node's record.
func (a *Agent) publish(ctx context.Context, change func(*pb.NodeRecord)) {
	a.recordMu.Lock()
	defer a.recordMu.Unlock()
	next := proto.CloneOf(a.record)
	change(next)
	if proto.Equal(next, a.record) {
		return
	}
	a.record = next
	if err := store.PutLeased(ctx, a.lease, store.NodeKey(a.ID()), next); err != nil && ctx.Err() == nil {
		a.log.Warn("node's record not renewed", "error", err)
	}
}

// publishDevice changes a device in the node's record, if it is there.
func (a *Agent) publishDevice(ctx context.Context, u *unit, change func(*pb.Device)) {
	a.publish(ctx, func(r *pb.NodeRecord) {
		for _, d := range r.Devices {
			if d.Name == string(u.device.ID) {
				change(d)
			}
		}
	})
}

func (a *Agent) keepLessons(u *unit) {
	c, lessons := u.learner.unkept()
	if c == nil {
		return
	}
	if err := a.cfg.Calibrations.SaveLessons(c, lessons); err != nil {
		a.log.Warn("what was learned is not kept", "error", err)
	}
}

// quiet is how long the device is left alone after its last run: another one
// often follows.
const quiet = time.Second

// errNeeded ends a measuring for which there is no time.
var errNeeded = errors.New("the device is needed")

// measureAgain measures the device when no run is open and nothing loads. A run
// that begins ends it; it is made up for afterwards.
func (a *Agent) measureAgain(ctx context.Context, u *unit) {
	for ctx.Err() == nil {
		idle, changed := a.serve.Idle()
		var rest <-chan time.Time
		if idle {
			rest = time.After(quiet)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
			continue
		case <-rest:
		}
		err := a.measureUntil(ctx, u, changed)
		if errors.Is(err, errNeeded) {
			continue
		}
		if err != nil && ctx.Err() == nil {
			u.learner.drop()
			a.lose(string(u.device.ID), err)
			a.log.Warn("device not measured again; forecasts are corrected instead", "device", string(u.device.ID), "error", err)
		}
		return
	}
}

func (a *Agent) measureUntil(ctx context.Context, u *unit, needed <-chan struct{}) error {
	a.measuring.Lock()
	defer a.measuring.Unlock()
	s, err := u.open()
	if err != nil {
		return err
	}
	// The programs' memory is the stages' while they run.
	room, err := s.Buffer(measure.Bytes)
	if err != nil {
		return err
	}
	defer room.Free()
	mctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer end(nil)
	wg.Go(func() {
		select {
		case <-needed:
			end(errNeeded)
		case <-mctx.Done():
		}
	})
	rates, err := a.rates(mctx, u)
	if err != nil {
		return err
	}
	old := u.learner.latest()
	c := old.Renew(calibration.New(old.Identity, calibration.Quick, rates, time.Now()))
	if err := c.Check(); err != nil {
		return err
	}
	a.keep(c)
	news := u.learner.measured(c)
	a.publishDevice(ctx, u, func(d *pb.Device) {
		rated(d, c)
		d.Feedback = news
	})
	a.keepLessons(u)
	return nil
}
