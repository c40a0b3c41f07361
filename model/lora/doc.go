// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package lora reads LoRA files of every common key style, says what each of
// their tensors changes of a model, rewrites the model's graph so that the
// change is added at run time with strengths as an input, or merges it into
// the weights as they are read.
//
// Imported by the catalog and the agent, the coordinator, verify and the
// commands. It imports the model packages alone; only Overlay reads files, and
// it maps nothing and keeps nothing in memory but what it was asked for.
//
// The way of a file: Parse groups the tensors of its header by what they
// change (Change); Match finds the model's weights that they mean (Patch) and
// lists by name what cannot be applied; Apply makes the graph and the list of
// weights that do not come from the checkpoint as they are there; Overlay gives
// their bytes.
package lora
