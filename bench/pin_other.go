// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package main

import "github.com/distorch/distorch/agent/engine/native"

// pinned: only Linux lets a program choose cores.
func pinned() (func(native.Queue), string, error) {
	return func(native.Queue) {}, "cores as the system chooses", nil
}

// pin: only Linux lets a program choose cores.
func (c *cluster) pin(...string) (string, error) { return "cores as the system chooses", nil }
