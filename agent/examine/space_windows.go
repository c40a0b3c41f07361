// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package examine

import (
	"fmt"

	"golang.org/x/sys/windows"

	"github.com/distorch/distorch/model/tensor"
)

// space is what a volume has for this user, and in all.
func space(dir string) (free, total tensor.Bytes, err error) {
	name, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, 0, err
	}
	var own, all uint64
	if err := windows.GetDiskFreeSpaceEx(name, &own, &all, nil); err != nil {
		return 0, 0, fmt.Errorf("%s: %w", dir, err)
	}
	return tensor.Bytes(own), tensor.Bytes(all), nil
}
