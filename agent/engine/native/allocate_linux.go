// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package native

import "golang.org/x/sys/unix"

// hugeFrom is the size from which memory comes from the kernel directly, with
// huge pages, so that it goes back when it is freed.
const hugeFrom = 1 << 20

func allocate(n int) ([]byte, func(), error) {
	if n < hugeFrom {
		return alignedSlice(n), func() {}, nil
	}
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, nil, err
	}
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // a hint
	return b, func() { _ = unix.Munmap(b) }, nil
}
