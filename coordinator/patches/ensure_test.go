// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package patches

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/model/lora"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
)

// plane is a control plane with one deployment, d, whose plans are made by place.
type plane struct {
	mu    sync.Mutex
	st    store.State
	newer chan struct{}
	calls []string
	// place makes the plan of a spec, or nothing when it is to take its time.
	place  func(*pb.DeploymentSpec) *pb.Plan
	ready  bool
	refuse error
}

func newPlane() *plane {
	p := &plane{newer: make(chan struct{}), ready: true, place: placed}
	p.st = store.State{Models: map[string]store.Entry[*pb.ModelRecord]{}, Plans: map[string]store.Entry[*pb.Plan]{}, Specs: map[string]store.Entry[*pb.DeploymentSpec]{}}
	p.set(&pb.DeploymentSpec{Name: "d", Id: "i", Generation: 1})
	return p
}

func placed(s *pb.DeploymentSpec) *pb.Plan {
	return &pb.Plan{Deployment: s.Name, DeploymentId: s.Id, Generation: s.Generation, Loras: s.Loras, Stages: []*pb.Stage{{}}}
}

// set writes a spec and its plan; the lock is held.
func (p *plane) set(s *pb.DeploymentSpec) {
	p.st.Revision++
	p.st.Specs["d"] = store.Entry[*pb.DeploymentSpec]{Value: s, Revision: p.st.Revision}
	if plan := p.place(s); plan != nil {
		p.st.Plans["d"] = store.Entry[*pb.Plan]{Value: plan, Revision: p.st.Revision}
	}
	close(p.newer)
	p.newer = make(chan struct{})
}

func (p *plane) change(do func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	do()
	p.set(p.st.Specs["d"].Value)
}

func (p *plane) State(context.Context) (*store.State, <-chan struct{}, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := p.st
	st.Specs, st.Plans, st.Models = maps.Clone(st.Specs), maps.Clone(st.Plans), maps.Clone(st.Models)
	return &st, p.newer, nil
}

func (p *plane) Readiness(st *store.State, deployment string) (bool, string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := st.Specs[deployment]
	if !ok {
		return false, "", status.Error(codes.NotFound, "no deployment")
	}
	plan := st.Plans[deployment].Value
	return p.ready && plan.GetGeneration() == s.Value.GetGeneration() && len(plan.GetStages()) > 0, "it is being loaded", nil
}

func (p *plane) Bring(_ context.Context, deployment string, digests []string, revision int64) (int64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.st.Specs[deployment]
	if e.Revision != revision {
		p.calls = append(p.calls, "too late")
		return 0, status.Error(codes.Aborted, "somebody was first")
	}
	if p.refuse != nil {
		return 0, p.refuse
	}
	s := &pb.DeploymentSpec{Name: "d", Id: "i", Generation: e.Value.Generation + 1}
	for _, d := range digests {
		if _, ok := p.st.Models[d]; !ok {
			return 0, fmt.Errorf("no record of %s", d)
		}
		s.Loras = append(s.Loras, &pb.LoRA{Id: d, Brought: true})
	}
	p.calls = append(p.calls, fmt.Sprint("brought ", len(digests)))
	p.set(s)
	return p.st.Revision, nil
}

func (p *plane) Announce(_ context.Context, r *pb.ModelRecord) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.st.Models[r.Id] = store.Entry[*pb.ModelRecord]{Value: r, Revision: 1}
	return nil
}

func (p *plane) Forget(_ context.Context, id string, _ int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.st.Models, id)
	return nil
}

// blob is a file of patches; others of other numbers.
func blob(t *testing.T, n int) (digest, path string) {
	t.Helper()
	var b bytes.Buffer
	list := fmt.Sprintf(`[{"key":"layer.%d.weight","type":"diff","tensors":["0.diff"]}]`, n)
	if err := safetensors.Encode(&b, []safetensors.Data{safetensors.FromFloat32s("0.diff", tensor.Shape{1, 1}, []float32{1})}, map[string]string{lora.PatchesKey: list}); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b.Bytes())
	path = filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(sum[:]), path
}

