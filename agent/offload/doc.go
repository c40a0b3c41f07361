// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package offload is where the blocks of a stage rest and how they come to the
// device that computes: tiers, what they need of each memory, and the ring of
// staging slots with the copier that fills it ahead of use.
//
// Imported by the stage runtime and by whoever gives it tiers: the agent,
// benches, tests. It knows engines by their contract alone; it must not import
// an engine's implementation, the wire, the store, the transport or placement.
//
// Ordering: a Ring hands its blocks out in their order, cyclically, over the end
// of a forward into the next. A block is used between Next and Used, by one
// caller at a time. The Ring owns its goroutines until Close; buffers are its
// caller's.
package offload
