// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
)

// shelf has room for two plans; it writes down what happens.
type shelf struct {
	*follower
	room   int
	stuck  map[string]bool // loads that go on until they are given up
	events []string
	stop   func()
}

type freed func()

func (f freed) Close() { f() }

func newShelf(t *testing.T) *shelf {
	d := &shelf{follower: newFollower(), room: 2, stuck: map[string]bool{}}
	d.id, d.incarnation, d.log = "a", "i", slog.New(slog.DiscardHandler)
	name := func(p *pb.Plan) string { return fmt.Sprintf("%s@%d", p.Deployment, p.Epoch) }
	d.load = func(ctx context.Context, h *held) error {
		if d.room == 0 {
			return errors.New("no room")
		}
		d.room--
		h.stages = append(h.stages, freed(func() {
			d.room++
			d.note("free", name(h.plan))
		}))
		if d.stuck[h.plan.Deployment] {
			d.note("stuck", name(h.plan))
			<-ctx.Done()
			return context.Cause(ctx)
		}
		return nil
	}
	d.observe = func(_ context.Context, p *pb.Plan, o *pb.Observed) {
		d.note(strings.ToLower(o.State.String()), name(p))
	}
	d.forget = func(_ context.Context, deployment string) { d.note("forget", deployment) }
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.run(ctx)
	}()
	d.stop = func() { cancel(); <-ended }
	return d
}

func (d *shelf) note(what, which string) { d.events = append(d.events, what+" "+which) }

// plan is one of this process, or of another one.
func plan(name string, epoch uint64, mine bool) store.Entry[*pb.Plan] {
	p := &pb.Plan{Deployment: name, DeploymentId: fmt.Sprintf("%s, deployed the %d. time", name, epoch), Epoch: epoch, Stages: []*pb.Stage{{Node: "a", Incarnation: "i"}}}
	if !mine {
		p.Stages[0].Incarnation = "later"
	}
	return store.Entry[*pb.Plan]{Value: p}
}

// is waits until nothing happens any more and compares what did.
func (d *shelf) is(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	if !slices.Equal(d.events, want) {
		t.Errorf("it did %q, want %q", d.events, want)
	}
	d.events = nil
}

func (d *shelf) put(e ...store.Entry[*pb.Plan]) { d.learn(store.Change[*pb.Plan]{Entries: e}) }

func (d *shelf) remove(name string) {
	d.learn(store.Change[*pb.Plan]{Deleted: []string{"/distorch/deployments/" + name + "/plan"}})
}

func TestFollowerFreesBeforeItLoads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newShelf(t)
		d.put(plan("b", 1, true), plan("a", 1, true), plan("z", 1, false))
		d.is(t, "ready a@1", "ready b@1")
		d.put(plan("c", 1, true))
		d.is(t, "failed c@1")
		d.put(plan("a", 2, true)) // there was no room beside the old one
		d.is(t, "free a@1", "ready a@2", "failed c@1")
		d.put(plan("b", 2, false))
		d.is(t, "free b@1", "forget b", "ready c@1")
		d.remove("a")
		d.is(t, "free a@2", "forget a")
		d.learn(store.Change[*pb.Plan]{Reset: true, Entries: []store.Entry[*pb.Plan]{plan("c", 1, true)}})
		d.is(t)
		d.stop()
		d.is(t, "free c@1")
	})
}

// A load of minutes ends when its plan does, and only then.
func TestFollowerGivesUpALoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newShelf(t)
		d.stuck["a"] = true
		d.put(plan("a", 1, true))
		d.put(plan("b", 1, true))
		d.put(plan("a", 1, true)) // the same, read again
		d.is(t, "stuck a@1")
		d.put(plan("a", 2, true))
		d.is(t, "free a@1", "forget a", "ready b@1", "stuck a@2")
		d.remove("a")
		d.is(t, "free a@2", "forget a")
		d.put(plan("a", 3, true))
		d.is(t, "stuck a@3")
		d.stop()
		d.is(t, "free a@3", "free b@1")
		if d.room != 2 || d.loads != nil {
			t.Errorf("room for %d is left, %v is being loaded", d.room, d.loads)
		}
	})
}

// Where the next plan is of the same deployment, what is held stays until its
// load, which takes over what it can; the rest is freed after it.
func TestFollowerHandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newShelf(t)
		next := func(name string, epoch uint64) store.Entry[*pb.Plan] {
			e := plan(name, epoch, true)
			e.Value.DeploymentId = "the same"
			return e
		}
		d.put(next("a", 1))
		d.is(t, "ready a@1")
		d.put(next("a", 2))
		d.is(t, "free a@1", "ready a@2")
		d.stuck["a"] = true
		d.put(next("a", 3))
		d.is(t, "stuck a@3") // a@2 is the load's
		d.stuck["a"] = false
		d.put(next("a", 4))
		d.is(t, "free a@2", "free a@3", "forget a", "ready a@4")
		other := next("a", 5)
		other.Value.Model = "another"
		d.put(other)
		d.is(t, "free a@4", "ready a@5")
		d.stop()
		d.is(t, "free a@5")
	})
}

func TestFollowerSkipsWhatItNeverLoaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newShelf(t)
		d.stuck["a"] = true
		d.put(plan("a", 1, true), plan("b", 1, true))
		d.is(t, "stuck a@1")
		d.remove("b")
		d.remove("a")
		d.is(t, "free a@1", "forget a")
		d.stop()
	})
}
