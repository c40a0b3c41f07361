// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/distorch/distorch/transport"
)

// queueOf is a stage with slots and two runs, driven but without a device.
func queueOf(t *testing.T, slots int) (h *Hosted, older, newer *run) {
	d := &driver{ctx: t.Context(), runs: map[[16]byte]*run{}}
	h = &Hosted{driver: d}
	h.wake = sync.NewCond(&h.mu)
	for i := range slots {
		h.slots = append(h.slots, &slot{hosted: h, index: uint32(i)})
	}
	older, newer = &run{order: 1, driver: d}, &run{order: 2, driver: d}
	d.runs[[16]byte{1}], d.runs[[16]byte{2}] = older, newer
	return h, older, newer
}

// arrive is a frame that was let in and is complete.
func (h *Hosted) arrive(slot, sequence int, run byte, step, branch uint32) {
	s := h.slots[slot]
	s.taken = uint64(sequence)
	h.arrived(s, transport.Immediate{Slot: uint32(slot), Sequence: uint64(sequence), Run: [16]byte{run}, Step: step, Branch: branch})
}

func TestOldestRunThenStepThenBranch(t *testing.T) {
	h, _, _ := queueOf(t, 5)
	h.arrive(0, 1, 2, 0, 0)
	h.arrive(1, 1, 1, 3, 1)
	h.arrive(2, 1, 1, 3, 0)
	h.arrive(3, 1, 1, 2, 1)
	h.arrive(4, 1, 9, 0, 0) // of no run
	var order []string
	for range 4 {
		j := h.next()
		order = append(order, fmt.Sprint(j.run.order, j.imm.Step, j.imm.Branch))
		h.left(j)
	}
	if want := []string{"1 2 1", "1 3 0", "1 3 1", "2 0 0"}; !slices.Equal(order, want) || len(h.queue) != 0 {
		t.Errorf("computed %v and left %d, want %v", order, len(h.queue), want)
	}
}

// A slot whose output is not taken holds up that slot alone, and only until
// its forward is cancelled.
func TestSlotThatSendsLetsOthersPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, older, _ := queueOf(t, 2)
		h.arrive(0, 1, 1, 0, 0)
		stuck := h.next()
		h.arrive(1, 1, 2, 5, 0)
		if j := h.next(); j.slot.index != 1 {
			t.Fatalf("slot %d was computed", j.slot.index)
		}
		next := make(chan *job)
		go func() { next <- h.next() }()
		h.slots[0].cancelled = 1
		h.arrive(0, 2, 1, 1, 0)
		synctest.Wait()
		select {
		case <-next:
			t.Fatal("the output region was given to two forwards")
		case <-stuck.ctx.Done(): // what waits for the peer ends
		}
		h.left(stuck)
		if j := <-next; j.imm.Sequence != 2 || older.busy != 1 {
			t.Errorf("sequence %d came next, %d jobs are busy", j.imm.Sequence, older.busy)
		}
	})
}

func TestWhatNobodyWaitsForLeavesTheQueue(t *testing.T) {
	h, older, _ := queueOf(t, 3)
	held := func(want ...uint64) {
		t.Helper()
		var got []uint64
		for _, j := range h.queue {
			got = append(got, j.imm.Sequence)
		}
		if !slices.Equal(got, want) {
			t.Errorf("queued are %v, want %v", got, want)
		}
	}
	for sequence := range 50 { // a client that cancels and begins again
		h.arrive(0, 1+sequence, 1, 0, 0)
		held(uint64(1 + sequence))
	}
	last := h.queue[0]
	h.arrive(1, 7, 2, 0, 0)
	h.slots[0].cancelled = 50
	h.dropOvertaken(h.slots[0])
	held(7)
	if last.ctx.Err() == nil {
		t.Error("the context of a cancelled forward goes on")
	}
	h.arrive(0, 50, 1, 0, 0) // late
	held(7)
	h.arrive(2, 8, 1, 1, 0)
	held(8, 7)
	older.ended = true
	h.dropOvertaken(h.slots[2])
	held(7)
	h.closed = true
	h.dropOvertaken(h.slots[1])
	held()
	if h.next() != nil {
		t.Error("a closed stage has a next forward")
	}
}
