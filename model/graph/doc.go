// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package graph is the intermediate representation in which an architecture is
// written once, as data: a small typed program over tensors with named
// dimensions, named weights and no code.
//
// Imported by model/arch (which writes graphs), placement, the coordinator and
// the agent with its engines (which cost, place and run them). It imports only
// model/tensor, model/numeric and the standard library, and knows no wire
// format: model/graph/wire converts.
//
// A Model is head, runs of identical blocks, tail. Validate says whether one
// that came from outside is sound; Specialise turns it, for given dimensions
// and a compute dtype, into Segments with concrete shapes, FLOPs and an
// assignment of every value to memory. Everything here is pure: same input,
// same bytes; nothing is changed after it was made, and all of it may be used
// by many goroutines at once.
package graph
