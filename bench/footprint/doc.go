// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package footprint compares the memory that the coordinator counts for a stage
// with what the stage runtime takes of its device's account.
//
// Nobody imports it: it is where a test may see both sides, which must not
// import each other.
package footprint
