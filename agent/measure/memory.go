// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"sync"
	"time"
)

// Memory is how fast this machine moves bytes in RAM.
type Memory struct {
	// All is read and written per second by copies of all threads at once.
	All, AllUncertainty float64
	// Copy is copied per second by one thread, as a frame or a weight is.
	Copy, CopyUncertainty float64
}

// copyBytes is each side of a copy, together beyond what caches hold.
const copyBytes = 128 << 20

// RAM copies 128 MiB over and over, with so many threads and with one.
func RAM(ctx context.Context, threads int) (Memory, error) {
	from, to := make([]byte, copyBytes), make([]byte, copyBytes)
	for i := range from {
		from[i] = byte(i)
	}
	lim := bound{rounds: 7, most: 50, each: 500 * time.Millisecond}
	one, err := repeat(ctx, lim, func() error {
		copy(to, from)
		return nil
	})
	if err != nil {
		return Memory{}, err
	}
	threads = max(threads, 1)
	part := copyBytes / threads
	all, err := repeat(ctx, lim, func() error {
		var wg sync.WaitGroup
		for i := range threads {
			wg.Go(func() { copy(to[i*part:(i+1)*part], from[i*part:(i+1)*part]) })
		}
		wg.Wait()
		return nil
	})
	if err != nil {
		return Memory{}, err
	}
	return Memory{
		All: 2 * float64(part*threads) / all.median, AllUncertainty: all.uncertainty(),
		Copy: copyBytes / one.median, CopyUncertainty: one.uncertainty(),
	}, nil
}
