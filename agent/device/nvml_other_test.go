// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux || !cgo

package device

import "testing"

// TestNVMLMachines says in the closing lines of `make test` that NVML was left
// out.
func TestNVMLMachines(t *testing.T) {
	if NVMLBuilt() || askNVML(t.Context()).Built {
		t.Error("NVML is said to be in a build without cgo")
	}
	t.Skip("the library of NVIDIA's GPU driver needs a build with a C compiler on Linux")
}
