// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package torch

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/distorch/distorch/model/tensor"
)

// shared is memory that both processes map: a named section of the page file,
// gone with its last user.
type shared struct {
	data    []byte
	handle  windows.Handle
	address uintptr
	tag     string
}

func newShared(n tensor.Bytes) (*shared, error) {
	tag, err := name()
	if err != nil {
		return nil, err
	}
	wide, err := windows.UTF16PtrFromString(tag)
	if err != nil {
		return nil, err
	}
	size := uint64(n)
	h, err := windows.CreateFileMapping(windows.InvalidHandle, nil, windows.PAGE_READWRITE, uint32(size>>32), uint32(size), wide)
	if err != nil {
		return nil, fmt.Errorf("shared memory of %v: %w", n, err)
	}
	address, err := windows.MapViewOfFile(h, windows.FILE_MAP_READ|windows.FILE_MAP_WRITE, 0, 0, uintptr(n))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map %v: %w", n, err), windows.CloseHandle(h))
	}
	data := unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&address))), int(n))
	return &shared{data: data, handle: h, address: address, tag: tag}, nil
}

func (s *shared) describe(msg map[string]any) { msg["map"], msg["name"] = "tag", s.tag }

func (s *shared) handed() error { return nil }

func (s *shared) close() error {
	return errors.Join(windows.UnmapViewOfFile(s.address), windows.CloseHandle(s.handle))
}
