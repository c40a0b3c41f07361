// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package native

import (
	"sync"
	"sync/atomic"
)

// pool runs pieces of one operation on a fixed number of workers. The caller
// of Do is worker 0; the others sleep between operations.
type pool struct {
	jobs []chan *job
	wg   sync.WaitGroup
}

type job struct {
	n    int
	next atomic.Int64
	f    func(worker, i int)
	done sync.WaitGroup
}

func newPool(workers int) *pool {
	p := &pool{}
	for w := 1; w < workers; w++ {
		ch := make(chan *job)
		p.jobs = append(p.jobs, ch)
		p.wg.Go(func() {
			for j := range ch {
				j.run(w)
				j.done.Done()
			}
		})
	}
	return p
}

// Workers is the number of workers, the caller of Do included.
func (p *pool) Workers() int { return len(p.jobs) + 1 }

// Do runs f for 0 ≤ i < n and returns when all are done.
func (p *pool) Do(n int, f func(worker, i int)) {
	if n == 1 || len(p.jobs) == 0 {
		for i := range n {
			f(0, i)
		}
		return
	}
	j := &job{n: n, f: f}
	for _, ch := range p.jobs[:min(n-1, len(p.jobs))] {
		j.done.Add(1)
		ch <- j
	}
	j.run(0)
	j.done.Wait()
}

func (j *job) run(worker int) {
	for {
		i := int(j.next.Add(1)) - 1
		if i >= j.n {
			return
		}
		j.f(worker, i)
	}
}

func (p *pool) close() {
	for _, ch := range p.jobs {
		close(ch)
	}
	p.wg.Wait()
}
