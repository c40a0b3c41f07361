// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package transport

import (
	"fmt"
	"unsafe"
)

// Alloc gives n zeroed, 64-byte aligned bytes for a region. free lets the
// garbage collector have them.
func Alloc(n int) (buf []byte, free func(), err error) {
	if n < 0 {
		return nil, nil, fmt.Errorf("allocate %d bytes: %w", n, ErrOutOfRange)
	}
	const align = 64
	b := make([]byte, n+align)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (align - 1))
	return b[skip : skip+n : skip+n], func() {}, nil
}
