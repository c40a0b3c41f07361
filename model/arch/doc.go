// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package arch recognises the architecture of a checkpoint from the names and
// shapes of its tensors and writes it as a graph, one file per architecture.
//
// Imported by whoever opens a model: cmd, the coordinator, the agent. It
// imports model/graph and model/tensor, and must not import a file format, the
// wire or an engine: a reader hands it names, shapes, dtypes and metadata.
// Adding an architecture touches this package alone. All functions are pure;
// everything here comes from a file that someone else made, so it is checked
// before it is used and no size is trusted.
package arch