func newPatches(t *testing.T, p *plane) *Patches {
	t.Helper()
	out, err := New(Config{Deployments: p, Dir: filepath.Join(t.TempDir(), "kept")})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A LoRA is added when the deployment is loaded, once, and waited for.
func TestEnsureWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pl := newPlane()
		p := newPatches(t, pl)
		digest, path := blob(t, 1)
		file := func(string) (string, error) { return path, nil }
		pl.change(func() { pl.ready = false })
		errs := make(chan error, 2)
		for range 2 {
			go func() { errs <- p.Ensure(t.Context(), "d", []string{digest, digest}, file) }()
		}
		synctest.Wait()
		if len(pl.calls) != 0 {
			t.Errorf("a load under way was given up: %q", pl.calls)
		}
		pl.change(func() { pl.ready = true })
		synctest.Wait()
		for range 2 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if !slices.Equal(pl.calls, []string{"brought 1"}) {
			t.Errorf("it did %q", pl.calls)
		}
		other, otherPath := blob(t, 2)
		pl.change(func() { pl.place = func(*pb.DeploymentSpec) *pb.Plan { return nil } })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := p.Ensure(ctx, "d", []string{digest, other}, func(string) (string, error) { return otherPath, nil })
		if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "deployment d") {
			t.Errorf("a plan that does not come: %v", err)
		}
	})
}

// What goes wrong is told, and what was added is taken back.
func TestEnsureFails(t *testing.T) {
	digest, path := blob(t, 1)
	found := func(string) (string, error) { return path, nil }
	gone := errors.New("upload it first")
	for name, c := range map[string]struct {
		file  func(string) (string, error)
		setUp func(*plane)
		code  codes.Code
		want  string
		calls []string
	}{
		"no file":      {file: func(string) (string, error) { return "", gone }, code: codes.Unknown, want: gone.Error()},
		"not the file": {file: func(string) (string, error) { _, p := blob(t, 2); return p, nil }, code: codes.InvalidArgument, want: "not those of the digest"},
		"refused": {
			file: found, setUp: func(p *plane) { p.refuse = status.Error(codes.InvalidArgument, "no room") }, code: codes.InvalidArgument, want: "no room",
		},
		"placed nowhere after all": {
			file: found, code: codes.InvalidArgument, want: digest, calls: []string{"brought 1", "brought 0"},
			setUp: func(p *plane) {
				p.place = func(s *pb.DeploymentSpec) *pb.Plan {
					plan := placed(s)
					if len(s.Loras) > 0 {
						plan.Stages, plan.Infeasible = nil, "node a failed"
					}
					return plan
				}
			},
		},
		"not placed before": {
			file: found, code: codes.Unavailable, want: "no node",
			setUp: func(p *plane) {
				p.place = func(s *pb.DeploymentSpec) *pb.Plan {
					plan := placed(s)
					plan.Stages, plan.Infeasible = nil, "no node"
					return plan
				}
			},
		},
	} {
		pl := newPlane()
		if c.setUp != nil {
			pl.change(func() { c.setUp(pl) })
		}
		err := newPatches(t, pl).Ensure(t.Context(), "d", []string{digest}, c.file)
		if status.Code(err) != c.code && (c.code != codes.Unknown || !errors.Is(err, gone)) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if !slices.Equal(pl.calls, c.calls) {
			t.Errorf("%s: it did %q, want %q", name, pl.calls, c.calls)
		}
	}
}

// Files and records go some time after the last deployment that had them.
func TestSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pl := newPlane()
		p := newPatches(t, pl)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		var all []string
		for i := range 3 {
			digest, path := blob(t, i)
			all = append(all, digest)
			if err := p.Ensure(ctx, "d", all[i:], func(string) (string, error) { return path, nil }); err != nil {
				t.Fatal(err)
			}
			<-time.After(8 * time.Minute)
		}
		there := func() (out string) {
			for _, d := range all {
				_, ok := pl.st.Models[d]
				out += fmt.Sprint(p.files.Has(d), ok, " ")
			}
			return out
		}
		// The third came 16 minutes after the first, which it replaced.
		<-time.After(4 * time.Minute)
		if got := there(); got != "false false true true true true " {
			t.Errorf("there are %s", got)
		}
		pl.change(func() {
			pl.st.Specs["d"] = store.Entry[*pb.DeploymentSpec]{Value: &pb.DeploymentSpec{Name: "d", Id: "j", Generation: 1}}
		})
		<-time.After(20 * time.Minute)
		if got := there(); strings.Contains(got, "true") {
			t.Errorf("there are %s", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
