// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// card is a device of which only the account is real.
type card struct {
	engine.Session
	account *engine.Account
	unified bool
}

func (c *card) Device() engine.Device { return engine.Device{ID: "sim:0", Unified: c.unified} }

func (c *card) Account() (used, peak, limit tensor.Bytes) { return c.account.Use() }

// blocks is a stage of blocks of a gigabyte.
type blocks struct {
	card           *card
	resident, away tensor.Bytes
	mu             sync.Mutex
	fail           error // guarded by mu
	calls          []string
}

// fails makes what follows fail, or work again.
func (b *blocks) fails(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = err
}

const giga = tensor.Bytes(1e9)

func (b *blocks) Lendable() tensor.Bytes { return b.resident * giga }

func (b *blocks) Streamed() tensor.Bytes { return b.away * giga }

func (b *blocks) Lend(_ context.Context, n tensor.Bytes) (freed tensor.Bytes, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = append(b.calls, fmt.Sprintf("lend %v", n))
	for freed < n && b.resident > 0 && b.fail == nil {
		b.card.account.Give(giga)
		b.resident, b.away, freed = b.resident-1, b.away+1, freed+giga
	}
	return freed, b.fail
}

func (b *blocks) Restore(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = append(b.calls, "restore")
	if b.fail != nil {
		return b.fail
	}
	if err := b.card.account.Take(b.away * giga); err != nil {
		return err
	}
	b.resident, b.away = b.resident+b.away, 0
	return nil
}

// lendFixture is two stages, of 4 and 2 GB, on a card of 10 GB.
func lendFixture(t *testing.T) (*lender, *card, []*blocks) {
	t.Helper()
	c := &card{account: engine.NewAccount(10*giga, "")}
	all := []*blocks{{card: c, resident: 4}, {card: c, resident: 2}}
	if err := c.account.Take(6 * giga); err != nil {
		t.Fatal(err)
	}
	cfg := Lending{
		Device: func(name string) (engine.Session, error) {
			if name != "sim:0" {
				return nil, fmt.Errorf("device %q is not one of this node (sim:0)", name)
			}
			return c, nil
		},
		Bus: func(string) float64 { return 2e9 },
	}
	stages := func(string) []lent {
		var out []lent
		for i, b := range all {
			out = append(out, lent{tenant: b, deployment: "flux", epoch: 3, stage: uint32(i), compute: 0.75, release: func() {}})
		}
		return out
	}
	return newLender(cfg, "den", stages, func(string, error) {}), c, all
}

func ask(bytes tensor.Bytes) *pb.LendRequest {
	return &pb.LendRequest{Device: "sim:0", Bytes: uint64(bytes)}
}

