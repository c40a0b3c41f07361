// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package donor keeps blocks of one node's stage in the RAM of another. Memory
// is the side that gives: it needs no compute and no checkpoint, and its share
// is taken from the account of its own stages. Owner and Claim are the side
// that uses it: blocks are written there when the stage loads and read ahead of
// their use, one-sided, so that the giving agent takes no part in a step.
//
// Imported by the agent and by its tests. It must not import the store, the
// stage runtime, placement or the coordinator.
//
// Ownership: Memory owns the regions, and Deregister fences each before it is
// freed; a Claim owns its session's goroutine until Close. A donation lives as
// long as its session, and for Keep after that has broken, so that a connection
// that comes back does not cost a load; it ends at once when it is released,
// when its owner is another process, or when the plan is not the deployment's
// any more.
package donor
