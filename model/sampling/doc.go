// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package sampling is what happens around a model's forwards: noise from a
// seed, noise levels, Euler steps, guidance by CFG, image to image. It follows
// ComfyUI and PyTorch closely enough that a seed means the same there and
// here, and its own bits are the same on every CPU (see model/numeric).
//
// It is pure: no I/O, no clock, no global state. The forwards come from a
// callback. Commands and verification import it; it imports model/numeric.
package sampling
