// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux || !cgo

package device

import "context"

const nvmlBuilt = false

// askNVML: go-nvml needs cgo, and knows Linux alone.
func askNVML(context.Context) NVMLReport { return NVMLReport{} }
