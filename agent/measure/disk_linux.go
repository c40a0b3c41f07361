// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// evict asks the system to forget the file's first bytes and says whether it
// did: a read that must not wait finds nothing then (preadv2(2), RWF_NOWAIT).
func evict(f *os.File, n int64) bool {
	fd := int(f.Fd())
	if unix.Fadvise(fd, 0, n, unix.FADV_DONTNEED) != nil {
		return false
	}
	one := [][]byte{make([]byte, 1)}
	for _, at := range []int64{0, n / 2, n - 1} {
		if _, err := unix.Preadv2(fd, one, at, unix.RWF_NOWAIT); !errors.Is(err, unix.EAGAIN) {
			return false
		}
	}
	return true
}
