// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package compare says how far apart two tensors or pictures are: largest
// error, relative L2, PSNR, SSIM, how many values differ, and whether the bits
// are equal.
//
// The commands import it; it imports model/safetensors and model/tensor and
// must not open files: its user gives it their bytes. Values are compared as
// float64, whatever they are stored as, and read in pieces of bounded size.
package compare
