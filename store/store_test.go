// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	distorchv1 "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// bench is a cluster of one etcd with its identities.
type bench struct {
	dir  identity.Dir
	ca   *identity.CA
	etcd *Embedded
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir, err := identity.OpenDir(filepath.Join(t.TempDir(), "data"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := dir.InitCluster(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dir.Ensure(ca, identity.SlotEtcd, identity.Subject{Role: identity.RoleEtcd, Name: "etcd"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	b := &bench{dir: dir, ca: ca}
	b.etcd = b.start(t, true)
	return b
}

func (b *bench) config(volatile bool) EmbeddedConfig {
	return EmbeddedConfig{
		Dir: filepath.Join(b.dir.Path(), "etcd"), Address: "127.0.0.1:0", Cluster: b.ca.Cluster(),
		CertFile: b.dir.CertFile(identity.SlotEtcd), KeyFile: b.dir.KeyFile(identity.SlotEtcd), CAFile: b.dir.CAFile(),
		Volatile: volatile,
	}
}

func (b *bench) start(t *testing.T, volatile bool) *Embedded {
	t.Helper()
	e, err := StartEmbedded(t.Context(), b.config(volatile))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func (b *bench) credentials(t *testing.T, role identity.Role, name string) *identity.Credentials {
	t.Helper()
	c, err := b.ca.Issue(identity.Subject{Role: role, Name: name}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (b *bench) dial(ctx context.Context, c *identity.Credentials) (*Store, error) {
	return Open(ctx, Config{
		Endpoints: b.etcd.Endpoints(),
		TLS:       c.ClientTLS(identity.ALPNControl, identity.Expect{Roles: []identity.Role{identity.RoleEtcd}}),
	})
}

func (b *bench) open(t *testing.T, c *identity.Credentials) *Store {
	t.Helper()
	s, err := b.dial(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (b *bench) coordinator(t *testing.T) *Store {
	t.Helper()
	return b.open(t, b.credentials(t, identity.RoleCoordinator, "c"))
}

// agent is admitted: it holds its name.
func (b *bench) agent(t *testing.T, name string) (*Store, string) {
	t.Helper()
	c := b.credentials(t, identity.RoleAgent, name)
	if err := b.coordinator(t).ClaimName(t.Context(), name, c.Self().KeyHash); err != nil {
		t.Fatal(err)
	}
	return b.open(t, c), c.Self().ID
}

func node(id, address string) *distorchv1.NodeRecord {
	return &distorchv1.NodeRecord{Id: id, Address: address}
}

// until waits for a change that satisfies done.
func until[T proto.Message](t *testing.T, s *Store, p Prefix[T], done func(map[string]T) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	found := errors.New("found")
	have := map[string]T{}
	err := Watch(ctx, s, p, func(c Change[T]) error {
		if c.Reset {
			clear(have)
		}
		for _, k := range c.Deleted {
			delete(have, k)
		}
		for _, e := range c.Entries {
			have[e.Key] = e.Value
		}
		if done(have) {
			return found
		}
		return nil
	})
	if !errors.Is(err, found) {
		t.Fatalf("waited for %s in vain: have %v, error %v", p, have, err)
	}
}

func TestRecords(t *testing.T) {
	s := newBench(t).coordinator(t)
	ctx := t.Context()
	key := SpecKey("demo")
	spec := &distorchv1.DeploymentSpec{Name: "demo", Generation: 1}

	if _, err := Get(ctx, s, key); !errors.Is(err, ErrNotFound) {
		t.Errorf("get of nothing: %v", err)
	}
	first, err := Create(ctx, s, key, spec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Create(ctx, s, key, spec); !errors.Is(err, ErrExists) {
		t.Errorf("second create: %v", err)
	}
	got, err := Get(ctx, s, key)
	if err != nil || got.Revision != first || got.Created != first || got.Part(1) != "demo" || !proto.Equal(got.Value, spec) {
		t.Fatalf("got %+v, %v", got, err)
	}
	second, err := Update(ctx, s, key, &distorchv1.DeploymentSpec{Name: "demo", Generation: 2}, first)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Update(ctx, s, key, spec, first); !errors.Is(err, ErrConflict) {
		t.Errorf("update from an old read: %v", err)
	}
	if err := Delete(ctx, s, key, first); !errors.Is(err, ErrConflict) {
		t.Errorf("delete from an old read: %v", err)
	}
	if _, err := Put(ctx, s, PlanKey("demo"), &distorchv1.Plan{Epoch: 7}); err != nil {
		t.Fatal(err)
	}
	specs, err := List(ctx, s, Specs())
	if err != nil || len(specs.Entries) != 1 || specs.Entries[0].Revision != second || specs.Entries[0].Value.GetGeneration() != 2 {
		t.Errorf("specs %+v, %v", specs, err)
	}
	plans, err := List(ctx, s, Plans())
	if err != nil || len(plans.Entries) != 1 || plans.Entries[0].Value.GetEpoch() != 7 {
		t.Errorf("plans %+v, %v", plans, err)
	}
	if err := Delete(ctx, s, key, second); err != nil {
		t.Error(err)
	}
	if _, err := Get(ctx, s, key); !errors.Is(err, ErrNotFound) {
		t.Errorf("after delete: %v", err)
	}
	for _, name := range []string{"", "a/b", "a b", "a\x00", strings.Repeat("a", 201), "ä"} {
		if _, err := Put(ctx, s, NodeKey(name), node(name, "")); err == nil {
			t.Errorf("node id %q was accepted", name)
		}
	}
	if _, err := Put(ctx, s, NodeKey("big"), node("big", strings.Repeat("x", maxValueBytes))); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("a record over the limit: %v", err)
	}
}

func TestWatchHasNoGap(t *testing.T) {
	b := newBench(t)
	s := b.coordinator(t)
	const writers, records, watchers = 4, 40, 6
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range records {
				id := fmt.Sprintf("w%d-%03d", w, i)
				if _, err := Create(ctx, s, NodeKey(id), node(id, "")); err != nil {
					t.Error(err)
				}
				if i%4 == 3 { // three stay, one goes
					if err := Delete(ctx, s, NodeKey(id), 0); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	const want = writers * records * 3 / 4
	for w := range watchers {
		wg.Go(func() {
			// Each begins its snapshot at another moment of the writing.
			until(t, s, Nodes(), func(have map[string]*distorchv1.NodeRecord) bool { return len(have) >= w*20 })
			have := map[string]bool{}
			var last int64
			err := Watch(ctx, s, Nodes(), func(c Change[*distorchv1.NodeRecord]) error {
				if c.Revision <= last || c.Reset != (last == 0) {
					t.Errorf("revision %d (reset %v) after %d", c.Revision, c.Reset, last)
				}
				last = c.Revision
				for _, e := range c.Entries {
					have[e.Key] = true
				}
				for _, k := range c.Deleted {
					delete(have, k)
				}
				for i := range writers { // the last of each writer came and went
					if !have[fmt.Sprintf("/distorch/nodes/w%d-%03d", i, records-2)] {
						return nil
					}
				}
				if len(have) == want {
					return errDone
				}
				return nil
			})
			if !errors.Is(err, errDone) {
				t.Errorf("watcher %d ended with %d records of %d: %v", w, len(have), want, err)
			}
		})
	}
	wg.Wait()
}

var errDone = errors.New("done")

func TestWatchSurvivesCompaction(t *testing.T) {
	s := newBench(t).coordinator(t)
	ctx := t.Context()
	var revision int64
	for i := range 5 {
		var err error
		if revision, err = Put(ctx, s, NodeKey("a"), node("a", fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.client.Compact(ctx, revision); err != nil {
		t.Fatal(err)
	}
	// A watcher that was away since an early revision starts over.
	next := revision - 3
	if _, err := s.followOnce(ctx, root, &next, func(batch) error { return nil }); err == nil || next != 0 {
		t.Fatalf("next revision %d, error %v; want a reset", next, err)
	}
	resets := 0
	_, err := s.followOnce(ctx, root, &next, func(b batch) error {
		if b.reset && len(b.put) == 1 {
			resets++
		}
		return errDone
	})
	if resets != 1 || err == nil {
		t.Errorf("%d resets with the record, error %v", resets, err)
	}
}

func TestWatchState(t *testing.T) {
	s := newBench(t).coordinator(t)
	ctx := t.Context()
	writes := func() error {
		_, e1 := Put(ctx, s, NodeKey("n"), node("n", ""))
		_, e2 := Put(ctx, s, LinkKey("n"), &distorchv1.LinkRecord{Node: "n"})
		_, e3 := Put(ctx, s, ModelKey("m"), &distorchv1.ModelRecord{Id: "m"})
		_, e4 := Put(ctx, s, HolderKey("m", "n"), &distorchv1.HolderRecord{})
		_, e5 := Put(ctx, s, SpecKey("d"), &distorchv1.DeploymentSpec{Name: "d"})
		_, e6 := Put(ctx, s, PlanKey("d"), &distorchv1.Plan{Epoch: 1})
		_, e7 := Put(ctx, s, ObservedKey("d", "n"), &distorchv1.Observed{Epoch: 1})
		return errors.Join(e1, e2, e3, e4, e5, e6, e7)
	}
	var first *State
	calls := 0
	err := s.WatchState(ctx, func(st *State) error {
		calls++
		if calls == 1 {
			first = st
			return writes()
		}
		if len(st.Nodes)*len(st.Links)*len(st.Models)*len(st.Holders)*len(st.Specs)*len(st.Plans)*len(st.Observed) == 0 {
			return nil
		}
		if st.Observed[NodeOf{"d", "n"}].Value.GetEpoch() != 1 {
			t.Error("observed is wrong")
		}
		return errDone
	})
	if !errors.Is(err, errDone) {
		t.Fatal(err)
	}
	if len(first.Nodes)+len(first.Specs) != 0 {
		t.Error("a state that was handed out has changed")
	}
	once, err := s.ReadState(ctx)
	if err != nil || len(once.Plans) != 1 || len(once.Holders) != 1 {
		t.Errorf("read %+v, %v", once, err)
	}
}

func TestLeaseComesBack(t *testing.T) {
	b := newBench(t)
	admin := b.coordinator(t)
	agent, id := b.agent(t, "pc1")
	registered := make(chan bool, 8)
	lease, err := agent.NewLease(LeaseConfig{TTL: 2 * time.Second, OnRegister: func(again bool) { registered <- again }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- lease.Run(ctx) }()
	if err := PutLeased(t.Context(), lease, NodeKey(id), node(id, "one")); err != nil {
		t.Fatal(err)
	}
	if again := <-registered; again {
		t.Error("the first registration says it is a repetition")
	}
	e, err := Get(t.Context(), admin, NodeKey(id))
	if err != nil || !e.Leased {
		t.Fatalf("%+v, %v", e, err)
	}

	// The lease ends behind its back.
	resp, err := admin.client.Get(t.Context(), NodeKey(id).String())
	if err != nil {
		t.Fatal(err)
	}
	admin.revoke(t.Context(), leaseOf(resp))
	if again := <-registered; !again {
		t.Error("the second registration does not say so")
	}
	e, err = Get(t.Context(), admin, NodeKey(id))
	if err != nil || e.Value.GetAddress() != "one" {
		t.Fatalf("not written again: %+v, %v", e, err)
	}
	if err := PutLeased(t.Context(), lease, ObservedKey("demo", id), &distorchv1.Observed{Node: id}); err != nil {
		t.Fatal(err)
	}
	if err := DeleteLeased(t.Context(), lease, ObservedKey("demo", id)); err != nil {
		t.Fatal(err)
	}
	if _, err := Get(t.Context(), admin, ObservedKey("demo", id)); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted record: %v", err)
	}

	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := Get(t.Context(), admin, NodeKey(id)); !errors.Is(err, ErrNotFound) {
		t.Errorf("after a clean end: %v", err)
	}
}

func TestLeaseEndsWithItsProcess(t *testing.T) {
	b := newBench(t)
	admin := b.coordinator(t)
	c := b.credentials(t, identity.RoleAgent, "pc1")
	if err := admin.ClaimName(t.Context(), "pc1", c.Self().KeyHash); err != nil {
		t.Fatal(err)
	}
	agent, err := b.dial(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	lease, err := agent.NewLease(LeaseConfig{TTL: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- lease.Run(ctx) }()
	key := NodeKey(c.Self().ID)
	if err := PutLeased(t.Context(), lease, key, node("x", "")); err != nil {
		t.Fatal(err)
	}
	if err := agent.Close(); err != nil { // the cable is cut
		t.Fatal(err)
	}
	until(t, admin, Nodes(), func(have map[string]*distorchv1.NodeRecord) bool { return len(have) == 0 })
	cancel()
	<-done
}

func TestFencing(t *testing.T) {
	b := newBench(t)
	s := b.coordinator(t)
	ctx := t.Context()
	if _, err := s.Leader(ctx); !errors.Is(err, ErrNotFound) {
		t.Errorf("leader of nobody: %v", err)
	}
	old, err := s.Campaign(ctx, "first", 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Create(ctx, s, SpecKey("demo"), &distorchv1.DeploymentSpec{Name: "demo", Generation: 3}); err != nil {
		t.Fatal(err)
	}
	spec, err := Get(ctx, s, SpecKey("demo"))
	if err != nil {
		t.Fatal(err)
	}
	none := Entry[*distorchv1.Plan]{}
	one, err := WritePlan(ctx, old, spec, none, &distorchv1.Plan{Deployment: "demo"})
	if err != nil || one.Value.GetEpoch() != 1 || one.Value.GetGeneration() != 3 {
		t.Fatalf("%v, %v", one.Value, err)
	}
	if _, err := WritePlan(ctx, old, spec, none, &distorchv1.Plan{}); !errors.Is(err, ErrConflict) {
		t.Errorf("a plan over one that was not read: %v", err)
	}
	two, err := WritePlan(ctx, old, spec, one, &distorchv1.Plan{})
	if err != nil || two.Value.GetEpoch() != 2 {
		t.Fatalf("%v, %v", two.Value, err)
	}
	if err := DeletePlan(ctx, old, two); !errors.Is(err, ErrConflict) {
		t.Errorf("deleting the plan of a deployment that is wanted: %v", err)
	}
	if _, err := Update(ctx, s, SpecKey("demo"), &distorchv1.DeploymentSpec{Name: "demo", Generation: 4}, spec.Revision); err != nil {
		t.Fatal(err)
	}
	if _, err := WritePlan(ctx, old, spec, two, &distorchv1.Plan{}); !errors.Is(err, ErrConflict) {
		t.Errorf("a plan for an old spec: %v", err)
	}
	spec, err = Get(ctx, s, SpecKey("demo"))
	if err != nil {
		t.Fatal(err)
	}

	// Another process waits; the first one's lease ends without its knowing.
	other := b.coordinator(t)
	won := make(chan *Leadership, 1)
	go func() {
		defer close(won)
		l, err := other.Campaign(ctx, "second", 2*time.Second)
		if err != nil {
			t.Error(err)
			return
		}
		won <- l
	}()
	if leader, err := s.Leader(ctx); err != nil || leader != "first" {
		t.Errorf("leader %q, %v", leader, err)
	}
	s.revoke(ctx, old.session.Lease())
	next := <-won
	if next == nil {
		t.FailNow()
	}
	if next.Revision() <= old.Revision() {
		t.Errorf("revision %d after %d", next.Revision(), old.Revision())
	}
	if _, err := WritePlan(ctx, old, spec, two, &distorchv1.Plan{}); !errors.Is(err, ErrNotLeader) {
		t.Errorf("the old leader's plan: %v", err)
	}
	three, err := WritePlan(ctx, next, spec, two, &distorchv1.Plan{})
	if err != nil || three.Value.GetEpoch() != 3 {
		t.Fatalf("%v, %v", three.Value, err)
	}
	if err := Delete(ctx, s, SpecKey("demo"), spec.Revision); err != nil {
		t.Fatal(err)
	}
	if err := DeletePlan(ctx, old, three); !errors.Is(err, ErrNotLeader) {
		t.Errorf("the old leader's deletion: %v", err)
	}
	if err := DeletePlan(ctx, next, three); err != nil {
		t.Error(err)
	}
	<-old.Done()
	old.Resign(ctx)
	next.Resign(ctx)
	if leader, err := s.Leader(ctx); !errors.Is(err, ErrNotFound) {
		t.Errorf("after resigning: %q, %v", leader, err)
	}
}

func TestCampaignEndsWithItsContext(t *testing.T) {
	s := newBench(t).coordinator(t)
	l, err := s.Campaign(t.Context(), "first", 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("stopping")
	done := make(chan error, 1)
	go func() {
		_, err := s.Campaign(ctx, "second", 0)
		done <- err
	}()
	queue := newPrefix[*wrapperspb.StringValue]("", "leader")
	until(t, s, queue, func(have map[string]*wrapperspb.StringValue) bool { return len(have) == 2 })
	cancel(cause)
	if err := <-done; !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
	l.Resign(t.Context())
	if leader, err := s.Leader(t.Context()); !errors.Is(err, ErrNotFound) {
		t.Errorf("somebody is left in the queue: %q, %v", leader, err)
	}
}

func TestRestartForgetsNothing(t *testing.T) {
	b := newBench(t)
	if err := b.etcd.Close(); err != nil {
		t.Fatal(err)
	}
	b.etcd = b.start(t, false) // with fsync
	s := b.coordinator(t)
	for i := range 20 {
		if _, err := Create(t.Context(), s, SpecKey(fmt.Sprintf("d%d", i)), &distorchv1.DeploymentSpec{Generation: uint64(i)}); err != nil {
			t.Fatal(err)
		}
	}
	before, err := List(t.Context(), s, Specs())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.etcd.Close(); err != nil {
		t.Fatal(err)
	}
	b.etcd = b.start(t, false)
	after, err := List(t.Context(), b.coordinator(t), Specs())
	if err != nil {
		t.Fatal(err)
	}
	if len(after.Entries) != 20 {
		t.Fatalf("%d records after the restart", len(after.Entries))
	}
	for i, e := range after.Entries {
		if e.Key != before.Entries[i].Key || e.Revision != before.Entries[i].Revision || !proto.Equal(e.Value, before.Entries[i].Value) {
			t.Errorf("%s differs: %+v, was %+v", e.Key, e, before.Entries[i])
		}
	}
}

func TestStartEmbeddedRefuses(t *testing.T) {
	b := newBench(t)
	t.Run("port taken", func(t *testing.T) {
		var lc net.ListenConfig
		ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		cfg := b.config(true)
		cfg.Dir, cfg.Address = t.TempDir(), ln.Addr().String()
		if _, err := StartEmbedded(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), cfg.Address) || !strings.Contains(err.Error(), "another port") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("directory in use", func(t *testing.T) {
		if _, err := StartEmbedded(t.Context(), b.config(true)); err == nil || !strings.Contains(err.Error(), "another distorch uses") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no certificate", func(t *testing.T) {
		cfg := b.config(true)
		cfg.Dir, cfg.CertFile = t.TempDir(), filepath.Join(t.TempDir(), "none.crt")
		if _, err := StartEmbedded(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "none.crt") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("data cannot be written", func(t *testing.T) {
		cfg := b.config(true)
		cfg.Dir = b.dir.CAFile()
		if _, err := StartEmbedded(t.Context(), cfg); err == nil {
			t.Error("started in a file")
		}
	})
}

func TestEtcdFullIsSaid(t *testing.T) {
	b := newBench(t)
	if err := b.etcd.Close(); err != nil {
		t.Fatal(err)
	}
	cfg := b.config(true)
	cfg.QuotaBytes = 1 << 20
	e, err := StartEmbedded(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	b.etcd = e
	s := b.coordinator(t)
	for range 5000 { // the size is counted when a batch is committed, ten times a second
		if _, err = Put(t.Context(), s, NodeKey("a"), node("a", strings.Repeat("x", 200<<10))); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrFull) {
		t.Errorf("got %v, want ErrFull", err)
	}
	if _, err := Get(t.Context(), s, NodeKey("a")); err != nil {
		t.Errorf("reading must still work: %v", err)
	}
}

func TestOpenSaysWhoDoesNotAnswer(t *testing.T) {
	b := newBench(t)
	c := b.credentials(t, identity.RoleCoordinator, "c")
	if err := b.etcd.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), Config{
		Endpoints: b.etcd.Endpoints(), Timeout: 200 * time.Millisecond,
		TLS: c.ClientTLS(identity.ALPNControl, identity.Expect{}),
	})
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), b.etcd.Address()) {
		t.Errorf("got %v", err)
	}
	if _, err := Open(t.Context(), Config{Endpoints: []string{"http://127.0.0.1:1"}, TLS: c.ClientTLS("h2", identity.Expect{})}); err == nil {
		t.Error("plain http was accepted")
	}
}
