// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package peak measures how fast this CPU can multiply and add at all: loops
// on registers alone, no memory.
//
// Imported by the bench, which gives rates as shares of these. It must not
// import the engine, whose kernels it is held against, beyond the names of the
// instruction sets.
package peak

import (
	"runtime"
	"sync"

	"github.com/distorch/distorch/agent/engine/native/isa"
)

// rounds of a loop: some 15 ms.
const rounds = 1 << 22

// loop is one of the register loops.
type loop struct {
	run   func(rounds int)
	flops float64 // of one round
}

// F32 keeps threads threads busy for some 15 ms with multiply-adds of float32
// on the vectors of an instruction set, and says how many FLOPs they did; 0
// where there is no loop for it.
func F32(set isa.ISA, threads int) float64 {
	l, ok := loopOf(set)
	if !ok {
		return 0
	}
	return l.on(threads)
}

func (l loop) on(threads int) float64 {
	var ready, done sync.WaitGroup
	begin := make(chan struct{})
	ready.Add(threads)
	for range threads {
		done.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			ready.Done()
			<-begin
			l.run(rounds)
		})
	}
	ready.Wait()
	close(begin)
	done.Wait()
	return float64(threads) * rounds * l.flops
}
