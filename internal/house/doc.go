// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package house holds the tests of the rules that the whole repository keeps:
// who may import whom, that packages are documented, files licensed, and
// dependencies explained.
//
// Nobody imports it, and it imports nothing of distorch: it reads the tree.
package house