func TestLendAndRestore(t *testing.T) {
	l, c, all := lendFixture(t)
	lend := func(req *pb.LendRequest) *pb.LendResponse {
		t.Helper()
		res, err := l.handle(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		res.Took = nil
		return res
	}
	row := func(stage uint32, moved, streamed tensor.Bytes, before, after float64) *pb.LentStage {
		return &pb.LentStage{
			Deployment: "flux", Epoch: 3, Stage: stage, MovedBytes: uint64(moved), StreamedBytes: uint64(streamed), ComputeSeconds: 0.75,
			BeforeSeconds: before, AfterSeconds: after,
		}
	}
	for i, step := range []struct {
		req  *pb.LendRequest
		want *pb.LendResponse
	}{
		// 4 GB are free as it is: nothing moves, but no stage may take them.
		{ask(3 * giga), &pb.LendResponse{LentBytes: 3e9, FreeBytes: 4e9, Stages: []*pb.LentStage{row(0, 0, 0, 0.75, 0.75), row(1, 0, 0, 0.75, 0.75)}}},
		{ask(7 * giga), &pb.LendResponse{LentBytes: 7e9, FreeBytes: 7e9, Stages: []*pb.LentStage{row(0, 3*giga, 3*giga, 0.75, 1.5), row(1, 0, 0, 0.75, 0.75)}}},
		// The same again, and less, move nothing.
		{ask(7 * giga), &pb.LendResponse{LentBytes: 7e9, FreeBytes: 7e9, Stages: []*pb.LentStage{row(0, 0, 3*giga, 1.5, 1.5), row(1, 0, 0, 0.75, 0.75)}}},
		{ask(5 * giga), &pb.LendResponse{LentBytes: 7e9, FreeBytes: 7e9, Stages: []*pb.LentStage{row(0, 0, 3*giga, 1.5, 1.5), row(1, 0, 0, 0.75, 0.75)}}},
		{ask(9 * giga), &pb.LendResponse{LentBytes: 9e9, FreeBytes: 9e9, Stages: []*pb.LentStage{row(0, giga, 4*giga, 1.5, 2), row(1, giga, giga, 0.75, 0.75)}}},
		{&pb.LendRequest{Device: "sim:0", Restore: true}, &pb.LendResponse{FreeBytes: 4e9, Stages: []*pb.LentStage{row(0, 4*giga, 0, 2, 0.75), row(1, giga, 0, 0.75, 0.75)}}},
		{&pb.LendRequest{Device: "sim:0", Restore: true}, &pb.LendResponse{FreeBytes: 4e9, Stages: []*pb.LentStage{row(0, 0, 0, 0.75, 0.75), row(1, 0, 0, 0.75, 0.75)}}},
	} {
		step.want.Node, step.want.Device = "den", "sim:0"
		if d := cmp.Diff(step.want, lend(step.req), protocmp.Transform()); d != "" {
			t.Errorf("step %d: %s", i, d)
		}
	}
	if l.bytes("sim:0") != 0 || all[0].resident != 4 || all[1].resident != 2 {
		t.Errorf("after all: %v lent, %+v", l.bytes("sim:0"), all)
	}
	if used, _, _ := c.account.Use(); used != 6*giga {
		t.Errorf("%v in use", used)
	}
}

func TestLendRefusals(t *testing.T) {
	long := ask(giga)
	long.Duration = durationpb.New(100 * 24 * time.Hour)
	for name, tc := range map[string]struct {
		req   *pb.LendRequest
		edit  func(*card, []*blocks)
		code  codes.Code
		words string
	}{
		"unknown device": {&pb.LendRequest{Device: "cuda:7", Bytes: 1}, nil, codes.NotFound, `device "cuda:7" is not one of this node (sim:0)`},
		"nothing":        {ask(0), nil, codes.InvalidArgument, "say how many with --bytes, or --restore"},
		"for ever":       {long, nil, codes.InvalidArgument, "lent for up to 720h"},
		"more than there is": {
			ask(11 * giga), nil, codes.ResourceExhausted,
			"device sim:0 of node den has 10.0 GB for distorch, of which it can lend 10.0 GB at most: 4.0 GB are free and blocks of 6.0 GB can leave it; asked 11.0 GB",
		},
		"computes in RAM": {ask(giga), func(c *card, _ []*blocks) { c.unified = true }, codes.FailedPrecondition, "agent.memory says how much"},
		"RAM is full": {
			ask(9 * giga), func(_ *card, b []*blocks) { b[0].fail = errors.New("memory for block 3: host") }, codes.ResourceExhausted,
			"6.0 GB of 9.0 GB are free, 3.0 GB more could not be freed: memory for block 3: host",
		},
	} {
		l, c, all := lendFixture(t)
		if tc.edit != nil {
			tc.edit(c, all)
		}
		_, err := l.handle(t.Context(), tc.req)
		if st := status.Convert(err); st.Code() != tc.code || !strings.Contains(st.Message(), tc.words) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	l, c, all := lendFixture(t)
	if _, err := l.handle(t.Context(), ask(8*giga)); err != nil {
		t.Fatal(err)
	}
	if err := c.account.Take(7 * giga); err != nil { // by somebody of ours
		t.Fatal(err)
	}
	_, err := l.handle(t.Context(), &pb.LendRequest{Device: "sim:0", Restore: true})
	if st := status.Convert(err); st.Code() != codes.FailedPrecondition || !strings.Contains(st.Message(), "stage 0 of flux") || l.bytes("sim:0") != 8*giga || all[0].away != 4 {
		t.Errorf("got %v", err)
	}
}

func TestLentMemoryIsTakenBackInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _, all := lendFixture(t)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { l.run(ctx); close(done) }()
		req := ask(7 * giga)
		req.Duration = durationpb.New(10 * time.Minute)
		res, err := l.handle(t.Context(), req)
		if err != nil || res.Left.AsDuration() != 10*time.Minute {
			t.Fatal(res, err)
		}
		after := func(d time.Duration) tensor.Bytes {
			<-time.After(d) // of the bubble's clock
			synctest.Wait()
			return all[0].away
		}
		if n := after(10*time.Minute - time.Second); n != 3 {
			t.Errorf("taken back early: %d blocks are away", n)
		}
		// The same request again lends for longer.
		if _, err := l.handle(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		if n := after(5 * time.Minute); n != 3 {
			t.Errorf("taken back by the old time: %d blocks are away", n)
		}
		all[0].fails(errors.New("the memory is in use"))
		if n := after(6 * time.Minute); n != 3 || l.bytes("sim:0") != 7*giga {
			t.Errorf("%d blocks are away, %v lent", n, l.bytes("sim:0"))
		}
		all[0].fails(nil)
		if n := after(2 * restoreAgain); n != 0 || l.bytes("sim:0") != 0 {
			t.Errorf("not taken back: %d blocks are away, %v lent", n, l.bytes("sim:0"))
		}
		cancel()
		<-done
	})
}
