// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package examine

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/distorch/distorch/model/tensor"
)

// space is what a file system has for this user, and in all.
func space(dir string) (free, total tensor.Bytes, err error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, 0, fmt.Errorf("%s: %w", dir, err)
	}
	block := int64(s.Bsize) //nolint:unconvert // 32 bits on darwin
	return tensor.Bytes(int64(s.Bavail) * block), tensor.Bytes(int64(s.Blocks) * block), nil
}
