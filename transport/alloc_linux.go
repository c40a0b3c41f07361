// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

const hugePage = 2 << 20

// Alloc gives n zeroed bytes for a region, on huge pages where the kernel has
// them: copying from a socket into small pages costs a third of the
// throughput. free unmaps the memory; nothing may use it any more. The bytes
// are 64-byte aligned.
func Alloc(n int) (buf []byte, free func(), err error) {
	if n < 0 {
		return nil, nil, fmt.Errorf("allocate %d bytes: %w", n, ErrOutOfRange)
	}
	if n == 0 {
		return nil, func() {}, nil
	}
	size := n
	if n >= hugePage {
		size = (n + hugePage - 1) / hugePage * hugePage
	}
	m, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, nil, fmt.Errorf("allocate %d bytes: %w", n, err)
	}
	if n >= hugePage {
		_ = unix.Madvise(m, unix.MADV_HUGEPAGE) // advice; the kernel may have none
	}
	var once sync.Once
	return m[:n:n], func() { once.Do(func() { _ = unix.Munmap(m) }) }, nil
}
