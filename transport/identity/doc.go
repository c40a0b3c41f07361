// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package identity says who a machine is: the cluster's certificate authority,
// certificates with a role and a name in them, mutual TLS 1.3 configurations
// that check both, join tokens, and the one exchange that turns a token into a
// certificate.
//
// The commands, the coordinator, the agent, store and the other transport
// packages import it. It must not import any of them: it knows TLS and files,
// not the cluster's state, and reaches the token store through an interface.
//
// A certificate carries one URI, distorch://<cluster>/<role>/<id>, and every
// connection is judged by it, never by an address. The id follows from the
// public key; the common name is the name that people use. Private keys never leave the machine
// that made them.
package identity
