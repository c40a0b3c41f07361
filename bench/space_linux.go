// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/distorch/distorch/model/tensor"
)

// needSpace fails when the file system of dir has less than n bytes free.
func needSpace(dir string, n tensor.Bytes) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return fmt.Errorf("free space of %s: %w", dir, err)
	}
	if free := tensor.Bytes(s.Bavail) * tensor.Bytes(s.Bsize); free < n {
		return fmt.Errorf("%s has %v (%d bytes) free, the checkpoint needs %v (%d bytes); free some or choose another folder with -dir", dir, free, int64(free), n, int64(n))
	}
	return nil
}

// dropCache asks the kernel to forget what it holds of a file.
func dropCache(fd uintptr) error {
	return unix.Fadvise(int(fd), 0, 0, unix.FADV_DONTNEED)
}
