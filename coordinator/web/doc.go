// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package web is the HTTPS endpoint of a coordinator: what ComfyUI's node pack
// and other programs call to see the cluster, deploy models and run forwards,
// with safetensors bodies and a bearer token.
//
// The commands import it. It must not import the agent; it calls the coordinator
// and its endpoint in this process and decides nothing about placement.
//
// Ownership: a request holds memory for its body only while the body or the
// answer lives, and a slot of a deployment's pipeline only inside one call of
// endpoint.Server. A client's run is kept by run id until it is ended, idle for
// too long, or in the way of another. openapi.yaml says what every route takes
// and answers; a test holds the server against it.
package web
