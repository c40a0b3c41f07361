// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package transport moves bytes straight between buffers of two processes, in
// RDMA's words: a process registers a memory region and hands out a remote key;
// a peer that holds the key WRITEs a range of the region, one-sided; the WRITE
// carries an immediate that appears on a completion queue of the target once
// every byte has been placed and its checksum has been compared. A region
// registered with Readable can be READ in the same way, without its process
// taking notice.
//
// The frames travel as raw messages of the gRPC service distorch.v1.Bulk, on
// connections of their own, by a codec that copies nothing on a writer's side
// and once on the other; a read copies once on each, so that Deregister never
// waits for a peer that has stopped reading. Control RPCs share the other connections of
// the pool (Host.Dial).
//
// Importers: the stage runtime, the agent, the coordinator's endpoint and the
// commands that start them. It must not import identity, gossip, stores,
// engines or the generated protobuf package: TLS and the peer's identity come
// in as functions.
//
// Ordering and ownership:
//   - Writes of one Host to one (address, node) are placed in the order in
//     which WriteImm took them; each completes exactly once, also when the
//     connection breaks in the middle and the transfer resumes.
//   - A source buffer belongs to the transport until WriteImm returns, and a
//     destination until Read does. A region belongs to the peers until
//     Deregister returns.
//   - The reader of a connection never waits for the application: Accept must
//     not block, and completion queues do not apply back-pressure. A queue is
//     bounded by its writers: each peer has at most one unconsumed write per
//     slot region, because the next one needs the slot's answer first.
package transport
