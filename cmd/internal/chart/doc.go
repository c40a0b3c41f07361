// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package chart draws results as SVG files.
//
// The commands import it; it imports what the results are made of and
// internal/svg, and does no I/O. The same result gives the same bytes.
package chart
