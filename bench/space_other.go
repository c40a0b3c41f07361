// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package main

import (
	"errors"

	"github.com/distorch/distorch/model/tensor"
)

// needSpace leaves it to the write to fail.
func needSpace(string, tensor.Bytes) error { return nil }

func dropCache(uintptr) error {
	return errors.New("dropping a file from the page cache is done on Linux alone")
}
