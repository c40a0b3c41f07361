// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package stage is the stage runtime: one for all engines. It loads the
// weights of a stage's blocks into the device's account, runs forwards through
// them one at a time, and hands activations on.
//
// Imported by the agent, by the verify command and by benches. It must not
// import an engine's implementation, placement, the store or the coordinator;
// only the files that serve RPCs know the wire.
//
// Ownership: a Stage owns every buffer that it took from its session and frees
// all of them in Close. A Run is a specialisation of the stage for one
// request's dimensions. Forward calls of one stage must not overlap: the
// device has one compute queue, and the caller (the stage's queue) orders it.
package stage
