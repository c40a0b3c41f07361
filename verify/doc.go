// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package verify runs golden case folders (a model, inputs, and the outputs
// that upstream code gave) on an engine, through the same stage runtime as an
// agent, and says how far each output is off.
//
// Imported by the verify command and by tests. It imports the engines'
// contract, the stage runtime and the model packages; never the coordinator,
// the store or the transport.
//
// A case folder has a case.json. Besides those it knows a folder of files
// that must be refused (bad/safetensors, bad/model) and a folder of files with
// their values beside them (X.safetensors, X-as-f32.safetensors).
package verify
