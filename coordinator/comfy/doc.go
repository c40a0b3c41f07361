// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package comfy is ComfyUI's own HTTP and WebSocket API on the coordinator, so
// that existing ComfyUI clients work against the cluster unchanged. It validates
// prompts, queues them by number, gives each to a worker, and relays what the
// worker says. It runs no node of its own.
//
// The commands import it, and coordinator/comfy/pool, which implements Backend.
// It must not import the coordinator's other packages.
//
// One mutex guards queue, running prompts and history together, so that a prompt
// is always in exactly one of them. A socket's frames are queued under the lock
// of the hub and written by that socket's own goroutine: nothing waits for a
// client. Queue and history live in memory, as ComfyUI's do; uploaded files,
// settings and user data live in a folder.
package comfy
