// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package numeric is arithmetic with the same bits on every CPU: a float32
// fused multiply-add in pure Go, and the float64 functions that constants and
// samplers need.
//
// The standard library's Exp, Log, Sin, Cos and Pow differ in the last bit
// between architectures (some are assembly, the rest contain expressions that
// the compiler may fuse). Here every product that is added to something is
// either wrapped in an explicit conversion or done by math.FMA, which is
// correctly rounded everywhere. NaN payloads are the only bits left open.
//
// It is a leaf: model, the sampler and the native engine import it; it imports
// only math and math/bits. All functions are pure.
package numeric
