// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package pool runs whole prompts on registered ComfyUI workers: it is the
// coordinator's comfy.Backend. It follows the workers' registrations, keeps one
// socket to each under a client id of its own, and speaks ComfyUI's HTTP and
// WebSocket API to them as any client would.
//
// The commands import it. It must not import the coordinator's other packages but
// coordinator/comfy, whose interface it implements.
//
// One goroutine per worker connects, polls and connects again; another reads the
// socket and hands its frames to the lease that holds the worker. A lease's own
// Run does the rest in the caller's goroutine. The mutex of Pool guards what is
// known of all workers; no call to a worker is made under it.
package pool
