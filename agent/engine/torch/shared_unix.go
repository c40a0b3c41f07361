// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux && !windows

package torch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/distorch/distorch/model/tensor"
)

// shared is memory that both processes map: a file that has no name any more
// once both have it.
type shared struct {
	data []byte
	path string
}

func newShared(n tensor.Bytes) (*shared, error) {
	base, err := name()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(os.TempDir(), base)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("shared memory: %w", err)
	}
	defer f.Close()
	if err := f.Truncate(int64(n)); err != nil {
		return nil, errors.Join(fmt.Errorf("shared memory of %v: %w", n, err), os.Remove(path))
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map %v: %w", n, err), os.Remove(path))
	}
	return &shared{data: data, path: path}, nil
}

func (s *shared) describe(msg map[string]any) { msg["map"], msg["name"] = "path", s.path }

func (s *shared) handed() error {
	if s.path == "" {
		return nil
	}
	path := s.path
	s.path = ""
	return os.Remove(path)
}

func (s *shared) close() error { return errors.Join(s.handed(), unix.Munmap(s.data)) }
