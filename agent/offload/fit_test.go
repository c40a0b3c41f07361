// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package offload_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/offload"
	"github.com/distorch/distorch/model/tensor"
)

// counted is blocks of one size each and a slot for those that stream.
func counted(sizes []tensor.Bytes) func([]offload.Rest) offload.Need {
	return func(rests []offload.Rest) offload.Need {
		n := offload.Need{Donors: map[engine.DeviceID]tensor.Bytes{}}
		slot := tensor.Bytes(0)
		for i, r := range rests {
			switch r.Kind {
			case offload.Device:
				n.Device += sizes[i]
				continue
			case offload.Donor:
				n.Donors[r.Donor] += sizes[i]
			case offload.RAM:
				n.Host += sizes[i]
			}
			slot = max(slot, sizes[i])
		}
		n.Device += slot
		return n
	}
}

// What Settle gives fits; it moves down alone, never what may not move, and
// nothing that need not move when all fits.
func TestSettle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "blocks")
		sizes, rests, movable := make([]tensor.Bytes, n), make([]offload.Rest, n), make([]bool, n)
		for i := range n {
			sizes[i] = tensor.Bytes(rapid.IntRange(1, 9).Draw(t, "size"))
			movable[i] = rapid.IntRange(0, 5).Draw(t, "fixed") > 0
			rests[i].Kind = rapid.SampledFrom(offload.Kinds()).Draw(t, "kind")
			if !movable[i] {
				rests[i].Kind = offload.Device
			}
			switch rests[i].Kind {
			case offload.Donor:
				rests[i].Donor = "gpu:1"
			case offload.Remote:
				rests[i].Node = "next-door"
			}
		}
		amount := func(what string) tensor.Bytes { return tensor.Bytes(rapid.IntRange(-1, 60).Draw(t, what)) }
		room := offload.Room{Device: amount("device"), Host: amount("host"), Donors: map[engine.DeviceID]tensor.Bytes{"gpu:1": amount("donor")}}
		need := counted(sizes)
		fits := func(rests []offload.Rest) bool {
			x := need(rests)
			in := func(need, room tensor.Bytes) bool { return room < 0 || need <= room }
			return in(x.Device, room.Device) && in(x.Host, room.Host) && in(x.Donors["gpu:1"], room.Donors["gpu:1"])
		}
		_, _, strict := offload.Settle(rests, movable, room, offload.Strict, true, need)
		if (strict == nil) != fits(rests) {
			t.Errorf("strict: %v, and it fits: %v", strict, fits(rests))
		}
		got, moves, err := offload.Settle(rests, movable, room, offload.Fallback, true, need)
		if err != nil {
			if !errors.Is(err, engine.ErrNoMemory) {
				t.Error(err)
			}
			return
		}
		if !fits(got) {
			t.Errorf("%v does not fit", got)
		}
		changed := 0
		for i := range got {
			if got[i] == rests[i] {
				continue
			}
			changed++
			if !movable[i] || got[i].Kind <= rests[i].Kind || got[i].Kind == offload.Remote {
				t.Errorf("block %d from %v to %v", i, rests[i], got[i])
			}
		}
		if len(moves) != changed || fits(rests) && changed > 0 {
			t.Errorf("%d moves, %d changed; fits from the start: %v", len(moves), changed, fits(rests))
		}
	})
}

// Blocks that leave the device are spread over the forward.
func TestSettleSpreads(t *testing.T) {
	rests, movable, sizes := make([]offload.Rest, 12), make([]bool, 12), make([]tensor.Bytes, 12)
	for i := range rests {
		movable[i], sizes[i] = i > 0, 1
	}
	got, moves, err := offload.Settle(rests, movable, offload.Room{Device: 9, Host: -1}, offload.Fallback, true, counted(sizes))
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for i, r := range got {
		if r.Kind == offload.RAM {
			out = append(out, i)
		}
	}
	if diff := cmp.Diff([]int{3, 6, 9, 11}, out); diff != "" || len(moves) != 4 {
		t.Errorf("blocks in RAM, %d moves: %s", len(moves), diff)
	}
}

func TestSettleSaysWhatIsShort(t *testing.T) {
	one := func(k offload.Kind) ([]offload.Rest, []bool) {
		return []offload.Rest{{Kind: k, Donor: map[bool]engine.DeviceID{true: "cuda:1"}[k == offload.Donor]}}, []bool{false}
	}
	for name, tc := range map[string]struct {
		kind offload.Kind
		room offload.Room
		says []string
	}{
		"device": {offload.Device, offload.Room{Device: 5 << 30, Host: -1}, []string{"8.6 GB", "5.4 GB", "device"}},
		"host":   {offload.RAM, offload.Room{Device: -1, Host: 1 << 30}, []string{"8.6 GB", "1.1 GB", "RAM", "agent.memory"}},
		"donor":  {offload.Donor, offload.Room{Device: -1, Host: -1, Donors: map[engine.DeviceID]tensor.Bytes{"cuda:1": 1 << 30}}, []string{"cuda:1", "1.1 GB"}},
	} {
		rests, fixed := one(tc.kind)
		_, _, err := offload.Settle(rests, fixed, tc.room, offload.Fallback, true, counted([]tensor.Bytes{8 << 30}))
		for _, s := range tc.says {
			if err == nil || !strings.Contains(err.Error(), s) {
				t.Errorf("%s: %v does not say %q", name, err, s)
			}
		}
	}
	var moves []offload.Move
	for _, b := range []int{3, 4, 5, 9} {
		moves = append(moves, offload.Move{Block: b, From: offload.Rest{Kind: offload.Donor, Donor: "cuda:1"}, To: offload.Rest{Kind: offload.RAM}})
	}
	if diff := cmp.Diff("blocks 3-5 from cuda:1 to ram, block 9 from cuda:1 to ram", offload.Describe(moves)); diff != "" {
		t.Error(diff)
	}
	for s, want := range map[string]offload.Fit{"": offload.Fallback, "fallback": offload.Fallback, "strict": offload.Strict} {
		if f, err := offload.ParseFit(s); err != nil || f != want {
			t.Errorf("%q: %v, %v", s, f, err)
		}
	}
	if _, err := offload.ParseFit("loose"); err == nil {
		t.Error("fit loose: accepted")
	}
}
